import shutil
from pathlib import Path

import pytest

from adg.errors import InputError
from adg.models import identity, local_folder, source_of


@pytest.mark.parametrize(("name", "message"), [
    ("/no/such/folder", "neither a folder that is there, nor a GGUF file, nor a hub name"),
    ("./none", "neither a folder that is there"),
    ("/no/such/model.gguf", "model.gguf is not there"),
    ("owner/not-in-the-cache", "the hub did not give it"),
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
    with pytest.raises(InputError, match="pytorch_model.bin.index.json is not there"):
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
    with pytest.raises(InputError, match="owner/tiny is no local folder, and the hub"):
        source_of("owner/tiny")  # main is not in the cache
