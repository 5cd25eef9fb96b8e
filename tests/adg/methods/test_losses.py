"""Losses of outputs with and without a prompt: as one by one, in any batch, at every edge."""

import math

import numpy as np
import pytest
import torch
from conftest import RECORDS
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from adg.base.errors import InputError
from adg.control_tokens import ControlTokens
from adg.methods.ifd import ifd_pairs
from adg.methods.losses import HEADER, LossMeasurer
from adg.methods.method import VECTOR
from adg.methods.pre_experience import PromptMeasurer
from adg.methods.superfiltering import superfiltering_pairs
from adg.models.causal import CausalModel, Text
from adg.models.folders import load_tokenizer

ALPACA = "Below is an instruction that describes a task"
TEXTS = [Text([0, *range(5, 5 + length)], start) for length, start in
         ((3, 1), (40, 12), (9, 9), (17, 0), (25, 20), (2, 5), (12, 13))]


@pytest.fixture(scope="module")
def llama(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.fixture
def model(llama, tiny_model) -> CausalModel:
    yield CausalModel(llama, load_tokenizer(tiny_model, trust_remote_code=False),
                      tokens_per_batch=300, vectors=True)
    llama.get_output_embeddings()._forward_pre_hooks.clear()


def one_by_one(model, text: Text) -> tuple[float, np.ndarray]:
    """The text's loss and its mean vector, from a pass over it alone."""
    with torch.inference_mode():
        found = model(torch.tensor([text.ids]), output_hidden_states=True)
    logs = found.logits[0].double().log_softmax(-1)
    scored = [-logs[i - 1, text.ids[i]].item() for i in range(max(1, text.start), len(text.ids))]
    return (sum(scored) / len(scored) if scored else math.nan,
            found.hidden_states[-1][0].mean(0).numpy())


@pytest.mark.parametrize("tokens", [1, 60, 5000])
def test_a_batch_gives_what_each_text_alone_gives(llama, tiny_model, tokens: int):
    expected = [one_by_one(llama, text) for text in TEXTS]
    model = CausalModel(llama, None, tokens_per_batch=tokens, vectors=True)
    try:
        found = model.read(TEXTS)
    finally:
        llama.get_output_embeddings()._forward_pre_hooks.clear()
    assert [own is None for own in found] == [False] * 2 + [False, False, False, True, True]
    for own, (loss, vector) in zip(found, expected, strict=True):
        if own is not None:
            assert own.loss == pytest.approx(loss, abs=5e-5)
            assert own.vector == pytest.approx(vector, abs=5e-5)


def test_a_model_with_learned_positions_and_a_tied_head():
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=2,
                                      n_head=2)).eval()
    expected = [one_by_one(gpt2, text)[0] for text in TEXTS[:5]]
    found = CausalModel(gpt2, None, tokens_per_batch=100).losses(TEXTS[:5])
    assert found == pytest.approx(expected, abs=5e-5)


def test_the_logits_are_scored_in_parts(model, monkeypatch):
    whole = model.losses(TEXTS)
    monkeypatch.setattr("adg.models.causal._POSITIONS", 7)
    assert model.losses(TEXTS) == pytest.approx(whole, abs=1e-6)


def test_out_of_memory_halves_the_batch_and_is_said(model, monkeypatch, capsys):
    whole, forward = model.losses(TEXTS), model.batcher._read

    def short_of_memory(batch):
        if len(batch) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return forward(batch)

    monkeypatch.setattr(model.batcher, "_read", short_of_memory)
    assert model.losses(TEXTS) == pytest.approx(whole, abs=5e-5)
    assert "out of memory" in capsys.readouterr().err and model.batcher.tokens_per_batch < 300

    def never(batch):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(model.batcher, "_read", never)
    with pytest.raises(InputError, match="a text of 41 tokens does not fit"):
        model.losses(TEXTS)


