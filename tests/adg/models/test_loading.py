"""A model in a folder: what is known of it without its weights, and where these go."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from adg.base import distributed
from adg.base.errors import InputError
from adg.models import loading
from adg.models.loading import LocalModel


def test_a_model_is_described_without_its_weights(tiny_model):
    source = LocalModel(tiny_model)
    assert source.described is source.described  # read once
    assert (source.described.num_hidden_layers, source.max_positions) == (5, 2048)
    assert source.tokenizer()("<|end|>")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert source.num_weights() == sum(weight.numel() for weight in model.parameters())


def test_a_model_that_does_not_fit_is_refused(tiny_model, monkeypatch):
    source = LocalModel(tiny_model)
    source.check_room(AutoModel, "float32")
    monkeypatch.setattr(loading, "_memory", lambda gpus: {"cpu": 100_000})
    with pytest.raises(InputError, match=r"the weights take 0\.\d GiB, and a rank's share of the "
                                         r"memory has 0\.0 GiB free: raise embedding.gpus_per"):
        source.check_room(AutoModel, "float32")
    monkeypatch.undo()
    with pytest.raises(InputError, match="gpus_per_model is 2, but this machine has no GPU"):
        source.load(AutoModel, "float32", gpus=2)


def test_a_model_is_read_straight_to_its_device(tiny_model, monkeypatch):
    """As on a GPU: by a device map of one place, which leaves no hook in the model."""
    asked, read = [], AutoModel.from_pretrained
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda folder, **options:
                        asked.append(options.get("device_map")) or read(folder, **options))
    source = LocalModel(tiny_model)
    expected = source.load(AutoModel, "float32")
    monkeypatch.setattr(distributed, "device", lambda: "cpu:0")
    found = source.load(AutoModel, "float32")
    assert asked == [None, {"": "cpu:0"}]
    assert not any(hasattr(module, "_hf_hook") for module in found.modules())
    tensors = dict(found.named_parameters()) | dict(found.named_buffers())
    for name, tensor in (*expected.named_parameters(), *expected.named_buffers()):
        assert torch.equal(tensors[name], tensor) and tensors[name].device.type == "cpu"
    assert not found.training
