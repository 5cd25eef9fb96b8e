"""Texts to vectors: window of layers, mean over weighted tokens, unit length (paper, step 2).

Shapes: S sequences of a batch, T tokens, H hidden.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from adg.config import Config
from adg.errors import InputError
from adg.prompts import prompt_ids
from adg.records import instruction_text


class Sequence(NamedTuple):
    """Token ids the model reads, and the weight of each in the mean (0: read, not averaged)."""

    ids: list[int]
    weights: list[float]


# Texts to sequences


def paper_instruction(record: dict, tokenizer: Any, config: Config) -> Sequence:
    """Recipe `paper`: the instruction (and its input), averaged over all but added special tokens.

    The tokenizer adds those. The sequence is cut at its end to embedding.instruction_max_length.
    """
    encoded = tokenizer(instruction_text(record), return_special_tokens_mask=True)
    limit = config.embedding.instruction_max_length
    ids, special = encoded["input_ids"][:limit], encoded["special_tokens_mask"][:limit]
    return Sequence(ids, [1.0 - flag for flag in special])


def paper_answer(record: dict, answer: str, tokenizer: Any, config: Config) -> Sequence:
    """Recipe `paper`: prompt and answer tokenised apart, averaged over the answer's tokens.

    Longer than embedding.max_length together, the answer loses its end. An empty answer has no
    weight at all.
    """
    prompt = prompt_ids(record, config.generation.prompt, tokenizer,
                        config.generation.max_prompt_tokens)
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else []
    ids = ids[: max(0, config.embedding.max_length - len(prompt))]
    return Sequence(prompt + ids, [0.0] * len(prompt) + [1.0] * len(ids))


def released_instruction(record: dict, tokenizer: Any, config: Config) -> Sequence:
    """Recipe `released`: the instruction without its input, averaged over all of its tokens.

    The special tokens that the tokenizer adds are among them.
    """
    ids = tokenizer(record["instruction"], truncation=True,
                    max_length=config.embedding.instruction_max_length)["input_ids"]
    return Sequence(ids, [1.0] * len(ids))


def released_answer(record: dict, answer: str, tokenizer: Any, config: Config) -> Sequence:
    """Recipe `released`: instruction, space and answer as one text, averaged over all of it.

    No template, no special tokens. An empty answer leaves the instruction alone.
    """
    text = f"{record['instruction']} {answer}" if answer else record["instruction"]
    ids = tokenizer(text, add_special_tokens=False, truncation=True,
                    max_length=config.embedding.max_length)["input_ids"]
    return Sequence(ids, [1.0] * len(ids))


class Recipe(NamedTuple):
    """How texts become sequences."""

    instruction: Callable[[dict, Any, Config], Sequence]
    answer: Callable[[dict, str, Any, Config], Sequence]


RECIPES = {"paper": Recipe(paper_instruction, paper_answer),
           "released": Recipe(released_instruction, released_answer)}
EMPTY_VECTORS = {"leave_out": np.nan, "zero": 0.0}  # in place of what the recipe makes of one


# The weight of a token

_FILLER = re.compile(r"""[\s,.;:!?()\[\]{}"'`~\-_/\\]+""")
_FIGURE = re.compile(r"[\d%℃°]")
_FIGURE_WEIGHT = float(np.float16(1.3))  # the release holds its weights in half precision


def content_weights(tokenizer: Any) -> list[float]:
    """The release's weights, one for each id of the vocabulary.

    0 where the token's text is blank or punctuation, 1.3 where it holds a digit, % or a degree
    sign, else 1 (as for a token that is part of a character).
    """
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return [_content_weight(text.strip()) for text in texts]


def _content_weight(text: str) -> float:
    if not text or _FILLER.fullmatch(text):
        return 0.0
    return _FIGURE_WEIGHT if _FIGURE.search(text) else 1.0


def uniform_weights(tokenizer: Any) -> None:
    """No table: every pooled token counts the same."""


TOKEN_WEIGHTS = {"uniform": uniform_weights, "content": content_weights}


def weigh(sequence: Sequence, table: list[float] | None) -> Sequence:
    """A sequence with its weights times those of its tokens, where one of them is left."""
    if table is None:
        return sequence
    weights = [weight * table[token] for token, weight in zip(*sequence, strict=True)]
    return sequence._replace(weights=weights) if any(weights) else sequence


# Sequences to vectors


def hidden_state_indices(layers: list[int], num_layers: int) -> list[int]:
    """Places in transformers' hidden_states of the outputs of `layers` (negative: from the end).

    hidden_states[0] are the token embeddings; the last entry is the last layer's after the norm.
    """
    for layer in layers:
        if not -num_layers <= layer < num_layers:
            raise InputError(f"embedding.layers: there is no layer {layer}: "
                             f"the model has {num_layers}")
    return [layer + 1 if layer >= 0 else num_layers + layer + 1 for layer in layers]


def plan_batches(lengths: list[int], tokens_per_batch: int) -> list[list[int]]:
    """Positions of each batch: longest first, padded size at most tokens_per_batch (or one)."""
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > tokens_per_batch:
            batches.append([])
        batches[-1].append(position)
    return batches


def embed_sequences(model: Any, sequences: list[Sequence], layers: list[int], *,
                    tokens_per_batch: int) -> np.ndarray:
    """Unit vectors of sequences, [len(sequences), H] float32; NaN where no token has weight."""
    vectors = np.full((len(sequences), model.config.hidden_size), np.nan, dtype=np.float32)
    with_weight = [i for i, sequence in enumerate(sequences) if any(sequence.weights)]
    indices = hidden_state_indices(layers, model.config.num_hidden_layers)
    lengths = [len(sequences[i].ids) for i in with_weight]
    for batch in plan_batches(lengths, tokens_per_batch):
        rows = [with_weight[position] for position in batch]
        vectors[rows] = _embed_batch(model, [sequences[i] for i in rows], indices)
    return vectors


def _embed_batch(model: Any, batch: list[Sequence], indices: list[int]) -> np.ndarray:
    import torch

    longest = max(len(sequence.ids) for sequence in batch)
    ids = torch.tensor([s.ids + [0] * (longest - len(s.ids)) for s in batch])               # [S, T]
    weights = torch.tensor([s.weights + [0.0] * (longest - len(s.ids)) for s in batch])     # [S, T]
    read = torch.tensor([[1] * len(s.ids) + [0] * (longest - len(s.ids)) for s in batch])   # [S, T]
    ids, weights, read = (tensor.to(model.device) for tensor in (ids, weights, read))
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=read, use_cache=False,
                       output_hidden_states=True).hidden_states
        window = sum(states[index].float() for index in indices) / len(indices)          # [S, T, H]
        mean = (window * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True)      # [S, H]
        return torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
