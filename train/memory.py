"""What full fine-tuning takes of a device's memory, estimated before anything is loaded.

Weights, gradients and AdamW's state follow Rajbhandari et al. 2020 (ZeRO), section 3: per parameter
a weight, a gradient in the type that a step's gradients are summed in, and in float32 a master
weight and two moments, each cut by the number of ranks from the ZeRO stage on that shards it. What
is offloaded needs a second gradient, in float32, for the optimiser; in stage 2 the sums themselves
stay on the device where their type is not the weights'. Activations are those of a block with
attention that keeps no score matrix, with checkpointing one block's and each block's input, and of
the logits in float32.
"""

from typing import Any, NamedTuple

_MASTER_BYTES = 12  # master weight, mean and variance of a parameter
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # of DeepSpeed's names for them
_SHARDED_FROM = {"optimiser": 1, "gradients": 2, "weights": 3}  # ZeRO stage


class Memory(NamedTuple):
    """Bytes on one rank's device by what takes them, and in the machine's memory by offloading."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    host: int

    def total(self) -> int:
        """Bytes on the device."""
        return self.weights + self.gradients + self.optimiser + self.activations


def estimate(num_weights: int, described: Any, sharding: dict, *, bytes_per_weight: int, ranks: int,
             tokens: int, checkpointing: bool) -> Memory:
    """The memory of one rank for batches of `tokens`, padding included.

    `described` is transformers' configuration of the model, `sharding` DeepSpeed's.
    """
    zero = sharding.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    summed = _BYTES.get(sharding.get("data_types", {}).get("grad_accum_dtype"), bytes_per_weight)
    widths = {"weights": bytes_per_weight, "gradients": summed, "optimiser": _MASTER_BYTES}
    parts = {name: num_weights * width // (ranks if stage >= _SHARDED_FROM[name] else 1)
             for name, width in widths.items()}
    offloaded, host = [], 0
    if _is_offloaded(zero, "offload_optimizer"):
        offloaded.append("optimiser")
        host += parts["optimiser"] * 4 // _MASTER_BYTES  # the optimiser's gradient
        if stage >= 3 or summed == bytes_per_weight:
            offloaded.append("gradients")
    if _is_offloaded(zero, "offload_param"):
        offloaded.append("weights")
    host += sum(parts[name] for name in offloaded)
    parts |= dict.fromkeys(offloaded, 0)
    return Memory(**parts, host=host, activations=_activations(
        described, tokens, bytes_per_weight, checkpointing=checkpointing))


def _is_offloaded(zero: dict, key: str) -> bool:
    return zero.get(key, {}).get("device", "none") != "none"


def _activations(described: Any, tokens: int, width: int, *, checkpointing: bool) -> int:
    hidden, layers = described.hidden_size, described.num_hidden_layers
    heads = getattr(described, "num_key_value_heads", None) or described.num_attention_heads
    head = getattr(described, "head_dim", None) or hidden // described.num_attention_heads
    # two normalised inputs and their float32 copies, queries, output, residual, keys, values; MLP
    block = tokens * (width * (5 * hidden + 2 * heads * head + 4 * described.intermediate_size)
                      + 2 * 4 * hidden)
    inputs = layers * tokens * hidden * width
    logits = tokens * described.vocab_size * (width + 4 + 4)
    return (inputs + block if checkpointing else layers * block) + logits
