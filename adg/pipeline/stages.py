"""The nine stages in order: what each reads, writes, depends on. `provenance` acts on it."""

import hashlib
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from adg.base.paths import from_root
from adg.config import PATH_KEYS, TUNING_KEYS, Config, flatten
from adg.methods import outside_inputs
from adg.methods.method import EVERY
from adg.prompts import read_template


@dataclass(frozen=True)
class Stage:
    """What the pipeline knows of a stage.

    Inputs and outputs are paths in the run folder (a folder ends in /), inputs also names of things
    outside it (OUTSIDE). `{selection}`, `{measure}`, `{train}`, `{eval}` and `{subset}` stand for
    the configuration's names, `{benchmark}` for each of its benchmarks, `{window}` for each of its
    further windows of layers.
    """

    module: str
    keys: tuple[str, ...]  # configuration keys or sections that decide the output
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    optional_inputs: tuple[str, ...] = ()
    parallel: bool = False  # one process per GPU, under torchrun
    dear: bool = False  # costs hours: a changed parameter stops it, where others are redone
    grows: tuple[str, ...] = ()  # keys and inputs that may grow: what is there is kept and added to
    follows: tuple[str, ...] = ()  # inputs that may change at will: unchanged records keep theirs
    instance: str = ""  # the name that several outputs of this stage in one run folder differ by
    work: tuple[str, ...] = ()  # folders beside the outputs: unfinished work, what an option writes


OUTSIDE = ("pool.path", "model", "train.subset", "train.model", "train.deepspeed",
           "eval.data_dir", *outside_inputs())

_SUBSETS = tuple(f"subsets/{{selection}}/{name}"
                 for name in ("scores.jsonl", "top.json", "middle.json", "bottom.json",
                              "dataset_info.json", "README.md"))

STAGES = {
    "prepare": Stage(
        "generation.prepare_pool", keys=tuple(f"pool.{key}" for key in (
            "encoding", "limit", "schema", "fields", "multi_turn", "duplicates", "decontaminate",
            "max_rejected", "split", "revision")),
        inputs=("pool.path",), optional_inputs=("eval.data_dir",),
        outputs=("pool.jsonl", "rejected.jsonl", "contamination.jsonl"),
    ),
    "sample": Stage(
        "generation.sample_answers", parallel=True, dear=True,
        grows=("pool.jsonl",), follows=("pool.jsonl",),
        keys=("seed", "chunk_size", "model.dtype", "model.trust_remote_code", "generation"),
        inputs=("pool.jsonl", "model"), outputs=("answers/",),
        work=("check_answers/", "earlier/answers/", "earlier/keys/"),
    ),
    "embed": Stage(
        "embedding.embed", parallel=True, dear=True,
        grows=("pool.jsonl", "answers/"), follows=("pool.jsonl",),
        keys=("chunk_size", "model.dtype", "model.trust_remote_code", "embedding",
              *(f"generation.{key}" for key in (
                  "prompt", "prompt_file", "system_prompt", "max_prompt_tokens", "long_prompts",
                  "control_tokens", "max_model_len", "max_new_tokens", "num_answers"))),
        inputs=("pool.jsonl", "answers/", "model"),
        outputs=("instruction_embeddings/", "answer_grams/", "window_grams/{window}/"),
        work=("answer_embeddings/", *(f"earlier/{name}/" for name in (
            "instruction_embeddings", "answer_grams", "window_grams", "answer_embeddings"))),
    ),
    "cluster": Stage(
        "embedding.cluster", keys=("seed", "clustering"),
        inputs=("pool.jsonl", "instruction_embeddings/"), outputs=("bins.npy",),
    ),
    "measure": Stage(  # of a selection's method, which adds keys and inputs (adg.methods)
        "adg.measure", parallel=True, dear=True, grows=("pool.jsonl",),
        keys=("chunk_size", "selection.method", "generation.control_tokens"), instance="{measure}",
        inputs=("pool.jsonl",), outputs=("measures/{measure}/",),
        work=("measure_parts/{measure}/",),
    ),
    "select": Stage(  # as measure
        "adg.score_and_select", keys=EVERY, instance="{selection}",
        inputs=("pool.jsonl",), outputs=_SUBSETS,
    ),
    "finetune": Stage(
        "train.finetune", parallel=True, dear=True, instance="{train}",
        keys=("seed", "model.dtype", "model.trust_remote_code", "train",
              "generation.prompt_file", "generation.system_prompt", "generation.control_tokens"),
        inputs=("subsets/{selection}/{subset}.json", "train.model", "train.deepspeed"),
        outputs=("models/{train}/",),
        work=("train/{train}/",),
    ),
    "evaluate": Stage(
        "eval.run_benchmarks", parallel=True, dear=True, instance="{eval}",
        keys=("model.dtype", "model.trust_remote_code", "eval.backend", "eval.limit",
              "eval.max_new_tokens"),
        inputs=("models/{eval}/",), optional_inputs=("eval.data_dir",),
        outputs=("eval/{eval}/{benchmark}.json", "eval/{eval}/scores.json"), work=("eval/{eval}/",),
    ),
    "tables": Stage(
        "eval.tables", keys=(), inputs=("eval/*/scores.json",), outputs=("tables.md",),
    ),
}


