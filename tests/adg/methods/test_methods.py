"""What selection.method chooses, through the stage, and what it reports."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import RECORDS

from adg import score_and_select
from adg.base import arrays, artifacts
from adg.base.errors import InputError
from adg.config import load_config
from adg.geometry import SCORES, anisotropy, centred_grams, dispersion, divergence_score
from adg.methods import divergence
from adg.pipeline.command import Command
from adg.pipeline.record import read_records
from adg.pipeline.stages import needed_stages
from adg.selection import select_paper
from adg.tools import summary
from adg.tools.compare_runs import compare, read_selection
from adg.tools.verify import read_evidence, verify
from generation import prepare_pool, sample_answers


@pytest.fixture
def select(config_file, stage, tmp_path: Path):
    """Runs prepare and select on the small pool; returns the ids of top, middle, bottom, scores."""

    def run(*overrides: str) -> tuple[list[list[str]], list[dict]]:
        stage(prepare_pool, config_file())
        stage(score_and_select, config_file(), *overrides)
        folder = next((tmp_path / "run/subsets").glob("*"))
        subsets = [[record["id"] for record in json.loads((folder / f"{name}.json").read_text())]
                   for name in ("top", "middle", "bottom")]
        return subsets, list(artifacts.JsonlRows(folder / "scores.jsonl"))

    return run


def test_random_is_a_seeded_draw(select, tmp_path):
    (top, middle, bottom), scores = select("selection.method=random", "seed=7")
    expected = random.Random(7).sample(range(10), 3)
    assert top == [RECORDS[i]["id"] for i in expected]
    assert len({*top, *middle, *bottom}) == 9
    assert [row["id"] for row in scores] == [record["id"] for record in RECORDS]
    assert all(row[name] is None for row in scores
               for name in ("bin", "num_answers", "dispersion", "anisotropy", "score"))


def test_longest_takes_the_longest_outputs(config_file, stage, tmp_path):
    lengths = [3, 9, 1, 9, 5, 2, 8, 4, 7, 6]
    pool = [record | {"output": "x" * length} for record, length in zip(RECORDS, lengths,
                                                                        strict=True)]
    artifacts.write_jsonl(tmp_path / "pool.jsonl", pool)
    stage(prepare_pool, config_file())
    stage(score_and_select, config_file(), "selection.method=longest")
    folder = tmp_path / "run/subsets/longest"
    found = {name: [len(record["output"]) for record in json.loads(
        (folder / f"{name}.json").read_text())] for name in ("top", "middle", "bottom")}
    assert found == {"top": [9, 9, 8], "middle": [7, 6, 5], "bottom": [3, 2, 1]}
    assert json.loads((folder / "top.json").read_text())[0]["id"] == "r1"  # ties: pool order


def test_all_is_the_whole_pool_whatever_the_budget(select):
    (top, middle, bottom), _ = select("selection.method=all", "selection.budget=500")
    assert top == [record["id"] for record in RECORDS] and middle == bottom == []


def test_methods_that_need_only_the_pool_need_no_answers(config_file):
    config = load_config(config_file(), ["selection.method=random"])
    assert needed_stages(config) == ["prepare", "select", "finetune", "evaluate", "tables"]
    config = load_config(config_file(), [])
    assert needed_stages(config) == ["prepare", "sample", "embed", "cluster", "select", "finetune",
                                     "evaluate", "tables"]


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_adg_scores_and_says_what_decides(config_file, stage, tmp_path, weight):
    rng = np.random.default_rng(3)
    grams = centred_grams(rng.normal(size=(10, 3, 8))).astype(np.float32)
    stage(prepare_pool, config_file())
    run = tmp_path / "run"
    for number, rows in enumerate(artifacts.chunk_bounds(10, 4)):
        arrays.write_array(run / f"answer_grams/{number:05d}.npy",
                              grams[rows.start: rows.stop])
    bins = np.arange(10, dtype=np.int32) % 2
    arrays.write_array(run / "bins.npy", bins)
    stage(score_and_select, config_file(), f"selection.anisotropy_weight={weight}")
    d, i = dispersion(grams), anisotropy(grams)
    score = (1 - weight) * d + weight * i
    rows = list(artifacts.JsonlRows(run / "subsets/adg/scores.jsonl"))
    assert np.allclose([row["score"] for row in rows], score, atol=1e-12)
    top = [record["id"] for record in json.loads((run / "subsets/adg/top.json").read_text())]
    assert top == [f"r{row}" for row in select_paper(score, bins, 3).top]
    line = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    chosen = set(select_paper(score, bins, 3).top)
    alone = {name: len(chosen & set(select_paper(values, bins, 3).top))
             for name, values in (("dispersion_alone", d), ("anisotropy_alone", i))}
    assert line["top_shared_with"] == alone
    assert line["variance_share"]["dispersion"] + line["variance_share"]["anisotropy"] \
        == pytest.approx(1)
    assert line["quantiles"]["anisotropy"]["0.5"] == pytest.approx(np.median(i))


def product(dispersion, anisotropy, weight):
    return np.asarray(dispersion) * np.asarray(anisotropy) ** weight


def test_another_score_is_another_value_of_one_key(config_file, stage, tmp_path, monkeypatch,
                                                   capsys):
    monkeypatch.setitem(SCORES, "product", product)
    grams = centred_grams(np.random.default_rng(3).normal(size=(10, 3, 8))).astype(np.float32)
    stage(prepare_pool, config_file())
    run = tmp_path / "run"
    arrays.write_array(run / "answer_grams/00000.npy", grams)
    arrays.write_array(run / "bins.npy", np.zeros(10, np.int32))

    def selected(score: str) -> list[float]:
        config = load_config(config_file(), [])
        config.selection.score = score
        score_and_select.select(Command(config, overwrite=False, dry_run=False, show_prompts=0))
        return [row["score"] for row in artifacts.JsonlRows(run / "subsets/adg/scores.jsonl")]

    first = selected("divergence")
    assert "selection.score" not in read_records(run)["select adg"]["parameters"]  # as before it
    assert selected("divergence") == first and "done before" in capsys.readouterr().out
    assert "score s = 0.6 D + 0.4 I, and" in (run / "subsets/adg/README.md").read_text()
    assert np.allclose(selected("product"), product(dispersion(grams), anisotropy(grams), 0.4))
    assert ("stale, because selection.score was 'divergence' and is 'product'"
            in capsys.readouterr().out)
    assert read_records(run)["select adg"]["parameters"]["selection.score"] == "product"
    assert "score s = product(D, I; 0.4), and" in (run / "subsets/adg/README.md").read_text()
    config = load_config(config_file(), [])
    config.selection.score = "product"
    shown = "\n".join(summary.summarise(run, config))
    assert "score = product(dispersion, anisotropy; 0.4)\ncorrelations" in shown
    assert selected("divergence") == first


def test_a_record_without_answers_is_listed_and_its_neighbours_keep_their_rows(
        config_file, stage, tmp_path, capsys):
    grams = centred_grams(np.random.default_rng(3).normal(size=(10, 3, 8)))
    grams[4] = np.nan
    stage(prepare_pool, config_file())
    run = tmp_path / "run"
    arrays.write_array(run / "answer_grams/00000.npy", grams.astype(np.float32))
    arrays.write_array(run / "bins.npy", np.zeros(10, np.int32))
    stage(score_and_select, config_file())
    assert "not scored: fewer than two answers have a vector: r4" in capsys.readouterr().out
    rows = list(artifacts.JsonlRows(run / "subsets/adg/scores.jsonl"))
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(10)]
    assert rows[4]["score"] is None and rows[4]["num_answers"] == 0
    assert rows[5]["dispersion"] == pytest.approx(dispersion(grams[5]), abs=1e-6)


def put_vectors(run: Path, vectors: np.ndarray) -> None:
    """Grams of answers' vectors [10, K, H] made elsewhere, and one bin for all."""
    arrays.write_array(run / "answer_grams/00000.npy", centred_grams(vectors).astype(np.float32))
    arrays.write_array(run / "bins.npy", np.zeros(10, np.int32))


