"""Stage finetune: fine-tune all weights on a subset, with the Hugging Face Trainer and DeepSpeed.

Reads   subsets/NAME/<subset>.json    Alpaca records, or those of the file in train.subset
Writes  models/NAME/                  a Hugging Face model folder
        train/NAME/checkpoint-*/      every save_minutes; a killed run continues from the last
                                      whole one; removed once the model is whole
        train/NAME/metrics.jsonl      of each step: loss, learning rate, tokens, tokens/s, FLOP/s
        train/NAME/loss.png           the loss over the steps

    python -m train.finetune configs/demo.yaml
    torchrun --nproc_per_node=2 -m train.finetune configs/demo.yaml
"""

import os
import shutil
from pathlib import Path
from typing import Any

from adg.base import artifacts, distributed, process, screen
from adg.base.distributed import say
from adg.base.errors import InputError
from adg.config import Config
from adg.models import folders
from adg.models.loading import LocalModel
from adg.models.saving import saving
from adg.pipeline import stage_run
from adg.pipeline.checks import check_reporting, check_warmup, read_sharding
from adg.pipeline.command import parse_command
from adg.pipeline.sources import model_of
from train import hours
from train.batches import Order, plan_order
from train.checkpoints import (
    WHOLE,
    last_whole_checkpoint,
    remove_checkpoints,
    remove_partial_checkpoints,
)
from train.curve import plot_loss
from train.data import encode_all, read_subset, subset_path
from train.operators import clear_abandoned_locks
from train.plan import batches, note_on_warmup, show_plan


def main() -> None:
    command = parse_command(__doc__)
    config = command.config
    sharding = read_sharding(config)
    check_reporting(config)
    run = stage_run.begin("finetune", config, overwrite=command.overwrite,
                           dry_run=command.dry_run)
    if run is None:
        return
    model, work = (run.folder / name / config.train.name for name in ("models", "train"))
    if run.was_started() and model.is_dir() and not command.dry_run:
        finish_killed(run, work)
        return
    checkpoint = None if command.overwrite else last_whole_checkpoint(work)
    prepare_environment()
    source = LocalModel(folders.local_folder(model_of("train.model", config), config.output_dir),
                        config.model.trust_remote_code)
    tokenizer = source.tokenizer()
    examples, counts = encode_all(read_subset(subset_path(config)), tokenizer, config)
    check_warmup(config, len(examples))
    note_on_warmup(config, len(examples))
    order = order_of(examples, config)
    if command.dry_run:
        show_plan(run, order, source, sharding)
        return
    run.start()
    trainer = trainer_of(source, tokenizer, examples, work, order, sharding, config)
    say(f"[finetune] {len(examples)} records, {config.train.epochs} epochs; "
        f"{batches(order, config)}" + (f"; continues from {checkpoint}" if checkpoint else ""))
    result = train(trainer, checkpoint, work)
    save(trainer, model, work)
    if distributed.rank() == 0:
        run.finish(records=len(examples) * config.train.epochs, **counts,
                   steps=result.global_step, train_loss=result.training_loss,
                   gradients_summed_in=sharding.get("data_types", {}).get("grad_accum_dtype"))
    end_process_group()


def finish_killed(run: stage_run.StageRun, work: Path) -> None:
    """Finish a run that was killed when its model was whole, before it was recorded."""
    if distributed.rank() == 0:
        remove_checkpoints(work)
        run.finish(records=0)


def order_of(examples: list[dict], config: Config) -> Order:
    """The records of every step, and who reads them when."""
    settings = config.train
    return plan_order([len(example["input_ids"]) for example in examples],
                      batch_size=settings.batch_size, per_device=settings.per_device_batch_size,
                      epochs=settings.epochs, seed=config.train_seed(),
                      ranks=distributed.world_size())


def trainer_of(source: LocalModel, tokenizer: Any, examples: list[dict], work: Path, order: Order,
               sharding: dict, config: Config) -> Any:
    """The Trainer, with its progress, metrics and checkpoints."""
    from train.callbacks import Checkpoints, Progress, Speed
    from train.trainer import build_trainer

    if distributed.local_rank() == 0:
        clear_abandoned_locks()
    distributed.barrier("operators")
    with screen.stdout_of_engines():
        speed = Speed(hours.flops_per_token(source.num_weights(), source.described,
                                            sum(order.lengths) / len(order.lengths)))
        callbacks = [Progress(work / "metrics.jsonl", order, config.train.epochs, speed),
                     Checkpoints(WHOLE, steps=config.train.save_steps,
                                 minutes=config.train.save_minutes)]
        return build_trainer(source, tokenizer, examples, work, order, sharding, config, callbacks)


def train(trainer: Any, checkpoint: Path | None, work: Path) -> Any:
    """The Trainer's result; InputError that says what to change where memory runs out.

    Where `work` cannot be written, a checkpoint that is not whole is removed.
    """
    from accelerate.utils.memory import should_reduce_batch_size

    try:
        with saving(work):
            return trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (OSError, InputError):
        remove_partial_checkpoints(work)
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


def save(trainer: Any, model: Path, work: Path) -> None:
    """The picture of the loss, then the model; the checkpoints go once it is whole."""
    if distributed.rank() == 0:
        plot_loss(work / "metrics.jsonl", work / "loss.png")
    save_model(trainer, model)
    if distributed.rank() == 0:
        remove_checkpoints(work)


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


def save_model(trainer: Any, folder: Path) -> None:
    """The trained model in `folder`, which comes into being only when all of it is written."""
    aside = folder.with_name(f".{folder.name}.partial")
    if distributed.rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.model.config.use_cache = True
    with saving(folder, aside):
        trainer.save_model(str(aside))
        trainer.accelerator.wait_for_everyone()
        if distributed.rank() == 0:
            (aside / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody needs
            artifacts.flush_tree(aside)
            shutil.rmtree(folder, ignore_errors=True)  # one that was not whole
            aside.rename(folder)
            artifacts.flush(folder.parent)


def end_process_group() -> None:
    """Leave the process group that DeepSpeed made, so that no rank is cut off from another."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    process.run_script(main)
