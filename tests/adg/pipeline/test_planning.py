"""--dry-run of every stage: what it says, and that it writes nothing."""

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import RECORDS, tree

from adg import score_and_select
from adg.base import artifacts, units
from adg.config import load_config
from adg.pipeline import processes
from embedding import cluster, embed
from eval import run_benchmarks
from generation import prepare_pool, sample_answers
from train import finetune


@pytest.fixture
def dry(config_file, stage, tmp_path: Path, capsys):
    """Runs a stage with --dry-run: {first word of a line: the rest}; fails where it writes."""

    def run(module, *overrides: str, **how: int) -> dict[str, str]:
        path = config_file()
        before = tree(tmp_path / "run") if (tmp_path / "run").exists() else None
        capsys.readouterr()
        stage(module, path, "--dry-run", *overrides, **how)
        assert (tree(tmp_path / "run") if (tmp_path / "run").exists() else None) == before
        lines = capsys.readouterr().out.splitlines()
        assert "dry run, nothing is written" in lines[0]
        return {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:]}

    return run


def test_every_stage_says_what_it_would_do(dry, config_file, stage, tmp_path):
    path = config_file()
    assert dry(prepare_pool)["records"] == "10 usable, 0 rejected"
    stage(prepare_pool, path)
    said = dry(sample_answers, rank=0, world=2)
    assert said["records"] == "10 of 10 to do"
    assert said["answers"] == "30, 180 tokens at most"
    assert said["chunks"] == "3 of 3 to do; this rank, of 2, has 2 of at most 4 records"
    assert said["time"].startswith("unknown")
    stage(sample_answers, path)
    said = dry(embed)
    assert said["texts"].startswith("40, ") and said["disk"].startswith("2.9 KiB at most")
    stage(embed, path)
    written = sum(file.stat().st_size - 128 for name in ("answer_grams", "instruction_embeddings")
                  for file in (tmp_path / "run" / name).glob("*.npy"))
    assert written == 10 * 4 * (64 + 9)  # as said
    assert dry(cluster)["vectors"] == "10 of 64 numbers, to 3 bins"
    stage(cluster, path)
    assert dry(score_and_select)["records"] == "10, of which at most 9 are chosen"
    stage(score_and_select, path)
    said = dry(finetune)
    assert said["records"].startswith("3, 2 epochs, 4 steps, ")
    assert "weights" in said["model"]
    said = dry(run_benchmarks, "eval.name=base")
    assert said["questions"].startswith("bbh 3 at most, gsm8k 1 at most, mmlu ")


def test_the_time_is_that_of_an_earlier_run_or_of_earlier_chunks(dry, config_file, stage, tmp_path):
    path = config_file()
    stage(prepare_pool, path)
    stage(sample_answers, path)
    log = tmp_path / "run/log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[-1]["stage"] == "sample"
    lines[-1]["records_per_second"], lines[-1]["world_size"] = 0.01, 4
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "run/answers/00001.jsonl").unlink()
    said = dry(sample_answers, rank=0, world=2)["time"]  # half as many ranks, half as fast
    assert said.startswith("about 13.3 min for 4 records at 0.01 records/s (log.jsonl of ")
    log.unlink()
    for number, name in enumerate(("00000", "00002")):
        os.utime(tmp_path / f"run/answers/{name}.jsonl", (1000 + 8 * number, 1000 + 8 * number))
    said = dry(sample_answers)["time"]
    assert said == "about 0.1 min for 4 records at 0.50 records/s (from 2 chunks already written)"


def test_a_disk_that_is_too_small_is_said(dry, config_file, stage, monkeypatch):
    stage(prepare_pool, config_file())
    monkeypatch.setattr(units.shutil, "disk_usage",
                        lambda folder: shutil._ntuple_diskusage(100, 90, 10))
    assert dry(sample_answers)["disk"].endswith("10 bytes free: NOT ENOUGH")


def test_what_is_text_in_a_prompt_is_said(config_file, stage, tmp_path, capsys):
    artifacts.write_jsonl(tmp_path / "pool.jsonl", [
        {"instruction": "Add <|end|> it.", "output": "x"}, {"instruction": "Add.", "output": "x"}])
    small = config_file(clustering={"num_bins": 1}, selection={"budget": 1})
    stage(prepare_pool, small)
    for settings, said in (([], ", control tokens in the record as text\n"),
                           (["generation.control_tokens=obey"], "\n")):
        capsys.readouterr()
        stage(sample_answers, small, "--show-prompts", 2, "generation.prompt=chat", *settings)
        first, second = capsys.readouterr().out.split("== ")[1:]
        assert f" tokens, whole{said}<|user|>Add <|end|> it.<|end|><|assistant|>\n" in first
        assert " tokens, whole\n<|user|>Add.<|end|>" in second


def test_prompts_can_be_seen(config_file, stage, tmp_path, capsys):
    stage(prepare_pool, config_file())
    before = tree(tmp_path / "run")
    capsys.readouterr()
    stage(sample_answers, config_file(), "--show-prompts", 2)
    printed = capsys.readouterr().out
    assert printed.count("== r") == 2 and tree(tmp_path / "run") == before
    stage(sample_answers, config_file())
    stage(sample_answers, config_file(), "--show-prompts", 2)  # of a finished run as well
    assert capsys.readouterr().out.endswith(printed)
    assert "<|begin|>Below is an instruction" in printed and RECORDS[0]["instruction"] in printed


def test_ranks_that_take_several_gpus_are_fewer(config_file, monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    config = load_config(config_file(generation={"sampler": "vllm"}), [
        "model.tensor_parallel_size=2", "embedding.gpus_per_model=4", "eval.backend=vllm"])
    assert {name: processes.ranks_for(name, config, 8) for name in (
        "sample", "embed", "finetune", "evaluate")} == {
            "sample": 4, "embed": 2, "finetune": 8, "evaluate": 4}
    config.eval.backend = "hf"
    assert processes.ranks_for("evaluate", config, 8) == 8
    monkeypatch.setenv("NPROC", "3")
    assert processes.ranks_for("sample", config, 3) == 3
