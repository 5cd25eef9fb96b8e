"""Method scar: the records of the highest score of a style ranker (SCAR, Li et al. 2024).

The ranker and its scoring are the package scar-tool's (import name style_ranker); what stands here
loads it with checks and works around a defect of its last batch. The encoder reads the instruction,
with the input on a line of its own, and the output, each on its own and at most
selection.scar.max_length tokens of it; higher scores are better. English only.
"""

import contextlib
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adg.base import distributed
from adg.base.errors import InputError
from adg.base.keys import key
from adg.control_tokens import ControlTokens
from adg.methods.method import Choice, Measure, Method, Task, measured, without_divergence
from adg.models import folders
from adg.models.batches import within_memory
from adg.records import instruction_text
from adg.selection import select_paper

if TYPE_CHECKING:
    from adg.models.loader import Loader

_INSTALL = "pip install --no-deps scar-tool==0.35"


@dataclass
class ScarConfig:
    model_name_or_path: str = key("lizhuang144/scar-roberta-base", "ranker with its tokenizer: a "
                                                                    "folder or hub name, or "
                                                                    "DIR/pytorch_model.bin",
                                  path=True)
    encoder_name_or_path: str | None = key(None, "folder or hub name of its encoder, whose weights "
                                                  "the ranker replaces; null: the one that its "
                                                  "config.json names", path=True)
    max_length: int = key(512, "maximum tokens of instruction and input, and of the output; longer "
                                "ones are truncated at the end", least=2)
    batch_size: int = key(32, "records per forward pass, at least 2: the package fails on a batch "
                              "of one record", tuning=True, least=2)


def choose_by_style(task: Task) -> Choice:
    """Top in descending order of the score, equal ones in that of the pool; no bins."""
    scores, = task.measures().numbers("score")
    subsets = select_paper(scores, np.zeros(len(scores), dtype=int), task.budget)
    return without_divergence(task.pool, subsets, {}, score=scores)


