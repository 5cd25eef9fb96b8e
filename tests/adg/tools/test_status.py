"""The line of each stage, behind a stale one too, and that asking changes nothing."""

import json
from pathlib import Path

import pytest
from conftest import RECORDS, command, tree

from adg.base import arrays, artifacts
from adg.config import load_config
from adg.pipeline.stage_run import StageRun
from adg.tools.status import status
from generation import prepare_pool

WAYS = "; go back to that value, use another output_dir, or redo it: bash run.sh CONFIG "


@pytest.fixture
def lines(config_file, tmp_path: Path):
    """{stage: its text} of the status with these overrides; fails where it changes a file."""

    def ask(*overrides: str) -> dict[str, str]:
        config = load_config(config_file(), [word for word in overrides if "=" in word])
        before = tree(tmp_path)
        stages = [word for word in overrides if "=" not in word]
        rows = [line.split("  ", 1) for line in status(config, stages)]
        assert tree(tmp_path) == before
        return {label: text.strip() for label, text in rows}

    return ask


def finished(config_file, name: str, *overrides: str) -> None:
    """Record a stage as finished, whatever is there of its output."""
    run = StageRun(name, load_config(config_file(), [*overrides]))
    run.start()
    run.finish(records=len(RECORDS))


@pytest.fixture
def sampled(config_file, stage, tmp_path: Path) -> Path:
    """A run folder with pool and answers."""
    stage(prepare_pool, config_file())
    run = tmp_path / "run"
    artifacts.write_jsonl(run / "answers/00000.jsonl", (
        {"id": record["id"], "generated_answers": ["a", "b", "c"]} for record in RECORDS))
    finished(config_file, "sample")
    return run


def test_before_the_first_run_every_stage_waits_for_those_before(lines):
    assert lines() == {
        "prepare": "will run",
        "sample": "runs after prepare",
        "embed": "runs after prepare, sample",
        "cluster": "runs after prepare, embed",
        "select adg": "runs after prepare, sample, embed, cluster",
        "finetune adg-top": "runs after select",
        "evaluate adg-top": "runs after finetune",
        "tables": "runs after evaluate",
    }


def test_what_is_done_and_what_comes_next(lines, sampled):
    shown = lines()
    assert shown["prepare"] == shown["sample"] == "done"
    assert shown["embed"] == "will run" and shown["cluster"] == "runs after embed"


def test_every_stale_stage_is_shown_at_once(lines, config_file, sampled):
    for name, shape in (("instruction_embeddings", (10, 8)), ("answer_grams", (10, 3, 3))):
        arrays.write_array(sampled / name / "00000.npy", arrays.np.zeros(shape, "f4"))
    finished(config_file, "embed")
    arrays.write_array(sampled / "bins.npy", arrays.np.zeros(10, "i4"))
    finished(config_file, "cluster")
    assert lines()["cluster"] == "done"
    shown = lines("generation.temperature=0.5", "clustering.num_bins=2", "embedding.layers=[-1]")
    assert shown["sample"] == "refused because generation.temperature was 1.4 and is 0.5" + WAYS + (
        "sample --overwrite")
    assert shown["embed"] == ("refused because embedding.layers was [-4, -3, -2, -1] and is [-1] "
                              "(after sample)" + WAYS + "embed --overwrite")
    assert shown["cluster"] == ("will be redone because clustering.num_bins was 3 and is 2 "
                                "(after embed)")
    assert shown["select adg"].startswith("runs after ")


def test_more_answers_are_refused_and_a_larger_pool_extends(lines, config_file, stage, sampled,
                                                            tmp_path):
    assert lines("generation.num_answers=4")["sample"] == (
        "refused because generation.num_answers was 3 and is 4" + WAYS + "sample --overwrite")
    with (tmp_path / "pool.jsonl").open("a") as pool:
        pool.write(json.dumps(RECORDS[0] | {"id": "new"}) + "\n")
    assert lines()["prepare"].startswith("will be redone because pool.path was pool.jsonl ")
    assert lines()["sample"] == "done, unless prepare changes pool.jsonl"
    stage(prepare_pool, config_file())
    assert lines()["sample"].startswith("will be extended because pool.jsonl was ")


def test_what_is_done_stays_so_unless_a_cheap_stage_changes_what_it_reads(lines, config_file,
                                                                          sampled):
    for name, shape in (("instruction_embeddings", (10, 8)), ("answer_grams", (10, 3, 3))):
        arrays.write_array(sampled / name / "00000.npy", arrays.np.zeros(shape, "f4"))
    finished(config_file, "embed")
    shown = lines("pool.limit=99")
    assert shown["prepare"] == "will be redone because pool.limit was None and is 99"
    assert shown["sample"] == shown["embed"] == "done, unless prepare changes pool.jsonl"
    assert shown["cluster"] == "runs after prepare, embed"
    hot = lines("pool.limit=99", "generation.temperature=0.5")
    assert hot["sample"].startswith("refused") and hot["embed"] == "runs after prepare, sample"


def test_what_was_made_and_is_not_needed_is_listed(lines, sampled):
    shown = lines("selection.method=random", "generation.temperature=0.5")
    assert list(shown) == ["prepare", "sample", "select random", "finetune random-top",
                           "evaluate random-top", "tables"]
    assert shown["sample"] == ("refused because generation.temperature was 1.4 and is 0.5" + WAYS
                               + "sample --overwrite (not needed for the table)")
    (sampled / "bins.npy").write_bytes(b"1")
    assert "cluster" in lines("selection.method=random")  # no record, but output


def test_only_the_stages_named_are_listed(lines, sampled):
    assert lines("cluster", "embed") == {"embed": "will run", "cluster": "runs after embed"}
    assert list(lines("embed", "selection.method=random")) == ["embed"]


def test_an_interrupted_run_resumes(lines, config_file, sampled):
    StageRun("sample", load_config(config_file(), []), overwrite=True).start()
    assert lines()["sample"] == "will run: an earlier run was interrupted"
    assert lines()["embed"] == "runs after sample"


def test_what_a_stage_would_refuse_is_said(lines, sampled):
    shown = lines("eval.allow_code_execution=false", "train.deepspeed=nowhere.json",
                  "model.name_or_path=/nowhere")
    assert shown["evaluate adg-top"].startswith("refused because eval.allow_code_execution is ")
    assert shown["finetune adg-top"].startswith("refused because train.deepspeed: nowhere.json ")
    assert shown["sample"].startswith("refused because model.name_or_path: /nowhere")


def test_output_made_elsewhere_is_done(lines, config_file, stage, tmp_path):
    artifacts.write_jsonl(tmp_path / "run/pool.jsonl", RECORDS)
    assert lines()["prepare"] == (
        "done (pool.jsonl was made elsewhere (no provenance): kept as it is)")


def test_the_command_ends_well_whatever_it_says(config_file, sampled):
    shown = command("adg.tools.status", config_file(), "generation.temperature=0.5")
    assert shown.returncode == 0, shown.stderr
    assert "\nsample            refused because" in shown.stdout and len(
        shown.stdout.splitlines()) == 8
    shown = command("adg.tools.status", config_file(), "sample", "prepare")
    assert shown.stdout == "prepare  done\nsample   done\n", shown.stderr
    wrong = command("adg.tools.status", config_file(), "--overwrite")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --overwrite: status only looks")
