"""From `model.name_or_path` to a local Hugging Face folder, its identity and its tokenizer."""

import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

from adg.base import artifacts, lock
from adg.base.errors import InputError
from adg.base.hashes import HashCache
from adg.base.paths import looked_in
from adg.models import weight_files
from adg.models.saving import saving

_BLOCK = 1 << 16  # bytes of one sample of a weight file
_BLOCKS = 64  # samples of a weight file that enter its identity
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_SMALL = (".json", ".jinja", ".model", ".txt", ".py")  # files that enter it whole
_WEIGHTS = (".safetensors", ".gguf", ".bin")
_TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template",
              "spiece", "sentencepiece")


def source_of(name_or_path: str, key: str = "model.name_or_path") -> Path:
    """The folder or GGUF file that a name or path stands for, downloaded from the hub if need be.

    Weights are safetensors or GGUF; a folder's pickle (pytorch_model.bin, or its index) is taken
    only where the path names it. Raises InputError that names `key` where there is no such folder,
    file or hub model, and where its safetensors cannot be loaded, as their headers show.
    """
    source = _found(name_or_path, key)
    if source.is_dir() and Path(name_or_path).name not in _PICKLES:
        weight_files.check(source, key)
    return source


def _found(name_or_path: str, key: str) -> Path:
    """As `source_of`, of which no weight file is opened."""
    path = Path(name_or_path).expanduser()
    if path.name in _PICKLES:
        if not path.is_file():
            raise InputError(f"{key}: {path} not found{looked_in(path)}")
        _check_description(path.parent, key)
        return path.parent
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"{key}: {path} not found{looked_in(path)}")
        return path
    if path.is_dir():
        _check_folder(path, key)
        return path
    if path.is_absolute() or name_or_path.startswith(".") or name_or_path.count("/") != 1:
        raise InputError(f"{key}: {name_or_path} is neither an existing folder"
                         f"{looked_in(path)}, nor a GGUF file, nor a hub name (owner/name or "
                         f"owner/name@revision)")
    return _from_hub(name_or_path, key)


def _check_folder(path: Path, key: str) -> None:
    _check_adapter(path, key)
    _check_description(path, key)
    if any(path.glob("*.safetensors")):
        return
    pickles = [name for name in _PICKLES if (path / name).is_file()]
    if pickles:
        raise InputError(f"{key}: {path}/ holds its weights as a pickle, which can "
                         f"run code when it is read: save them as safetensors, or, if you trust "
                         f"it, use {path}/{pickles[0]}")
    raise InputError(f"{key}: {path}/ holds no weights (*.safetensors)")


def _check_adapter(path: Path, key: str) -> None:
    weights = {file.name for file in path.glob("*.safetensors")}
    weights |= {name for name in (*_PICKLES, *_ADAPTERS) if (path / name).is_file()}
    if weights and weights <= set(_ADAPTERS):
        raise InputError(f"{key}: {path}/ holds only an adapter (LoRA), not a model: merge it into "
                         f"its base model first (merge_and_unload of peft), and use the folder "
                         f"where that is saved")


def _check_description(path: Path, key: str) -> None:
    try:
        is_model = "model_type" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{key}: {path}/ holds no config.json: not a model folder") from None
    except (ValueError, TypeError):
        is_model = False
    if not is_model:
        raise InputError(f"{key}: {path}/config.json describes no model")


def _from_hub(name: str, key: str) -> Path:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = _snapshot(name)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise InputError(f"{key}: {name} is not a local folder, and it could not be "
                         f"downloaded from the hub: {str(error).splitlines()[0]}") from None
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{key}: {name} on the hub has no safetensors, and nothing "
                         f"else is fetched: if you trust it, `hf download {name} --local-dir "
                         f"DIR`, and use DIR/pytorch_model.bin")
    _check_adapter(folder, key)
    return folder


