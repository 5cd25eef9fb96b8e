"""tests/bench/gpu without a measurement: what it writes, what it skips, when it stops."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from adg.base.errors import InputError
from adg.config import load_config
from tests.bench.gpu import command, machine, random_model, scratch
from tests.bench.gpu.__main__ import chosen
from tests.bench.gpu.bench import SIZES
from tests.bench.gpu.plan import Budget, Part, lacking, measure
from tests.bench.gpu.report import Reading, Report


def readings(*values: float, setting: str = "ours", unit: str = "tokens/s") -> list[Reading]:
    return [Reading("sample", setting, unit, value, "bare") for value in values]


def test_a_report_has_medians_ratios_and_what_is_missing(tmp_path: Path):
    report = Report({"host": "node"})
    given = [*readings(90, 110, 200), *readings(100, 50, setting="bare"),
             *readings(3, unit="records/s"),  # has no baseline in this unit
             Reading("machine", "nvcc on PATH", value="no"),
             Reading("sample", "a|b", note="skipped: no GPU"),
             Reading("embed", "30 tokens", note="failed: RuntimeError: boom"),
             Reading("sample", "ours", "tokens/s", note="failed: later")]  # keeps what is there
    for reading in given:
        report.add(reading)
    paths = report.write(tmp_path, "gpu-node")
    assert [path.name for path in paths] == ["gpu-node.json", "gpu-node.md"]
    found = json.loads(paths[0].read_text())
    assert found["host"] == "node"
    rows = {(row["setting"], row["unit"]): row for row in found["rows"]}
    ours = rows["ours", "tokens/s"]
    assert (ours["median"], ours["values"], ours["baseline"]) == (110, [90, 110, 200], "bare")
    assert ours["ratio"] == pytest.approx(110 / 75) and ours["note"] is None
    assert rows["ours", "records/s"]["ratio"] is None
    assert rows["a|b", ""]["note"] == "skipped: no GPU" and rows["a|b", ""]["median"] is None
    lines = paths[1].read_text().splitlines()
    assert "| sample | ours | 110 (3) | 1.47 | bare | tokens/s |" in lines
    assert "| sample | bare | 75 (2) | 1.00 |  | tokens/s |" in lines
    assert "| machine | nvcc on PATH | no |  |  |  |" in lines
    assert "| sample | a/b | skipped: no GPU |  |  |  |" in lines
    assert "| embed | 30 tokens | failed: RuntimeError: boom |  |  |  |" in lines


class Clock:
    """Seconds that pass only when something is said to take them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def bench_of(minutes: float, **facts: object) -> tuple[SimpleNamespace, Clock, list[Reading]]:
    clock, taken = Clock(), []
    config = SimpleNamespace(model=SimpleNamespace(tensor_parallel_size=1))
    return SimpleNamespace(budget=Budget(minutes, clock), take=taken.append, config=config,
                           **{"gpus": 0, "random": False, **facts}), clock, taken


def part_of(name: str, seconds: float, takes: float, clock: Clock, **options: object) -> Part:
    def run(bench: object):
        clock.now += takes
        yield Reading(name, "", "s", takes)

    return Part(name, "", (), seconds, run, **options)


def test_all_is_measured_once_before_anything_twice_as_long_as_there_is_time():
    bench, clock, taken = bench_of(minutes=10)
    measure([part_of("a", 100, 50, clock), part_of("b", 100, 200, clock, repeats=False),
             part_of("c", 400, 100, clock), part_of("d", 200, 100, clock)], bench, rounds=3)
    assert [(own.what, own.note[:7]) for own in taken] == [
        ("a", ""), ("b", ""),
        ("c", "skipped"),  # 350 s are left, and nobody knows that it would take 100
        ("d", ""),
        ("d", ""), ("a", ""),  # backwards; b is measured once
        ("a", "")]  # the third round: 100 s are left, and then 50, too few for d
    assert "it takes about 400 s, and 350 s are left (--minutes)" in taken[2].note
    assert bench.budget.left() == 50 and bench.budget.refusal(51) and not bench.budget.refusal(50)


def test_what_fails_or_lacks_something_is_said_and_not_tried_again():
    bench, clock, taken = bench_of(minutes=10)

    def fails(bench: object):
        yield Reading("b", "first", "s", 1.0)
        raise command.Failed("RuntimeError: boom")

    measure([Part("a", "with a GPU", ("torch", "gpu"), 1, fails), Part("b", "second", (), 1, fails),
             part_of("c", 1, 1, clock)], bench, rounds=2)
    assert [(own.what, own.setting, own.note) for own in taken] == [
        ("a", "with a GPU", "skipped: no GPU"), ("b", "first", ""),
        ("b", "second", "failed: RuntimeError: boom"), ("c", "", ""), ("c", "", "")]


def left_out(parts: list[Part], config: object, gpus: int = 0, random: bool = False) -> set[str]:
    return {f"{part.what}: {reason}" for part in parts for need in part.needs
            if (reason := lacking(need, config, gpus, random=random))}


