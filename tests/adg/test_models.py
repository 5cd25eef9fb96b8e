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
