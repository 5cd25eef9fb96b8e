from pathlib import Path

import pytest

from adg.base.errors import InputError
from adg.config import GenerationConfig, load_config
from adg.models.folders import load_tokenizer
from adg.pipeline.stages import parameters_of
from adg.prompts import Prompter, read_template

WITH = {"instruction": "Add.", "input": "1 and 2"}
WITHOUT = {"instruction": "Add.", "input": ""}


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model, trust_remote_code=False)


@pytest.fixture
def shown(tokenizer):
    """What the model reads of a record."""

    def show(record: dict, template: str, **settings: object) -> str:
        return tokenizer.decode(Prompter(template, tokenizer,
                                         GenerationConfig(**settings)).ids(record))

    return show


def template_file(tmp_path: Path, text: str) -> str:
    (tmp_path / "prompt.txt").write_text(text, encoding="utf-8")
    return str(tmp_path / "prompt.txt")


def test_alpaca_template_with_and_without_input(shown):
    without = ("<|begin|>Below is an instruction that describes a task. "
               "Write a response that appropriately completes the request.\n\n"
               "### Instruction:\nAdd.\n\n### Response:")
    assert shown(WITH, "alpaca") == (
        "<|begin|>Below is an instruction that describes a task, paired with an input that "
        "provides further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:")
    assert shown(WITHOUT, "alpaca") == shown(WITH, "alpaca_no_input") == without


def test_chat_template_is_the_tokenizers_own(shown, tokenizer):
    assert shown(WITH, "chat") == "<|user|>Add.\n1 and 2<|end|><|assistant|>"
    assert shown(WITH, "chat", system_prompt="Be brief.") == (
        "<|system|>Be brief.<|end|><|user|>Add.\n1 and 2<|end|><|assistant|>")
    tokenizer.chat_template, kept = None, tokenizer.chat_template
    with pytest.raises(InputError, match="no chat template"):
        Prompter("chat", tokenizer, GenerationConfig())
    tokenizer.chat_template = kept


@pytest.mark.parametrize(("template", "problem"), [
    ("<|user|>Hello!<|end|><|assistant|>", "leaves the instruction out"),
    ("{{ raise_exception('no system role') }}", "fails (no system role)")])
def test_a_chat_template_that_does_not_show_the_record_is_refused(tokenizer, monkeypatch, template,
                                                                  problem):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(InputError) as error:
        Prompter("chat", tokenizer, GenerationConfig())
    for part in ("generation.prompt or train.prompt is chat", tokenizer.name_or_path, problem):
        assert part in str(error.value)


def test_plain_is_the_record_alone(shown):
    assert shown(WITH, "plain") == "<|begin|>Add.\n1 and 2\n"
    assert shown(WITHOUT, "plain") == "<|begin|>Add.\n"


def test_a_template_from_a_file(shown, tmp_path):
    both = template_file(tmp_path, "### 指令：\n{instruction}\n### 输入：{input}\n### 回答：\n---\n"
                                   "### 指令：\n{instruction}\n### 回答：\n")
    assert shown(WITH, "file", prompt_file=both) == (
        "<|begin|>### 指令：\nAdd.\n### 输入：1 and 2\n### 回答：")
    assert shown(WITHOUT, "file", prompt_file=both) == "<|begin|>### 指令：\nAdd.\n### 回答："
    one = template_file(tmp_path, "Q: {text} {not a place}\nA:")
    odd = WITH | {"instruction": "Say {input} and {text}."}  # its braces are no places
    assert shown(odd, "file", prompt_file=one) == (
        "<|begin|>Q: Say {input} and {text}.\n1 and 2 {not a place}\nA:")


@pytest.mark.parametrize(("text", "message"), [
    ("{instruction}\n", "holds neither {text} nor {input}"),
    ("{instruction} {input}\n---\nAnswer:\n", "holds neither {text} nor {instruction}"),
    ("{text}\n---\n{text}\n---\n{text}", "has 3 parts"),
])
def test_a_template_that_would_lose_text_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_template(Path(template_file(tmp_path, text)))


def test_a_prompts_keys_go_together(config_file, tmp_path):
    for override, message in (
        ("generation.prompt=file", "prompt_file is None; it must be a file"),
        ("generation.prompt_file=x", "null, as neither generation.prompt nor train.prompt is file"),
        ("generation.system_prompt=x", "null, as neither .* is chat"),
    ):
        with pytest.raises(InputError, match=message):
            load_config(config_file(), [override])
    path = template_file(tmp_path, "{text}")
    overrides = ["generation.prompt=file", f"generation.prompt_file={path}"]
    before = parameters_of("sample", load_config(config_file(), overrides))
    template_file(tmp_path, "{text}:")
    assert parameters_of("sample", load_config(config_file(), overrides)) != before
    with pytest.raises(InputError, match="gone.txt cannot be read"):
        parameters_of("sample", load_config(config_file(), [
            overrides[0], f"generation.prompt_file={tmp_path / 'gone.txt'}"]))


def long(tokenizer, record: dict, room: int, template: str = "alpaca", **settings: object):
    prompter = Prompter(template, tokenizer, GenerationConfig(
        max_model_len=room + 5, max_new_tokens=5, **settings))
    ids, how = prompter.fitted(record)
    return tokenizer.decode(ids), len(ids), how


def test_a_long_prompt_loses_the_end_of_its_input_or_is_rejected(tokenizer):
    whole = len(Prompter("alpaca", tokenizer, GenerationConfig()).ids(WITH))
    record = WITH | {"input": "1 and 2" + " and more é说" * 200}
    assert long(tokenizer, record, whole)[2] == "too_long"
    text, length, how = long(tokenizer, record, whole + 40, long_prompts="cut_input")
    assert how == "cut" and whole < length <= whole + 40
    assert "### Input:\n1 and 2 and more" in text and text.endswith("\n\n### Response:")
    assert long(tokenizer, WITH, whole, long_prompts="cut_input")[2] == "whole"
    assert long(tokenizer, record, 5, long_prompts="cut_input")[2] == "too_long"


def test_what_of_a_long_prompt_is_cut_where_the_input_is_not_enough(tokenizer):
    record = {"instruction": "Repeat this:" + " word" * 300, "input": "1 and 2"}
    room = len(Prompter("alpaca", tokenizer, GenerationConfig()).ids(WITHOUT)) + 60
    for template in ("alpaca", "alpaca_no_input"):
        text, length, how = long(tokenizer, record, room, template, long_prompts="cut_input")
        assert how == "cut" and room - 3 <= length <= room
        assert "### Instruction:\nRepeat this: word" in text and "### Input" not in text
        assert text.endswith("### Response:")


def test_the_releases_cut_comes_first(tokenizer):
    record = WITH | {"input": "and more" * 200}
    text, length, how = long(tokenizer, record, 100, max_prompt_tokens=80)
    assert (length, how) == (80, "whole") and "### Response" not in text
