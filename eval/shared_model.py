"""lm-eval's models with their requests shared by the ranks, and remembered over restarts.

Rank 0 alone runs lm-eval: it loads the tasks, asking the hub where they are not on disk, and builds
every prompt, so that neither depends on the rank count. Each rank computes the share that rank 0
deals it, and keeps what it has computed in lm-eval's request cache as it goes; a run that was
killed finds what every rank had.
"""

import heapq
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from adg.base import artifacts, distributed, log_file, process, screen


def shared(kind: type) -> type:
    """A class of lm-eval's models whose requests are shared by the ranks.

    Rank 0's is asked by lm-eval; those of the other ranks `serve` until rank 0 calls `dismiss`.
    """
    return type("SharedLM", (_Shared, kind), {})


class _Shared:
    """Before a class of lm-eval's, in its place."""

    cache: Path | None = None  # a folder of what was computed, to be set by benchmark

    def loglikelihood(self, requests: list, **_: Any) -> list:
        return [tuple(result) for result in self._share("loglikelihood", requests)]

    def generate_until(self, requests: list, **_: Any) -> list:
        return self._share("generate_until", requests)

    def serve(self) -> None:
        """Compute this rank's share of whatever rank 0 is asked for."""
        while (work := _scatter(None)) is not None:
            _gather(self._compute(*work))

    def dismiss(self) -> None:
        """End `serve` on the other ranks."""
        _scatter([None] * distributed.world_size())

    def _share(self, method: str, requests: list) -> list:
        arguments = [request.args for request in requests]
        results = _remembered(self.cache, method, arguments)
        rest = [place for place in range(len(requests)) if place not in results]
        shares = deal([arguments[place][0] for place in rest], distributed.world_size())
        results |= _gather(self._compute(*_scatter([
            (method, {rest[i]: arguments[rest[i]] for i in share}, self.cache)
            for share in shares])))
        return [results[place] for place in range(len(requests))]

    def _compute(self, method: str, arguments: dict[int, tuple], cache: Path | None
                 ) -> dict[int, Any]:
        """{place: result} of requests, given as {place: arguments}."""
        from lm_eval.api.instance import Instance

        if not arguments:
            return {}
        requests = [Instance(method, {}, values, place) for place, values in arguments.items()]
        name = "evaluate" if cache is None else f"evaluate {cache.name}"
        with (distributed.progress(name, len(requests), unit="requests") as bar,
              _remembering(self, cache, arguments.values(), bar.update)):
            results = getattr(super(), method)(requests, disable_tqdm=not screen.has_log())
        return dict(zip(arguments, results, strict=True))

    def _loglikelihood_tokens(self, requests: list[tuple], **options: Any) -> list:
        """Requests that are too long lose their beginning to the same token in each backend.

        vLLM takes max_length tokens with the one that it has to draw, HFLM one more.
        """
        room = self.max_length - 1
        return super()._loglikelihood_tokens([
            (texts, context[max(0, len(context) + len(continuation) - room):], continuation)
            for texts, context, continuation in requests], **options)


def deal(contexts: Sequence[str], ranks: int) -> list[list[int]]:
    """The places of each rank's requests: even work, and those of one context on one rank.

    lm-eval reads a context once for all the continuations of it that it is asked for together.
    Work is counted in characters.
    """
    places = defaultdict(list)
    for place, context in enumerate(contexts):
        places[context].append(place)
    work = {context: len(asked) * (1 + len(context)) for context, asked in places.items()}
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]  # a heap: the rank with the least work so far
    for context in sorted(work, key=work.__getitem__, reverse=True):
        load, rank = loads[0]
        shares[rank] += places[context]
        heapq.heapreplace(loads, (load + work[context], rank))
    return shares


def _scatter(values: list | None) -> Any:
    """This rank's of the values that rank 0 gives, one for each rank."""
    if distributed.world_size() == 1:
        return values[0]
    import torch.distributed as dist

    mine = [None]
    dist.scatter_object_list(mine, values, src=0)
    return mine[0]


def _gather(results: dict) -> dict:
    """All ranks' results, on rank 0."""
    if distributed.world_size() == 1:
        return results
    import torch.distributed as dist

    parts = [{}] * distributed.world_size() if distributed.rank() == 0 else None
    dist.gather_object(results, parts, dst=0)
    return {place: result for part in parts or () for place, result in part.items()}


# lm-eval's request cache


@contextmanager
def _remembering(model: Any, folder: Path | None, asked: Iterable[tuple],
                 count: Callable[[], object]) -> Iterator[None]:
    """Within, what `model` computes goes into this rank's part of the cache as it is done, and
    `count` is called of each."""
    from lm_eval.api.model import CacheHook

    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{distributed.rank()}.jsonl").open("a+b", buffering=0) as log:
        log_file.drop_torn_line(log)
        model.set_cache_hook(_Log(log, asked, count))
        try:
            yield
        finally:
            model.set_cache_hook(CacheHook(None))


class _Log:
    """In the place of lm-eval's CacheHook: a line {"key": of the request, "result": ...} each."""

    def __init__(self, log: FileIO, asked: Iterable[tuple], count: Callable[[], object]) -> None:
        self._log, self._count = log, count
        self._options = {context: options for context, options in asked
                         if isinstance(options, dict)}

    def add_partial(self, method: str, request: tuple, result: Any) -> None:
        """Keep one result. A backend may name other options than a context was asked with."""
        from lm_eval.api.model import hash_args

        context, other = request
        key = hash_args(method, (context, self._options.get(context, other)))
        log_file.append_line(self._log, json.dumps({"key": key, "result": result}))
        self._count()
        process.beat()


def _remembered(folder: Path | None, method: str, arguments: list[tuple]) -> dict[int, Any]:
    """{place: result} of the requests that some rank of an earlier run has computed."""
    from lm_eval.api.model import hash_args

    if folder is None:
        return {}
    results = {}
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("a+b", buffering=0) as log:
            lines = log_file.drop_torn_line(log)
        rows = [artifacts.parse_record(line, f"{path}:{number}")
                for number, line in enumerate(lines, start=1)]
        results |= {row["key"]: row["result"] for row in rows}
    keys = [hash_args(method, values) for values in arguments]
    return {place: results[key] for place, key in enumerate(keys) if key in results}
