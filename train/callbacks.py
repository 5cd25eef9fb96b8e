"""What the Trainer tells in a run: progress for people, metrics for machines, whole checkpoints."""

import math
import os
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from adg import artifacts, distributed, watchdog
from adg.errors import InputError


class Speed:
    """Tokens and floating-point operations per second, over all ranks.

    The operations that a step needs, not those that checkpointing repeats: 6 N + 12 L H T a token
    (Chowdhery et al. 2022, appendix B), N weights, L layers, H hidden, T tokens of a record.
    """

    def __init__(self, num_weights: int, described: Any, mean_length: float) -> None:
        self.flops_per_token = 6 * num_weights + (
            12 * described.num_hidden_layers * described.hidden_size * mean_length)
        self._time, self._tokens = time.perf_counter(), 0

    def start(self, tokens: int) -> None:
        """Begin with so many tokens seen."""
        self._time, self._tokens = time.perf_counter(), tokens

    def step(self, tokens: int) -> dict[str, float]:
        """{"tokens_per_second", "flops_per_second"} since the last call."""
        now = time.perf_counter()
        rate = (tokens - self._tokens) / (now - self._time)
        self._time, self._tokens = now, tokens
        return {"tokens_per_second": rate, "flops_per_second": rate * self.flops_per_token}


class Progress(TrainerCallback):
    """A progress bar in records on rank 0, and a line per step in metrics.jsonl."""

    def __init__(self, metrics: Path, batch_size: int, total: int, speed: Speed) -> None:
        self._metrics, self._batch_size, self._total = metrics, batch_size, total
        self._bar: Any = None
        self._speed, self._rates = speed, {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar where a resumed run left off, and drop metrics of steps that are redone."""
        done = min(state.global_step * self._batch_size, self._total)
        self._bar = distributed.progress("finetune", self._total, done)
        if distributed.rank() == 0:
            with self._metrics.open("a+b", buffering=0) as log:
                artifacts.drop_torn_line(log)
            known = artifacts.JsonlRows(self._metrics)
            artifacts.write_jsonl(self._metrics, [row for row in known
                                                  if row["step"] <= state.global_step])

        self._speed.start(int(state.num_input_tokens_seen))

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        watchdog.beat()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        watchdog.beat()
        self._bar.update(min(self._batch_size, self._total - self._bar.n))
        self._rates = self._speed.step(int(state.num_input_tokens_seen))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None,
               **_: Any) -> None:
        """InputError, on every rank, where the loss is no number; before a checkpoint is made."""
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise InputError(
                f"fine-tuning stopped: the loss of step {state.global_step} is {logs['loss']}. No "
                f"model was saved, and the checkpoints in {args.output_dir} may be spoilt: lower "
                f"train.learning_rate ({args.learning_rate:g}), use model.dtype=bfloat16 or "
                f"float32, look at the subset for odd records, and train anew with --overwrite")
        if distributed.rank() == 0:
            self._bar.set_postfix_str(
                f"loss {logs['loss']:.3f}, lr {logs['learning_rate']:.1e}, "
                f"{self._rates['tokens_per_second']:,.0f} tokens/s, "
                f"{self._rates['flops_per_second'] / 1e12:.2f} TFLOP/s")
            row = {"step": state.global_step, "epoch": state.epoch, "loss": logs["loss"],
                   "learning_rate": logs["learning_rate"], "grad_norm": logs.get("grad_norm"),
                   "tokens": int(state.num_input_tokens_seen), **self._rates}
            with self._metrics.open("ab", buffering=0) as log:
                artifacts.append_line(log, artifacts.to_line(row))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()


class Checkpoints(TrainerCallback):
    """Marks a checkpoint as whole once every rank has written its part and it is on disk."""

    def __init__(self, marker: str) -> None:
        self._marker = marker

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """No checkpoint of the last step, which the Trainer asks for: the model follows at once."""
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if dist.is_initialized():
            dist.barrier()
        if distributed.rank() == 0:
            os.sync()
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            artifacts.write_json(folder / self._marker, {"world_size": distributed.world_size()})
