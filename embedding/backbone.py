"""The backbone without its head, on this rank's device or spread over several GPUs, ready to embed.
"""

import os
from pathlib import Path
from typing import Any

from adg import distributed, models
from adg.batching import TOKENS_PER_BATCH
from adg.config import Config
from adg.errors import InputError
from adg.layers import windows_of
from embedding.forward import Embedder
from embedding.sequences import Encoder

_GIB = 2**30
_ROOM = 0.95  # share of a device's free memory that weights may take


def check(folder: Path, config: Config) -> None:
    """InputError where the model has no such layers or its weights cannot fit this rank's memory.

    Reads the model's configuration only.
    """
    import torch
    from transformers import AutoModel

    described = describe(folder, config)
    windows_of(config.embedding, described.num_hidden_layers)
    with torch.device("meta"):
        model = AutoModel.from_config(described, dtype=getattr(torch, config.model.dtype),
                                      trust_remote_code=config.model.trust_remote_code)
    needed = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    room = sum(_memory(config).values())
    if needed > _ROOM * room:
        gpus = config.embedding.gpus_per_model
        where = (f"{gpus} GPU(s)" if torch.cuda.is_available() else "share of the memory")
        raise InputError(
            f"model.name_or_path: the weights take {needed / _GIB:.1f} GiB, and a rank's {where} "
            f"has {room / _GIB:.1f} GiB free: raise embedding.gpus_per_model (now {gpus}), or "
            f"start fewer ranks on a node")


def load(folder: Path, config: Config) -> Any:
    """The model in evaluation mode; over several GPUs with embedding.gpus_per_model."""
    import torch
    from transformers import AutoModel

    options = {"dtype": getattr(torch, config.model.dtype),
               "trust_remote_code": config.model.trust_remote_code}
    if config.embedding.gpus_per_model == 1:
        return AutoModel.from_pretrained(folder, **options).to(distributed.device()).eval()
    room = {gpu: int(_ROOM * free) for gpu, free in _memory(config).items()}
    return AutoModel.from_pretrained(folder, device_map="balanced", max_memory=room,
                                     **options).eval()


def load_encoder(folder: Path, config: Config) -> Encoder:
    """What makes rows of texts."""
    tokenizer = models.load_tokenizer(folder, trust_remote_code=config.model.trust_remote_code)
    described = describe(folder, config)
    return Encoder(tokenizer, config, longest=max_positions(described),
                   num_ids=described.vocab_size)


def load_embedder(folder: Path, config: Config) -> Embedder:
    """What makes vectors of rows."""
    model = load(folder, config)
    return Embedder(
        model, windows_of(config.embedding, model.config.get_text_config().num_hidden_layers),
        share_prompts=config.embedding.share_prompts,
        tokens_per_batch=config.embedding.tokens_per_batch or TOKENS_PER_BATCH[model.device.type])


def describe(folder: Path, config: Config) -> Any:
    """transformers' configuration of the model."""
    return models.describe(folder, trust_remote_code=config.model.trust_remote_code)


def max_positions(described: Any) -> int:
    """Tokens that a model was made for; without a stated limit, more than any text has."""
    limit = getattr(described, "max_position_embeddings", None)
    return limit if limit and limit > 0 else 2**31


def _memory(config: Config) -> dict[int | str, int]:
    """Free bytes of each of this rank's GPUs, or of its share of the machine's memory."""
    import psutil
    import torch

    gpus = config.embedding.gpus_per_model
    if torch.cuda.is_available():
        own = distributed.own_gpus(gpus, torch.cuda.device_count(), "embedding.gpus_per_model")
        return {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in own}
    if gpus > 1:
        raise InputError(f"embedding.gpus_per_model is {gpus}, but this machine has no GPU")
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return {"cpu": psutil.virtual_memory().available // ranks}