_CLOUDS = np.random.default_rng(3).normal(size=(10, 3, 8))


@pytest.mark.parametrize(("vectors", "weight", "why"), [
    (_CLOUDS[:, :2], 1, "the anisotropy of two answers is 0 by construction, .*weight=1 leaves"),
    (_CLOUDS[:, [0, 1, 1]], 1, "the anisotropy is the same everywhere"),
    (np.repeat(_CLOUDS[:, :1], 3, axis=1), 0.4, "the answers to each record all have the same"),
    (np.repeat(_CLOUDS[:1], 10, axis=0), 0.4, "make the vectors again"),
])
def test_scores_that_are_all_equal_select_nothing(config_file, stage, tmp_path, vectors, weight,
                                                  why):
    stage(prepare_pool, config_file())
    put_vectors(tmp_path / "run", vectors)
    with pytest.raises(InputError, match=f"answer_grams/: the scores of all 10 .* equal .*{why}"):
        stage(score_and_select, config_file(), f"selection.anisotropy_weight={weight}")
    assert not (tmp_path / "run/subsets").exists()


def test_two_answers_have_no_anisotropy_and_sample_and_select_say_so(config_file, stage, tmp_path,
                                                                     capsys):
    stage(prepare_pool, config_file())
    put_vectors(tmp_path / "run", _CLOUDS)
    note = "note: the anisotropy of two answers is 0 by construction"
    stage(score_and_select, config_file())
    stage(score_and_select, config_file(), "selection.num_answers=2",
          "selection.anisotropy_weight=0")
    assert note not in capsys.readouterr().out
    stage(score_and_select, config_file(), "selection.num_answers=2")
    assert f"[select] {note} (they lie on a line): dispersion alone" in capsys.readouterr().out
    stage(sample_answers, config_file(), "generation.num_answers=2",
          "selection.anisotropy_weight=1")
    assert f"[sample] {note} (they lie on a line): with selection.ani" in capsys.readouterr().out


