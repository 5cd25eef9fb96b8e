"""A run folder that is as its stages left it, and one that is not: what differs is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import command

from adg import score_and_select
from adg.base import artifacts, process
from adg.base.errors import InputError
from adg.config import load_config
from adg.models import folders
from adg.pipeline.stage_run import StageRun
from adg.tools import verify as verify_module
from adg.tools.verify import read_evidence, verify
from embedding import cluster, embed
from generation import prepare_pool, sample_answers


@pytest.fixture
def run(config_file, stage, tmp_path: Path) -> Path:
    path = config_file(embedding={"source": "sampling"})
    for module in (prepare_pool, sample_answers, embed, cluster, score_and_select):
        stage(module, path)
    return tmp_path / "run"


def problems(run: Path) -> list[str]:
    evidence = read_evidence(run)
    return [*evidence.damaged, *verify(run, evidence)]


def test_an_untouched_run_fits(run: Path):
    assert problems(run) == []
    result = command("adg.tools.verify", run)
    assert result.returncode == 0, result.stderr
    assert "5 stages looked at, 0 problem(s)" in result.stdout
    assert "answer vectors of chunks 0-2: from sampling" in result.stdout


def edit_score(run: Path) -> None:
    path = run / "subsets/adg/scores.jsonl"
    rows = [json.loads(line) for line in path.open()]
    rows[3]["score"] += 1e-6
    artifacts.write_jsonl(path, rows)


def swap_pool(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "pool.jsonl").open()]
    artifacts.write_jsonl(run / "pool.jsonl", rows[::-1])


def put_other_grams(run: Path) -> None:
    path = run / "answer_grams/00001.npy"
    np.save(path, np.load(path) * np.float32(1.1))


@pytest.mark.parametrize(("change", "expected"), [
    (edit_score, r"subsets/adg/scores.jsonl is not what select adg wrote"),
    (lambda run: (run / "answers/00001.jsonl").unlink(),
     "answers/ is not what sample wrote (3 file(s) then, 2 now; 00001.jsonl is missing)"),
    (swap_pool, "pool.jsonl is not what prepare wrote"),
    (put_other_grams, "answer_grams/ is not what embed wrote (00001.npy changed)"),
    (lambda run: (run / "bins.npy").unlink(), "bins.npy not found; cluster wrote it"),
])
def test_what_was_touched_is_named(run: Path, change, expected: str):
    change(run)
    found = problems(run)
    assert len(found) == 1 and expected in found[0]
    result = command("adg.tools.verify", run)
    assert result.returncode == 1 and expected in result.stdout


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("provenance/embed.json", b"[1]", "embed.json: not a provenance record (a JSON list, not an "),
    ("provenance/embed.json", b"{\"sta", "embed.json: not a provenance record (not valid JSON: "),
    ("provenance/embed.json", b"{}", "embed.json: not a provenance record: remove it"),
    ("provenance/embed.json", b"\xff", "embed.json: not a provenance record (not valid JSON: "),
    ("provenance/sha256.json", b"{\"a\": 1}", "sha256.json: damaged (not the hashes of files)"),
    ("provenance/sha256.json", b"{", "sha256.json: damaged ("),
    ("log.jsonl", b"{}\n", "log.jsonl:1: not the line of a stage"),
    ("log.jsonl", b"{\n", "log.jsonl:1: not valid JSON"),
    ("config.yaml", b"a: [", "config.yaml: not valid YAML"),
    ("config.yaml", b"\xff\x00", "config.yaml"),
    ("config.yaml", b"nonsense: 1", "unknown key nonsense"),
])
def test_what_is_damaged_is_one_finding_and_the_rest_is_verified(
        run: Path, name: str, content: bytes, expected: str, stage, capsys):
    (run / name).write_bytes(content)
    found = problems(run)
    assert len(found) == 1 and expected in found[0]
    (run / "bins.npy").unlink()
    with pytest.raises(SystemExit, match="1"):
        stage(verify_module, run)
    printed = capsys.readouterr().out
    assert expected in printed and "bins.npy not found; cluster wrote it" in printed
    assert ", 2 problem(s)\n" in printed


def test_a_record_that_is_no_object_is_named_by_stages(run: Path, config_file, stage):
    (run / "provenance/embed.json").write_text("[1]")
    with pytest.raises(InputError, match=r"embed.json: not a provenance record \(a JSON list, not "
                       r"an object\): remove it, and"):
        stage(embed, config_file(embedding={"source": "sampling"}))


def test_a_lost_chunk_of_both_sources_is_named(run: Path, config_file, stage):
    path = config_file(embedding={"source": "sampling"})
    (run / "answer_grams/00001.npy").unlink()
    stage(embed, path)
    (run / "provenance/embed.json").write_text(json.dumps(
        json.loads((run / "provenance/embed.json").read_text()) | {"state": "started"}))
    stage(embed, path)
    (run / "answer_grams/00001.npy").unlink()
    result = command("adg.tools.verify", run)
    assert result.returncode == 1 and "00001.npy is missing" in result.stdout
    assert "answer vectors of chunks 0, 2: from sampling" in result.stdout


def test_parts_of_different_runs_are_named(run: Path, config_file, stage, tmp_path, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM

    other = tmp_path / "other-model"
    shutil.copytree(tiny_model, other)
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.5)
    model.save_pretrained(other)
    path = config_file("other.yaml", output_dir=str(tmp_path / "second"),
                       model={"name_or_path": str(other)}, generation={"num_answers": 4})
    for module in (prepare_pool, sample_answers, embed):
        stage(module, path)
    second = tmp_path / "second"
    for name in ("answer_grams", "instruction_embeddings"):  # another model's, records and all
        shutil.rmtree(run / name)
        shutil.copytree(second / name, run / name)
    shutil.copy(second / "provenance/embed.json", run / "provenance/embed.json")
    found = "\n".join(problems(run))
    for expected in ("log.jsonl has no line of embed", "embed was made from another answers/ than "
                     "sample wrote", "but sample another model",
                     "generation.num_answers was 3 in sample and 4 in embed",
                     "cluster was made from another instruction_embeddings/ than embed wrote"):
        assert expected in found


@pytest.mark.parametrize(("stage_name", "name", "key"), [
    ("sample", "model", "model.name_or_path"),
    ("finetune", "train.model", "train.model_name_or_path"),
    ("measure", "measure.model", "selection.ifd.model_name_or_path"),
])
def test_a_model_changed_in_place_is_named_whatever_the_cache_says(
        config_file, stage, tmp_path, tiny_model, monkeypatch, stage_name, name, key):
    monkeypatch.setattr(folders, "_BLOCKS", 2)  # samples of both ends
    model = Path(shutil.copytree(tiny_model, tmp_path / "changeable"))
    arguments = [f"{key}={model}", "selection.method=ifd"]
    stage(prepare_pool, config_file(), *arguments)
    artifacts.write_json(tmp_path / "run/subsets/ifd/top.json", [])
    run = StageRun(stage_name, load_config(config_file(), arguments))
    run.start()
    run.finish(records=0)
    process.unwatch()
    weights = model / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(bytes(64))
    status, cache = weights.stat(), tmp_path / "run/provenance/sha256.json"
    stamps = json.loads(cache.read_text())
    stamps[str(weights)][:3] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    artifacts.write_json(cache, stamps)
    found = problems(tmp_path / "run")
    weights.write_bytes(weights.read_bytes()[:-4])  # what no stage would load
    assert problems(tmp_path / "run") == found
    assert any(f"was made with another {name} than there is now ({model})" in problem
               for problem in found), found


def test_an_unfinished_stage_is_named(run: Path):
    path = run / "provenance/cluster.json"
    artifacts.write_json(path, json.loads(path.read_text()) | {"state": "started"})
    assert problems(run)[0] == "cluster was started and has not ended"
