"""Method mig against its plain form: dense matrices, every gain computed at every pick."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import RECORDS
from test_reference import REFERENCE

from adg import score_and_select
from adg.base import artifacts
from adg.base.errors import InputError
from adg.config import load_config
from adg.methods.mig.annotations import Annotation
from adg.methods.mig.gain import (
    label_rows,
    pick_by_gain,
    propagation,
    slope_of_exponential,
    slope_of_power,
)
from adg.pipeline.__main__ import check_ahead
from adg.pipeline.stage_run import StageRun


def dense_propagation(vectors: np.ndarray, threshold: float, weight: float) -> np.ndarray:
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similar = units @ units.T
    similar[similar < threshold] = 0
    spread = np.diag(np.ones(len(units))) + weight * (similar - np.diag(np.diag(similar)))
    return spread / spread.sum(axis=0)


def dense_picks(values: np.ndarray, number: int, slope: Callable) -> list[int]:
    gathered, left, picked = np.zeros(values.shape[1]), list(range(len(values))), []
    for _ in range(number):
        gains = (values[left] * slope(gathered)).sum(axis=1)
        near = gains >= gains.max() * (1 - 1e-12)  # equal but for the order of sums
        row = left.pop(int(np.flatnonzero(near)[0]))
        picked.append(row)
        gathered = gathered + values[row]
    return picked


def made_up(number: int, labels: int, seed: int = 0) -> tuple[list[Annotation], np.ndarray]:
    """Annotations with tags of unlike frequency, and vectors of which some are near each other."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(labels // 4, 16))
    vectors = centres[np.arange(labels) % len(centres)] + 0.3 * rng.normal(size=(labels, 16))
    share = 1 / np.arange(1, labels + 1)
    draws = [rng.choice(labels, size=rng.integers(0, 5), p=share / share.sum())
             for _ in range(number)]
    return [Annotation([f"t{tag:03d}" for tag in tags], float(rng.uniform(1, 30)))
            for tags in draws], vectors


@pytest.mark.parametrize("slope", [slope_of_power(1e-6, 0.8), slope_of_power(1e-6, 0.5),
                                   slope_of_power(1.0, 1.0), slope_of_exponential(0.05)])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_picks_are_those_of_the_plain_form(slope: Callable, norm: bool, weight: float):
    annotations, vectors = made_up(200, 40)
    labels = [f"t{number:03d}" for number in range(40)]
    rows = np.zeros((200, 40))
    for row, own in enumerate(annotations):
        for tag in own.tags:
            rows[row, labels.index(tag)] = own.score / (len(own.tags) if norm else 1)
    sparse_rows = label_rows(annotations, labels, norm=norm)
    assert (sparse_rows.toarray() == rows).all()
    spread = propagation(vectors, threshold=0.8, weight=weight)
    expected = dense_propagation(vectors, 0.8, weight)
    assert np.allclose(spread.toarray(), expected, rtol=0, atol=1e-14)
    assert (spread.nnz > 40) == (weight > 0)  # some labels are alike, most are not
    assert spread.nnz < 800
    found, gains = pick_by_gain(sparse_rows @ spread, 200, slope)
    assert found.tolist() == dense_picks(rows @ expected, 200, slope)
    assert (np.diff(gains) <= 1e-9).all()


def test_blocks_of_the_similarity_change_nothing(monkeypatch):
    vectors = made_up(1, 50)[1]
    whole = propagation(vectors, threshold=0.8, weight=0.5).toarray()
    monkeypatch.setattr("adg.methods.mig.gain._ROWS", 7)
    assert np.allclose(propagation(vectors, threshold=0.8, weight=0.5).toarray(), whole,
                       rtol=0, atol=1e-15)


def test_a_label_is_like_itself_whatever_the_threshold():
    vectors = np.random.default_rng(0).normal(size=(30, 7))
    assert (propagation(vectors, threshold=1.0, weight=1.0).toarray() == np.eye(30)).all()


def test_of_equal_gains_the_first_record_is_picked_and_tagless_ones_come_last():
    tags = [["a"], [], ["b"], ["a"], ["b"], []]
    annotations = [Annotation(own, 2.0) for own in tags]
    values = label_rows(annotations, ["a", "b"], norm=False)
    rows, gains = pick_by_gain(values, 6, slope_of_power(1e-6, 0.8))
    assert rows.tolist() == [0, 2, 3, 4, 1, 5]
    assert gains[-1] == gains[-2] == 0 < gains[-3]


