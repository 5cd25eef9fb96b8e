"""Two evaluated models compared question by question."""

import json
import math
import re
import statistics
from pathlib import Path

import pytest
from scipy.stats import norm, ttest_rel

from adg.base import artifacts
from adg.base.errors import InputError
from adg.benchmarks import BENCHMARKS, main_benchmarks
from eval import paired, tables
from eval.scores import group_scores


def asked(folder: Path, values: dict[str, list[float]], *, other: tuple[str, int] | None = None
          ) -> Path:
    """An evaluated model: {benchmark: value of each question}, over two tasks each."""
    artifacts.write_json(folder / "scores.json", {"scores": {}, "groups": {}, "questions": {}})
    for name, numbers in values.items():
        metric, filtered = BENCHMARKS[name].metric.split(",")
        samples: dict[str, list] = {"b": [], "a": []}
        for place, value in enumerate(numbers):
            text = "other" if (name, place) == other else f"{name} {place}"
            samples["ba"[place % 2]] += [
                {"doc_id": place // 2, "doc_hash": text, "filter": filtered, metric: value},
                {"doc_id": place // 2, "doc_hash": text, "filter": "another", metric: 0.5}]
        artifacts.write_json(folder / f"{name}.json", {
            "metric": BENCHMARKS[name].metric, "tasks": ["b", "a"],
            "lm_eval": {"samples": samples}})
    return folder


MAIN = main_benchmarks()
FIRST = {name: [float((place * 7 + number) % 3 > 0) for place in range(10 + number)]
         for number, name in enumerate(MAIN)}
SECOND = {name: [float((place * 5 + number) % 4 > 1) for place in range(10 + number)]
          for number, name in enumerate(MAIN)}


def test_differences_and_errors_are_those_of_the_questions(tmp_path: Path, stage, capsys):
    asked(tmp_path / "ours/eval/adg-top", FIRST)
    asked(tmp_path / "ours/eval/random-top", SECOND | {"cmmlu": [1.0, 0.0]})
    stage(tables, tmp_path / "ours/eval/adg-top", tmp_path / "ours/eval/random-top", "--paired",
          "--format", "json")
    printed = json.loads(capsys.readouterr().out)
    assert "only one of the two has it: CMMLU" in printed["notes"][-1]
    rows = {row["name"]: row for row in printed["rows"]}
    assert list(rows) == ["BBH", "GSM8K", "MMLU", "TruthfulQA", "MBPP", "HumanEval", "Reasoning",
                          "Knowledge", "Code", "Average"]
    errors = {}
    for name in MAIN:
        row = rows[BENCHMARKS[name].title]
        ours, theirs = FIRST[name], SECOND[name]
        assert row["questions"] == len(ours)
        assert row["difference"] == pytest.approx(100 * (sum(ours) - sum(theirs)) / len(ours))
        apart = [a - b for a, b in zip(ours, theirs, strict=True)]
        errors[name] = 100 * statistics.stdev(apart) / len(apart) ** 0.5
        assert row["stderr"] == pytest.approx(errors[name])
        assert row["p"] == pytest.approx(ttest_rel(ours, theirs).pvalue)
    groups = {group: (a, b) for group, a, b in (("Reasoning", "bbh", "gsm8k"), (
        "Knowledge", "mmlu", "truthfulqa_mc2"), ("Code", "mbpp", "humaneval"))}
    for group, (a, b) in groups.items():
        row = rows[group]
        assert row["difference"] == pytest.approx(
            (rows[BENCHMARKS[a].title]["difference"] + rows[BENCHMARKS[b].title]["difference"]) / 2)
        assert row["stderr"] == pytest.approx(math.hypot(errors[a], errors[b]) / 2)
        assert row["p"] == pytest.approx(2 * norm.sf(abs(row["difference"]) / row["stderr"]))
    average = rows["Average"]
    assert average["difference"] == pytest.approx(
        sum(rows[group]["difference"] for group in groups) / 3)
    assert average["stderr"] == pytest.approx(math.hypot(*errors.values()) / 6)


def test_a_table_for_people(tmp_path: Path, stage, capsys):
    asked(tmp_path / "a/eval/adg-top", {"gsm8k": [1.0, 1.0, 0.0, 1.0]})
    asked(tmp_path / "b/eval/adg-top", {"gsm8k": [1.0, 0.0, 0.0, 0.0]})
    stage(tables, tmp_path / "a", tmp_path / "b/eval/adg-top", "--paired", "--format", "text")
    head, line, *_ = capsys.readouterr().out.splitlines()
    assert re.split("  +", head) == ["", "questions", "a: adg-top", "b: adg-top", "difference",
                                     "se", "p"]
    assert line.split() == ["GSM8K", "4", "of", "1319", "75.00", "25.00", "+50.00", "28.87",
                            "0.182"]
    stage(tables, tmp_path / "a", tmp_path / "b", "--paired")
    printed = capsys.readouterr().out
    assert "–" not in printed and "group" not in printed  # neither is in this table
    for kind in ("markdown", "latex"):
        stage(tables, tmp_path / "a", tmp_path / "b", "--paired", "--format", kind)
        assert "28.87" in capsys.readouterr().out
    stage(tables, tmp_path / "a", tmp_path / "a", "--paired")
    _, rule, line, *_ = capsys.readouterr().out.splitlines()
    assert rule.endswith("-:|") and line.replace(" ", "").endswith("|+0.00|0.00|–|")
    assert not (tmp_path / "a/tables.md").exists()


def test_what_cannot_be_paired_is_named(tmp_path: Path, stage):
    run = tmp_path / "run"
    for name in ("adg-top", "base"):
        asked(run / "eval" / name, FIRST)
    few = asked(tmp_path / "few", {"gsm8k": FIRST["gsm8k"][:6]})
    changed = asked(tmp_path / "changed", FIRST, other=("mmlu", 4))
    first = run / "eval/adg-top"
    for runs, message in (
            ([run, first], "run/ holds 2 evaluated models: give one of .*adg-top, .*base"),
            ([first, tmp_path], "holds no evaluated model and is none"),
            ([first], "two evaluated models; 1 given"),
            ([first, first, first], "two evaluated models; 3 given")):
        with pytest.raises(InputError, match=message):
            stage(tables, *runs, "--paired")
    with pytest.raises(InputError, match="GSM8K: .* has 11 questions and .* 6, of which 6 are the"):
        paired.by_benchmark([first], [few])
    with pytest.raises(InputError, match="MMLU: only 11 of 12 questions .* 2 of b"):
        paired.by_benchmark([first], [changed])
    (few / "gsm8k.json").write_text("[]")
    with pytest.raises(InputError, match="not written by evaluate"):
        paired.by_benchmark([first], [few])
    with pytest.raises(InputError, match="no benchmark in common"):
        paired.by_benchmark([first], [tmp_path])


def test_rows_against_one_of_them(tmp_path: Path, stage, capsys):
    from scipy.stats import ttest_rel

    for name, values in (("adg-top", FIRST), ("random-top", SECOND), ("base", FIRST)):
        folder = asked(tmp_path / "run/eval" / name, values)
        scores = {own: 100 * statistics.fmean(numbers) for own, numbers in values.items()}
        artifacts.write_json(folder / "scores.json", {
            "scores": scores, "groups": group_scores(scores),
            "questions": {own: len(numbers) for own, numbers in values.items()}})
    stage(tables, tmp_path / "run", "--against", "random-top", "--rows", "adg-top", "random-top",
          "--format", "json")
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["runs"] for row in rows] == [["run: adg-top"], ["run: random-top"]]
    assert rows[0]["against"]["name"] == "random-top" and "against" not in rows[1]
    numbers = rows[0]["against"]["numbers"]
    test = ttest_rel(FIRST["gsm8k"], SECOND["gsm8k"])
    interval = [100 * value for value in test.confidence_interval(0.95)]
    assert numbers["gsm8k"]["interval"] == pytest.approx(interval)
    assert numbers["gsm8k"]["p"] == pytest.approx(test.pvalue)
    average = numbers["Average"]
    assert average["interval"] == pytest.approx([average["difference"] + sign * 1.959964
                                                 * average["stderr"] for sign in (-1, 1)])
    stage(tables, tmp_path / "run", "--against", "random-top", "--benchmarks", "gsm8k", "Average")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:7]] == [
        "run: adg-top", "less random-top", "run: base", "less random-top", "run: random-top"]
    low, high = interval
    assert f"{numbers['gsm8k']['difference']:+.2f} [{low:+.2f}, {high:+.2f}]" in lines[3]
    for arguments, message in ((("--against", "x"), "no row is called x"),
                               (("--rows", "base", "--against", "base"), "there is no other row")):
        with pytest.raises(InputError, match=message):
            stage(tables, tmp_path / "run", *arguments)


def test_a_question_of_several_seeds_counts_by_its_mean(tmp_path: Path):
    folders = [asked(tmp_path / f"{seed}", {"gsm8k": values}) for seed, values in (
        (1, [1.0, 0.0, 1.0, 0.0]), (2, [1.0, 1.0, 0.0, 0.0]), (3, [0.0, 0.0, 0.0, 1.0]))]
    found, _ = paired.by_benchmark(folders[:2], folders[2:])
    expected = paired.difference([1.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0])
    assert found["gsm8k"] == expected
