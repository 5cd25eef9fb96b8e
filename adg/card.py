"""What makes a folder of subsets a data set for others: dataset_info.json for LLaMA-Factory, and
README.md, the hub's data card."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
_ABOUT = {"top": "what the method chose", "middle": "the middle of its ranking, as a control",
          "bottom": "the end of its ranking, as a control"}


class Subject(NamedTuple):
    """What a folder of subsets was made from, as others are told."""

    name: str  # of the selection
    how: str  # records were chosen, a sentence
    pool: str
    num_records: int  # of the pool
    is_head: bool  # whether the pool is the beginning of a longer one
    backbone: str
    seed: int


def public(name: str) -> str:
    """A hub's name as it is, a path without the folders of this machine."""
    return Path(name).name if Path(name).exists() else name


def dataset_info(name: str, sizes: dict[str, int]) -> dict[str, Any]:
    """LLaMA-Factory's entry for each subset of selection `name` that has records."""
    return {f"{name}-{subset}": {"file_name": f"{subset}.json", "columns": _COLUMNS}
            for subset, size in sizes.items() if size}


def data_card(subject: Subject, sizes: dict[str, int], names: dict[str, str],
              quantiles: dict[str, dict[str, float]] | None = None) -> str:
    """The README.md of a folder of subsets, with the hub's front matter.

    `names` are the subsets' names of the fields that select adds, `quantiles` those of columns of
    scores.jsonl.
    """
    body = [f"# {subject.name}: {sizes['top']:,} of {subject.num_records:,} records of "
            f"{subject.pool}", "", subject.how, ""]
    if subject.is_head:
        body += [f"The pool is the first {subject.num_records:,} usable records of {subject.pool} "
                 f"(`pool.limit`); what comes after them there was not looked at.", ""]
    body += [f"Backbone: {subject.backbone}. Seed: {subject.seed}. The records "
             f"are those of the pool, whose licence holds for them.", "",
             "| file | records | what |", "| --- | --- | --- |"]
    body += [f"| `{name}.json` | {size:,} | {_ABOUT[name]} |"
             for name, size in sizes.items() if size]
    body += ["", f"Each record has `instruction`, `input`, `output`, its other fields, and where "
             f"there are any {_listed(names.values())}. `scores.jsonl` has a line for every record "
             f"of the pool."]
    if renamed := [field for field, name in names.items() if name != field]:
        body += ["", f"The pool has fields of its own named {_listed(renamed)}, which are as they "
                 f"were: those of the selection are {_listed(names[field] for field in renamed)}."]
    if quantiles:
        body += ["", *_quantiles(quantiles)]
    return "\n".join([*_front_matter(sizes), "", *body, ""])


def _front_matter(sizes: dict[str, int]) -> list[str]:
    lines = ["---", "task_categories:", "- text-generation", "configs:"]
    for name, size in sizes.items():
        if size:
            lines += [f"- config_name: {name}", f"  data_files: {name}.json"]
            lines += ["  default: true"] * (name == "top")
    return [*lines, "---"]


def _quantiles(quantiles: dict[str, dict[str, float]]) -> list[str]:
    """A Markdown table of the columns' quantiles."""
    shares = [f"{float(share):.0%}" for share in quantiles["score"]]
    return [f"| of the pool | {' | '.join(shares)} |", "| --- |" + " ---: |" * len(shares),
            *(f"| {name} | " + " | ".join(f"{value:.4f}" for value in values.values()) + " |"
              for name, values in quantiles.items())]


def _listed(names: Iterable[str]) -> str:
    *first, last = (f"`{name}`" for name in names)
    return f"{', '.join(first)} and {last}" if first else last
