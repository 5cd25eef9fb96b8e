"""Our rows of a table: what was evaluated in a run folder, and how it came about."""

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adg.base.errors import InputError
from adg.benchmarks import BENCHMARKS, groups
from adg.config import NOT_COMPARED_KEYS
from adg.methods import METHODS
from adg.pipeline.record import read_records
from adg.pipeline.sources import is_outside
from eval.published import Paper
from eval.rows import Cell, Design, Row

_SEEDS = ("selection.seed", "train.seed", "seed")  # a stage's own goes before that of all
_NOT_SHARED = ("train.deepspeed", "eval.data_dir")  # inputs that seeds of one cell may differ in


def rows_of(run: Path, paper: Paper) -> list[Row]:
    """The row of each evaluated model; InputError where there is none."""
    paths = sorted(run.glob("eval/*/scores.json"))
    if not run.is_dir():
        raise InputError(f"{run}/ not found")
    if not paths:
        raise InputError(f"{run}/eval/ holds no scores.json: run evaluate first")
    rows, records = [], read_records(run)
    for path in paths:
        result, name = _read_scores(path), path.parent.name
        behind = records_behind(records, name)
        parameters = [record.get("parameters", {}) for record in behind.values()]
        rows.append(Row(
            design_of(behind, name, paper), _cells(result), "ours", (f"{run.name}: {name}",),
            *_settings(parameters, _sources(behind, "sha256")),
            _differences(parameters, paper.settings), (path.parent,), result["questions"],
            _sources(behind, "whole")))
    return rows


def _read_scores(path: Path) -> dict[str, dict]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); remove it and run evaluate again"
                         ) from None
    if not isinstance(result, dict) or not {"scores", "groups", "questions"} <= result.keys():
        raise InputError(f"{path}: not written by evaluate; remove it and run evaluate again")
    return result


def _cells(result: dict) -> dict[str, Cell]:
    partial = {name for name, asked in result["questions"].items()
               if asked < BENCHMARKS[name].size}
    members = groups()
    members["Average"] = sum(members.values(), [])
    values = result["scores"] | {name: value for name, value in result["groups"].items()
                                 if value is not None}
    errors = result.get("stderr", {}) | result.get("group_stderr", {})
    return {name: Cell(value, stderr=errors.get(name),
                       partial=not partial.isdisjoint(members.get(name, [name])))
            for name, value in values.items()}


def records_behind(records: dict[str, dict], name: str) -> dict[str, dict]:
    """{label: record} of every stage that led to an evaluated model, in the order of the stages: a
    record names its inputs, and those that are another's outputs have that one behind them."""
    makers = {artefact: label for label, record in records.items()
              for artefact in {**record.get("grew_from", {}), **record.get("outputs", {})}}
    behind: dict[str, dict] = {}

    def add(label: str | None) -> None:
        if label in records and label not in behind:
            for artefact in records[label].get("inputs", {}):
                add(makers.get(artefact))
            behind[label] = records[label]

    add(f"finetune {name}")
    add(f"evaluate {name}")
    return behind


def _record(behind: dict[str, dict], stage: str) -> dict:
    """The record of a stage, whatever its name; {} where it left none."""
    return next((record for label, record in behind.items() if label.split()[0] == stage), {})


def _parameters(behind: dict[str, dict], stage: str) -> dict[str, Any]:
    return _record(behind, stage).get("parameters", {})


def _model(behind: dict[str, dict], stage: str, source: str) -> str:
    """The name of the model that a stage took; empty where it is not known."""
    return _record(behind, stage).get("inputs", {}).get(source, {}).get("name", "")


