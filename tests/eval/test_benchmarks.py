import json
from pathlib import Path

import pytest

from adg.errors import InputError
from eval import tables
from eval.benchmarks import BENCHMARKS, group_scores


def test_groups_and_average_are_the_papers():
    scores = {"bbh": 60.0, "gsm8k": 40.0, "mmlu": 70.0, "truthfulqa_mc2": 50.0, "mbpp": 30.0,
              "humaneval": 50.0}
    assert group_scores(scores) == {"Reasoning": 50.0, "Knowledge": 60.0, "Code": 40.0,
                                    "Average": 50.0}
    del scores["mbpp"]
    assert group_scores(scores)["Code"] is None and group_scores(scores)["Average"] is None
    assert [benchmark.shots for benchmark in BENCHMARKS.values()] == [3, 8, 4, 0, 1, 0]


def test_published_averages_are_the_means_of_their_groups():
    published = json.loads(Path(tables.__file__).with_name("published.json").read_text())
    for methods in published["main"].values():
        for pools in methods.values():
            for *groups, average in pools.values():
                # one row is 0.037 off in print
                assert sum(groups) / 3 == pytest.approx(average, abs=0.04)


def write_scores(run: Path, name: str, scores: dict, questions: dict) -> None:
    path = run / "eval" / name / "scores.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"scores": scores, "groups": group_scores(scores),
                                "questions": questions}))


def test_a_part_of_a_benchmark_is_marked_and_a_missing_one_visible(tmp_path: Path, stage, capsys):
    run = tmp_path / "mine"
    write_scores(run, "adg-top", {"bbh": 12.0, "gsm8k": 5.0}, {"bbh": 9, "gsm8k": 1319})
    stage(tables, run)
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
            for line in capsys.readouterr().out.splitlines() if line.startswith("|")}
    assert rows["mine: adg-top"] == ["12.00*", "5.00", "–", "–", "–", "–", "8.50*", "–", "–", "–"]
    assert rows["paper: LLaMA3-8B, ADG"][6:] == ["50.11", "60.31", "42.14", "50.85"]


def test_several_runs_share_a_table_and_an_empty_one_is_named(tmp_path: Path, stage, capsys):
    for name in ("a", "b"):
        write_scores(tmp_path / name, "base", {"bbh": 1.0}, {"bbh": 6511})
    stage(tables, tmp_path / "a", tmp_path / "b")
    printed = capsys.readouterr().out
    assert "a: base" in printed and "b: base" in printed and "*" not in printed
    with pytest.raises(InputError, match="run evaluate first"):
        stage(tables, tmp_path / "none")
