"""Stage finetune: full fine-tuning of the backbone on a subset, with the Hugging Face Trainer and
DeepSpeed.

Reads   subsets/NAME/<subset>.json    Alpaca records, or those of the file in train.subset
Writes  models/NAME/                  a Hugging Face model folder
        train/NAME/checkpoint-*/      every save_minutes; a killed run goes on from the last whole
                                      one; removed once the model is whole
        train/NAME/metrics.jsonl      of each step: loss, learning rate, tokens, tokens/s, FLOP/s
        train/NAME/loss.png           the loss over the steps

    python -m train.finetune configs/demo.yaml
    torchrun --nproc_per_node=2 -m train.finetune configs/demo.yaml
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from adg.base import artifacts, distributed, screen
from adg.base.distributed import say
from adg.base.errors import InputError
from adg.config import Config
from adg.models import folders
from adg.pipeline import planning, provenance
from adg.pipeline.checks import check_reporting, read_sharding
from adg.pipeline.command import parse_command
from adg.pipeline.stages import model_of
from adg.prompts import Prompter
from adg.records import normalise, problem_of, read_source
from train import hours
from train.batches import Order, plan_order
from train.curve import plot_loss
from train.data import encode
from train.memory import estimate
from train.operators import clear_abandoned_locks

_OPTIMIZER_BYTES = 12  # a weight and AdamW's two moments in float32, in a checkpoint
_WHOLE = "complete.json"  # written into a checkpoint when all of its files are on disk


def main() -> None:
    command = parse_command(__doc__)
    config = command.config
    sharding = read_sharding(config)
    check_reporting(config)
    run = provenance.begin("finetune", config, overwrite=command.overwrite,
                           dry_run=command.dry_run)
    if run is None:
        return
    model, work = (run.folder / name / config.train.name for name in ("models", "train"))
    killed_at_the_end = run.was_started() and model.is_dir()  # between the last steps
    if killed_at_the_end and not command.dry_run:
        if distributed.rank() == 0:
            remove_checkpoints(work)
            run.finish(records=0)
        return
    checkpoint = None if command.overwrite else last_whole_checkpoint(work)
    prepare_environment()
    folder = folders.local_folder(model_of("train.model", config), config.output_dir)
    tokenizer = folders.load_tokenizer(folder, trust_remote_code=config.model.trust_remote_code)
    records = read_subset(subset_path(config))
    examples, counts = encode_all(records, tokenizer, config)
    order = order_of(examples, config)
    if command.dry_run:
        plan(run, order, folder, sharding)
        return
    run.start()
    if distributed.local_rank() == 0:
        clear_abandoned_locks()
    distributed.barrier("operators")
    with screen.stdout_of_engines():
        trainer = trainer_of(folder, tokenizer, examples, work, order, sharding, config)
    say(f"[finetune] {len(examples)} records, {config.train.epochs} epochs; "
        f"{batches(order, config)}" + (f"; going on from {checkpoint}" if checkpoint else ""))
    result = train(trainer, checkpoint, work)
    if distributed.rank() == 0:
        plot_loss(work / "metrics.jsonl", work / "loss.png")
    save_model(trainer, model)
    if distributed.rank() == 0:
        remove_checkpoints(work)
        run.finish(records=len(examples) * config.train.epochs, **counts,
                   steps=result.global_step, train_loss=result.training_loss,
                   gradients_summed_in=sharding.get("data_types", {}).get("grad_accum_dtype"))
    end_process_group()


def trainer_of(folder: Path, tokenizer: Any, examples: list[dict], work: Path, order: Order,
               sharding: dict, config: Config) -> Any:
    """The Trainer, and what it tells and keeps in a run."""
    from train.callbacks import Checkpoints, Progress, Speed
    from train.trainer import build_trainer

    settings, remote = config.train, config.model.trust_remote_code
    speed = Speed(hours.flops_per_token(
        folders.num_weights(folder, trust_remote_code=remote),
        folders.describe(folder, trust_remote_code=remote),
        sum(order.lengths) / len(order.lengths)))
    callbacks = [Progress(work / "metrics.jsonl", order, settings.epochs, speed),
                 Checkpoints(_WHOLE, steps=settings.save_steps, minutes=settings.save_minutes)]
    return build_trainer(folder, tokenizer, examples, work, order, sharding, config, callbacks)


def train(trainer: Any, checkpoint: Path | None, work: Path) -> Any:
    """The Trainer's result; InputError that says what to change where memory runs out.

    Where `work` cannot be written, a checkpoint that is not whole is removed.
    """
    from accelerate.utils.memory import should_reduce_batch_size

    try:
        with folders.saving(work):
            return trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (OSError, InputError):
        for folder in work.glob("checkpoint-*"):
            if not (folder / _WHOLE).exists():
                shutil.rmtree(folder, ignore_errors=True)
        raise
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
            raise
        raise InputError(
            f"fine-tuning ran out of memory ({str(error).splitlines()[0]}): lower "
            f"train.per_device_batch_size (train.batch_size stays), set "
            f"train.gradient_checkpointing=true, give train.deepspeed=configs/deepspeed/zero3.json "
            f"or zero3_offload.json, take more ranks, or lower train.max_length; --dry-run shows "
            f"what takes how much") from None


def order_of(examples: list[dict], config: Config) -> Order:
    """The records of every step, and who reads them when."""
    settings = config.train
    return plan_order([len(example["input_ids"]) for example in examples],
                      batch_size=settings.batch_size, per_device=settings.per_device_batch_size,
                      epochs=settings.epochs, seed=config.train_seed(),
                      ranks=distributed.world_size())


def plan(run: provenance.StageRun, order: Order, folder: Path, sharding: dict) -> None:
    """Say what there is to do."""
    settings, remote = run.config.train, run.config.model.trust_remote_code
    weights = folders.num_weights(folder, trust_remote_code=remote)
    described = folders.describe(folder, trust_remote_code=remote)
    width = 4 if run.config.model.dtype == "float32" else 2
    stage = sharding.get("zero_optimization", {}).get("stage", 0)
    copies = 1 if stage == 3 else 2  # of the weights: as a model, and in DeepSpeed's own file
    checkpoint = weights * (copies * width + _OPTIMIZER_BYTES)
    needed = estimate(weights, described, sharding, bytes_per_weight=width, ranks=order.ranks,
                      tokens=order.largest(), checkpointing=settings.gradient_checkpointing)
    parts = ", ".join(f"{name} {planning.size(value)}"
                      for name, value in needed._asdict().items() if name != "host")
    planning.show(run, {
        "records": f"{len(order.lengths):,}, {settings.epochs} epochs, "
                   f"{len(order.steps):,} steps, "
                   f"{settings.epochs * sum(order.lengths):,} tokens",
        "batches": f"{batches(order, run.config)}, {order.largest():,} tokens at most",
        "model": f"{weights:,} weights",
        "memory": f"about {planning.size(needed.total())} on each of {order.ranks} "
                  f"rank(s): {parts}" + (f"; {planning.size(needed.host)} of the machine's"
                                         if needed.host else ""),
    }, records=settings.epochs * len(order.lengths),
        disk=weights * width + (settings.keep_checkpoints + 1) * checkpoint,
        by_arithmetic=None if width == 4 or needed.host else hours.estimate(
            order, weights, described, sharding, checkpointing=settings.gradient_checkpointing))


def batches(order: Order, config: Config) -> str:
    """How the ranks share a step, in words."""
    each = len(order.steps[0]) // order.ranks
    mean = config.train.batch_size / len(order.steps[0])
    return (f"{config.train.batch_size} records a step: {order.ranks} rank(s) x {each} pass(es) of "
            f"{mean:.3g} on average")


def subset_path(config: Config) -> Path:
    """The file of the records to train on."""
    subsets = Path(config.output_dir) / "subsets" / config.selection.name
    return config.train.subset_file() or subsets / f"{config.train.subset}.json"


def read_subset(path: Path) -> list[dict]:
    """The records of a subset; InputError where one is no Alpaca record."""
    records = []
    for record, where in read_source(path):
        problem = problem_of(record)
        if problem is not None:
            _, (kind, number) = where.items()
            raise InputError(f"{path}: {kind} {number}: {problem}")
        records.append(normalise(record, len(records)))
    return records


def last_whole_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None.

    DeepSpeed cuts the optimiser's state by rank; InputError where the rank count is another now.
    """
    whole = sorted(work.glob(f"checkpoint-*/{_WHOLE}"),
                   key=lambda path: int(path.parent.name.removeprefix("checkpoint-")))
    if not whole:
        return None
    ranks = json.loads(whole[-1].read_text())["world_size"]
    if ranks != distributed.world_size():
        raise InputError(f"{whole[-1].parent} was written by {ranks} rank(s), and this run has "
                         f"{distributed.world_size()}: start it with {ranks}, or add --overwrite "
                         f"to train anew")
    return whole[-1].parent


