"""Whether a folder's safetensors can be loaded with its config.json, by their headers alone."""

import json
from pathlib import Path

from adg.base.errors import InputError

_SINGLE = "model.safetensors"  # where it exists, transformers looks at no other file
_INDEX = "model.safetensors.index.json"
_POINTER = b"version https://git-lfs"  # what a clone without Git LFS has in a weight file's place
# What input embeddings are called, after whatever names the part of the model
_EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight", "wte.weight", "embed_in.weight")


def check(folder: Path, key: str) -> None:
    """InputError that names `key` where weights are missing, not whole, or of another vocabulary.

    The vocabulary is compared where config.json says it and one tensor is surely the embedding:
    any other number of rows, a padded one too, is refused by transformers and by vLLM.
    """
    embeddings: dict[str, tuple[int, ...]] = {}
    for path in _loaded(folder, key):
        embeddings |= _embeddings(path, key)
    size = _vocabulary(folder)
    if size is None or len(embeddings) != 1:
        return
    (name, shape), = embeddings.items()
    if shape[:1] != (size,):
        raise InputError(f"{key}: vocab_size is {size} in {folder}/config.json, but {name} has the "
                         f"shape {list(shape)}: one of the two files belongs to another model")


def _loaded(folder: Path, key: str) -> list[Path]:
    """The weight files that a loader takes; InputError where the index names one that is missing.
    """
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    index = folder / _INDEX
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{key}: {index} is not an index of weight files: copy or download "
                         f"it again") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{key}: {len(missing)} of the {len(names)} weight files that {index} "
                         f"names were not found ({', '.join(missing[:3])}"
                         f"{', ...' * (len(missing) > 3)}): copy or download them again")
    return [folder / name for name in names]


def _embeddings(path: Path, key: str) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the input embeddings in a file; InputError where it is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape())
                    for name in file.keys() if name.endswith(_EMBEDDINGS)}  # noqa: SIM118
    except SafetensorError as error:
        with path.open("rb") as file:
            is_pointer = file.read(len(_POINTER)) == _POINTER
        raise InputError(f"{key}: {path} is " + (
            "a pointer of Git LFS, not weights: run git lfs pull there" if is_pointer else
            f"not a whole safetensors file ({str(error).rpartition(': ')[2]}): copy or download it "
            f"again")) from None


def _vocabulary(folder: Path) -> int | None:
    """vocab_size of config.json, of a model's text part where it has several; None where it is not
    said, or where the model's own code decides what it means."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {}
    except (FileNotFoundError, ValueError, TypeError):
        return None
    text = config.get("text_config", config)
    size = text.get("vocab_size") if isinstance(text, dict) and "auto_map" not in config else None
    return size if isinstance(size, int) else None
