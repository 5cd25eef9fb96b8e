"""What shapes instruction records come in, and how each becomes instruction, input and output.

Fields that a schema does not use travel along. A record of several turns becomes its first or its
last (pool.multi_turn).
"""

import difflib
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

from adg.base.errors import InputError
from adg.config import PoolConfig

_SPEAKERS = {"human": "user", "user": "user", "prompter": "user", "gpt": "assistant",
             "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant",
             "bard": "assistant", "model": "assistant", "system": "system"}


class Unusable(ValueError):
    """Why a record cannot be used."""


class Schema(NamedTuple):
    """Field names that tell a schema, and what makes an Alpaca record of one of its records."""

    fields: tuple[str, ...]
    convert: Callable[[dict, PoolConfig], dict]


def _renamed(**names: str) -> Callable[[dict, PoolConfig], dict]:
    """Takes instruction, input and output from fields of other names."""
    def convert(record: dict, settings: PoolConfig) -> dict:
        others = {key: value for key, value in record.items() if key not in names.values()}
        return others | {new: record[old] for new, old in names.items() if old in record}
    return convert


def _conversation(field: str, speaker: str, text: str) -> Callable[[dict, PoolConfig], dict]:
    """Takes one turn of a conversation, a list of {speaker, text}."""
    def convert(record: dict, settings: PoolConfig) -> dict:
        turns = _turns(record[field], speaker, text)
        if len(turns) > 1 and settings.multi_turn == "reject":
            raise Unusable(f"{len(turns)} turns, and pool.multi_turn is reject")
        asked, answered = turns[-1 if settings.multi_turn == "last" else 0]
        others = {key: value for key, value in record.items()
                  if key not in ("instruction", "input", "output")}
        return others | {"instruction": asked, "input": "", "output": answered}
    return convert


def _turns(messages: Any, speaker: str, text: str) -> list[tuple[str, str]]:
    """(what the user says, what the assistant answers) of each turn."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Unusable("the conversation is not a list of messages")
    spoken = []
    for message in messages:
        role, words = _SPEAKERS.get(message.get(speaker)), message.get(text)
        if role is None or not isinstance(words, str):
            raise Unusable(f"a message without a known {speaker} or without {text}")
        if role != "system":
            spoken.append((role, words))
    turns = [(asked, answered) for (a, asked), (b, answered) in pairwise(spoken)
             if (a, b) == ("user", "assistant")]
    if not turns:
        raise Unusable("no message of a user that an assistant answers")
    return turns


def _first_instance(record: dict, settings: PoolConfig) -> dict:
    """Self-Instruct's seed tasks: the first of their instances."""
    instances = record["instances"]
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
        raise Unusable("instances is not a list of inputs and outputs")
    return record | {name: instances[0].get(name, "") for name in ("input", "output")}


SCHEMAS = {
    "alpaca": Schema(("instruction", "output"), lambda record, settings: record),
    "dolly": Schema(("instruction", "response"), _renamed(
        instruction="instruction", input="context", output="response")),
    "sharegpt": Schema(("conversations",), _conversation("conversations", "from", "value")),
    "wizardlm": Schema(("idx", "conversations"), _conversation("conversations", "from", "value")),
    "messages": Schema(("messages",), _conversation("messages", "role", "content")),
    "self_instruct": Schema(("instruction", "instances"), _first_instance),
    "prompt_completion": Schema(("prompt", "completion"), _renamed(
        instruction="prompt", output="completion")),
    "prompt_response": Schema(("prompt", "response"), _renamed(
        instruction="prompt", output="response")),
    "flan": Schema(("inputs", "targets"), _renamed(instruction="inputs", output="targets")),
}


def detect(records: Iterable[Any], separator: str | None = None) -> str:
    """The schema that most of a pool's first records have; InputError where none is known.

    `separator`: what separated their fields, in a CSV file.
    """
    first = [record for record in records if isinstance(record, dict)]
    counts = {name: sum(set(schema.fields) <= record.keys() for record in first)
              for name, schema in SCHEMAS.items()}
    best = max(counts, key=lambda name: counts[name])
    if not counts[best]:
        names = sorted(first[0])[:20] if first else []
        read = f"; the separator is {separator}" if separator else ""
        raise InputError(f"pool.path: no known schema has the fields of the first records "
                         f"({', '.join(map(str, names)) or 'none'}{read}): name one in pool.schema "
                         f"({', '.join(SCHEMAS)}), or map them with pool.fields, as in "
                         f"pool.fields.instruction=question pool.fields.input=context "
                         f"pool.fields.output=answer (without an input, leave that one out)")
    return best


def _mapped(settings: PoolConfig) -> Callable[[dict], dict]:
    """Takes what pool.fields names from there alone, never from a field of the usual name."""
    names = settings.fields
    rename = _renamed(**names)

    def convert(record: dict) -> dict:
        for target in ("instruction", "output"):
            if target in names and names[target] not in record:
                raise Unusable(f"{names[target]} is missing")
        usual = names.keys() - names.values()
        return rename({key: value for key, value in record.items() if key not in usual}, settings)

    return convert


def check_mapped(settings: PoolConfig, fields: Iterable[str]) -> None:
    """InputError where pool.fields names a field that is not among those of the records."""
    fields = list(map(str, fields))
    for target, name in settings.fields.items():
        if fields and name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0)
            raise InputError(f"pool.fields.{target} is {name}, which no record has; did you mean "
                             f"{near[0]}?")


def converter(name: str, settings: PoolConfig) -> Callable[[dict], dict]:
    """What makes an Alpaca record of one of schema `name`, or of the names in pool.fields.

    Raises Unusable where a record is none.
    """
    if settings.fields:
        return _mapped(settings)
    schema = SCHEMAS[name]

    def convert(record: dict) -> dict:
        for field in schema.fields:
            if field not in record:
                raise Unusable(f"{field} is missing")
        return schema.convert(record, settings)

    return convert
