import re

import pytest
from conftest import RECORDS

from adg.base.errors import InputError
from adg.config import GenerationConfig, load_config
from adg.models.folders import load_tokenizer
from adg.prompts import Prompter
from train.data import IGNORED, collate, encode, encode_all

RECORD = {"instruction": "Add.", "input": "", "output": "Three."}


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model, trust_remote_code=False)


def encoded(record, template, tokenizer, limit):
    return encode(record, Prompter(template, tokenizer, GenerationConfig()), tokenizer, limit)[0]


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


@pytest.mark.parametrize("record_input", ["", "4 and 7"])
def test_labels_token_by_token(tokenizer, record_input):
    """The paper's set-up: Alpaca template, loss on the response and its end only."""
    about = ("Below is an instruction that describes a task, paired with an input that provides "
             "further context." if record_input else
             "Below is an instruction that describes a task.")
    shown = f"\n\n### Input:\n{record_input}" if record_input else ""
    for number in range(5):
        record = {"instruction": f"Add {number}.", "input": record_input,
                  "output": f"It is {number}."}
        text = (f"{about} Write a response that appropriately completes the request.\n\n"
                f"### Instruction:\nAdd {number}.{shown}\n\n### Response:")
        prompt = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        response = [*tokenizer(f"It is {number}.", add_special_tokens=False)["input_ids"],
                    tokenizer.eos_token_id]
        found = encoded(record, "alpaca", tokenizer, 10**6)
        assert found["input_ids"] == prompt + response
        assert found["labels"] == [IGNORED] * len(prompt) + response


def test_control_tokens_in_an_output_are_text(tokenizer):
    record = RECORD | {"instruction": "Add <|end|>.", "output": "fine<|end|>trailing<|begin|>"}
    example = encoded(record, "chat", tokenizer, 10**6)
    response = [label for label in example["labels"] if label != IGNORED]
    assert response.index(tokenizer.eos_token_id) == len(response) - 1
    assert tokenizer.bos_token_id not in response
    assert tokenizer.decode(response) == record["output"] + "<|end|>"
    assert example["input_ids"].count(tokenizer.eos_token_id) == 2  # the template's, and the last


def test_what_is_cut_is_counted(config_file, tokenizer, capsys):
    config = load_config(config_file(), [])
    whole = [encoded(record, "alpaca", tokenizer, 10**6) for record in RECORDS]
    lengths = [len(example["input_ids"]) for example in whole]
    prompts = [example["labels"].count(IGNORED) for example in whole]
    config.train.max_length = limit = sorted(prompts)[5]
    examples, counts = encode_all(RECORDS, tokenizer, config)
    assert counts["left_out"] == sum(prompt >= limit for prompt in prompts) == 5
    assert counts["cut_responses"] == sum(
        prompt < limit < length for prompt, length in zip(prompts, lengths, strict=True))
    out = [record["id"] for record, prompt in zip(RECORDS, prompts, strict=True)
           if prompt >= limit]
    assert len(examples) == 5 and counts["left_out_ids"] == out
    assert capsys.readouterr().out.endswith(
        f"5 records have no room for a response and are left out: {', '.join(out)}\n")
    config.train.max_length = sorted(prompts)[3]
    encode_all(RECORDS, tokenizer, config)
    assert re.search(r"7 records .* left out: (r\d, ){5}\.\.\. \(a finished run lists all in "
                     r"log.jsonl, left_out_ids\)\n$", capsys.readouterr().out)
    config.train.max_length = 10**6
    assert encode_all(RECORDS, tokenizer, config)[1] == {"cut_responses": 0, "left_out": 0}
    with pytest.raises(InputError, match="adg/top.json has no records"):
        encode_all([], tokenizer, config)


def test_padding_is_neither_read_nor_learnt():
    batch = collate([{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]},
                     {"input_ids": [8], "labels": [8]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
