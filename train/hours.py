"""How long fine-tuning takes, by arithmetic: operations, and bytes between ranks.

A token takes 6 N + 12 L H T operations (Chowdhery et al. 2022, appendix B): N weights, L layers, H
hidden, T tokens of its record. Ranks move what ZeRO asks for, as DeepSpeed does it: in each forward
and backward pass stage 3 gathers the weights twice and scatters the gradients, stage 2 sums the
gradients with an all-reduce, which moves them twice, and gathers the weights once a step.
"""

from typing import Any

from adg.base import distributed, units
from train.batches import Order

PEAK = 989e12  # operations/s of an H100 in bfloat16
REACHED = 0.4  # of it: assumed
NVLINK = 300e9  # bytes/s that a rank moves within a node, of nominally 450e9: assumed
NETWORK = 25e9  # bytes/s between two nodes, over one link of 200 Gb/s
_EACH_PASS = {2: 2, 3: 3}  # ZeRO stage: how often all weights or gradients are moved
_EACH_STEP = {0: 2, 1: 3, 2: 1}


def flops_per_token(num_weights: int, described: Any, mean_length: float, *,
                    checkpointing: bool = False) -> float:
    """Operations of a token, with those that `checkpointing` repeats; `described` is transformers'
    configuration of the model."""
    forward = 2 * num_weights + (
        4 * described.num_hidden_layers * described.hidden_size * mean_length)
    return forward * (4 if checkpointing else 3)


def bytes_per_step(num_weights: int, stage: int, *, passes: int, ranks: int,
                   bytes_per_weight: int) -> float:
    """What a rank sends, and receives, in an optimiser step of so many passes."""
    moves = _EACH_PASS.get(stage, 0) * passes + _EACH_STEP.get(stage, 0)
    return moves * num_weights * bytes_per_weight * (ranks - 1) / ranks


def seconds(flops: float, moved: float, *, nodes: int) -> float:
    """Time of so many operations and bytes of a rank, the one done while the other goes on."""
    return max(flops / (PEAK * REACHED), moved / (NVLINK if nodes == 1 else NETWORK))


def estimate(order: Order, num_weights: int, described: Any, sharding: dict, *,
             checkpointing: bool) -> str:
    """The time of a run in 16 bits without offloading, in words that say what it rests on."""
    nodes = order.ranks // distributed.local_world_size()
    mean_length = sum(order.lengths) / len(order.lengths)
    flops = order.slowest() * flops_per_token(num_weights, described, mean_length,
                                              checkpointing=checkpointing)
    step = bytes_per_step(num_weights, sharding.get("zero_optimization", {}).get("stage", 0),
                          passes=len(order.steps[0]) // order.ranks, ranks=order.ranks,
                          bytes_per_weight=2)
    duration = units.duration(seconds(flops, len(order.steps) * step, nodes=nodes))
    rate = NVLINK if nodes == 1 else NETWORK
    moved = f" and {step / 1e9:.0f} GB a step at {rate / 1e9:.0f} GB/s" if order.ranks > 1 else ""
    return (f"about {duration} on {order.ranks} H100, by arithmetic and not measured: "
            f"{REACHED:.0%} of {PEAK / 1e12:.0f} TFLOP/s{moved}")
