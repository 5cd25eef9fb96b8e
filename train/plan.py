"""What is said of a fine-tuning before it starts: steps, batches, memory, disk and time."""

from adg.base import units
from adg.base.distributed import say
from adg.config import Config
from adg.models.loading import LocalModel
from adg.pipeline import planning, stage_run
from train import hours
from train.batches import Order
from train.memory import Memory, estimate

_OPTIMIZER_BYTES = 12  # a weight and AdamW's two moments in float32, in a checkpoint


def show_plan(run: stage_run.StageRun, order: Order, source: LocalModel, sharding: dict) -> None:
    """Print what the stage would do; `sharding` is DeepSpeed's configuration."""
    settings, weights = run.config.train, source.num_weights()
    width = 4 if run.config.model.dtype == "float32" else 2
    stage = sharding.get("zero_optimization", {}).get("stage", 0)
    copies = 1 if stage == 3 else 2  # of the weights: as a model, and in DeepSpeed's own file
    checkpoint = weights * (copies * width + _OPTIMIZER_BYTES)
    needed = estimate(weights, source.described, sharding, bytes_per_weight=width,
                      ranks=order.ranks, tokens=order.largest(),
                      checkpointing=settings.gradient_checkpointing)
    planning.show(run, {
        "records": f"{len(order.lengths):,}, {settings.epochs} epochs, "
                   f"{len(order.steps):,} steps, "
                   f"{settings.epochs * sum(order.lengths):,} tokens",
        "batches": f"{batches(order, run.config)}, {order.largest():,} tokens at most",
        "model": f"{weights:,} weights",
        "memory": _memory(needed, order.ranks),
    }, records=settings.epochs * len(order.lengths),
        disk=weights * width + (settings.keep_checkpoints + 1) * checkpoint,
        by_arithmetic=None if width == 4 or needed.host else hours.estimate(
            order, weights, source.described, sharding,
            checkpointing=settings.gradient_checkpointing))


def _memory(needed: Memory, ranks: int) -> str:
    parts = ", ".join(f"{name} {units.size(value)}"
                      for name, value in needed._asdict().items() if name != "host")
    host = f"; {units.size(needed.host)} of the machine's" if needed.host else ""
    return f"about {units.size(needed.total())} on each of {ranks} rank(s): {parts}{host}"


def note_on_warmup(config: Config, num_records: int) -> None:
    """Say so where half of the steps or more are warm-up."""
    steps, warmup = (count(num_records) for count in (config.train.num_steps,
                                                      config.train.num_warmup_steps))
    if 2 * warmup >= steps:
        say(f"[finetune] note: {warmup} of {steps} steps are warm-up, in which the learning rate "
            f"rises from 0: raise train.epochs, lower train.batch_size, or lower "
            f"train.warmup_ratio ({config.train.warmup_ratio:g})")


def batches(order: Order, config: Config) -> str:
    """How the ranks share a step, in words."""
    each = len(order.steps[0]) // order.ranks
    mean = config.train.batch_size / len(order.steps[0])
    return (f"{config.train.batch_size} records a step: {order.ranks} rank(s) x {each} pass(es) of "
            f"{mean:.3g} on average")
