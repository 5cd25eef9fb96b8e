"""What the summary shows: what fits together, in characters that a terminal may have."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import RECORDS

from adg import score_and_select
from adg.base import arrays, artifacts
from adg.base.errors import InputError, printable
from adg.config import Config, load_config, to_yaml
from adg.geometry import centred_grams
from adg.pipeline import __main__ as pipeline
from adg.pipeline.stage_run import StageRun
from adg.pipeline.stages import inputs_of
from adg.pipeline.view import StageView
from adg.tools import compare_runs, summary
from adg.tools.run_folder import open_selection
from generation import prepare_pool, sample_answers

ESCAPES = "\x1b]0;hacked\x07\x1b[31m\r\x9b2J\u202e"
SHOWN = r"\x1b]0;hacked\x07\x1b[31m\r\x9b2J\u202e"


@pytest.fixture
def run(config_file, stage, tmp_path: Path) -> Path:
    """A run folder with pool, answers, scores and subsets."""
    return make(config_file(), stage, tmp_path / "run")


def make(path: Path, stage: Callable, folder: Path) -> Path:
    stage(prepare_pool, path)
    grams = centred_grams(np.random.default_rng(3).normal(size=(10, 3, 8)))
    arrays.write_array(folder / "answer_grams/00000.npy", grams.astype(np.float32))
    arrays.write_array(folder / "bins.npy", np.arange(10, dtype=np.int32) % 2)
    pool = artifacts.JsonlRows(folder / "pool.jsonl")
    artifacts.write_jsonl(folder / "answers/00000.jsonl", (
        record | {"generated_answers": ["one", f"two{ESCAPES}", "three"]} for record in pool))
    stage(score_and_select, path)
    return folder


def shown(run: Path) -> str:
    return "\n".join(summary.summarise(run, load_config(run / "config.yaml", [])))


def test_what_fits_is_shown(run: Path):
    text = shown(run)
    assert "Highest and lowest scores" in text and "Subsets by bin" in text
    assert "Out of date" not in text and "10 scored; top 3" in text


@pytest.mark.parametrize("size", [10, 7, 0])
def test_no_score_stands_beside_another_pools_record(run: Path, size: int):
    (run / "tables.md").write_text("| the table |\n")
    with (run / "log.jsonl").open("a") as log:
        log.write('{"stage": "evaluate", "label": "evaluate adg-top", "records": 1, "seconds": 1, '
                  '"time": "9999"}\n')
    artifacts.write_json(run / "provenance/evaluate-adg-top.json", {
        "stage": "evaluate adg-top", "state": "finished", "inputs": {}})
    artifacts.write_jsonl(run / "pool.jsonl", RECORDS[::-1][:size])
    if not size:
        (run / "pool.jsonl").unlink()
    text = shown(run)
    assert "== Out of date (selection adg) ==" in text
    assert "\nselect adg: not made from what" in text
    for part in ("Highest", "by bin", "scored", "top 3", "anisotropy"):
        assert part not in text
    assert "the table" in text  # of models, which are not looked at here


def test_what_an_outdated_stage_wrote_is_out_of_date_too(run: Path, config_file, monkeypatch):
    (run / "tables.md").write_text("| the table |\n")
    config = load_config(run / "config.yaml", [])
    for name in ("finetune", "evaluate"):
        stage_run = StageRun(name, config)
        monkeypatch.setattr(stage_run, "inputs", lambda own=stage_run: {
            path: found for path in {"finetune": ["subsets/adg/top.json"],
                                     "evaluate": ["models/adg-top/"]}[own.name]
            if (found := own.identities.artefact(path))})
        artifacts.write_text(run / {"finetune": "models/adg-top/config.json",
                                    "evaluate": "eval/adg-top/scores.json"}[name], "{}")
        stage_run.start()
        stage_run.finish(records=1)
    assert not summary.out_of_date(run, config) and "the table" in shown(run)
    artifacts.write_jsonl(run / "pool.jsonl", RECORDS[::-1])
    assert list(summary.out_of_date(run, config).values()) == [
        "select adg", "finetune adg-top", "evaluate adg-top"]
    assert "the table" not in shown(run)


def test_the_selection_that_is_named_is_shown(run: Path, config_file, stage, capsys):
    other = {"method": "random", "name": "drawn", "budget": 2}
    stage(score_and_select, config_file(selection=other))
    assert "== Records (selection drawn) ==" in shown(run) and "top 2" in shown(run)
    capsys.readouterr()
    for path, text in ((run, "(selection drawn)"), (run / "subsets/drawn", "(selection drawn)"),
                       (run / "subsets/adg", "(selection adg)")):
        stage(summary, path)
        printed = capsys.readouterr().out
        assert printed.splitlines()[1].startswith(f"== Records {text} ==")
        assert ("Subsets by bin" in printed) is ("top 3" in printed) is ("adg)" in text)
        assert f"{run}/subsets/{text[11:-1]}/top.json" in printed.partition("== Files")[2]
    stage(pipeline, config_file(selection={"method": "adg", "name": "adg", "budget": 3}), "select")
    assert capsys.readouterr().out.endswith(f"-m adg.tools.summary {run}/subsets/adg\n")
    with pytest.raises(InputError, match="subsets/mine/ not found; there are: adg, drawn"):
        stage(summary, run / "subsets/mine")


def test_a_selection_is_opened_with_what_made_it_whatever_ran_last(config_file, tmp_path: Path):
    made = {"adg": {}, "far": {"selection.anisotropy_weight": 0.9}, "ifd": {"selection.seed": 7},
            "mine": {"selection.measure": "other"}, "drawn": {"selection.seed": 8}}
    methods = {"ifd": "ifd", "mine": "ifd", "drawn": "random"}

    def config(name: str) -> Config:
        values = made[name] | {"selection.method": methods.get(name, "adg"), "selection.name": name}
        return load_config(config_file(), [f"{key}={value}" for key, value in values.items()])

    for name in made:
        (tmp_path / "run/subsets" / name).mkdir(parents=True)
        view = StageView("select", config(name))
        artifacts.write_json(view.record_path, {
            "stage": view.label, "parameters": view.parameters,
            "inputs": dict.fromkeys(inputs_of("select", view.config)[0], {})})
    for last in made:
        (tmp_path / "run/config.yaml").write_text(to_yaml(config(last)))
        for name in made:
            run, opened = open_selection(tmp_path / "run/subsets" / name)
            assert run == tmp_path / "run" and opened.train.name == f"{name}-top"
            view = StageView("select", opened)
            assert view.parameters == StageView("select", config(name)).parameters
            assert opened.selection.measure == config(name).selection.measure


def test_a_list_of_files_breaks_between_paths(config_file, stage, tmp_path: Path):
    folder = tmp_path / "my many long runs of the last weeks" / "run 1 of the first week"
    path = config_file(output_dir=str(folder))
    make(path, stage, folder)
    lines = shown(folder).partition("== Files")[2].splitlines()[1:]
    paths = [part for line in lines for part in line[10:].removesuffix(",").split(", ")]
    assert len(paths) > 5 and all(Path(part).exists() for part in paths)


def test_a_stage_that_is_being_redone_is_out_of_date(run: Path, config_file):
    StageRun("select", load_config(config_file(), []), overwrite=True).start()
    assert "select adg: not made from" in shown(run)


def test_control_characters_of_records_are_shown_escaped(config_file, stage, tmp_path, capsys):
    pool = [record | {"id": record["id"] + ESCAPES, "instruction": f"{ESCAPES}\tName\nit."}
            for record in RECORDS]
    artifacts.write_jsonl(tmp_path / "pool.jsonl", pool)
    run = make(config_file(), stage, tmp_path / "run")
    stage(sample_answers, config_file(), "--show-prompts", "1")
    prompt = capsys.readouterr().out
    assert f"== r0{SHOWN}: " in prompt and f"{SHOWN}\tName\nit." in prompt
    said = ""
    other = shutil.copytree(run / "subsets/adg", run / "subsets/reversed")
    rows = artifacts.JsonlRows(run / "subsets/adg/scores.jsonl")
    artifacts.write_jsonl(other / "scores.jsonl", (row | {"score": -row["score"]} for row in rows))
    for module, arguments in ((summary, [run]), (compare_runs, [run, other])):
        stage(module, *arguments)
        said += capsys.readouterr().out
    assert said.count(f"r0{SHOWN}: ") == 2 and r"two\x1b]0;hacked" in said
    assert not any(sign in prompt + said for sign in ESCAPES if not sign.isprintable())


def test_an_error_does_not_reach_the_terminal_raw(capsys):
    def main() -> None:
        raise InputError(f"id {ESCAPES}")

    with pytest.raises(SystemExit):
        score_and_select.run_script(main)
    assert capsys.readouterr().err == f"error: id {SHOWN}\n"
    assert printable("a\tb\nक्‍ष é") == "a\tb\nक्‍ष é"


def test_a_command_that_is_printed_can_be_pasted(config_file, stage, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "my runs/läuf 1"
    path = config_file(output_dir=str(folder))
    stage(prepare_pool, path)
    stage(pipeline, path, "prepare")
    line = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(line.partition("again: ")[2])[1:] == ["-m", "adg.tools.summary", str(folder)]
