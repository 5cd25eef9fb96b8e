"""Records as token ids and labels: the loss is on the response only (paper, set-up).

Shapes: B records of a batch, T tokens.
"""

from pathlib import Path
from typing import Any

from adg.base.distributed import say
from adg.base.errors import InputError
from adg.config import Config
from adg.models.batches import padded
from adg.prompts import Prompter
from adg.records import normalise, problem_of, read_source

IGNORED = -100  # the label that the loss leaves out
_SHOWN = 5  # ids of records that are left out, on the screen
NOTHING = {"input_ids": [0], "labels": [IGNORED]}  # a record that no gradient depends on


def subset_path(config: Config) -> Path:
    """The file of the records to train on."""
    subsets = Path(config.output_dir) / "subsets" / config.selection.name
    return config.train.subset_file() or subsets / f"{config.train.subset}.json"


def read_subset(path: Path) -> list[dict]:
    """The records of a subset; InputError where one is no Alpaca record."""
    records = []
    for record, where in read_source(path):
        problem = problem_of(record)
        if problem is not None:
            _, (kind, number) = where.items()
            raise InputError(f"{path}: {kind} {number}: {problem}")
        records.append(normalise(record, len(records)))
    return records


def encode_all(records: list[dict], tokenizer: Any, config: Config) -> tuple[list[dict], dict]:
    """(examples, counts of what was cut): the records of the subset as ids and labels."""
    limit = config.train.max_length
    prompter = Prompter(config.train.prompt, tokenizer, config.generation)
    encoded = [encode(record, prompter, tokenizer, limit) for record in records]
    examples = [example for example, _ in encoded if example is not None]
    cut = sum(was_cut for example, was_cut in encoded if example is not None)
    left_out = [record["id"] for record, (example, _) in zip(records, encoded, strict=True)
                if example is None]
    if cut or left_out:
        say(f"[finetune] train.max_length: {cut} responses lose their end at {limit} tokens, "
            f"{len(left_out)} records have no room for a response and are left out"
            + _first_of(left_out))
    if not records:
        raise InputError(f"{subset_path(config)} has no records: not every method makes middle and "
                         f"bottom")
    if not examples:
        raise InputError(f"{subset_path(config)}: no record has a response within train.max_length "
                         f"({limit} tokens)")
    return examples, {"cut_responses": cut, "left_out": len(left_out)} | (
        {"left_out_ids": left_out} if left_out else {})


def _first_of(ids: list[str]) -> str:
    """The first few ids, and where all are listed."""
    if not ids:
        return ""
    shown = ", ".join(ids[:_SHOWN])
    return f": {shown}" if len(ids) <= _SHOWN else (
        f": {shown}, ... (a finished run lists all in log.jsonl, left_out_ids)")


def encode(record: dict, prompter: Prompter, tokenizer: Any,
           max_length: int) -> tuple[dict[str, list[int]] | None, bool]:
    """({"input_ids", "labels"} of prompt, response and end-of-text; whether max_length cut it).

    Prompt and response are tokenised apart, as in sampling, and cut at the end. The first is None
    where the cut leaves no response.
    """
    prompt = prompter.ids(record)
    response, = prompter.control_tokens.encode([record["output"]],
                                               add_special_tokens=False)["input_ids"]
    whole = prompt + response + [tokenizer.eos_token_id]
    ids, was_cut = whole[:max_length], len(whole) > max_length
    if len(ids) <= len(prompt):
        return None, was_cut
    return {"input_ids": ids, "labels": [IGNORED] * len(prompt) + ids[len(prompt):]}, was_cut


def collate(examples: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Right-padded tensors input_ids, attention_mask and labels, each [B, T]."""
    return {
        "input_ids": padded([example["input_ids"] for example in examples]),
        "attention_mask": padded([[1] * len(example["input_ids"]) for example in examples]),
        "labels": padded([example["labels"] for example in examples], value=IGNORED),
    }
