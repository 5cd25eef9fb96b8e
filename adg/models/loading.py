"""A model's weights on this rank's device, or spread over several of its GPUs."""

import os
from pathlib import Path
from typing import Any

from adg.base import distributed
from adg.base.errors import InputError
from adg.config import Config

_GIB = 2**30
_ROOM = 0.95  # share of a device's free memory that weights may take


def check_room(kind: Any, folder: Path, dtype: str, config: Config) -> None:
    """InputError where a model cannot fit this rank's memory. Reads the model's configuration only.

    `kind` is one of transformers' Auto classes.
    """
    import torch
    from transformers import AutoConfig

    trust = config.model.trust_remote_code
    described = AutoConfig.from_pretrained(folder, trust_remote_code=trust).get_text_config()
    with torch.device("meta"):
        model = kind.from_config(described, dtype=getattr(torch, dtype), trust_remote_code=trust)
    needed = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    room = sum(_memory(config).values())
    if needed > _ROOM * room:
        gpus = config.embedding.gpus_per_model
        where = f"{gpus} GPU(s)" if distributed.on_gpu() else "share of the memory"
        raise InputError(
            f"model.name_or_path: the weights take {needed / _GIB:.1f} GiB, and a rank's {where} "
            f"has {room / _GIB:.1f} GiB free: raise embedding.gpus_per_model (now {gpus}), or "
            f"start fewer ranks on a node")


def load(kind: Any, folder: Path, dtype: str, config: Config) -> Any:
    """The model in evaluation mode; over several GPUs with embedding.gpus_per_model."""
    if config.embedding.gpus_per_model == 1:
        return load_on_device(kind, folder, dtype, config)
    room = {gpu: int(_ROOM * free) for gpu, free in _memory(config).items()}
    return _read(kind, folder, dtype, config, device_map="balanced", max_memory=room)


def load_on_device(kind: Any, folder: Path, dtype: str, config: Config) -> Any:
    """The model in evaluation mode, whole on this rank's device.

    On a GPU each weight goes there as it is read: no rank holds the model in the host's memory.
    """
    device = distributed.device()  # before the weights are read, since it may refuse
    where = {} if device == "cpu" else {"device_map": {"": device}}
    return _read(kind, folder, dtype, config, **where).to(device)


def _read(kind: Any, folder: Path, dtype: str, config: Config, **where: Any) -> Any:
    import torch

    return kind.from_pretrained(
        folder, dtype=getattr(torch, dtype), trust_remote_code=config.model.trust_remote_code,
        **where).eval()


def max_positions(described: Any) -> int:
    """Tokens that a model was made for; without a stated limit, more than any text has."""
    limit = getattr(described, "max_position_embeddings", None)
    return limit if limit and limit > 0 else 2**31


def _memory(config: Config) -> dict[int | str, int]:
    """Free bytes of each of this rank's GPUs, or of its share of the machine's memory."""
    import psutil
    import torch

    gpus = config.embedding.gpus_per_model
    if distributed.on_gpu():
        own = distributed.own_gpus(gpus, torch.cuda.device_count(), "embedding.gpus_per_model")
        return {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in own}
    if gpus > 1:
        raise InputError(f"embedding.gpus_per_model is {gpus}, but this machine has no GPU")
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return {"cpu": psutil.virtual_memory().available // ranks}
