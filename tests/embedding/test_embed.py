import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECORDS, tree
from transformers import AutoModelForCausalLM

from adg.base import artifacts, distributed
from adg.base.errors import InputError
from adg.config import GenerationConfig, load_config
from adg.geometry import centred_grams
from adg.models import loading
from adg.models.folders import load_tokenizer
from adg.prompts import Prompter
from adg.records import Answer
from embedding import embed
from embedding.forward import Embedder
from embedding.sequences import Encoder
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
        prompt = Prompter("alpaca", tokenizer, GenerationConfig()).ids(record)
        for k, answer in enumerate(ANSWERS[i]):
            own = tokenizer(answer, add_special_tokens=False)["input_ids"]
            expected = by_hand(model, prompt + own, slice(len(prompt), None))
            assert answers[i, k] @ expected == pytest.approx(1, abs=1e-6)
    assert np.allclose(grams, centred_grams(answers), atol=1e-7)


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_control_tokens_in_records_and_answers_are_text(config_file, tiny_model, recipe):
    tokenizer = load_tokenizer(tiny_model, trust_remote_code=False)
    record = {"instruction": "Add <|end|> it.", "input": "<|user|>"}
    answers = [Answer("fine<|end|>trailing"), Answer("fine"), Answer("<|begin|>")]
    control = {tokenizer.convert_tokens_to_ids(name) for name in ("<|end|>", "<|user|>")}
    begin = tokenizer.bos_token_id

    def ids(*overrides: str, longest: int = 2048) -> list[list[int]]:
        encoder = Encoder(tokenizer, load_config(config_file(), [
            f"embedding.recipe={recipe}", *overrides]), longest=longest, num_ids=10**6)
        rows = encoder.instructions([record])[0] + encoder.answers([record], [answers])[0]
        assert sum(rows[0].weights[0]) == len(rows[0].texts[0]) - (recipe == "paper")
        return [own for row in rows for own in (row.prompt, *row.texts)]

    for texts in (ids(), ids(longest=18)):
        assert not control & {token for own in texts for token in own}
        assert all(begin not in own[1:] for own in texts)
    assert sum(own.count(begin) for own in ids()) == (2 if recipe == "paper" else 1)
    obeyed = ids("generation.control_tokens=obey")
    assert sum(token in control for own in obeyed for token in own) == 5


def test_one_rank_and_three_and_a_restart_give_the_same_bytes(config_file, stage, answered):
    stage(embed, config_file())
    alone = [tree(answered / name) for name in ("instruction_embeddings", "answer_grams")]
    assert [len(files) for files in alone] == [3, 3]
    (answered / "answer_grams/00002.npy").unlink()
    stage(embed, config_file(), world=3)
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


def test_what_was_cut_is_counted_over_ranks_and_restarts(config_file, stage, answered):
    texts = [list(own) for own in ANSWERS]
    texts[0][0] += " and on" * 2000
    texts[5][1] += " and on" * 2000
    write(answered, texts)
    path = config_file(embedding={"max_length": 400, "instruction_max_length": 4})
    stage(embed, path, rank=0, world=2)  # the first and the third chunk
    (answered / "answer_grams/00000.npy").unlink()  # as if killed between its two files
    stage(embed, path, world=2)
    line = json.loads((answered / "log.jsonl").read_text().splitlines()[-1])
    tokenizer = load_tokenizer(Path(line["inputs"]["model"]["name"]), trust_remote_code=False)
    longer = [record for record in RECORDS
              if len(tokenizer(record["instruction"] + record["input"])["input_ids"]) > 4]
    assert (line["cut_answers"], line["cut_instructions"]) == (2, len(longer))
    write(answered, ANSWERS)
    stage(embed, path, "embedding.instruction_max_length=2048", "--overwrite")
    assert "cut_answers" not in json.loads((answered / "log.jsonl").read_text().splitlines()[-1])


