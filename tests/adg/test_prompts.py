import pytest

from adg.errors import InputError
from adg.models import load_tokenizer
from adg.prompts import check_template, prompt_ids

WITH = {"instruction": "Add.", "input": "1 and 2"}
WITHOUT = {"instruction": "Add.", "input": ""}


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model, trust_remote_code=False)


def test_alpaca_template_with_and_without_input(tokenizer):
    assert tokenizer.decode(prompt_ids(WITH, "alpaca", tokenizer)) == (
        "<|begin|>Below is an instruction that describes a task, paired with an input that "
        "provides further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:")
    assert tokenizer.decode(prompt_ids(WITHOUT, "alpaca", tokenizer)) == (
        "<|begin|>Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:")


def test_chat_template_is_the_tokenizers_own(tokenizer):
    assert tokenizer.decode(prompt_ids(WITH, "chat", tokenizer)) == (
        "<|user|>Add.\n1 and 2<|end|><|assistant|>")
    tokenizer.chat_template, kept = None, tokenizer.chat_template
    with pytest.raises(InputError, match="no chat template"):
        check_template("chat", tokenizer)
    tokenizer.chat_template = kept