# Through the stage


TAGS = ["b", "a", "c"]
VECTORS = np.array([[1, 0, 0], [1, 0.2, 0], [0, 0, 2]], dtype=np.float32)


@pytest.fixture
def mig_run(tmp_path: Path, config_file, stage):
    """Runs select over a pool made elsewhere; returns ids of top, rows of scores.jsonl, the log."""
    vectors = tmp_path / "tags.npy"
    np.save(vectors, VECTORS)
    vectors.with_suffix(".json").write_text(json.dumps(TAGS))

    def run(records: list[dict], *overrides: str) -> tuple[list[str], list[dict], dict]:
        folder = tmp_path / "run"
        artifacts.write_jsonl(folder / "pool.jsonl", records)
        stage(score_and_select, config_file(), "selection.method=mig",
              f"selection.mig.tag_vectors={vectors}", *overrides)
        top = json.loads((folder / "subsets/mig/top.json").read_text())
        log = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
        return ([record["id"] for record in top],
                list(artifacts.JsonlRows(folder / "subsets/mig/scores.jsonl")), log)

    return run


def flat(tags: list[str] | None, quality: list[float], complexity: list[float]) -> dict:
    return {"tags": tags, "quality_scores": quality, "complexity_scores": complexity}


ANNOTATED = [flat(["a"], [3.0], [4.0]), flat(["c", "x"], [2.0, 4.0], [2.0, 3.0]),
             flat(["a", "b"], [2.0], [5.0]), flat(None, [6.0], [6.0]), flat([], [6.0], [6.0]),
             flat(["c"], [1.0], [2.0])]
SCORES = [12.0, 8.0, 10.0, None, 36.0, 2.0]


def nested(own: dict) -> dict:
    return {"annotation": {"instag": {"content": own["tags"]}, "deita": {
        name: own[name] for name in ("quality_scores", "complexity_scores")}}}


def pool_of(annotations: list[dict]) -> list[dict]:
    return [record | own for record, own in zip(RECORDS, annotations, strict=False)]


def expected_choice(number: int) -> tuple[list[str], dict[int, float]]:
    """Ids in the order of the picks and the gain of each, from SCORES, with x not valid."""
    rows, labels = [0, 1, 2, 4, 5], ["a", "b", "c"]
    values = np.zeros((5, 3))
    for place, row in enumerate(rows):
        for tag in ANNOTATED[row]["tags"]:
            if tag in labels:
                values[place, labels.index(tag)] = SCORES[row]
    values = values @ dense_propagation(VECTORS[[1, 0, 2]].astype(float), 0.9, 1.0)
    slope = slope_of_power(1e-6, 0.8)
    picked = dense_picks(values, number, slope)
    gathered, gains = np.zeros(3), {}
    for place in picked:
        gains[rows[place]] = float(values[place] @ slope(gathered))
        gathered += values[place]
    return [RECORDS[rows[place]]["id"] for place in picked], gains


@pytest.mark.parametrize("form", ["fields", "nested", "file", "folder"])
def test_annotations_come_with_the_pool_or_from_files(mig_run, tmp_path: Path, form: str):
    (tmp_path / "valid.json").write_text(json.dumps(["a", "b", "c"]))
    overrides = ["selection.budget=4", f"selection.mig.valid_tags={tmp_path / 'valid.json'}"]
    rows = [{"id": record["id"]} | own for record, own in zip(RECORDS, ANNOTATED, strict=False)]
    pool = pool_of([{}] * 6)
    if form in ("fields", "nested"):
        pool = pool_of(ANNOTATED if form == "fields" else [nested(own) for own in ANNOTATED])
    elif form == "file":
        stranger = {"id": "of another pool", **ANNOTATED[0]}
        artifacts.write_jsonl(tmp_path / "own.jsonl", [stranger, *reversed(rows)])
        overrides.append(f"selection.mig.annotations={tmp_path / 'own.jsonl'}")
    else:
        artifacts.write_jsonl(tmp_path / "own/00000.jsonl", rows[:4])
        artifacts.write_jsonl(tmp_path / "own/00001.jsonl", rows[4:])
        overrides.append(f"selection.mig.annotations={tmp_path / 'own'}")
    top, scores, log = mig_run(pool, *overrides)
    expected, gains = expected_choice(4)
    assert top == expected
    assert {row: value["score"] for row, value in enumerate(scores)
            if value["score"] is not None} == pytest.approx(gains)
    assert (log["kept"], log["dropped"]) == (5, {"without tags or scores": 1})
    assert (log["labels"], log["edges"], log["without_valid_tags"]) == (3, 1, 1)
    assert log["subset_sizes"] == {"top": 4, "middle": 0, "bottom": 0}


