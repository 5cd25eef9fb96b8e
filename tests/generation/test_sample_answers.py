import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import RECORDS, ROOT, command, tree

from adg.base import artifacts
from adg.base.errors import InputError
from adg.config import Config, GenerationConfig, load_config
from adg.models.folders import load_tokenizer
from adg.models.loading import LocalModel
from adg.prompts import Prompter
from adg.records import Pool
from embedding import embed
from generation import prepare_pool, sample_answers
from generation.drafts import Draft, draw, seed_of
from generation.samplers import DrawnAnswer
from generation.transformers_sampler import TransformersSampler


@pytest.fixture
def prepared(config_file, stage, tmp_path: Path) -> Path:
    stage(prepare_pool, config_file())
    return tmp_path / "run"


def test_one_rank_and_three_and_a_restart_give_the_same_bytes(config_file, stage, prepared):
    stage(sample_answers, config_file())
    alone = tree(prepared / "answers")
    assert sorted(alone) == ["00000.jsonl", "00001.jsonl", "00002.jsonl"]
    stage(sample_answers, config_file(), "--overwrite", world=2)
    assert tree(prepared / "answers") == alone
    (prepared / "answers/00001.jsonl").unlink()  # as if killed before this chunk
    (prepared / "answers/.00001.jsonl.partial").write_text("half of a chu")
    stage(sample_answers, config_file(), world=3)
    assert tree(prepared / "answers") == alone
    log = [json.loads(line) for line in (prepared / "log.jsonl").open()]
    assert [line["records"] for line in log if line["stage"] == "sample"] == [10, 10, 4]


def test_what_a_lost_rank_leaves_is_shared_by_all(config_file, stage, prepared):
    path = config_file(chunk_size=2)
    stage(sample_answers, path)
    alone = tree(prepared / "answers")
    lost = [prepared / f"answers/0000{i}.jsonl" for i in (1, 3)]  # rank 1's of two
    for chunk in lost:
        chunk.unlink()
    stage(sample_answers, path, rank=0, world=2)
    assert [chunk.exists() for chunk in lost] == [True, False]
    lost[0].unlink()
    stage(sample_answers, path, world=2)
    assert tree(prepared / "answers") == alone
    line = json.loads((prepared / "log.jsonl").read_text().splitlines()[-1])
    assert (line["records"], line["world_size"]) == (4, 2)


def test_rows_follow_the_pool_and_carry_the_reasons(config_file, stage, prepared):
    stage(sample_answers, config_file())
    rows = list(artifacts.JsonlRows(prepared / "answers"))
    assert [row["id"] for row in rows] == [record["id"] for record in RECORDS]
    for row, record in zip(rows, RECORDS, strict=True):
        assert {key: row[key] for key in record} == record
        assert len(row["generated_answers"]) == len(row["finish_reasons"]) == 3
        assert set(row["finish_reasons"]) <= {"stop", "length"}
    assert len({text for row in rows for text in row["generated_answers"]}) > 20


def drawn(records: list[dict], sampler, prompter: Prompter, config: Config) -> list[dict]:
    """The rows of these records, drawn as one chunk."""
    draft = Draft(0, records, prompter, config)
    return next(draw(iter([draft]), sampler)).rows


def test_answers_depend_on_seed_id_and_k_only(config_file, stage, prepared, tiny_model):
    stage(sample_answers, config_file())
    config = load_config(config_file(), ["generation.max_num_seqs=7"])
    tokenizer = load_tokenizer(tiny_model, trust_remote_code=False)
    sampler = TransformersSampler(LocalModel(tiny_model), config)
    prompter = Prompter("alpaca", tokenizer, config.generation)
    records = Pool(prepared).rows(range(10))
    backwards = drawn(records[::-1], sampler, prompter, config)[::-1]
    assert backwards == list(artifacts.JsonlRows(prepared / "answers"))
    config.seed = 1
    assert drawn(records, sampler, prompter, config) != backwards


