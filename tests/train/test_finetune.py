"""Fine-tuning through its real commands: DeepSpeed, two ranks, checkpoints, restart."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import RECORDS, command
from safetensors.torch import load_file

from adg import artifacts
from adg.checks import accumulation_steps
from adg.config import load_config
from adg.errors import InputError
from train.finetune import last_whole_checkpoint


@pytest.fixture
def with_subset(config_file, tmp_path: Path) -> Path:
    """A run folder that holds only a subset made elsewhere."""
    artifacts.write_json(tmp_path / "run/subsets/adg/top.json", RECORDS)
    return tmp_path / "run"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "models/adg-top/model.safetensors")


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_train_stop_and_go_on(config_file, with_subset, tiny_model):
    path = config_file(train={"save_steps": 4, "gradient_checkpointing": False})
    result = command("train.finetune", path, ranks=2)
    assert result.returncode == 0, result.stderr
    undisturbed = weights(with_subset)
    metrics = [json.loads(line) for line in (with_subset / "train/adg-top/metrics.jsonl").open()]
    assert [row["step"] for row in metrics] == list(range(1, 11))  # 10 records, batch 2, 2 epochs
    assert not same(undisturbed, load_file(tiny_model / "model.safetensors"))
    folder = with_subset / "models/adg-top"
    assert not (folder / "training_args.bin").exists() and (folder / "tokenizer.json").exists()
    line = json.loads((with_subset / "log.jsonl").read_text().splitlines()[-1])
    assert (line["stage"], line["records"], line["steps"]) == ("finetune", 20, 10)

    # As if killed at step 9, while the checkpoint of step 8 was being written.
    work = with_subset / "train/adg-top"
    assert sorted(p.name for p in work.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    (work / "checkpoint-8/complete.json").unlink()
    shutil.rmtree(folder)
    record = with_subset / "provenance/finetune-adg-top.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "state": "started"}))
    alone = command("train.finetune", path, ranks=1)
    assert alone.returncode == 2 and "was written by 2 rank(s)" in alone.stderr
    assert "Traceback" not in alone.stderr
    again = command("train.finetune", path, ranks=2)
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stdout and "checkpoint-4" in again.stdout
    assert same(weights(with_subset), undisturbed)
    resumed = [json.loads(line) for line in (work / "metrics.jsonl").open()]
    assert [row["loss"] for row in resumed] == [row["loss"] for row in metrics]


def test_the_batch_holds_whatever_the_rank_count(config_file):
    config = load_config(config_file(), ["train.batch_size=64", "train.per_device_batch_size=2"])
    for ranks, steps in ((1, 32), (4, 8), (8, 4)):
        assert accumulation_steps(config, ranks) == steps
    with pytest.raises(InputError, match="train.batch_size is 64, no multiple of 6 .* 60 or 66"):
        accumulation_steps(config, 3)


def test_the_newest_whole_checkpoint_counts_by_number(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None
    for step in (9, 512, 1024):
        artifacts.write_json(tmp_path / f"checkpoint-{step}/complete.json", {"world_size": 1})
    (tmp_path / "checkpoint-2048").mkdir()
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-1024"
