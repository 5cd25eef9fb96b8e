"""Records to token ids and labels: the loss is on the response only (paper, set-up).

Shapes: B records of a batch, T tokens.
"""

from typing import Any

from adg.prompts import Prompter

IGNORED = -100  # the label that the loss leaves out


def encode(record: dict, prompter: Prompter, tokenizer: Any,
           max_length: int) -> dict[str, list[int]] | None:
    """{"input_ids", "labels"} of prompt, response and end-of-text, cut at the end to max_length.

    Prompt and response are tokenised apart, as in sampling. None where the cut leaves no response.
    """
    prompt = prompter.ids(record)
    response = tokenizer(record["output"], add_special_tokens=False)["input_ids"]
    ids = (prompt + response + [tokenizer.eos_token_id])[:max_length]
    if len(ids) <= len(prompt):
        return None
    return {"input_ids": ids, "labels": [IGNORED] * len(prompt) + ids[len(prompt):]}


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
