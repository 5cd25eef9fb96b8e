"""A pool whose records bring no ids: those that stay keep the ids that they had."""

import json
import random
from pathlib import Path

import pytest
from conftest import RECORDS, tree

from adg.base import artifacts
from generation import ids, prepare_pool, sample_answers
from generation.transformers_sampler import TransformersSampler

PLAIN = [{key: value for key, value in record.items() if key != "id"} for record in RECORDS]
NEW = {"instruction": "Say it.", "input": "", "output": "It."}
SWAPPED = [*PLAIN[1:4], NEW, *PLAIN[4:]]  # the first is gone, one is in the middle


@pytest.fixture
def prepare(config_file, stage, tmp_path):
    """prepare(records, "a.b=1", ...): the ids in pool.jsonl."""

    def run(records: list[dict], *arguments: str) -> list[str]:
        artifacts.write_jsonl(tmp_path / "pool.jsonl", records)
        stage(prepare_pool, config_file(), *arguments)
        return [row["id"] for row in artifacts.JsonlRows(tmp_path / "run/pool.jsonl")]

    return run


def positions(number: int) -> list[str]:
    return [str(position) for position in range(number)]


def test_only_what_is_new_in_a_pool_without_ids_is_sampled(prepare, config_file, stage, tmp_path,
                                                           monkeypatch, capsys):
    asked, stream = [], TransformersSampler.stream
    monkeypatch.setattr(TransformersSampler, "stream", lambda self, requests: stream(
        self, (asked.append(request) or request for request in requests)))
    run = tmp_path / "run"

    def answers() -> dict[str, list[str]]:
        stage(sample_answers, config_file())
        return {row["instruction"]: row["generated_answers"]
                for row in artifacts.JsonlRows(run / "answers")}

    assert prepare(PLAIN) == positions(10)
    before = answers()
    assert len(asked) == 10 and "keep the ids" not in capsys.readouterr().out
    assert prepare(SWAPPED) == ["1", "2", "3", "10", *positions(10)[4:]]
    assert "[prepare] 9 records keep the ids they had\n" in capsys.readouterr().out
    after = answers()
    assert len(asked) == 11
    assert {text: after[text] for text in before if text in after} == {
        record["instruction"]: before[record["instruction"]] for record in PLAIN[1:]}
    assert after.keys() - before.keys() == {NEW["instruction"]}


@pytest.mark.parametrize("records", [
    [*PLAIN, NEW, NEW],  # it only grew
    [*PLAIN[:4], PLAIN[4] | {"instruction": "Write two poems."}, *PLAIN[5:]],
    [*PLAIN[:4], PLAIN[4] | {"output": "A poem."}, *PLAIN[5:]],
    PLAIN[:-2],
    [NEW | {"instruction": f"Say {i}."} for i in range(7)],  # another pool altogether
])
def test_positions_stay_ids_where_nothing_moves(prepare, tmp_path, records):
    prepare(PLAIN)
    assert prepare(records) == positions(len(records))
    pool = (tmp_path / "run/pool.jsonl").read_bytes()
    prepare(records, f"output_dir={tmp_path / 'anew'}")
    assert (tmp_path / "anew/pool.jsonl").read_bytes() == pool


def test_records_keep_their_ids_in_any_order_and_overwrite_numbers_anew(prepare, tmp_path):
    prepare(PLAIN)
    assert prepare(PLAIN[::-1]) == positions(10)[::-1]
    assert prepare(PLAIN) == positions(10)
    again = [*PLAIN[5:], NEW, *PLAIN[:5], NEW]
    assert prepare(again) == ["5", "6", "7", "8", "9", "12", *positions(5), "11"]
    assert prepare(again, "--overwrite") == positions(12)


def test_records_of_the_same_text_are_matched_in_their_order(prepare):
    prepare([NEW, PLAIN[0], NEW, NEW, PLAIN[1]])
    assert prepare([PLAIN[0], NEW | {"output": "That."}, NEW, PLAIN[1]]) == ["1", "0", "2", "4"]


def test_a_pool_with_ids_keeps_its_own(prepare):
    prepare(PLAIN)
    assert prepare([RECORDS[3], *PLAIN[:3]]) == ["r3", "1", "2", "3"]
    assert prepare([PLAIN[1], PLAIN[3], NEW]) == ["2", "r3", "4"]


def test_a_run_that_was_killed_after_the_rename_gives_the_same_file(prepare, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*arguments: object) -> None:
        raise Killed

    prepare(PLAIN)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_pool, "say_outcome", kill)
        with pytest.raises(Killed):
            prepare(SWAPPED)
    pool = (tmp_path / "run/pool.jsonl").read_bytes()
    prepare(SWAPPED)
    assert (tmp_path / "run/pool.jsonl").read_bytes() == pool
    assert not [name for name in tree(tmp_path / "run") if "partial" in name]


def test_what_else_names_records_has_the_kept_ids(prepare, tmp_path):
    question = "one two three four five six seven eight nine ten eleven twelve thirteen"
    artifacts.write_jsonl(tmp_path / "data/openai/gsm8k/main/test.jsonl", [
        {"question": question, "answer": "7"}])
    marked = NEW | {"instruction": f"{question} ### Input:"}
    data = f"eval.data_dir={tmp_path / 'data'}"
    prepare([*PLAIN[:3], marked], data)
    assert prepare([PLAIN[2], marked], data) == ["2", "3"]
    run = tmp_path / "run"
    assert [row["id"] for row in artifacts.JsonlRows(run / "contamination.jsonl")] == ["3"]
    counts = json.loads((run / "provenance/prepare.counts/00000.json").read_text())
    assert counts["template_markers"] == ["3"]


def test_a_previous_pool_that_was_edited_by_hand(tmp_path: Path):
    row = {"instruction": "a", "input": "", "output": "b"}
    artifacts.write_jsonl(tmp_path / "new.jsonl", [
        {"id": str(number)} | row | {"instruction": text} for number, text in enumerate("abcd")])
    artifacts.write_jsonl(tmp_path / "old.jsonl", [
        {"id": "x"} | row, {"id": "x"} | row | {"instruction": "b"}, {"id": 3} | row,
        {"id": 'q"1,'} | row | {"instruction": "d"}])
    with (tmp_path / "old.jsonl").open("a") as file:
        file.write("{broken\n")
    kept = ids.keep_ids(tmp_path / "new.jsonl", tmp_path / "old.jsonl")
    assert kept == (2, {"0": "x", "3": 'q"1,'})
    assert [row["id"] for row in artifacts.JsonlRows(tmp_path / "new.jsonl")] == [
        "x", "1", "2", 'q"1,']


def test_ids_are_never_given_twice(tmp_path: Path):
    chance = random.Random(1)
    texts = [f"text {number % 20}" for number in range(30)]
    previous = tmp_path / "previous.jsonl"
    for turn in range(30):
        pool = tmp_path / f"{turn}.jsonl"
        artifacts.write_jsonl(pool, [
            {"id": str(number), "instruction": text, "input": "", "output": "x, y"}
            for number, text in enumerate(texts)])
        if turn:
            ids.keep_ids(pool, previous)
        rows = list(artifacts.JsonlRows(pool))
        assert len({row["id"] for row in rows}) == len(texts)
        assert [row["instruction"] for row in rows] == texts
        previous = pool
        chance.shuffle(texts)
        texts[chance.randrange(len(texts))] = f"new {turn}"
        del texts[chance.randrange(len(texts))]
        texts.insert(chance.randrange(len(texts)), f"more {turn}")