def test_more_records_are_added_to_what_is_there(config_file, stage, prepared, tmp_path,
                                                 monkeypatch, capsys):
    path = config_file()
    stage(sample_answers, path)
    asked = []
    stream = TransformersSampler.stream

    def counted(self, requests):
        yield from stream(self, (asked.append(request.num_answers) or request
                                 for request in requests))

    monkeypatch.setattr(TransformersSampler, "stream", counted)
    pool = [json.loads(line) for line in (prepared / "pool.jsonl").open()]
    more = [{"instruction": f"Say {n}.", "output": "x", "id": f"more{n}"} for n in range(4)]
    artifacts.write_jsonl(tmp_path / "longer.jsonl", [*pool, *more])
    longer = [path, f"pool.path={tmp_path / 'longer.jsonl'}"]
    stage(prepare_pool, *longer)
    stage(sample_answers, *longer, rank=0, world=2)  # of the chunks 2 and 3 the first
    assert asked == [3] * 2 and "pool.jsonl was" in capsys.readouterr().out
    stage(sample_answers, *longer)
    assert asked == [3] * 4
    grown = tree(prepared / "answers")
    assert list(grown) == [f"{i:05d}.jsonl" for i in range(4)]
    anew = [*longer, f"output_dir={tmp_path / 'anew'}"]
    stage(prepare_pool, *anew)
    stage(sample_answers, *anew)
    assert tree(tmp_path / "anew/answers") == grown
    stage(sample_answers, *longer)
    assert "done before" in capsys.readouterr().out


def test_a_chunk_with_another_number_of_answers_is_drawn_anew(config_file, stage, prepared,
                                                              tmp_path):
    """As in a run folder that an earlier version left while it was adding answers."""
    path = config_file()
    stage(sample_answers, path)
    file = prepared / "answers/00002.jsonl"
    artifacts.write_jsonl(file, [
        row | {name: row[name][:2] for name in ("generated_answers", "finish_reasons",
                                                "num_tokens")}
        for row in list(artifacts.JsonlRows(file))])
    pool = [json.loads(line) for line in (prepared / "pool.jsonl").open()]
    artifacts.write_jsonl(tmp_path / "longer.jsonl", [*pool, pool[0] | {"id": "more"}])
    longer = [path, f"pool.path={tmp_path / 'longer.jsonl'}"]
    for folder in (prepared, tmp_path / "anew"):
        for module in (prepare_pool, sample_answers):
            stage(module, *longer, f"output_dir={folder}")
    assert tree(prepared / "answers") == tree(tmp_path / "anew/answers")


@pytest.mark.parametrize("change", [
    "generation.num_answers=2", "generation.num_answers=5", "generation.temperature=1.0",
    "model.dtype=bfloat16"])
def test_what_is_no_growth_is_refused(config_file, stage, prepared, change):
    stage(sample_answers, config_file())
    before = tree(prepared / "answers")
    with pytest.raises(InputError, match=f"{change.split('=')[0]} was .*another output_dir"):
        stage(sample_answers, config_file(), change)
    records = [json.loads(line) for line in (prepared / "pool.jsonl").open()]
    artifacts.write_jsonl(prepared / "pool.jsonl", records[::-1])
    with pytest.raises(InputError, match="pool.jsonl was .*another output_dir"):
        stage(sample_answers, config_file(), change)
    assert tree(prepared / "answers") == before


def test_tokens_are_counted_without_the_one_that_ends(config_file, stage, prepared, tiny_model):
    stage(sample_answers, config_file(generation={"max_new_tokens": 40, "temperature": 3.0}))
    tokenizer = load_tokenizer(tiny_model, trust_remote_code=False)
    reasons = set()
    for row in artifacts.JsonlRows(prepared / "answers"):
        for text, reason, number in zip(row["generated_answers"], row["finish_reasons"],
                                        row["num_tokens"], strict=True):
            reasons.add(reason)
            assert number == 40 if reason == "length" else number < 40
            if "\ufffd" not in text:
                assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= number
    assert reasons == {"stop", "length"}


