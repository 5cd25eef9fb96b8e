"""Recipe `released` against what the authors' released code gave, where those numbers are at hand.

ADG_REFERENCE, or shared/reference beside the project, holds geometry.json (vectors -> dispersion,
anisotropy, score), selection.json (scores and bins -> subsets), pooling.json (texts -> vectors) and
the two small models behind the last.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from adg.base import artifacts
from adg.geometry import anisotropy, centred_grams, dispersion, divergence_score
from adg.selection import select_released
from embedding import embed

REFERENCE = Path(os.environ.get("ADG_REFERENCE", ROOT.parent / "shared" / "reference"))
pytestmark = pytest.mark.skipif(not (REFERENCE / "pooling.json").is_file(),
                                reason="the release's numbers are not at hand")


def cases(name: str) -> list | dict:
    return json.loads((REFERENCE / name).read_text(encoding="utf-8"))


def test_geometry():
    for case in cases("geometry.json"):
        gram = centred_grams(np.array(case["vectors"]))
        found = dispersion(gram), anisotropy(gram)
        assert found[0] == pytest.approx(case["dispersion"], abs=1e-5)
        assert found[1] == pytest.approx(case["anisotropy"], abs=1e-5)
        assert divergence_score(*found) == pytest.approx(case["score"], abs=1e-5)


def test_selection():
    for case in cases("selection.json"):
        scores = divergence_score(np.array(case["dispersion"]), np.array(case["anisotropy"]))
        subsets = select_released(scores, np.array(case["bins"]), case["budget"])
        for name, rows in subsets._asdict().items():
            assert rows.tolist() == case[name]


@pytest.mark.parametrize(("model", "empty"), [("tiny-llama", "instruction"),
                                              ("tiny-qwen2", "zero")])
def test_pooling_through_the_stage(stage, tmp_path: Path, model: str, empty: str):
    own = cases("pooling.json")[model]
    artifacts.write_jsonl(tmp_path / "pool.jsonl", (
        {"id": str(i), "instruction": case["instruction"], "input": "dropped", "output": "x"}
        for i, case in enumerate(own)))
    artifacts.write_jsonl(tmp_path / "answers/0.jsonl", (
        {"id": str(i), "generated_answers": [case["answer"]] * 2} for i, case in enumerate(own)))
    stage(embed, ROOT / "configs/llama3_alpaca_gpt4_released.yaml", f"output_dir={tmp_path}",
          f"model.name_or_path={REFERENCE / model}", "model.dtype=float32",
          f"embedding.empty_answers={empty}", "embedding.keep_answer_embeddings=true",
          "generation.num_answers=2", "chunk_size=500")
    answers, instructions = (np.load(tmp_path / f"{name}_embeddings/00000.npy")
                             for name in ("answer", "instruction"))
    for i, case in enumerate(own):
        for vector, expected in ((answers[i, 0], case["answer_vector"]),
                                 (instructions[i], case["instruction_vector"])):
            assert np.isfinite(vector).all()
            if expected is not None and any(expected):
                assert vector @ expected / np.linalg.norm(expected) > 0.99999
            elif expected is not None:
                assert not vector.any()