class StyleScores:
    """The ranker on this rank's device."""

    def __init__(self, loader: "Loader", settings: ScarConfig) -> None:
        folder = loader.source("measure.ranker", "selection.scar.model_name_or_path")
        self._device, self._settings = distributed.device(), settings
        self._batch_size = settings.batch_size
        self._model = load_ranker(
            folder, settings.encoder_name_or_path,
            trust_remote_code=loader.trust_remote_code).to(self._device).eval()
        self._tokenizer = folders.load_tokenizer(folder, trust_remote_code=False)
        self._control_tokens = ControlTokens(self._tokenizer, loader.control_tokens)
        check_length(self._model.encoder.config, self._tokenizer, settings.max_length)

    def measure(self, records: list[dict]) -> list[dict]:
        """A row {"score"} for each record; out of memory halves the batches."""
        pairs = [(instruction_text(record), record["output"]) for record in records]
        while (scores := within_memory(lambda: self._scores(pairs))) is None:
            if self._batch_size == 2:
                raise InputError("selection.scar.batch_size: two records do not fit this device's "
                                 "memory: lower selection.scar.max_length")
            self._batch_size = max(2, self._batch_size // 2)
            distributed.warn(f"[measure] out of memory: selection.scar.batch_size is "
                             f"{self._batch_size} from here on")
        for record, score in zip(records, scores, strict=True):
            if not math.isfinite(score):
                raise InputError(f"selection.scar: the ranker's score of record {record['id']} is "
                                 f"{score}")
        return [{"score": score} for score in scores]

    def _scores(self, pairs: list[tuple[str, str]]) -> list[float]:
        from style_ranker.rank import score_pairs

        alone = len(pairs) % self._batch_size == 1
        whole = [*pairs, pairs[-1]] if alone else pairs  # the package fails on a batch of one pair
        self._tokenizer.split_special_tokens = any(
            self._control_tokens.are_in(*pair) for pair in pairs)
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar for each chunk
            return score_pairs(
                self._model, self._tokenizer, *map(list, zip(*whole, strict=True)),
                max_length=self._settings.max_length, batch_size=self._batch_size,
                device=self._device)[: len(pairs)]


def load_ranker(folder: Path, encoder: str | None, *, trust_remote_code: bool) -> Any:
    """The package's StyleRanker with the weights of a folder, in float32, on the CPU.

    Raises InputError where the package is not installed, where weights or the encoder's code would
    run unasked, and where the weights are not those of this encoder: the package only prints that.
    """
    try:
        from style_ranker.ranker.config import StyleRankerConfig
        from style_ranker.ranker.model import StyleRanker
    except ImportError:
        raise InputError(f"selection.method is scar, which needs the package scar-tool: {_INSTALL}"
                         ) from None
    described = StyleRankerConfig.from_pretrained(str(folder))
    encoder = encoder_folder(encoder or described.encoder_name, trust_remote_code=trust_remote_code)
    with contextlib.redirect_stdout(io.StringIO()):
        model = StyleRanker(StyleRankerConfig.from_pretrained(str(folder),
                                                              encoder_name=str(encoder)))
    weights = read_weights(folder)
    try:
        missing, unknown = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # a weight of another shape
        raise InputError(f"{_misfit(folder, encoder)}: {str(error).splitlines()[-1].strip()}"
                         ) from None
    unknown = [name for name in unknown if not name.endswith("position_ids")]  # not kept any more
    if missing or unknown:
        raise InputError(f"{_misfit(folder, encoder)}: {len(missing)} missing {missing[:3]}, "
                         f"{len(unknown)} unexpected {unknown[:3]}")
    return model.float()


def encoder_folder(name: str, *, trust_remote_code: bool) -> Path:
    """The folder of the ranker's encoder, which gives its architecture: all weights are replaced.

    The package runs an encoder's own code unasked; here that takes model.trust_remote_code.
    """
    folder = folders.source_of(name, "selection.scar.encoder_name_or_path")
    described = (folder / "config.json").read_text(encoding="utf-8")
    if '"auto_map"' in described and not trust_remote_code:
        raise InputError(f"model.trust_remote_code is false, but the encoder {folder} of "
                         f"selection.scar comes with code of its own: look at it and set "
                         f"model.trust_remote_code=true, or use a ranker without")
    return folder


def read_weights(folder: Path) -> dict[str, Any]:
    """The tensors of a folder by name: from model.safetensors, else from pytorch_model.bin.

    The latter is a pickle, taken only where it was named (adg.models.source_of); tensors alone are
    read from it, and no code is run (weights_only).
    """
    import torch
    from safetensors.torch import load_file

    if (path := folder / "model.safetensors").is_file():
        return load_file(path)
    path = folder / "pytorch_model.bin"
    if not path.is_file():
        raise InputError(f"selection.scar.model_name_or_path: {folder} holds neither "
                         f"model.safetensors nor pytorch_model.bin")
    return torch.load(path, map_location="cpu", weights_only=True)


def check_length(encoder: Any, tokenizer: Any, max_length: int) -> None:
    """InputError where the encoder does not take so many tokens."""
    longest = min(encoder.max_position_embeddings, tokenizer.model_max_length)
    if max_length > longest:
        raise InputError(f"selection.scar.max_length is {max_length}, but the ranker takes "
                         f"{longest} tokens")


def _misfit(folder: Path, encoder: Path) -> str:
    return (f"selection.scar: the weights in {folder} are not those of a ranker with the encoder "
            f"{encoder} (selection.scar.encoder_name_or_path)")


METHOD = Method(
    "SCAR",
    lambda told: (f"The records of the highest score of {told.model}, which ranks by how "
                  f"consistent the style of their outputs is (SCAR)."),
    choose_by_style, section="scar", settings=ScarConfig, reads=measured,
    measure=Measure(
        {"": StyleScores}, models={"measure.ranker": "selection.scar.model_name_or_path"},
        keys=("model.trust_remote_code", "selection.scar.encoder_name_or_path",
              "selection.scar.max_length")))
