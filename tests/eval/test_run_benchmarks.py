"""The six benchmarks through lm-eval: as lm-eval has them, whatever the rank count."""

import contextlib
import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, command

from adg.base import artifacts, distributed
from adg.base.errors import InputError
from adg.benchmarks import BENCHMARKS, Benchmark, Questions
from adg.config import load_config
from eval import fetch_benchmarks, harness, programs, run_benchmarks, shared_model, tables
from eval.backends import load_model
from generation import contamination


@pytest.fixture(scope="module")
def manager():
    """lm-eval's task manager over the demo's benchmarks: seconds to build."""
    return harness.task_manager(ROOT / "configs/demo/benchmarks")


def test_consent_is_asked_before_anything_is_loaded(config_file, stage):
    with pytest.raises(InputError, match="allow_code_execution is false, but mbpp and humaneval"):
        stage(run_benchmarks, config_file(), "eval.allow_code_execution=false")


def test_two_ranks_give_the_numbers_of_lm_eval_alone(config_file, stage, manager, tiny_model,
                                                     tmp_path: Path):
    run = tmp_path / "run"
    result = command("eval.run_benchmarks", config_file(), "eval.name=base", "eval.limit=2",
                     ranks=2)
    assert result.returncode == 0, result.stderr
    shown = re.split("[\r\n]+", result.stderr.strip())  # the stage's own bars alone
    assert [line for line in shown if not line.startswith("[evaluate ")] == []
    assert re.search(r"\[evaluate truthfulqa_mc2\]: 100%.* (\d+)/\1 .* requests/s", shown_ := (
        "\n".join(shown))), shown_
    assert "Running loglikelihood requests: 100%" in (
        run / "provenance/evaluate-base.0.log").read_text()
    scores = json.loads((run / "eval/base/scores.json").read_text())
    assert scores["questions"] == {"bbh": 6, "gsm8k": 2, "mmlu": 8, "truthfulqa_mc2": 2, "mbpp": 2,
                                   "humaneval": 2}
    from lm_eval import simple_evaluate

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
    assert not (run / "eval/base/cache").exists() or not list((run / "eval/base/cache").iterdir())

    (run / "eval/base/gsm8k.json").unlink()  # as if killed in the middle
    kept = (run / "eval/base/mmlu.json").stat().st_mtime_ns
    stage(run_benchmarks, config_file(), "eval.name=base", "eval.limit=2")
    assert json.loads((run / "eval/base/scores.json").read_text())["scores"] == pytest.approx(
        scores["scores"], abs=1e-3)
    assert (run / "eval/base/mmlu.json").stat().st_mtime_ns == kept
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["benchmarks"] == ["gsm8k"]
    used = json.loads((run / "eval/base/humaneval.json").read_text())["sandbox"]
    assert used == lines[0]["sandbox"] in ("none", *programs.SANDBOXES)
    assert "sandbox" not in json.loads((run / "eval/base/mmlu.json").read_text())


def test_a_gguf_base_is_dequantised_before_there_is_a_process_group(
        config_file, stage, monkeypatch, tiny_gguf, tmp_path: Path):
    """Within one, rank 1 would save nothing but the tokenizer, and be the first to have the lock.
    """
    found = []

    @contextlib.contextmanager
    def process_group():
        found.extend((tmp_path / "models").glob("*/*.safetensors"))
        yield

    monkeypatch.setattr(distributed, "process_group", process_group)
    monkeypatch.setattr(run_benchmarks, "find_tasks", lambda config: (None, {}))
    monkeypatch.setattr(run_benchmarks, "evaluate_missing", lambda *own: artifacts.write_json(
        tmp_path / "run/eval/base/gsm8k.json", {"benchmark": "gsm8k"}))
    monkeypatch.setattr(run_benchmarks, "summarise", lambda folder: {
        "questions": {"gsm8k": 1}, "scores": {}})
    stage(run_benchmarks, config_file(), "eval.name=base", "eval.benchmarks=[gsm8k]",
          f"model.name_or_path={tiny_gguf}")
    assert found


@pytest.mark.parametrize(("name", "inner"), [("gsm8k", "_model_generate"),
                                             ("truthfulqa_mc2", "_model_call")])
