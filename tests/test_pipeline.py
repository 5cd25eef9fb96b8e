"""Method adg through the one command: files, restart after a kill, nothing twice, errors."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from conftest import RECORDS, ROOT, command, tree

from adg import score_and_select
from adg.base import artifacts, lock
from adg.base.errors import InputError
from adg.config import load_config
from adg.pipeline import __main__ as pipeline_module
from adg.pipeline import arguments as pipeline_arguments
from adg.pipeline import processes
from adg.tools.summary import summarise
from embedding import cluster, embed
from eval import run_benchmarks
from generation import prepare_pool, sample_answers
from train import finetune

EXACT = ("pool.jsonl", "rejected.jsonl", "answers/", "instruction_embeddings/", "answer_grams/",
         "bins.npy", "subsets/")  # the same bytes whatever was killed, and whatever the rank count


def pipeline(*arguments: object, ranks: int = 2) -> subprocess.CompletedProcess:
    return command("adg.pipeline", *arguments, NPROC=str(ranks))


def exact(run: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(run).items() if name.startswith(EXACT)}


@pytest.fixture(scope="module")
def finished() -> dict:
    """What the undisturbed run of this module left, once there is one."""
    return {}


def test_all_stages_then_nothing_to_do(config_file, tmp_path: Path, finished: dict):
    path = config_file(eval={"benchmarks": ["gsm8k", "truthfulqa_mc2", "humaneval"]})
    result = pipeline(path, ranks=1)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    chunks = [f"{i:05d}" for i in range(3)]
    expected = {
        "config.yaml", "log.jsonl", "pool.jsonl", "rejected.jsonl", "contamination.jsonl",
        "bins.npy", "tables.md", "provenance/pipeline-0.lock",
        *(f"answers/{chunk}.jsonl" for chunk in chunks),
        *(f"{name}/{chunk}.npy" for name in ("instruction_embeddings", "answer_grams")
          for chunk in chunks),
        *(f"subsets/adg/{name}" for name in (
            "scores.jsonl", "top.json", "middle.json", "bottom.json", "dataset_info.json",
            "README.md")),
        *(f"eval/adg-top/{name}.json" for name in (
            "gsm8k", "truthfulqa_mc2", "humaneval", "scores")),
        "train/adg-top/metrics.jsonl", "train/adg-top/loss.png", "provenance/sha256.json",
        *(f"provenance/{name}.{suffix}" for suffix in ("json", "lock") for name in (
            "prepare", "sample", "embed", "cluster", "select-adg", "finetune-adg-top",
            "evaluate-adg-top", "tables")),
        *(f"provenance/{name}.0.log" for name in (
            "sample", "embed", "finetune-adg-top", "evaluate-adg-top")),
        *(f"models/adg-top/{name}" for name in (
            "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
            "tokenizer_config.json", "chat_template.jinja")),
    }
    assert set(tree(run)) == expected
    log = [json.loads(line) for line in (run / "log.jsonl").open()]
    assert [line["stage"] for line in log] == [
        "prepare", "sample", "embed", "cluster", "select", "finetune", "evaluate", "tables"]
    for shown in ("anisotropy", "decides", "Subsets by bin", "--paper shows some", "tables.md"):
        assert shown in result.stdout
    assert "[finetune]: 100%" in result.stderr and "Loading weights" not in result.stderr
    assert b"Loading weights: 100%" in (run / "provenance/finetune-adg-top.0.log").read_bytes()
    before = tree(run)
    again = pipeline(path)
    assert again.returncode == 0 and "nothing to do: 8 stages are done" in again.stdout
    assert tree(run) == before
    finished.update(exact(run))


def test_killed_and_gone_on_with_another_rank_count(config_file, tmp_path: Path, finished: dict):
    """kill -9 to the process group once a file is there, twice; it ends with the same bytes."""
    stages = ("prepare", "sample", "embed", "cluster", "select")
    path = config_file(output_dir=str(tmp_path / "run"))
    for seen, ranks in (("answers/00000.jsonl", 1), ("answer_grams/00000.npy", 2)):
        process = subprocess.Popen(
            [sys.executable, "-m", "adg.pipeline", path, *stages], cwd=ROOT,
            start_new_session=True, env={**os.environ, "NPROC": str(ranks)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (tmp_path / "run" / seen).exists():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    result = pipeline(path, *stages, ranks=1)
    assert result.returncode == 0, result.stderr
    expected = finished or pytest.fail("the undisturbed run has not ended")
    assert exact(tmp_path / "run") == expected


@pytest.mark.parametrize(("arguments", "message"), [
    (["generation.temprature=1"], "did you mean generation.temperature"),
    (["generation.num_answers=x"], "generation.num_answers"),
    (["pool.path=nowhere.jsonl"], "pool.path: nowhere.jsonl not found"),
    (["model.name_or_path=/no/such/model"], "model.name_or_path: /no/such/model"),
    (["clustering.num_bins=11"], "clustering.num_bins is 11, but the pool has 10 records: give 10 "
     "at most, or null"),
    (["clustering.scratch_dir=/nope", "--dry-run"], "clustering.scratch_dir: /nope/ not found"),
    (["train.epochs=1", "train.batch_size=3", "--dry-run"], "fine-tuning would learn nothing: 3 "
     "records at train.batch_size=3 and train.epochs=1 make 1 step"),
    (["selection.budget=11"], "selection.budget is 11, but the pool has 10"),
    (["prepare", "measure", "select", "selection.method=pre_experience"],
     "selection.pre_experience.clusters is 100, but the pool has 10"),
    (["emebd"], "unknown stage emebd; did you mean embed"),
    (["--seed", "3"], "unknown option --seed; did you mean --seeds? A value of the configuration"),
    (["embedding.windows.far=[7]"], "embedding.windows.far: no layer 7: the model has 5 layers"),
    (["embed"], "embed needs"),
    (["--quiet", "--dry-run"], "--quiet with --dry-run"),
])
def test_what_is_wrong_is_one_line(config_file, arguments: list[str], message: str):
    result = pipeline(config_file(), *arguments)
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in result.stderr + result.stdout


def test_further_seeds_have_run_folders_of_their_own(config_file, tmp_path: Path):
    scores = json.dumps({"scores": {"mmlu": 30.0}, "groups": {"Knowledge": None},
                         "questions": {"mmlu": 57}})
    for name, value in (("run", "30.0"), ("run-seed43", "32.0")):
        path = tmp_path / name / "eval/base/scores.json"
        path.parent.mkdir(parents=True)
        path.write_text(scores.replace("30.0", value))
    result = pipeline(config_file(), "prepare", "--seeds", "2")
    assert result.returncode == 0, result.stderr
    for name, seed in (("run", 42), ("run-seed43", 43)):
        assert f"seed: {seed}\n" in (tmp_path / name / "config.yaml").read_text()
    assert "run: base" in result.stdout and "run-seed43: base" in result.stdout  # the table of both
    assert "30.00" in result.stdout and "32.00" in result.stdout
    refused = pipeline(config_file(), "--seeds", "none")
    assert refused.returncode == 2 and "--seeds none: it must be a number" in refused.stderr


@pytest.mark.parametrize("module", [prepare_pool, sample_answers, embed, cluster, score_and_select,
                                    finetune, run_benchmarks])
def test_help_names_every_key(stage, capsys, module: ModuleType):
    with pytest.raises(SystemExit, match="0"):
        stage(module, "--help")
    assert "generation.temperature (1.4; above 0)" in capsys.readouterr().out


@pytest.fixture
def in_process(stage, monkeypatch) -> None:
    """Has the pipeline run prepare and sample in this process."""
    modules = {own.__spec__.name: own for own in (prepare_pool, sample_answers)}

    def wait_for(command: list[str], environment: dict, *, quiet: bool) -> int:
        place = next(number for number, word in enumerate(command) if word in modules)
        with contextlib.redirect_stdout(io.StringIO() if quiet else sys.stdout):
            stage(modules[command[place]], *command[place + 1:])
        return 0

    monkeypatch.setattr(processes, "wait_for", wait_for)


def test_overwrite_without_names_redoes_what_is_refused_and_nothing_that_is_done(
        config_file, tmp_path: Path, stage, in_process, monkeypatch, capsys):
    monkeypatch.setattr(pipeline_module, "needed_stages", lambda config: ["prepare", "sample"])
    path, cold = config_file(), "generation.temperature=0.5"
    stage(pipeline_module, path, "--quiet")
    before, started = tree(tmp_path), []
    stage(pipeline_module, path, "--quiet", "--overwrite")
    assert tree(tmp_path) == before
    run_stage = processes.run_stage
    monkeypatch.setattr(processes, "run_stage", lambda name, words, *others, **options: (
        started.append((name, words[1:])), run_stage(name, words, *others, **options)))
    with pytest.raises(InputError, match="or redo it: bash run.sh CONFIG sample --overwrite"):
        stage(pipeline_module, path, "--quiet", cold)
    for dry in (["--dry-run"], ["--quiet"]):
        stage(pipeline_module, path, cold, "--overwrite", *dry)
    stage(pipeline_module, path, "prepare", "--quiet", "--overwrite")
    assert started == [("sample", [cold, "--dry-run", "--overwrite"]),
                       ("sample", [cold, "--overwrite"]), ("prepare", ["--overwrite"])]


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_are_counted_in_good_english(ranks: int, capsys):
    processes.say_start("sample", ranks)
    assert capsys.readouterr().out == f"\n[sample] starts on {ranks} rank{'s'[:ranks - 1]}\n"


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_first_dry_run_counts_from_the_pool_itself(config_file, tmp_path: Path, stage, capsys,
                                                     in_process, seeds: int):
    path = config_file()
    before = tree(tmp_path)
    stage(pipeline_module, path, "--dry-run", "--seeds", seeds)
    said = capsys.readouterr().out
    assert tree(tmp_path) == before and "dry-run-" not in said
    nothing = "dry run, nothing is written to output_dir:"
    assert said.count(f"[prepare] {nothing}\n  schema    alpaca, inferred from the first records\n"
                      ) == seeds
    assert said.count(f"[sample] {nothing}\n  records   10 of 10 to do") == seeds
    assert said.count("  answers   30, 180 tokens at most") == seeds
    for name in ["run", "run-seed43"][:seeds]:
        assert (f"[embed] cannot say yet: embed needs {tmp_path}/{name}/answers/, which is "
                f"missing: run sample first\n  10 instructions, 30 answers\n  disk: 2.9 KiB at most"
                ) in said
    assert said.count("\n  10 vectors, to 3 bins\n") == seeds
    assert said.count("\n  3 of 10 records\n") == seeds
    assert said.count("\n  3 records at most, 2 epochs, 4 steps\n") == seeds


def test_a_first_dry_run_says_what_the_pool_is_too_small_for(config_file, tmp_path: Path, stage,
                                                             in_process):
    path = config_file()
    before = tree(tmp_path)
    with pytest.raises(InputError, match="selection.budget is 11, but the pool has 10"):
        stage(pipeline_module, path, "--dry-run", "selection.budget=11")
    assert tree(tmp_path) == before


def test_a_first_dry_run_keeps_the_model_that_it_converts(config_file, tmp_path: Path, stage,
                                                          in_process, tiny_gguf, capsys):
    path = config_file(model={"name_or_path": str(tiny_gguf)}, output_dir=str(tmp_path / "r/run"))
    stage(pipeline_module, path, "prepare", "sample", "--dry-run")
    [folder] = (tmp_path / "r/models").glob("tiny-*")
    assert [entry.name for entry in (tmp_path / "r").iterdir()] == ["models"]
    said = capsys.readouterr().out
    assert f"weights: {folder}\n" in said and "dry-run-" not in said
    stage(pipeline_module, path, "prepare", "sample", "--dry-run")
    assert "is converted" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--show-prompts", "1"], []])
def test_no_model_is_converted_for_a_pool_that_is_missing(config_file, tmp_path: Path, stage,
                                                          tiny_gguf, arguments):
    path = config_file(model={"name_or_path": str(tiny_gguf)})
    for module in [sample_answers, embed][: 2 - len(arguments) // 2]:
        with pytest.raises(InputError, match="pool.jsonl"):
            stage(module, path, *arguments)
    assert not (tmp_path / "models").exists()


def test_only_a_run_with_select_is_refused_for_its_budget(config_file, stage, in_process, capsys,
                                                          tmp_path: Path):
    path = config_file(selection={"budget": 11})
    refusal = "select would refuse: selection.budget is 11, but the pool has 10"
    with pytest.raises(InputError, match=refusal):
        stage(pipeline_module, path)
    assert not (tmp_path / "run/answers").exists()
    stage(pipeline_module, path, "prepare", "sample")
    assert f"[sample] note: {refusal}" in capsys.readouterr().out
    assert len(list((tmp_path / "run/answers").iterdir())) == 3


def test_a_first_dry_run_that_is_stopped_leaves_nothing(config_file, tmp_path: Path, stage,
                                                        in_process, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    path = config_file()
    before = tree(tmp_path)
    monkeypatch.setattr(sample_answers.SampleStage, "plan", stop)
    with pytest.raises(KeyboardInterrupt):
        stage(pipeline_module, path, "--dry-run")
    assert tree(tmp_path) == before
    assert sorted(own.name for own in tmp_path.iterdir()) == ["config.yaml", "pool.jsonl"]


SLOW = {"max_new_tokens": 300, "min_new_tokens": 300, "max_num_seqs": 3}  # a second per record


def interrupt(run: Path, *command: object) -> tuple[int, list[str]]:
    """(status, lines of stderr but for bars) of a command that gets Ctrl-C, as a terminal sends it
    to the whole process group, when the first answers are there. Nothing of it may be left."""
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, command)], cwd=ROOT, start_new_session=True, text=True,
        env={**os.environ, "NPROC": "2"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # else a test run in the
    # background, where SIGINT is ignored, would hand that down
    while not list(run.glob("answers/*.jsonl")):
        assert process.poll() is None
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert len(started) >= 2 and not any(child.is_running() for child in started)
    return process.returncode, [line for line in errors.splitlines()
                                if line.strip() and "%|" not in line]


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(config_file, stage, tmp_path: Path,
                                                         capsys):
    path, run = config_file(chunk_size=1, generation=SLOW), tmp_path / "run"
    assert interrupt(run, "adg.pipeline", path, "prepare", "sample") == (
        130, ["stopped; the same command goes on from here"])
    done = len(list(run.glob("answers/*.jsonl")))
    stage(sample_answers, path, "--dry-run")
    assert 0 < done < 10 and f"{10 - done} of 10 to do" in capsys.readouterr().out


def test_torchruns_ranks_end_on_ctrl_c_without_a_traceback(config_file, stage, tmp_path: Path):
    path = config_file(chunk_size=1, generation=SLOW)
    stage(prepare_pool, path)
    assert interrupt(tmp_path / "run", "adg.pipeline.launch", "--nproc_per_node=2", "-m",
                     "generation.sample_answers", path) == (
        130, ["stopped; the same command goes on from here"])


def test_paths_lead_from_where_the_user_stands_then_from_the_repository(
        config_file, tiny_model, tmp_path: Path, monkeypatch):
    """What run.sh starts, in a folder whose own files must not pass for Python's."""
    folder = tmp_path / "my data"
    folder.mkdir()
    (folder / "random.py").write_text("raise SystemExit('not this one')")
    (folder / "x.json").write_text(json.dumps(RECORDS))
    (folder / "base").mkdir()
    path = config_file()
    path.rename(folder / "base/mine.yaml")
    (folder / "my first.yaml").write_text("base: base/mine.yaml\noutput_dir: my run\n")
    environment = {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "adg.pipeline", *arguments], cwd=folder, check=False,
            capture_output=True, text=True, env=os.environ | environment)

    arguments = ("my first.yaml", "prepare", "select", "selection.method=random",
                 "pool.path=x.json")
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert len((folder / "my run/pool.jsonl").read_text().splitlines()) == 10
    again = run(*arguments)
    assert (f"To see the results again: (cd {ROOT} && .venv/bin/python -m adg.tools.summary "
            f"'{folder}/my run/subsets/random')\n") in again.stdout
    for wrong, key in (("pool.path=none.csv", "pool.path: none.csv"),
                       ("eval.data_dir=none", "eval.data_dir: none/"),
                       ("train.deepspeed=none.json", "train.deepspeed: none.json"),
                       ("model.name_or_path=none.gguf", "model.name_or_path: none.gguf")):
        missing = run("my first.yaml", "output_dir=other", wrong)
        assert re.fullmatch(rf"error: {re.escape(key)} not found "
                            rf"\(looked in {re.escape(f'{folder} and {ROOT}')}\)\n", missing.stderr)
    missing = run("none.yaml")
    assert missing.stderr == (f"error: none.yaml: configuration file not found (looked in "
                              f"{folder} and {ROOT})\n")


