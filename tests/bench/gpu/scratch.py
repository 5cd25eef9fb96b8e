"""The folder that is measured in: a configuration, and a run folder with a pool."""

import sys
from itertools import islice
from pathlib import Path

from adg.base import artifacts, distributed
from adg.config import Config, load_config, to_yaml
from tests.bench.gpu import command, random_model
from tests.bench.gpu.bench import ROOT

_OVERRIDES = ("chunk_size=500", "pool.decontaminate=off", "generation.sampler=vllm",
              "selection.method=random", "selection.name=bench", "selection.measure=null",
              "selection.window=null", "selection.num_answers=null", "selection.budget=1",
              "train.name=bench", "train.subset=top", "train.model_name_or_path=null",
              "eval.name=base")


def read_config(source: Path | None, overrides: list[str], folder: Path) -> Config:
    """The configuration of a run folder or a file; where there is none, the paper's for a model in
    `folder`/random."""
    if source is not None:
        return load_config(source / "config.yaml" if source.is_dir() else source, overrides)
    dtype = "bfloat16" if distributed.count_gpus() else "float32"
    return load_config(ROOT / "configs/base/paper.yaml", [
        f"output_dir={folder / 'run'}", f"model.name_or_path={folder / 'random'}",
        f"model.dtype={dtype}", f"pool.path={random_model.DEMO_POOL}",
        "embedding.tokens_per_batch=null", *overrides])


def make(source: Path | None, shape: str | None, config: Config, folder: Path, records: int,
         log: Path, seconds: float) -> Config:
    """Fill the folder with config.yaml and run/pool.jsonl of at most so many records; the
    configuration that is in it. Failed where the pool cannot be made."""
    artifacts.write_text(folder / "resolved.yaml", to_yaml(config))
    changed = load_config(folder / "resolved.yaml", [
        f"output_dir={folder / 'run'}", f"pool.limit={records}", *_OVERRIDES,
        f"eval.data_dir={config.eval.data_dir or ROOT / 'configs/demo/benchmarks'}"])
    artifacts.write_text(folder / "config.yaml", to_yaml(changed))
    pool = folder / "run/pool.jsonl"
    if source is None:
        random_model.make(folder / "random", shape, changed)
        artifacts.write_jsonl(pool, random_model.records(records))
    elif source.is_dir():
        with (source / "pool.jsonl").open(encoding="utf-8") as lines:
            artifacts.write_lines(pool, islice(lines, records))
    else:
        command.run([sys.executable, "-m", "generation.prepare_pool", str(folder / "config.yaml")],
                    log, seconds)
    return changed
