"""How requests are dealt to ranks, asked of an engine, and kept; no model is loaded."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

from adg.config import load_config
from eval import backends
from eval.backends import one_pass
from eval.shared_model import deal, shared


def test_shares_keep_a_context_on_one_rank_and_are_even():
    contexts = [f"{'long ' * (i // 4 % 5)}question {i // 4}" for i in range(400)]
    shares = deal(contexts, 7)
    assert sorted(place for share in shares for place in share) == list(range(400))
    met = [{contexts[place] for place in share} for share in shares]
    assert sum(map(len, met)) == len(set(contexts)) == 100
    work = [sum(len(contexts[place]) for place in share) for share in shares]
    assert max(work) - min(work) <= 4 * max(map(len, contexts))
    assert deal(["only"] * 3, 4) == [[0, 1, 2], [], [], []] and deal([], 2) == [[], []]


class Engine:
    """In the place of lm-eval's class for vLLM: tokens are the characters' numbers."""

    max_length, batch_size = 12, 2

    def __init__(self):
        self.scored, self.generated = [], []
        self.model = SimpleNamespace(get_default_sampling_params=lambda: SimpleNamespace(
            repetition_penalty=1.05))

    def set_cache_hook(self, hook):
        self.cache_hook = hook

    def loglikelihood(self, requests, disable_tqdm):
        return self._loglikelihood_tokens([
            (request.args, *([ord(letter) for letter in text] for text in request.args))
            for request in requests])

    def generate_until(self, requests, disable_tqdm):
        for request in requests:
            context, options = request.args
            self.cache_hook.add_partial("generate_until", (context, {"until": ["x", "</s>"]}), "!")
        return ["!"] * len(requests)

    def _loglikelihood_tokens(self, requests):
        self.scored += [(context, continuation) for _, context, continuation in requests]
        return [(-9.0, False)] * len(requests)

    def modify_gen_kwargs(self, options):
        return {"temperature": 0.0, "skip_special_tokens": False} | options, [], 8

    def _model_generate(self, requests, generate, params):
        self.generated.append((requests, [own.logprob_token_ids for own in params]))
        assert {(own.temperature, own.max_tokens) for own in params} == {(0, 1)}
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[ord("B")], logprobs=[
            {token: SimpleNamespace(logprob=-token / 100) for token in own.logprob_token_ids}])])
            for own in params]


def asked(*arguments: tuple) -> list:
    return [SimpleNamespace(args=own) for own in arguments]


def test_vllm_reads_a_question_once_for_its_one_token_choices(monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(
        SamplingParams=lambda **options: SimpleNamespace(**options)))
    model = shared(one_pass(Engine))()
    model.cache = tmp_path / "cache"
    requests = asked(("q1", "A"), ("q2", "A"), ("q3", "yes"), ("q1", "B"), ("q2", "B"), ("q4", "C"))
    results = model.loglikelihood(requests)
    assert results == [(-0.65, False), (-0.65, False), (-9.0, False), (-0.66, True),
                       (-0.66, True), (-0.67, False)]
    tokens = {name: [ord(letter) for letter in name] for name in ("q1", "q2", "q3", "q4", "yes")}
    assert model.scored == [(tokens["q3"], tokens["yes"])]
    assert model.generated == [([tokens["q1"], tokens["q2"]], [[65, 66], [65, 66]]),
                               ([tokens["q4"]], [[67]])]
    again = shared(one_pass(Engine))()
    again.cache = model.cache
    assert again.loglikelihood(requests) == [  # what was scored by the stand-in is not kept by it
        *results[:2], (-9.0, False), *results[3:]]
    assert again.scored == model.scored and not again.generated


def test_vllm_decodes_as_transformers_does():
    options, _, tokens = one_pass(Engine)().modify_gen_kwargs({"until": ["x"]})
    assert options == {"temperature": 0.0, "repetition_penalty": 1.05, "until": ["x"],
                       "skip_special_tokens": True}
    options, _, _ = one_pass(Engine)().modify_gen_kwargs({"repetition_penalty": 1.2})
    assert options["repetition_penalty"] == 1.2 and tokens == 8


def test_an_answer_is_found_again_whatever_options_the_backend_names(monkeypatch, tmp_path: Path):
    requests = asked(("one", {"until": ["x"]}), ("two", {"until": ["x"]}))
    for _ in range(2):
        model = shared(Engine)()
        model.cache = tmp_path / "cache"
        assert model.generate_until(requests) == ["!", "!"]
        monkeypatch.setattr(Engine, "generate_until", None)  # not asked a second time


def test_a_prompt_that_is_too_long_loses_the_same_tokens_in_both_backends(
        config_file, tiny_model, monkeypatch, tmp_path: Path):
    model = shared(Engine)()
    model.loglikelihood(asked(("0123456789abc", "xy"), ("012345678", "xy"), ("01234567", "xy")))
    assert ["".join(map(chr, context)) for context, _ in model.scored] == [
        "456789abc", "012345678", "01234567"]

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config, given = load_config(config_file(), []), {}
    assert backends.load_model(folder, config).max_length == 2048  # positions of the model
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 300}))
    assert backends.load_model(folder, config).max_length == 300
    config.eval.backend = "vllm"
    stand_in = type("VLLM", (), {"__init__": lambda self, **options: given.update(options)})
    monkeypatch.setitem(sys.modules, "lm_eval.models.vllm_causallms",
                        SimpleNamespace(VLLM=stand_in))
    monkeypatch.setattr(backends, "engine_options", lambda dtype, **options: {})
    backends.load_model(folder, config)
    assert given["max_model_len"] == 300 and given["batch_size"] == 1024
