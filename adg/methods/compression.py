"""Method zip: records that compress badly together (Entropy Law, ZIP).

The compression ratio of a list of records is the bytes of the list's Python repr over the bytes
that zlib makes of it at level 9: what is alike compresses, so a low ratio is variety. Each record
is written as a ShareGPT dictionary.

Shapes: N records of the pool, M that are picked.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from adg.base.distributed import progress, say
from adg.base.keys import key, require
from adg.methods.method import Choice, Method, Task, without_divergence
from adg.records import instruction_text

_LEVEL = 9


class Recipe(NamedTuple):
    """What a selection does where the release has defects."""

    repeats: bool  # where few records are left, those picked and turned down come back too
    whole_rounds: bool  # the number of picks is rounded up to whole rounds


RECIPES = {"intended": Recipe(repeats=False, whole_rounds=False),
           "released": Recipe(repeats=True, whole_rounds=True)}


@dataclass
class ZipConfig:
    recipe: str = key("intended", "intended (exactly the budget, no record twice) or released "
                                   "(rounded up to whole rounds; some records are repeated when "
                                   "candidates run out)", choices=RECIPES)
    candidates: int = key(10000, "records with the lowest ratios that a round tries (k1)")
    shortlist: int = key(200, "those with the lowest ratios together with the records already "
                               "picked, from which a round picks (k2)")
    picks_per_round: int = key(100, "picks per round (k3)", least=1)
    source: str | None = key(None, "source named in each record's text before it is compressed; "
                                    "null: the pool's file name without its ending",
                             compared=False)

    def __post_init__(self) -> None:
        low, middle, high = self.picks_per_round, self.shortlist, self.candidates
        require(middle >= low, "selection.zip.shortlist", middle,
                f"at least selection.zip.picks_per_round ({low})")
        require(high >= middle, "selection.zip.candidates", high,
                f"at least selection.zip.shortlist ({middle})")


class Prefix:
    """A list of records as an unfinished zlib stream, to which one more can be tried at a time.

    Nothing is compressed twice: a trial goes on from a copy of the stream, whose size does not
    depend on what went through it, since Deflate looks back 32 KiB only.
    """

    def __init__(self) -> None:
        self._stream = zlib.compressobj(_LEVEL)
        self._read = self._written = 0  # bytes
        self._opening = b"["

    def add(self, text: bytes) -> None:
        """Append a record, given by its repr in UTF-8."""
        piece = self._opening + text
        self._written += len(self._stream.compress(piece))
        self._read += len(piece)
        self._opening = b", "

    def ratio_with(self, text: bytes) -> float:
        """The compression ratio of the list with one more record at its end."""
        end = self._opening + text + b"]"
        trial = self._stream.copy()
        written = self._written + len(trial.compress(end)) + len(trial.flush())
        return (self._read + len(end)) / written


class Round(NamedTuple):
    """The picks of one round in order, and the ratio by which each was the lowest."""

    rows: list[int]
    ratios: list[float]
    reopened: bool  # whether records that earlier rounds turned down were taken up again


def pick_in_rounds(texts: Sequence[bytes], budget: int, *, recipe: Recipe, candidates: int,
                   shortlist: int, picks_per_round: int) -> Iterator[Round]:
    """The rounds that pick `budget` of N records, each given by its repr in UTF-8.

    Every record has a ratio, first that of itself alone. A round renews the ratios of the
    `candidates` records with the lowest: each becomes that of all picks with the record. The
    `shortlist` lowest of these are marked, and of them a greedy choice that starts from an empty
    list picks `picks_per_round`; no later round looks at marked records. Ratios are compared in
    float32; ties go to the first in the pool.

    With `recipe.repeats`, marked records fill up a round in pool order where too few others are
    left. Without, those that were turned down are open again once the others do not make a round,
    so that N records can all be picked, each once.
    """
    chosen, rows = Prefix(), []
    marked = np.zeros(len(texts), dtype=bool)
    wanted = -(-budget // picks_per_round) * picks_per_round if recipe.whole_rounds else budget
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
        ratios = _ratios_with(Prefix(), texts, range(len(texts)), workers)              # [N]
        while len(rows) < wanted:
            size = min(picks_per_round, wanted - len(rows))
            reopened = not recipe.repeats and int((~marked).sum()) < size
            if reopened:
                marked[:] = False
                marked[rows] = True
            seen = np.arange(len(texts)) if recipe.repeats else np.flatnonzero(~marked)
            order = np.where(marked, np.float32(np.inf), ratios)
            seen = np.sort(seen[_lowest(order[seen], candidates)])
            ratios[seen] = _ratios_with(chosen, texts, seen, workers)
            listed = np.sort(seen[_lowest(ratios[seen], shortlist)])
            marked[listed] = True
            picks, lows = _pick_greedily(texts, listed.tolist(), size, workers)
            for row in picks:
                chosen.add(texts[row])
            rows += picks
            yield Round(picks, lows, reopened)


def _pick_greedily(texts: Sequence[bytes], listed: list[int], size: int,
                   workers: ThreadPoolExecutor) -> tuple[list[int], list[float]]:
    """Up to `size` rows of `listed`, each of the lowest ratio with those picked before it here."""
    prefix, rows, lows, left = Prefix(), [], [], list(listed)
    while left and len(rows) < size:
        ratios = _ratios_with(prefix, texts, left, workers)
        best = int(ratios.argmin())
        lows.append(float(ratios[best]))
        rows.append(left.pop(best))
        prefix.add(texts[rows[-1]])
    return rows, lows


def _ratios_with(prefix: Prefix, texts: Sequence[bytes], rows: Sequence[int],
                 workers: ThreadPoolExecutor) -> np.ndarray:
    """The ratio of the prefix with each row alone, float32 [len(rows)], in as many threads as there
    are CPUs: zlib works without the interpreter's lock."""
    pieces = np.array_split(np.asarray(rows), 4 * len(os.sched_getaffinity(0)))
    parts = workers.map(
        lambda piece: [prefix.ratio_with(texts[row]) for row in piece.tolist()], pieces)
    return np.array([ratio for part in parts for ratio in part], dtype=np.float32)


