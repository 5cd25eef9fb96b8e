"""Vectors from sampling itself: those of a forward pass, whatever happens to the run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, command, tree

from adg import geometry
from adg.answer_vectors import CHECK_FOLDER
from adg.base import artifacts
from adg.base.errors import InputError
from adg.config import load_config
from adg.models.loading import LocalModel
from adg.records import Answer, Pool
from embedding import cluster, embed
from embedding.forward import Embedder, load_embedder
from embedding.sequences import load_encoder
from generation import prepare_pool, sample_answers
from generation.samplers import check_states
from generation.transformers_sampler import AnswerMeans

SETTINGS = {"generation": {"min_new_tokens": 0, "max_new_tokens": 12, "temperature": 2.0,
                           "keep_token_ids": True},
            "embedding": {"source": "sampling", "keep_answer_embeddings": True,
                          "windows": {"early": [0, 1], "last": [-1]}, "check_answers": 8}}
FOLDERS = ("answer_embeddings", "answer_grams", "window_grams/early", "window_grams/last")


@pytest.fixture(scope="module")
def ending_model(tiny_model, tmp_path_factory) -> Path:
    """The tiny model with every eighth token an end: answers are short, and some are empty."""
    folder = tmp_path_factory.mktemp("ending") / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").write_text(json.dumps(
        {"bos_token_id": 0, "eos_token_id": [1, *range(8, 300, 8)], "pad_token_id": 1}))
    return folder


@pytest.fixture
def sampled(config_file, stage, ending_model, tmp_path):
    """(configuration file, run folder) sampled with its vectors by transformers."""
    path = config_file(model={"name_or_path": str(ending_model)}, **SETTINGS)
    stage(prepare_pool, path)
    stage(sample_answers, path)
    return path, tmp_path / "run"


def load(folder: Path, name: str) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted((folder / name).glob("*.npy"))])


def gap(a: np.ndarray, b: np.ndarray) -> float:
    assert (np.isnan(a) == np.isnan(b)).all()
    return np.nanmax(np.linalg.norm(a - b, axis=-1))


def log_of(folder: Path, stage: str) -> dict:
    return [line for line in artifacts.JsonlRows(folder / "log.jsonl")
            if line["stage"] == stage][-1]


def count_texts(monkeypatch) -> list[int]:
    """How many texts each later forward pass of a chunk is asked for."""
    asked, plain = [], Embedder.embed
    monkeypatch.setattr(Embedder, "embed", lambda self, rows: asked.append(
        sum(len(row.texts) for row in rows)) or plain(self, rows))
    return asked


def test_they_are_those_of_a_forward_pass(sampled, stage, tmp_path, monkeypatch):
    path, run = sampled
    rows = list(artifacts.JsonlRows(run / "answers"))
    ids = [own for row in rows for own in row["token_ids"]]
    assert [len(own) for own in ids] == [number for row in rows for number in row["num_tokens"]]
    reasons = [reason for row in rows for reason in row["finish_reasons"]]
    assert set(reasons) == {"stop", "length"} and [] in ids
    other = tmp_path / "forward"
    shutil.copytree(run / "answers", other / "answers")
    shutil.copy(run / "pool.jsonl", other)
    stage(embed, path, f"output_dir={other}", "embedding.source=forward")
    asked = count_texts(monkeypatch)
    stage(embed, path)
    assert asked == [9, 4, 4, 2]  # the check's three records, then instructions alone
    for name in FOLDERS:
        assert gap(load(run, name), load(other, name)) < 1e-5
    for measure in (geometry.dispersion, geometry.anisotropy):
        own, forward = (measure(load(folder, "answer_grams")) for folder in (run, other))
        assert np.nanmax(np.abs(own - forward)) < 1e-5
    assert gap(load(run, "instruction_embeddings"), load(other, "instruction_embeddings")) < 1e-5
    log = log_of(run, "embed")
    assert log["vector_sources"] == {"sampling": "0-2"}
    assert log["check"]["checked_answers"] == sum(map(bool, ids[:9]))
    assert log["check"]["largest_deviation"] < 1e-5
    assert log_of(other, "embed")["vector_sources"] == {}


def test_answers_are_those_of_a_run_without_vectors(sampled, stage, tmp_path):
    path, run = sampled
    other = [path, f"output_dir={tmp_path / 'forward'}", "embedding.source=forward"]
    stage(prepare_pool, *other)
    stage(sample_answers, *other)
    assert tree(tmp_path / "forward/answers") == tree(run / "answers")
    assert not (tmp_path / "forward/answer_grams").exists()


def test_a_killed_run_goes_on_with_other_ranks(sampled, stage):
    path, run = sampled
    before = {name: tree(run / name) for name in ("answers", "check_answers")}
    vectors = {name: load(run, name) for name in FOLDERS}
    (run / "answers/00001.jsonl").unlink()  # as if killed after the vectors, before the answers
    (run / "answers/00002.jsonl").unlink()
    (run / "answer_grams/00002.npy").unlink()  # and between two files of vectors
    stage(sample_answers, path, world=3)
    assert {name: tree(run / name) for name in before} == before
    assert all(gap(load(run, name), own) < 1e-5 for name, own in vectors.items())
    stage(embed, path, world=2)
    assert log_of(run, "embed")["vector_sources"] == {"sampling": "0-2"}


def test_what_sampling_did_not_make_is_made_by_the_forward_pass(sampled, stage, monkeypatch,
                                                               capsys):
    path, run = sampled
    known = load(run, "answer_grams")
    (run / "answer_grams/00001.npy").unlink()
    asked = count_texts(monkeypatch)
    stage(embed, path)
    assert asked == [9, 4, 4 + 12, 2]
    assert gap(load(run, "answer_grams"), known) < 1e-5
    assert log_of(run, "embed")["vector_sources"] == {"sampling": "0, 2", "forward": "1"}
    assert log_of(run, "embed")["vectors_by_forward"] == 4
    capsys.readouterr()
    stage(embed, path)
    assert "done before" in capsys.readouterr().out


def test_appended_records_add_their_own(sampled, stage, tmp_path, monkeypatch):
    path, run = sampled
    stage(embed, path)
    grams, vectors = load(run, "answer_grams"), load(run, "instruction_embeddings")
    pool = [json.loads(line) for line in (run / "pool.jsonl").open()]
    more = [{"instruction": f"Say {n}.", "output": "x", "id": f"more{n}"} for n in range(4)]
    artifacts.write_jsonl(tmp_path / "longer.jsonl", [*pool, *more])
    longer = [path, f"pool.path={tmp_path / 'longer.jsonl'}"]
    stage(prepare_pool, *longer)
    stage(sample_answers, *longer)
    asked = count_texts(monkeypatch)
    stage(embed, *longer)
    assert asked == [9, 2, 2]
    assert log_of(run, "embed")["vector_sources"] == {"sampling": "0-3"}
    assert np.array_equal(load(run, "answer_grams")[:10], grams, equal_nan=True)
    assert np.array_equal(load(run, "instruction_embeddings")[:10], vectors)
    anew = [*longer, f"output_dir={tmp_path / 'anew'}", "embedding.source=forward"]
    for module in (prepare_pool, sample_answers, embed):
        stage(module, *anew)
    assert gap(load(run, "answer_grams"), load(tmp_path / "anew", "answer_grams")) < 1e-5


def test_selection_takes_the_window_it_is_asked_for(sampled, stage):
    from adg import score_and_select

    path, run = sampled
    stage(embed, path)
    stage(cluster, path)
    scores = {}
    for window, grams in ((None, "answer_grams"), ("early", "window_grams/early")):
        stage(score_and_select, path, f"selection.name={window}",
              f"selection.window={window or 'null'}")
        scores[window] = [row["dispersion"] for row in
                          artifacts.JsonlRows(run / f"subsets/{window}/scores.jsonl")]
        expected = geometry.dispersion(load(run, grams))
        assert np.array(scores[window], dtype=float) == pytest.approx(expected, nan_ok=True)
    assert scores[None] != scores["early"]
    with pytest.raises(InputError, match="selection.window is 'late'; it must be null or a name"):
        stage(score_and_select, path, "selection.window=late")


def test_a_deviation_stops_the_run_and_forward_goes_on(sampled, stage, capsys):
    path, run = sampled
    file = run / "check_answers/00000.jsonl"
    rows = [json.loads(line) for line in file.open()]
    assert [row["id"] for row in rows] == ["r0", "r1", "r2"]
    answer = next(own for row in rows for own in row["vectors"] if own)
    answer[0] = answer[0][::-1]
    artifacts.write_jsonl(file, rows)
    with pytest.raises(InputError, match="vectors deviate .* embedding.source=forward --overwrite"):
        stage(embed, path)
    assert not (run / "instruction_embeddings").exists()
    result = command("embedding.check", run)
    assert result.returncode == 2 and "not to be trusted" in result.stderr
    before = load(run, "answer_grams")
    with pytest.raises(InputError, match="source was 'sampling' and is 'forward'"):
        stage(embed, path, "embedding.source=forward")
    stage(embed, path, "embedding.source=forward", "--overwrite")
    assert gap(load(run, "answer_grams"), before) < 1e-5
    assert log_of(run, "embed")["vector_sources"] == {}


def test_overwritten_answers_take_their_vectors_along(sampled, stage):
    path, run = sampled
    stage(embed, path)
    stage(sample_answers, path, "seed=1", "--overwrite")
    assert not (run / "instruction_embeddings").exists()
    stage(embed, path, "seed=1")
    assert log_of(run, "embed")["vector_sources"] == {"sampling": "0-2"}


def test_vectors_of_another_making_are_not_added_to(sampled, stage):
    path, run = sampled
    (run / "answers/00002.jsonl").unlink()
    before = tree(run)
    with pytest.raises(InputError, match="embedding.layers was .* and is .*another output_dir"):
        stage(sample_answers, path, "embedding.layers=[-1]")
    assert tree(run) == before


def test_a_state_too_few_writes_nothing(config_file, stage, ending_model, tmp_path, monkeypatch):
    plain, calls = AnswerMeans._on_tokens, []

    def forgetful(self, module, inputs, options):
        calls.append(plain(self, module, inputs, options))
        if len(calls) == 3:
            self._counts -= self._fed

    monkeypatch.setattr(AnswerMeans, "_on_tokens", forgetful)
    path = config_file(model={"name_or_path": str(ending_model)}, **SETTINGS)
    stage(prepare_pool, path)
    with pytest.raises(InputError, match=r"gave \d+ hidden states for an answer of \d+ tokens"):
        stage(sample_answers, path)
    for name in ("answers", "answer_grams", "check_answers"):
        assert not list((tmp_path / "run" / name).glob("*"))
    means = np.array([[1.0, 2.0], [np.nan, np.nan]])
    check_states([3, 0], [3, 0], means)
    with pytest.raises(InputError, match="model.dtype: .* NaN or infinite"):
        check_states([3, 2], [3, 2], means)


@pytest.mark.parametrize(("override", "message"), [
    ("embedding.recipe=released", "must be paper with embedding.source sampling, which sees"),
    ("embedding.token_weights=content", "must be uniform with embedding.source sampling"),
    ("embedding.max_length=511", "at least generation.max_model_len"),
    ("embedding.windows.early=[9]", "embedding.windows.early: no layer 9"),
    ("generation.max_model_len=2048", "takes 2048 tokens, and embedding.source=sampling draws one"),
])
def test_what_sampling_cannot_give_is_refused(config_file, stage, tmp_path, override, message):
    path = config_file(embedding={"source": "sampling"})
    stage(prepare_pool, path)
    overrides = [override] + ["embedding.max_length=4096"] * ("model_len" in override)
    with pytest.raises(InputError, match=message):
        stage(sample_answers, path, *overrides)
    assert not (tmp_path / "run/answers").exists()


def test_kept_ids_are_read_instead_of_the_text(sampled, stage, tmp_path):
    path, run = sampled
    rows = list(artifacts.JsonlRows(run / "answers"))
    for row in rows:
        row["generated_answers"] = ["something else"] * 3
    other = tmp_path / "texts"
    artifacts.write_jsonl(other / "answers/all.jsonl", rows)
    shutil.copy(run / "pool.jsonl", other)
    settings = [path, f"output_dir={other}", "embedding.source=forward"]
    stage(embed, *settings)
    assert gap(load(other, "answer_grams"), load(run, "answer_grams")) < 1e-5
    rows[4]["token_ids"][1] = [3, 99999]
    artifacts.write_jsonl(other / "answers/all.jsonl", rows)
    with pytest.raises(InputError, match="token_ids holds 99999, but the model has"):
        stage(embed, *settings, "--overwrite")
    rows[4]["token_ids"][1] = [3, "x"]
    artifacts.write_jsonl(other / "answers/all.jsonl", rows)
    with pytest.raises(InputError, match="all.jsonl:5: token_ids is not a list of token ids"):
        stage(embed, *settings, "--overwrite")


def test_vllm_gives_them_under_stress(config_file, stage, ending_model, tmp_path):
    """Few cache blocks, split prompts, no prefix caching, five requests for one, a step ahead."""
    path = config_file(model={"name_or_path": str(ending_model)}, **SETTINGS | {
        "generation": SETTINGS["generation"] | {"sampler": "vllm", "num_answers": 5,
                                                "max_model_len": 200, "top_k": None}})
    stage(prepare_pool, path)
    variants = ["plain", "no_prefix_caching", "preempted", "split", "one_by_one", "asynchronous"]
    done = subprocess.run(
        [sys.executable, "tests/generation/draw_by_vllm.py", path, tmp_path, *variants], cwd=ROOT,
        check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in variants}
    assert found["preempted"]["refed"] > 0 and found["split"]["split"] > 0
    answers = [[{key: answer[key] for key in ("text", "reason", "token_ids")} for answer in own]
               for own in found["plain"]["answers"]]
    reasons = [answer["reason"] for own in answers for answer in own]
    assert {"stop", "length"} == set(reasons)
    assert [] in [answer["token_ids"] for own in answers for answer in own]
    config = load_config(path, [])
    encoder = load_encoder(LocalModel(ending_model), config)
    rows, _ = encoder.answers(list(Pool(tmp_path / "run")), [
        [Answer("", answer["token_ids"]) for answer in own] for own in answers])
    forward = load_embedder(LocalModel(ending_model), config).embed(rows)           # [N K, W, H]
    for name, own in found.items():
        flat = [answer for row in own["answers"] for answer in row]
        assert [{key: answer[key] for key in answers[0][0]} for answer in flat] == [
            answer for row in answers for answer in row], name
        vectors = np.array([answer["vectors"] for answer in flat])
        units = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        assert gap(units, forward) < 1e-5, name


def test_check_needs_what_sampling_left(sampled, tmp_path):
    path, run = sampled
    result = command("embedding.check", run)
    assert result.returncode == 0 and re.search(r"\d answers by both sources", result.stdout)
    shutil.rmtree(run / CHECK_FOLDER)
    result = command("embedding.check", run)
    assert result.returncode == 2 and "check_answers/ not found" in result.stderr