def test_the_next_chunk_is_handed_over_before_this_one_is_answered(config_file, prepared,
                                                                   tiny_model):
    config = load_config(config_file(), [])
    prompter = Prompter("alpaca", load_tokenizer(tiny_model, trust_remote_code=False),
                        config.generation)
    records, taken, whole = Pool(prepared).rows(range(10)), [], []

    class LateSampler:
        """Answers the first request last."""

        def stream(self, requests):
            for number, request in enumerate(requests):
                taken.append(number)
                if number:
                    yield number, [DrawnAnswer("a", "stop", [1])] * request.num_answers
            yield 0, [DrawnAnswer("a", "stop", [1])] * 3

    drafts = (Draft(i, records[5 * i: 5 * i + 5], prompter, config) for i in range(2))
    for draft in draw(drafts, LateSampler()):
        whole.append((draft.index, len(taken)))
    assert whole == [(1, 10), (0, 10)]


def test_seeds_leave_room_for_the_answers_of_a_record():
    seeds = sorted(seed_of(f"r{i}", 42) for i in range(1000))
    assert seeds[0] >= 0 and seeds[-1] < 2**62
    assert min(b - a for a, b in zip(seeds, seeds[1:], strict=False)) > 1000


def test_a_prompt_without_room_is_left_without_answers_or_cut(config_file, stage, prepared,
                                                              tmp_path, capsys):
    room = {"max_model_len": 110, "max_new_tokens": 6}  # only the shortest prompts fit
    stage(sample_answers, config_file(generation=room))
    rows = list(artifacts.JsonlRows(prepared / "answers"))
    rejected = [row["id"] for row in rows if row["finish_reasons"][0] == "prompt_too_long"]
    assert 0 < len(rejected) < 10
    for row in rows:
        assert (row["generated_answers"] == ["", "", ""]) == (row["id"] in rejected)
    assert f"rejected prompts: {len(rejected)}" in capsys.readouterr().out
    listed = [json.loads(path.read_text()) for path in sorted(
        (prepared / "provenance/sample.counts").glob("*.json"))]
    assert [name for chunk in listed for name in chunk["rejected_prompts"]] == rejected
    pool = [json.loads(line) for line in (prepared / "pool.jsonl").open()]
    artifacts.write_jsonl(tmp_path / "longer.jsonl", [*pool, *(pool[i] | {"id": f"more{i}"}
                                                               for i in range(4))])
    longer = [config_file(generation=room), f"pool.path={tmp_path / 'longer.jsonl'}"]
    stage(prepare_pool, *longer)
    stage(sample_answers, *longer)
    grown = [row["id"] for row in artifacts.JsonlRows(prepared / "answers")
             if row["finish_reasons"][0] == "prompt_too_long"]
    assert grown[: len(rejected)] == rejected
    stage(prepare_pool, config_file())
    stage(sample_answers, config_file(generation=room | {"long_prompts": "cut_input"}),
          "--overwrite")
    line = json.loads((prepared / "log.jsonl").read_text().splitlines()[-1])
    assert line["cut_prompts"] == len(rejected) and "rejected_prompts" not in line


@pytest.mark.parametrize(("top_k", "engines"), [(40, ("transformers", "vllm")),
                                                (None, ("transformers",))])
