"""What the Trainer reports in a run: progress for people, metrics for machines, checkpoints."""

import math
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from adg.base import artifacts, distributed, log_file, process
from adg.base.errors import InputError
from train.batches import Order


class Speed:
    """Tokens and floating-point operations per second, over all ranks; of the operations those that
    a step needs, not those that checkpointing repeats."""

    def __init__(self, flops_per_token: float) -> None:
        self._flops_per_token = flops_per_token
        self._time, self._tokens = time.perf_counter(), 0

    def start(self, tokens: int) -> None:
        """Begin with so many tokens seen."""
        self._time, self._tokens = time.perf_counter(), tokens

    def step(self, tokens: int) -> dict[str, float]:
        """{"tokens_per_second", "flops_per_second"} since the last call."""
        now = time.perf_counter()
        rate = (tokens - self._tokens) / (now - self._time)
        self._time, self._tokens = now, tokens
        return {"tokens_per_second": rate, "flops_per_second": rate * self._flops_per_token}


class Progress(TrainerCallback):
    """A progress bar in records on rank 0, and a line per step in metrics.jsonl."""

    def __init__(self, metrics: Path, order: Order, epochs: int, speed: Speed) -> None:
        steps = range(len(order.steps))
        self._metrics, self._epochs = metrics, epochs
        self._records = list(accumulate(map(order.records, steps), initial=0))  # after each step
        self._tokens = list(accumulate(map(order.tokens, steps), initial=0))
        self._bar: Any = None
        self._speed, self._rates = speed, {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar where a resumed run left off, and drop metrics of steps that are redone."""
        self._bar = distributed.progress("finetune", self._records[-1],
                                         self._records[state.global_step])
        if distributed.rank() == 0:
            with self._metrics.open("a+b", buffering=0) as log:
                log_file.drop_torn_line(log)
            rows = [row for row in artifacts.JsonlRows(self._metrics)
                    if row["step"] <= state.global_step]
            artifacts.write_jsonl(self._metrics, rows)

        self._speed.start(self._tokens[state.global_step])

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        process.beat()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        process.beat()
        self._bar.update(self._records[state.global_step] - self._records[state.global_step - 1])
        self._rates = self._speed.step(self._tokens[state.global_step])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None,
               **_: Any) -> None:
        """InputError, on every rank and before a checkpoint, where the loss is NaN or infinite."""
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise InputError(
                f"fine-tuning stopped: the loss of step {state.global_step} is {logs['loss']}. No "
                f"model was saved, and the checkpoints in {args.output_dir} may be corrupt: lower "
                f"train.learning_rate ({args.learning_rate:g}), use model.dtype=bfloat16 or "
                f"float32, look for odd records in the subset, and train again: bash run.sh CONFIG "
                f"finetune --overwrite")
        if distributed.rank() == 0:
            self._bar.set_postfix_str(
                f"loss {logs['loss']:.3f}, lr {logs['learning_rate']:.1e}, "
                f"{self._rates['tokens_per_second']:,.0f} tokens/s, "
                f"{self._rates['flops_per_second'] / 1e12:.2f} TFLOP/s")
            row = {"step": state.global_step,
                   "epoch": self._epochs * state.global_step / state.max_steps,
                   "loss": logs["loss"], "learning_rate": logs["learning_rate"],
                   "grad_norm": logs.get("grad_norm"),
                   "tokens": self._tokens[state.global_step], **self._rates}
            with self._metrics.open("ab", buffering=0) as log:
                log_file.append_line(log, artifacts.to_line(row))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()


class Checkpoints(TrainerCallback):
    """Asks for checkpoints by steps, by time or both, and marks one as whole once every rank has
    written its part and it is on disk."""

    def __init__(self, marker: str, *, steps: int | None, minutes: int | None) -> None:
        self._marker, self._steps, self._minutes = marker, steps, minutes
        self._last = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """No checkpoint of the last step: the model follows at once."""
        if state.global_step < state.max_steps:
            by_steps = self._steps is not None and state.global_step % self._steps == 0
            control.should_save = self._is_time() or by_steps

    def _is_time(self) -> bool:
        """Whether it is by rank 0's clock, asked once a step, whose loss is waited for anyway."""
        return self._minutes is not None and distributed.from_rank_0(
            time.monotonic() - self._last >= 60 * self._minutes)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        process.beat()
        _wait_for_all()
        if distributed.local_rank() == 0:
            artifacts.flush_tree(folder)  # what this node's ranks have written
        _wait_for_all()
        if distributed.rank() == 0:
            artifacts.write_json(folder / self._marker, {"world_size": distributed.world_size()})
        process.beat()
        self._last = time.monotonic()


def _wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()
