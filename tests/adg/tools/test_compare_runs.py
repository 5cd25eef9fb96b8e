import json
from pathlib import Path

import pytest
from conftest import command

from adg.base import artifacts
from adg.base.errors import InputError
from adg.tools import compare_runs
from adg.tools.compare_runs import compare, describe, read_selection


def write(folder: Path, scores: dict[str, float | None], top: list[str]) -> Path:
    artifacts.write_jsonl(folder / "scores.jsonl", (
        {"id": name, "bin": 0, "num_answers": 2, "dispersion": score, "anisotropy": 0.5,
         "score": score} for name, score in scores.items()))
    artifacts.write_json_array(folder / "top.json", ({"id": name} for name in top))
    return folder


def test_figures_by_hand(tmp_path: Path):
    a = write(tmp_path / "a", {"r": 0.9, "s": 0.8, "t": 0.7, "u": 0.6, "only": 0.1}, ["r", "s"])
    b = write(tmp_path / "b", {"u": 0.4, "t": 0.3, "s": 0.9, "r": 0.2, "v": None}, ["s", "u"])
    figures = compare(read_selection(a), read_selection(b))
    assert (figures["common"], figures["only_a"], figures["only_b"]) == (4, 1, 1)
    assert (figures["top_a"], figures["top_b"], figures["shared"]) == (2, 2, 1)
    assert figures["jaccard"] == pytest.approx(1 / 3) and figures["by_chance"] == 1.0
    # ranks in A: r1 s2 t3 u4; in B: s1 u2 t3 r4; 1 - 6 (9 + 1 + 0 + 4) / (4 x 15)
    assert figures["spearman"]["score"] == pytest.approx(1 - 6 * 14 / 60)
    assert figures["spearman"]["anisotropy"] is None
    assert figures["moved_far"] == 0.75
    assert figures["moved_most"][:2] == [("r", 1.0, 4.0), ("u", 4.0, 2.0)]


def test_a_run_against_itself_from_the_command(tmp_path: Path):
    folder = write(tmp_path / "run/subsets/adg", {"r": 0.9, "s": 0.8}, ["r"])
    artifacts.write_jsonl(tmp_path / "run/pool.jsonl",
                          [{"id": "r", "instruction": "Name\nit."}, {"id": "s", "instruction": ""}])
    (tmp_path / "run/config.yaml").write_text(
        f"output_dir: {tmp_path}/run\nmodel: {{name_or_path: m}}\npool: {{path: p}}\n")
    result = command("adg.tools.compare_runs", tmp_path / "run", folder)
    assert result.returncode == 0, result.stderr
    assert ("top: A chose 1, B chose 1; 1 are chosen by both (Jaccard 1.000); chance would give 0.5"
            ) in result.stdout
    assert "moved most" not in result.stdout  # as none has


def test_a_larger_pool_beside_a_smaller_one(tmp_path: Path):
    a = read_selection(write(tmp_path / "a", {"r": 0.9, "s": 0.8, "t": 0.7}, ["r", "s"]))
    b = write(tmp_path / "b", {"r": 0.8, "x": 0.9, "s": 0.9, "t": 0.1}, ["x", "s"])
    text = "\n".join(describe(a, (own := read_selection(b)), compare(a, own)))
    assert ("top: A chose 2, B chose 2, of which 1 are in both pools; 1 are chosen by both "
            "(Jaccard 0.500); chance would give 0.7") in text
    assert [line.split()[:3] for line in text.partition("in B):\n")[2].splitlines()] == [
        ["1", "2", "r:"], ["2", "1", "s:"]]  # and t has not moved
    unscored = write(tmp_path / "c", {"r": None, "s": None, "t": None}, ["r", "s"])
    text = "\n".join(describe(a, (own := read_selection(unscored)), compare(a, own)))
    assert "no record is scored in both" in text and "Spearman" not in text and "moved" not in text


def test_what_cannot_be_compared_is_one_line(tmp_path: Path):
    folder = write(tmp_path / "a", {"r": 0.9}, ["r"])
    result = command("adg.tools.compare_runs", folder, tmp_path / "nothing")
    assert result.returncode == 2 and "neither a run folder" in result.stderr
    assert "Traceback" not in result.stderr
    run = tmp_path / "run"
    write(run / "subsets/mine", {"r": 0.9}, ["r"])
    (run / "config.yaml").write_text("output_dir: run\nmodel: {name_or_path: a/b}\n"
                                     "pool: {path: p.jsonl}\nselection: {name: other}\n")
    with pytest.raises(InputError, match=r"other, which was not found: give one of .*\(mine\)"):
        read_selection(run)
    other = write(tmp_path / "b", {"x": 0.9}, ["x"])
    with pytest.raises(InputError, match="no record id in common"):
        compare(read_selection(folder), read_selection(other))
    (folder / "top.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="not written by select"):
        read_selection(folder)


def test_which_of_several_selections_a_run_folder_stands_for_is_said(tmp_path: Path, stage, capsys):
    run = tmp_path / "run"
    for name in ("adg", "random", "longest"):
        write(run / "subsets" / name, {"r": 0.9, "s": 0.8}, ["r"])
    (run / "config.yaml").write_text(f"output_dir: {run}\nmodel: {{name_or_path: m}}\n"
                                     f"pool: {{path: p}}\nselection: {{name: random}}\n")
    stage(compare_runs, run, run / "subsets/adg")
    said, a, b, *_ = capsys.readouterr().out.splitlines()
    assert said == (f"{run}: the selection random, of the last configuration that ran here; "
                    f"give {run}/subsets/NAME for another (adg, longest)")
    assert a == f"A: {run}/subsets/random" and b == f"B: {run}/subsets/adg"
