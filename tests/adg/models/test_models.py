import functools
import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import RECORDS

from adg import measure
from adg.base import artifacts
from adg.base.errors import InputError
from adg.base.hashes import HashCache
from adg.config import load_config
from adg.models import folders
from adg.models.folders import identity, local_folder, source_of
from adg.pipeline.__main__ import check_ahead
from adg.pipeline.staleness import differ
from embedding import embed
from generation import prepare_pool, sample_answers


@pytest.mark.parametrize(("name", "message"), [
    ("/no/such/folder", "neither an existing folder, nor a GGUF file, nor a hub name"),
    ("./none", "neither an existing folder"),
    ("/no/such/model.gguf", "model.gguf not found"),
    ("owner/not-in-the-cache", "not be downloaded from the hub"),
])
def test_a_model_that_is_not_there_is_named(name: str, message: str):
    with pytest.raises(InputError, match=message) as error:
        source_of(name)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="holds no config.json"):
        source_of(str(tmp_path))


def test_a_model_folder_is_taken_as_it_is_and_known_by_content(tiny_model: Path, tmp_path: Path):
    assert local_folder(str(tiny_model), str(tmp_path / "run")) == tiny_model
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tiny_model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert identity(str(copy))["sha256"] == identity(str(tiny_model))["sha256"]
    (copy / "tokenizer_config.json").write_text("{}")
    assert identity(str(copy))["sha256"] != identity(str(tiny_model))["sha256"]