def test_a_benchmark_that_was_cut_short_asks_for_the_rest_only(
        config_file, manager, tiny_model, tmp_path, monkeypatch, name, inner):
    config = load_config(config_file(), ["eval.batch_size=1"])
    model, calls, limit = load_model(tiny_model, config), [], [10**9]
    plain = getattr(model, inner)

    def counted(*own, **options):
        calls.append(1)
        if len(calls) > limit[0]:
            raise RuntimeError("the machine died")
        return plain(*own, **options)

    monkeypatch.setattr(model, inner, counted)

    def run() -> dict:
        calls.clear()
        return harness.evaluate(model, [name], manager, shots=BENCHMARKS[name].shots, limit=3,
                                max_new_tokens=8)

    whole, asked = harness.plain(run()), len(calls)
    model.cache, limit[0] = tmp_path / "cache", 2
    with pytest.raises(RuntimeError, match="the machine died"):
        run()
    limit[0] = 10**9
    resumed = harness.plain(run())
    assert len(calls) == asked - 2 > 0
    assert resumed["results"] == whole["results"]
    assert [own["resps"] for own in resumed["samples"][name]] == [
        own["resps"] for own in whole["samples"][name]]
    run()
    assert not calls


def test_four_ranks_read_a_question_once_and_rank_0_alone_loads_it(config_file, manager, tiny_model,
                                                                   monkeypatch, tmp_path: Path):
    config = load_config(config_file(), ["eval.batch_size=1", "eval.name=base"])
    model, passes, dealt = load_model(tiny_model, config), [], []
    plain = model._model_call

    def evaluate() -> dict:
        run_benchmarks.evaluate_missing(["mmlu"], tiny_model, tmp_path, manager, {"mmlu": tasks},
                                        config)
        return json.loads((tmp_path / "mmlu.json").read_text())

    def scatter(shares: list) -> tuple:
        dealt.append(shares)
        return shares[0]

    def gather(results: dict) -> dict:
        for share in dealt[-1][1:]:
            results |= model._compute(*share)
        return results

    tasks = harness.leaf_tasks(manager, "mmlu")
    tasks = harness.require_data(manager, tasks, ROOT / "configs/demo/benchmarks", "mmlu")
    monkeypatch.setattr(run_benchmarks, "load_model", lambda *_: model)
    monkeypatch.setattr(model, "_model_call", lambda *own: passes.append(1) or plain(*own))
    alone = evaluate()
    assert len(passes) == alone["questions"] == len(tasks) > 3
    passes.clear()
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(shared_model, "_scatter", scatter)
    monkeypatch.setattr(shared_model, "_gather", gather)
    assert evaluate()["lm_eval"]["samples"] == alone["lm_eval"]["samples"]
    assert len(passes) == len(tasks)
    assert all(len(arguments) == 4 for _, arguments, _ in dealt[0])
    assert dealt[-1] == [None] * 4  # the other ranks may go

    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(harness, "evaluate", None)  # not for rank 1
    asked = [dealt[0][1], None]
    monkeypatch.setattr(shared_model, "_scatter", lambda nothing: asked.pop(0))
    monkeypatch.setattr(shared_model, "_gather", lambda results: dealt.append(set(results)))
    run_benchmarks.evaluate_missing(["mmlu"], tiny_model, tmp_path, None, {}, config)
    assert dealt[-1] == set(dealt[0][1][1]) and not asked


def test_the_chinese_benchmarks_read_local_data(config_file, tiny_model, tmp_path):
    choices = dict(zip("ABCD", ["红", "黄", "蓝", "绿"], strict=True))
    for folder, split, names in (("haonan-li/cmmlu/arts", "test", ("Question", "Answer")),
                                 ("ceval/ceval-exam/law", "val", ("question", "answer"))):
        for name, number in (("dev", 5), (split, 3)):
            artifacts.write_jsonl(tmp_path / "data" / folder / f"{name}.jsonl", (
                {names[0]: f"第{i}题：哪一个是颜色？", **choices, names[1]: "ABCD"[i % 4]}
                for i in range(number)))
    config = load_config(config_file(), [])
    manager = harness.task_manager(tmp_path / "data")
    model = load_model(tiny_model, config)
    for name in ("cmmlu", "ceval-valid"):
        benchmark = BENCHMARKS[name]
        tasks = harness.require_data(manager, harness.leaf_tasks(manager, benchmark.task),
                                     tmp_path / "data", name)
        assert len(tasks) == 1
        result = harness.evaluate(model, tasks, manager, shots=benchmark.shots, limit=None,
                                  max_new_tokens=None)
        own = run_benchmarks.condense(name, tasks, result, "hf")
        assert own["questions"] == 3 and own["score"] in [0, pytest.approx(100 / 3),
                                                          pytest.approx(200 / 3), 100]
        prompt = own["lm_eval"]["samples"][tasks[0]][0]["arguments"][0][0]
        assert prompt.count("答案：") == 6


