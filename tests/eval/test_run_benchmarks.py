"""The six benchmarks through lm-eval: as lm-eval has them, whatever the rank count."""

import json
import time
from pathlib import Path

import pytest
from conftest import ROOT, command

from adg.errors import InputError
from eval import harness, run_benchmarks
from eval.benchmarks import BENCHMARKS


def test_programs_run_apart_and_within_limits():
    assert harness.passes("assert 1 + 1 == 2")
    assert not harness.passes("assert 1 + 1 == 3")
    assert not harness.passes("x = bytearray(8 << 30)")
    assert not harness.passes("import os; assert os.environ.get('PATH')")
    assert harness.pass_at_1(["assert f() == 1"], [["def f():\n    return 1"]]) == 1.0
    assert harness.pass_at_1("assert f() == 1", ["def f():\n    return 2"]) == 0.0


def test_a_program_that_does_not_end_is_ended_with_all_it_started(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(harness, "_SECONDS", 0.5)
    mark = tmp_path / "alive"
    program = (f"import os, time\nif os.fork() == 0:\n    os.close(0)\n    time.sleep(1)\n"
               f"    open({str(mark)!r}, 'w')\nwhile True: pass")
    assert not harness.passes(program)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        assert not mark.exists()


def test_consent_is_asked_before_anything_is_loaded(config_file, stage):
    with pytest.raises(InputError, match="allow_code_execution is false, but mbpp and humaneval"):
        stage(run_benchmarks, config_file(), "eval.allow_code_execution=false")


def test_two_ranks_give_the_numbers_of_lm_eval_alone(config_file, tiny_model, tmp_path: Path):
    run = tmp_path / "run"
    result = command("eval.run_benchmarks", config_file(), "eval.name=base", "eval.limit=2",
                     ranks=2)
    assert result.returncode == 0, result.stderr
    scores = json.loads((run / "eval/base/scores.json").read_text())
    assert scores["questions"] == {"bbh": 6, "gsm8k": 2, "mmlu": 8, "truthfulqa_mc2": 2, "mbpp": 2,
                                   "humaneval": 2}
    from lm_eval import simple_evaluate

    manager = harness.task_manager(ROOT / "configs/demo/benchmarks")
    for name in ("gsm8k", "truthfulqa_mc2"):
        own = json.loads((run / f"eval/base/{name}.json").read_text())
        plain = simple_evaluate(
            model="hf", model_args={"pretrained": str(tiny_model), "dtype": "float32"}, limit=2,
            tasks=[name], num_fewshot=BENCHMARKS[name].shots, task_manager=manager,
            bootstrap_iters=0, gen_kwargs="max_gen_toks=8", device="cpu")
        for ours, theirs in zip(own["lm_eval"]["samples"][name], plain["samples"][name],
                                strict=True):
            assert ours["prompt_hash"] == theirs["prompt_hash"]  # GSM8K's random shots too
        expected = 100 * plain["results"][name][BENCHMARKS[name].metric]
        assert own["score"] == pytest.approx(expected, abs=1e-3)

    (run / "eval/base/gsm8k.json").unlink()  # as if killed in the middle
    kept = (run / "eval/base/mmlu.json").stat().st_mtime_ns
    again = command("eval.run_benchmarks", config_file(), "eval.name=base", "eval.limit=2")
    assert again.returncode == 0, again.stderr
    assert json.loads((run / "eval/base/scores.json").read_text())["scores"] == pytest.approx(
        scores["scores"], abs=1e-3)
    assert (run / "eval/base/mmlu.json").stat().st_mtime_ns == kept
    line = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert line["benchmarks"] == ["gsm8k"]


def test_data_that_is_not_there_is_named(config_file, tmp_path: Path):
    (tmp_path / "data").mkdir()
    result = command("eval.run_benchmarks", config_file(), "eval.name=base",
                     f"eval.data_dir={tmp_path}/data")
    assert result.returncode == 2
    assert "holds no data for bbh" in result.stderr and "Traceback" not in result.stderr
