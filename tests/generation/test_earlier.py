"""A pool that changes after its answers were drawn: what was made of unchanged records is kept."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import RECORDS, tree

from adg.base import artifacts
from adg.base.errors import InputError
from adg.pipeline import earlier
from embedding import embed
from embedding.forward import Embedder
from generation import prepare_pool, sample_answers
from generation.transformers_sampler import TransformersSampler

STAGES = (prepare_pool, sample_answers, embed)
ARTEFACTS = ("answers", "instruction_embeddings", "answer_grams", "answer_embeddings",
             "window_grams/last")
SETTINGS = {"embedding": {"keep_answer_embeddings": True, "windows": {"last": [-1]},
                          "check_answers": 0}}
# One gone, one reworded, two exchanged, one new in the middle, another output
CHANGED = [RECORDS[1], RECORDS[0], RECORDS[3] | {"output": "Twelve."},
           {"id": "new", "instruction": "Say it.", "input": "", "output": "It."},
           RECORDS[4] | {"instruction": "Write two poems."}, *RECORDS[5:]]


@pytest.fixture(params=["forward", "sampling"])
def embedded(request, config_file, stage, tmp_path):
    """(configuration file, run folder) of ten records with answers and vectors."""
    path = config_file(embedding=SETTINGS["embedding"] | {"source": request.param},
                       generation={"keep_token_ids": True})
    for module in STAGES:
        stage(module, path)
    return path, tmp_path / "run"


@pytest.fixture
def work(monkeypatch):
    """{"asked": prompts that the sampler is asked for, "embedded": texts that are embedded}."""
    done = {"asked": 0, "embedded": 0}
    stream, plain = TransformersSampler.stream, Embedder.embed

    def counted(self, requests):
        for request in requests:
            done["asked"] += 1
            yield request

    def embedding(self, rows):
        done["embedded"] += sum(len(row.texts) for row in rows)
        return plain(self, rows)

    monkeypatch.setattr(TransformersSampler, "stream",
                        lambda self, requests: stream(self, counted(self, requests)))
    monkeypatch.setattr(Embedder, "embed", embedding)
    return done


def write_pool(tmp_path: Path, records: list[dict]) -> None:
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def logged(folder: Path, stage: str) -> dict:
    return [line for line in artifacts.JsonlRows(folder / "log.jsonl")
            if line["stage"] == stage][-1]


def vectors_of(folder: Path, name: str) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted((folder / name).glob("*.npy"))])


def assert_same(run: Path, other: Path) -> None:
    """Same answers, and vectors up to rounding."""
    assert tree(run / "answers") == tree(other / "answers")
    for name in ARTEFACTS[1:]:
        assert np.allclose(vectors_of(run, name), vectors_of(other, name), atol=1e-5,
                           equal_nan=True), name


def test_what_is_there_of_unchanged_records_is_kept(embedded, stage, tmp_path, work, capsys):
    path, run = embedded
    sampling = "source: sampling" in path.read_text()
    before = {name: tree(run / name) for name in ARTEFACTS}
    work |= {"asked": 0, "embedded": 0}
    write_pool(tmp_path, CHANGED)
    stage(prepare_pool, path)
    capsys.readouterr()
    stage(sample_answers, path, "--dry-run")
    assert "2 of 10 to do" in capsys.readouterr().out
    stage(sample_answers, path)
    assert "what was made of unchanged records is kept" in capsys.readouterr().out
    stage(embed, path, "--dry-run")
    assert f"{2:,} of 10 to do" in capsys.readouterr().out
    stage(embed, path)
    assert work == {"asked": 2, "embedded": 2 if sampling else 2 + 2 * 3}
    assert [logged(run, name)["records"] for name in ("sample", "embed")] == [2, 2]
    for module in STAGES:
        stage(module, path, f"output_dir={tmp_path / 'anew'}")
    assert_same(run, tmp_path / "anew")

    work |= {"asked": 0, "embedded": 0}
    write_pool(tmp_path, RECORDS)  # back to what it was: nothing is lost, and nothing to be done
    for module in STAGES:
        stage(module, path)
    assert work == {"asked": 0, "embedded": 0}
    assert {name: tree(run / name) for name in ARTEFACTS} == before
    assert [logged(run, name)["records"] for name in ("sample", "embed")] == [0, 0]


def test_what_is_left_to_check_is_checked(config_file, stage, tmp_path):
    path = config_file(embedding={"source": "sampling"})
    run = tmp_path / "run"
    for module in STAGES:
        stage(module, path)
    assert len(list((run / "check_answers").iterdir())) == 3
    write_pool(tmp_path, [*RECORDS[:4], RECORDS[5], RECORDS[4], *RECORDS[6:]])
    for module in STAGES:
        stage(module, path)
    assert [file.name for file in sorted((run / "check_answers").iterdir())] == [
        "00000.jsonl", "00002.jsonl"]
    assert logged(run, "embed")["check"]["checked_answers"] == 6 * 3


def test_earlier_chunks_go_once_all_they_hold_is_in_place(embedded, stage, tmp_path):
    path, run = embedded
    write_pool(tmp_path, RECORDS[::-1])
    stage(prepare_pool, path)
    stage(sample_answers, path)
    assert len(list((run / "earlier/answers").iterdir())) == 3
    stage(embed, path)
    assert not [file for file in (run / "earlier").rglob("*") if file.is_file()]
    write_pool(tmp_path, RECORDS[:0:-1])  # a record less: the chunk that holds it stays
    for module in STAGES:
        stage(module, path)
    kept = [json.loads(line) for file in (run / "earlier/answers").iterdir() for line in
            file.open()]
    assert RECORDS[0]["id"] in [row["id"] for row in kept] and len(kept) < 5


def test_a_kill_while_chunks_are_set_aside_loses_no_answer(embedded, stage, tmp_path, work,
                                                           monkeypatch):
    path, run = embedded
    write_pool(tmp_path, CHANGED)
    stage(prepare_pool, path)
    for module in STAGES:
        stage(module, path, f"output_dir={tmp_path / 'anew'}")
    shutil.copytree(run, tmp_path / "as_it_was")
    plain = earlier._move
    for moves in (0, 2, 4, 5, 9):  # of 10: two chunks, four files of vectors and the answers
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "as_it_was", run)
        left = iter(range(moves))

        def move(source: Path, target: Path, left=left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            plain(source, target)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(earlier, "_move", move)
            stage(sample_answers, path)
        work |= {"asked": 0}
        stage(sample_answers, path)
        assert work["asked"] == 2, moves
        stage(embed, path)
        assert_same(run, tmp_path / "anew")


def test_a_smaller_pool_asks_for_nothing(embedded, stage, tmp_path, work):
    path, run = embedded
    write_pool(tmp_path, RECORDS[2:5])
    stage(prepare_pool, path)
    work |= {"asked": 0}
    for module in (sample_answers, embed):
        stage(module, path)
    assert work["asked"] == 0
    assert [path.name for path in sorted((run / "answers").iterdir())] == ["00000.jsonl"]
    for module in STAGES:
        stage(module, path, f"output_dir={tmp_path / 'anew'}")
    assert_same(run, tmp_path / "anew")


def test_another_parameter_is_still_refused_and_overwrite_forgets(embedded, stage, tmp_path):
    path, run = embedded
    write_pool(tmp_path, RECORDS[3:])
    stage(prepare_pool, path)
    with pytest.raises(InputError, match="generation.temperature was .*pool.jsonl was"):
        stage(sample_answers, path, "generation.temperature=1.0")
    stage(sample_answers, path)
    assert (run / "earlier/answers").is_dir()
    stage(sample_answers, path, "seed=7", "--overwrite")
    assert not (run / "earlier/answers").exists()
    assert not (run / "earlier/keys").exists()
    if "source: forward" in path.read_text():  # by sampling the vectors were made anew too
        with pytest.raises(InputError, match="answers/ was"):
            stage(embed, path, "seed=7")
