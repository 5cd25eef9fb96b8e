"""What was evaluated and how it came about: rows of a table, from run folders and from the paper.

A row's identity is its cell of the paper's design: method, backbone, pool, budget and what else
differs from the paper's setting. Runs of one cell with several seeds become one row.
"""

import json
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from adg.base.errors import InputError
from adg.base.paths import ROOT
from adg.config import NOT_COMPARED_KEYS, flatten, load_config
from adg.method_facts import FACTS
from adg.pipeline.history import read_records
from adg.pipeline.stages import OUTSIDE
from eval.benchmarks import BENCHMARKS, GROUPS

PUBLISHED = Path(__file__).with_name("published.json")
COLUMNS = {name: benchmark.title for name, benchmark in BENCHMARKS.items()} | {
    group: group for group in (*GROUPS, "Average")}  # {key: title}
_BUDGET = 10_000
_RECIPE = ROOT / "configs" / "base" / "paper.yaml"
_SEEDS = ("selection.seed", "train.seed", "seed")  # a stage's own goes before that of all
# Inputs that the seeds of one cell share: models, and the pool, which prepare need not have made
_SOURCES = frozenset(("pool.jsonl", *OUTSIDE)) - {"train.deepspeed", "eval.data_dir"}


class Identity(NamedTuple):
    """One cell of the design; empty where it is not known."""

    method: str
    backbone: str = ""
    pool: str = ""
    budget: str = ""
    variant: str = ""  # what else differs from the paper's setting


class Cell(NamedTuple):
    """One number in percent: mean over the runs, their standard deviation, and what marks it."""

    value: float
    deviation: float | None = None  # over seeds, where there are several
    stderr: float | None = None  # of a single run, over the questions
    partial: bool = False  # fewer questions were asked than the benchmark has
    delta: float | None = None  # to the published number of the same cell


class Row(NamedTuple):
    """A line of a table."""

    identity: Identity
    cells: dict[str, Cell]
    source: str  # "ours" or "paper"
    names: tuple[str, ...] = ()  # RUN: NAME of each run behind it
    settings: str = ""  # every parameter but the seeds, and hashes of pool and models, as JSON
    seeds: tuple[int, ...] = ()  # of each stage that has one; empty where they are not known
    differs: tuple[str, ...] = ()  # settings other than the paper's, with the paper's
    folders: tuple[Path, ...] = ()  # RUN/eval/NAME of each run behind it
    asked: dict[str, int] = {}  # questions by benchmark
    whole: dict[str, str] = {}  # hashes of whole models by input, where they were taken


# Ours


def rows_of(run: Path, published: dict,
            recipe: dict[str, Any]) -> list[Row]:
    """The row of each evaluated model; InputError where there is none."""
    paths = sorted(run.glob("eval/*/scores.json"))
    if not run.is_dir():
        raise InputError(f"{run}/ is not there")
    if not paths:
        raise InputError(f"{run}/eval/ holds no scores.json: run evaluate first")
    found, records = [], defaultdict(dict, read_records(run))
    for path in paths:
        result, name = _read_scores(path), path.parent.name
        behind = [records[label] for label in _labels_behind(records, name)]
        parameters = [record.get("parameters", {}) for record in behind]
        row = Row(identify(records, name, published), _cells(result), "ours",
                  (f"{run.name}: {name}",), *_settings(parameters, _sources(behind)),
                  _differences(parameters, recipe), (path.parent,), result["questions"],
                  _sources(behind, "whole"))
        found.append(row)
    return found


def _read_scores(path: Path) -> dict[str, dict]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); remove it and run evaluate again"
                         ) from None
    if not isinstance(result, dict) or not {"scores", "groups", "questions"} <= result.keys():
        raise InputError(f"{path}: not what evaluate writes; remove it and run evaluate again")
    return result