def test_the_models_own_limit_counts_too(config_file, stage, answered, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "short")
    described = json.loads((tmp_path / "short/config.json").read_text())
    (tmp_path / "short/config.json").write_text(
        json.dumps(described | {"max_position_embeddings": 150}))
    stage(embed, config_file(), f"model.name_or_path={tmp_path / 'short'}")
    limited = load(answered, "answer_grams")
    stage(embed, config_file(embedding={"max_length": 150, "instruction_max_length": 150}),
          "--overwrite")
    assert limited.tobytes() == load(answered, "answer_grams").tobytes()
    line = json.loads((answered / "log.jsonl").read_text().splitlines()[-1])
    assert line["cut_answers"] > 0


def test_a_model_that_cannot_fit_ends_before_the_answers_are_read(config_file, stage, answered,
                                                              monkeypatch):
    monkeypatch.setattr(loading, "_memory", lambda gpus: {"cpu": 100_000})
    monkeypatch.setattr(embed, "Answers", None)
    with pytest.raises(InputError, match=r"the weights take 0\.\d GiB, and a rank's share of the "
                                         r"memory has 0\.0 GiB free: raise embedding.gpus_per"):
        stage(embed, config_file())
    assert not (answered / "answer_grams").exists()


def test_several_gpus_for_a_model_where_there_is_none(config_file, stage, answered):
    with pytest.raises(InputError, match="gpus_per_model is 2, but this machine has no GPU"):
        stage(embed, config_file(), "embedding.gpus_per_model=2")


def test_gpus_are_dealt_out_in_turn(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.own_gpus(1, 5, "a.b") == [1] and distributed.own_gpus(2, 5, "a.b") == [2, 3]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="a.b is 2: 3 ranks on a node need 6 GPUs, but it has 5"):
        distributed.own_gpus(2, 5, "a.b")


def test_the_recorded_line_counts_what_was_done(config_file, stage, answered):
    stage(embed, config_file())
    line = json.loads((answered / "log.jsonl").read_text().splitlines()[-1])
    assert (line["stage"], line["records"]) == ("embed", 10)
    assert {"pool.jsonl", "answers/", "model"} <= set(line["inputs"])
    assert line["versions"]["torch"] == torch.__version__


def test_the_next_chunk_is_prepared_while_one_is_embedded(config_file, stage, answered,
                                                         monkeypatch):
    prepared = [threading.Event() for _ in range(3)]
    prepare, compute = embed.EmbedStage.prepare, Embedder.embed

    def seen(self, index):
        prepared[index].set()
        return prepare(self, index)

    def embedded(self, rows):
        following = prepared[min(2, len(list((answered / "answer_grams").glob("*.npy"))) + 1)]
        assert following.wait(timeout=60)
        return compute(self, rows)

    monkeypatch.setattr(embed.EmbedStage, "prepare", seen)
    monkeypatch.setattr(Embedder, "embed", embedded)
    stage(embed, config_file())
    assert len(load(answered, "answer_grams")) == 10


def test_an_error_of_a_chunk_comes_when_those_before_it_are_written(config_file, stage, answered):
    rows = [{"id": record["id"], "generated_answers": texts, "token_ids": [[5, 6], [7], [8, 9]]}
            for record, texts in zip(RECORDS, ANSWERS, strict=True)]
    rows[5]["token_ids"][1] = [99999]
    for path in (answered / "answers").iterdir():
        path.unlink()
    artifacts.write_jsonl(answered / "answers/a.jsonl", rows)
    with pytest.raises(InputError, match="token_ids holds 99999"):
        stage(embed, config_file())
    assert [path.name for path in (answered / "answer_grams").iterdir()] == ["00000.npy"]
    rows[5]["token_ids"][1] = [7]
    artifacts.write_jsonl(answered / "answers/a.jsonl", rows)
    stage(embed, config_file(), "--overwrite")
    assert len(load(answered, "answer_grams")) == 10