def fill_in(template: str, config: Config) -> str:
    """A path template with the configuration's names."""
    return template.format(selection=config.selection.name, train=config.train.name,
                           eval=config.eval.name, subset=config.train.subset,
                           measure=config.selection.measure or "",
                           benchmark="{benchmark}", window="{window}")


def label_of(name: str, config: Config) -> str:
    """A stage with the name that its outputs in one run folder differ by: "finetune adg-top"."""
    return f"{name} {fill_in(STAGES[name].instance, config)}".strip()


def inputs_of(name: str, config: Config) -> tuple[list[str], list[str]]:
    """(required, optional) inputs of a stage, their names filled in."""
    stage, facts = STAGES[name], config.selection.facts()
    added, optional = {"select": (facts.inputs, facts.optional_inputs),
                       "measure": (facts.measure_inputs, ())}.get(name, ((), ()))
    if name == "prepare" and config.pool.decontaminate == "off":
        return list(stage.inputs), []
    required = [fill_in(template, config) for template in (*stage.inputs, *added)]
    if name == "evaluate" and config.eval.name == "base":
        required = ["model"]
    if name == "finetune" and config.train.subset_file() is not None:
        required[0] = "train.subset"
    return required, [fill_in(template, config)
                      for template in (*stage.optional_inputs, *optional)]


def needed_stages(config: Config) -> list[str]:
    """The stages that lead to this configuration's table, in order."""
    needed = {"finetune", "evaluate", "tables"}
    for name in reversed(STAGES):
        if name in needed:
            needed |= {producer_of(artefact) for artefact in inputs_of(name, config)[0]}
    return [name for name in STAGES if name in needed]


def outputs_of(name: str, config: Config) -> list[str]:
    """The outputs of a stage, their names filled in."""
    found = []
    if name == "measure" and not config.selection.facts().measures():
        return found
    for template in STAGES[name].outputs:
        path = fill_in(template, config)
        many = {"{benchmark}": config.eval.benchmarks, "{window}": config.embedding.windows}
        names = next((own for place, own in many.items() if place in path), [""])
        found += [path.format(benchmark=own, window=own) for own in names]
    if name == "prepare" and not config.compares_with_benchmarks():
        found.remove("contamination.jsonl")
    return found


def parameters_of(name: str, config: Config) -> dict[str, object]:
    """{"section.key": value} of the keys that decide a stage's output."""
    names = {f"{section}.name" for section in ("selection", "train", "eval")}
    facts = config.selection.facts()
    keys = (*STAGES[name].keys,
            *{"select": facts.keys, "measure": facts.measure_keys}.get(name, ()))
    return {key: _with_content(value) if key == "generation.prompt_file"
            else from_root(value) if key in PATH_KEYS and value is not None else value
            for key, value in flatten(config).items()
            if key not in TUNING_KEYS | names
            and any(key == own or key.startswith(own + ".") for own in keys)}


def _with_content(path: str | None) -> str | None:
    """A file's name and what tells its content from another's."""
    if path is None:
        return None
    text = "\n---\n".join(read_template(Path(path)))
    return f"{Path(path).name} ({hashlib.sha256(text.encode()).hexdigest()[:8]})"


def producer_of(artefact: str) -> str | None:
    """The stage that writes an artefact; None for what comes from outside the run folder."""
    for name, stage in STAGES.items():
        if artefact not in OUTSIDE and any(
                template.split("/")[0] == artefact.split("/")[0] for template in stage.outputs):
            return name
    return None


def model_of(name: str, config: Config) -> str:
    """The name or path of the model that `model`, `train.model` or a method's input stands for."""
    return _value(model_key(name, config), config)


def model_key(name: str, config: Config) -> str:
    """The configuration key that names this model: the backbone's where its own is null."""
    own = {"train.model": "train.model_name_or_path", **config.selection.facts().models}.get(name)
    return own if own and _value(own, config) else "model.name_or_path"


def _value(key: str, config: Config) -> Any:
    return reduce(getattr, key.split("."), config)
