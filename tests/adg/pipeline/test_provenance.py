"""What is done, redone, refused or taken as it is. The stages run for real, but for the engines."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import RECORDS

from adg import score_and_select
from adg.base import arrays, artifacts, distributed, hashes, process
from adg.base.errors import InputError
from adg.config import Config, load_config
from adg.geometry import SCORES, centred_grams, divergence_score
from adg.methods.divergence import score_grams
from adg.models import folders
from adg.pipeline import record, stage_run
from adg.pipeline.readiness import options_to_run
from adg.pipeline.stage_run import StageRun, begin
from adg.pipeline.stages import parameters_of
from adg.pipeline.staleness import changes_since
from embedding import cluster, embed
from generation import prepare_pool, sample_answers


@pytest.fixture
def pool_folder(config_file, stage, tmp_path: Path) -> Path:
    """A run folder with a pool from prepare."""
    stage(prepare_pool, config_file())
    return tmp_path / "run"


@pytest.fixture
def run_folder(pool_folder: Path) -> Path:
    """A run folder with a pool from prepare, and vectors, bins and Grams made elsewhere."""
    return add_vectors(pool_folder)


def add_vectors(folder: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(len(RECORDS), 3, 8))
    arrays.write_array(folder / "answer_grams/00000.npy", centred_grams(vectors).astype("f4"))
    arrays.write_array(folder / "instruction_embeddings/00000.npy",
                          rng.normal(size=(len(RECORDS), 8)).astype("f4"))
    arrays.write_array(folder / "bins.npy", np.arange(len(RECORDS), dtype=np.int32) % 3)
    return folder


def test_hand_made_bins_and_grams_go_on_from_select(config_file, stage, run_folder, capsys):
    stage(score_and_select, config_file())
    printed = capsys.readouterr().out
    assert "bins.npy was made elsewhere (no provenance): taken as it is" in printed
    top = json.loads((run_folder / "subsets/adg/top.json").read_text())
    assert len(top) == 3 and "generated_answers" not in top[0]
    scores = [json.loads(line) for line in (run_folder / "subsets/adg/scores.jsonl").open()]
    assert [row["id"] for row in scores] == [record["id"] for record in RECORDS]


def test_done_is_done(config_file, stage, run_folder, capsys):
    stage(score_and_select, config_file())
    before = (run_folder / "log.jsonl").read_text()
    stage(score_and_select, config_file())
    assert "done before" in capsys.readouterr().out
    assert (run_folder / "log.jsonl").read_text() == before


def test_a_cheap_stage_is_redone_and_says_why(config_file, stage, run_folder, capsys):
    stage(score_and_select, config_file())
    stage(score_and_select, config_file(), "selection.budget=2")
    assert "stale, because selection.budget was 3 and is 2" in capsys.readouterr().out
    assert len(json.loads((run_folder / "subsets/adg/top.json").read_text())) == 2
    add_vectors(run_folder, seed=1)
    stage(score_and_select, config_file(), "selection.budget=2")
    assert "answer_grams/ was" in capsys.readouterr().out


def test_another_name_leaves_the_first_subset_alone(config_file, stage, run_folder):
    stage(score_and_select, config_file())
    before = (run_folder / "subsets/adg/top.json").read_bytes()
    stage(score_and_select, config_file(), "selection.name=only-d", "selection.anisotropy_weight=0")
    assert (run_folder / "subsets/adg/top.json").read_bytes() == before
    assert (run_folder / "subsets/only-d/top.json").exists()


def test_a_chunk_edited_by_hand_is_named_before_it_is_used(config_file, stage, run_folder, capsys):
    config = load_config(config_file(), [])
    run = StageRun("cluster", config)
    run.start()
    run.finish(records=len(RECORDS))
    arrays.write_array(run_folder / "bins.npy", np.zeros(len(RECORDS), dtype=np.int32))
    stage(score_and_select, config_file())
    assert ("bins.npy is not what cluster wrote (bins.npy changed): taken as it is"
            in capsys.readouterr().out)


def test_a_tuning_key_makes_nothing_stale(config_file, run_folder):
    config = load_config(config_file(), ["embedding.tokens_per_batch=1", "eval.batch_size=1"])
    assert "embedding.tokens_per_batch" not in StageRun("embed", config).parameters
    assert "embedding.layers" in StageRun("embed", config).parameters


def test_a_folder_from_before_control_tokens_goes_on(config_file, pool_folder):
    name = "generation.control_tokens"
    settings = ["selection.method=ifd"]
    obeying = load_config(config_file(), [*settings, f"{name}=obey"])
    for stage in ("sample", "embed", "measure", "finetune"):
        assert parameters_of(stage, obeying)[name] == "obey"
    run = started("sample", load_config(config_file(), []))
    write_answers(pool_folder)
    run.finish(records=10)
    record = json.loads(run.record_path.read_text())
    del record["parameters"][name]
    artifacts.write_json(run.record_path, record)
    assert begin("sample", load_config(config_file(), [])) is None
    with pytest.raises(InputError, match=f"{name} was None and is 'obey'"):
        begin("sample", obeying)


def started(name: str, config: Config) -> StageRun:
    run = begin(name, config)
    run.start()
    return run


def write_answers(folder: Path, records: list[dict] = RECORDS) -> None:
    artifacts.write_jsonl(folder / "answers/00000.jsonl", (
        {"id": record["id"], "generated_answers": ["a", "b", "c"]} for record in records))


def test_a_dear_stage_refuses_a_changed_key_and_names_the_ways_on(config_file, stage, pool_folder):
    config = load_config(config_file(), [])
    run = started("sample", config)
    write_answers(pool_folder)
    run.finish(records=len(RECORDS))
    assert begin("sample", config) is None
    hot = load_config(config_file(), ["generation.temperature=0.5"])
    with pytest.raises(InputError, match=r"generation.temperature was 1.4 and is 0.5.*--overwrite"):
        begin("sample", hot)
    with pytest.raises(InputError,
                       match="answers/ does not fit the configuration.*run sample again"):
        begin("embed", hot)
    assert (pool_folder / "answers/00000.jsonl").exists()
    run = begin("sample", hot, overwrite=True)
    assert (pool_folder / "answers").exists()  # until all has been checked
    run.start()
    assert not (pool_folder / "answers").exists()


def test_a_done_stage_is_redone_only_where_it_is_named(config_file, stage, pool_folder):
    config = load_config(config_file(), [])
    run = started("sample", config)
    write_answers(pool_folder)
    assert options_to_run("sample", config, overwrite=True) == []  # what was begun goes on
    run.finish(records=len(RECORDS))
    assert options_to_run("sample", config, overwrite=True) is None
    assert options_to_run("sample", config, overwrite=True, named=True) == ["--overwrite"]
    hot = load_config(config_file(), ["generation.temperature=0.5"])
    assert options_to_run("sample", hot, overwrite=True) == ["--overwrite"]
    limited = load_config(config_file(), ["pool.limit=9"])
    assert options_to_run("prepare", limited, overwrite=True) == ["--overwrite"]
    assert options_to_run("prepare", limited) == []


def test_a_stage_names_the_one_whose_output_was_made_anew(config_file, stage, run_folder):
    config = load_config(config_file(), [])
    (run_folder / "bins.npy").unlink()
    stage(cluster, config_file())
    stage(score_and_select, config_file())
    finetuned = started("finetune", config)
    (run_folder / "models/adg-top").mkdir(parents=True)
    (run_folder / "models/adg-top/config.json").write_text("{}")
    finetuned.finish(records=3)
    stage(score_and_select, config_file(), "selection.budget=6")
    with pytest.raises(InputError) as refused:
        begin("finetune", load_config(config_file(), ["selection.budget=6"]))
    assert str(refused.value) == (
        f"finetune adg-top: subsets/adg/top.json was made anew by select adg since. What "
        f"{run_folder} holds was made from what was there before and is kept: use another "
        f"output_dir (or name) or redo it: bash run.sh CONFIG finetune --overwrite (or --overwrite "
        f"with the stage's own command)")
    top = run_folder / "subsets/adg/top.json"
    top.write_text(top.read_text() + " ")  # by hand
    with pytest.raises(InputError, match=r"top.json was \w{8} and is \w{8}\. What .* before and"):
        begin("finetune", load_config(config_file(), ["selection.budget=6"]))


def test_a_key_that_is_not_recorded_at_its_default_is_told_with_it(config_file, stage, run_folder,
                                                                  monkeypatch):
    monkeypatch.setitem(SCORES, "geometric", divergence_score)
    (run_folder / "bins.npy").unlink()
    stage(cluster, config_file())
    for score, other in (("divergence", "geometric"), ("geometric", "divergence")):
        stage(score_and_select, config_file(), f"selection.score={score}")
        view = StageRun("select", load_config(config_file(), [f"selection.score={other}"]))
        assert view.judge().why == f"selection.score was '{score}' and is '{other}'"


def test_the_log_tells_the_projects_code_from_another(monkeypatch, tmp_path):
    for name, text in (("adg/a.py", "1"), ("eval/b.py", "2"), ("tests/c.py", "3")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2"\n')
    monkeypatch.setattr(record, "ROOT", tmp_path)
    ask = record.code_version.__wrapped__
    before = ask()
    assert re.fullmatch(r"1\.2\+[0-9a-f]{8}", before)
    (tmp_path / "tests/c.py").write_text("4")
    assert ask() == before
    (tmp_path / "eval/b.py").write_text("4")
    assert ask() != before
    assert record.versions()["adg"] == record.code_version()


def test_a_killed_dear_stage_goes_on_and_is_no_input_meanwhile(config_file, pool_folder):
    config = load_config(config_file(), [])
    started("sample", config)
    write_answers(pool_folder)
    with pytest.raises(InputError, match="unfinished: run sample again"):
        begin("embed", config)
    assert begin("sample", config) is not None


def test_a_chunk_that_went_missing_is_made_again(config_file, pool_folder):
    config = load_config(config_file(), [])
    run = started("sample", config)
    write_answers(pool_folder)
    artifacts.write_jsonl(pool_folder / "answers/00001.jsonl", [{}])
    run.finish(records=1)
    (pool_folder / "answers/00001.jsonl").unlink()
    assert begin("sample", config) is not None


def test_hand_made_answers_are_noted_and_kept(config_file, pool_folder, capsys):
    write_answers(pool_folder)
    config = load_config(config_file(), [])
    assert begin("sample", config) is None
    assert "answers/ was made elsewhere (no provenance): kept" in capsys.readouterr().out


def test_a_changed_pool_is_not_mixed_with_old_answers(config_file, stage, pool_folder, tmp_path):
    config = load_config(config_file(), [])
    started("sample", config)
    write_answers(pool_folder)
    StageRun("sample", config).finish(records=1)
    (tmp_path / "pool.jsonl").write_text(json.dumps(RECORDS[0]) + "\n" + json.dumps(RECORDS[1]))
    small = ("clustering.num_bins=1", "selection.budget=1")
    stage(prepare_pool, config_file(), *small)
    with pytest.raises(InputError, match="pool.jsonl was"):
        begin("embed", load_config(config_file(), list(small)))
    assert begin("sample", load_config(config_file(), list(small))).follows


def test_another_model_is_refused(config_file, pool_folder, tiny_model, tmp_path):
    config = load_config(config_file(), [])
    started("sample", config)
    write_answers(pool_folder)
    StageRun("sample", config).finish(records=1)
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny_model.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="answers/ does not fit .* model was .* run sample again"):
        begin("embed", load_config(config_file(), [f"model.name_or_path={other}"]))


@pytest.fixture
def changeable(tiny_model, tmp_path, monkeypatch) -> Path:
    """A copy of the tiny model of which only both ends are sampled."""
    monkeypatch.setattr(folders, "_BLOCKS", 2)
    return Path(shutil.copytree(tiny_model, tmp_path / "changeable"))


def zero_the_middle(model: Path) -> None:
    with (model / "model.safetensors").open("r+b") as file:
        file.seek((model / "model.safetensors").stat().st_size // 2)
        file.write(bytes(64))


def sampled_with(model: Path, config_file, folder: Path) -> Config:
    """The configuration of a finished stage sample with a model."""
    config = load_config(config_file(), [f"model.name_or_path={model}"])
    run = started("sample", config)
    write_answers(folder)
    run.finish(records=len(RECORDS))
    return config


def test_a_model_changed_in_place_is_another_one(config_file, pool_folder, changeable):
    config = sampled_with(changeable, config_file, pool_folder)
    zero_the_middle(changeable)
    with pytest.raises(InputError, match=r"sample: model was \S+ (\w{8}) and is \S+ (?!\1)\w{8}\. "
                                         r"What .* --overwrite"):
        begin("sample", config)
    with pytest.raises(InputError, match="answers/ does not fit .* model was .* run sample again"):
        begin("embed", config)


def test_a_model_is_hashed_once_and_by_rank_0_alone(config_file, pool_folder, changeable,
                                                    monkeypatch):
    read, sha256 = [], hashes._sha256
    monkeypatch.setattr(hashes, "_sha256", lambda path: read.append(path.name) or sha256(path))
    config = load_config(config_file(), [f"model.name_or_path={changeable}"])
    assert options_to_run("sample", config) == [] and "model.safetensors" not in read
    sampled_with(changeable, config_file, pool_folder)
    assert read.count("model.safetensors") == 1
    os.utime(changeable / "model.safetensors", ns=(1, 1))  # the same model
    assert begin("sample", config, dry_run=True) is None  # which keeps nothing
    monkeypatch.setenv("RANK", "1")
    assert begin("sample", config) is None and read.count("model.safetensors") == 2
    monkeypatch.setenv("RANK", "0")
    for _ in range(2):
        assert options_to_run("sample", config) is None
        assert begin("embed", config) is not None
    assert read.count("model.safetensors") == 3


def test_a_record_without_the_hash_of_the_whole_model_goes_on(config_file, pool_folder, changeable):
    config = sampled_with(changeable, config_file, pool_folder)
    path = pool_folder / "provenance/sample.json"
    record = json.loads(path.read_text())
    assert record["inputs"]["model"].pop("whole")
    artifacts.write_json(path, record)
    assert begin("sample", config) is None and begin("embed", config) is not None


@pytest.mark.parametrize(("array", "message"), [
    (np.zeros(9, np.int32), r"bins.npy: int32 of shape \(9,\)"),
    (np.zeros(10, np.float32), "bins.npy: float32"),
])
def test_bins_of_a_wrong_shape_are_refused(config_file, stage, run_folder, array, message):
    arrays.write_array(run_folder / "bins.npy", array)
    with pytest.raises(InputError, match=message):
        stage(score_and_select, config_file())


def test_too_many_bins_or_too_large_a_budget_is_said_before_the_work(config_file, stage, capsys):
    stage(prepare_pool, config_file())
    for override, message in (
            ("clustering.num_bins=11", "cluster would refuse: clustering.num_bins is 11"),
            ("selection.budget=11", "select would refuse: selection.budget is 11")):
        stage(sample_answers, config_file(), override, "--dry-run")
        said = capsys.readouterr().out
        assert 0 <= said.find(f"[sample] note: {message}") < said.find("10 of 10 to do")


def test_cluster_writes_a_bin_for_each_record_whatever_was_there(config_file, stage, run_folder):
    (run_folder / "bins.npy").unlink()
    stage(cluster, config_file())
    first = np.load(run_folder / "bins.npy")
    assert first.dtype == np.int32 and first.shape == (10,) and set(first) == {0, 1, 2}
    stage(cluster, config_file(), "clustering.num_bins=2")
    assert set(np.load(run_folder / "bins.npy")) == {0, 1}
    stage(cluster, config_file())
    assert (np.load(run_folder / "bins.npy") == first).all()


def test_bins_left_open_are_recorded_as_the_number_they_are(config_file, stage, run_folder,
                                                             capsys):
    (run_folder / "bins.npy").unlink()
    path = config_file(clustering={"num_bins": None})
    stage(cluster, path)  # ten records
    stage(score_and_select, path)
    assert "1 of 1 bins hold a record" in capsys.readouterr().out
    assert "each of 1 semantic bins gives" in (run_folder / "subsets/adg/README.md").read_text()
    assert begin("cluster", load_config(path, ["clustering.num_bins=1"])) is None
    assert begin("select", load_config(path, ["clustering.num_bins=1"])) is None


def test_bins_of_a_pool_stay_where_their_number_is_left_open(config_file, stage, run_folder,
                                                            capsys):
    (run_folder / "bins.npy").unlink()
    stage(cluster, config_file())
    path = config_file(clustering={"num_bins": None})
    stage(cluster, path)
    assert ("clustering.num_bins is left open: the 3 bins of before stay; 1 with cluster "
            "--overwrite or clustering.num_bins=1\n") in capsys.readouterr().out
    stage(score_and_select, path)
    assert "each of 3 semantic bins gives" in (run_folder / "subsets/adg/README.md").read_text()
    assert StageRun("cluster", load_config(path, []), overwrite=True).num_bins == 1
    with (run_folder / "pool.jsonl").open("a") as pool:
        pool.write(json.dumps(RECORDS[0] | {"id": "new"}) + "\n")
    assert StageRun("cluster", load_config(path, [])).num_bins == 1  # they are of another pool


@pytest.mark.parametrize(("override", "message"), [
    ("clustering.num_bins=2", "bins.npy does not fit .* clustering.num_bins was 3 and is 2"),
    ("pool.limit=9", "pool.jsonl does not fit .* pool.limit was None and is 9"),
])
def test_a_done_stage_sees_what_changed_before(config_file, stage, run_folder, override, message):
    (run_folder / "bins.npy").unlink()
    stage(cluster, config_file())
    stage(score_and_select, config_file())
    with pytest.raises(InputError, match=message):
        stage(score_and_select, config_file(), override)


def test_overwrite_keeps_what_is_there_until_all_is_checked(config_file, stage, run_folder):
    stage(score_and_select, config_file())
    before = (run_folder / "subsets/adg/top.json").read_bytes()
    with pytest.raises(InputError, match="selection.budget is 11"):
        stage(score_and_select, config_file(), "selection.budget=11", "--overwrite")
    assert (run_folder / "subsets/adg/top.json").read_bytes() == before


_FLAT = np.array([[2, -1, -1], [-1, -1, 2], [-1, 2, -1]]) / 9  # symmetric, of rows that sum to 0


@pytest.mark.parametrize(("place", "values", "rule"), [
    ((4, 0, 0), np.inf, "its values are finite"),
    ((4, 0, 1), np.nan, "its values are finite"),
    ((4, 0, 0), np.nan, "a missing answer is NaN in its whole row and column"),
    ((4, 0, 1), 0.7, "it is symmetric"),
    (4, 100.0, "its trace is at most 3"),
    (4, _FLAT, "its diagonal has no negative value"),
    (4, np.eye(3), "its rows sum to 0"),
    (4, np.eye(3) - 1 / 3 + 0.001, "its rows sum to 0"),
])
def test_what_is_no_gram_matrix_is_named_by_row(config_file, stage, run_folder, place, values,
                                                rule):
    grams = np.load(run_folder / "answer_grams/00000.npy")
    grams[place] = values
    arrays.write_array(run_folder / "answer_grams/00000.npy", grams)
    with pytest.raises(InputError, match=f"00000.npy: row 4 is not a Gram matrix .*{rule}"):
        stage(score_and_select, config_file())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_rounding_takes_no_gram_matrix_off_its_centre(tmp_path, dtype, spread):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 1, 64)) + spread * rng.normal(size=(200, 7, 64))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors = vectors.astype(np.float32)
    for centred in (vectors, vectors - vectors.mean(axis=1, keepdims=True)):
        grams = (centred_grams(centred) if centred is vectors
                 else centred @ centred.swapaxes(1, 2)).astype(dtype)
        arrays.write_array(tmp_path / "00000.npy", grams)
        assert len(score_grams(tmp_path, 200, divergence_score)["score"]) == 200


def test_a_pool_made_elsewhere_with_an_id_twice_is_refused(config_file, stage, run_folder):
    rows = [json.loads(line) for line in (run_folder / "pool.jsonl").open()]
    artifacts.write_jsonl(run_folder / "pool.jsonl", [*rows[:7], rows[7] | {"id": "r2"}, *rows[8:]])
    shutil.rmtree(run_folder / "provenance")
    with pytest.raises(InputError, match="pool.jsonl:8: id is 'r2', as in line 3"):
        stage(score_and_select, config_file(), "selection.method=random")


def test_answers_made_elsewhere_are_those_of_pool_and_grams(config_file, stage, run_folder):
    write_answers(run_folder, [*RECORDS[:7], RECORDS[8], RECORDS[7], RECORDS[9]])
    with pytest.raises(InputError, match="answers/00000.jsonl:8: id is 'r8', but 'r7' in that row"):
        stage(score_and_select, config_file(), "selection.budget=1")
    write_answers(run_folder)
    stage(score_and_select, config_file(), "selection.budget=1")
    chosen = [json.loads((run_folder / f"subsets/adg/{name}.json").read_text())[0]["id"]
              for name in ("top", "middle", "bottom")]
    assert not {"r7", "r8"} & {*chosen}  # every row was looked at, not the chosen ones alone
    vectors = np.random.default_rng(0).normal(size=(len(RECORDS), 5, 8))
    arrays.write_array(run_folder / "answer_grams/00000.npy", centred_grams(vectors).astype("f4"))
    with pytest.raises(InputError, match="answers/00000.jsonl:1: 3 answers, but the size of the "
                                         "Gram matrices in .*answer_grams/ is 5"):
        stage(score_and_select, config_file())
    stage(score_and_select, config_file(), "embedding.recipe=released",
          "embedding.empty_answers=instruction")  # which makes up what is missing


def test_hand_made_chunks_are_read_in_the_order_of_their_numbers(run_folder):
    whole = np.load(run_folder / "answer_grams/00000.npy")
    (run_folder / "answer_grams/00000.npy").unlink()
    for i in range(10):
        arrays.write_array(run_folder / f"answer_grams/{i + 1}.npy", whole[i: i + 1])
    blocks = arrays.array_blocks(run_folder / "answer_grams", 10, row_dims=2, block_size=4)
    assert (np.concatenate([arrays.read_block(block) for block in blocks]) == whole).all()


def test_a_torn_line_of_the_log_is_dropped(config_file, stage, run_folder):
    with (run_folder / "log.jsonl").open("a") as log:
        log.write('{"stage": "sel')
    stage(score_and_select, config_file())
    lines = [json.loads(line) for line in (run_folder / "log.jsonl").open()]
    assert [line["stage"] for line in lines] == ["prepare", "select"]


def test_a_broken_record_is_named_and_a_broken_cache_is_made_anew(config_file, stage, run_folder):
    (run_folder / "provenance/sha256.json").write_text("[")
    stage(score_and_select, config_file())
    (run_folder / "provenance/select-adg.json").write_text("{")
    with pytest.raises(InputError, match="select-adg.json: not a provenance record"):
        stage(score_and_select, config_file())


def test_another_model_named_in_the_configuration_is_not_passed_over(
        config_file, pool_folder, tiny_model, tmp_path):
    config = load_config(config_file(), [])
    run = started("embed", config_with_answers(config, pool_folder))
    add_vectors(pool_folder)
    (pool_folder / "bins.npy").unlink()
    run.finish(records=10)
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny_model.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    with pytest.raises(InputError, match="model was .* run embed again"):
        begin("cluster", load_config(config_file(), [f"model.name_or_path={other}"]))


def test_a_source_that_is_gone_is_forgiven_and_another_that_is_not_there_is_not(
        config_file, stage, pool_folder, tmp_path, capsys):
    (tmp_path / "pool.jsonl").rename(tmp_path / "away.jsonl")
    config = config_file().read_text()
    path = tmp_path / "gone.yaml"
    path.write_text(config)
    (tmp_path / "pool.jsonl").unlink(missing_ok=True)
    stage(prepare_pool, path)
    assert "done before" in capsys.readouterr().out
    with pytest.raises(InputError, match="pool.path: .*other.jsonl not found"):
        stage(prepare_pool, path, f"pool.path={tmp_path}/other.jsonl")


@pytest.mark.parametrize(("name", "given", "override"), [
    ("finetune", "train.subset", "seed=42"),
    ("measure", "measure.encoder", "selection.method=ifd"),
    ("select", "select.tag_vectors", "selection.method=random"),
])
def test_what_is_not_asked_for_any_more_is_absent_and_not_missing(config_file, pool_folder,
                                                                  name, given, override):
    artifacts.write_json(pool_folder / "subsets/adg/top.json", [])
    run = StageRun(name, load_config(config_file(), [override]))
    earlier = {"state": "finished", "parameters": {},
               "inputs": {given: {"name": "mine.json", "sha256": "a"}}}
    assert f"{given} was mine.json a and is absent" in changes_since(earlier, run.present(earlier))


def config_with_answers(config: Config, folder: Path) -> Config:
    write_answers(folder)
    return config


_TRY_LOCK = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def test_the_log_stays_locked_until_the_record_is_written(config_file, stage, run_folder,
                                                          monkeypatch):
    """Ranks that end together: closing another handle on the log would give up its lock."""
    seen = []

    def attempt() -> dict:
        result = subprocess.run([sys.executable, "-c", _TRY_LOCK, run_folder / "log.jsonl"],
                                capture_output=True, text=True, check=False)
        seen.append("BlockingIOError" in result.stderr)
        return {}

    monkeypatch.setattr(record, "versions", attempt)
    stage(score_and_select, config_file())
    assert seen == [True]


def test_a_chunk_size_left_open_is_chosen_once_for_a_run_folder(config_file, stage, tmp_path,
                                                                monkeypatch):
    def names(folder: str) -> list[str]:
        return sorted(path.name for path in (tmp_path / "run" / folder).iterdir())

    path = config_file(chunk_size=None)
    stage(prepare_pool, path)
    monkeypatch.setattr(artifacts, "chunk_size_for", lambda records: 3 if records == 10 else 99)
    stage(sample_answers, path)
    assert names("answers") == [f"{i:05d}.jsonl" for i in range(4)]
    assert StageRun("sample", load_config(path, [])).record()["parameters"]["chunk_size"] == 3
    with (tmp_path / "pool.jsonl").open("a") as pool:
        pool.write(json.dumps(RECORDS[0] | {"id": "new"}) + "\n")
    stage(prepare_pool, path)  # eleven records now
    assert begin("sample", load_config(path, ["chunk_size=3"])) is not None  # it only grew
    stage(sample_answers, path)
    stage(embed, path)
    assert names("answer_grams") == [f"{i:05d}.npy" for i in range(4)]
    assert begin("embed", load_config(path, ["chunk_size=3"])) is None
    with pytest.raises(InputError, match="chunk_size was 3 and is 4"):
        begin("sample", load_config(path, ["chunk_size=4"]))


def test_a_folder_made_with_a_given_chunk_size_goes_on_without_one(config_file, stage, tmp_path):
    stage(prepare_pool, config_file())
    stage(sample_answers, config_file())
    path = config_file(chunk_size=None)
    assert begin("sample", load_config(path, [])) is None
    (tmp_path / "run/answers/00001.jsonl").unlink()
    stage(sample_answers, path)
    assert len(artifacts.JsonlRows(tmp_path / "run/answers/00001.jsonl")) == 4


def test_a_chunk_size_left_open_gives_the_ranks_of_a_small_pool_work_each(config_file, stage):
    path = config_file(chunk_size=None)
    stage(prepare_pool, path)
    assert StageRun("sample", load_config(path, [])).chunk_size == 8  # of ten records
    with pytest.raises(InputError, match="chunk_size is 0; it must be null or 1 or more"):
        load_config(path, ["chunk_size=0"])


def test_a_rank_that_waits_is_not_watched_and_the_one_that_finishes_is(config_file, pool_folder,
                                                                       monkeypatch):
    run = started("sample", load_config(config_file(), []))
    watched = []
    monkeypatch.setattr(distributed, "barrier", lambda name, value: (
        watched.append(process._limit > 0), [value])[1])
    assert process._limit > 0
    assert run.done_by_all(list, records=0)
    assert watched == [False] and process._limit > 0
    monkeypatch.setenv("RANK", "1")
    assert not run.done_by_all(list, records=0)
    assert watched == [False, False] and process._limit == 0


def test_what_rank_0_does_not_see_is_no_end(config_file, pool_folder, monkeypatch):
    run = started("sample", load_config(config_file(), []))
    monkeypatch.setattr(distributed, "barrier", lambda name, value: [value])
    with pytest.raises(InputError, match="sample: 2 chunks are not in .*run, though every rank"):
        run.done_by_all(lambda: [1, 3], records=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    looks = iter([[1, 3], [3], []])  # as a network file system shows what another node wrote
    monkeypatch.setattr(stage_run.time, "sleep", lambda seconds: None)
    assert run.done_by_all(lambda: next(looks), records=0)
    process.unwatch()


def test_ranks_of_unlike_configurations_are_refused(config_file, stage, pool_folder, monkeypatch):
    record = started("sample", load_config(config_file(), [])).record()
    process.unwatch()
    monkeypatch.setattr(distributed, "agreed", lambda name, make: record)
    monkeypatch.setenv("RANK", "1")
    run = StageRun("sample", load_config(config_file(), ["generation.temperature=0.5"]))
    with pytest.raises(InputError, match="generation.temperature was 1.4 and is 0.5: the former is "
                                         "rank 0's"):
        run.start()
