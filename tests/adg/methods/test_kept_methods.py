"""What ifd, pre_experience, superfiltering and superfiltering_d choose of what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import RECORDS
from sklearn.exceptions import ConvergenceWarning

from adg import score_and_select
from adg.base import arrays, artifacts
from adg.base.errors import InputError
from adg.methods.ifd import select_ifd
from adg.methods.pre_experience import sample_clusters
from adg.methods.superfiltering import facility_location, similarities
from generation import prepare_pool


@pytest.fixture
def choose(config_file, stage, tmp_path: Path, capsys):
    """Runs select on losses of the small pool: {subset: rows}, rows of scores.jsonl, its words."""

    def run(method: str, given: list, direct: list, *overrides: str, room: int = 9,
            tokens: tuple = (3,) * 10, vectors: np.ndarray | None = None):
        if not (tmp_path / "run/pool.jsonl").exists():
            stage(prepare_pool, config_file())
        folder = tmp_path / "run/measures" / method
        artifacts.write_jsonl(folder / "00000.jsonl", (
            {"id": own["id"], "given_loss": g, "direct_loss": d, "room": room,
             "given_tokens": t, "direct_tokens": t}
            for own, g, d, t in zip(RECORDS, given, direct, tokens, strict=True)))
        if vectors is not None:
            arrays.write_array(folder / "00000.npy", vectors.astype(np.float32))
        capsys.readouterr()
        stage(score_and_select, config_file(), f"selection.method={method}", "--overwrite",
              *overrides)
        out = tmp_path / "run/subsets" / method
        subsets = {name: [int(own["id"][1:]) for own in json.loads(
            (out / f"{name}.json").read_text())] for name in ("top", "middle", "bottom")}
        return subsets, list(artifacts.JsonlRows(out / "scores.jsonl")), capsys.readouterr().out

    return run


def test_ifd_takes_the_highest_of_at_most_one_in_pool_order(choose, tmp_path):
    given = [1.0, 2.0, 0.5, 1.8, 3.0, 0.9, 1.9, 1.2, None, 0.1]
    direct = [2.0] * 8 + [None, 2.0]
    tokens = (3,) * 8 + (0, 3)
    subsets, rows, said = choose("ifd", given, direct, tokens=tokens)
    assert subsets["top"] == [1, 3, 6]  # 1.0, 0.9, 0.95: exactly 1 stays
    assert subsets["middle"] + subsets["bottom"] == [7, 0, 2, 9]
    assert [row["score"] for row in rows][:5] == [0.5, 1.0, 0.25, 0.9, None]
    assert rows[4]["ifd"] == 1.5 and rows[8]["ifd"] is None
    assert ("8 records kept, dropped: 1 without a token of the output, 1 of IFD above 1") in said
    log = json.loads(
        (tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert log["kept"] == 8 and sum(log["dropped"].values()) == 2
    card = (tmp_path / "run/subsets/ifd/README.md").read_text()
    assert "instruction-following difficulty" in card and str(tmp_path) not in card


def test_of_equal_ifd_the_later_ones_go_first(choose):
    subsets, _, _ = choose("ifd", [1.0] * 10, [2.0] * 10)
    assert subsets == {"top": [7, 8, 9], "middle": [6, 5, 4], "bottom": [2, 1, 0]}


def test_too_few_kept_names_the_budget_and_why(choose):
    with pytest.raises(InputError, match=r"selection.budget is 3, but 2 records are kept \(dropped"
                                         r": 8 of IFD above 1\): give 2 at most"):
        choose("ifd", [1.0] * 2 + [3.0] * 8, [2.0] * 10)


def test_the_release_drops_what_max_length_cut(choose):
    def kept(*overrides: str) -> str:
        return choose("ifd", [1.0] * 10, [2.0] * 10, *overrides, room=9,
                      tokens=(10, 9, *[3] * 8))[2]

    assert "dropped" in kept() and "10 records kept, dropped: none" in kept()
    assert "9 records kept, dropped: 1 cut by max_length" in kept("selection.ifd.recipe=released")


def test_a_prompt_that_fills_the_limit_is_dropped_first(choose):
    with pytest.raises(InputError, match="dropped: 10 whose prompt fills max_length"):
        choose("ifd", [1.0] * 10, [2.0] * 10, room=0, tokens=(0,) * 10)


def test_a_direct_loss_of_zero_is_dropped_and_said(choose):
    _, rows, said = choose("ifd", [1.0] * 8 + [0.0, 1.0], [2.0] * 8 + [0.0, 0.0])
    assert "dropped: 2 without an IFD" in said
    assert rows[8]["score"] is None and rows[9]["ifd"] is None


def test_nothing_is_taken_of_a_count_of_zero():
    assert select_ifd(np.array([0.5, 0.7]), np.array([True, True]), 0).top.tolist() == []


def test_superfiltering_is_by_score_ties_in_pool_order(choose):
    given = [1.0, 2.0, 0.5, 1.8, 3.0, 0.9, 1.8, 1.2, 1.0, None]
    subsets, rows, said = choose("superfiltering", given, [2.0] * 8 + [None, 2.0],
                                 "selection.budget=2")
    assert subsets["top"] == [3, 6] and subsets["bottom"] == [5, 2]  # 1 itself is dropped
    assert rows[3]["score"] == pytest.approx(np.exp(-0.2)) and rows[1]["score"] is None
    assert "6 records kept, dropped: 2 without a scored token, 2 of IFD 1 or more" in said
    subsets, _, _ = choose("superfiltering", given, [2.0] * 8 + [None, 2.0],
                           "selection.budget=1", "selection.superfiltering.threshold=0.5")
    assert subsets["top"] == [7]


def test_superfiltering_d_picks_among_the_candidates(choose):
    vectors = np.random.default_rng(0).normal(size=(10, 6))
    given = [2.0 - i / 10 for i in range(10)]
    subsets, _, _ = choose("superfiltering_d", given, [3.0] * 10, "selection.budget=2",
                           "selection.superfiltering.candidates=5", vectors=vectors)
    assert subsets["top"] == facility_location(vectors[:5].astype(np.float32), 2).tolist()
    assert not {*subsets["top"]} & {*subsets["middle"], *subsets["bottom"]}
    assert subsets["bottom"] == [8, 9]
    with pytest.raises(InputError, match="selection.superfiltering.candidates is 11, but the po"):
        choose("superfiltering_d", given, [3.0] * 10, "selection.superfiltering.candidates=11",
               vectors=vectors)
    with pytest.raises(InputError, match="selection.budget is 3, but superfiltering_d picks among "
                                         "2 candidates, a fifth of the pool: raise selection"):
        choose("superfiltering_d", given, [3.0] * 10, vectors=vectors)
    with pytest.raises(InputError, match="selection.superfiltering.candidates is 5, but 4 records a"
                                         "re kept .dropped: 6 of IFD 1 or more"):
        choose("superfiltering_d", given, [1.45] * 10, "selection.superfiltering.candidates=5",
               vectors=vectors)


@pytest.mark.parametrize("block", [3, 8192])
def test_candidates_in_another_order_than_the_pool_keep_their_vectors(choose, monkeypatch, block):
    monkeypatch.setattr("adg.methods.measures._BLOCK", block)
    vectors = np.random.default_rng(1).normal(size=(10, 6)).astype(np.float32)
    given = [0.1 * ((7 * i) % 10) for i in range(10)]
    ranking = np.argsort(-np.array(given))[:6]
    subsets, _, _ = choose("superfiltering_d", given, [3.0] * 10, "selection.budget=4",
                           "selection.superfiltering.candidates=6", vectors=vectors)
    assert subsets["top"] == ranking[facility_location(vectors[ranking], 4)].tolist()


def by_force(vectors: np.ndarray, count: int) -> list[int]:
    """Facility location from its definition; of gains within 1e-9, the greatest index."""
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)
    similarity, picked = np.exp(-distances / vectors.shape[1]), []
    for _ in range(count):
        covered = similarity[picked].max(0) if picked else np.zeros(len(vectors))
        gains = {j: np.maximum(similarity[j] - covered, 0).sum() for j in range(len(vectors))
                 if j not in picked}
        best = max(gains.values())
        picked.append(max(j for j, gain in gains.items() if gain >= best - abs(best) * 1e-9))
    return picked


@pytest.mark.parametrize("seed", range(4))
def test_facility_location_is_the_plain_greedy(seed: int):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(60, 5))
    vectors[40:50] = vectors[:10]  # gains that tie exactly
    assert facility_location(vectors, 60).tolist() == by_force(vectors, 60)


def test_similarities_of_near_vectors_are_exact(monkeypatch):
    rng = np.random.default_rng(5)
    vectors = np.repeat(rng.normal(size=(20, 4)), 3, axis=0)
    vectors[::3] += 1e-9 * rng.normal(size=(20, 4))
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)
    for rows in (512, 7):
        monkeypatch.setattr("adg.methods.superfiltering._ROWS", rows)
        assert np.allclose(similarities(vectors), np.exp(-distances / 4), rtol=0, atol=1e-13)
        assert (similarities(vectors) == similarities(vectors).T).all()


def test_clusters_give_their_middling_records():
    labels = np.array([1] * 12 + [0] * 3 + [2] * 4)
    perplexities = np.array([*range(12), 5, 1, 9, 1, 2, 3, 4], dtype=float)
    found = sample_clusters(labels, perplexities, 4, percentiles=(0, 100))
    assert found.tolist() == [12, 13, 14, 0, 3, 6, 9, 15, 16, 17, 18]
    found = sample_clusters(labels, perplexities, 4, percentiles=(25, 75))
    assert found.tolist() == [12, 13, 14, 3, 4, 5, 6, 16, 17]
    assert sample_clusters(labels, perplexities, 2, percentiles=(25, 75)).tolist() == [
        12, 3, 6, 16, 17]


def test_pre_experience_ignores_the_budget_and_tells_the_clusters(config_file, stage, tmp_path,
                                                                  capsys, recwarn):
    stage(prepare_pool, config_file())
    folder = tmp_path / "run/measures/pre_experience"
    artifacts.write_jsonl(folder / "00000.jsonl", (
        {"id": own["id"], "perplexity": float(i)} for i, own in enumerate(RECORDS)))
    arrays.write_array(folder / "00000.npy", np.array(
        [[10.0 * (i % 2), i / 100] for i in range(10)], np.float32))
    arguments = (config_file(), "selection.method=pre_experience", "selection.budget=99",
                 "selection.pre_experience.per_cluster=2")
    with pytest.raises(InputError, match="selection.pre_experience.clusters is 100, but the pool"):
        stage(score_and_select, *arguments)
    stage(score_and_select, *arguments, "selection.pre_experience.clusters=2")
    out = tmp_path / "run/subsets/pre_experience"
    rows = list(artifacts.JsonlRows(out / "scores.jsonl"))
    labels = [row["bin"] for row in rows]
    assert labels == [labels[0], labels[1]] * 5 and labels[0] != labels[1]
    assert rows[3]["perplexity"] == 3.0 and rows[3]["score"] is None
    top = [int(own["id"][1:]) for own in json.loads((out / "top.json").read_text())]
    expected = {0: [2, 4], 1: [3, 5]}
    assert top == expected[labels.index(0)] + expected[labels.index(1)]
    assert json.loads((out / "middle.json").read_text()) == []
    capsys.readouterr()
    arrays.write_array(folder / "00000.npy", np.ones((10, 2), np.float32))
    stage(score_and_select, *arguments, "selection.pre_experience.clusters=2")
    assert not [own for own in recwarn if own.category is ConvergenceWarning]
    said = capsys.readouterr().out
    assert "the instructions' vectors make 1 clusters, not 2" in said
    assert "there is neither middle nor bottom" in said
    assert "middle.json" not in (out / "README.md").read_text()