def test_a_folder_of_vectors_is_read_too(mig_run, tmp_path: Path):
    (tmp_path / "mig_tags").mkdir()
    np.save(tmp_path / "mig_tags/vectors.npy", VECTORS)
    (tmp_path / "mig_tags/tags.json").write_text(json.dumps(TAGS))
    pool = pool_of([*ANNOTATED[:1], flat(["c"], [2.0, 4.0], [2.0, 3.0]), *ANNOTATED[2:]])
    top, *_ = mig_run(pool, "selection.budget=5",
                      f"selection.mig.tag_vectors={tmp_path / 'mig_tags'}")
    assert top == expected_choice(5)[0]


def test_other_annotations_vectors_or_settings_are_another_selection(mig_run, tmp_path,
                                                                     config_file):
    rows = [{"id": record["id"]} | own for record, own in zip(RECORDS, ANNOTATED, strict=False)]
    own, names = tmp_path / "own.jsonl", tmp_path / "tags.json"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "valid.json").write_text(json.dumps(["a", "b", "c"]))
    overrides = ["selection.method=mig", f"selection.mig.tag_vectors={tmp_path / 'tags.npy'}",
                 f"selection.mig.annotations={own}",
                 f"selection.mig.valid_tags={tmp_path / 'valid.json'}"]
    mig_run(pool_of([{}] * 6), *overrides)

    def is_done(*more: str) -> bool:
        return StageRun("select", load_config(config_file(), [*overrides, *more])).is_done()

    assert is_done("selection.zip.shortlist=150", "selection.anisotropy_weight=0.1")
    assert not is_done("selection.mig.threshold=0.8")
    for path in (own, names, tmp_path / "tags.npy", tmp_path / "valid.json"):
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        assert not is_done()
        path.write_bytes(before)
    assert is_done()


@pytest.mark.parametrize(("pool", "override", "message"), [
    (ANNOTATED[:3], "budget=3", "tags.json: no vector for 1 of the 4 tags in use: 'x'; add them"),
    (ANNOTATED[:3], "mig.annotations=gone.jsonl", "mig.annotations: gone.jsonl not found"),
    (ANNOTATED[:3], "mig.tag_vectors=gone.npy", "selection.mig.tag_vectors: gone.npy not found"),
    ([ANNOTATED[3]] * 3, "budget=3", "selection.budget is 3, but 0 of the 3 records have tags and "
                                     "scores: give 0 at most"),
    ([flat("a", [1.0], [1.0])], "budget=1", "pool.jsonl:1: tags is not an array of strings"),
    ([flat(["a"], [], [])], "budget=1", "pool.jsonl:1: quality_scores is not an array of numbers"),
    ([flat(["a"], [1.0], [-1.0])], "budget=1", "pool.jsonl:1: complexity_scores is not an array"),
    ([flat(["a"], [1.0], [1.0, 2.0])], "budget=1", "pool.jsonl:1: 1 quality_scores but 2 "),
    ([{"annotation": {"instag": 3, "deita": {}}}], "budget=1", "pool.jsonl:1: annotation.instag"),
])
def test_what_cannot_be_used_is_refused_by_name(mig_run, pool: list[dict], override: str,
                                                message: str):
    with pytest.raises(InputError) as refusal:
        mig_run(pool_of(pool), "selection.budget=1", f"selection.{override}")
    assert message in str(refusal.value)


@pytest.mark.parametrize(("vectors", "names", "message"), [
    (VECTORS[:2], TAGS, "expected floats, a row for each of the 3 tags"),
    (VECTORS * [[0], [1], [1]], TAGS, "the vectors of 'b' have no direction"),
    (VECTORS, ["a", "a", "b"], "'a' appears twice"),
    (VECTORS, {"a": 1}, "not a JSON array of strings")])
def test_vectors_that_do_not_fit_are_refused(mig_run, tmp_path, vectors, names, message: str):
    np.save(tmp_path / "other.npy", vectors.astype(np.float32))
    (tmp_path / "other.json").write_text(json.dumps(names))
    with pytest.raises(InputError, match=message):
        mig_run(pool_of([flat(["a", "b"], [1.0], [1.0])]), "selection.budget=1",
                f"selection.mig.tag_vectors={tmp_path / 'other.npy'}")


