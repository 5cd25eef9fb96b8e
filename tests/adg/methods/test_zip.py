"""Method zip against its plain form, which compresses all that was picked anew for each record."""

import json
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import RECORDS
from test_reference import REFERENCE

from adg import score_and_select
from adg.base import artifacts
from adg.base.errors import InputError
from adg.config import load_config
from adg.methods.compression import RECIPES, Prefix, as_sharegpt, pick_in_rounds

MARKED = 1e6


def made_up(number: int, seed: int = 0) -> list[dict]:
    """Records that share words, so that ratios differ and depend on what is picked."""
    draw = random.Random(seed)
    words = [f"{draw.choice('bdfgklmnprst')}{draw.choice('aeiouäöß日')}{i}" for i in range(60)]
    return [as_sharegpt({"instruction": " ".join(draw.choices(words, k=draw.randint(3, 40))),
                         "input": "", "output": " ".join(draw.choices(words, k=30)) + "\n'\""},
                        i, "made") for i in range(number)]


def ratio(records: list[dict]) -> np.float32:
    text = str(records).encode()
    return np.float32(len(text) / len(zlib.compress(text, level=9)))


def first_lowest(values: list[tuple[float, int]], count: int) -> list[int]:
    return [row for _, row in sorted(values)[:count]]


def picks_one_by_one(records: list[dict], budget: int, k1: int, k2: int, k3: int,
                     repeats: bool) -> list[int]:
    states = [float(ratio([record])) for record in records]
    marked, picked = set(), []
    wanted = -(-budget // k3) * k3 if repeats else budget
    while len(picked) < wanted:
        size = min(k3, wanted - len(picked))
        if not repeats and len(records) - len(marked) < size:
            marked = set(picked)
        open_rows = [row for row in range(len(records)) if repeats or row not in marked]
        seen = first_lowest([(MARKED if row in marked else states[row], row)
                             for row in open_rows], k1)
        for row in seen:
            states[row] = float(ratio([records[i] for i in picked] + [records[row]]))
        marked -= set(seen)
        left = first_lowest([(states[row], row) for row in seen], k2)
        marked |= set(left)
        new: list[int] = []
        while left and len(new) < size:
            best = first_lowest([(float(ratio([records[i] for i in new] + [records[row]])), row)
                                 for row in left], 1)[0]
            left.remove(best)
            new.append(best)
        picked += new
    return picked


def picks(records: list[dict], budget: int, k1: int, k2: int, k3: int, recipe: str) -> list[int]:
    texts = [repr(record).encode() for record in records]
    return [row for found in pick_in_rounds(texts, budget, recipe=RECIPES[recipe], candidates=k1,
                                            shortlist=k2, picks_per_round=k3)
            for row in found.rows]


def test_a_trial_has_the_length_of_compressing_all_anew():
    records = made_up(900, seed=5)
    prefix, bytes_read = Prefix(), 0
    for number, record in enumerate(records):
        text = repr(record).encode()
        if number % 60 in (0, 1):
            whole = str(records[: number + 1]).encode()
            assert prefix.ratio_with(text) == len(whole) / len(zlib.compress(whole, level=9))
        prefix.add(text)
        bytes_read += len(text)
    assert bytes_read > 8 * 32768  # many times what Deflate looks back


@pytest.mark.parametrize("recipe", ["intended", "released"])
@pytest.mark.parametrize("setting", [
    (12, 20, 6, 3), (10, 8, 4, 4), (9, 12, 5, 1), (14, 40, 8, 4), (36, 20, 6, 4), (7, 100, 9, 5)])
def test_picks_are_those_of_the_plain_form(recipe: str, setting: tuple[int, ...]):
    records = made_up(40)
    assert picks(records, *setting, recipe) == picks_one_by_one(records, *setting,
                                                                repeats=recipe == "released")


def test_intended_gives_the_budget_and_nothing_twice_to_the_last_record():
    records = made_up(30)
    found = picks(records, 11, 12, 8, 4, "intended")
    assert len(found) == len(set(found)) == 11
    assert sorted(picks(records, 30, 12, 8, 4, "intended")) == list(range(30))


def test_released_rounds_up_and_repeats():
    records = made_up(30)
    assert len(picks(records, 11, 12, 6, 3, "released")) == 12
    found = picks(records, 24, 20, 8, 4, "released")
    assert len(found) == 24 > len(set(found))


def test_of_equal_records_the_first_is_picked():
    text = repr(made_up(1)[0]).encode()
    found = [row for own in pick_in_rounds([text] * 9, 4, recipe=RECIPES["intended"],
                                           candidates=6, shortlist=4, picks_per_round=2)
             for row in own.rows]
    assert found == [0, 1, 4, 5]  # 2 and 3 were on the shortlist, and turned down


@pytest.fixture
def zip_run(tmp_path: Path, config_file, stage):
    """Runs select over a pool made elsewhere; returns ids of top, rows of scores.jsonl, the log."""

    def run(records: list[dict], *overrides: str) -> tuple[list[str], list[dict], dict]:
        folder = tmp_path / "run"
        artifacts.write_jsonl(folder / "pool.jsonl", records)
        stage(score_and_select, config_file(), "selection.method=zip", *overrides)
        top = json.loads((folder / "subsets/zip/top.json").read_text())
        log = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
        return ([record["id"] for record in top],
                list(artifacts.JsonlRows(folder / "subsets/zip/scores.jsonl")), log)

    return run


def test_the_stage_compresses_sharegpt_records_and_gives_the_ratio_at_the_pick(zip_run, capsys):
    top, scores, log = zip_run(RECORDS, "selection.budget=4", "selection.zip.shortlist=3",
                               "selection.zip.picks_per_round=2")
    assert "selection.zip.candidates is 10,000, more than the 10 records" in capsys.readouterr().out
    shown = [{"id": row, "conversations": [
        {"from": "human", "value": record["instruction"] + (
            "\n" + record["input"] if record["input"] else "")},
        {"from": "gpt", "value": record["output"]}], "source": "pool"}
        for row, record in enumerate(RECORDS)]
    expected = picks_one_by_one(shown, 4, 10, 3, 2, repeats=False)
    assert top == [RECORDS[row]["id"] for row in expected]
    for place, row in enumerate(expected):
        start = place - place % 2
        assert scores[row]["score"] == ratio([shown[i] for i in expected[start: place + 1]])
    assert sum(row["score"] is None for row in scores) == 6
    assert (log["rounds"], log["repeated"], log["zlib"]) == (2, 0, zlib.ZLIB_RUNTIME_VERSION)
    assert log["subset_sizes"] == {"top": 4, "middle": 0, "bottom": 0}


def test_that_turned_down_records_come_back_is_said(zip_run, capsys):
    top, _, log = zip_run(RECORDS, "selection.budget=8", "selection.zip.shortlist=6",
                          "selection.zip.picks_per_round=3")
    assert len(set(top)) == 8 and log["reopened"] == 1
    assert "before 1 of 3 rounds too few records were left" in capsys.readouterr().out


def test_that_the_release_picks_twice_is_said(zip_run, capsys):
    top, _, log = zip_run(RECORDS, "selection.budget=9", "selection.zip.shortlist=6",
                          "selection.zip.picks_per_round=3", "selection.zip.recipe=released")
    assert log["repeated"] == len(top) - len(set(top)) > 0
    assert f"note: {log['repeated']} of the 9 picks had been picked before" in (
        capsys.readouterr().out)


def test_the_source_is_a_part_of_the_text(config_file):
    def source(*overrides: str) -> str | None:
        return load_config(config_file(), [
            "selection.method=zip", *overrides]).selection.zip.source

    assert source() == "pool"
    assert source("pool.path=data/alpaca_gpt4.jsonl.gz") == "alpaca_gpt4"
    assert source("pool.path=hf:owner/name") == "name"
    assert source("selection.zip.source=x") == "x"


@pytest.mark.parametrize(("override", "message"), [
    ("recipe=paper", "selection.zip.recipe is 'paper'; it must be intended or released"),
    ("picks_per_round=0", "selection.zip.picks_per_round is 0; it must be 1 or more"),
    ("picks_per_round=300", "selection.zip.shortlist is 200; it must be at least "
                            "selection.zip.picks_per_round (300)"),
    ("candidates=100", "selection.zip.candidates is 100; it must be at least "
                       "selection.zip.shortlist (200)")])
def test_settings_that_cannot_be_are_refused_by_name(config_file, override: str, message: str):
    with pytest.raises(InputError, match=message.replace("(", r"\(").replace(")", r"\)")):
        load_config(config_file(), [f"selection.zip.{override}"])


REFERENCE_FILE = REFERENCE / "baselines/zip.json"
NUMBERS = ({"cases": [], "pools": {}} if not REFERENCE_FILE.is_file()
           else json.loads(REFERENCE_FILE.read_text(encoding="utf-8")))
BEFORE_TIES = 8  # picks of every case that no tie rule changes


@pytest.mark.skipif(not REFERENCE_FILE.is_file(), reason="the release's numbers are not at hand")
@pytest.mark.parametrize("number", range(len(NUMBERS["cases"])))
def test_recipe_released_against_the_release(zip_run, number: int):
    """Cases that depend on the order among equals, which the release leaves open, are compared up
    to the first such pick, and with the plain form, in which the first in the pool comes first."""
    case = NUMBERS["cases"][number]
    records = NUMBERS["pools"][case["pool"]]["records"]
    settings = [case[name] for name in ("budget", "k1", "k2", "k3")]
    top, _, log = zip_run(
        [{"id": str(record["id"]), "instruction": record["conversations"][0]["value"], "input": "",
          "output": record["conversations"][1]["value"]} for record in records],
        "selection.zip.recipe=released", f"selection.zip.source={records[0]['source']}",
        *(f"selection.{key}={value}" for key, value in zip(
            ("budget", "zip.candidates", "zip.shortlist", "zip.picks_per_round"), settings,
            strict=True)))
    found = [int(name) for name in top]
    if case["tie_sensitive"]:
        assert len(found) == len(case["selected"])
        assert found[:BEFORE_TIES] == case["selected"][:BEFORE_TIES]
        if case["budget"] <= 100:  # the plain form takes seconds on the others
            assert found == picks_one_by_one(records, *settings, repeats=True)
    else:
        assert found == case["selected"]
        assert log["repeated"] == case["repeated"]
        assert ratio([records[row] for row in found]) == np.float32(case["ratio_of_selection"])
