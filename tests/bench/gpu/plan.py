"""Which measurements a machine allows, and which of them the time does."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from adg.config import Config, describe_keys
from tests.bench.gpu.command import Failed
from tests.bench.gpu.report import Reading


class Part(NamedTuple):
    """One measurement: what it needs, and what it gives."""

    what: str
    setting: str
    needs: tuple[str, ...]
    seconds: float  # that it takes on a GPU with a model of 8B, about
    run: Callable[..., Iterator[Reading]]  # is given the bench
    repeats: bool = True


class Budget:
    """Seconds that are left of the whole run."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + 60 * minutes

    def left(self) -> float:
        """Seconds until the end; below 0 after it."""
        return self._end - self._clock()

    def refusal(self, seconds: float) -> str | None:
        """Why something of so many seconds is not begun; None where there is time for it."""
        left = self.left()
        return None if seconds <= left else (f"it takes about {seconds:.0f} s, and "
                                             f"{max(0, left):.0f} s are left (--minutes)")


def lacking(need: str, config: Config, gpus: int, *, random: bool) -> str | None:
    """Why a need is not met here; None where it is.

    A need is a Python package, a configuration key, `gpu`, `engine` (the GPUs of one engine), or
    `weights` (a model that can be read from its folder).
    """
    size = config.model.tensor_parallel_size
    if need == "gpu":
        return None if gpus else "no GPU"
    if need == "engine":
        return f"model.tensor_parallel_size is {size}, and the GPUs here are {gpus}" \
            if gpus and gpus < size else None
    if need == "weights":
        return ("it reads a model's weights from a folder, and --random 8b has none" if random
                else None)
    if "." in need:
        return None if need in {key for key, *_ in describe_keys()} else \
            f"{need} is not a key of this version's configuration"
    return None if importlib.util.find_spec(need) else f"{need} is not installed"


def measure(parts: list[Part], bench: Any, rounds: int) -> None:
    """Run every part that can run, round after round, for as long as the time allows.

    All parts run once before any is repeated; every second round goes backwards. What fails is
    reported and not repeated. `bench` has what `lacking` asks for, a budget, and takes readings.
    """
    took = {part: part.seconds for part in parts}
    out: set[Part] = set()
    for number in range(rounds):
        for part in parts if number % 2 == 0 else parts[::-1]:
            if part in out or number and not part.repeats:
                continue
            reason = next(filter(None, (lacking(
                need, bench.config, bench.gpus, random=bench.random) for need in part.needs)), None)
            if reason:
                out.add(part)
            reason = reason or bench.budget.refusal(took[part])
            if reason:
                if not number:
                    bench.take(Reading(part.what, part.setting, note=f"skipped: {reason}"))
                continue
            left = bench.budget.left()
            try:
                for reading in part.run(bench):
                    bench.take(reading)
            except (Failed, OSError, ValueError, LookupError) as error:
                out.add(part)
                bench.take(Reading(part.what, part.setting, note=f"failed: {error}"))
            took[part] = left - bench.budget.left()