def prepare_environment() -> None:
    """What DeepSpeed expects of the environment: a device, and the variables that torchrun sets."""
    if not distributed.on_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": "0"}
    if "RANK" not in os.environ:
        os.environ |= alone


def encode_all(records: list[dict], tokenizer: Any, config: Config) -> tuple[list[dict], dict]:
    """(examples, counts of what was cut): the records of the subset as ids and labels."""
    limit = config.train.max_length
    prompter = Prompter(config.train.prompt, tokenizer, config.generation)
    encoded = [encode(record, prompter, tokenizer, limit) for record in records]
    examples = [example for example, _ in encoded if example is not None]
    cut = sum(was_cut for example, was_cut in encoded if example is not None)
    left_out = len(records) - len(examples)
    if cut or left_out:
        say(f"[finetune] train.max_length: {cut} responses lose their end at {limit} tokens, "
            f"{left_out} records have no room for a response and are left out")
    if not records:
        raise InputError(f"{subset_path(config)} has no records: not every method makes middle and "
                         f"bottom")
    if not examples:
        raise InputError(f"{subset_path(config)}: no record has a response within train.max_length "
                         f"({limit} tokens)")
    return examples, {"cut_responses": cut, "left_out": left_out}


def save_model(trainer: Any, folder: Path) -> None:
    """The trained model in `folder`, which comes into being only when all of it is written."""
    aside = folder.with_name(f".{folder.name}.partial")
    if distributed.rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.model.config.use_cache = True
    with folders.saving(folder, aside):
        trainer.save_model(str(aside))
        trainer.accelerator.wait_for_everyone()
        if distributed.rank() == 0:
            (aside / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody needs
            artifacts.flush_tree(aside)
            shutil.rmtree(folder, ignore_errors=True)  # one that was not whole
            aside.rename(folder)
            artifacts.flush(folder.parent)


def remove_checkpoints(work: Path) -> None:
    """Remove what a killed run would have gone on from: a checkpoint is several times the model."""
    for folder in work.glob("checkpoint-*"):
        shutil.rmtree(folder)


def end_process_group() -> None:
    """Leave the process group that DeepSpeed made, so that no rank is cut off from another."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    distributed.run_script(main)
