"""What the samplers refuse, and what they say."""

import sys
from types import SimpleNamespace

import pytest

from adg.config import load_config
from adg.errors import InputError
from generation.answers import Request
from generation.samplers import TransformersSampler, VllmSampler


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
        VllmSampler(tmp_path, config)
    vllm_that_fails(ValueError("unknown architecture"))
    with pytest.raises(ValueError, match="^unknown architecture$"):
        VllmSampler(tmp_path, config)


def test_another_vllm_is_named_before_its_private_parts_are_asked_for(config_file, monkeypatch,
                                                                      tiny_model):
    config = load_config(config_file(generation={"sampler": "vllm"},
                                     embedding={"source": "sampling"}), [])
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.33.1"))
    monkeypatch.setitem(sys.modules, "generation.vllm_worker", None)  # importing it would fail
    with pytest.raises(InputError, match="made for vLLM 0.32.0, and this is 0.33.1.*forward"):
        VllmSampler(tiny_model, config)


def test_what_is_for_gpus_or_for_vllm_is_refused_elsewhere(config_file, vllm_that_fails, tmp_path):
    vllm = load_config(config_file(generation={"sampler": "vllm"}),
                       ["generation.batch_invariant=true"])
    vllm_that_fails(AssertionError("started"))
    with pytest.raises(InputError, match="batch_invariant is for GPUs"):
        VllmSampler(tmp_path, vllm)
    for override in ("generation.batch_invariant=true", "model.tensor_parallel_size=2"):
        with pytest.raises(InputError, match="with generation.sampler transformers"):
            load_config(config_file(), [override])


def test_answers_of_a_batch_are_dealt_to_their_requests(config_file, tiny_model):
    config = load_config(config_file(), ["generation.max_num_seqs=4"])
    sampler = TransformersSampler(tiny_model, config)
    requests = [Request([0, 5, 6], 10, 3), Request([0, 7], 20, 1), Request([0, 5, 6], 12, 5)]
    found = dict(sampler.stream(iter(requests)))
    assert [len(found[number]) for number in range(3)] == [3, 1, 5]
    assert found[2][0] == found[0][2]  # the same prompt and seed