def _cells(result: dict) -> dict[str, Cell]:
    partial = {name for name, asked in result["questions"].items()
               if asked < BENCHMARKS[name].questions}
    groups = {group: {name for name, own in BENCHMARKS.items() if own.group == group}
              for group in GROUPS}
    groups["Average"] = set().union(*groups.values())
    values = result["scores"] | {name: value for name, value in result["groups"].items()
                                 if value is not None}
    errors = result.get("stderr", {}) | result.get("group_stderr", {})
    return {name: Cell(value, stderr=errors.get(name),
                       partial=bool(partial & groups.get(name, {name})))
            for name, value in values.items()}


def identify(records: dict[str, dict], name: str, published: dict) -> Identity:
    """The cell of an evaluated model, from the records that the stages left, {} where one did not.
    """
    tuned = records[f"finetune {name}"]
    if not tuned:
        base = records[f"evaluate {name}"].get("inputs", {}).get("model", {})
        return Identity("Base, not fine-tuned" if name == "base" else name,
                        _known(base.get("name", ""), published["backbones"]))
    backbone = _known(tuned["inputs"]["train.model"]["name"], published["backbones"])
    subset = tuned["inputs"].get("train.subset")
    if subset:
        return Identity(subset["name"], backbone)
    path = next(source for source in tuned["inputs"] if source.startswith("subsets/"))
    selection, subset = path.split("/")[1], Path(path).stem
    selected = records[f"select {selection}"].get("parameters", {})
    measured = records[_measure_of(records, selection)]
    facts = FACTS.get(selected.get("selection.method"))
    method = facts.title if facts else selection
    budget = "selection.budget" in selected and (facts is None or facts.heeds_budget)
    pool = records["prepare"].get("inputs", {}).get("pool.path", {}).get("name", "")
    return Identity(
        method if subset == "top" else f"{method}, {subset}", backbone,
        _known(pool, published["pools"]),
        f"{selected['selection.budget']:,}" if budget else "",
        ", ".join([*_variant(records, method, backbone, selected, published),
                   *_measured_by(method, backbone, measured, published)]))


def _variant(records: dict[str, dict], method: str, backbone: str, selected: dict,
             published: dict) -> Iterable[str]:
    if method != "ADG":
        return
    drawn, embedded = records["sample"], records["embed"]
    chooser = _known(drawn.get("inputs", {}).get("model", {}).get("name", ""),
                     published["backbones"])
    if chooser and chooser != backbone:
        yield f"selected by {chooser}"
    number = (selected.get("selection.num_answers")
              or drawn.get("parameters", {}).get("generation.num_answers", 5))
    if number != 5:
        yield f"K = {number}"
    settings = embedded.get("parameters", {})
    window = selected.get("selection.window")
    layers = settings.get("embedding.windows", {}).get(window, settings.get("embedding.layers"))
    if layers not in (None, [-4, -3, -2, -1]):
        whole = sorted(layers) == list(range(min(layers), max(layers) + 1))
        shown = f"{min(layers)}-{max(layers)}" if whole and min(layers) >= 0 else layers
        yield f"layers {shown}"
    weight = selected.get("selection.anisotropy_weight", 0.4)
    if weight != 0.4:
        yield f"lambda = {weight:g}"
    recipes = {selected.get("selection.recipe", "paper"), settings.get("embedding.recipe", "paper")}
    if "released" in recipes:
        yield "recipe released"


def _measured_by(method: str, backbone: str, measured: dict, published: dict) -> Iterable[str]:
    """By which model IFD was measured, where it is not the one that is fine-tuned."""
    name = measured.get("inputs", {}).get("measure.model", {}).get("name", "")
    if method == FACTS["ifd"].title and name and _known(name, published["backbones"]) != backbone:
        yield f"measured by {_known(name, published['backbones'])}"


def _measure_of(records: dict[str, dict], selection: str) -> str:
    """The label of the measure that a selection was made from."""
    sources = records[f"select {selection}"].get("inputs", {})
    return next((f"measure {source.split('/')[1]}" for source in sources
                 if source.startswith("measures/")), "")


