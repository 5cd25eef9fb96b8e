"""The Hugging Face Trainer with the paper's optimiser, schedule and DeepSpeed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from adg.base import distributed
from adg.config import Config
from adg.config_sections import SCHEDULES
from adg.models.loading import LocalModel
from train.batches import Order, passes
from train.data import NOTHING, collate


class OrderedTrainer(Trainer):
    """A Trainer that takes its batches from an Order: for it the run is one epoch."""

    def __init__(self, order: Order, **options: Any) -> None:
        super().__init__(**options)
        self._order = order

    def get_train_dataloader(self) -> DataLoader:
        """This rank's batches, of all steps."""
        return DataLoader(
            [*self.train_dataset, NOTHING], batch_sampler=self._order.batches(distributed.rank()),
            collate_fn=collate, pin_memory=distributed.on_gpu())

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device
                          ) -> tuple[list, Any]:
        """The batches of a step, on their way to the device before the first of them is needed: a
        copy that is waited for in each pass would keep the host from running ahead."""
        batches, number = super().get_batch_samples(epoch_iterator, num_batches, device)
        return [{name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
                for batch in batches], number


def build_trainer(source: LocalModel, tokenizer: Any, examples: list[dict], work: Path,
                  order: Order, sharding: dict, config: Config,
                  callbacks: list[TrainerCallback]) -> Trainer:
    """The Trainer of a model; `sharding` is DeepSpeed's configuration."""
    import deepspeed

    # before the arguments, from which on every model that is made is cut by ranks (ZeRO-3)
    buffers = computed_buffers(source)
    arguments = arguments_of(work, order, sharding, config)
    deepspeed.init_distributed(verbose=False)  # before ZeRO-3 cuts the model by ranks as it loads
    dtype = torch.float32 if config.model.dtype == "float16" else getattr(torch, config.model.dtype)
    model = AutoModelForCausalLM.from_pretrained(
        source.folder, dtype=dtype, trust_remote_code=source.trust_remote_code, use_cache=False)
    restore_buffers(model, buffers)
    trainer = OrderedTrainer(order, model=model, args=arguments, train_dataset=examples,
                             data_collator=collate, processing_class=tokenizer, callbacks=callbacks)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def arguments_of(work: Path, order: Order, sharding: dict, config: Config) -> TrainingArguments:
    """The Trainer's settings: the paper's optimiser and schedule, batches as `order` shares them.
    """
    settings = config.train
    accumulated = passes(settings.batch_size, settings.per_device_batch_size, order.ranks)
    return TrainingArguments(
        output_dir=str(work), num_train_epochs=1, seed=config.train_seed(),
        per_device_train_batch_size=-(-settings.batch_size // (order.ranks * accumulated)),
        gradient_accumulation_steps=accumulated, learning_rate=settings.learning_rate,
        lr_scheduler_type=SCHEDULES[settings.lr_scheduler], weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_ratio,  # below 1 it is a share of the steps
        bf16=config.model.dtype == "bfloat16", fp16=config.model.dtype == "float16",
        gradient_checkpointing=settings.gradient_checkpointing, deepspeed=sharding,
        logging_steps=1, logging_nan_inf_filter=False,
        save_strategy="no",  # a callback asks for checkpoints
        save_total_limit=settings.keep_checkpoints, remove_unused_columns=False,
        report_to=list(settings.report_to), run_name=config.train.name,
        use_cpu=not distributed.on_gpu(), disable_tqdm=True,
    )


def computed_buffers(source: LocalModel) -> dict[str, torch.Tensor]:
    """The tensors that a model computes when it is made and does not store, such as the frequencies
    of rotary positions, by name."""
    remote = source.trust_remote_code
    config = AutoConfig.from_pretrained(source.folder, trust_remote_code=remote)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=remote)
    stored = model.state_dict().keys()
    return {name: tensor for name, tensor in model.named_buffers() if name not in stored}


def restore_buffers(model: torch.nn.Module, buffers: dict[str, torch.Tensor]) -> None:
    """Give a model its computed tensors in the type that they are computed in.

    While ZeRO-3 loads a model, every new tensor has the weights' type. Rotary frequencies are then
    off by up to 0.4% in bfloat16, in LLaMA3 by a rotation of up to 1.8 radians at position 1,000:
    the model would be trained with these, and run with exact ones by whatever loads it later.
    """
    for name, tensor in model.named_buffers():
        if name in buffers and tensor.dtype != buffers[name].dtype:
            tensor.data = buffers[name].to(tensor.device)
