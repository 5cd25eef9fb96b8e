"""Scores of groups and their average, with standard errors, from those of the benchmarks."""

import math

from adg.benchmarks import groups


def group_scores(scores: dict[str, float]) -> dict[str, float | None]:
    """{group: score, ..., "Average": score} in the unit of `scores`; None if incomplete."""
    means: dict[str, float | None] = {
        group: _mean([scores.get(name) for name in names]) for group, names in groups().items()}
    return means | {"Average": _mean(list(means.values()))}


def group_stderrs(stderrs: dict[str, float | None]) -> dict[str, float | None]:
    """Standard errors of the groups and of the average, from those of independent benchmarks."""
    errors = {group: _stderr_of_mean([stderrs.get(name) for name in names])
              for group, names in groups().items()}
    return errors | {"Average": _stderr_of_mean(list(errors.values()))}


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)


def _stderr_of_mean(values: list[float | None]) -> float | None:
    return None if None in values else math.hypot(*values) / len(values)