def test_a_further_benchmark_is_one_row(config_file, stage, monkeypatch, tmp_path: Path, capsys):
    question = "Which of these colours does a clear sky have at noon on a summer day?"
    for split in ("train", "validation", "test"):
        artifacts.write_jsonl(tmp_path / f"data/allenai/ai2_arc/ARC-Easy/{split}.jsonl", (
            {"id": f"{split}-{i}", "question": question, "answerKey": "AB"[i % 2],
             "choices": {"text": ["blue", "green"], "label": ["A", "B"]}} for i in range(3)))
    monkeypatch.setitem(BENCHMARKS, "arc", Benchmark(
        "ARC-e", "arc_easy", 1, "acc,none", "Science", 2376, optional=True,
        questions=Questions("allenai/ai2_arc", "test", ("question",))))
    stage(run_benchmarks, config_file(), "eval.name=base", "eval.benchmarks=[arc]",
          f"eval.data_dir={tmp_path}/data", "eval.limit=null")
    scores = json.loads((tmp_path / "run/eval/base/scores.json").read_text())
    assert scores["questions"] == {"arc": 3} and scores["scores"].keys() == {"arc"}
    assert scores["groups"].keys() == {"Reasoning", "Knowledge", "Code", "Average"}
    stage(tables, tmp_path / "run", "--benchmarks", "arc-e")
    printed = capsys.readouterr().out
    assert f"{scores['scores']['arc']:.2f}* se" in printed and "ARC-e 3 of 2376" in printed
    overlap = contamination.Benchmarks(tmp_path / "data").overlap(
        {"instruction": question, "input": "", "output": ""})
    assert (overlap.benchmark, overlap.task, overlap.question) == ("arc", "ARC-Easy", 1)


def test_a_fetched_folder_gives_the_tasks_their_data(tmp_path, monkeypatch, stage):
    """The hub is stood in for by the demo's files: what is fetched reads back as it was."""
    import datasets

    source, asked = ROOT / "configs/demo/benchmarks", []

    def load(path: str, name: str | None, split: str):
        asked.append((path, name, split))
        return artifacts.JsonlRows(source / path / (name or path.split("/")[-1]) / f"{split}.jsonl")

    monkeypatch.setattr(datasets, "load_dataset", load)
    names = ["gsm8k", "truthfulqa_mc2", "mbpp", "humaneval"]
    stage(fetch_benchmarks, tmp_path / "data", "--benchmarks", *names)
    for path in sorted((tmp_path / "data").rglob("*.jsonl")):
        own = (source / path.relative_to(tmp_path / "data")).open()
        assert [json.loads(line) for line in path.open()] == [json.loads(line) for line in own]
    for path in ("openai/gsm8k/main", "truthfulqa/truthful_qa/multiple_choice",
                 "google-research-datasets/mbpp/full", "openai/openai_humaneval/openai_humaneval"):
        assert list((tmp_path / "data" / path).glob("*.jsonl"))
    assert ("openai/gsm8k", "main", "train") in asked
    task = {"dataset_path": "openai/gsm8k", "dataset_name": "main", "test_split": "test"}
    assert fetch_benchmarks.fetch(task, tmp_path / "data", "gsm8k") == 0
    assert fetch_benchmarks.fetch(task, tmp_path / "other", "gsm8k") == 1


def test_data_that_is_not_there_is_named(config_file, tmp_path: Path):
    (tmp_path / "data").mkdir()
    result = command("eval.run_benchmarks", config_file(), "eval.name=base",
                     f"eval.data_dir={tmp_path}/data")
    assert result.returncode == 2
    assert "holds no data for bbh" in result.stderr and "Traceback" not in result.stderr
    assert re.search(rf"\(looked in {re.escape(str(tmp_path))}/data/\S+/\S+/ and \d+ more\); add",
                     result.stderr)


def test_what_the_hub_lacks_is_named_without_a_configuration(monkeypatch):
    import datasets

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=r"^x: the hub did not give a/b test: offline$"):
        fetch_benchmarks._load("a/b", None, "test", "x")
