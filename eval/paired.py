"""Two evaluated models question by question: how far they differ, and how sure that is.

Both answered the same questions, so the error of the difference is that of its mean over the
questions, which is smaller than what the two models' own standard errors give: most questions are
easy or hard for both.
"""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from adg.base.errors import InputError
from adg.benchmarks import BENCHMARKS
from eval.formats import Table, latex_text
from eval.scores import group_scores, group_stderrs

_NOTE = (
    "In percent. difference: the first less the second. se: standard error of its mean over the "
    "questions, each answered by both. p: two-sided, of a paired t-test.")
_ON_GROUPS = (
    "Of a group and the average, se is from those of their benchmarks, which are independent, and "
    "p by the normal distribution.")
_ON_NONE = "–: none, as every question differs by the same."


class Difference(NamedTuple):
    """Of two models on a benchmark, a group or the average, in percent."""

    first: float
    second: float
    stderr: float | None  # of first - second; None for a single question
    p: float | None  # two-sided; None without a standard error above 0
    questions: int | None = None  # of a benchmark


def compare(first: Path, second: Path) -> Table:
    """The table of two evaluated models, each a run folder that holds one or its eval/NAME."""
    folders = [evaluation(path).resolve() for path in (first, second)]
    names = [f"{folder.parents[1].name}: {folder.name}" for folder in folders]
    differences, left_out = by_benchmark(*([folder] for folder in folders))
    together = of_groups(differences)
    notes = [_NOTE, *[_ON_GROUPS] * bool(together)]
    if any(row.p is None for row in (differences | together).values()):
        notes.append(_ON_NONE)
    if left_out:
        notes.append(f"Not compared, as only one of the two has it: {', '.join(left_out)}.")
    rows = {BENCHMARKS[name].title if name in BENCHMARKS else name: row
            for name, row in (differences | together).items()}
    lines = [[title, _asked(title, row), f"{row.first:.2f}", f"{row.second:.2f}",
              f"{row.first - row.second:+.2f}", "–" if row.stderr is None else f"{row.stderr:.2f}",
              _shown(row.p)] for title, row in rows.items()]
    return Table(["", "questions", *names, "difference", "se", "p"], lines, 6, notes, [
        {"name": title, "runs": names, **row._asdict(), "difference": row.first - row.second}
        for title, row in rows.items()], latex_text(" ".join(notes)))


def evaluation(path: Path) -> Path:
    """RUN_DIR/eval/NAME, where `path` is that, or a run folder that holds one evaluated model."""
    if path.parent.name == "eval" and (path / "scores.json").is_file():
        return path
    folders = sorted(scores.parent for scores in path.glob("eval/*/scores.json"))
    if not folders:
        raise InputError(f"{path}/ holds no evaluated model and is none: give a run folder, or "
                         f"RUN_DIR/eval/NAME, after evaluate has run")
    if len(folders) > 1:
        raise InputError(f"{path}/ holds {len(folders)} evaluated models: give one of "
                         f"{', '.join(map(str, folders))}")
    return folders[0]


def by_benchmark(first: Sequence[Path], second: Sequence[Path]
                 ) -> tuple[dict[str, Difference], list[str]]:
    """({benchmark: difference}, titles of those that only some have) of two models, each by the
    RUN/eval/NAME of its seeds: a question's value is the mean over them."""
    differences, left_out = {}, []
    for name, benchmark in BENCHMARKS.items():
        sides = [[folder / f"{name}.json" for folder in folders] for folders in (first, second)]
        evaluated = [path.is_file() for side in sides for path in side]
        if all(evaluated):
            differences[name] = difference(*_paired(*sides))
        elif any(evaluated):
            left_out.append(benchmark.title)
    if not differences:
        raise InputError(f"{first[0]}/ and {second[0]}/ have no benchmark in common")
    return differences, left_out


def difference(first: list[float], second: list[float]) -> Difference:
    """Of the questions' values, from 0 to 1, in the same order."""
    from scipy.stats import ttest_rel

    stderr = p = None
    if len(first) > 1:
        spread = statistics.stdev(a - b for a, b in zip(first, second, strict=True))
        stderr = 100 * spread / math.sqrt(len(first))
        p = float(ttest_rel(first, second).pvalue) if spread else None
    return Difference(100 * statistics.fmean(first), 100 * statistics.fmean(second), stderr, p,
                      len(first))


def interval(row: Difference) -> tuple[float, float] | None:
    """The 95% interval of a difference, in percent: by t of a benchmark, by the normal distribution
    of a group; None without a standard error above 0."""
    from scipy.stats import norm, t

    if not row.stderr:
        return None
    reach = row.stderr * (norm.ppf(0.975) if row.questions is None
                          else t.ppf(0.975, row.questions - 1))
    value = row.first - row.second
    return float(value - reach), float(value + reach)


def of_groups(differences: dict[str, Difference]) -> dict[str, Difference]:
    """{group or "Average": difference} of those whose benchmarks are all there."""
    first, second = (group_scores({name: row[side] for name, row in differences.items()})
                     for side in (0, 1))
    stderrs = group_stderrs({name: row.stderr for name, row in differences.items()})
    return {group: Difference(value, second[group], stderrs[group],
                              _normal_p(value - second[group], stderrs[group]))
            for group, value in first.items() if value is not None}


def _normal_p(value: float, stderr: float | None) -> float | None:
    return math.erfc(abs(value) / stderr / math.sqrt(2)) if stderr else None


def _paired(first: list[Path], second: list[Path]) -> tuple[list[float], list[float]]:
    """The values of each model on the questions of a benchmark, in one order; means over its seeds.

    InputError where they were not asked the same.
    """
    answers = {path: _answers(path) for path in (*first, *second)}
    for path in answers:
        _check_same(first[0], path, answers)
    return tuple([statistics.fmean(answers[path][key][1] for path in side)
                  for key in sorted(answers[first[0]])] for side in (first, second))


def _check_same(first: Path, second: Path, answers: dict[Path, dict]) -> None:
    title, ours, theirs = BENCHMARKS[first.stem].title, answers[first], answers[second]
    asked = sorted(ours.keys() & theirs.keys())
    if not len(ours) == len(theirs) == len(asked):
        raise InputError(f"{title}: {first} has {len(ours)} questions and {second} "
                         f"{len(theirs)}, of which {len(asked)} are the same: evaluate both with "
                         f"the same eval.limit and eval.data_dir")
    others = [key for key in asked if ours[key][0] != theirs[key][0]]
    if others:
        task, number = others[0]
        raise InputError(f"{title}: only {len(asked) - len(others)} of {len(asked)} questions of "
                         f"{first} and {second} are the same (the first other one: {number} of "
                         f"{task}): evaluate both on the same data")


def _answers(path: Path) -> dict[tuple[str, int], tuple[str, float]]:
    """{(task, number of the question): (hash of the question, value from 0 to 1)}."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        metric, filtered = result["metric"].split(",")
        return {(task, sample["doc_id"]): (sample["doc_hash"], sample[metric])
                for task in result["tasks"] for sample in result["lm_eval"]["samples"][task]
                if sample["filter"] == filtered}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not written by evaluate ({error}); remove it and run evaluate "
                         f"again") from None


def _asked(title: str, row: Difference) -> str:
    size = {benchmark.title: benchmark.size for benchmark in BENCHMARKS.values()}.get(title)
    return "" if size is None else (f"{row.questions}" if row.questions >= size
                                    else f"{row.questions} of {size}")


def _shown(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