def test_the_choice_of_measurements_follows_packages_weights_and_gpus(monkeypatch):
    here = {"torch", "transformers", "vllm", "deepspeed", "lm_eval"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in here else None)
    config = SimpleNamespace(model=SimpleNamespace(tensor_parallel_size=2))
    parts = [part for part in chosen(SIZES["gpu"], None) if "engine_process" not in str(part.needs)]
    assert not left_out(parts, config)
    assert left_out(parts, config, gpus=1) == {
        f"{what}: model.tensor_parallel_size is 2, and the GPUs here are 1"
        for what in ("sample", "check", "evaluate")}
    here -= {"vllm", "deepspeed", "lm_eval"}
    assert left_out(parts, config) == {
        "sample: vllm is not installed", "check: vllm is not installed",
        "finetune: deepspeed is not installed", "evaluate: lm_eval is not installed",
        "evaluate: vllm is not installed"}
    measurable = [part.setting for part in parts
                  if not any(lacking(need, config, 0, random=True) for need in part.needs)]
    assert measurable == ["GPUs, compilers, packages", "product of two matrices",
                          "30 tokens", "250 tokens", "plain loop without optimiser"]
    here.clear()
    assert "embed: torch is not installed" in left_out(parts, config)
    assert lacking("generation.no_such_key", config, 0, random=False) == (
        "generation.no_such_key is not a key of this version's configuration")
    assert lacking("generation.top_p", config, 0, random=False) is None
    with pytest.raises(InputError, match="--only sampel: no such part; there are machine, peak"):
        chosen(SIZES["gpu"], ["sampel"])
    assert {part.what for part in chosen(SIZES["gpu"], ["embed", "peak"])} == {"peak", "embed"}


def test_a_command_that_fails_or_takes_too_long_ends_in_one_line(tmp_path: Path):
    log = tmp_path / "log"
    assert command.run([sys.executable, "-c", "print('done')"], log, 60) == "done\n"
    with pytest.raises(command.Failed, match="^ValueError: boom$"):
        command.run([sys.executable, "-c", "raise ValueError('boom')"], log, 60)
    with pytest.raises(command.Failed, match="ended after 0 s: the time is up"):
        command.run(["tail", "-f", "/dev/null"], log, 0)
    assert "$ tail -f /dev/null" in log.read_text() and "Traceback" in log.read_text()


@pytest.mark.parametrize(("output", "line"), [
    ("Traceback:\n  x\ntorch.OutOfMemoryError: CUDA out of memory\n[W1] destroy\n",
     "torch.OutOfMemoryError: CUDA out of memory"),
    ("10%|#  |\rerror (rank 1): pool.path: x is not there\nbye", "error (rank 1): pool.path: x is "
                                                               "not there"),
    ("(EngineCore pid=1) RuntimeError: no nvcc\n", "RuntimeError: no nvcc"),
    ("only\nthis\n\n", "this"), ("", "")])
def test_the_line_of_an_error_is_found_in_what_a_command_printed(output: str, line: str):
    assert command.last_error(output) == line


def test_gpus_and_programs_are_found_as_they_are(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(machine.distributed, "count_gpus", lambda: 1)
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: SimpleNamespace(
        stdout="NVIDIA H100 80GB HBM3, 81559, 580.1\nNVIDIA H100 80GB HBM3, 81559, 580.1\n"))
    assert machine.gpus() == [("NVIDIA H100 80GB HBM3", pytest.approx(79.65, abs=0.01), "580.1")]
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{tmp_path}")
    monkeypatch.setattr(machine.sys, "executable", str(tmp_path / "bin/python"))
    assert machine.found("ninja") == "no"
    for place, found in (("bin", f"no, but at {tmp_path}/bin/ninja"), ("", f"{tmp_path}/ninja")):
        path = tmp_path / place / "ninja"
        path.parent.mkdir(exist_ok=True)
        path.touch(mode=0o755)
        assert machine.found("ninja") == found


def test_a_scratch_folder_has_the_pool_and_asks_for_no_more(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "pool.jsonl").write_text("".join(f'{{"id": "{i}"}}\n' for i in range(5)))
    (run / "config.yaml").write_text(
        "output_dir: runs/x\nmodel: {name_or_path: m}\npool: {path: p}\nseed: 7\n"
        "selection: {method: ifd}\neval: {benchmarks: [mmlu]}\n")
    folder = tmp_path / "scratch"
    config = scratch.read_config(run, ["generation.top_p=0.5"], folder)
    made = scratch.make(run, None, config, folder, 3, tmp_path / "log", 60)
    assert len((folder / "run/pool.jsonl").read_text().splitlines()) == 3
    assert (made.seed, made.generation.top_p, made.selection.method) == (7, 0.5, "random")
    assert made == load_config(folder / "config.yaml", [])
    assert made.output_dir == str(folder / "run") and Path(made.eval.data_dir).is_dir()


def test_random_records_are_as_many_as_asked_for_and_differ():
    records = random_model.records(60)
    assert [record["id"] for record in records] == [str(i) for i in range(60)]
    assert len({record["output"] for record in records}) == 48  # the demo's pool
    assert 500 < sum(len(record["output"]) for record in records) / 60 < 1500  # characters
