"""A model in a folder: its description, its tokenizer, and its weights on this rank's device or
spread over several of its GPUs."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adg.base import distributed
from adg.base.errors import InputError
from adg.models import folders

_GIB = 2**30
_ROOM = 0.95  # share of a device's free memory that weights may take


@dataclass(frozen=True)
class LocalModel:
    """A Hugging Face folder, and whether Python code that comes with it may run.

    `kind` is one of transformers' Auto classes, `gpus` how many GPUs this rank spreads the weights
    over (embedding.gpus_per_model).
    """

    folder: Path
    trust_remote_code: bool = False

    @cached_property
    def described(self) -> Any:
        """transformers' configuration of the model, of its text part."""
        return self._config().get_text_config()

    @property
    def max_positions(self) -> int:
        """Tokens that the model was made for; without a stated limit, more than any text has."""
        return max_positions(self.described)

    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return folders.load_tokenizer(self.folder, trust_remote_code=self.trust_remote_code)

    def num_weights(self) -> int:
        """Weights of the model with its head; nothing is loaded."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                self._config(), trust_remote_code=self.trust_remote_code)
        return sum(weight.numel() for weight in model.parameters())

    def check_room(self, kind: Any, dtype: str, *, gpus: int = 1) -> None:
        """InputError where the weights cannot fit this rank's memory; nothing is loaded."""
        import torch

        with torch.device("meta"):
            model = kind.from_config(self._config().get_text_config(), dtype=getattr(torch, dtype),
                                     trust_remote_code=self.trust_remote_code)
        needed = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        room = sum(_memory(gpus).values())
        if needed > _ROOM * room:
            where = f"{gpus} GPU(s)" if distributed.on_gpu() else "share of the memory"
            raise InputError(
                f"model.name_or_path: the weights take {needed / _GIB:.1f} GiB, and a rank's "
                f"{where} has {room / _GIB:.1f} GiB free: raise embedding.gpus_per_model (now "
                f"{gpus}), or start fewer ranks on a node")

    def load(self, kind: Any, dtype: str, *, gpus: int = 1) -> Any:
        """The model in evaluation mode, whole on this rank's device or over several GPUs.

        On a GPU each weight goes there as it is read: no rank holds the model in host memory.
        """
        if gpus > 1:
            room = {gpu: int(_ROOM * free) for gpu, free in _memory(gpus).items()}
            return self._read(kind, dtype, device_map="balanced", max_memory=room)
        device = distributed.device()  # before the weights are read, since it may refuse
        where = {} if device == "cpu" else {"device_map": {"": device}}
        return self._read(kind, dtype, **where).to(device)

    def _read(self, kind: Any, dtype: str, **where: Any) -> Any:
        import torch

        return kind.from_pretrained(self.folder, dtype=getattr(torch, dtype),
                                    trust_remote_code=self.trust_remote_code, **where).eval()

    def _config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)


def max_positions(described: Any) -> int:
    """Tokens that a model was made for; without a stated limit, more than any text has."""
    limit = getattr(described, "max_position_embeddings", None)
    return limit if limit and limit > 0 else 2**31


def _memory(gpus: int) -> dict[int | str, int]:
    """Free bytes of each of this rank's GPUs, or of its share of the machine's memory."""
    import psutil
    import torch

    if distributed.on_gpu():
        mine = distributed.own_gpus(gpus, torch.cuda.device_count(), "embedding.gpus_per_model")
        return {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in mine}
    if gpus > 1:
        raise InputError(f"embedding.gpus_per_model is {gpus}, but this machine has no GPU")
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return {"cpu": psutil.virtual_memory().available // ranks}
