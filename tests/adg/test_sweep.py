"""Every combination is a selection of its own, from what is stored, once."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import RECORDS

from adg import arrays, score_and_select, sweep
from adg.errors import InputError
from adg.geometry import centred_grams
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
    over = ("--over", "selection.anisotropy_weight=0,1", "--over", "selection.num_answers=2,null")
    with pytest.raises(SystemExit) as ended:
        stage(sweep, config_file(), *over)
    assert ended.value.code == 0
    names = [f"anisotropy_weight-{weight}_num_answers-{number}"
             for weight in "01" for number in ("2", "null")]
    for name, (weight, number) in zip(names, [(0, 2), (0, "null"), (1, 2), (1, "null")],
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


def test_what_cannot_be_selected_is_listed_beside_the_rest(config_file, stage, run_folder, capsys):
    with pytest.raises(SystemExit) as ended:
        stage(sweep, config_file(), "--over", "selection.budget=3,11", "selection.method=random")
    assert ended.value.code == 2
    printed = capsys.readouterr().out
    assert "| 1. budget-3 | 3 |" in printed
    assert "not selected: budget-11: selection.budget is 11, but the pool has 10" in printed


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
    ("generation.temperature=1,2", "generation.temperature: no key of selection"),
    ("selection.name=a,b", "selection.name: no key of selection"),
    ("selection.budget", "write selection.budget=VALUE,VALUE"),
])
def test_what_is_no_sweep_is_named(config_file, stage, over, message):
    with pytest.raises(InputError, match=message):
        stage(sweep, config_file(), "--over", over)
