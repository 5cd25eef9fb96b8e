"""What every vLLM engine is started with, whichever stage asks for it."""

import os
from typing import Any

from adg.base import distributed, process, screen
from adg.base.errors import InputError

_VERSION = "0.32.0"  # of vLLM, for vectors from sampling


def engine_options(dtype: str, *, seed: int, trust_remote_code: bool,
                   gpu_memory_utilization: float, own_process: bool) -> dict[str, Any]:
    """Options of a `vllm.LLM`. Sets those of vLLM's switches that are not set, and has an engine
    in a process of its own (`own_process`) end with this one: to be called before vLLM is imported,
    and after distributed.claim_gpus.

    Raises InputError where this build of vLLM has no device to run on.
    """
    import torch

    on_gpu = distributed.on_gpu()
    if not on_gpu and torch.version.cuda is not None:
        raise InputError("the GPU build of vLLM is installed, but no GPU was found: run this stage "
                         "on a machine with one, or install the CPU build (bash run.sh setup cpu)")
    logging = ({"VLLM_LOGGING_STREAM": "ext://sys.stderr"} if screen.has_log()
               else {"VLLM_LOGGING_LEVEL": "ERROR"})
    switches = {**logging, "VLLM_NO_USAGE_STATS": "1",
                "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(own_process)),
                # on_gpu() has touched CUDA, which a forked process cannot use, nor the locks of
                # this one's threads
                "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
                # an engine's start would compile FlashInfer's sampler, which takes nvcc and is for
                # requests without a seed; all here have one or are greedy
                "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    if not on_gpu:
        switches |= {"VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
                     "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # ranks share the cores
    for name, value in switches.items():
        os.environ.setdefault(name, value)
    if own_process:
        process.end_children_with_this_process()
    hardware: dict[str, Any] = {"gpu_memory_utilization": gpu_memory_utilization}
    if not on_gpu:
        hardware = {"enforce_eager": True}  # compiling costs more than it saves on a CPU
    return {"dtype": dtype, "seed": seed, "trust_remote_code": trust_remote_code, **hardware}


def check_version(installed: str) -> None:
    """InputError where this is not the vLLM whose private parts vectors from sampling rely on.

    To be called before generation.vllm_worker is imported: what it imports is private too.
    """
    if installed.split("+")[0] != _VERSION:
        raise InputError(f"embedding.source=sampling is made for vLLM {_VERSION}, and this is "
                         f"{installed}: install that version, or use embedding.source=forward")
