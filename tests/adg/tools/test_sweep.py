"""Every combination is a selection of its own, from what is stored, once."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import RECORDS

from adg import score_and_select
from adg.base import arrays, artifacts
from adg.base.errors import InputError
from adg.geometry import centred_grams
from adg.tools import sweep
from generation import prepare_pool


@pytest.fixture
def run_folder(config_file, stage, tmp_path: Path) -> Path:
    """A run folder with a pool from prepare, and bins and Grams made elsewhere."""
    stage(prepare_pool, config_file())
    vectors = np.random.default_rng(0).normal(size=(len(RECORDS), 3, 8))
    arrays.write_array(tmp_path / "run/answer_grams/00000.npy", centred_grams(vectors).astype("f4"))
    arrays.write_array(tmp_path / "run/bins.npy", np.arange(len(RECORDS), dtype=np.int32) % 3)
    return tmp_path / "run"


def top(run: Path, name: str) -> list[str]:
    return [record["id"] for record in json.loads((run / f"subsets/{name}/top.json").read_text())]


def stages(run: Path) -> list[str]:
    return [json.loads(line)["stage"] for line in (run / "log.jsonl").open()]


def test_every_combination_is_selected_once(config_file, stage, run_folder, capsys):
    over = ("--over", "selection.anisotropy_weight=0,.5", "--over", "selection.num_answers=2,null")
    with pytest.raises(SystemExit) as ended:
        stage(sweep, config_file(), *over)
    assert ended.value.code == 0
    names = [f"anisotropy_weight-{weight}_num_answers-{number}"
             for weight in ("0", ".5") for number in ("2", "null")]
    for name, (weight, number) in zip(names, [(0, 2), (0, "null"), (.5, 2), (.5, "null")],
                                      strict=True):
        stage(score_and_select, config_file(), "selection.name=x", "--overwrite",
              f"selection.anisotropy_weight={weight}", f"selection.num_answers={number}")
        assert top(run_folder, name) == top(run_folder, "x")
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("| ") and "adg" not in line]
    for number, name in enumerate(names, 1):
        counts = [len({*top(run_folder, name)} & {*top(run_folder, other)}) for other in names]
        assert f"| {number}. {name} | {' | '.join(map(str, counts))} |" in table
    assert stages(run_folder) == ["prepare"] + ["select"] * 8
    with pytest.raises(SystemExit):
        stage(sweep, config_file(), *over)
    assert len(stages(run_folder)) == 9  # done before


def test_a_value_that_is_written_in_several_ways_is_one(config_file, stage, run_folder, capsys):
    with pytest.raises(SystemExit):
        stage(sweep, config_file(), "--over", "selection.anisotropy_weight=0.4,0.40,.4,1",
              "--over", "selection.method=adg,random")
    assert sorted(path.name for path in (run_folder / "subsets").iterdir()) == [
        "anisotropy_weight-0.4_adg", "anisotropy_weight-1_adg", "random"]
    assert "| 3. " in (said := capsys.readouterr().out) and "| 4. " not in said


def test_what_cannot_be_selected_is_listed_beside_the_rest(config_file, stage, run_folder, capsys):
    with pytest.raises(SystemExit) as ended:
        stage(sweep, config_file(), "--over", "selection.budget=3,11", "selection.method=random")
    assert ended.value.code == 2
    printed = capsys.readouterr().out
    assert "| 1. budget-3 | 3 |" in printed
    assert "not selected: budget-11: selection.budget is 11, but the pool has 10" in printed


def test_values_that_decide_a_measure_have_measures_of_their_own(config_file, stage, run_folder,
                                                                 monkeypatch):
    monkeypatch.setenv("NPROC", "1")
    arguments = ("--over", "selection.method=ifd", "--over", "selection.ifd.prompt=alpaca,wiz",
                 "--over", "selection.budget=1,2")
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            stage(sweep, config_file(), *arguments)
        assert ended.value.code == 0
    names = [f"ifd_ifd.prompt-{prompt}" for prompt in ("alpaca", "wiz")]
    assert sorted(path.name for path in (run_folder / "measures").iterdir()) == names
    assert sorted(path.name for path in (run_folder / "subsets").iterdir()) == [
        f"{name}_budget-{budget}" for name in names for budget in (1, 2)]
    assert stages(run_folder) == ["prepare", *["measure", "select", "select"] * 2]


def test_mig_is_chosen_from_given_annotations(config_file, stage, run_folder, tmp_path):
    artifacts.write_jsonl(tmp_path / "given.jsonl", (
        {"id": own["id"], "tags": ["a", "b"][: 1 + i % 2], "quality_scores": [i],
         "complexity_scores": [1]} for i, own in enumerate(RECORDS)))
    arrays.write_array(tmp_path / "tags.npy", np.eye(2, dtype=np.float32))
    artifacts.write_json(tmp_path / "tags.json", ["a", "b"])
    with pytest.raises(SystemExit) as ended:
        stage(sweep, config_file(), "--over", "selection.method=mig,random",
              f"selection.mig.annotations={tmp_path}/given.jsonl",
              f"selection.mig.tag_vectors={tmp_path}/tags.npy")
    assert ended.value.code == 0 and stages(run_folder) == ["prepare", "select", "select"]


def test_a_measure_that_fails_ends_no_sweep(config_file, stage, run_folder, capfd):
    with pytest.raises(SystemExit) as ended:
        stage(sweep, config_file(), "--over", "selection.method=ifd,random",
              "selection.ifd.model_name_or_path=/none/such")
    assert ended.value.code == 2
    printed = capfd.readouterr()
    assert "selection.ifd.model_name_or_path: /none/such" in printed.err
    assert "not selected: ifd: measure ended with status 2" in printed.out
    assert "| 1. random | 3 |" in printed.out


@pytest.mark.parametrize(("over", "message"), [
    ("generation.temperature=1,2", "generation.temperature: not a key of selection"),
    ("selection.name=a,b", "selection.name: not a key of selection"),
    ("selection.budget", "write selection.budget=VALUE,VALUE"),
    ("selection.windw=a,b", "unknown key selection.windw; did you mean selection.window"),
    ("selection.method=random,radom", "selection.method is 'radom'"),
])
def test_what_is_no_sweep_is_named(config_file, stage, over, message, tmp_path):
    with pytest.raises(InputError, match=message):
        stage(sweep, config_file(), "--over", over)
    with pytest.raises(InputError, match="selection.budget is given twice"):
        stage(sweep, config_file(), "--over", "selection.budget=1", "--over", "selection.budget=2")
    assert not (tmp_path / "run").exists()


def test_what_a_method_does_not_read_makes_no_selection(config_file, stage, run_folder, capsys):
    over = ("--over", "selection.anisotropy_weight=0,0.4,1", "--over",
            "selection.method=adg,random,all", "--over", "selection.budget=2,3")
    with pytest.raises(SystemExit) as ended:
        stage(sweep, config_file(), *over)
    assert ended.value.code == 0
    names = ["all", *(f"anisotropy_weight-{weight}_adg_budget-{budget}"
                      for weight in ("0.4", "0", "1") for budget in (2, 3)),
             "random_budget-2", "random_budget-3"]
    assert sorted(path.name for path in (run_folder / "subsets").iterdir()) == sorted(names)
    assert stages(run_folder) == ["prepare"] + ["select"] * 9
    with pytest.raises(SystemExit):
        stage(sweep, config_file(), "selection.method=longest", "--over",
              "selection.anisotropy_weight=0,1")
    assert (run_folder / "subsets/longest").is_dir() and len(stages(run_folder)) == 11


def test_a_stage_that_is_refused_was_not_redone(config_file, stage, run_folder, capsys):
    stage(score_and_select, config_file(), "selection.method=random")
    before = (run_folder / "subsets/random/top.json").read_bytes()
    capsys.readouterr()
    with pytest.raises(InputError, match="selection.budget is 61, but the pool has 10"):
        stage(score_and_select, config_file(), "selection.method=random", "selection.budget=61")
    assert (run_folder / "subsets/random/top.json").read_bytes() == before
    assert capsys.readouterr().out == (
        "[select random] note: stale, because selection.budget was 3 and is 61\n")
