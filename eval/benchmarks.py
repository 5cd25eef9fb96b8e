"""The benchmarks: lm-eval's task, shots, the metric that counts, the paper's group.

Group: the mean of its two benchmarks; average: the mean of the three groups of the six English ones
(paper, set-up). The Chinese ones stand beside them.
"""

import math
from typing import NamedTuple


class Benchmark(NamedTuple):
    """How one number of the table is obtained."""

    title: str
    task: str  # lm-eval's task or group of tasks
    shots: int  # examples in the prompt
    metric: str  # the key of lm-eval's results that counts
    group: str
    questions: int  # of the whole benchmark: fewer are marked as not comparable


BENCHMARKS = {
    "bbh": Benchmark("BBH", "bbh", 3, "exact_match,get-answer", "Reasoning", 6511),
    "gsm8k": Benchmark("GSM8K", "gsm8k", 8, "exact_match,strict-match", "Reasoning", 1319),
    "mmlu": Benchmark("MMLU", "mmlu", 4, "acc,none", "Knowledge", 14042),
    "truthfulqa_mc2": Benchmark("TruthfulQA", "truthfulqa_mc2", 0, "acc,none", "Knowledge", 817),
    "mbpp": Benchmark("MBPP", "mbpp", 1, "pass_at_1,none", "Code", 500),
    "humaneval": Benchmark("HumanEval", "humaneval", 0, "pass_at_1,create_test", "Code", 164),
    # 5-shot, as the authors of both have it: the paper does not say
    "cmmlu": Benchmark("CMMLU", "cmmlu", 5, "acc,none", "Chinese", 11582),
    "ceval-valid": Benchmark("C-Eval", "ceval-valid", 5, "acc,none", "Chinese", 1346),
}
GROUPS = ("Reasoning", "Knowledge", "Code")


def group_scores(scores: dict[str, float]) -> dict[str, float | None]:
    """{"Reasoning", "Knowledge", "Code", "Average"} in the unit of `scores`; None if incomplete."""
    groups: dict[str, float | None] = {}
    for group in GROUPS:
        names = [name for name, benchmark in BENCHMARKS.items() if benchmark.group == group]
        groups[group] = _mean([scores.get(name) for name in names])
    groups["Average"] = _mean(list(groups.values()))
    return groups


def group_stderrs(stderrs: dict[str, float | None]) -> dict[str, float | None]:
    """Standard errors of the groups and of the average, from those of independent benchmarks."""
    groups = {group: _stderr_of_mean([stderrs.get(name) for name, own in BENCHMARKS.items()
                                      if own.group == group]) for group in GROUPS}
    return groups | {"Average": _stderr_of_mean(list(groups.values()))}


def _stderr_of_mean(values: list[float | None]) -> float | None:
    return None if None in values else math.hypot(*values) / len(values)


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)
