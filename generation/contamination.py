"""Does the pool hold questions of the benchmarks? Overlap of 13-grams, as for GPT-3.

Text is lower-cased, punctuation dropped, split into words; a record is contaminated where 13 of its
words in a row stand in a benchmark's test question (Brown et al. 2020, appendix C). A question of 8
to 12 words counts as a whole, a shorter one is not looked for.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from adg.base import artifacts
from adg.benchmarks import BENCHMARKS

_LONGEST, _SHORTEST = 13, 8  # words
_WORD = re.compile(r"\w+")


class Overlap(NamedTuple):
    """Where words of a record stand in a benchmark."""

    benchmark: str
    task: str
    question: int  # line of its file, from 1
    words: str


class Benchmarks:
    """The 13-grams of all test questions in eval.data_dir."""

    def __init__(self, data_dir: Path) -> None:
        self._places: dict[int, tuple[str, str, int]] = {}  # by the hash of a run of words
        self._lengths: set[int] = set()
        self.questions = 0
        for benchmark, task, number, text in _questions(data_dir):
            words = _words(text)
            length = min(len(words), _LONGEST)
            if length < _SHORTEST:
                continue
            self.questions += 1
            self._lengths.add(length)
            for start in range(len(words) - length + 1):
                key = hash(tuple(words[start: start + length]))
                self._places.setdefault(key, (benchmark, task, number))

    def overlap(self, record: dict) -> Overlap | None:
        """The first run of words that a record has in common with a question; None without one."""
        words = _words("\n".join(record[name] for name in ("instruction", "input", "output")))
        for length in self._lengths:
            for start in range(len(words) - length + 1):
                run = tuple(words[start: start + length])
                place = self._places.get(hash(run))
                if place is not None:
                    return Overlap(*place, " ".join(run))
        return None


def _questions(data_dir: Path) -> Iterator[tuple[str, str, int, str]]:
    """(benchmark, task, line, text) of each test question at hand."""
    for benchmark, row in BENCHMARKS.items():
        if row.questions is None:
            continue
        data_set, split, fields = row.questions
        for path in sorted((data_dir / data_set).glob(f"*/{split}.jsonl")):
            for number, question in enumerate(artifacts.JsonlRows(path), start=1):
                yield benchmark, path.parent.name, number, "\n".join(
                    _text(question.get(field, "")) for field in fields)


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