@pytest.mark.parametrize(("rows", "message"), [
    ([{"id": "r0"}, {"id": "r0"}], "own.jsonl:2: id 'r0' is that of an earlier row too"),
    ([{"tags": []}], "own.jsonl:1: has no id"),
    ([{"id": "other"}], "own.jsonl has no id of the pool's, whose first is 'r0'")])
def test_annotations_of_another_pool_are_refused(mig_run, tmp_path, rows, message: str):
    artifacts.write_jsonl(tmp_path / "own.jsonl", rows)
    with pytest.raises(InputError, match=message):
        mig_run(pool_of(ANNOTATED), f"selection.mig.annotations={tmp_path / 'own.jsonl'}")


@pytest.mark.parametrize(("override", "message"), [
    ("threshold=1.5", "selection.mig.threshold is 1.5; it must be from 0 to 1"),
    ("prop_weight=-1", "selection.mig.prop_weight is -1.0; it must be 0 or more"),
    ("phi=log", "selection.mig.phi is 'log'; it must be pow or exp"),
    ("phi_a=0", "selection.mig.phi_a is 0.0; it must be above 0"),
    ("phi_b=1.2", "selection.mig.phi_b is 1.2; it must be above 0 and at most 1"),
    ("phi_alpha=0", "selection.mig.phi_alpha is 0.0; it must be above 0"),
    ("annotations=x", "selection.mig.tag_vectors is None; it must be ")])
def test_settings_that_cannot_be_are_refused_by_name(config_file, override: str, message: str):
    with pytest.raises(InputError, match=message):
        load_config(config_file(), ["selection.method=mig", f"selection.mig.{override}"])


def test_a_missing_file_is_named_before_the_first_stage(config_file):
    config = load_config(config_file(), ["selection.method=mig",
                                         "selection.mig.tag_vectors=gone.npy"])
    with pytest.raises(InputError, match="selection.mig.tag_vectors: gone.npy not found"):
        check_ahead(["prepare", "select"], config)


REFERENCE_FILE = REFERENCE / "baselines/mig.json"
NUMBERS = ({"cases": []} if not REFERENCE_FILE.is_file()
           else json.loads(REFERENCE_FILE.read_text(encoding="utf-8")))


@pytest.mark.skipif(not REFERENCE_FILE.is_file(), reason="the release's numbers are not at hand")
@pytest.mark.parametrize("number", range(len(NUMBERS["cases"])))
@pytest.mark.parametrize("form", [dict, nested])
def test_the_release(mig_run, tmp_path: Path, number: int, form: Callable):
    """Every case through the stage. Where the release fails, at the very last record, the picks
    before it are those of the case that leaves that one out."""
    case = NUMBERS["cases"][number]
    np.save(tmp_path / "all.npy", np.array(NUMBERS["embeddings"]))
    (tmp_path / "all.json").write_text(json.dumps(NUMBERS["tags"]))
    (tmp_path / "valid.json").write_text(json.dumps(NUMBERS["valid_tags"]))
    names = {"num": "budget", "sim_threshold": "mig.threshold", "phi_type": "mig.phi",
             "phi_alpha": "mig.phi_alpha", "phi_a": "mig.phi_a", "phi_b": "mig.phi_b",
             "prop_weight": "mig.prop_weight", "norm": "mig.norm"}
    top, _, log = mig_run(
        [{"id": str(row), "instruction": "x", "input": "", "output": "y", **form(own)}
         for row, own in enumerate(NUMBERS["records"])],
        f"selection.mig.tag_vectors={tmp_path / 'all.npy'}",
        f"selection.mig.valid_tags={tmp_path / 'valid.json'}",
        *(f"selection.{key}={str(case[name]).lower()}" for name, key in names.items()))
    found = [int(name) for name in top]
    if case["selected"] is None:
        known = next(own["selected"] for own in NUMBERS["cases"] if own["num"] == case["num"] - 1)
        assert found[:-1] == known and sorted(found) == NUMBERS["kept"]
    else:
        assert found == case["selected"]
    assert (log["kept"], log["labels"]) == (len(NUMBERS["kept"]), case["labels"])
    assert log["edges"] == case["edges_between_labels"]
