"""The check of vectors from sampling: rounding passes, whatever the answers' length; errors do not.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECORDS
from transformers import AutoModel

from adg.base import artifacts
from adg.base.errors import InputError
from adg.config import load_config
from adg.models.loading import LocalModel
from adg.prompts import Prompter
from adg.records import Pool
from embedding import check
from embedding.forward import load_embedder
from embedding.sequences import load_encoder
from generation import prepare_pool

LAYERS = (-4, -3, -2, -1)


@pytest.fixture
def checked(config_file, stage, tiny_model, tmp_path: Path, monkeypatch) -> Callable[..., dict]:
    """checked(lengths, sampled) -> what the check writes, where answers have these lengths and
    sampled(states [layers + 1, 1 + tokens, H], the first those of the prompt's last token) gives
    the sampler's vector. Computed in float32, so that noise is what a test adds; held to the bounds
    of half precision."""
    monkeypatch.setitem(check.BOUNDS, "float32", check.BOUNDS["bfloat16"])
    path = config_file(embedding={"source": "sampling"})
    config = load_config(path, [])
    stage(prepare_pool, path)
    run = tmp_path / "run"
    source = LocalModel(tiny_model)
    encoder, embedder = load_encoder(source, config), load_embedder(source, config)
    model = AutoModel.from_pretrained(tiny_model, dtype=torch.float32).eval()
    prompter = Prompter("alpaca", source.tokenizer(), config.generation)
    rng = np.random.default_rng(0)

    def check_them(lengths: list[int], sampled: Callable[[np.ndarray], np.ndarray]) -> dict:
        rows = []
        for number, record in enumerate(RECORDS):
            ids = [rng.integers(4, 300, n).tolist() for n in lengths[number::len(RECORDS)]]
            prompt, vectors = prompter.ids(record), []
            for own in ids:
                with torch.inference_mode():
                    states = model(torch.tensor([prompt + own]), output_hidden_states=True)
                states = torch.cat(states.hidden_states)[:, len(prompt) - 1:].double().numpy()
                found = sampled(states) if own else None
                vectors.append([(found / np.linalg.norm(found)).tolist()] if own else None)
            rows.append({"row": number, "id": record["id"], "token_ids": ids, "vectors": vectors})
        artifacts.write_jsonl(run / "check_answers/00000.jsonl", rows)
        check.check_sampled(run, Pool(run), encoder, embedder, config)
        return json.loads((run / "provenance/embed.check.json").read_text())

    return check_them


def mean(states: np.ndarray, layers: tuple[int, ...] = LAYERS, first: int = 1,
         last: int | None = None) -> np.ndarray:
    """Over layers and tokens: the right one, unless told otherwise."""
    return states[list(layers), first:last].mean((0, 1))


def noisy(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each token's mean off by 2% of its length in the median, as unlike between tokens as bfloat16
    makes it (one in a hundred by 4%), in a direction of its own."""
    tokens = states[list(LAYERS), 1:].mean(0)
    noise = rng.normal(size=tokens.shape)
    noise *= (np.linalg.norm(tokens, axis=1) / np.linalg.norm(noise, axis=1))[:, None]
    return (tokens + 0.02 * np.exp(0.3 * rng.normal(size=(len(tokens), 1))) * noise).mean(0)


@pytest.mark.parametrize("lengths", [[1, 2] * 16, list(range(4, 36)), [1] * 10 + [0] * 10])
def test_two_percent_a_token_pass_at_any_length(checked, lengths):
    rng = np.random.default_rng(0)
    found = checked(lengths, lambda states: noisy(states, rng))
    assert found["checked_answers"] == np.count_nonzero(lengths)
    assert 0.003 < found["median_deviation"] <= found["largest_deviation"] < 0.05


@pytest.mark.parametrize("error", [
    {"layers": (-4, -3, -2)}, {"layers": (-3, -2, -1)}, {"layers": (-5, -3, -2, -1)},
    {"layers": (-5, -4, -3, -2)}, {"first": 2}, {"last": -1}, {"first": 0, "last": -1}])
def test_an_error_is_found(checked, error):
    checked(list(range(4, 36)), mean)
    with pytest.raises(InputError, match="deviate from the forward pass's by .* at most and .* in "
                                         "the median, above 0.06 or 0.04: they are not to be"):
        checked(list(range(4, 36)), lambda states: mean(states, **error))


def test_an_error_in_few_answers_is_found_and_so_is_a_slight_one_in_all(checked):
    def one_wrong(states: np.ndarray) -> np.ndarray:
        return mean(states, first=2 if states.shape[1] - 1 == 8 else 1)

    def slightly_wrong(states: np.ndarray) -> np.ndarray:
        right, other = mean(states), mean(states, (0,))
        length = np.linalg.norm(right) / np.linalg.norm(other) * (states.shape[1] - 1) ** -0.25
        return right + 0.05 * length * other

    for wrong in (one_wrong, slightly_wrong):
        with pytest.raises(InputError, match="not to be trusted"):
            checked(list(range(4, 36)), wrong)


def test_without_an_answer_there_is_nothing_to_find(checked):
    assert checked([0] * 20, mean)["checked_answers"] == 0


def test_without_a_row_nothing_is_checked(config_file, tmp_path):
    """As where the pool's first records have all been replaced."""
    config = load_config(config_file(embedding={"source": "sampling"}), [])
    (tmp_path / "run/check_answers").mkdir(parents=True)
    check.check_sampled(tmp_path / "run", None, None, None, config)
    assert check.last_result(tmp_path / "run", config) == {}
