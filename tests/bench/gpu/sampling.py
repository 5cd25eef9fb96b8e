"""Sampling through the stage's loop against vLLM's own generate, and the vectors that it gives.

One engine answers the first records of the pool; its start is left out.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from adg.base import artifacts, distributed
from adg.config import Config, describe_keys
from adg.models import folders
from adg.models.loading import LocalModel
from adg.prompts import Prompter
from adg.records import Pool
from tests.bench.gpu.bench import Bench, serve
from tests.bench.gpu.plan import Part
from tests.bench.gpu.report import Reading

BARE = "LLM.generate, engine in a process of its own, no seeds"  # as vLLM has it by itself
SEEDED = "LLM.generate, engine in a process of its own, seeds"
_CHECKED = 64  # records that are sampled for the check, at most
_WARM_UP = 4  # records
_ENGINE = ("vllm", "transformers", "weights", "engine")
_OWN_PROCESS = "generation.engine_process"


def parts() -> list[Part]:
    known = _OWN_PROCESS in {key for key, *_ in describe_keys()}
    here, apart = ([f"{_OWN_PROCESS}={value}"] if known else [] for value in ("false", "true"))
    return [
        Part("sample", BARE, _ENGINE, 400, partial(bare_readings, apart)),
        _stage("stage, engine in its process", _ENGINE, "embedding.source=forward", *here),
        _stage("stage, engine in a process of its own", (*_ENGINE, _OWN_PROCESS),
               "embedding.source=forward", f"{_OWN_PROCESS}=true"),
        _stage("stage, embedding.source=sampling", _ENGINE, "embedding.source=sampling"),
        Part("check", "vectors from sampling against a forward pass", _ENGINE, 240, check_readings,
             repeats=False)]


def _stage(setting: str, needs: tuple[str, ...], *overrides: str) -> Part:
    return Part("sample", setting, needs, 240, partial(stage_readings, setting, overrides))


def bare_readings(overrides: list[str], bench: Bench) -> Iterator[Reading]:
    found = bench.ask("sampling", "bare", {}, "embedding.source=forward", *overrides)
    for setting, own in found.items():
        yield from speeds(setting, own)


def stage_readings(setting: str, overrides: tuple[str, ...], bench: Bench) -> Iterator[Reading]:
    yield from speeds(setting, bench.ask("sampling", "stage", {}, *overrides))


def speeds(setting: str, found: dict[str, float]) -> Iterator[Reading]:
    for unit, number in {"records/s": "records", "output tokens/s": "tokens"}.items():
        yield Reading("sample", setting, unit, found[number] / found["seconds"], BARE)


def check_readings(bench: Bench) -> Iterator[Reading]:
    """The stage by its command on some records, then embedding.check by its own."""
    run = bench.folder / "check"
    with (bench.folder / "run/pool.jsonl").open(encoding="utf-8") as lines:
        artifacts.write_lines(run / "pool.jsonl", islice(lines, _CHECKED))
    line = bench.stage("generation.sample_answers", "embedding.source=sampling", run=run)
    setting = "sample by its command, with its start"
    yield Reading("check", setting, "seconds", line["seconds"])
    yield Reading("check", setting, "records/s", line["records_per_second"])
    bench.command("embedding.check", str(run))
    found = json.loads((run / "provenance/embed.check.json").read_text())
    for name, value in found.items():
        if isinstance(value, int | float):
            yield Reading("check", "vectors from sampling against a forward pass",
                          name.replace("_", " "), value)


# In a process of its own


def bare(config: Config) -> dict[str, dict[str, float]]:
    """vLLM's own generate over all prompts at once, without and with the stage's seeds."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    sampler, prompter, records, _ = start(config)
    requests, found = requests_of(records, prompter, config), {}
    for setting in (BARE, SEEDED):
        began = time.perf_counter()
        outputs = generate(sampler, requests, seeds=setting == SEEDED)
        seconds = time.perf_counter() - began
        found[setting] = {"seconds": seconds, "records": len(records), "tokens": sum(
            len(drawn.token_ids) - (drawn.finish_reason == "stop")
            for output in outputs for drawn in output.outputs)}
    return found


def requests_of(records: list[dict], prompter: Prompter, config: Config) -> list[Any]:
    """What the stage asks for, for all records at once."""
    from generation.drafts import Draft

    return list(Draft(0, records, prompter, config).requests.values())


def generate(sampler: Any, requests: list[Any], *, seeds: bool) -> list[Any]:
    """vLLM's own generate, which finds no prompt computed; with the stage's parameters."""
    parameters = [sampler.parameters(request) for request in requests]
    if not seeds:
        for own in parameters:
            own.seed = None
    sampler.llm.reset_prefix_cache()
    return sampler.llm.generate([{"prompt_token_ids": request.prompt} for request in requests],
                                parameters, use_tqdm=False)


def stage(config: Config) -> dict[str, float]:
    """The stage's loop: prompts, answers and their files, chunk by chunk."""
    from generation.drafts import Draft, draw
    from generation.sample_answers import write_vectors

    sampler, prompter, records, width = start(config)
    sampler.llm.reset_prefix_cache()
    began, tokens = time.perf_counter(), 0
    with tempfile.TemporaryDirectory(dir=Path(config.output_dir).parent) as target:
        drafts = (Draft(i, records[rows.start: rows.stop], prompter, config)
                  for i, rows in enumerate(artifacts.chunk_bounds(len(records),
                                                                  config.chunk_size)))
        for draft in draw(drafts, sampler):
            if config.embedding.source == "sampling":
                write_vectors(Path(target), draft, width, config)
            artifacts.write_jsonl(
                Path(target) / "answers" / artifacts.chunk_name(draft.index, "jsonl"), draft.rows)
            tokens += sum(sum(row["num_tokens"]) for row in draft.rows)
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "records": len(records), "tokens": tokens}


def start(config: Config) -> tuple[Any, Prompter, list[dict], int]:
    """(a sampler that has drawn something, prompts, records, the model's hidden width)."""
    from generation.vllm_sampler import VllmSampler

    distributed.claim_gpus(config.model.tensor_parallel_size, "model.tensor_parallel_size")
    source = LocalModel(folders.local_folder(config.model.name_or_path, config.output_dir),
                        config.model.trust_remote_code)
    prompter = Prompter(config.generation.prompt, source.tokenizer(), config.generation)
    records = list(Pool(Path(config.output_dir)))
    sampler = VllmSampler(source, config)
    generate(sampler, requests_of(records[:_WARM_UP], prompter, config), seeds=True)
    if config.embedding.source == "sampling":
        sampler.llm.collective_rpc("forget_answers")
    return sampler, prompter, records, source.described.hidden_size


if __name__ == "__main__":
    serve({"bare": bare, "stage": stage})