def test_help_says_the_stages_and_the_keys_of_one_section(stage, capsys):
    for arguments in (["--help"], ["x.yaml", "--help"], ["x.yaml", "select", "-h"]):
        with pytest.raises(SystemExit, match="0"):
            stage(pipeline_module, *arguments)
        shown = capsys.readouterr().out
        for name, about in (("prepare", "read the instruction pool, check"),
                            ("finetune", "fine-tune all weights on a subset")):
            assert f"\n  {name:10}{about}" in shown
        assert "\n  generation.temperature (1.4; above 0)\n" in shown
    with pytest.raises(SystemExit, match="0"):
        stage(pipeline_module, "x.yaml", "--help", "generation")
    keys = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")
            and line[2] != " "]
    assert len(keys) > 10 and all(key.startswith("  generation.") for key in keys)
    with pytest.raises(InputError, match="unknown section genration; the sections are model,"):
        stage(pipeline_module, "--help", "genration")
    with pytest.raises(SystemExit, match="2"):
        stage(pipeline_module)
    assert capsys.readouterr().err.endswith("are required: CONFIG\n")


def test_quiet_is_a_line_per_stage_and_what_went_wrong(config_file, tmp_path: Path):
    artifacts.write_json(tmp_path / "run/eval/base/scores.json", {
        "scores": {"mmlu": 30.0}, "groups": {"Knowledge": None}, "questions": {"mmlu": 57}})
    arguments = [config_file(), "prepare", "select", "tables", "selection.method=random",
                 "--quiet"]
    done = pipeline(*arguments)
    assert done.returncode == 0 and done.stderr == ""
    assert [re.sub(r"\d+ s", "N s", line) for line in done.stdout.splitlines()] == [
        "[prepare] done in N s", "[select random] done in N s", "[tables] done in N s"]
    assert pipeline(*arguments).stdout == (
        "[prepare] done before\n[select random] done before\n[tables] done before\n")
    failed = pipeline(*arguments, "selection.budget=11", "selection.name=x")
    assert failed.returncode == 2 and failed.stdout == "[prepare] done before\n"
    assert failed.stderr.startswith("error: selection.budget is 11, but the pool has 10")