def test_other_scores_that_are_all_equal_are_noted(select, capsys):
    select("selection.method=longest")  # of ten outputs as long as each other
    assert "[select] note: all scores are equal" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["adg", "all"])
def test_the_folder_of_subsets_is_a_data_set_for_others(config_file, stage, tmp_path, method):
    import datasets

    stage(prepare_pool, config_file())
    run = tmp_path / "run"
    grams = centred_grams(np.random.default_rng(3).normal(size=(10, 3, 8)))
    arrays.write_array(run / "answer_grams/00000.npy", grams.astype(np.float32))
    arrays.write_array(run / "bins.npy", np.zeros(10, np.int32))
    stage(score_and_select, config_file(), f"selection.method={method}")
    folder = run / "subsets" / method
    names = ["top"] if method == "all" else ["top", "middle", "bottom"]
    info = json.loads((folder / "dataset_info.json").read_text())
    assert list(info) == [f"{method}-{name}" for name in names]
    assert datasets.get_dataset_config_names(str(folder)) == names
    for name in names:
        rows = json.loads((folder / info[f"{method}-{name}"]["file_name"]).read_text())
        loaded = datasets.load_dataset(str(folder), name, split="train",
                                       cache_dir=str(tmp_path / "cache"))
        assert [row["id"] for row in loaded] == [row["id"] for row in rows]
    assert datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"][
        "id"] == [row["id"] for row in json.loads((folder / "top.json").read_text())]
    for name in names:
        rows = json.loads((folder / info[f"{method}-{name}"]["file_name"]).read_text())
        columns = info[f"{method}-{name}"]["columns"]
        assert {columns[role] for role in ("prompt", "query", "response")} <= set(rows[0])
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and str(tmp_path) not in card
    assert f"# {method}: {10 if method == 'all' else 3} of 10 records of pool.jsonl\n" in card
    assert "pool.limit" not in card
    assert ("anisotropy I" in card and "| score | " in card) == (method == "adg")


