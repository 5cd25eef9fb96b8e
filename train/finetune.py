"""Stage finetune: full fine-tuning of the backbone on a subset, with the Hugging Face Trainer and
DeepSpeed.

Reads   subsets/NAME/<subset>.json    Alpaca records, or those of the file in train.subset
Writes  models/NAME/                  a Hugging Face model folder
        train/NAME/checkpoint-*/      every save_steps steps; a killed run goes on from the last
                                      whole one
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

from adg import artifacts, distributed, models, planning, provenance
from adg.checks import accumulation_steps, check_deepspeed_file
from adg.command import parse_command
from adg.config import Config
from adg.distributed import say
from adg.errors import InputError
from adg.prompts import Prompter
from adg.records import normalise, problem_of, read_source
from adg.stages import model_of
from train.curve import plot_loss
from train.data import collate, encode
from train.memory import estimate

_OPTIMIZER_BYTES = 12  # a weight and AdamW's two moments in float32, in a checkpoint
_WHOLE = "complete.json"  # written into a checkpoint when all of its files are on disk


def main() -> None:
    command = parse_command(__doc__)
    config = command.config
    accumulation = accumulation_steps(config, distributed.world_size())
    check_deepspeed_file(config)
    run = provenance.begin("finetune", config, overwrite=command.overwrite)
    if run is None:
        return
    model, work = (run.folder / name / config.train.name for name in ("models", "train"))
    killed_at_the_end = run.was_started() and model.is_dir()  # between the last two steps
    if killed_at_the_end and not command.dry_run:
        if distributed.rank() == 0:
            run.finish(records=0)
        return
    checkpoint = None if command.overwrite else last_whole_checkpoint(work)
    prepare_environment()
    folder = models.local_folder(model_of("train.model", config), config.output_dir)
    tokenizer = models.load_tokenizer(folder, trust_remote_code=config.model.trust_remote_code)
    records = read_subset(subset_path(config))
    examples, counts = encode_all(records, tokenizer, config)
    if command.dry_run:
        plan(run, examples, folder)
        return
    run.start()
    trainer = build_trainer(folder, tokenizer, examples, work, accumulation, config)
    say(f"[finetune] {len(examples)} records, {config.train.epochs} epochs"
        + (f", going on from {checkpoint}" if checkpoint else ""))
    result = train(trainer, checkpoint, work)
    if distributed.rank() == 0:
        plot_loss(work / "metrics.jsonl", work / "loss.png")
    save_model(trainer, model)
    if distributed.rank() == 0:
        run.finish(records=len(examples) * config.train.epochs, **counts,
                   steps=result.global_step, train_loss=result.training_loss)
    end_process_group()


def train(trainer: Any, checkpoint: Path | None, work: Path) -> Any:
    """The Trainer's result; InputError that says what to change where memory runs out.

    Where `work` cannot be written, a checkpoint that is not whole is removed.
    """
    from accelerate.utils.memory import should_reduce_batch_size

    try:
        with models.saving(work):
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


def plan(run: provenance.StageRun, examples: list[dict], folder: Path) -> None:
    """Say what there is to do."""
    settings = run.config.train
    steps = settings.epochs * -(-len(examples) // settings.batch_size)
    tokens = settings.epochs * sum(len(example["input_ids"]) for example in examples)
    weights = models.num_weights(folder, trust_remote_code=run.config.model.trust_remote_code)
    per_weight = 4 if run.config.model.dtype == "float32" else 2
    checkpoint = weights * (per_weight + _OPTIMIZER_BYTES)
    longest = max(len(example["input_ids"]) for example in examples)
    needed = estimate(
        weights, models.describe(folder, trust_remote_code=run.config.model.trust_remote_code),
        json.loads(Path(settings.deepspeed).read_text())["zero_optimization"],
        bytes_per_weight=per_weight, ranks=distributed.world_size(),
        tokens=settings.per_device_batch_size * longest,
        checkpointing=settings.gradient_checkpointing)
    parts = ", ".join(f"{name} {planning.size(value)}"
                      for name, value in needed._asdict().items() if name != "host")
    planning.show(run, {
        "records": f"{len(examples):,}, {settings.epochs} epochs, {steps:,} steps, "
                   f"{tokens:,} tokens",
        "model": f"{weights:,} weights",
        "memory": f"about {planning.size(needed.total())} on each of {distributed.world_size()} "
                  f"rank(s): {parts}" + (f"; {planning.size(needed.host)} of the machine's"
                                         if needed.host else ""),
    }, records=settings.epochs * len(examples),
        disk=weights * per_weight + (settings.keep_checkpoints + 1) * checkpoint)


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


def build_trainer(folder: Path, tokenizer: Any, examples: list[dict], work: Path, accumulation: int,
                  config: Config) -> Any:
    """The Hugging Face Trainer with the paper's optimiser, schedule and DeepSpeed."""
    import deepspeed
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from train.callbacks import Checkpoints, Progress, Speed

    settings, remote = config.train, config.model.trust_remote_code
    # before the arguments, from which on every model that is made is cut by ranks (ZeRO-3)
    speed = Speed(models.num_weights(folder, trust_remote_code=remote),
                  models.describe(folder, trust_remote_code=remote),
                  sum(len(example["input_ids"]) for example in examples) / len(examples))
    arguments = TrainingArguments(
        output_dir=str(work), num_train_epochs=settings.epochs, seed=config.seed,
        per_device_train_batch_size=settings.per_device_batch_size,
        gradient_accumulation_steps=accumulation, learning_rate=settings.learning_rate,
        lr_scheduler_type=_SCHEDULES[settings.lr_scheduler], weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_ratio,  # below 1 it is a share of the steps
        bf16=config.model.dtype == "bfloat16", fp16=config.model.dtype == "float16",
        gradient_checkpointing=settings.gradient_checkpointing, deepspeed=settings.deepspeed,
        logging_steps=1, logging_nan_inf_filter=False,
        save_strategy="steps", save_steps=settings.save_steps,
        save_total_limit=settings.keep_checkpoints, report_to="none", remove_unused_columns=False,
        use_cpu=not distributed.on_gpu(), disable_tqdm=True,
        include_num_input_tokens_seen="non_padding",
    )
    deepspeed.init_distributed(verbose=False)  # before ZeRO-3 cuts the model by ranks as it loads
    dtype = torch.float32 if config.model.dtype == "float16" else getattr(torch, config.model.dtype)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, trust_remote_code=remote, use_cache=False)
    trainer = Trainer(model=model, args=arguments, train_dataset=examples, data_collator=collate,
                      processing_class=tokenizer,
                      callbacks=[Progress(work / "metrics.jsonl", settings.batch_size,
                                          len(examples) * settings.epochs, speed),
                                 Checkpoints(_WHOLE)])
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def save_model(trainer: Any, folder: Path) -> None:
    """The trained model in `folder`, which comes into being only when all of it is written."""
    aside = folder.with_name(f".{folder.name}.partial")
    if distributed.rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.model.config.use_cache = True
    with models.saving(folder, aside):
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
    distributed.run_script(main)
