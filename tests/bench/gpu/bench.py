"""What the measurements share: the run folder that is measured in, stages and workers."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from adg.base import artifacts, process
from adg.config import Config, load_config
from adg.pipeline.record import read_log
from tests.bench.gpu import command
from tests.bench.gpu.plan import Budget
from tests.bench.gpu.report import Reading, Report

ROOT = Path(__file__).resolve().parents[3]
PEAK = ("peak", "product of two matrices", "TFLOP/s")  # what, setting and unit of its row
MFU = "MFU, %"


class Sizes(NamedTuple):
    """How much is measured."""

    records: int  # sampled, at most
    answer_tokens: int  # embedded in each setting, about
    per_device: tuple[int, ...]  # records of a rank's forward pass in fine-tuning
    steps: int  # of the optimiser
    questions: dict[str, int]  # of each of a benchmark's tasks
    matrix: int  # rows of the square matrices whose product gives the peak
    rounds: int  # at most


SIZES = {
    "gpu": Sizes(2000, 200_000, (2, 8, 16), 8, {"gsm8k": 128, "bbh": 4}, 8192, 3),
    "small": Sizes(6, 1000, (1, 2), 3, {"gsm8k": 2, "bbh": 1}, 2048, 1),
}


@dataclass
class Bench:
    """A machine, a configuration, and what is measured there."""

    config: Config
    gpus: int
    gpu_memory: float  # GiB of one
    random: bool  # the model's folder holds no weights
    sizes: Sizes
    budget: Budget
    folder: Path  # for scratch: config.yaml, and run/, whose pool.jsonl is there
    log: Path  # of every command's output
    report: Report
    write: Callable[[], Any]  # the report, to its files

    def take(self, reading: Reading) -> None:
        """Say a reading and keep it."""
        self.report.add(reading)
        self.write()
        if reading.value is None:
            shown = f"{reading.unit}: {reading.note}" if reading.unit else reading.note
        else:
            shown = reading.value if isinstance(reading.value, str) else f"{reading.value:,.4g}"
            shown = f"{shown} {reading.unit}".rstrip()
        print(f"[{reading.what}] {reading.setting}: {shown}", flush=True)

    def stage(self, module: str, *overrides: str, run: Path | None = None, ranks: int = 0) -> dict:
        """A stage's line in log.jsonl, after it has run by its command (under torchrun where ranks
        are given), in run/ or a run folder of its own."""
        where = [f"output_dir={run}"] if run else []
        self.stage_output(module, *where, *overrides, ranks=ranks)
        return read_log(run or self.folder / "run")[-1]

    def stage_output(self, module: str, *arguments: str, ranks: int = 0) -> str:
        """What a stage prints."""
        return self.command(module, str(self.folder / "config.yaml"), *arguments, "--overwrite",
                            ranks=ranks)

    def command(self, module: str, *arguments: str, ranks: int = 0) -> str:
        """What a module prints; Failed where it ends badly, or not in time."""
        launcher = ["adg.pipeline.launch", f"--nproc_per_node={ranks}", "-m"] if ranks else []
        return command.run([sys.executable, "-m", *launcher, module, *arguments], self.log,
                           self.budget.left())

    def ask(self, module: str, way: str, arguments: dict, *overrides: str) -> Any:
        """What a way of one of the modules here gives, in a process of its own (see `serve`)."""
        result = self.folder / "result.json"
        result.unlink(missing_ok=True)
        self.command(f"tests.bench.gpu.{module}", way, json.dumps(arguments), str(result),
                     str(self.folder / "config.yaml"), *overrides)
        return json.loads(result.read_text())

    def ranks(self) -> int:
        """A rank for each GPU; one where there is none."""
        return max(1, self.gpus)

    def mfu(self, what: str, setting: str, speed: float, baseline: str) -> Reading:
        """How much of the measured peak so many FLOP/s of one device are."""
        peak = self.report.median(*PEAK)
        if peak is None:
            return Reading(what, setting, MFU, note="skipped: no peak was measured")
        return Reading(what, setting, MFU, 100 * speed / (peak * 1e12), baseline)


def serve(ways: dict[str, Callable[..., Any]]) -> None:
    """A worker's main: WAY ARGUMENTS RESULT CONFIG [section.key=value ...], as `Bench.ask` says."""
    def main() -> None:
        way, arguments, result, config, *overrides = sys.argv[1:]
        found = ways[way](load_config(Path(config), overrides), **json.loads(arguments))
        artifacts.write_json(Path(result), found)

    process.run_script(main)