@pytest.mark.parametrize("method", ["adg", "random"])
def test_the_pools_own_fields_survive_under_their_names(config_file, stage, tmp_path, method):
    mine = {"score": 99, "dispersion": "low", "bin": [7], "generated_answers": ["mine"],
            "adg_bin": "b", "num_answers": 5, "rank": 1}
    pool = [record | (mine if number == 9 else {}) for number, record in enumerate(RECORDS)]
    artifacts.write_jsonl(tmp_path / "pool.jsonl", pool)
    stage(prepare_pool, config_file())
    run = tmp_path / "run"
    grams = centred_grams(np.random.default_rng(3).normal(size=(10, 3, 8)))
    arrays.write_array(run / "answer_grams/00000.npy", grams.astype(np.float32))
    arrays.write_array(run / "bins.npy", np.arange(10, dtype=np.int32) % 2)
    artifacts.write_jsonl(run / "answers/00000.jsonl", (
        record | {"generated_answers": ["a", "b", "c"]} for record in RECORDS))
    path = config_file(selection={"method": method})
    stage(score_and_select, path)
    folder = run / "subsets" / method
    scores = {row["id"]: row for row in artifacts.JsonlRows(folder / "scores.jsonl")}
    assert list(scores["r0"]) == ["id", "bin", "num_answers", "dispersion", "anisotropy", "score"]
    chosen = [row for name in ("top", "middle", "bottom")
              for row in json.loads((folder / f"{name}.json").read_text())]
    assert len(chosen) == 9
    for row in chosen:
        own = mine if row["id"] == "r9" else {}
        ours = {"adg_score": "score", "adg_dispersion": "dispersion", "anisotropy": "anisotropy",
                "adg_adg_bin": "bin"}
        assert {name: row[name] for name in own} == own
        assert {name: row[name] for name in ours} == {
            name: scores[row["id"]][field] for name, field in ours.items()}
        assert set(row) - set(RECORDS[0]) - set(ours) - set(own) == (
            {"adg_generated_answers"} if method == "adg" else set())
    card = (folder / "README.md").read_text()
    assert ("named `generated_answers`, `dispersion`, `score` and `bin`, which are as they were: "
            "those of the selection are `adg_generated_answers`, `adg_dispersion`, `adg_score` and "
            "`adg_adg_bin`.") in card
    config = load_config(path, [])
    shown = "\n".join(summary.summarise(run, config))
    if method == "adg":
        assert "top           " in shown and "Highest and lowest scores" in shown
    assert compare(*[read_selection(folder)] * 2)["shared"] == 3
    assert not list(verify(run, read_evidence(run)))


def test_the_card_says_that_a_limit_cut_the_pool(config_file, stage, tmp_path):
    for module in (prepare_pool, score_and_select):
        stage(module, config_file(pool={"limit": 4}), "selection.method=random")
    card = (tmp_path / "run/subsets/random/README.md").read_text()
    assert "# random: 3 of 4 records of pool.jsonl\n" in card
    assert "The pool is the first 4 usable records of pool.jsonl (`pool.limit`)" in card


def test_blocks_change_nothing(tmp_path, monkeypatch):
    grams = centred_grams(np.random.default_rng(1).normal(size=(50, 5, 8))).astype(np.float32)
    arrays.write_array(tmp_path / "g/0.npy", grams)
    whole = divergence.score_grams(tmp_path / "g", 50, divergence_score)
    monkeypatch.setattr(divergence, "_BLOCK", 7)
    for name, values in divergence.score_grams(tmp_path / "g", 50, divergence_score).items():
        assert (values == whole[name]).all()
