"""A record of a pool as it stands in its source."""

from typing import Any, NamedTuple


class Raw(NamedTuple):
    """A record as it stands in its source, or what stands there instead and why that is none."""

    value: Any
    file: str
    unit: str  # what `number` counts, from 1: line, element or row
    number: int
    problem: str | None = None
    separator: str | None = None  # what stands between the fields of a CSV file

    def place(self) -> str:
        """file:line, or file: element n."""
        return f"{self.file}:{self.number}" if self.unit == "line" else (
            f"{self.file}: {self.unit} {self.number}")
