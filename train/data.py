"""Records to token ids and labels: the loss is on the response only (paper, set-up).

Shapes: B records of a batch, T tokens.
"""

from typing import Any

from adg.prompts import Prompter

IGNORED = -100  # the label that the loss leaves out
NOTHING = {"input_ids": [0], "labels": [IGNORED]}  # a record that no gradient depends on


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
    import torch

    longest = max(len(example["input_ids"]) for example in examples)

    def padded(rows: list[list[int]], filler: int) -> Any:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])

    return {
        "input_ids": padded([example["input_ids"] for example in examples], 0),
        "attention_mask": padded([[1] * len(example["input_ids"]) for example in examples], 0),
        "labels": padded([example["labels"] for example in examples], IGNORED),
    }