def _labels_behind(records: dict[str, dict], name: str) -> list[str]:
    """The labels of every stage that led to an evaluated model."""
    labels = []
    for source in records[f"finetune {name}"].get("inputs", {}):
        if source.startswith("subsets/"):
            chosen = f"select {source.split('/')[1]}"
            method = records[chosen].get("parameters", {}).get("selection.method", "adg")
            labels += ["prepare", *(("sample", "embed", "cluster") if method == "adg" else ()),
                       _measure_of(records, source.split("/")[1]), chosen]
    return [*labels, f"finetune {name}", f"evaluate {name}"]


def _sources(behind: list[dict], key: str = "sha256") -> dict[str, str]:
    """{input: SHA-256} of the pool, models and files that an evaluated model came from."""
    return {name: source[key] for record in behind
            for name, source in record.get("inputs", {}).items()
            if name in _SOURCES and key in source}


def _settings(parameters: list[dict[str, Any]],
              sources: dict[str, str]) -> tuple[str, tuple[int, ...]]:
    """(every parameter but the seeds with the sources' hashes, the seed of each stage)."""
    seeds = tuple(next(own[key] for key in _SEEDS if own.get(key) is not None)
                  for own in parameters if "seed" in own)
    return json.dumps([*({key: value for key, value in own.items() if key not in _SEEDS}
                         for own in parameters), sources]), seeds


def paper_settings() -> dict[str, Any]:
    """{"section.key": value} of the paper's recipe."""
    return flatten(load_config(_RECIPE, [
        f"{key}=none" for key in ("output_dir", "model.name_or_path", "pool.path")]))


def _differences(behind: list[dict[str, Any]], recipe: dict[str, Any]) -> tuple[str, ...]:
    """Settings that are not the recipe's, in words: "train.epochs 1 (5)"."""
    found = {key: value for own in behind for key, value in own.items()}
    if "generation.top_p" in found:
        found.setdefault("generation.top_k", None)  # answers drawn before there was that key
    return tuple(f"{key} {_shown(value)} ({_shown(recipe[key])})" for key, value in found.items()
                 if key in recipe and key not in NOT_COMPARED_KEYS and value != recipe[key])


def _shown(value: Any) -> str:
    return "null" if value is None else textwrap.shorten(str(value), 40, placeholder="...")


def _known(name: str, aliases: dict[str, list[str]]) -> str:
    """The paper's name of a model or pool, else its own without folders and revision."""
    path = Path(name)
    if path.parent.name == "snapshots":  # of the hub's cache: models--OWNER--NAME/snapshots/COMMIT
        path = Path(path.parents[1].name.replace("--", "/"))
    last = path.name.partition("@")[0]
    return next((known for known, others in aliases.items() if last in others), last)


def by_cell(rows: Iterable[Row]) -> list[Row]:
    """One row for runs that differ by their seed alone: means and standard deviations."""
    grouped: dict[tuple, list[Row]] = {}
    for row in rows:
        key = (row.identity, row.settings)
        others = grouped.get(key, ())
        if (not row.seeds or row.seeds in [other.seeds for other in others]
                or any(_other_models(row, other) for other in others)):
            key = (*key, row.names)  # not known to be another seed: a row of its own
        grouped.setdefault(key, []).append(row)
    return [own[0] if len(own) == 1 else _averaged(key[0], own) for key, own in grouped.items()]


def _other_models(row: Row, other: Row) -> bool:
    """Whether two rows have models that differ as a whole, though their samples are the same."""
    return any(other.whole.get(name, value) != value for name, value in row.whole.items())


def _averaged(identity: Identity, rows: list[Row]) -> Row:
    cells = {}
    for name in COLUMNS:
        own = [row.cells[name] for row in rows if name in row.cells]
        if len(own) == len(rows):
            values = [cell.value for cell in own]
            cells[name] = Cell(statistics.fmean(values), statistics.stdev(values),
                               partial=any(cell.partial for cell in own))
    return Row(identity, cells, "ours", tuple(name for row in rows for name in row.names),
               differs=rows[0].differs, folders=tuple(row.folders[0] for row in rows),
               asked=rows[0].asked)


# The paper's


