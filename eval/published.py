"""The paper's rows of a table, its settings, and the names by which it knows models and pools."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from adg.base.paths import ROOT
from adg.config import flatten, load_config
from adg.methods import METHODS
from eval.rows import Cell, Design, Row

_NUMBERS = Path(__file__).with_name("published.json")
_RECIPE = ROOT / "configs" / "base" / "paper.yaml"
_POOL = "Alpaca-GPT4"  # of the ablations
_ADG = METHODS["adg"].title


class Paper(NamedTuple):
    """What our rows are compared with."""

    numbers: dict[str, Any]  # published.json
    settings: dict[str, Any]  # {"section.key": value} of the paper's recipe

    def backbone(self, name: str) -> str:
        """The paper's name of a model, else its own without folders and revision."""
        return _alias(name, self.numbers["backbones"])

    def pool(self, name: str) -> str:
        """The same of a pool."""
        return _alias(name, self.numbers["pools"])


def read_paper() -> Paper:
    """The paper's numbers and settings."""
    settings = flatten(load_config(_RECIPE, [
        f"{key}=none" for key in ("output_dir", "model.name_or_path", "pool.path")]))
    return Paper(json.loads(_NUMBERS.read_text(encoding="utf-8")), settings)


def _alias(name: str, aliases: dict[str, list[str]]) -> str:
    path = Path(name)
    if path.parent.name == "snapshots":  # of the hub's cache: models--OWNER--NAME/snapshots/COMMIT
        path = Path(path.parents[1].name.replace("--", "/"))
    last = path.name.partition("@")[0]
    return next((alias for alias, names in aliases.items() if last in names), last)


def published_rows(paper: Paper) -> list[Row]:
    """Every published row of the main table, the ablations and the Chinese pool."""
    numbers, rows = paper.numbers, []
    budget = f"{paper.settings['selection.budget']:,}"
    whole_pool = {method.title for method in METHODS.values() if not method.heeds_budget}
    for backbone, methods in numbers["main"].items():
        for method, pools in methods.items():
            rows += [_row(Design(method, backbone, pool, "" if method in whole_pool else budget),
                          numbers["columns"], values) for pool, values in pools.items()]
    for pair, values in numbers["cross_backbone"].items():
        backbone, chooser = pair.split(" from ")
        rows.append(_row(Design(_ADG, backbone, _POOL, budget, f"selected by {chooser}"),
                         numbers["columns"], values))
    for key, variant in (("num_answers", "K = {}"), ("layers", "layers {}")):
        rows += [_row(Design(_ADG, "LLaMA3-8B", _POOL, budget, variant.format(setting)),
                      ["Average"], [value]) for setting, value in numbers[key].items()]
    rows += [_row(Design(method, pool="Alpaca-GPT4 Chinese"), ["cmmlu", "ceval-valid"], values)
             for method, values in numbers["chinese"].items() if method != "columns"]
    return rows


def _row(design: Design, names: list[str], values: list[float]) -> Row:
    return Row(design, {name: Cell(value) for name, value in zip(names, values, strict=True)},
               "paper")


def with_deltas(ours: list[Row], published: list[Row]) -> list[Row]:
    """Our rows, each number beside how far it lies from the published one of the same cell.

    A number on a part of a benchmark, or of other settings than the paper's, compares with nothing,
    and gets none.
    """
    cells = {row.design: row.cells for row in published}
    return [row if row.differs else row._replace(cells={
        name: cell if cell.partial or name not in (theirs := cells.get(row.design, {}))
        else cell._replace(delta=cell.value - theirs[name].value)
        for name, cell in row.cells.items()}) for row in ours]


def beside(ours: list[Row], published: list[Row], *, some: bool) -> list[Row]:
    """The published rows of our backbones and pools; `some`: where there are none, Random and ADG
    on Alpaca-GPT4."""
    cells = {(row.design.backbone, row.design.pool) for row in ours}
    cells |= {("", row.design.pool) for row in ours}
    variants = {row.design.variant for row in ours} | {""}
    near = [row for row in published if (row.design.backbone, row.design.pool) in cells
            and row.design.variant in variants]
    return near or [row for row in published if some and row.design.pool == _POOL
                    and row.design.method in (METHODS["random"].title, _ADG)
                    and not row.design.variant]
