"""What makes a folder of subsets a data set for others: dataset_info.json for LLaMA-Factory, and
README.md, the hub's data card."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adg.config import Config
from adg.methods.method import Told
from adg.pipeline.sources import model_of

_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
_ABOUT = {"top": "what the method chose", "middle": "the middle of its ranking, as a control",
          "bottom": "the end of its ranking, as a control"}


def dataset_info(config: Config, sizes: dict[str, int]) -> dict[str, Any]:
    """LLaMA-Factory's entry for each subset that has records."""
    return {f"{config.selection.name}-{name}": {"file_name": f"{name}.json", "columns": _COLUMNS}
            for name, size in sizes.items() if size}


def data_card(config: Config, sizes: dict[str, int], report: dict[str, Any], num_records: int,
              num_bins: int, names: dict[str, str]) -> str:
    """The README.md of a folder of subsets, with the hub's front matter.

    Of a pool of `num_records` in `num_bins`; `names` are the subsets' names of the fields that
    select adds.
    """
    front = ["---", "task_categories:", "- text-generation", "configs:"]
    for name, size in sizes.items():
        if size:
            front += [f"- config_name: {name}", f"  data_files: {name}.json"]
            front += ["  default: true"] * (name == "top")
    facts = config.selection.facts()
    seed = config.selection_seed() if "selection.seed" in facts.keys else config.seed
    how = facts.about(Told(config.selection.settings(), config.generation, num_bins,
                           [_public(model_of(name, config)) for name in facts.models]))
    source = config.pool.path if config.pool.on_hub() else Path(config.pool.path).name
    body = [f"# {config.selection.name}: {sizes['top']:,} of {num_records:,} records of {source}",
            "", how, ""]
    if config.pool.limit == num_records:
        body += [f"The pool is the first {num_records:,} usable records of {source} "
                 f"(`pool.limit`); what comes after them there was not looked at.", ""]
    body += [f"Backbone: {_public(config.model.name_or_path)}. Seed: {seed}. The records "
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
    if "quantiles" in report:
        shares = [float(share) for share in report["quantiles"]["score"]]
        body += ["", "| of the pool | " + " | ".join(f"{share:.0%}" for share in shares) + " |",
                 "| --- |" + " ---: |" * len(shares)]
        body += [f"| {name} | " + " | ".join(f"{value:.4f}" for value in values.values()) + " |"
                 for name, values in report["quantiles"].items()]
    return "\n".join([*front, "---", "", *body, ""])


def _listed(names: Iterable[str]) -> str:
    *first, last = (f"`{name}`" for name in names)
    return f"{', '.join(first)} and {last}" if first else last


def _public(name: str) -> str:
    """A hub's name as it is, a path without the folders of this machine."""
    return Path(name).name if Path(name).exists() else name
