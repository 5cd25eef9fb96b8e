"""Benchmarks whose answers are programs, as lm-eval takes them: pass@1 without a download."""

import ast
import statistics
from concurrent.futures import Future
from importlib.resources import files
from typing import Any

from adg.benchmarks import BENCHMARKS, code_benchmarks
from eval import programs


def code_tasks() -> dict[str, dict]:
    """{task: what is ours} of benchmarks that run programs: lm-eval's metric is downloaded from the
    hub, by the module of which a task also takes its functions."""
    tasks = {}
    for benchmark in (BENCHMARKS[name] for name in code_benchmarks(BENCHMARKS)):
        task = {"metric_list": [{"metric": pass_at_1, "aggregation": _solved,
                                 "higher_is_better": True}]}
        if benchmark.code.continues_prompt:
            complete = {"function": "custom", "filter_fn": _with_prompts}
            task["filter_list"] = [{"name": benchmark.metric.split(",")[1], "filter": [complete]}]
        if benchmark.code.shots:
            task["fewshot_config"] = {"sampler": "first_n",
                                      "samples": _shots(benchmark.task, benchmark.code.shots)}
        tasks[benchmark.task] = task
    return tasks


def _with_prompts(responses: list[list[str]], docs: list[dict]) -> list[list[str]]:
    return [[doc["prompt"] + answer for answer in answers]
            for answers, doc in zip(responses, docs, strict=True)]


def _shots(task: str, function: str) -> list[dict]:
    """The examples that a function of lm-eval's task returns, read from its source."""
    source = (files("lm_eval") / "tasks" / task / "utils.py").read_text(encoding="utf-8")
    definition = next(node for node in ast.parse(source).body
                      if isinstance(node, ast.FunctionDef) and node.name == function)
    return ast.literal_eval(definition.body[-1].value)


def pass_at_1(references: list[str] | str, predictions: list | str, **_: Any) -> Future:
    """Whether the first prediction, followed by the tests, passes (eval.programs).

    lm-eval asks for one document after another: each gets a promise, while the programs run side by
    side, and `_solved` and `plain` wait for what was promised.
    """
    tests = references if isinstance(references, str) else references[0]
    candidate = predictions[0] if isinstance(predictions[0], str) else predictions[0][0]
    return programs.submit(f"{candidate}\n{tests}")


def _solved(verdicts: list[Future]) -> float:
    return statistics.fmean(verdict.result() for verdict in verdicts)
