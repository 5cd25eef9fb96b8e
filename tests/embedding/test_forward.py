"""Rows to vectors: the same alone, in any batch and with a shared prompt; memory; layers."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, Qwen2Config, Qwen2Model

from adg.base.errors import InputError
from adg.models.layers import window_layers
from embedding import shared_prompts
from embedding.forward import Embedder, length, separate
from embedding.sequences import Row

LAST_FOUR = [-4, -3, -2, -1]


def rows() -> list[Row]:
    """Rows of unlike shapes: shared prompts, one text, a text of no token, one without weight."""
    rng = np.random.default_rng(0)

    def text(length: int) -> list[int]:
        return rng.integers(4, 300, length).tolist()

    shared = [Row(text(prompt), own := [text(n) for n in lengths], [[1.0] * len(t) for t in own])
              for prompt, lengths in ((60, (5, 9, 1)), (30, (12, 0, 7)), (45, (3, 3, 3, 3)))]
    single = [Row([], [text(n)], [[0.0] + [1.0] * (n - 1)]) for n in (40, 3, 17, 90, 2)]
    return [single[0], *shared, *single[1:], Row([], [text(1)], [[0.0]])]


def embedder(folder, *windows, dtype=torch.float32, attention="sdpa", **options):
    model = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()
    return Embedder(model, [window_layers(layers, 5) for layers in windows or (LAST_FOUR,)],
                    **{"tokens_per_batch": 10**6} | options)


def by_hand(folder, row: Row, layers: list[int]) -> list[np.ndarray]:
    """Each text of a row alone, all hidden states kept, in float64 from there."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for ids, weights in zip(row.texts, row.weights, strict=True):
        if not any(weights):
            found.append(np.full(64, np.nan))
            continue
        with torch.inference_mode():
            states = model(torch.tensor([row.prompt + ids]), output_hidden_states=True)
        window = sum(states.hidden_states[layer % 5 + 1][0].double().numpy() for layer in layers)
        mean = np.array([0.0] * len(row.prompt) + weights) @ window
        found.append(mean / np.linalg.norm(mean))
    return found


def cosine_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of vectors [texts, H], the first's in their first window where they have any."""
    return 1 - (a.reshape(len(a), -1, a.shape[-1])[:, 0] * b.reshape(len(b), -1, 64)[:, 0]).sum(1)


@pytest.mark.parametrize("layers", [LAST_FOUR, [-4, -3, -2], [0], [4], [1, 3]])
def test_vectors_are_those_of_hidden_states_kept_whole(tiny_model, layers):
    expected = np.array([vector for row in rows() for vector in by_hand(tiny_model, row, layers)])
    for budget in (1, 150, 10**6):
        found = embedder(tiny_model, layers, tokens_per_batch=budget).embed(rows())[:, 0]
        assert found.dtype == np.float32
        assert (np.isnan(found) == np.isnan(expected)).all() and np.isnan(found).any(1).sum() == 2
        assert np.nanmax(cosine_distance(found, expected)) < 1e-6


def test_several_windows_of_one_pass_are_those_of_a_pass_each(tiny_model):
    windows = (LAST_FOUR, [0, 1], [4], [-2])
    together = embedder(tiny_model, *windows).embed(rows())
    assert together.shape[1:] == (4, 64)
    for number, layers in enumerate(windows):
        alone = embedder(tiny_model, layers).embed(rows())[:, 0]
        assert np.array_equal(together[:, number], alone, equal_nan=True)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3),
                                              (torch.float16, 1e-4)])
def test_shared_prompts_and_batches_change_nothing(tiny_model, dtype, bound, attention):
    exact = embedder(tiny_model, share_prompts=False, tokens_per_batch=1).embed(rows())
    shared = embedder(tiny_model, dtype=dtype, attention=attention)
    assert shared.shares
    assert np.nanmax(cosine_distance(shared.embed(rows()), exact)) < bound


