"""Recipe `released`: its texts, layers and token weights, against a second computation."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECORDS
from transformers import AutoModel

from adg.base import artifacts
from adg.base.errors import InputError
from adg.models.folders import load_tokenizer
from embedding import embed
from embedding.pooling import content_weights
from embedding.sequences import Row, weigh
from generation import prepare_pool

RELEASED = {"recipe": "released", "layers": [-4, -3, -2], "token_weights": "content",
            "empty_answers": "instruction", "max_length": 1024, "instruction_max_length": 512,
            "keep_answer_embeddings": True}
ANSWERS = ["It is 25% or 3.5°, (roughly) 12 km.", "?! ...", "", "Le chat dort sur le canapé 😀."]


@pytest.fixture
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model, trust_remote_code=False)


@pytest.fixture
def embedded(config_file, stage, tmp_path: Path):
    """Embeds hand-made answers with recipe released; returns (answer, instruction) vectors."""

    def run(answers: list[list[str]], **settings: object) -> tuple[np.ndarray, np.ndarray]:
        path = config_file(embedding=RELEASED | settings)
        stage(prepare_pool, path)
        artifacts.write_jsonl(tmp_path / "run/answers/a.jsonl", (
            {"id": record["id"], "generated_answers": texts}
            for record, texts in zip(RECORDS, answers, strict=True)))
        stage(embed, path, "--overwrite")
        return tuple(np.concatenate([np.load(chunk) for chunk in sorted(
            (tmp_path / f"run/{name}_embeddings").glob("*.npy"))])
            for name in ("answer", "instruction"))

    return run


def vector(model, tokenizer, ids: list[int]) -> np.ndarray:
    """The release's vector of one text: token by token, three of the last four layers."""
    weights = []
    for token in ids:
        text = tokenizer.decode([token]).strip()
        filler = not text or re.fullmatch(r"""[\s,.;:!?()\[\]{}"'`~\-_/\\]+""", text)
        weights.append(0.0 if filler else 1.3 if re.search(r"\d|%|℃|°", text) else 1.0)
    weights = np.array(weights) if any(weights) else np.ones(len(ids))
    with torch.inference_mode():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    window = (states[-4] + states[-3] + states[-2])[0].double().numpy() / 3
    mean = (window * weights[:, None]).sum(0) / weights.sum()
    return mean / np.linalg.norm(mean)


def test_vectors_are_those_of_a_second_computation(embedded, tiny_model, tokenizer):
    own, of_instructions = embedded([ANSWERS[i % 4: i % 4 + 1] * 3 for i in range(10)])
    model = AutoModel.from_pretrained(tiny_model, dtype=torch.float32).eval()
    for i, record in enumerate(RECORDS):
        text = f"{record['instruction']} {ANSWERS[i % 4]}" if ANSWERS[i % 4] else \
            record["instruction"]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert own[i, 0] @ vector(model, tokenizer, ids) > 1 - 1e-5
        ids = tokenizer(record["instruction"])["input_ids"]  # with the begin-of-text token
        assert of_instructions[i] @ vector(model, tokenizer, ids) > 1 - 1e-5


def test_fewer_answers_are_made_up_with_empty_ones(embedded):
    padded, _ = embedded([["yes", "no"]] * 10)
    given, _ = embedded([["yes", "no", ""]] * 10)
    assert (padded == given).all()
    zero, _ = embedded([["yes", "no"]] * 10, empty_answers="zero")
    assert not zero[:, 2].any() and (zero[:, :2] == given[:, :2]).all()
    with pytest.raises(InputError, match="2 answers, but generation.num_answers is 3"):
        embedded([["yes", "no"]] * 10, empty_answers="leave_out")


def test_texts_are_cut_to_their_limits(embedded):
    long = [["word " * 300] * 3] * 10
    cut, of_instructions = embedded(long, max_length=40, instruction_max_length=5)
    cut_by_hand, _ = embedded(long, max_length=41, instruction_max_length=5)
    whole, other = embedded(long, instruction_max_length=6)
    assert not np.allclose(cut, cut_by_hand) and not np.allclose(cut, whole)
    assert not np.allclose(of_instructions, other)


def test_content_weights_by_hand(tokenizer):
    table = content_weights(tokenizer)
    assert len(table) == len(tokenizer)

    def weight(text: str) -> list[float]:
        return [table[token] for token in tokenizer(text, add_special_tokens=False)["input_ids"]]

    assert weight("7") == weight("%") == [float(np.float16(1.3))]
    assert weight(" ") == weight("-") == weight("_") == weight("\\") == [0.0]
    assert weight("Z") == weight("#") == [1.0]
    assert weight("说") == [1.0] * 3  # three tokens, each a part of the character


def test_a_text_of_punctuation_keeps_its_plain_weights():
    table = [0.0, 1.0, 1.3]
    row = Row([1], [[0, 2, 1], [2, 0, 0], [0]], [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0]])
    assert weigh(row, table).weights == [[0.0, 1.3, 1.0], [0.0, 1.0, 1.0], [1.0]]
    assert weigh(row, None) == row


def test_the_instruction_alone_is_the_releases_way_only(config_file):
    from adg.config import load_config

    with pytest.raises(InputError, match="embedding.empty_answers is 'instruction'"):
        load_config(config_file(), ["embedding.empty_answers=instruction"])
