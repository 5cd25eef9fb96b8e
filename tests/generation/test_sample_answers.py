import json
from pathlib import Path

import pytest
from conftest import RECORDS, command, tree

from adg import artifacts
from adg.config import load_config
from adg.models import load_tokenizer
from adg.records import Pool
from generation import prepare_pool, sample_answers
from generation.sample_answers import answer, seed_of
from generation.samplers import TransformersSampler


@pytest.fixture
def prepared(config_file, stage, tmp_path: Path) -> Path:
    stage(prepare_pool, config_file())
    return tmp_path / "run"


def test_one_rank_and_three_and_a_restart_give_the_same_bytes(config_file, stage, prepared):
    stage(sample_answers, config_file())
    alone = tree(prepared / "answers")
    assert sorted(alone) == ["00000.jsonl", "00001.jsonl", "00002.jsonl"]
    stage(sample_answers, config_file(), "--overwrite")
    assert tree(prepared / "answers") == alone
    (prepared / "answers/00001.jsonl").unlink()  # as if killed before this chunk
    (prepared / "answers/.00001.jsonl.partial").write_text("half of a chu")
    for rank in range(3):
        stage(sample_answers, config_file(), rank=rank, world=3)
    assert tree(prepared / "answers") == alone
    log = [json.loads(line) for line in (prepared / "log.jsonl").open()]
    assert [line["records"] for line in log if line["stage"] == "sample"] == [10, 10, 4]


def test_rows_follow_the_pool_and_carry_the_reasons(config_file, stage, prepared):
    stage(sample_answers, config_file())
    rows = list(artifacts.JsonlRows(prepared / "answers"))
    assert [row["id"] for row in rows] == [record["id"] for record in RECORDS]
    for row, record in zip(rows, RECORDS, strict=True):
        assert {key: row[key] for key in record} == record
        assert len(row["generated_answers"]) == len(row["finish_reasons"]) == 3
        assert set(row["finish_reasons"]) <= {"stop", "length"}
    assert len({text for row in rows for text in row["generated_answers"]}) > 20


def test_answers_depend_on_seed_id_and_k_only(config_file, stage, prepared, tiny_model):
    stage(sample_answers, config_file())
    config = load_config(config_file(), [])
    tokenizer = load_tokenizer(tiny_model, trust_remote_code=False)
    sampler = TransformersSampler(tiny_model, config)
    pool = Pool(prepared)
    backwards = answer(pool.rows(range(10))[::-1], tokenizer, sampler, config)[::-1]
    assert backwards == list(artifacts.JsonlRows(prepared / "answers"))
    config.seed = 1
    assert answer(pool.rows(range(10)), tokenizer, sampler, config) != backwards


def test_seeds_leave_room_for_the_answers_of_a_record():
    seeds = sorted(seed_of(f"r{i}", 42) for i in range(1000))
    assert seeds[0] >= 0 and seeds[-1] < 2**62
    assert min(b - a for a, b in zip(seeds, seeds[1:], strict=False)) > 1000


def test_a_prompt_without_room_is_left_without_answers(config_file, stage, prepared, capsys):
    room = {"max_model_len": 110, "max_new_tokens": 6}  # only the shortest prompts fit
    stage(sample_answers, config_file(generation=room))
    rows = list(artifacts.JsonlRows(prepared / "answers"))
    reasons = [row["finish_reasons"][0] for row in rows]
    assert "prompt_too_long" in reasons and len(set(reasons)) > 1
    for row in rows:
        if row["finish_reasons"][0] == "prompt_too_long":
            assert row["generated_answers"] == ["", "", ""]


def test_vllm_draws_the_same_alone_and_under_torchrun(config_file, prepared):
    """The real engine through the real commands: one process, then two ranks, the same bytes."""
    path = config_file(generation={"sampler": "vllm", "prompt": "chat"})
    assert command("generation.sample_answers", path).returncode == 0
    alone = tree(prepared / "answers")
    texts = [text for row in artifacts.JsonlRows(prepared / "answers")
             for text in row["generated_answers"]]
    assert len(texts) == 30 and len(set(texts)) > 20
    result = command("generation.sample_answers", path, "--overwrite", ranks=2)
    assert result.returncode == 0, result.stderr
    assert tree(prepared / "answers") == alone