def design_of(behind: dict[str, dict], name: str, paper: Paper) -> Design:
    """What an evaluated model tries, from the records of the stages behind it."""
    sources = _record(behind, "finetune").get("inputs")
    if not sources:
        return Design("Base, not fine-tuned" if name == "base" else name,
                      paper.backbone(_model(behind, "evaluate", "model")))
    backbone = paper.backbone(sources["train.model"]["name"])
    if subset := sources.get("train.subset"):
        return Design(subset["name"], backbone)
    path = Path(next(source for source in sources if source.startswith("subsets/")))
    selected = _parameters(behind, "select")
    method = METHODS.get(selected.get("selection.method"))
    title = method.title if method else path.parent.name
    heeds_budget = "selection.budget" in selected and (method is None or method.heeds_budget)
    pool = _record(behind, "prepare").get("inputs", {}).get("pool.path", {}).get("name", "")
    return Design(
        title if path.stem == "top" else f"{title}, {path.stem}", backbone, paper.pool(pool),
        f"{selected['selection.budget']:,}" if heeds_budget else "",
        ", ".join(_variant(behind, backbone, paper)))


def _variant(behind: dict[str, dict], backbone: str, paper: Paper) -> Iterable[str]:
    """What of a selection is another row of the paper's, or would be."""
    selected, embedded = _parameters(behind, "select"), _parameters(behind, "embed")
    if selected.get("selection.method") == "adg":
        settings = paper.settings | embedded | _parameters(behind, "sample") | selected
        chooser = paper.backbone(_model(behind, "sample", "model"))
        if chooser and chooser != backbone:
            yield f"selected by {chooser}"
        number = settings["selection.num_answers"] or settings["generation.num_answers"]
        if number != paper.settings["generation.num_answers"]:
            yield f"K = {number}"
        layers = settings["embedding.windows"].get(settings["selection.window"],
                                                   settings["embedding.layers"])
        if layers != paper.settings["embedding.layers"]:
            yield f"layers {_range(layers)}"
        weight = settings["selection.anisotropy_weight"]
        if weight != paper.settings["selection.anisotropy_weight"]:
            yield f"lambda = {weight:g}"
        if "selection.score" in selected:  # not the paper's
            yield f"score {selected['selection.score']}"
        if "released" in (settings["selection.recipe"], settings["embedding.recipe"]):
            yield "recipe released"
    measurer = paper.backbone(_model(behind, "measure", "measure.model"))
    if selected.get("selection.method") == "ifd" and measurer and measurer != backbone:
        yield f"measured by {measurer}"


def _range(layers: list[int]) -> str:
    """0-3 of layers in a row, counted from the first."""
    first, last = min(layers), max(layers)
    in_a_row = sorted(layers) == list(range(first, last + 1))
    return f"{first}-{last}" if in_a_row and first >= 0 else str(layers)


def _sources(behind: dict[str, dict], key: str) -> dict[str, str]:
    """{input: hash} of the pool, models and files that an evaluated model came from."""
    return {name: source[key] for record in behind.values()
            for name, source in record.get("inputs", {}).items()
            if _is_shared(name) and key in source}


def _is_shared(name: str) -> bool:
    """Whether the seeds of one cell share an input: models, and the pool, which prepare need not
    have made."""
    return name == "pool.jsonl" or is_outside(name) and name not in _NOT_SHARED


def _settings(parameters: list[dict[str, Any]],
              sources: dict[str, str]) -> tuple[str, tuple[int, ...]]:
    """(every parameter but the seeds with the sources' hashes, the seed of each stage)."""
    seeds = tuple(next(values[key] for key in _SEEDS if values.get(key) is not None)
                  for values in parameters if "seed" in values)
    return json.dumps([*({key: value for key, value in values.items() if key not in _SEEDS}
                         for values in parameters), sources], sort_keys=True), seeds


def _differences(parameters: list[dict[str, Any]], recipe: dict[str, Any]) -> tuple[str, ...]:
    """Settings that are not the recipe's, in words: "train.epochs 1 (5)"."""
    settings = {key: value for values in parameters for key, value in values.items()}
    if "generation.top_p" in settings:
        settings.setdefault("generation.top_k", None)  # answers drawn before there was that key
    return tuple(f"{key} {_shown(value)} ({_shown(recipe[key])})" for key, value in settings.items()
                 if key in recipe and key not in NOT_COMPARED_KEYS and value != recipe[key])


def _shown(value: Any) -> str:
    return "null" if value is None else textwrap.shorten(str(value), 40, placeholder="...")
