"""The prompt templates, shared by sampling, embedding and training."""

import bisect
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from adg.base.errors import InputError
from adg.control_tokens import ControlTokens
from adg.records import instruction_text

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
_MARKERS = tuple(re.findall(r"^### \w+:", ALPACA_WITH_INPUT, re.MULTILINE))
MARKERS = {"alpaca": _MARKERS, "alpaca_no_input": _MARKERS}  # what tells a prompt's parts apart
_PLACE = re.compile(r"\{(instruction|input|text)\}")
_SEPARATOR = re.compile(r"^---\n", re.MULTILINE)


def fill(template: str, record: dict) -> str:
    """A template with {instruction}, {input} and {text} (both, input on its own line) filled in."""
    values = {"instruction": record["instruction"], "input": record["input"],
              "text": instruction_text(record)}
    return _PLACE.sub(lambda place: values[place[1]], template)


def read_template(path: Path) -> tuple[str, str]:
    """(template for a record with input, for one without) from a file.

    One text for both, or two with a line `---` between them. Raises InputError where the file
    cannot be read or a template would drop the instruction or the input.
    """
    try:
        parts = _SEPARATOR.split(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"generation.prompt_file: {path} cannot be read ({error})") from None
    if len(parts) > 2:
        raise InputError(f"generation.prompt_file: {path} has {len(parts)} parts between lines of "
                         f"---; there may be two: with input, and without")
    with_input, without = parts[0].removesuffix("\n"), parts[-1].removesuffix("\n")
    for template, needed in ((with_input, ("instruction", "input")), (without, ("instruction",))):
        missing = [name for name in needed if f"{{{name}}}" not in template]
        if missing and "{text}" not in template:
            raise InputError(f"generation.prompt_file: {path} holds neither {{text}} nor "
                             f"{{{missing[0]}}}: that of the record would be lost")
    return with_input, without


class Settings(Protocol):
    """What prompts need of the section `generation`."""

    prompt_file: str | None
    system_prompt: str | None
    control_tokens: str | None
    max_prompt_tokens: int | None
    long_prompts: str
    max_new_tokens: int
    max_model_len: int


class Prompter:
    """Records to the token ids of their prompts, up to where the answer begins.

    alpaca: the Stanford Alpaca template (Taori et al. 2023). alpaca_no_input: the same, with the
    record's input dropped. plain: instruction and input, and a line's end. file: the template in
    generation.prompt_file. chat: the tokenizer's own chat template, the instruction as the user's
    message, generation.system_prompt before it. All but chat get the special tokens that the
    tokenizer adds by itself. Control tokens are obeyed in a template, and text in a record
    (`control_tokens` does that, and tokenises the record's other texts).
    """

    def __init__(self, template: str, tokenizer: Any, settings: Settings) -> None:
        if template == "chat" and not tokenizer.chat_template:
            raise InputError("generation.prompt or train.prompt is chat, but the model's tokenizer "
                             "has no chat template: use alpaca")
        self._tokenizer, self._settings = tokenizer, settings
        self.control_tokens = ControlTokens(tokenizer, settings.control_tokens)
        self._drops_input = template == "alpaca_no_input"
        self._templates = {
            "alpaca": lambda: (ALPACA_WITH_INPUT, ALPACA),
            "alpaca_no_input": lambda: (ALPACA, ALPACA),
            "plain": lambda: ("{text}\n", "{text}\n"),
            "file": lambda: read_template(Path(settings.prompt_file)),
            "chat": self._check_chat,
        }[template]()

    def ids(self, record: dict) -> list[int]:
        """The token ids of a record's prompt."""
        if self.control_tokens.are_in(record["instruction"], record["input"]):
            return self.control_tokens.ids_around(
                record, self._text, add_special_tokens=self._templates is not None)
        if self._templates is None:
            return self._chat(record, return_dict=False)
        return self._tokenizer(self._text(record), verbose=False)["input_ids"]

    def _text(self, record: dict) -> str:
        if self._templates is None:
            return self._chat(record, tokenize=False)
        return fill(self._templates[0 if record["input"] else 1], record)

    def _chat(self, record: dict, **options: bool) -> Any:
        messages = [{"role": "user", "content": instruction_text(record)}]
        if self._settings.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self._settings.system_prompt})
        return self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)

    def _check_chat(self) -> None:
        """InputError where the chat template fails, or does not show the model the record."""
        from jinja2 import TemplateError

        probe = secrets.token_hex(16)
        try:
            if probe in self._chat({"instruction": probe, "input": ""}, tokenize=False):
                return
            problem = "leaves the instruction out: all records would have the same prompt"
        except TemplateError as error:
            problem = f"fails ({error})"
        raise InputError(f"generation.prompt or train.prompt is chat, but the chat template of "
                         f"{self._tokenizer.name_or_path} {problem}; correct it, or use alpaca")

    def fitted(self, record: dict) -> tuple[list[int], str]:
        """(ids, "whole", "cut" or "too_long") of the prompt that is sampled from.

        generation.max_prompt_tokens cuts first. What then leaves no room for max_new_tokens within
        max_model_len is too long; with long_prompts: cut_input the record's input loses as much of
        its end as is too much, and where that is not enough, the instruction does. What the
        template says around them stays.
        """
        settings = self._settings
        ids = self.ids(record)[: settings.max_prompt_tokens]
        room = settings.max_model_len - settings.max_new_tokens
        if len(ids) <= room:
            return ids, "whole"
        if settings.long_prompts == "cut_input":
            cut = self._cut(record, room)
            if cut is not None:
                return cut, "cut"
        return ids, "too_long"

    def _cut(self, record: dict, room: int) -> list[int] | None:
        """The ids of the prompt of what is left of a record; None where nothing of it would be."""
        for name in ("instruction",) if self._drops_input else ("input", "instruction"):
            record = longest_fit(self.ids, record, name, room)
            if record[name]:
                return self.ids(record)
            if name == "input" and len(ids := self.ids(record)) <= room:
                return ids
        return None


def longest_fit(ids_of: Callable[[dict], list[int]], record: dict, name: str, room: int) -> dict:
    """A record of whose field `name` as much is left as makes `ids_of` it at most `room` long.

    The field loses its end, all of it where even that is too long.
    """
    whole = record[name]

    def length(number: int) -> int:
        return len(ids_of(record | {name: whole[:number]}))

    kept = bisect.bisect_right(range(1, len(whole) + 1), room, key=length)
    while kept and length(kept) > room:
        kept -= 1  # a character more is not always a token more
    return record | {name: whole[:kept]}