def _lowest(values: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` lowest values, the first of equals before the others."""
    return np.argsort(values, kind="stable")[:count]


def as_sharegpt(record: dict, position: int, source: str) -> dict:
    """A record in the form that is compressed; the order of its keys counts."""
    return {"id": position, "conversations": [
        {"from": "human", "value": instruction_text(record)},
        {"from": "gpt", "value": record["output"]}], "source": source}


def choose_by_compression(task: Task) -> Choice:
    """Top in the order of the picks, the score the ratio at the pick; no controls."""
    settings = task.settings
    texts = [repr(as_sharegpt(record, row, settings.source)).encode()
             for row, record in enumerate(task.pool)]
    if settings.candidates > len(texts):
        say(f"[select] note: selection.zip.candidates is {settings.candidates:,}, more than the "
            f"{len(texts):,} records: each round tries them all")
    rounds = []
    with progress("select", task.budget) as bar:
        for picked in pick_in_rounds(
                texts, task.budget, recipe=RECIPES[settings.recipe],
                candidates=settings.candidates, shortlist=settings.shortlist,
                picks_per_round=settings.picks_per_round):
            rounds.append(picked)
            bar.update(len(picked.rows))
    rows = [row for picked in rounds for row in picked.rows]
    reopened, repeated = sum(picked.reopened for picked in rounds), len(rows) - len(set(rows))
    _say_what_came_again(len(rounds), reopened, len(rows), repeated)
    scores = np.full(len(texts), np.nan)
    for row, ratio in zip(reversed(rows), (low for picked in reversed(rounds)
                                           for low in reversed(picked.ratios)), strict=True):
        scores[row] = ratio  # of a repeated pick the first counts
    return without_divergence(task.pool, (rows, (), ()), {
        "rounds": len(rounds), "reopened": reopened,
        "repeated": repeated, "zlib": zlib.ZLIB_RUNTIME_VERSION}, score=scores)


def _say_what_came_again(num_rounds: int, reopened: int, num_picks: int, repeated: int) -> None:
    if reopened:
        say(f"[select] note: before {reopened} of {num_rounds} rounds too few records were left: "
            f"those that earlier rounds had turned down were tried again")
    if repeated:
        say(f"[select] note: {repeated} of the {num_picks} picks had been picked before (recipe "
            f"released, where too few candidates are left)")


def fill_in(settings: ZipConfig, pool: str) -> None:
    """A record's source is the pool, where none is given."""
    if settings.source is None:
        settings.source = pool.split(".")[0]


METHOD = Method(
    "ZIP",
    lambda told: ("Chosen for variety by compression (ZIP): round after round those records that "
                  "zlib compresses least together with all that was chosen before, and with each "
                  "other."),
    choose_by_compression, section="zip", settings=ZipConfig, keys=("selection.zip",),
    fill_in=fill_in)
