"""Records as run folders hold them, written out: a stage that one says is done stays done."""

from pathlib import Path

import pytest
from conftest import RECORDS

from adg.base import artifacts
from adg.config import load_config
from adg.models import folders
from adg.pipeline.identity import Identities
from adg.pipeline.stage_run import StageRun, begin
from adg.pipeline.staleness import Kind
from generation import prepare_pool

POOL = {"sha256": "220562e8a32ee2a2b4413a8086129b621739d6cae7136481499fc26d13a46e90", "files": 1,
        "bytes": 889}
PREPARE = {
    "stage": "prepare", "state": "finished", "extends": False,
    "began": "2026-11-28T02:51:39.482333+00:00",
    "parameters": {
        "pool.encoding": "utf-8", "pool.limit": None, "pool.schema": "auto", "pool.fields": {},
        "pool.multi_turn": "reject", "pool.duplicates": "keep", "pool.decontaminate": "report",
        "pool.max_rejected": 0.01, "pool.split": "train", "pool.revision": None},
    "inputs": {
        "pool.path": {"name": "pool.jsonl", "sha256":
                      "309e3bcc0a3491ca21251306aaf8fc6cb925d80adf5d3372595cbf07b6c65555"},
        "eval.data_dir": {"name": "benchmarks", "sha256":
                          "1646ae6ff700e09ba974c13a1b38dbd4a573b852286f5aed5bdb8c2d67e8e205"}},
    "outputs": {
        "pool.jsonl": POOL,
        "rejected.jsonl": {
            "sha256": "aad502547a4e2b70ac5860fdf077d4c8af7ff3e42a9ce92b3988873dc378b7ed",
            "files": 1, "bytes": 0},
        "contamination.jsonl": {
            "sha256": "60fab814bd30d3e3f0e742ec030d01242733a36a730686747f5a01256770f5a7",
            "files": 1, "bytes": 0}},
    "grew_from": {},
}
SAMPLE = {
    "stage": "sample", "state": "finished", "extends": False,
    "began": "2026-11-28T02:52:39.482333+00:00",
    "parameters": {
        "seed": 42, "chunk_size": 4, "model.dtype": "float32", "model.trust_remote_code": False,
        "generation.sampler": "transformers", "generation.prompt": "alpaca",
        "generation.prompt_file": None, "generation.system_prompt": None,
        "generation.max_prompt_tokens": None, "generation.long_prompts": "reject",
        "generation.control_tokens": None, "generation.num_answers": 3,
        "generation.temperature": 1.4, "generation.top_k": 50, "generation.top_p": 0.9,
        "generation.max_new_tokens": 6, "generation.min_new_tokens": 1,
        "generation.max_model_len": 512, "generation.keep_token_ids": False,
        "generation.strip_answers": False, "generation.dtype": None,
        "generation.batch_invariant": False},
    "inputs": {"pool.jsonl": POOL}, "outputs": {}, "grew_from": {},
}
SELECT = {
    "stage": "select random", "state": "finished", "extends": False,
    "began": "2026-11-28T02:51:39.698883+00:00",
    "parameters": {"seed": 42, "selection.method": "random", "selection.budget": 3,
                   "selection.seed": None},
    "inputs": {"pool.jsonl": POOL}, "outputs": {}, "grew_from": {},
}


@pytest.fixture
def run(config_file, stage, tmp_path: Path, tiny_model: Path) -> Path:
    """A run folder with older records of prepare, sample and select, and their outputs."""
    stage(prepare_pool, config_file())
    run, config = tmp_path / "run", load_config(config_file(), [])
    artifacts.write_json(run / "provenance/prepare.json", PREPARE)
    artifacts.write_jsonl(run / "answers/00000.jsonl", (
        {"id": record["id"], "generated_answers": ["a", "b", "c"]} for record in RECORDS))
    for file in ("scores.jsonl", "top.json", "middle.json", "bottom.json", "dataset_info.json",
                 "README.md"):
        artifacts.write_text(run / "subsets/random" / file, "")
    hashes, model = Identities(run, config), folders.identity(str(tiny_model), "model", None)
    for name, record, outputs, inputs in (
            ("sample", SAMPLE, ["answers/"], {"model": model}),
            ("select-random", SELECT, [f"subsets/random/{path.name}" for path in
                                       sorted((run / "subsets/random").iterdir())], {})):
        artifacts.write_json(run / f"provenance/{name}.json", record | {
            "inputs": record["inputs"] | inputs,
            "outputs": {output: hashes.artefact(output) for output in outputs}})
    return run


def test_what_older_records_say_is_done_is_done(config_file, run):
    for name, overrides in (("prepare", []), ("sample", []),
                            ("select", ["selection.method=random"])):
        config = load_config(config_file(), overrides)
        verdict = StageRun(name, config).judge()
        assert (verdict.kind, verdict.why, verdict.notes) == (Kind.DONE, "", ())
        assert begin(name, config) is None