def read_published() -> dict:
    """The paper's numbers, and by what names models and pools go."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))


def published_rows(published: dict) -> list[Row]:
    """Every published row of the main table, the ablations and the Chinese pool."""
    rows, names = [], published["columns"]
    for backbone, methods in published["main"].items():
        for method, pools in methods.items():
            budget = "" if method == "All Data" else f"{_BUDGET:,}"
            rows += [_paper(Identity(method, backbone, pool, budget), names, numbers)
                     for pool, numbers in pools.items()]
    setting = {"pool": "Alpaca-GPT4", "budget": f"{_BUDGET:,}"}
    for pair, numbers in published["cross_backbone"].items():
        backbone, chooser = pair.split(" from ")
        rows.append(_paper(Identity("ADG", backbone, **setting, variant=f"selected by {chooser}"),
                           names, numbers))
    for key, label in (("num_answers", "K = {}"), ("layers", "layers {}")):
        rows += [_paper(Identity("ADG", "LLaMA3-8B", **setting, variant=label.format(value)),
                        ["Average"], [number]) for value, number in published[key].items()]
    chinese = published["chinese"]
    rows += [_paper(Identity(method, pool="Alpaca-GPT4 Chinese"), ["cmmlu", "ceval-valid"], numbers)
             for method, numbers in chinese.items() if method != "columns"]
    return rows


def _paper(identity: Identity, names: list[str], numbers: list[float]) -> Row:
    return Row(identity, {name: Cell(number) for name, number in zip(names, numbers, strict=True)},
               "paper")


def with_deltas(ours: list[Row], paper: list[Row]) -> list[Row]:
    """Our rows, each number beside how far it lies from the published one of the same cell.

    A number on a part of a benchmark, or of other settings than the paper's, compares with nothing,
    and gets none.
    """
    known = {row.identity: row.cells for row in paper}
    return [row if row.differs else row._replace(cells={
        name: cell if cell.partial or name not in (theirs := known.get(row.identity, {}))
        else cell._replace(delta=cell.value - theirs[name].value)
        for name, cell in row.cells.items()}) for row in ours]


def beside(ours: list[Row], paper: list[Row], *, some: bool) -> list[Row]:
    """The published rows of our backbones and pools; `some`: where there are none, Random and ADG
    on Alpaca-GPT4."""
    cells = {(row.identity.backbone, row.identity.pool) for row in ours}
    cells |= {("", row.identity.pool) for row in ours}
    variants = {row.identity.variant for row in ours} | {""}
    near = [row for row in paper if (row.identity.backbone, row.identity.pool) in cells
            and row.identity.variant in variants]
    return near or [row for row in paper if some and row.identity.method in ("Random", "ADG")
                    and row.identity.pool == "Alpaca-GPT4" and not row.identity.variant]


def named(rows: list[Row], name: str) -> list[Row]:
    """The rows of a name: RUN: NAME, NAME alone, or a method; InputError where there is none."""
    found = [row for row in rows if name in (row.identity.method, ", ".join(row.names), *row.names,
                                             *(own.split(": ", 1)[1] for own in row.names))]
    if not found:
        raise InputError(f"no row is called {name}; there are: "
                         + "; ".join(f"{', '.join(row.names)} ({row.identity.method})"
                                     for row in rows))
    return found


def best_cells(rows: list[Row]) -> set[tuple[int, str]]:
    """(row, column) of the highest number of each column among several rows of one backbone; a
    number on a part of a benchmark is compared with its like."""
    groups: dict[tuple, list[tuple[float, int]]] = defaultdict(list)
    for place, row in enumerate(rows):
        for name, cell in row.cells.items():
            groups[row.identity.backbone, cell.partial, name].append((cell.value, place))
    return {(place, name) for (*_, name), values in groups.items()
            for value, place in values if value == max(values)[0] > min(values)[0]}


def artifact(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows as JSON has them."""
    return [{"source": row.source, **row.identity._asdict(), "runs": list(row.names),
             "other_settings": list(row.differs),
             "numbers": {name: {key: value for key, value in row.cells[name]._asdict().items()
                                if value is not None} for name in COLUMNS if name in row.cells}}
            for row in rows]
