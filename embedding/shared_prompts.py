"""A prompt that is read once for all the texts that go on from it.

The tokens of several rows stand one after the other as one sequence without padding: each row's
prompt, then its texts, each at positions that go on from the prompt. What makes them independent is
attention: a prompt sees itself, a text sees its prompt and itself. It is computed over these pairs
only, row by row or all rows in one varlen call, and given to transformers under the name ATTENTION.

Shapes: T tokens of the sequence, K texts of a row, A tokens of its longest text, P of its prompt;
S prompts and texts of all rows that have a token, T' keys of all of these.
"""

from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np

from adg.models.batches import padded
from embedding.sequences import Row

ATTENTION = "adg_shared_prompts"


class Branches(NamedTuple):
    """Where the tokens of one row stand in the packed sequence."""

    prompt: slice
    texts: Any  # int64 [K, A]: places of the texts' tokens; 0 beyond a text's end
    real: Any  # int64: which of these K x A are tokens of a text
    places: Any  # int64: the places of those


class Sequences(NamedTuple):
    """The prompts and texts of all rows in order, each a sequence of queries with its own keys.

    The queries are the packed tokens as they stand. A prompt's keys are its own tokens, a text's
    are those of its prompt and then its own, so each query sees all keys up to its own, counted
    from the end.
    """

    keys: Any  # int64 [T']: places of the keys
    query_bounds: Any  # int32 [S + 1]: where the queries of each sequence begin, and the end
    key_bounds: Any  # int32 [S + 1]: the same of its keys
    most_queries: int  # of a sequence
    most_keys: int


def pack(batch: list[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids [1, T], positions [1, T], weights float32 [1, texts of all rows, T])."""
    ids, positions, weights = [], [], []
    for row in batch:
        ids += row.prompt
        positions += range(len(row.prompt))
        for text, marks in zip(row.texts, row.weights, strict=True):
            weights.append((len(ids), marks))
            ids += text
            positions += range(len(row.prompt), len(row.prompt) + len(text))
    spread = np.zeros((1, len(weights), len(ids)), np.float32)
    for number, (first, marks) in enumerate(weights):
        spread[0, number, first: first + len(marks)] = marks
    return np.array([ids]), np.array([positions]), spread


def branches_of(batch: list[Row]) -> list[Branches]:
    """Where each row's tokens stand: for attention row by row."""
    branches, end = [], 0
    for row in batch:
        prompt = slice(end, end + len(row.prompt))
        end = prompt.stop
        ends = [*accumulate(map(len, row.texts), initial=end)]
        texts = padded([range(*span) for span in pairwise(ends)]).numpy()
        real = padded([[1] * len(text) for text in row.texts]).numpy().astype(bool)
        branches.append(Branches(prompt, texts, np.flatnonzero(real), texts[real]))
        end = ends[-1]
    return branches


def sequences_of(batch: list[Row]) -> Sequences:
    """Where each sequence's queries and keys stand: for attention of all rows in one call."""
    queries, keys, end = [0], [], 0
    for row in batch:
        prompt = range(end, end + len(row.prompt))
        for before, text in ((range(0), row.prompt), *((prompt, text) for text in row.texts)):
            if text:
                keys.append([*before, *range(end, end + len(text))])
                end += len(text)
                queries.append(end)
    lengths = list(map(len, keys))
    return Sequences(np.concatenate(keys), np.array(queries, np.int32),
                     np.cumsum([0, *lengths], dtype=np.int32), int(np.diff(queries).max()),
                     max(lengths))


def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: None, *,
           layout: list[Branches] | Sequences, scaling: float | None = None, **options: Any
           ) -> tuple[Any, None]:
    """Attention of one packed sequence, as transformers calls it.

    query [1, heads, T, d], key and value [1, key heads, T, d] -> ([1, T, heads, d], None)
    """
    way = in_one_call if isinstance(layout, Sequences) else row_by_row
    return way(query, key, value, layout, scaling), None


def row_by_row(query: Any, key: Any, value: Any, branches: list[Branches],
               scaling: float | None) -> Any:
    """`attend` by some dozen small kernels for each row, on any device."""
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
        keys, values = (torch.cat([before.expand(len(after), -1, -1, -1), after], 2)
                        for before, after in zip(of_prompt[1:], (keys, values), strict=True))
        states = attention(queries, keys, values, scale=scaling,
                           attn_mask=causal_lower_right(queries.shape[2], keys.shape[2]))
        output[0, :, row.places] = states.transpose(0, 1).flatten(1, 2)[:, row.real]
    return output.transpose(1, 2)


def in_one_call(query: Any, key: Any, value: Any, sequences: Sequences,
                scaling: float | None) -> Any:
    """`attend` by one call for all rows: half precision on a GPU.

    A window of (-1, 0) is causal, aligned at the end where there are more keys than queries.
    """
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, ., d]
    keys, values = (tensor.index_select(0, sequences.keys) for tensor in (key, value))
    return varlen_attn(query, keys, values, sequences.query_bounds, sequences.key_bounds,
                       sequences.most_queries, sequences.most_keys, scale=scaling,
                       window_size=(-1, 0), enable_gqa=True)[None]


def on_device(layout: list[Branches] | Sequences, device: Any) -> list[Branches] | Sequences:
    """A layout with its arrays as tensors on a device."""
    if isinstance(layout, list):
        return [on_device(branches, device) for branches in layout]
    return type(layout)(*(put(part, device) if isinstance(part, np.ndarray) else part
                          for part in layout))


def put(values: Any, device: Any) -> Any:
    """An array or tensor on a device; on a GPU the copy does not wait for what is being computed.
    """
    import torch

    tensor = torch.as_tensor(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def deviation_in_one_call(model: Any) -> float:
    """|a - b| / |b| of attention in one call (a) and row by row (b), for random states in the
    shape, type and place of a model's heads. Raises RuntimeError or ValueError without a kernel
    for them.
    """
    import torch

    config, ids = model.config.get_text_config(), list(range(40))
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    batch = [Row(ids[:7], [ids[:3], ids[:1], [], ids], []), Row(ids, [ids[:9], ids[:2]], [])]
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, number, sum(len(row.prompt) + sum(map(len, row.texts))
                                         for row in batch), width, generator=generator)
              .to(model.device, model.dtype) for number in (heads, key_heads, key_heads)]
    with torch.inference_mode():
        one, other = (attend(None, *states, None, layout=on_device(of(batch), model.device))[0]
                      for of in (sequences_of, branches_of))
        return float((one.float() - other.float()).norm() / other.float().norm())
