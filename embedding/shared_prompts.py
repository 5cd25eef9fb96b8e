"""A prompt that is read once for all the texts that go on from it.

The tokens of several rows stand one after the other as one sequence without padding: each row's
prompt, then its texts, each at positions that go on from the prompt. What makes them independent is
attention: a prompt sees itself, a text sees its prompt and itself. It is computed row by row, over
these pairs only, and given to transformers under the name ATTENTION.

Shapes: T tokens of the sequence, K texts of a row, A tokens of its longest text, P of its prompt.
"""

from typing import Any, NamedTuple

import numpy as np

from embedding.sequences import Row

ATTENTION = "adg_shared_prompts"


class Branches(NamedTuple):
    """Where the tokens of one row stand in the packed sequence."""

    prompt: slice
    texts: Any  # int64 [K, A]: places of the texts' tokens; 0 beyond a text's end
    real: Any  # int64: which of these K x A are tokens of a text
    places: Any  # int64: the places of those


def pack(batch: list[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Branches]]:
    """(ids [1, T], positions [1, T], weights float32 [1, texts of all rows, T], where each stands).
    """
    ids, positions, weights, branches = [], [], [], []
    for row in batch:
        start = len(ids)
        ids += row.prompt
        positions += range(len(row.prompt))
        longest = max(map(len, row.texts))
        texts = np.zeros((len(row.texts), longest), np.int64)
        own = np.zeros((len(row.texts), longest), bool)
        for k, (text, marks) in enumerate(zip(row.texts, row.weights, strict=True)):
            texts[k, : len(text)] = range(len(ids), len(ids) + len(text))
            own[k, : len(text)] = True
            weights.append((len(ids), marks))
            ids += text
            positions += range(len(row.prompt), len(row.prompt) + len(text))
        branches.append(Branches(slice(start, start + len(row.prompt)), texts,
                                 np.flatnonzero(own), texts[own]))
    spread = np.zeros((1, len(weights), len(ids)), np.float32)
    for number, (first, marks) in enumerate(weights):
        spread[0, number, first: first + len(marks)] = marks
    return np.array([ids]), np.array([positions]), spread, branches


def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: None, *,
           branches: list[Branches], scaling: float | None = None, **options: Any
           ) -> tuple[Any, None]:
    """Attention of one packed sequence, as transformers calls it.

    query [1, heads, T, d], key and value [1, key heads, T, d] -> ([1, T, heads, d], None)
    """
    import torch
    from torch.nn.attention.bias import causal_lower_right
    from torch.nn.functional import scaled_dot_product_attention as attention

    repeats = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(repeats, 1) for tensor in (key, value))
    output = torch.empty_like(query)
    for row in branches:
        of_prompt = [tensor[:, :, row.prompt] for tensor in (query, key, value)]
        length = of_prompt[0].shape[2]
        if length:
            output[:, :, row.prompt] = attention(*of_prompt, is_causal=True, scale=scaling)
        queries, keys, values = (tensor[0][:, row.texts].transpose(0, 1)         # [K, heads, A, d]
                                 for tensor in (query, key, value))
        keys, values = (torch.cat([before.expand(len(own), -1, -1, -1), own], 2)
                        for before, own in zip(of_prompt[1:], (keys, values), strict=True))
        found = attention(queries, keys, values, scale=scaling,
                          attn_mask=causal_lower_right(queries.shape[2], keys.shape[2]))
        output[0, :, row.places] = found.transpose(0, 1).flatten(1, 2)[:, row.real]
    return output.transpose(1, 2), None
