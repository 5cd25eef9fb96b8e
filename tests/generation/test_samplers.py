"""What the samplers refuse, and what they say."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from adg.base.errors import InputError
from adg.config import load_config
from adg.models.loading import LocalModel
from generation import vllm_sampler
from generation.samplers import Request, left_unused
from generation.transformers_sampler import TransformersSampler
from generation.vllm_sampler import VllmSampler


@pytest.fixture
def vllm_that_fails(monkeypatch):
    """Puts a vLLM in place whose engine does not start, with this error."""

    def put(error: Exception) -> None:
        def start(folder: str, **settings: object) -> None:
            raise error

        monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=start))

    return put


def test_an_engine_without_memory_says_what_to_lower(config_file, vllm_that_fails, tmp_path):
    config = load_config(config_file(generation={"sampler": "vllm"}), [])
    vllm_that_fails(ValueError("To serve at least one request,\n 2 GiB KV cache is needed"))
    with pytest.raises(InputError, match="memory: To serve at least one request, 2 GiB KV cache is "
                                         "needed -- lower generation.max_model_len or "):
        VllmSampler(LocalModel(tmp_path), config)
    vllm_that_fails(ValueError("unknown architecture"))
    with pytest.raises(ValueError, match="^unknown architecture$"):
        VllmSampler(LocalModel(tmp_path), config)


def test_another_vllm_is_named_before_its_private_parts_are_asked_for(config_file, monkeypatch,
                                                                      tiny_model):
    config = load_config(config_file(generation={"sampler": "vllm"},
                                     embedding={"source": "sampling"}), [])
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.33.1"))
    monkeypatch.setitem(sys.modules, "generation.vllm_worker", None)  # importing it would fail
    with pytest.raises(InputError, match="made for vLLM 0.32.0, and this is 0.33.1.*forward"):
        VllmSampler(LocalModel(tiny_model), config)


def test_what_is_for_gpus_or_for_vllm_is_refused_elsewhere(config_file, vllm_that_fails, tmp_path):
    vllm = load_config(config_file(generation={"sampler": "vllm"}),
                       ["generation.batch_invariant=true"])
    vllm_that_fails(AssertionError("started"))
    with pytest.raises(InputError, match="batch_invariant is for GPUs"):
        VllmSampler(LocalModel(tmp_path), vllm)
    for override in ("generation.batch_invariant=true", "model.tensor_parallel_size=2"):
        with pytest.raises(InputError, match="with generation.sampler transformers"):
            load_config(config_file(), [override])


def test_answers_of_a_batch_are_dealt_to_their_requests(config_file, tiny_model):
    config = load_config(config_file(), ["generation.max_num_seqs=4"])
    sampler = TransformersSampler(LocalModel(tiny_model), config)
    requests = [Request([0, 5, 6], 10, 3), Request([0, 7], 20, 1), Request([0, 5, 6], 12, 5)]
    found = dict(sampler.stream(iter(requests)))
    assert [len(found[number]) for number in range(3)] == [3, 1, 5]
    assert found[2][0] == found[0][2]  # the same prompt and seed


def test_a_models_own_settings_are_named_and_not_followed(config_file, tiny_model, tmp_path):
    config = load_config(config_file(), ["generation.top_k=20"])
    folder = tmp_path / "penalising"
    shutil.copytree(tiny_model, folder)
    plain = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(plain | {
        "do_sample": True, "top_k": 20, "temperature": 0.7, "repetition_penalty": 9.0,
        "typical_p": 1.0}))
    assert left_unused(folder, config.generation) == {"temperature": 0.7, "repetition_penalty": 9.0}
    assert left_unused(tiny_model, config.generation) == {}
    requests = [Request([0, 5, 6], 10, 8)]
    assert list(TransformersSampler(LocalModel(folder), config).stream(iter(requests))) == list(
        TransformersSampler(LocalModel(tiny_model), config).stream(iter(requests)))


def test_top_k_reaches_vllm_and_null_is_off(config_file):
    pytest.importorskip("vllm")
    sampler = VllmSampler.__new__(VllmSampler)
    sampler._windows = []
    for override, expected in (("generation.top_k=7", 7), ("generation.top_k=null", 0)):
        sampler._settings = load_config(config_file(), [override]).generation
        assert sampler.parameters(Request([1], 0, 1)).top_k == expected


class EngineOfSteps:
    """An engine that draws every request in a step of its own, and counts what it is asked for."""

    def __init__(self) -> None:
        self.llm_engine, self.waiting, self.fetches = self, [], []

    def add_request(self, number: str, prompt: dict, parameters: object) -> None:
        self.waiting.append(number)

    def step(self) -> list:
        drawn = SimpleNamespace(token_ids=[3, 4], text="a", finish_reason="length")
        return [SimpleNamespace(finished=True, request_id=self.waiting.pop(0), outputs=[drawn],
                                prompt_token_ids=[1])]

    def collective_rpc(self, method: str, args: tuple) -> list:
        names, kept = args
        self.fetches.append(len(names))
        return [(kept, np.array([float(name) for name in names], np.float32).tobytes())]


def test_vectors_are_fetched_for_many_answers_at_once(config_file, monkeypatch):
    """Each fetch waits for the GPU."""
    pytest.importorskip("vllm")
    monkeypatch.setattr(vllm_sampler, "_FETCHED", 4)
    sampler = VllmSampler.__new__(VllmSampler)
    sampler.llm, sampler._windows, sampler._in_flight = EngineOfSteps(), [[0]], 6
    sampler._settings = load_config(config_file(), []).generation
    found = dict(sampler.stream(Request([1], seed, 1) for seed in range(10)))
    assert {number: own[0].vectors.item() for number, own in found.items()} == {
        number: float(number) for number in range(10)}
    assert sampler.llm.fetches == [4, 4, 2]
