"""The prompt templates, shared by sampling, embedding and training."""

from typing import Any

from adg.errors import InputError
from adg.records import instruction_text

_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def prompt_ids(record: dict, template: str, tokenizer: Any, limit: int | None = None) -> list[int]:
    """Token ids of a record's prompt, up to where the answer begins; the first `limit` of them.

    alpaca: the Stanford Alpaca template (Taori et al. 2023), with the special tokens that the
    tokenizer adds by itself. alpaca_no_input: the same, with the record's input dropped. chat: the
    tokenizer's own chat template, the instruction as the user's message.
    """
    return _TEMPLATES[template](record, tokenizer)[:limit]


def _alpaca_ids(record: dict, tokenizer: Any) -> list[int]:
    template = _ALPACA_WITH_INPUT if record["input"] else _ALPACA
    text = template.format(instruction=record["instruction"], input=record["input"])
    return tokenizer(text)["input_ids"]


def _alpaca_no_input_ids(record: dict, tokenizer: Any) -> list[int]:
    return _alpaca_ids(record | {"input": ""}, tokenizer)


def _chat_ids(record: dict, tokenizer: Any) -> list[int]:
    message = {"role": "user", "content": instruction_text(record)}
    return tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=False)


_TEMPLATES = {"alpaca": _alpaca_ids, "alpaca_no_input": _alpaca_no_input_ids, "chat": _chat_ids}


def check_template(template: str, tokenizer: Any) -> None:
    """InputError where a template needs the tokenizer's own and it has none."""
    if template == "chat" and not tokenizer.chat_template:
        raise InputError("generation.prompt or train.prompt is chat, but the model's tokenizer has "
                         "no chat template: use alpaca")