def test_another_error_is_not_taken_for_lack_of_memory(model, monkeypatch):
    def broken(batch):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(model.batcher, "_read", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        model.losses(TEXTS)


def test_a_loss_that_is_no_number_is_said(model):
    weight = model.model.get_output_embeddings().weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        with pytest.raises(InputError, match="NaN or infinite"):
            model.losses(TEXTS)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def record(instruction: str, output: str, given: str = "") -> dict:
    return {"instruction": instruction, "input": given, "output": output}


def test_ifds_texts_are_template_and_output_and_header_and_output(model):
    pairs = ifd_pairs([RECORDS[0], RECORDS[1]], model, prompt="alpaca", limit=512,
                      recipe="intended")
    decode = model.tokenizer.decode
    for pair, own in zip(pairs, RECORDS, strict=False):
        given, direct = decode(pair.given.ids), decode(pair.direct.ids)
        assert given.startswith("<|begin|>" + ALPACA) and given.endswith(HEADER + own["output"])
        assert direct == "<|begin|>" + HEADER + own["output"]
        assert decode(pair.given.ids[pair.given.start:]) == own["output"]
        assert decode(pair.direct.ids[pair.direct.start:]) == own["output"]
        assert pair.room == 512 - pair.given.start
    assert "### Input:\nnumber 0" in decode(pairs[0].given.ids)
    assert "### Input" not in decode(pairs[1].given.ids)


def test_control_tokens_in_a_record_are_text(model):
    own, end = record("Say <|end|>.", "No.<|end|> Yes."), model.tokenizer.eos_token_id
    (pair,) = ifd_pairs([own], model, prompt="alpaca", limit=512, recipe="intended")
    (cut,) = ifd_pairs([own], model, prompt="alpaca", limit=len(pair.given.ids) - 2,
                       recipe="intended")
    for ids in (pair.given.ids, pair.direct.ids, cut.given.ids, cut.direct.ids):
        assert end not in ids and ids[0] == model.tokenizer.bos_token_id
    assert model.tokenizer.decode(pair.given.ids[pair.given.start:]) == own["output"]
    assert cut.given.ids == pair.given.ids[:-2]


def test_wiz_puts_the_input_where_the_scorer_does(model):
    given = [pair.given for pair in ifd_pairs(RECORDS[:2], model, prompt="wiz", limit=512,
                                              recipe="intended")]
    assert [model.tokenizer.decode(text.ids) for text in given] == [
        "<|begin|>Name the colours.\nInput:number 0\n\n### Response:Answer 0.",
        "<|begin|>Add the numbers.\n\n### Response:Answer 1."]


def test_a_cut_output_keeps_the_same_tokens_in_both_texts(model):
    long = record("Count.", "one two three " * 40)
    (pair,) = ifd_pairs([long], model, prompt="wiz", limit=60, recipe="intended")
    assert len(pair.given.ids) == 60
    assert pair.given.ids[pair.given.start:] == pair.direct.ids[pair.direct.start:]
    (released,) = ifd_pairs([long], model, prompt="wiz", limit=60, recipe="released")
    assert released.given == pair.given
    assert len(released.direct.ids) == pair.room + 4 != len(pair.direct.ids)


def test_a_prompt_that_fills_the_limit_and_an_empty_output_have_no_loss(model):
    records = [record("Count. " * 40, "one two"), record("Count.", ""), record("Count.", "one")]
    measurer = LossMeasurer(model, lambda own: ifd_pairs(
        own, model, prompt="wiz", limit=60, recipe="intended"))
    full, empty, whole = measurer.measure(records)
    assert (full["given_loss"], full["direct_loss"], full["room"]) == (None, None, 0)
    assert (empty["given_loss"], empty["direct_loss"], empty["given_tokens"]) == (None, None, 0)
    assert whole["given_loss"] > 0 and whole["given_tokens"] == whole["direct_tokens"] > 0


def test_a_token_that_merges_header_and_output_is_not_scored(model):
    class Merging:
        """A tokenizer with a token for ":(" and one for every other character."""

        added_tokens_decoder: dict = {}

        def __call__(self, texts, **options):
            ids = [[7 if part == ":(" else 10 + ord(part) % 50 for part in self.split(text)]
                   for text in texts]
            return {"input_ids": ids}

        @staticmethod
        def split(text: str) -> list[str]:
            parts = text.replace(":(", "\0")
            return [":(" if part == "\0" else part for part in parts]

    model.control_tokens = ControlTokens(Merging())
    plain, merged = ifd_pairs([record("Say.", "555"), record("Say.", "(555")], model, prompt="wiz",
                              limit=512, recipe="intended")
    assert merged.given.ids[merged.given.start - 1] == 7
    assert plain.given.num_scored() == merged.given.num_scored() == 3
    assert merged.direct.num_scored() == 3


def test_superfilterings_texts(model):
    with_input, without, one = superfiltering_pairs(
        [record("Do.", "This.", "it"), record("Do.", "This."), record("Do.", "")], model, limit=64)
    decode = model.tokenizer.decode
    assert decode(with_input.given.ids) == "<|begin|>Do.\nit\nThis."
    assert decode(without.given.ids) == "<|begin|>Do.\nThis."
    assert decode(without.direct.ids) == "<|begin|>This." and without.direct.start == 1
    assert one.direct.num_scored() == one.given.num_scored() == 0
    (cut,) = superfiltering_pairs([record("Do.", "This. " * 60)], model, limit=64)
    assert len(cut.given.ids) == 64 and len(cut.direct.ids) == cut.room + 1


def test_a_prompts_perplexity_and_vector_are_those_of_its_cut_template(model, llama):
    rows = PromptMeasurer(model, "wiz", 12).measure(RECORDS[:3])
    model.model.get_output_embeddings()._forward_pre_hooks.clear()
    for own, row in zip(RECORDS, rows, strict=False):
        text = own["instruction"] + (f"\nInput:{own['input']}" if own["input"] else "")
        ids = model.tokenizer(f"{text}\n\n{HEADER}")["input_ids"][:12]
        loss, vector = one_by_one(llama, Text(ids))
        assert row["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert row[VECTOR] == pytest.approx(vector, abs=5e-5)
