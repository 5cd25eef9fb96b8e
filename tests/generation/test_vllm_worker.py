"""What the worker asks of vLLM, and its sums over steps, with stand-ins for the engine's parts."""

import os
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from adg.base.errors import InputError
from adg.models.vllm_options import engine_options

vllm_worker = pytest.importorskip("generation.vllm_worker")
ENGINE = {"dtype": "float32", "seed": 0, "trust_remote_code": False, "gpu_memory_utilization": 0.9,
          "own_process": False}


def engine(**changes) -> SimpleNamespace:
    return SimpleNamespace(**{"parallel_config": SimpleNamespace(pipeline_parallel_size=1),
                              "speculative_config": None} | changes)


def test_another_engine_is_refused_by_name(monkeypatch):
    vllm_worker.check_engine(engine())
    for changed, message in (
            (engine(parallel_config=SimpleNamespace(pipeline_parallel_size=2)), "pipeline"),
            (engine(speculative_config=SimpleNamespace()), "speculative decoding")):
        with pytest.raises(InputError, match=f"{message}.*use embedding.source=forward"):
            vllm_worker.check_engine(changed)
    monkeypatch.setattr(vllm_worker.vllm, "__version__", "0.33.1")
    with pytest.raises(InputError, match="made for vLLM 0.32.0, and this is 0.33.1.*forward"):
        vllm_worker.check_engine(engine())


def test_an_engine_starts_without_compiling_flashinfers_sampler(monkeypatch):
    from vllm.v1.sample.ops import topk_topp_sampler

    monkeypatch.setattr(topk_topp_sampler.current_platform, "is_cuda", lambda: True)
    with mock.patch.dict(os.environ):
        os.environ.pop("VLLM_USE_FLASHINFER_SAMPLER", None)
        engine_options(**ENGINE)
        assert not topk_topp_sampler.flashinfer_sampler_supported()
        os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "1"
        engine_options(**ENGINE)
        assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "1"  # a user's own stays


def test_a_model_without_side_outputs_is_refused_by_name():
    with pytest.raises(InputError, match="vLLM's Linear does not expose the hidden.*forward"):
        vllm_worker.check_model(torch.nn.Linear)


def test_a_model_is_refused_before_the_engine_starts(tiny_model, tmp_path):
    vllm_worker.check_before_start(str(tiny_model), {"dtype": "float32"})
    Gemma2ForCausalLM(Gemma2Config(
        vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="vLLM's Gemma2ForCausalLM does not expose the hidden"):
        vllm_worker.check_before_start(str(tmp_path), {"dtype": "float32"})


def test_both_runners_say_which_tokens_a_step_holds():
    expected = vllm_worker.StepBatch(["0_7", "3"], [4, 1], [0, 12], [9, 10])
    ids = ["0_7-0a1b2c3d", "3-00000000"]
    first = SimpleNamespace(
        execute_model_state=SimpleNamespace(scheduler_output=SimpleNamespace(
            num_scheduled_tokens={ids[1]: 1, ids[0]: 4})),
        input_batch=SimpleNamespace(req_ids=ids, num_prompt_tokens=np.array([9, 10, 77]),
                                    num_computed_tokens_cpu=np.array([0, 12, 77])))
    second = SimpleNamespace(
        execute_model_state=SimpleNamespace(input_batch=SimpleNamespace(
            req_ids=ids, num_scheduled_tokens=np.array([4, 1]),
            num_computed_tokens_np=np.array([0, 12]), idx_mapping_np=np.array([2, 0]))),
        req_states=SimpleNamespace(prompt_len=SimpleNamespace(np=np.array([10, 77, 9]))))
    assert vllm_worker._batch_of(first) == vllm_worker._batch_of(second) == expected


def steps(sums, *batches) -> None:
    """Feed steps of (name, scheduled, computed, prompt length), the state of position p being p."""
    for batch in batches:
        names, scheduled, computed, prompts = map(list, zip(*batch, strict=True))
        positions = [first + i for number, first in zip(scheduled, computed, strict=True)
                     for i in range(number)]
        states = torch.tensor(positions, dtype=torch.float32)[:, None, None]
        sums.add(vllm_worker.StepBatch(names, scheduled, computed, prompts),
                 lambda places, states=states: states[places])


def test_every_answer_token_counts_once_and_the_surplus_one_is_taken_off():
    sums = vllm_worker.StateSums(1, 1, torch.device("cpu"))
    steps(sums, [("a", 5, 0, 5), ("b", 3, 0, 5)], [("a", 1, 5, 5), ("b", 2, 3, 5)],
          [("b", 1, 5, 5), ("a", 1, 6, 5)], [("a", 4, 0, 5)],  # a was preempted
          [("a", 4, 4, 5), ("b", 1, 6, 5)])
    counts, means = sums.take(["a", "b", "c"], [3, 1, 0])
    assert counts == [3, 1, 0]
    assert means[:2, 0, 0].tolist() == [6.0, 5.0] and np.isnan(means[2]).all()
    steps(sums, [("a", 1, 8, 5), ("c", 1, 5, 5)])  # fed late, after they were fetched
    assert sums.take(["a", "c"], [0, 0])[0] == [0, 0]
    steps(sums, [("d", 1, 7, 5)])  # its first states were never seen
    assert sums.take(["d"], [3])[0] == [0]


def test_rows_are_used_again_and_grow():
    sums = vllm_worker.StateSums(1, 1, torch.device("cpu"))
    for number in range(300):
        steps(sums, [(f"{number}", 2, 0, 1)])
        if number % 2:
            assert sums.take([f"{number}"], [1])[1].item() == 1.0
    assert len(sums._sums) == 256
    assert sums.take(["0"], [1])[1].item() == 1.0
