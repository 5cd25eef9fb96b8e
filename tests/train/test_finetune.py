"""Fine-tuning through its real commands: DeepSpeed, two ranks, checkpoints, restart."""

import itertools
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
from conftest import RECORDS, ROOT, command, tree
from safetensors.torch import load_file
from transformers import TrainingArguments, get_scheduler

from adg.base import artifacts, distributed, lock
from adg.base.errors import InputError
from adg.config import load_config
from adg.config_sections import SCHEDULES, TrainConfig
from adg.models.folders import load_tokenizer
from adg.pipeline import stage_run
from train import callbacks, finetune, hours
from train.callbacks import Checkpoints
from train.checkpoints import last_whole_checkpoint
from train.data import IGNORED, NOTHING, collate, encode_all
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


def script(name: str, *arguments: object, ranks: int = 0) -> subprocess.CompletedProcess:
    """Runs a script beside this file, under torchrun where ranks is given."""
    launcher = ["-m", "adg.pipeline.launch", f"--nproc_per_node={ranks}"] if ranks else []
    return subprocess.run(
        [sys.executable, *launcher, f"tests/train/{name}.py", *map(str, arguments)], cwd=ROOT,
        check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_train_stop_and_go_on(config_file, stage, with_subset, tiny_model):
    path = config_file(train={"save_steps": 4, "gradient_checkpointing": False})
    killed = script("finetune_killed", path, ranks=2)
    assert killed.returncode > 0 and "Traceback" not in killed.stderr, killed.stderr
    metrics = curve(with_subset, "adg-top")
    assert [row["step"] for row in metrics] == list(range(1, 11))  # 10 records, batch 2, 2 epochs
    assert all(row["tokens_per_second"] > 0 and row["flops_per_second"] > 0 for row in metrics)
    assert metrics[-1]["tokens"] == 2 * metrics[4]["tokens"] and metrics[4]["epoch"] == 1
    work, model = with_subset / "train/adg-top", with_subset / "models/adg-top"
    assert sorted(p.name for p in work.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    other = with_subset.with_name("other")
    shutil.copytree(with_subset, other)

    again = command("train.finetune", path, ranks=2)
    assert again.returncode == 0, again.stderr
    assert "continues from" in again.stdout and "checkpoint-8" in again.stdout
    assert (work / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not same(weights(with_subset), load_file(tiny_model / "model.safetensors"))
    assert not (model / "training_args.bin").exists() and (model / "tokenizer.json").exists()
    line = json.loads((with_subset / "log.jsonl").read_text().splitlines()[-1])
    assert (line["stage"], line["records"], line["steps"]) == ("finetune", 20, 10)
    assert not list(work.glob("checkpoint-*"))

    # As if killed while the checkpoint of step 8 was being written.
    (other / "train/adg-top/checkpoint-8/complete.json").unlink()
    with pytest.raises(InputError, match=r"was written by 2 rank\(s\)"):
        stage(finetune, path, f"output_dir={other}")
    again = command("train.finetune", path, f"output_dir={other}", ranks=2)
    assert again.returncode == 0, again.stderr
    assert "continues from" in again.stdout and "checkpoint-4" in again.stdout
    assert same(weights(with_subset), weights(other))
    for run in (with_subset, other):
        resumed = curve(run, "adg-top")
        for name in ("loss", "tokens", "learning_rate"):
            assert [row[name] for row in resumed] == [row[name] for row in metrics]


def test_checkpoints_go_once_the_model_is_whole(config_file, with_subset, stage, tiny_model):
    path = config_file()
    run = stage_run.StageRun("finetune", load_config(path, []))
    run.start()
    lock.release(run.folder, run.label)
    checkpoint = with_subset / "train/adg-top/checkpoint-4"
    artifacts.write_json(checkpoint / "complete.json", {"world_size": 8})
    shutil.copytree(tiny_model, with_subset / "models/adg-top")  # as if killed after its rename
    stage(finetune, path)
    assert not checkpoint.exists() and run.record()["state"] == "finished"


class Clock:
    """Stands for the module time in train.callbacks."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def asked(checkpoints: Checkpoints, step: int, of: int = 10) -> bool:
    control = SimpleNamespace(should_save=None)
    checkpoints.on_step_end(None, SimpleNamespace(global_step=step, max_steps=of), control)
    return bool(control.should_save)


def test_checkpoints_come_by_steps_and_by_the_clock_of_rank_0(monkeypatch, tmp_path):
    monkeypatch.setattr(callbacks, "time", clock := Clock())
    by_both = Checkpoints("whole", steps=4, minutes=30)
    by_both.on_train_begin(None, None, None)
    assert [step for step in range(1, 11) if asked(by_both, step)] == [4, 8]
    clock.now = 1799
    assert not asked(by_both, 5)
    clock.now = 1800
    assert asked(by_both, 5) and not asked(by_both, 10) and not asked(Checkpoints(
        "whole", steps=None, minutes=None), 5)
    (tmp_path / "checkpoint-5").mkdir()
    by_both.on_save(SimpleNamespace(output_dir=tmp_path), SimpleNamespace(global_step=5), None)
    assert not asked(by_both, 6)
    monkeypatch.setattr(distributed, "from_rank_0", lambda value: not value)
    assert asked(by_both, 6)
    clock.now = 3600
    assert not asked(by_both, 6)


def test_a_checkpoint_counts_when_its_own_files_are_on_disk(monkeypatch, tmp_path):
    names = ("model.safetensors", "global_step3/optim_states.pt")
    folder = tmp_path / "checkpoint-3"
    (folder / "global_step3").mkdir(parents=True)
    for name in names:
        (folder / name).write_text("state")
    flushed, plain = [], os.fsync

    def fsync(file: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{file}"))
        plain(file)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "sync", None)
    Checkpoints("complete.json", steps=1, minutes=None).on_save(
        SimpleNamespace(output_dir=tmp_path), SimpleNamespace(global_step=3), None)
    marker = next(i for i, path in enumerate(flushed) if "complete.json" in path)
    assert {str(folder / name) for name in names} <= set(flushed[:marker])


def test_bfloat16_sums_gradients_and_turns_positions_in_float32(config_file, tmp_path, tiny_model):
    from transformers import AutoModelForCausalLM

    artifacts.write_jsonl(tmp_path / "mine.jsonl", RECORDS)
    path = config_file(model={"dtype": "bfloat16"}, train={
        "subset": str(tmp_path / "mine.jsonl"), "batch_size": 10, "epochs": 1,
        "warmup_ratio": 0.0})
    config = load_config(path, [])
    examples, _ = encode_all(
        RECORDS, load_tokenizer(tiny_model, trust_remote_code=False), config)
    number = sum(label != IGNORED for row in examples for label in row["labels"][1:])
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).train()
    sums = [torch.zeros(weight.shape) for weight in plain.parameters()]
    for (record,) in finetune.order_of(examples, config).batches(0):
        plain.zero_grad()
        plain(**collate([examples[record]]), num_items_in_batch=number).loss.backward()
        for total, weight in zip(sums, plain.parameters(), strict=True):
            total += weight.grad.float()
    norm = math.sqrt(sum(total.square().sum().item() for total in sums))

    result = script("finetune_forked", path, *(
        f"output_dir={tmp_path / stage} train.deepspeed=configs/deepspeed/{stage}.json"
        for stage in ("zero2", "zero3")))
    assert result.returncode == 0, result.stderr
    for stage in ("zero2", "zero3"):
        assert curve(tmp_path / stage, "mine")[0]["grad_norm"] == pytest.approx(norm, rel=1e-6)


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

    rows = [example for line in batches.open() for example in json.loads(line)
            if example != NOTHING]
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
    recorded = script("finetune_recorded", tmp_path / "batches.jsonl", path)
    assert recorded.returncode == 0, recorded.stderr
    expected = plain_loop(tiny_model, tmp_path / "batches.jsonl", batch_size=4, epochs=3,
                          learning_rate=2e-3)
    assert len(expected) == 9 and sum(expected[-3:]) < 0.9 * sum(expected[:3])
    alone = [row["loss"] for row in curve(tmp_path / "run", "mine")]
    assert alone == pytest.approx(expected, rel=1e-5)
    for stage, size in (("zero2", 1), ("zero3", 2)):  # the last step of an epoch has 2 records
        other = tmp_path / stage
        result = command("train.finetune", path, f"output_dir={other}",
                         f"train.per_device_batch_size={size}",
                         f"train.deepspeed=configs/deepspeed/{stage}.json", ranks=2)
        assert result.returncode == 0, result.stderr
        assert [row["loss"] for row in curve(other, "mine")] == pytest.approx(alone, rel=1e-5)


MODEL = SimpleNamespace(hidden_size=8, num_hidden_layers=3, num_attention_heads=2,
                        num_key_value_heads=1, head_dim=4, intermediate_size=16, vocab_size=100)


def test_memory_is_that_of_zero_by_hand():
    def needed(zero: dict, ranks: int = 4, *, summed_in: str | None = "fp32", checkpointing=True):
        sharding = {"zero_optimization": zero, "data_types": {"grad_accum_dtype": summed_in}}
        return estimate(1000, MODEL, sharding, bytes_per_weight=2, ranks=ranks, tokens=10,
                        checkpointing=checkpointing)

    activations = 3 * 10 * 8 * 2 + 10 * (2 * (5 * 8 + 2 * 4 + 4 * 16) + 8 * 8) + 10 * 100 * 10
    assert needed({"stage": 0}, summed_in=None) == (2000, 2000, 12000, activations, 0)
    assert needed({"stage": 1}, summed_in=None)[:3] == (2000, 2000, 3000)
    assert needed({"stage": 2})[:3] == (2000, 1000, 3000)
    assert needed({"stage": 2}, summed_in="bf16")[:3] == (2000, 500, 3000)
    assert needed({"stage": 3})[:3] == (500, 1000, 3000)
    assert needed({"stage": 3}, 1)[:3] == (2000, 4000, 12000)
    offload = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "none"}}
    in_stage_2, in_stage_3 = (needed({"stage": stage} | offload) for stage in (2, 3))
    assert in_stage_2[:3] == (2000, 1000, 0) and in_stage_2.host == 3000 + 1000
    assert in_stage_3[:3] == (500, 0, 0) and in_stage_3.host == 3000 + 1000 + 1000
    assert needed({"stage": 2}, checkpointing=False).activations > activations


def test_hours_by_hand():
    assert hours.flops_per_token(1000, MODEL, 50) == 6 * 1000 + 12 * 3 * 8 * 50
    assert hours.flops_per_token(1000, MODEL, 50, checkpointing=True) == 8 * 1000 + 16 * 3 * 8 * 50

    def moved(stage: int, passes: int, ranks: int = 4) -> float:
        return hours.bytes_per_step(1000, stage, passes=passes, ranks=ranks, bytes_per_weight=2)

    assert moved(3, 2) == 2 * 3 * 2000 * 3 / 4  # weights twice and gradients once in each pass
    assert moved(2, 2) == (2 * 2 + 1) * 2000 * 3 / 4  # gradients twice in each, weights once a step
    assert moved(3, 2, ranks=1) == 0
    assert hours.seconds(989e12 * 0.4, 0, nodes=1) == hours.seconds(0, 300e9, nodes=1) == 1
    assert hours.seconds(989e12 * 0.4, 50e9, nodes=2) == 2


def test_a_dry_run_says_what_memory_and_time_it_takes(config_file, with_subset, stage, capsys):
    stage(finetune, config_file(), "--dry-run")
    assert "about" in (text := capsys.readouterr().out) and "optimiser" in text
    assert "2 records a step: 1 rank(s) x 2 pass(es) of 1 on average" in text
    assert "unknown: this run folder holds no speed" in text  # float32: for nothing like a GPU
    stage(finetune, config_file(model={"dtype": "bfloat16"}), "--dry-run")
    assert "min on 1 H100, by arithmetic and not measured: 40% of" in capsys.readouterr().out
    assert not (with_subset / "train").exists()


def test_a_fine_tuning_of_warm_up_alone_is_refused(config_file, with_subset, stage, capsys):
    path = config_file(train={"epochs": 1, "batch_size": 16})
    before = tree(with_subset)
    for options in ((), ("--dry-run",)):
        with pytest.raises(InputError, match=r"learn nothing: 10 records at train.batch_size=16 "
                           r"and train.epochs=1 make 1 step.*set train.warmup_ratio=0$"):
            stage(finetune, path, *options)
    assert tree(with_subset) == before
    stage(finetune, path, "train.warmup_ratio=0", "--dry-run")
    assert "warm-up" not in capsys.readouterr().out
    stage(finetune, path, "train.epochs=2", "--dry-run")
    assert "note: 1 of 2 steps are warm-up" in capsys.readouterr().out
    stage(finetune, path, "train.epochs=3", "--dry-run")
    assert "warm-up" not in capsys.readouterr().out


def test_warm_up_is_counted_as_the_trainer_does():
    for ratio, steps in itertools.product((0.0, 0.03, 0.3, 0.5, 0.99), (1, 2, 3, 33, 34, 1000)):
        settings = TrainConfig(epochs=1, batch_size=1, warmup_ratio=ratio)
        assert settings.num_warmup_steps(steps) == TrainingArguments.get_warmup_steps(
            SimpleNamespace(warmup_steps=ratio), steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for schedule in SCHEDULES.values():
        rates = get_scheduler(schedule, optimizer, 1, 1)
        assert rates.get_last_lr() == [0.0]  # of the only step


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
    with pytest.raises(InputError, match="train.subset: .*none.json not found"):
        stage(finetune, config_file(), f"train.subset={tmp_path / 'none.json'}")
    with pytest.raises(InputError, match="train.subset is 'best'; it must be top, middle"):
        stage(finetune, config_file(), "train.subset=best")


def test_the_newest_whole_checkpoint_counts_by_number(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None
    for step in (9, 512, 1024):
        artifacts.write_json(tmp_path / f"checkpoint-{step}/complete.json", {"world_size": 1})
    (tmp_path / "checkpoint-2048").mkdir()
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-1024"
