import pytest

from adg.config import GenerationConfig
from adg.models import load_tokenizer
from adg.prompts import Prompter
from train.data import IGNORED, collate, encode

RECORD = {"instruction": "Add.", "input": "", "output": "Three."}


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model, trust_remote_code=False)


def encoded(record, template, tokenizer, limit):
    return encode(record, Prompter(template, tokenizer, GenerationConfig()), tokenizer, limit)


def test_the_loss_is_on_the_response_and_its_end(tokenizer):
    example = encoded(RECORD, "chat", tokenizer, 100)
    shown = [(token, label)
             for token, label in zip(example["input_ids"], example["labels"], strict=True)]
    prompt = [token for token, label in shown if label == IGNORED]
    response = [token for token, label in shown if label != IGNORED]
    assert tokenizer.decode(prompt) == "<|user|>Add.<|end|><|assistant|>"
    assert tokenizer.decode(response) == "Three.<|end|>"
    assert all(token == label for token, label in shown if label != IGNORED)


def test_a_long_response_loses_its_end_and_a_long_prompt_its_record(tokenizer):
    whole = encoded(RECORD, "alpaca", tokenizer, 10**6)["input_ids"]
    prompt = encoded(RECORD, "alpaca", tokenizer, 10**6)["labels"].count(IGNORED)
    assert encoded(RECORD, "alpaca", tokenizer, prompt + 1)["input_ids"] == whole[: prompt + 1]
    assert encoded(RECORD, "alpaca", tokenizer, prompt) is None


def test_padding_is_neither_read_nor_learnt():
    batch = collate([{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]},
                     {"input_ids": [8], "labels": [8]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
