"""A table as Markdown, text, LaTeX or JSON."""

import json
from typing import Any, NamedTuple


class Table(NamedTuple):
    """Texts in rows and columns, what is to be said below them, and what JSON has instead."""

    titles: list[str]
    lines: list[list[str]]  # as many texts each as there are titles
    numbers: int  # so many of the last columns hold numbers: to the right
    notes: list[str]
    rows: list[dict[str, Any]]


def _padded(table: Table) -> list[list[str]]:
    """Titles and lines with every column as wide as its widest cell, numbers to the right."""
    lines = [table.titles, *table.lines]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]  # a rule is ---
    labels = len(table.titles) - table.numbers
    return [[cell.ljust(width) if column < labels else cell.rjust(width)
             for column, (cell, width) in enumerate(zip(line, widths, strict=True))]
            for line in lines]


def as_markdown(table: Table) -> str:
    """A Markdown table."""
    head, *lines = _padded(table)
    labels = len(head) - table.numbers
    rule = ["-" * len(cell) if column < labels else "-" * (len(cell) - 1) + ":"
            for column, cell in enumerate(head)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in (head, rule, *lines)), "",
                      *table.notes])


def as_text(table: Table) -> str:
    """Columns for a terminal."""
    return "\n".join([*("  ".join(line).rstrip() for line in _padded(table)), "", *table.notes])


def as_latex(table: Table) -> str:
    """A tabular for the package booktabs."""
    kinds = "l" * (len(table.titles) - table.numbers) + "r" * table.numbers

    def line(cells: list[str]) -> str:
        return " & ".join(map(_latex, cells)) + r" \\"

    return "\n".join([rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", line(table.titles),
                      r"\midrule", *map(line, table.lines), r"\bottomrule", r"\end{tabular}",
                      *(f"% {note}" for note in table.notes)])


def _latex(text: str) -> str:
    for plain, escaped in (("\\", r"\textbackslash{}"), ("&", r"\&"), ("%", r"\%"), ("_", r"\_"),
                           ("#", r"\#"), (" ± ", r" $\pm$ "), ("–", "--"), ("(-", "($-$")):
        text = text.replace(plain, escaped)
    return f"$-${text[1:]}" if text.startswith("-") and text[1:2].isdigit() else text


def as_json(table: Table) -> str:
    """Every number, unrounded."""
    return json.dumps({"rows": table.rows, "notes": table.notes}, ensure_ascii=False, indent=1)


FORMATS = {"markdown": as_markdown, "text": as_text, "latex": as_latex, "json": as_json}
