"""A table as Markdown, text, LaTeX or JSON."""

import json
import re
from typing import Any, NamedTuple


class Table(NamedTuple):
    """Texts in rows and columns, what is to be said below them, and what JSON has instead."""

    titles: list[str]
    lines: list[list[str]]  # as many texts each as there are titles
    numbers: int  # so many of the last columns hold numbers: to the right
    notes: list[str]
    rows: list[dict[str, Any]]
    caption: str  # LaTeX, above the table
    best: frozenset[tuple[int, int]] = frozenset()  # (line, column) of what is printed in bold
    label: str = "tab:results"  # LaTeX


_BOLD = "Bold: the best of its column among the rows of one backbone."
_NUMBER = re.compile(r"[\d.]+")
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")
_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$",
    ">": "$>$", "|": "$|$", "±": r"$\pm$", "–": "--"})


def _padded(table: Table) -> list[list[str]]:
    """Titles and lines with every column as wide as its widest cell, numbers to the right."""
    lines = [table.titles, *table.lines]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]  # a rule is ---
    labels = len(table.titles) - table.numbers
    return [[cell.ljust(width) if column < labels else cell.rjust(width)
             for column, (cell, width) in enumerate(zip(line, widths, strict=True))]
            for line in lines]


def _with_best(table: Table, before: str, after: str) -> list[list[str]]:
    """The lines, with what goes before and after the number of each best cell."""
    return [[_NUMBER.sub(rf"{before}\g<0>{after}", cell, count=1) if (row, column) in table.best
             else cell for column, cell in enumerate(line)] for row, line in enumerate(table.lines)]


def _notes(table: Table) -> list[str]:
    return [*table.notes, _BOLD] if table.best else table.notes


def as_markdown(table: Table) -> str:
    """A Markdown table."""
    marked = [[cell.replace("***", r"**\*") for cell in line]  # the asterisk of a part, after bold
              for line in _with_best(table, "**", "**")]
    head, *lines = _padded(table._replace(lines=marked))
    labels = len(head) - table.numbers
    rule = ["-" * len(cell) if column < labels else "-" * (len(cell) - 1) + ":"
            for column, cell in enumerate(head)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in (head, rule, *lines)), "",
                      *_notes(table)])


def as_text(table: Table) -> str:
    """Columns for a terminal."""
    return "\n".join([*("  ".join(line).rstrip() for line in _padded(table)), "", *table.notes])


def as_latex(table: Table) -> str:
    """A table with its caption, for the package booktabs; the notes are comments."""
    kinds = "l" * (len(table.titles) - table.numbers) + "r" * table.numbers

    escaped = table._replace(lines=[[latex_text(cell) for cell in line] for line in table.lines])

    def line(cells: list[str]) -> str:
        guard = "{}" if cells[0][:1] in ("[", "*") else ""  # the \\ before takes them
        return guard + " & ".join(cells) + r" \\"

    return "\n".join([
        r"% \usepackage{booktabs}", r"\begin{table}", r"\centering",
        rf"\caption{{{table.caption}}}", rf"\label{{{table.label}}}",
        rf"\begin{{tabular}}{{{kinds}}}", r"\toprule",
        line([latex_text(title) for title in table.titles]), r"\midrule",
        *map(line, _with_best(escaped, r"\\textbf{", "}")), r"\bottomrule",
        r"\end{tabular}", r"\end{table}", *(f"% {note}" for note in _notes(table))])


def latex_text(text: str) -> str:
    """Plain text as LaTeX prints it."""
    return _MINUS.sub("$-$", text.translate(_LATEX))


def as_json(table: Table) -> str:
    """Every number, unrounded."""
    return json.dumps({"rows": table.rows, "notes": table.notes}, ensure_ascii=False, indent=1)


FORMATS = {"markdown": as_markdown, "text": as_text, "latex": as_latex, "json": as_json}
