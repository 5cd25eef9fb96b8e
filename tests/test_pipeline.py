"""Method adg through the one command: files, restart after a kill, nothing twice, errors."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT, command, tree

from adg import score_and_select
from embedding import cluster, embed
from eval import run_benchmarks
from generation import prepare_pool, sample_answers
from train import finetune

EXACT = ("pool.jsonl", "rejected.jsonl", "answers/", "instruction_embeddings/", "answer_grams/",
         "bins.npy", "subsets/")  # the same bytes whatever was killed, and whatever the rank count


def pipeline(*arguments: object, ranks: int = 2) -> subprocess.CompletedProcess:
    return command("adg.pipeline", *arguments, NPROC=str(ranks))


def exact(run: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(run).items() if name.startswith(EXACT)}


@pytest.fixture(scope="module")
def finished() -> dict:
    """What the undisturbed run of this module left, once there is one."""
    return {}


def test_all_stages_then_nothing_to_do(config_file, tmp_path: Path, finished: dict):
    path = config_file(eval={"benchmarks": ["gsm8k", "truthfulqa_mc2", "humaneval"]})
    result = pipeline(path, ranks=1)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    chunks = [f"{i:05d}" for i in range(3)]
    expected = {
        "config.yaml", "log.jsonl", "pool.jsonl", "rejected.jsonl", "contamination.jsonl",
        "bins.npy", "tables.md",
        *(f"answers/{chunk}.jsonl" for chunk in chunks),
        *(f"{name}/{chunk}.npy" for name in ("instruction_embeddings", "answer_grams")
          for chunk in chunks),
        *(f"subsets/adg/{name}" for name in (
            "scores.jsonl", "top.json", "middle.json", "bottom.json", "dataset_info.json",
            "README.md")),
        *(f"eval/adg-top/{name}.json" for name in (
            "gsm8k", "truthfulqa_mc2", "humaneval", "scores")),
        "train/adg-top/metrics.jsonl", "train/adg-top/loss.png", "provenance/sha256.json",
        *(f"provenance/{name}.{suffix}" for suffix in ("json", "lock") for name in (
            "prepare", "sample", "embed", "cluster", "select-adg", "finetune-adg-top",
            "evaluate-adg-top", "tables")),
        *(f"models/adg-top/{name}" for name in (
            "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
            "tokenizer_config.json", "chat_template.jinja")),
    }
    assert set(tree(run)) == expected
    log = [json.loads(line) for line in (run / "log.jsonl").open()]
    assert [line["stage"] for line in log] == [
        "prepare", "sample", "embed", "cluster", "select", "finetune", "evaluate", "tables"]
    for shown in ("anisotropy", "decides", "Subsets by bin", "50.85", "tables.md"):
        assert shown in result.stdout
    before = tree(run)
    again = pipeline(path)
    assert again.returncode == 0 and "nothing to do: 8 stages are done" in again.stdout
    assert tree(run) == before
    finished.update(exact(run))


def test_killed_and_gone_on_with_another_rank_count(config_file, tmp_path: Path, finished: dict):
    """kill -9 to the process group once a file is there, twice; it ends with the same bytes."""
    stages = ("prepare", "sample", "embed", "cluster", "select")
    path = config_file(output_dir=str(tmp_path / "run"))
    for seen, ranks in (("answers/00000.jsonl", 1), ("answer_grams/00000.npy", 2)):
        process = subprocess.Popen(
            [sys.executable, "-m", "adg.pipeline", path, *stages], cwd=ROOT,
            start_new_session=True, env={**os.environ, "NPROC": str(ranks)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (tmp_path / "run" / seen).exists():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    result = pipeline(path, *stages, ranks=1)
    assert result.returncode == 0, result.stderr
    expected = finished or pytest.fail("the undisturbed run has not ended")
    assert exact(tmp_path / "run") == expected


@pytest.mark.parametrize(("arguments", "message"), [
    (["generation.temprature=1"], "did you mean generation.temperature"),
    (["generation.num_answers=x"], "generation.num_answers"),
    (["pool.path=nowhere.jsonl"], "pool.path: nowhere.jsonl is not there"),
    (["model.name_or_path=/no/such/model"], "model.name_or_path: /no/such/model"),
    (["clustering.num_bins=11"], "clustering.num_bins is 11, but the pool has 10"),
    (["selection.budget=11"], "selection.budget is 11, but the pool has 10"),
    (["prepare", "measure", "select", "selection.method=pre_experience"],
     "selection.pre_experience.clusters is 100, but the pool has 10"),
    (["emebd"], "emebd is no stage; did you mean embed"),
    (["--seed", "3"], "--seed is no option; did you mean --seeds? A value of the configuration"),
    (["embedding.windows.far=[7]"], "embedding.windows.far: there is no layer 7: the model has 5"),
    (["embed"], "embed needs"),
])
def test_what_is_wrong_is_one_line(config_file, arguments: list[str], message: str):
    result = pipeline(config_file(), *arguments)
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in result.stderr + result.stdout


def test_further_seeds_have_run_folders_of_their_own(config_file, tmp_path: Path):
    scores = json.dumps({"scores": {"mmlu": 30.0}, "groups": {"Knowledge": None},
                         "questions": {"mmlu": 57}})
    for name, value in (("run", "30.0"), ("run-seed43", "32.0")):
        path = tmp_path / name / "eval/base/scores.json"
        path.parent.mkdir(parents=True)
        path.write_text(scores.replace("30.0", value))
    result = pipeline(config_file(), "prepare", "--seeds", "2")
    assert result.returncode == 0, result.stderr
    for name, seed in (("run", 42), ("run-seed43", 43)):
        assert f"seed: {seed}\n" in (tmp_path / name / "config.yaml").read_text()
    assert "run: base" in result.stdout and "run-seed43: base" in result.stdout  # the table of both
    assert "30.00" in result.stdout and "32.00" in result.stdout
    refused = pipeline(config_file(), "--seeds", "none")
    assert refused.returncode == 2 and "--seeds none: it must be a number" in refused.stderr


@pytest.mark.parametrize("module", [prepare_pool, sample_answers, embed, cluster, score_and_select,
                                    finetune, run_benchmarks])
def test_help_names_every_key(stage, capsys, module: ModuleType):
    with pytest.raises(SystemExit, match="0"):
        stage(module, "--help")
    assert "generation.temperature (1.4)" in capsys.readouterr().out


def test_a_dry_run_goes_as_far_as_there_are_inputs(config_file, tmp_path: Path):
    result = pipeline(config_file(), "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "[prepare] dry run, nothing is written:\n  schema    alpaca\n" in result.stdout
    assert "  records   10 usable" in result.stdout
    assert "[sample] cannot say yet: sample needs" in result.stdout
    assert not (tmp_path / "run").exists()
