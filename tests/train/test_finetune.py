"""Fine-tuning through its real commands: DeepSpeed, two ranks, checkpoints, restart."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import RECORDS, ROOT, command
from safetensors.torch import load_file

from adg import artifacts
from adg.checks import accumulation_steps
from adg.config import load_config
from adg.errors import InputError
from train import finetune
from train.data import IGNORED
from train.finetune import last_whole_checkpoint
from train.memory import estimate


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
    metrics = curve(with_subset, "adg-top")
    assert [row["step"] for row in metrics] == list(range(1, 11))  # 10 records, batch 2, 2 epochs
    assert all(row["tokens_per_second"] > 0 and row["flops_per_second"] > 0 for row in metrics)
    assert (with_subset / "train/adg-top/loss.png").read_bytes().startswith(b"\x89PNG")
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
    resumed = curve(with_subset, "adg-top")
    for name in ("loss", "tokens", "learning_rate"):
        assert [row[name] for row in resumed] == [row[name] for row in metrics]


def test_a_loss_that_is_no_number_ends_it_before_it_is_kept(config_file, with_subset):
    path = config_file(train={"learning_rate": 1e30, "warmup_ratio": 0.0, "save_steps": 2})
    result = command("train.finetune", path)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "error: fine-tuning stopped: the loss of step 2 is nan" in result.stderr
    assert "lower train.learning_rate (1e+30)" in result.stderr
    assert not (with_subset / "models").exists()
    assert not list((with_subset / "train/adg-top").glob("checkpoint-*"))


def plain_loop(model: Path, batches: Path, *, batch_size: int, epochs: int,
               learning_rate: float) -> list[float]:
    """Losses of AdamW on the recorded batches, without Trainer and DeepSpeed (paper, set-up)."""
    from transformers import AutoModelForCausalLM

    rows = [example for line in batches.open() for example in json.loads(line)]
    size = len(rows) // epochs
    assert len({str(example) for example in rows}) == size
    steps = [rows[start: start + batch_size][: size - start % size]
             for epoch in range(epochs) for start in range(epoch * size, (epoch + 1) * size,
                                                           batch_size)]
    total, warm = len(steps), math.ceil(0.03 * len(steps))
    tuned = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    optimiser = torch.optim.AdamW(tuned.parameters(), weight_decay=0.0)
    losses = []
    for step, examples in enumerate(steps):
        rate = step / warm if step < warm else 0.5 * (
            1 + math.cos(math.pi * (step - warm) / (total - warm)))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * rate
        number = sum(label != IGNORED for example in examples for label in example["labels"][1:])
        loss = sum(torch.nn.functional.cross_entropy(
            tuned(torch.tensor([example["input_ids"]])).logits[0, :-1],
            torch.tensor(example["labels"][1:]), reduction="sum") for example in examples) / number
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


def curve(run: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / f"train/{name}/metrics.jsonl").open()]


def test_one_rank_two_and_both_stages_learn_as_a_plain_loop_does(config_file, tmp_path, tiny_model):
    artifacts.write_jsonl(tmp_path / "mine.jsonl", RECORDS)
    path = config_file(train={"subset": str(tmp_path / "mine.jsonl"), "batch_size": 4,
                              "epochs": 3, "learning_rate": 2e-3})
    recorded = subprocess.run(
        [sys.executable, "tests/train/finetune_recorded.py", tmp_path / "batches.jsonl", path],
        cwd=ROOT, check=False, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert recorded.returncode == 0, recorded.stderr
    expected = plain_loop(tiny_model, tmp_path / "batches.jsonl", batch_size=4, epochs=3,
                          learning_rate=2e-3)
    assert len(expected) == 9 and sum(expected[-3:]) < 0.9 * sum(expected[:3])
    alone = [row["loss"] for row in curve(tmp_path / "run", "mine")]
    assert alone == pytest.approx(expected, rel=0.01)
    for stage in ("zero2", "zero3"):
        other = tmp_path / stage
        result = command("train.finetune", path, f"output_dir={other}",
                         f"train.deepspeed=configs/deepspeed/{stage}.json", ranks=2)
        assert result.returncode == 0, result.stderr
        assert [row["loss"] for row in curve(other, "mine")] == pytest.approx(alone, rel=0.01)


def test_memory_is_that_of_zero_by_hand():
    model = SimpleNamespace(hidden_size=8, num_hidden_layers=3, num_attention_heads=2,
                            num_key_value_heads=1, head_dim=4, intermediate_size=16, vocab_size=100)

    def needed(zero: dict, ranks: int = 4, *, checkpointing: bool = True):
        return estimate(1000, model, zero, bytes_per_weight=2, ranks=ranks, tokens=10,
                        checkpointing=checkpointing)

    activations = 3 * 10 * 8 * 2 + 10 * (2 * (5 * 8 + 2 * 4 + 4 * 16) + 8 * 8) + 10 * 100 * 10
    assert needed({"stage": 0}) == (2000, 2000, 12000, activations, 0)
    assert needed({"stage": 1})[:3] == (2000, 2000, 3000)
    assert needed({"stage": 2})[:3] == (2000, 500, 3000)
    assert needed({"stage": 3})[:3] == (500, 500, 3000)
    assert needed({"stage": 3}, 1)[:3] == (2000, 2000, 12000)
    offloaded = needed({"stage": 3, "offload_optimizer": {"device": "cpu"},
                        "offload_param": {"device": "none"}})
    assert offloaded[:3] == (500, 0, 0) and offloaded.host == 3500
    assert needed({"stage": 2}, checkpointing=False).activations > activations


def test_a_dry_run_says_what_memory_it_takes(config_file, with_subset, stage, capsys):
    stage(finetune, config_file(), "--dry-run")
    assert "about" in (text := capsys.readouterr().out) and "optimiser" in text
    assert not (with_subset / "train").exists()


def test_out_of_memory_says_what_to_change(tmp_path):
    def fail(error: Exception):
        def train(resume_from_checkpoint: None) -> None:
            raise error

        return finetune.train(SimpleNamespace(train=train), None, tmp_path)

    with pytest.raises(InputError, match="Tried to allocate 9 GiB.*train.per_device_batch_size"):
        fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"))
    with pytest.raises(RuntimeError, match="^shape$"):
        fail(RuntimeError("shape"))


@pytest.mark.parametrize(("content", "message"), [
    ('{"instruction": "a", "output": ""}\n', "mine.jsonl: line 1: output is empty"),
    ('{"instruction": "a"}\n', "mine.jsonl: line 1: output is missing"),
])
def test_a_file_of_ones_own_is_checked(config_file, stage, tmp_path, content, message):
    (tmp_path / "mine.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        stage(finetune, config_file(), f"train.subset={tmp_path / 'mine.jsonl'}")
    with pytest.raises(InputError, match="train.subset: .*none.json is not there"):
        stage(finetune, config_file(), f"train.subset={tmp_path / 'none.json'}")
    with pytest.raises(InputError, match="train.subset is 'best'; it must be top or middle"):
        stage(finetune, config_file(), "train.subset=best")


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
