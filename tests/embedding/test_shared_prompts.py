"""Attention over shared prompts: one varlen call is row by row, and is taken where it is right."""

import re

import numpy as np
import pytest
import torch
from test_forward import LAST_FOUR, cosine_distance, embedder, rows
from torch.nn.attention import varlen

from embedding import forward, shared_prompts
from embedding.sequences import Row
from embedding.shared_prompts import attend, branches_of, on_device, sequences_of

CPU = torch.device("cpu")


def reference(query, key, value, query_bounds, key_bounds, most_queries, most_keys, *, scale=None,
              window_size, enable_gqa, aligned_at_end=True):
    """What varlen_attn is documented to give: each sequence alone, causal, aligned at the end."""
    assert window_size == (-1, 0) and enable_gqa
    assert query_bounds.dtype == key_bounds.dtype == torch.int32
    assert int(query_bounds.diff().max()) == most_queries
    assert int(key_bounds.diff().max()) == most_keys
    assert int(query_bounds.diff().min()) > 0, "a sequence without queries"
    output = torch.full_like(query, torch.nan)
    repeats = query.shape[1] // key.shape[1]
    for a, b, c, d in zip(query_bounds, query_bounds[1:], key_bounds, key_bounds[1:], strict=False):
        own, keys, values = query[a:b], *(tensor[c:d].repeat_interleave(repeats, 1)
                                          for tensor in (key, value))
        scores = torch.einsum("qhd,khd->hqk", own, keys) * (scale or query.shape[-1] ** -0.5)
        seen = torch.ones(len(own), len(keys), dtype=torch.bool).tril(
            len(keys) - len(own) if aligned_at_end else 0)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        output[a:b] = torch.einsum("hqk,khd->qhd", weights, values)
    return output


@pytest.fixture
def with_kernel(monkeypatch):
    """Has the CPU pass for a device with a varlen kernel, given here; its calls are counted."""
    calls = []

    def give(kernel=reference):
        monkeypatch.setattr(forward, "has_kernel", lambda model: True)
        monkeypatch.setattr(varlen, "varlen_attn", lambda *args, **options:
                            calls.append(args[0].shape) or kernel(*args, **options))
        return calls

    return give


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("scaling", [None, 0.5])
def test_one_call_gives_what_row_by_row_gives(with_kernel, key_heads, scaling):
    with_kernel()
    batch = [row for row in rows() if len(row.texts) > 1] + [
        Row([], [[5], [6, 7]], [[1.0], [1.0] * 2]), Row([1], [[2] * 3] * 2, [[1.0] * 3] * 2)]
    tokens = sum(map(forward.length, batch))
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, heads, tokens, 8, generator=generator)
              for heads in (4, key_heads, key_heads)]
    found, expected = (attend(None, *states, None, layout=on_device(of(batch), CPU),
                              scaling=scaling)[0] for of in (sequences_of, branches_of))
    assert found.shape == expected.shape == (1, tokens, 4, 8)
    assert (found - expected).abs().max() < 1e-6


def test_a_model_gives_the_same_vectors_by_one_call_a_layer(tiny_model, with_kernel, capsys):
    plain = embedder(tiny_model).embed(rows())
    calls = with_kernel()
    own = embedder(tiny_model)
    assert own.one_call and own.shares and "[embed]" not in capsys.readouterr().err
    calls.clear()
    packed = [row for row in rows() if len(row.texts) > 1]
    own.embed(packed)
    assert len(calls) == 5  # layers: all rows at once
    assert np.nanmax(cosine_distance(own.embed(rows()), plain)) < 1e-6
    calls.clear()
    told = embedder(tiny_model, one_call=False)
    assert not told.one_call and np.array_equal(told.embed(rows()), plain, equal_nan=True)
    assert calls == []


def aligned_at_the_start(*args, **options):
    return reference(*args, **options, aligned_at_end=False)


def without_a_kernel(*args, **options):
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nat line 1")


@pytest.mark.parametrize(("kernel", "message"), [
    (aligned_at_the_start, r"one call a layer deviates by \d\.\de-01"),
    (without_a_kernel, r"one call a layer fails \(FlashAttention only supports Ampere GPUs or n"),
    (varlen.varlen_attn, r"one call a layer fails \(Could not run 'aten::_flash_attention_forwa"),
])
def test_a_wrong_or_missing_kernel_is_said_and_not_taken(tiny_model, with_kernel, capsys, kernel,
                                                         message):
    plain = embedder(tiny_model).embed(rows())
    with_kernel(kernel)
    own = embedder(tiny_model)
    assert own.shares and not own.one_call
    said = [line for line in capsys.readouterr().err.splitlines() if "[embed]" in line]
    assert len(said) == 1 and re.search(message, said[0])
    assert np.array_equal(own.embed(rows()), plain, equal_nan=True)


def test_a_model_whose_heads_the_kernel_does_not_take_is_found(tiny_model, with_kernel, monkeypatch,
                                                               capsys):
    """The states tried first pass, those of the model do not."""
    with_kernel(without_a_kernel)
    monkeypatch.setattr(shared_prompts, "deviation_in_one_call", lambda model: 0.0)
    assert not embedder(tiny_model, LAST_FOUR).one_call
    assert "one call a layer fails" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_no_deviation(tiny_model, with_kernel, dtype):
    with_kernel()
    assert embedder(tiny_model, dtype=dtype).one_call


def test_the_cpu_and_float32_go_row_by_row(tiny_model):
    assert not embedder(tiny_model).one_call
    assert not embedder(tiny_model, dtype=torch.bfloat16).one_call