def test_a_shared_prompt_is_read_once(tiny_model, monkeypatch):
    long_prompt = [row for row in rows() if len(row.prompt) == 60]
    for share, tokens in ((True, 75), (False, 65 + 69 + 61)):
        own, read = embedder(tiny_model, share_prompts=share), []
        run = own._run
        monkeypatch.setattr(own, "_run", lambda ids, weights, run=run, read=read, **options:
                            read.append(int((ids > 0).sum())) or run(ids, weights, **options))
        own.embed(long_prompt)
        assert read == [tokens]


def test_a_model_that_mixes_answers_gets_a_prompt_for_each(tiny_model, monkeypatch, capsys):
    branches_of = shared_prompts.branches_of

    def mixed(batch):
        """Each text at the places of the row's last one."""
        return [own._replace(texts=own.texts[[-1] * len(own.texts)]) for own in branches_of(batch)]

    monkeypatch.setattr(shared_prompts, "branches_of", mixed)
    own = embedder(tiny_model)
    assert not own.shares and "a prompt of its own" in capsys.readouterr().out
    expected = [vector for row in rows() for vector in by_hand(tiny_model, row, LAST_FOUR)]
    assert np.nanmax(cosine_distance(own.embed(rows()), np.array(expected))) < 1e-6


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_models_own_attention_is_put_back(tiny_model, attention):
    own = embedder(tiny_model, attention=attention)
    own.embed(rows())
    assert own.model.config._attn_implementation == attention


def test_a_sliding_window_is_kept(tmp_path):
    Qwen2Model(Qwen2Config(
        vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=5,
        num_attention_heads=2, num_key_value_heads=1, use_sliding_window=True, sliding_window=16,
        initializer_range=0.2, layer_types=["sliding_attention"] * 5)).save_pretrained(tmp_path)
    short = Row([1] * 9, [[2, 3], [4, 5, 6]], [[1.0] * 2, [1.0] * 3])
    expected = np.array([vector for row in [*rows(), short]
                         for vector in by_hand(tmp_path, row, LAST_FOUR)])
    found = embedder(tmp_path).embed([*rows(), short])
    assert np.nanmax(cosine_distance(found, expected)) < 1e-6


def test_out_of_memory_halves_the_batch_and_is_said(tiny_model, monkeypatch, capsys):
    plain = embedder(tiny_model).embed(rows())
    small = embedder(tiny_model)
    forward_pass, limit = small._forward, [100]

    def short_of_memory(batch):
        if sum(map(length, batch)) > limit[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return forward_pass(batch)

    monkeypatch.setattr(small, "_forward", short_of_memory)
    assert np.nanmax(cosine_distance(small.embed(rows()), plain)) < 1e-6
    assert small.batcher.tokens_per_batch < 10**6
    assert "embedding.tokens_per_batch is" in capsys.readouterr().err
    limit[0] = 80  # no single text of 90 tokens fits
    with pytest.raises(InputError, match="a text of 90 tokens does not fit"):
        small.embed(rows())


def test_states_that_overflow_are_an_error(tiny_model):
    own = embedder(tiny_model)
    with torch.no_grad():
        own.model.layers[0].mlp.down_proj.weight.fill_(float("inf"))
    with pytest.raises(InputError, match="model.dtype: a text's hidden states are NaN or infinite"):
        own.embed(rows())


def test_another_runtime_error_is_not_taken_for_lack_of_memory(tiny_model, monkeypatch):
    own = embedder(tiny_model)

    def broken(batch):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(own, "_forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        own.embed(rows())


def test_no_layer_after_the_window_is_computed(tiny_model):
    own = embedder(tiny_model, [0, 2], [1])
    assert len(own.model.layers) == 3
    assert not hasattr(own.model, "lm_head")


def test_layers_are_counted_from_both_ends():
    assert window_layers(LAST_FOUR, 32) == [28, 29, 30, 31]
    assert window_layers([31, 0, -4], 32) == [0, 28, 31]
    with pytest.raises(InputError, match="no layer 32"):
        window_layers([32], 32)


def test_separate_rows_hold_the_prompt_each():
    assert separate(Row([1, 2], [[3], []], [[0.5], []])) == [
        Row([], [[1, 2, 3]], [[0.0, 0.0, 0.5]]), Row([], [[1, 2]], [[0.0, 0.0]])]
