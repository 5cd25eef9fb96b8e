"""What a selection method declares of itself, and what methods share.

Shapes: N records of the pool, H dimensions of a vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from adg.base.errors import InputError
from adg.methods.measures import Measures
from adg.records import Pool
from adg.selection import Subsets

if TYPE_CHECKING:
    from adg.models.loader import Loader

ADG_COLUMNS = ("bin", "num_answers", "dispersion", "anisotropy", "score")  # of scores.jsonl
VECTOR = "vector"  # key of what a measurer returns that is kept as an array, a row of [H] each
EVERY = ("seed", "selection.method", "selection.budget")  # keys of every method
MEASURED = "measures/{measure}/"  # {measure}: its name


# What a method declares


class Task(NamedTuple):
    """What a method chooses from."""

    folder: Path  # the run folder
    pool: Pool
    settings: Any  # of the method
    budget: int
    seed: int
    measured: Path | None  # folder of its measure

    def measures(self) -> Measures:
        """What stage measure wrote."""
        return Measures(self.measured, self.pool)


class Choice(NamedTuple):
    """What a method chose: columns of scores.jsonl [N] (NaN: none), subsets, counts for the log."""

    columns: dict[str, np.ndarray]
    subsets: Subsets
    report: dict[str, Any]


class Told(NamedTuple):
    """What a data card knows when it says how records were chosen."""

    settings: Any  # of the method
    generation: Any  # the section `generation`
    num_bins: int
    models: list[str]  # that measured

    @property
    def model(self) -> str:
        """The models that measured, in words."""
        return " and ".join(self.models)


class Measurer(Protocol):
    """A loaded model, and what a method asks of it; one of several has `close()` too."""

    def measure(self, records: list[dict]) -> list[dict]:
        """A row about each record, without its id; a vector under VECTOR."""


@dataclass(frozen=True)
class Measure:
    """What stage measure asks a method's models about each record.

    Several models are named by PART: they do not fit in memory together, and come one after
    another. A single one has the name "".
    """

    loads: dict[str, "Callable[[Loader, Any], Measurer]"]  # with the method's settings
    models: dict[str, str]  # {input of the stage: key that names the model}
    keys: tuple[str, ...]  # keys or sections that decide what is measured
    vectors: str | None = None  # the input whose vectors stand beside the rows
    finish: "Callable[[Path, Loader, Any], dict[str, int]] | None" = None
    """Writes, beside the rows, what is of the pool as a whole; counts for the log."""
    finish_model: str | None = None  # the input that makes its vectors


class Reads(NamedTuple):
    """Inputs of stage select beside pool.jsonl: paths in the run folder, or names in `files`."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What the pipeline knows of a method as it is configured.

    Inputs are paths in the run folder, or names of what lies outside it, which `models` and `files`
    tie to configuration keys.
    """

    title: str
    about: Callable[[Told], str]
    heeds_budget: bool
    keys: tuple[str, ...]
    later_keys: dict[str, Any]
    inputs: tuple[str, ...]
    optional_inputs: tuple[str, ...]
    files: dict[str, str]
    measure_keys: tuple[str, ...] = ()
    measure_inputs: tuple[str, ...] = ()
    models: dict[str, str] = field(default_factory=dict)

    def measures(self) -> bool:
        """Whether stage measure comes before the choice."""
        return bool(self.models)


@dataclass(frozen=True)
class Method:
    """A value of selection.method."""

    title: str  # in tables
    about: Callable[[Told], str]  # a sentence for the data card
    choose: Callable[[Task], Choice]
    section: str = ""  # of selection, with its settings; "": they stand in selection itself
    settings: type | None = None  # a dataclass of keys
    keys: tuple[str, ...] = ()  # keys or sections that decide the choice, but for EVERY's
    later_keys: dict[str, Any] = field(default_factory=dict)
    """More of `keys`, with their defaults, at which they are not recorded: older records, which
    lack them, agree."""
    reads: Callable[[Any], Reads] = lambda settings: Reads()
    files: dict[str, str] = field(default_factory=dict)  # {input outside the run: key of a path}
    measure: Measure | None = None  # where `reads` has MEASURED
    heeds_budget: bool = True
    fill_in: Callable[[Any, str], None] = lambda settings, pool: None
    """Fills in settings that are null and follow from the name of the pool's file."""
    check_sizes: Callable[[Any, int, int], None] = lambda settings, budget, num_records: None
    """InputError where a pool of num_records is too small for the method's own sizes."""
    note: Callable[[Any, float], str | None] = lambda settings, num_answers: None
    """What a person should know who has num_answers of each record; None: nothing."""

    def facts(self, settings: Any, measure_name: str | None) -> Facts:
        """What the pipeline knows of it, with a measure of this name."""
        reads = self.reads(settings)
        later = tuple(key for key, default in self.later_keys.items()
                      if getattr(settings, key.rpartition(".")[2]) != default)
        measure = self.measure if MEASURED in reads.required else None
        return Facts(
            self.title, self.about, self.heeds_budget, (*self.keys, *later),
            self.later_keys,
            *(tuple(path.format(measure=measure_name) for path in paths) for paths in reads),
            self.files,
            measure_keys=measure.keys if measure else (),
            measure_inputs=tuple(measure.models) if measure else (),
            models=measure.models if measure else {})


def measured(settings: Any) -> Reads:
    """`reads` of a method that chooses by its measure alone."""
    return Reads((MEASURED,))


# What methods share


def at_most(key: str, value: int, num_records: int, *, or_else: str = "") -> None:
    """InputError where a configuration key asks for more records than the pool has."""
    if value > num_records:
        raise InputError(f"{key} is {value}, but the pool has {num_records} records: "
                         f"give {num_records} at most" + (f", or {or_else}" if or_else else ""))


def words(counts: dict[str, int]) -> str:
    """Counts by what they count, those above 0: "3 empty, 12 too long"."""
    return ", ".join(f"{number} {what}" for what, number in counts.items() if number) or "none"


def sift(num_records: int, reasons: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, int]]:
    """(mask [N] of what is kept, records by the first of the `reasons` that drops them).

    `reasons` maps words to masks [N].
    """
    kept, dropped = np.ones(num_records, dtype=bool), {}
    for reason, hit in reasons.items():
        dropped[reason] = int((kept & hit).sum())
        kept &= ~hit
    return kept, dropped


def check_enough(key: str, value: int, num_kept: int, dropped: dict[str, int]) -> None:
    """InputError where fewer records are kept than a configuration key asks for."""
    if value > num_kept:
        raise InputError(f"{key} is {value}, but {num_kept} records are kept (dropped: "
                         f"{words(dropped)}): give {num_kept} at most")


def with_controls(ranking: np.ndarray, budget: int) -> Subsets:
    """Top, middle and bottom of a ranking, best first; top is its first `budget`.

    The controls are as large, or share what top leaves.
    """
    rest = ranking[budget:]
    size = min(budget, len(rest) // 2)
    bottom, rest = rest[len(rest) - size:], rest[: len(rest) - size]
    start = (len(rest) - size) // 2
    return Subsets(ranking[:budget], rest[start: start + size], bottom)


def without_divergence(pool: Pool, subsets: Sequence[Sequence[int]], report: dict[str, Any],
                       **columns: np.ndarray) -> Choice:
    """The choice of a method that knows no answers: ADG's columns are empty unless given."""
    absent = np.full(len(pool), np.nan)
    return Choice(dict.fromkeys(ADG_COLUMNS, absent) | columns,
                  Subsets(*(np.array(rows, dtype=np.int64) for rows in subsets)), report)