def test_a_stage_that_fails_names_the_file_of_what_its_engines_said(config_file, tmp_path: Path,
                                                                  monkeypatch, capsys):
    monkeypatch.setattr(processes, "wait_for", lambda *_, **__: 137)
    config, log = load_config(config_file(), []), tmp_path / "run/provenance/finetune-adg-top.0.log"
    ends = "[finetune] ended with status 137; the same command goes on from here"
    for said in (f"{ends}\n", f"{ends}; {log} holds what its engines said on rank 0\n"):
        with pytest.raises(SystemExit, match="137"):
            processes.run_stage("finetune", [], config, 1, {})
        assert capsys.readouterr().err == said
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()


def test_a_quiet_stage_draws_no_bars(config_file):
    done = pipeline(config_file(), "prepare", "sample", "--quiet")
    assert done.returncode == 0 and done.stderr == ""


def test_a_pipeline_holds_what_its_later_stages_read(config_file, tmp_path: Path, stage,
                                                     monkeypatch):
    held = []

    def run_stage(name: str, arguments: list, config, ranks: int, environment: dict,
                  **_: object) -> None:
        if "--dry-run" in arguments:
            assert lock.PIPELINE not in environment
            return
        own = Path(environment[lock.PIPELINE])
        held.append((name, own.name, json.loads(own.read_text())["reads"]))
        if name == "prepare":
            stage(prepare_pool, *arguments)

    monkeypatch.setattr(processes, "run_stage", run_stage)
    stage(pipeline_module, config_file(), "prepare", "sample", "cluster", "--dry-run")
    assert held == [] and not (tmp_path / "run").exists()
    stage(pipeline_module, config_file(), "prepare", "sample")
    assert held == [(name, "pipeline-0.lock", ["pool.jsonl"]) for name in ("prepare", "sample")]


