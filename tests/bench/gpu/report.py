"""What was measured: the readings of all rounds, their medians and ratios, and the files that hold
them."""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

from adg.base import artifacts

NOTES = """\
A value is the median over the repeats in brackets; a ratio is that of its median to that of the row
which `baseline` names (same measurement, same unit), both of this run. 1.00 without a name: it is
the baseline.

- MFU: the operations that the tokens need, a second and device, over the measured peak of the same
  run (the best of ten products of two square matrices in the model's dtype).
  - embed: 2 x weights of the layers x tokens + 4 x heads x head size x layers x pairs of tokens of
    which one attends to the other; padding and masked pairs count nothing.
  - finetune: tokens x (6 x weights + 12 x layers x hidden size x tokens of a record); padding and
    what checkpointing repeats count nothing.
- sample: one engine, its start left out. embed: one device, without tokenising; tokens/s are those
  that the model reads, a shared prompt once.
- finetune: the plain loop is forward and backward of PyTorch on one device. The others are the
  stage by its command, and a speed is the median over the steps after the first two.
- evaluate: the stage by its command; the seconds are all of it, the model's start included.
"""


class Reading(NamedTuple):
    """One value that was measured or found, or a note that says why there is none."""

    what: str
    setting: str
    unit: str = ""
    value: float | str | None = None
    baseline: str = ""  # the setting that the ratio is to
    note: str = ""  # "skipped: ..." or "failed: ..."


class Report:
    """Readings as they come, and the rows that they make."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.about, self._rows = about, {}

    def add(self, reading: Reading) -> None:
        """A further value of its row; a note is kept only where the row has no value."""
        name = (reading.what, reading.setting, reading.unit)
        readings = self._rows.setdefault(name, [])
        if reading.value is not None or not readings:
            readings[:] = [known for known in readings if known.value is not None] + [reading]

    def median(self, what: str, setting: str, unit: str) -> float | str | None:
        """The median of a row's values; a text is the last one, None where there is no value."""
        values = [known.value for known in self._rows.get((what, setting, unit), ())
                  if known.value is not None]
        if not values or isinstance(values[-1], str):
            return values[-1] if values else None
        return statistics.median(values)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each measurement, setting and unit, in the order in which they first came."""
        rows = []
        for (what, setting, unit), readings in self._rows.items():
            value, last = self.median(what, setting, unit), readings[-1]
            below = self.median(what, last.baseline, unit) if last.baseline else None
            rows.append({
                "what": what, "setting": setting, "unit": unit, "median": value,
                "values": [own.value for own in readings if own.value is not None],
                "baseline": last.baseline or None,
                "ratio": value / below if below and value is not None else None,
                "note": last.note or None})
        return rows

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """NAME.json and NAME.md in a folder: all of it, and the table."""
        paths = folder / f"{name}.json", folder / f"{name}.md"
        artifacts.write_json(paths[0], {**self.about, "rows": self.rows()})
        artifacts.write_text(paths[1], self.markdown())
        return paths

    def markdown(self) -> str:
        """The table, with what the run was and what the numbers mean."""
        facts = [f"- {name}: {value}" for name, value in self.about.items()]
        cells = [["what", "setting", "median", "ratio", "baseline", "unit"], ["---"] * 6]
        cells += [[row["what"], row["setting"], _shown(row), *_ratio(row), row["unit"]]
                  for row in self.rows()]
        table = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in cells]
        return "\n".join(["# Measurements on one node", "", *facts, "", *table, "", NOTES])


def _shown(row: dict[str, Any]) -> str:
    if row["median"] is None:
        return row["note"]
    if isinstance(row["median"], str):
        return row["median"]
    return f"{_number(row['median'])} ({len(row['values'])})"


def _ratio(row: dict[str, Any]) -> tuple[str, str]:
    """A row's ratio, and what it is to."""
    if row["ratio"] is None:
        return "", ""
    return f"{row['ratio']:.2f}", "" if row["baseline"] == row["setting"] else row["baseline"]


def _number(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
