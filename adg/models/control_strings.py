"""The control tokens of a model, read from its tokenizer's files: no weights are loaded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adg.base.errors import InputError
from adg.control_tokens import control_tokens_of
from adg.models import folders


def control_strings(name_or_path: str, *, trust_remote_code: bool) -> set[str]:
    """The control tokens of a model's tokenizer, without its weights.

    Of a tokenizer.json or a GGUF file without transformers too, whose import takes seconds. Raises
    InputError where there is no such model or tokenizer.
    """
    if not Path(name_or_path).expanduser().exists():
        name, _, revision = name_or_path.partition("@")
        return _strings(folders.load_tokenizer(name, trust_remote_code=trust_remote_code,
                                               revision=revision or None))
    source = folders.source_of(name_or_path)
    try:
        if source.is_file():
            return set(_in_gguf(source))
        if (source / "tokenizer.json").is_file():
            return set(_in_files(source))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{source}: its tokenizer cannot be read ({error!r})") from None
    return _strings(folders.load_tokenizer(source, trust_remote_code=trust_remote_code))


def _strings(tokenizer: Any) -> set[str]:
    return {token.content for token in control_tokens_of(tokenizer)}


def _in_gguf(path: Path) -> Iterator[str]:
    """The control tokens of a GGUF file, and those that it names (bos_token_id and the like)."""
    from gguf import GGUFReader, TokenType

    fields = {name.removeprefix("tokenizer.ggml."): field
              for name, field in GGUFReader(path).fields.items()}
    kinds = fields["token_type"].contents() if "token_type" in fields else []
    ids = {number for number, kind in enumerate(kinds) if kind == TokenType.CONTROL}
    ids |= {field.contents() for name, field in fields.items() if name.endswith("_token_id")}
    return (fields["tokens"].contents(number) for number in ids)


def _in_files(folder: Path) -> Iterator[str]:
    """The control tokens in tokenizer.json, and those that the files beside it name."""
    for token in _read(folder / "tokenizer.json")["added_tokens"]:
        if token["special"]:
            yield token["content"]
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        settings = _read(folder / name) if (folder / name).is_file() else {}
        for key, value in settings.items():
            if key.endswith(("_token", "special_tokens")):
                yield from _named(value)
        for token in settings.get("added_tokens_decoder", {}).values():
            if token.get("special"):
                yield token["content"]


def _named(value: Any) -> Iterator[str]:
    """The tokens in a setting: a string, {"content": string}, or several of them."""
    if isinstance(value, str):
        yield from [value] if value else []
    elif isinstance(value, dict) and "content" in value:
        yield value["content"]
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _named(part)


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