def test_the_samplers_draw_from_the_models_distribution(config_file, stage, tmp_path, tiny_model,
                                                        top_k, engines):
    """Chi-square of 2,000 first tokens by each engine against the model's own probabilities."""
    import torch
    from scipy.stats import chisquare
    from transformers import (
        AutoModelForCausalLM,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    artifacts.write_jsonl(tmp_path / "same.jsonl", (
        {"id": str(i), "instruction": "Name a colour.", "output": "Red."} for i in range(40)))
    overrides = [f"pool.path={tmp_path / 'same.jsonl'}", "chunk_size=40"]
    settings = {"num_answers": 50, "max_new_tokens": 1, "min_new_tokens": 0, "top_k": top_k}
    tokenizer = load_tokenizer(tiny_model, trust_remote_code=False)
    prompt = Prompter("alpaca", tokenizer, GenerationConfig()).ids(
        {"instruction": "Name a colour.", "input": ""})
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([prompt])).logits[:, -1]
    warped = TemperatureLogitsWarper(1.4)(None, logits)
    nucleus = int(torch.isfinite(TopPLogitsWarper(0.9)(None, warped)).sum())
    if top_k:
        warped = TopKLogitsWarper(top_k)(None, warped)
    warped = TopPLogitsWarper(0.9)(None, warped)[0]
    if top_k:
        assert torch.isfinite(warped).sum() < min(top_k, nucleus)  # both leave something out
    expected: Counter[str] = Counter()
    for token, share in enumerate(torch.softmax(warped, -1).tolist()):
        text = tokenizer.decode([token], skip_special_tokens=True)
        expected[text.strip("\ufffd")] += 2000 * share  # vLLM drops a part of a character
    assert expected.total() == pytest.approx(2000)
    common = [text for text, number in expected.items() if number >= 5]
    assert len(common) > 10
    for sampler in engines:
        path = config_file(generation=settings | {"sampler": sampler})
        own = [path, *overrides, f"output_dir={tmp_path / sampler}"]
        stage(prepare_pool, *own)
        if sampler == "transformers":
            stage(sample_answers, *own)
        else:
            result = command("generation.sample_answers", *own)
            assert result.returncode == 0, result.stderr
        rows = artifacts.JsonlRows(tmp_path / sampler / "answers")
        found = Counter(text.strip("\ufffd") for row in rows
                        for text in row["generated_answers"])
        assert set(found) <= {text for text, number in expected.items() if number}
        rest = [2000 - sum(counter[text] for text in common) for counter in (found, expected)]
        assert chisquare([*(found[text] for text in common), rest[0]],
                         [*(expected[text] for text in common), rest[1]],
                         sum_check=False).pvalue > 0.001


def test_two_agents_share_what_a_lost_one_left(config_file, stage, prepared):
    """As on two nodes: two torchruns of one rank each that find each other."""
    path = config_file(chunk_size=2)
    stage(sample_answers, path)
    alone = tree(prepared / "answers")
    shutil.copytree(prepared, prepared.parent / "two")
    for i in (1, 3):
        (prepared.parent / f"two/answers/0000{i}.jsonl").unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = [subprocess.Popen(
        [sys.executable, "-m", "adg.pipeline.launch", "--nnodes=2", "--nproc_per_node=1",
         "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=test",
         "-m", "generation.sample_answers", str(path),
         f"output_dir={prepared.parent / 'two'}"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}) for _ in range(2)]
    assert [agent.wait() for agent in agents] == [0, 0]
    assert tree(prepared.parent / "two/answers") == alone
    line = json.loads((prepared.parent / "two/log.jsonl").read_text().splitlines()[-1])
    assert (line["stage"], line["records"], line["world_size"]) == ("sample", 4, 2)


def test_vllm_draws_the_same_alone_and_under_torchrun(config_file, stage, prepared):
    """The real engine through the real commands: one process, then two ranks whose engines have
    processes of their own, the same bytes."""
    path = config_file(generation={"sampler": "vllm", "prompt": "chat"})
    assert command("generation.sample_answers", path).returncode == 0
    alone = tree(prepared / "answers")
    texts = [text for row in artifacts.JsonlRows(prepared / "answers")
             for text in row["generated_answers"]]
    assert len(texts) == 30 and len(set(texts)) > 20
    other = [path, f"output_dir={prepared.parent / 'other'}", "embedding.source=sampling",
             "generation.engine_process=true"]
    stage(prepare_pool, *other)
    result = command("generation.sample_answers", *other, ranks=2)
    assert result.returncode == 0, result.stderr
    assert tree(prepared.parent / "other/answers") == alone  # with vectors or without
    stage(embed, *other)  # checks them
    log = [json.loads(line) for line in (prepared.parent / "other/log.jsonl").open()]
    assert log[-1]["vector_sources"] == {"sampling": "0-2"}
