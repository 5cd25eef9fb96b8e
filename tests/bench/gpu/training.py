"""Fine-tuning: the stage under ZeRO-2 and ZeRO-3 against a plain loop of PyTorch, speed and memory.
"""

import random
import re
import statistics
import time
from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from adg.base import artifacts
from adg.config import Config
from adg.models.batches import within_memory
from adg.models.loading import LocalModel
from adg.prompts import Prompter
from adg.records import Pool
from tests.bench.embed import synchronise
from tests.bench.gpu import random_model
from tests.bench.gpu.bench import ROOT, Bench, Sizes, serve
from tests.bench.gpu.plan import Part
from tests.bench.gpu.recorded_finetune import MARK
from tests.bench.gpu.report import Reading

ZERO = ("zero2", "zero3")
SPEED, MEMORY = "tokens/s per device", "GPU memory, GiB"  # units
_WARM_UP = 2  # steps whose speed does not count
_TOO_MUCH = 1.2  # times a GPU's memory, from which on an estimate is believed
_GIB = 2**30
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": _GIB, "TiB": 2**40}
_ESTIMATE = re.compile(r"memory +about ([\d.]+) (\w+) on each")


def parts(sizes: Sizes) -> list[Part]:
    return [Part("finetune", "plain loop without optimiser", ("torch", "transformers"), 180,
                 plain_readings),
            *(Part("finetune", f"{zero}, {number} per device",
                   ("deepspeed", "transformers", "weights"), 240,
                   partial(stage_readings, zero, number))
              for zero in ZERO for number in sizes.per_device)]


def plain_setting(number: int) -> str:
    """How the plain loop's row is named."""
    return f"plain loop without optimiser, {number} per device"


def plain_readings(bench: Bench) -> Iterator[Reading]:
    for number, found in bench.ask("training", "plain", {
            "per_device": bench.sizes.per_device, "steps": bench.sizes.steps}):
        setting = plain_setting(number)
        if found is None:
            yield Reading("finetune", setting, note="failed: out of memory")
            continue
        yield Reading("finetune", setting, SPEED, found["tokens_per_second"], setting)
        yield bench.mfu("finetune", setting, found["flops_per_second"], setting)
        if found["memory"]:
            yield Reading("finetune", setting, MEMORY, found["memory"] / _GIB)


def stage_readings(zero: str, number: int, bench: Bench) -> Iterator[Reading]:
    """The stage by its command with a rank for each GPU, on records that are drawn at random."""
    ranks, run = bench.ranks(), bench.folder / "run"
    batch = max(bench.sizes.per_device) * ranks
    wanted = batch * bench.sizes.steps
    records = min(wanted, len(Pool(run)))
    overrides = [f"selection.budget={records}", f"train.epochs={-(-wanted // records)}",
                 f"train.deepspeed={ROOT / f'configs/deepspeed/{zero}.json'}",
                 f"train.batch_size={batch}", f"train.per_device_batch_size={number}",
                 "train.save_steps=1000000"]
    setting, below = f"{zero}, {number} per device, {ranks} rank(s)", plain_setting(number)
    bench.stage("adg.score_and_select", *overrides)
    if bench.gpus:
        estimate = estimated(bench.stage_output("train.finetune", *overrides, "--dry-run",
                                                ranks=ranks))
        yield Reading("finetune", f"estimate for {setting}", MEMORY, estimate, setting)
        if estimate > _TOO_MUCH * bench.gpu_memory:
            yield Reading("finetune", setting, note=f"skipped: the estimate is {estimate:.0f} GiB, "
                                                    f"and a GPU has {bench.gpu_memory:.0f}")
            return
    output = bench.stage_output("tests.bench.gpu.recorded_finetune", *overrides, ranks=ranks)
    steps = list(artifacts.JsonlRows(run / "train/bench/metrics.jsonl"))[_WARM_UP:]
    speed, flops = (statistics.median(step[name] for step in steps)
                    for name in ("tokens_per_second", "flops_per_second"))
    yield Reading("finetune", setting, SPEED, speed / ranks, below)
    yield bench.mfu("finetune", setting, flops / ranks, below)
    if bench.gpus:
        peaks = [int(found) for found in re.findall(rf"{MARK} (\d+)", output)]
        yield Reading("finetune", setting, MEMORY, max(peaks) / _GIB)
    else:
        yield Reading("finetune", setting, MEMORY, note="skipped: no GPU")


def estimated(output: str) -> float:
    """GiB that a dry run says a rank takes."""
    number, unit = _ESTIMATE.search(output).groups()
    return float(number) * _UNITS[unit] / _GIB


# In a process of its own


def plain(config: Config, *, per_device: list[int],
          steps: int) -> list[tuple[int, dict[str, float] | None]]:
    """(records per device, speed and memory of forward and backward; None where memory ran out)."""
    import torch
    from transformers import AutoModelForCausalLM

    from train.data import encode

    folder = random_model.folder_of(config)
    source = LocalModel(folder, config.model.trust_remote_code)
    tokenizer = source.tokenizer()
    prompter = Prompter(config.train.prompt, tokenizer, config.generation)
    encoded = (encode(record, prompter, tokenizer, config.train.max_length)[0]
               for record in Pool(Path(config.output_dir)))
    examples = [example for example in encoded if example is not None]
    model = (random_model.draw(AutoModelForCausalLM, folder, config)
             if random_model.is_random(folder)
             else source.load(AutoModelForCausalLM, config.model.dtype)).train()
    model.config.use_cache = False
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    found = []
    for number in per_device:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        batches = alike(examples, number, steps + _WARM_UP)
        speeds = [within_memory(partial(step, model, batch)) for batch in batches][_WARM_UP:]
        if None in speeds:
            found.append((number, None))
            continue
        found.append((number, {
            "tokens_per_second": statistics.median(own[0] for own in speeds),
            "flops_per_second": statistics.median(own[1] for own in speeds),
            "memory": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0}))
    return found


def alike(examples: list[dict], size: int, number: int) -> list[list[dict]]:
    """So many batches of records of like length, in a random order."""
    drawn = sorted(islice(cycle(examples), size * number), key=lambda own: len(own["input_ids"]))
    batches = [drawn[first: first + size] for first in range(0, len(drawn), size)]
    random.Random(0).shuffle(batches)
    return batches


def step(model: Any, examples: list[dict]) -> tuple[float, float]:
    """(tokens/s, FLOP/s) of one forward and backward pass, padding not counted."""
    from train.data import collate

    batch = {name: tensor.to(model.device) for name, tensor in collate(examples).items()}
    tokens, described = int(batch["attention_mask"].sum()), model.config.get_text_config()
    synchronise()
    start = time.perf_counter()
    model(**batch).loss.backward()
    synchronise()
    seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    flops = 6 * sum(weight.numel() for weight in model.parameters()) + (
        12 * described.num_hidden_layers * described.hidden_size * tokens / len(examples))
    return tokens / seconds, tokens * flops / seconds


if __name__ == "__main__":
    serve({"plain": plain})
