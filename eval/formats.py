"""A table as Markdown, text, LaTeX or JSON."""

import json
import re
from typing import Any, NamedTuple

from tabulate import DataRow, Line, TableFormat, tabulate


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
# tabulate's own formats of LaTeX escape everything, \textbf too, or nothing but with \hline
_BOOKTABS = TableFormat(
    Line(r"\toprule", "", "", ""), Line(r"\midrule", "", "", ""), None,
    Line(r"\bottomrule", "", "", ""), DataRow("", " & ", r" \\"), DataRow("", " & ", r" \\"),
    padding=0, with_header_hide=None)


def _laid_out(table: Table, kind: str | TableFormat) -> str:
    labels = len(table.titles) - table.numbers
    return tabulate(table.lines, table.titles, kind, disable_numparse=True,
                    colalign=["left"] * labels + ["right"] * table.numbers)


def _with_best(table: Table, before: str, after: str) -> Table:
    """The table with what goes before and after the number of each best cell."""
    return table._replace(lines=[
        [_NUMBER.sub(rf"{before}\g<0>{after}", cell, count=1) if (row, column) in table.best
         else cell for column, cell in enumerate(line)] for row, line in enumerate(table.lines)])


def _notes(table: Table) -> list[str]:
    return [*table.notes, _BOLD] if table.best else table.notes


def as_markdown(table: Table) -> str:
    """A Markdown table."""
    marked = _with_best(table, "**", "**")
    marked = marked._replace(lines=[[cell.replace("***", r"**\*") for cell in line]  # *: of a part
                                    for line in marked.lines])
    return "\n".join([_laid_out(marked, "pipe"), "", *_notes(table)])


def as_text(table: Table) -> str:
    """Columns for a terminal."""
    return "\n".join([_laid_out(table, "plain"), "", *table.notes])


def as_latex(table: Table) -> str:
    """A table with its caption, for the package booktabs; the notes are comments."""
    kinds = "l" * (len(table.titles) - table.numbers) + "r" * table.numbers
    escaped = table._replace(titles=list(map(latex_text, table.titles)), lines=[
        ["{}" * (line[0][:1] in ("[", "*")) + latex_text(line[0]),  # which the \\ before would take
         *map(latex_text, line[1:])] for line in table.lines])
    return "\n".join([
        r"% \usepackage{booktabs}", r"\begin{table}", r"\centering",
        rf"\caption{{{table.caption}}}", rf"\label{{{table.label}}}",
        rf"\begin{{tabular}}{{{kinds}}}",
        _laid_out(_with_best(escaped, r"\\textbf{", "}"), _BOOKTABS),
        r"\end{tabular}", r"\end{table}", *(f"% {note}" for note in _notes(table))])


def latex_text(text: str) -> str:
    """Plain text as LaTeX prints it."""
    return _MINUS.sub("$-$", text.translate(_LATEX))


def as_json(table: Table) -> str:
    """Every number, unrounded."""
    return json.dumps({"rows": table.rows, "notes": table.notes}, ensure_ascii=False, indent=1)


FORMATS = {"markdown": as_markdown, "text": as_text, "latex": as_latex, "json": as_json}
