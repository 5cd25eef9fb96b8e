"""Stage measure: its files, one rank and two, a restart, a pool that grew, what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import RECORDS, tree

from adg import measure, score_and_select
from adg.base import artifacts
from adg.base.errors import InputError
from adg.config import load_config
from adg.tools import summary, verify
from generation import prepare_pool

PRE = ("selection.method=pre_experience", "selection.pre_experience.clusters=2")


@pytest.fixture
def measured(config_file, stage, tmp_path: Path):
    """Runs prepare and measure; returns the files of the measure."""

    def run(*overrides: str, name: str = "ifd", **how: int) -> dict[str, bytes]:
        if not (tmp_path / "run/pool.jsonl").exists():
            stage(prepare_pool, config_file())
        stage(measure, config_file(), f"selection.method={name}", *overrides, **how)
        return tree(tmp_path / "run/measures" / name)

    return run


def test_a_row_for_each_record_in_chunks(measured, tmp_path):
    assert list(measured()) == [f"0000{i}.jsonl" for i in range(3)]
    rows = list(artifacts.JsonlRows(tmp_path / "run/measures/ifd"))
    assert [row["id"] for row in rows] == [own["id"] for own in RECORDS]
    assert list(rows[0]) == ["id", "given_loss", "direct_loss", "room", "given_tokens",
                             "direct_tokens"]
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").open()]
    assert (log[-1]["stage"], log[-1]["label"], log[-1]["records"]) == (
        "measure", "measure ifd", 10)


@pytest.mark.parametrize("name", ["ifd", "pre_experience"])
def test_two_ranks_and_a_restart_give_the_same_bytes(measured, tmp_path, name):
    alone = measured(name=name)
    folder = tmp_path / "run/measures" / name
    (folder / "00001.jsonl").unlink()
    kept = (folder / "00002.jsonl").stat().st_mtime_ns
    assert measured(name=name) == alone
    assert (folder / "00002.jsonl").stat().st_mtime_ns == kept
    for path in folder.iterdir():
        path.unlink()
    measured(name=name, rank=0, world=2)
    assert not (folder / "00001.jsonl").exists()
    assert measured(name=name, world=2) == alone


def test_vectors_stand_beside_the_rows(measured, tmp_path):
    files = measured(name="pre_experience")
    assert list(files) == [f"0000{i}.{suffix}" for i in range(3) for suffix in ("jsonl", "npy")]
    vectors = np.load(tmp_path / "run/measures/pre_experience/00002.npy")
    assert vectors.shape == (2, 64) and vectors.dtype == np.float32


def test_a_chunk_whose_rows_are_not_written_is_done_again(measured, tmp_path):
    alone = measured(name="pre_experience")
    folder = tmp_path / "run/measures/pre_experience"
    (folder / "00000.jsonl").unlink()  # its vectors were written first
    assert measured(name="pre_experience") == alone


def test_a_pool_that_grew_is_added_to(measured, config_file, stage, tmp_path):
    whole = measured(name="pre_experience")
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            path.unlink()
    stage(prepare_pool, config_file(), "pool.limit=6")
    measured("pool.limit=6", name="pre_experience")
    stage(prepare_pool, config_file())
    grown = measured(name="pre_experience")
    assert list(grown) == list(whole) and grown["00000.jsonl"] == whole["00000.jsonl"]
    rows = list(artifacts.JsonlRows(tmp_path / "run/measures/pre_experience"))
    assert [row["id"] for row in rows] == [own["id"] for own in RECORDS]
    assert [len(np.load(tmp_path / f"run/measures/pre_experience/0000{i}.npy"))
            for i in range(3)] == [4, 4, 2]


def test_another_limit_stops_it_and_another_methods_key_does_not(measured, capsys):
    before = measured()
    with pytest.raises(InputError, match="selection.ifd.max_length was 512 and is 256"):
        measured("selection.ifd.max_length=256")
    capsys.readouterr()
    assert measured("selection.superfiltering.max_length=9", "selection.budget=1") == before
    assert "done before" in capsys.readouterr().out
    other = measured("selection.ifd.max_length=256", "selection.measure=short")
    assert other == before  # the first is as it was; the other has a folder of its own


def test_what_measures_nothing_is_refused(measured):
    with pytest.raises(InputError, match="selection.method is longest, which measures nothing"):
        measured(name="longest")


def test_a_limit_beyond_the_models_is_refused(measured):
    with pytest.raises(InputError, match="selection.ifd.max_length is 4096, but .* takes at "
                                         "most 2048"):
        measured("selection.ifd.max_length=4096")


def test_a_dry_run_says_what_there_is_to_do_and_writes_nothing(measured, tmp_path, capsys):
    assert measured("--dry-run") == {}
    said = capsys.readouterr().out
    assert "10 of 10 to do" in said and "tiny-model" in said and "3 of 3 to do" in said


def test_select_refuses_a_measure_of_other_settings_or_records(measured, config_file, stage,
                                                               tmp_path):
    measured()
    with pytest.raises(InputError, match="measures/ifd/ does not fit the configuration: "
                                         "selection.ifd.prompt was 'alpaca' and is 'wiz'"):
        stage(score_and_select, config_file(), "selection.method=ifd", "selection.ifd.prompt=wiz")
    path = tmp_path / "run/measures/ifd/00001.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(InputError, match="00001.jsonl:1: id is 'r5', but 'r4'"):
        stage(score_and_select, config_file(), "selection.method=ifd", "selection.budget=1")


def test_a_finished_run_is_verified_and_summed_up(measured, config_file, stage, tmp_path):
    measured(name="pre_experience")
    stage(score_and_select, config_file(), *PRE)
    run = tmp_path / "run"
    config = load_config(run / "config.yaml", [])
    evidence = verify.read_evidence(run)
    assert "measure pre_experience" in evidence.records
    assert list(verify.verify(run, evidence)) == []
    shown = "\n".join(summary.summarise(run, config))
    assert "measures/pre_experience" in shown and "measure " in shown
    (run / "measures/pre_experience/00001.npy").unlink()
    assert "measures/pre_experience/ is not what" in "\n".join(
        verify.verify(run, evidence))
