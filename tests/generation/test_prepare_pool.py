import json
from pathlib import Path

import pytest
from conftest import RECORDS

from adg.base.errors import InputError
from generation import prepare_pool


def test_an_array_and_lines_give_the_same_pool(config_file, stage, tmp_path: Path):
    stage(prepare_pool, config_file())
    lines = (tmp_path / "run/pool.jsonl").read_bytes()
    (tmp_path / "pool.json").write_text(json.dumps(RECORDS))
    stage(prepare_pool, config_file(pool={"path": str(tmp_path / "pool.json")},
                                    output_dir=str(tmp_path / "other")))
    assert (tmp_path / "other/pool.jsonl").read_bytes() == lines
    assert (tmp_path / "run/rejected.jsonl").read_bytes() == b""


def test_unusable_records_are_put_aside_with_place_and_reason(config_file, stage, tmp_path: Path):
    bad = [{"instruction": "", "output": "x"}, {"instruction": "a"},
           {"instruction": 3, "output": "x"}, {"instruction": "a", "output": " \n"},
           {"instruction": "a", "output": "x", "input": [1]}]
    good = [{"instruction": "Say é", "output": "é", "extra": {"kept": [1]}}] * 3
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, [*bad, *good])))
    stage(prepare_pool, config_file(), "pool.max_rejected=0.7")
    rejected = [json.loads(line) for line in (tmp_path / "run/rejected.jsonl").open()]
    assert [row["line"] for row in rejected] == [1, 2, 3, 4, 5]
    assert [row["record"] for row in rejected] == bad
    assert [row["reason"] for row in rejected] == [
        "instruction is empty", "output is missing", "instruction is not a string",
        "output is empty", "input is not a string"]
    pool = [json.loads(line) for line in (tmp_path / "run/pool.jsonl").open()]
    assert [row["id"] for row in pool] == ["5", "6", "7"]
    assert pool[0] == {"id": "5", "instruction": "Say é", "input": "", "output": "é",
                       "extra": {"kept": [1]}}


def test_a_missing_pool_and_a_limit(config_file, stage, tmp_path: Path):
    with pytest.raises(InputError, match="pool.path: .*nowhere.jsonl not found"):
        stage(prepare_pool, config_file(), f"pool.path={tmp_path}/nowhere.jsonl")
    stage(prepare_pool, config_file(), "pool.limit=4")
    assert len((tmp_path / "run/pool.jsonl").read_text().splitlines()) == 4
