import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECORDS, tree
from transformers import AutoModelForCausalLM

from adg import artifacts
from adg.errors import InputError
from adg.geometry import centred_grams
from adg.models import load_tokenizer
from adg.prompts import prompt_ids
from embedding import embed
from embedding.pooling import Sequence, embed_sequences, hidden_state_indices, plan_batches
from generation import prepare_pool

ANSWERS = [[f"Answer {k} to {i}, é{'!' * k}" for k in range(3)] for i in range(len(RECORDS))]


@pytest.fixture
def answered(config_file, stage, tmp_path: Path) -> Path:
    """A run folder with a pool and answers made elsewhere, in two files of unlike size."""
    stage(prepare_pool, config_file())
    write(tmp_path / "run", ANSWERS)
    return tmp_path / "run"


def write(folder: Path, answers: list[list[str]], records: list[dict] = RECORDS) -> None:
    rows = [{"id": record["id"], "instruction": record["instruction"], "generated_answers": texts}
            for record, texts in zip(records, answers, strict=True)]
    artifacts.write_jsonl(folder / "answers/a.jsonl", rows[:7])
    artifacts.write_jsonl(folder / "answers/b.jsonl", rows[7:])


def load(folder: Path, name: str) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted((folder / name).glob("*.npy"))])


def by_hand(model, ids: list[int], pooled: slice) -> np.ndarray:
    """The vector of one text, alone, from the full model and the paper's words."""
    with torch.inference_mode():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-4:]
    mean = torch.stack(states).mean(0)[0, pooled].mean(0).double().numpy()
    return mean / np.linalg.norm(mean)


def test_vectors_are_the_papers(config_file, stage, answered, tiny_model):
    stage(embed, config_file(embedding={"keep_answer_embeddings": True, "tokens_per_batch": 300}))
    instructions, answers = (load(answered, f"{name}_embeddings")
                             for name in ("instruction", "answer"))
    grams = load(answered, "answer_grams")
    assert (instructions.shape == (10, 64) and answers.shape == (10, 3, 64)
            and grams.shape == (10, 3, 3))
    assert {array.dtype for array in (instructions, answers, grams)} == {np.dtype(np.float32)}
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(tiny_model, trust_remote_code=False)
    for i, record in enumerate(RECORDS):
        text = record["instruction"] + ("\n" + record["input"] if record["input"] else "")
        ids = tokenizer(text)["input_ids"]
        assert instructions[i] @ by_hand(model, ids, slice(1, None)) == pytest.approx(1, abs=1e-6)
        prompt = prompt_ids(record, "alpaca", tokenizer)
        for k, answer in enumerate(ANSWERS[i]):
            own = tokenizer(answer, add_special_tokens=False)["input_ids"]
            expected = by_hand(model, prompt + own, slice(len(prompt), None))
            assert answers[i, k] @ expected == pytest.approx(1, abs=1e-6)
    assert np.allclose(grams, centred_grams(answers), atol=1e-7)


def test_one_rank_and_three_and_a_restart_give_the_same_bytes(config_file, stage, answered):
    stage(embed, config_file())
    alone = [tree(answered / name) for name in ("instruction_embeddings", "answer_grams")]
    assert [len(files) for files in alone] == [3, 3]
    (answered / "answer_grams/00002.npy").unlink()
    for rank in range(3):
        stage(embed, config_file(), rank=rank, world=3)
    assert [tree(answered / name) for name in ("instruction_embeddings", "answer_grams")] == alone
    assert not (answered / "answer_embeddings").exists()


def test_an_empty_answer_is_missing_and_not_zero(config_file, stage, answered):
    texts = [list(own) for own in ANSWERS]
    texts[4][1], texts[5] = "", ["", "", "x"]
    write(answered, texts)
    stage(embed, config_file())
    grams = load(answered, "answer_grams")
    assert np.isnan(grams[4]).tolist() == [[False, True, False], [True] * 3, [False, True, False]]
    assert np.isnan(grams[5]).sum() == 8
    assert np.isfinite(np.delete(grams, (4, 5), axis=0)).all()
    assert np.isfinite(load(answered, "instruction_embeddings")).all()


@pytest.mark.parametrize(("change", "message"), [
    (lambda records, texts: records.reverse(), r"a.jsonl:1: id is 'r9', but 'r0'"),
    (lambda records, texts: records[8].update(instruction="Other"),
     r"b.jsonl:2: instruction is 'Other'"),
    (lambda records, texts: texts[2].pop(),
     r"a.jsonl:3: 2 answers, but generation.num_answers is 3"),
    (lambda records, texts: texts[2].append(None), r"a.jsonl:3: generated_answers is not a list"),
    (lambda records, texts: (records.pop(), texts.pop()), "holds 9 rows, but pool.jsonl has 10"),
])
def test_answers_of_another_pool_are_named(config_file, stage, answered, change, message):
    records, texts = [dict(record) for record in RECORDS], [list(own) for own in ANSWERS]
    change(records, texts)
    write(answered, texts, records)
    with pytest.raises(InputError, match=message):
        stage(embed, config_file())
    assert not (answered / "answer_grams").exists()


def test_a_long_answer_loses_its_end(config_file, stage, answered, tmp_path):
    stage(embed, config_file(embedding={"max_length": 400, "keep_answer_embeddings": True}))
    plain = load(answered, "answer_embeddings")
    texts = [list(own) for own in ANSWERS]
    texts[0][0] += " and on" * 2000
    write(answered, texts)
    stage(embed, config_file(embedding={"max_length": 400, "keep_answer_embeddings": True}),
          "--overwrite")
    cut = load(answered, "answer_embeddings")
    assert np.isfinite(cut).all()
    assert not np.allclose(cut[0, 0], plain[0, 0], atol=1e-3)
    assert np.allclose(cut[1:], plain[1:], atol=1e-5)


def test_layers_are_counted_from_both_ends():
    assert hidden_state_indices([-4, -3, -2, -1], 32) == [29, 30, 31, 32]
    assert hidden_state_indices([0, 28, 31], 32) == [1, 29, 32]
    with pytest.raises(InputError, match="no layer 32"):
        hidden_state_indices([32], 32)


def test_batches_keep_to_the_budget_and_hold_every_text_once():
    lengths = [5, 100, 7, 7, 30, 1]
    batches = plan_batches(lengths, 60)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    for batch in batches:
        assert len(batch) * max(lengths[i] for i in batch) <= 60 or len(batch) == 1


def test_a_text_alone_and_in_any_batch_has_the_same_vector(tiny_model):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_model, dtype=torch.float32).eval()
    rng = np.random.default_rng(0)
    sequences = [Sequence(rng.integers(4, 300, n).tolist(), [0.0] + [1.0] * (n - 1))
                 for n in (40, 3, 17, 90, 2)]
    alone = embed_sequences(model, sequences, [-4, -3, -2, -1], tokens_per_batch=1)
    together = embed_sequences(model, sequences, [-4, -3, -2, -1], tokens_per_batch=10**6)
    assert np.abs(1 - (alone * together).sum(1)).max() < 1e-6


def test_the_recorded_line_counts_what_was_done(config_file, stage, answered):
    stage(embed, config_file())
    line = json.loads((answered / "log.jsonl").read_text().splitlines()[-1])
    assert (line["stage"], line["records"]) == ("embed", 10)
    assert {"pool.jsonl", "answers/", "model"} <= set(line["inputs"])
    assert line["versions"]["torch"] == torch.__version__