@functools.cache
def _snapshot(name: str) -> Path:
    """The folder of a hub model, asked for once by each process: a branch's name costs a request
    each time, and the commit that it stands for may change."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
    owner_and_name, _, revision = name.partition("@")
    return Path(snapshot_download(owner_and_name, revision=revision or None,
                                  allow_patterns=patterns))


def identity(name_or_path: str, key: str = "model.name_or_path",
             hashes: HashCache | None = None) -> dict[str, str]:
    """{"name", "sha256", "weights", "tokenizer"} of a model, of a hub's also "revision".

    `sha256`, of all its files, tells its outputs from another model's; `weights` is over the weight
    files and their index, `tokenizer` over what the tokenizer is made of. The small files enter
    whole, of each weight file its size and 64 blocks of 64 KiB spread evenly over it, so that it
    takes no longer for a large model than for a small one. What that cannot see, a weight file
    changed in place between those blocks, shows in "whole": with `hashes`, which remembers what was
    read, it is over all bytes of the same files. Errors name `key`.
    """
    source = _found(name_or_path, key)
    files = [source] if source.is_file() else sorted(
        path for path in source.glob("*") if path.suffix in (*_SMALL, *_WEIGHTS))
    weights = [path for path in files if path.suffix in _WEIGHTS
               or path.name.endswith(".index.json")]
    values = {"name": source.name if source.is_file() else name_or_path, "sha256": _digest(files),
              "weights": _digest(weights)}
    tokenizer = [path for path in files if path.name.startswith(_TOKENIZER)]
    if tokenizer:
        values["tokenizer"] = _digest(tokenizer)
    if source.parent.name == "snapshots":  # of the hub's cache: a folder a commit
        values["revision"] = source.name
    if hashes is not None:
        values["whole"] = hashes.tree(source.parent if source.is_file() else source, files)
    return values


def _digest(files: list[Path]) -> str:
    stats = [(path, path.stat()) for path in files]
    return _digest_of(tuple((path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
                            for path, stat in stats))


@functools.cache
def _digest_of(stamped: tuple[tuple[Path, int, int, int], ...]) -> str:
    """The hash over files, read once as long as their sizes and times stay."""
    digest = hashlib.sha256()
    for path, *_ in stamped:
        if path.suffix in _SMALL:
            digest.update(f"{path.name}\n".encode() + path.read_bytes())
        else:
            digest.update(f"{path.name}\n".encode())
            _update_with_samples(digest, path)
    return digest.hexdigest()


def _update_with_samples(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for index in range(_BLOCKS):
            file.seek(max(0, size - _BLOCK) * index // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))


def local_folder(name_or_path: str, output_dir: str) -> Path:
    """A Hugging Face folder with the model's weights.

    A GGUF file is dequantised once into `models/` beside the run folder, under a name that its
    whole content decides; every later call finds it. To be called before there is a process
    group, within which transformers saves on rank 0 alone.
    """
    source = source_of(name_or_path)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all of it is on disk: no engine need ask the hub
    if source.is_dir():
        return source
    beside = Path(output_dir).parent / "models"
    beside.mkdir(parents=True, exist_ok=True)
    with (beside / f".{source.stem}.lock").open("wb") as file, lock.held(file):
        hashes = HashCache(beside / f".{source.stem}.sha256.json")
        folder = beside / f"{source.stem}-{hashes.file(source)[:8]}"
        hashes.save()
        if not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            _dequantise(source, folder)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a folder holds a model's description and whole weights."""
    try:
        _check_folder(folder, "")
        weight_files.check(folder, "")
    except InputError:
        return False
    return True


def _dequantise(source: Path, folder: Path) -> None:
    print(f"note: {source.name} is converted once to a folder of float32 weights: "
          f"{folder.resolve()}",
          flush=True)
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    with saving(folder, aside), contextlib.redirect_stderr(io.StringIO()):  # three bars
        _save_dequantised(source, aside)
        _check_folder(aside, "models/")
        artifacts.flush_tree(aside)
        aside.rename(folder)


def _save_dequantised(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


def load_tokenizer(folder: Path | str, *, trust_remote_code: bool,
                   revision: str | None = None) -> Any:
    """The model's tokenizer: of a folder, or of a hub's model, of which nothing else is fetched."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code,
                                             revision=revision)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}/ holds no tokenizer that can be loaded: "
                         f"{str(error).splitlines()[0]}") from None
