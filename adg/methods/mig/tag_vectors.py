"""Method mig: the vectors by which its tags are alike, of every tag that a record was given.

The encoder is a model of E5-Mistral's kind (Wang et al. 2024): a decoder whose state at the last
token, the end-of-text token that follows the tag, is the tag's vector. transformers computes them:
some ten thousand texts of a few tokens, without an answer, take it no longer than an engine takes
to start.

Shapes: L tags, T tokens, H hidden.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adg.base import arrays, artifacts
from adg.base.errors import InputError
from adg.control_tokens import ControlTokens
from adg.methods.mig.settings import MigConfig
from adg.models.batches import Batcher, budget, padded

if TYPE_CHECKING:
    from adg.models.loader import Loader

_TAGS, _VECTORS = "tags.json", "vectors.npy"  # as adg.methods.mig.annotations finds them


def write_tag_vectors(folder: Path, loader: "Loader", settings: MigConfig) -> dict[str, int]:
    """Write tags.json [L], sorted, and vectors.npy, float32 [L, H], beside the rows; the counts."""
    tags_of = [row["tags"] for row in artifacts.JsonlRows(folder)]
    tags = sorted({tag for row_tags in tags_of for tag in row_tags})
    path = folder / _TAGS
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != tags:
        arrays.write_array(folder / _VECTORS, encode(tags, loader))
        artifacts.write_json(path, tags)
    return {"tags": len(tags), "without_tags": sum(not row_tags for row_tags in tags_of)}


def encode(tags: list[str], loader: "Loader") -> np.ndarray:
    """The unit vectors of tags, float32 [L, H]."""
    from transformers import AutoModel

    source = loader.local("measure.tag_encoder")
    check_pooling(source.folder)
    rows = with_end(source.tokenizer(), tags, loader.control_tokens)
    model = source.load(AutoModel, loader.dtype)
    batcher = Batcher(lambda batch: _last_states(model, batch),
                      budget(model, loader.tokens_per_batch))
    vectors = np.array(batcher.read(rows), dtype=np.float32).reshape(
        len(tags), model.config.get_text_config().hidden_size)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def with_end(tokenizer: Any, texts: list[str], control_tokens: str | None) -> list[list[int]]:
    """The token ids of each text, the end-of-text token last, whether or not the tokenizer adds it.
    """
    if not texts:
        return []
    rows = ControlTokens(tokenizer, control_tokens).encode(texts)["input_ids"]
    end = tokenizer.eos_token_id
    return [ids if ids and ids[-1] == end else [*ids, end] for ids in rows]


def _last_states(model: Any, rows: list[list[int]]) -> np.ndarray:
    """The state of each row's last token, [rows, H]; padding on the right changes none."""
    import torch

    lengths = torch.tensor([len(ids) for ids in rows], device=model.device)
    tokens = padded(rows).to(model.device)                                              # [rows, T]
    attended = torch.arange(tokens.shape[1], device=model.device) < lengths[:, None]
    with torch.inference_mode():
        states = model(input_ids=tokens, attention_mask=attended.long(),
                       use_cache=False).last_hidden_state                            # [rows, T, H]
    row = torch.arange(len(rows), device=model.device)
    return states[row, lengths - 1].float().cpu().numpy()


def check_pooling(folder: Path) -> None:
    """InputError where a sentence-transformers model says that it pools in another way."""
    path = folder / "1_Pooling" / "config.json"
    if path.is_file() and not json.loads(path.read_text(encoding="utf-8")).get(
            "pooling_mode_lasttoken"):
        raise InputError(f"selection.mig.annotator.tag_encoder: {path} does not ask for the last "
                         f"token's state, which is all that is done here: use a model of "
                         f"E5-Mistral's kind, or give the tags' vectors yourself")