def test_seeds_of_a_draw_share_the_run_folder(config_file, tmp_path: Path, stage, monkeypatch):
    ran = []

    def run_stage(name: str, arguments: list, *_: object, **__: object) -> None:
        ran.append(name)
        stage(prepare_pool if name == "prepare" else score_and_select, *arguments)

    monkeypatch.setattr(processes, "run_stage", run_stage)
    stage(pipeline_module, config_file(), "prepare", "select", "selection.method=random",
          "--seeds", "3")
    run = tmp_path / "run"
    assert ran == ["prepare", "select", "select", "select"]
    assert not (tmp_path / "run-seed43").exists()
    subsets = {path.name: (path / "top.json").read_text() for path in (run / "subsets").iterdir()}
    assert sorted(subsets) == ["random", "random-seed43", "random-seed44"]
    assert len(set(subsets.values())) == 3
    assert "Seed: 43." in (run / "subsets/random-seed43/README.md").read_text()
    stage(score_and_select, config_file(), "selection.method=random", "selection.name=again",
          "seed=43")
    assert (run / "subsets/again/top.json").read_text() == subsets["random-seed43"]


@pytest.mark.parametrize(("given", "own"), [
    ([], ["seed=43", "output_dir={run}-seed43"]),
    (["selection.method=random"], [
        "train.seed=43", "train.name=random-top-seed43", "eval.name=random-top-seed43",
        "selection.seed=43", "selection.name=random-seed43"]),
    (["selection.method=longest", "eval.name=base"], [
        "train.seed=43", "train.name=longest-top-seed43"]),
    (["train.subset=mine.json"], [
        "train.seed=43", "train.name=mine-seed43", "eval.name=mine-seed43"])])
def test_another_seed_shares_what_it_does_not_decide(config_file, tmp_path, given, own):
    config = load_config(config_file(), given)
    assert pipeline_arguments.with_seed(43, config) == [
        text.format(run=tmp_path / "run") for text in own]


def test_the_summary_shows_no_benchmarks_of_an_earlier_selection(config_file, stage,
                                                                 tmp_path: Path):
    path, run = config_file(selection={"method": "random"}), tmp_path / "run"
    stage(prepare_pool, path)
    stage(score_and_select, path)
    (run / "tables.md").write_text("| of another selection |")
    config = load_config(path, [])
    assert not any("of another selection" in line for line in summarise(run, config))
    line = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps(line | {"stage": "evaluate", "label": "evaluate random-top"}) + "\n")
    artifacts.write_json(run / "provenance/evaluate-random-top.json", {
        "stage": "evaluate random-top", "state": "finished", "inputs": {}})
    assert any("of another selection" in line for line in summarise(run, config))