def test_a_pickle_is_read_only_where_it_is_named(tiny_model: Path, tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no weights"):
        source_of(str(folder))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds its weights as a pickle.*pytorch_model.bin"):
        source_of(str(folder))
    asked = source_of(str(folder / "pytorch_model.bin"))
    assert asked == folder
    again = AutoModelForCausalLM.from_pretrained(asked)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    with pytest.raises(InputError, match="pytorch_model.bin.index.json not found"):
        source_of(str(folder / "pytorch_model.bin.index.json"))


def test_a_hub_models_revision_is_known(tiny_model: Path, tmp_path: Path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    revision = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(tiny_model, tmp_path / "models--owner--tiny/snapshots" / revision)
    refs = tmp_path / "models--owner--tiny/refs"
    refs.mkdir()
    (refs / "v1").write_text(revision)
    found = identity("owner/tiny@v1")
    assert found["revision"] == revision and found["name"] == "owner/tiny@v1"
    local = identity(str(tiny_model))
    assert {key: found[key] for key in ("sha256", "weights", "tokenizer")} == {
        key: local[key] for key in ("sha256", "weights", "tokenizer")}
    assert "revision" not in local
    with pytest.raises(InputError, match="owner/tiny is not a local folder, and it"):
        source_of("owner/tiny")  # main is not in the cache


def test_the_hub_is_asked_once_for_a_name(config_file, stage, tiny_model, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(tiny_model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(folders, "_snapshot", functools.cache(folders._snapshot.__wrapped__))
    stage(prepare_pool, config_file())
    artifacts.write_jsonl(tmp_path / "run/answers/a.jsonl", (
        {"id": record["id"], "instruction": record["instruction"], "generated_answers": ["x"] * 3}
        for record in RECORDS))
    stage(embed, config_file(), "model.name_or_path=owner/asked")
    assert asked == [("owner/asked", None)]
    source_of("owner/asked", "train.model_name_or_path")
    source_of("owner/asked@v1")
    assert asked == [("owner/asked", None), ("owner/asked", "v1")]


def test_weights_are_read_again_only_where_they_changed(tiny_model, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    read, update = [], folders._update_with_samples
    monkeypatch.setattr(folders, "_update_with_samples", lambda digest, path: (
        read.append(path.name), update(digest, path)))
    before = identity(str(copy))
    assert identity(str(copy)) == before
    assert read == ["model.safetensors"] * 2  # for all files, for the weights
    assert identity(str(tiny_model)) | {"name": str(copy)} == before
    del read[:]
    weights = copy / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    after = identity(str(copy))
    assert read == ["model.safetensors"] * 2
    assert after["weights"] != before["weights"] and after["tokenizer"] == before["tokenizer"]


def test_a_gguf_file_is_dequantised_once_and_anew_where_its_folder_is_not_whole(
        tiny_gguf: Path, tiny_model: Path, tmp_path: Path, monkeypatch, capsys):
    plain, made = folders._save_dequantised, []
    monkeypatch.setattr(folders, "_save_dequantised",
                        lambda *own: made.append(1) or plain(*own))
    folder = local_folder(str(tiny_gguf), str(tmp_path / "run"))
    weights = [path.name for path in folder.glob("*.safetensors")]
    assert folder.parent == tmp_path / "models" and weights
    said = capsys.readouterr()
    assert f"{tiny_gguf.name} is converted once to a folder of float32 weights" in said.out
    assert "it/s" not in said.err  # no bars
    assert local_folder(str(tiny_gguf), str(tmp_path / "other")) == folder and made == [1]
    for name in weights:
        (folder / name).unlink()  # as if only the tokenizer had been saved
    assert local_folder(str(tiny_gguf), str(tmp_path / "run")) == folder and made == [1, 1]
    assert [path.name for path in folder.glob("*.safetensors")] == weights


def test_a_gguf_file_that_a_process_group_keeps_from_being_saved_leaves_no_folder(
        tiny_gguf: Path, tmp_path: Path, monkeypatch):
    """Within a process group transformers saves on rank 0 alone."""
    from transformers.distributed import mixin

    monkeypatch.setattr(mixin, "_is_torch_distributed_initialized", lambda: True)
    monkeypatch.setattr(mixin, "_get_torch_distributed_rank", lambda: 1)
    with pytest.raises(InputError, match="no config.json|no weights"):
        local_folder(str(tiny_gguf), str(tmp_path / "run"))
    assert not [path for path in (tmp_path / "models").iterdir() if not path.name.startswith(".")]


def test_a_change_between_the_samples_shows_in_the_hash_of_the_whole(tiny_model, tmp_path,
                                                                      monkeypatch):
    monkeypatch.setattr(folders, "_BLOCKS", 2)  # the first and the last
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    hashes = HashCache(tmp_path / "cache.json")
    before = identity(str(copy), hashes=hashes)
    assert before["whole"] == identity(str(tiny_model), hashes=hashes)["whole"]
    os.utime(copy / "model.safetensors", ns=(1, 1))
    assert identity(str(copy), hashes=hashes) == before  # the same bytes are the same model
    zero_the_middle(copy / "model.safetensors")
    after = identity(str(copy), hashes=hashes)
    assert after["sha256"] == before["sha256"] and after["whole"] != before["whole"]
    assert differ(before, after)
    old = {key: value for key, value in before.items() if key != "whole"}
    assert not differ(old, after) and not differ(after, old)


def zero_the_middle(path: Path) -> None:
    """Zero a part of a weight file in place."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(64))


def test_a_gguf_file_that_was_changed_in_place_has_a_folder_of_its_own(
        tiny_gguf: Path, tiny_model: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(folders, "_BLOCKS", 2)
    monkeypatch.setattr(folders, "_save_dequantised", lambda source, folder: shutil.copytree(
        tiny_model, folder, dirs_exist_ok=True))
    gguf = tmp_path / "tiny.gguf"
    shutil.copy(tiny_gguf, gguf)
    run = str(tmp_path / "run")
    before = local_folder(str(gguf), run)
    os.utime(gguf, ns=(1, 1))
    assert local_folder(str(gguf), run) == before
    zero_the_middle(gguf)
    assert local_folder(str(gguf), run) != before


def edit_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 4)


def shard(folder: Path, *shards: str) -> None:
    """Have the weights in a first shard, and an index that names `shards`."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {str(number): name for number, name in enumerate(shards)}}))


def leave_an_adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "config.json").unlink()


_SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]


@pytest.mark.parametrize(("damage", "message"), [
    (cut, "model.safetensors is not a whole safetensors file .incomplete metadata.*it again"),
    (lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com"),
     "model.safetensors is a pointer of Git LFS"),
    (lambda folder: shard(folder, *_SHARDS), "1 of the 2 weight files that .*index.json names were "
                                             "not found .model-00002-of-00002.safetensors."),
    (lambda folder: (shard(folder, _SHARDS[0]), (folder / "model.safetensors.index.json")
                     .write_text("{}")), "index.json is not an index of weight files"),
    (lambda folder: edit_config(folder, vocab_size=384), "vocab_size is 384 in .*config.json, but "
                                                         r"model.embed_tokens.weight .* \[\d+, 64"),
    (leave_an_adapter, "holds only an adapter .LoRA., .* merge it into its base model first"),
])
def test_a_damaged_model_is_refused_before_any_work(config_file, stage, tiny_model, tmp_path,
                                                    damage, message):
    model = Path(shutil.copytree(tiny_model, tmp_path / "damaged"))
    damage(model)
    for names, key in ((["sample"], "model.name_or_path"), (["embed"], "model.name_or_path"),
                       (["measure"], "selection.ifd.model_name_or_path"),
                       (["finetune"], "train.model_name_or_path")):
        config = load_config(config_file(), [f"{key}={model}", "selection.method=ifd"])
        with pytest.raises(InputError, match=f"^{key}: .*{message}") as error:
            check_ahead(names, config)
        assert "\n" not in str(error.value)
    stage(prepare_pool, config_file())
    with pytest.raises(InputError, match=message):
        stage(sample_answers, config_file(), f"model.name_or_path={model}", "--show-prompts", 1)
    with pytest.raises(InputError, match=f"^selection.ifd.model_name_or_path: .*{message}"):
        stage(measure, config_file(), f"selection.ifd.model_name_or_path={model}",
              "selection.method=ifd", "--dry-run")
    assert not list((tmp_path / "run").glob("provenance/measure*"))


@pytest.mark.parametrize("change", [
    lambda folder: shard(folder, _SHARDS[0]),
    lambda folder: (folder / "adapter_model.safetensors").write_bytes(b""),  # beside the model
    lambda folder: edit_config(folder, vocab_size=384, auto_map={}),  # its own code reads that
    lambda folder: edit_config(folder, vocab_size=384, text_config={"hidden_size": 64}),
])
def test_what_a_loader_may_take_is_not_refused(tiny_model, tmp_path, change):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    change(model)
    assert source_of(str(model)) == model
