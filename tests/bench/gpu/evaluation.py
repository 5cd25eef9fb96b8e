"""The benchmarks by both backends: seconds of the stage, and scores."""

from collections.abc import Iterator
from functools import partial

from tests.bench.gpu.bench import Bench
from tests.bench.gpu.plan import Part
from tests.bench.gpu.report import Reading

BENCHMARKS = ("gsm8k", "bbh")
BACKENDS = {"hf": (), "vllm": ("vllm", "engine")}


def parts() -> list[Part]:
    return [Part("evaluate", f"{name}, {backend}", ("lm_eval", "transformers", "weights", *needs),
                 300, partial(readings, name, backend))
            for name in BENCHMARKS for backend, needs in BACKENDS.items()]


def readings(name: str, backend: str, bench: Bench) -> Iterator[Reading]:
    line = bench.stage(
        "eval.run_benchmarks", f"eval.benchmarks=[{name}]", f"eval.backend={backend}",
        f"eval.limit={bench.sizes.questions[name]}", ranks=bench.ranks())
    setting, below = f"{name}, {backend}", f"{name}, hf"
    yield Reading("evaluate", setting, "seconds", line["seconds"], below)
    yield Reading("evaluate", setting, f"score of {line['records']} questions, %",
                  line["scores"][name], below)
