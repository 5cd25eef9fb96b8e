"""The nine stages in order: all that the pipeline knows of a stage stands in its row."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from adg.base.paths import from_root
from adg.config import PATH_KEYS, TUNING_KEYS, Config, flatten
from adg.methods.method import EVERY
from adg.pipeline import checks, outlook
from adg.prompts import read_template

_NAMES = {"selection.name", "train.name", "eval.name"}  # they name a result and change none


def _nothing(*_: object) -> list[str]:
    return []


def _accept(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Stage:
    """One stage.

    What it reads and writes are paths in the run folder (a folder ends in /); what it reads may
    also be the name of a source outside it (adg.pipeline.sources).
    """

    module: str
    keys: tuple[str, ...]  # configuration keys or sections that decide what it writes
    reads: Callable[[Config], list[str]]
    writes: Callable[[Config], list[str]]
    reads_if_present: Callable[[Config], list[str]] = _nothing
    method_keys: Callable[[Config], tuple[str, ...]] = lambda c: ()  # further `keys`
    name: Callable[[Config], str] = lambda c: ""  # where one run folder may hold several results
    wanted: bool = False  # in every run, whether or not a later stage reads what it writes
    torchrun: bool = False  # one process per GPU
    gpus: Callable[[Config], int] = lambda c: 1  # that each of these processes takes
    expensive: bool = False  # hours of work: a changed key is refused, where others are redone
    speed_by_name: bool = False  # records/s of one name say nothing of another's
    grows: tuple[str, ...] = ()  # inputs that may grow: what was made is kept and added to
    follows: tuple[str, ...] = ()  # inputs that may change freely: unchanged records keep theirs
    reports: tuple[str, ...] = ()  # outputs that output made elsewhere may lack
    leftovers: Callable[[Config], list[str]] = _nothing  # unfinished or optional, beside `writes`
    check: Callable[[Config], None] = _accept  # InputError, before the pipeline's first stage
    check_pool: Callable[[Config, int], None] | None = None  # before an earlier expensive stage: by
    # the number of records; the model is a folder by then
    outlook: Callable[[Config, int], list[str]] = _nothing  # of so many records, for --dry-run
    arguments: Callable[[Config, list[str]], list[str]] = lambda c, words: words  # of its command


def _in(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


_WEIGHTS = ("model.dtype", "model.trust_remote_code")
_IN_EARLIER = ("instruction_embeddings", "answer_grams", "window_grams", "answer_embeddings")
_IN_SUBSETS = ("scores.jsonl", "top.json", "middle.json", "bottom.json", "dataset_info.json",
               "README.md")

STAGES = {
    "prepare": Stage(
        "generation.prepare_pool",
        keys=_in("pool", "encoding", "limit", "schema", "fields", "multi_turn", "duplicates",
                 "decontaminate", "max_rejected", "split", "revision"),
        reads=lambda c: ["pool.path"],
        reads_if_present=lambda c: ["eval.data_dir"] if c.pool.decontaminate != "off" else [],
        writes=lambda c: ["pool.jsonl", "rejected.jsonl",
                          *["contamination.jsonl"] * c.compares_with_benchmarks()],
        reports=("rejected.jsonl", "contamination.jsonl"),
        check=checks.check_pool_path,
    ),
    "sample": Stage(
        "generation.sample_answers", torchrun=True, expensive=True,
        gpus=lambda c: c.model.tensor_parallel_size,
        keys=("seed", "chunk_size", *_WEIGHTS, "generation"),
        reads=lambda c: ["pool.jsonl", "model"], writes=lambda c: ["answers/"],
        leftovers=lambda c: ["check_answers/", "earlier/answers/", "earlier/keys/"],
        grows=("pool.jsonl",), follows=("pool.jsonl",),
        check=checks.check_backbone,
    ),
    "embed": Stage(
        "embedding.embed", torchrun=True, expensive=True,
        gpus=lambda c: c.embedding.gpus_per_model,
        keys=("chunk_size", *_WEIGHTS, "embedding", *_in(
            "generation", "prompt", "prompt_file", "system_prompt", "max_prompt_tokens",
            "long_prompts", "control_tokens", "max_model_len", "max_new_tokens", "num_answers")),
        reads=lambda c: ["pool.jsonl", "answers/", "model"],
        writes=lambda c: ["instruction_embeddings/", "answer_grams/",
                          *(f"window_grams/{window}/" for window in c.embedding.windows)],
        leftovers=lambda c: ["answer_embeddings/", *(f"earlier/{name}/" for name in _IN_EARLIER)],
        grows=("pool.jsonl", "answers/"), follows=("pool.jsonl",),
        check=checks.check_backbone, check_pool=lambda c, _: checks.check_layers(c),
        outlook=outlook.of_vectors,
    ),
    "cluster": Stage(
        "embedding.cluster", keys=("seed", "clustering"),
        reads=lambda c: ["pool.jsonl", "instruction_embeddings/"], writes=lambda c: ["bins.npy"],
        check=checks.check_scratch, check_pool=checks.check_bins, outlook=outlook.of_bins,
    ),
    "measure": Stage(
        "adg.measure", torchrun=True, expensive=True, speed_by_name=True,
        gpus=lambda c: c.embedding.gpus_per_model,
        name=lambda c: c.selection.measure or "",
        keys=("chunk_size", "selection.method", "generation.control_tokens"),
        method_keys=lambda c: c.selection.facts().measure_keys,
        reads=lambda c: ["pool.jsonl", *c.selection.facts().measure_inputs],
        writes=lambda c: [f"measures/{c.selection.measure}/"] * c.selection.facts().measures(),
        leftovers=lambda c: [f"measure_parts/{c.selection.measure}/"] * bool(c.selection.measure),
        grows=("pool.jsonl",),
        check=checks.check_method_models,
    ),
    "select": Stage(
        "adg.score_and_select", name=lambda c: c.selection.name,
        keys=EVERY,
        method_keys=lambda c: c.selection.facts().keys,
        reads=lambda c: ["pool.jsonl", *c.selection.facts().inputs],
        reads_if_present=lambda c: list(c.selection.facts().optional_inputs),
        writes=lambda c: [f"subsets/{c.selection.name}/{file}" for file in _IN_SUBSETS],
        check=checks.check_method_files, check_pool=checks.check_budget, outlook=outlook.of_choice,
    ),
    "finetune": Stage(
        "train.finetune", torchrun=True, expensive=True, wanted=True, name=lambda c: c.train.name,
        keys=("seed", *_WEIGHTS, "train", *_in("generation", "prompt_file", "system_prompt",
                                               "control_tokens")),
        reads=lambda c: ["train.subset" if c.train.subset_file() else
                         f"subsets/{c.selection.name}/{c.train.subset}.json",
                         "train.model", "train.deepspeed"],
        writes=lambda c: [f"models/{c.train.name}/"],
        leftovers=lambda c: [f"train/{c.train.name}/"],
        check=checks.check_training, outlook=outlook.of_training,
    ),
    "evaluate": Stage(
        "eval.run_benchmarks", torchrun=True, expensive=True, wanted=True,
        gpus=lambda c: c.model.tensor_parallel_size if c.eval.backend == "vllm" else 1,
        name=lambda c: c.eval.name,
        keys=(*_WEIGHTS, "eval.backend", "eval.limit", "eval.max_new_tokens"),
        reads=lambda c: ["model" if c.eval.name == "base" else f"models/{c.eval.name}/"],
        reads_if_present=lambda c: ["eval.data_dir"],
        writes=lambda c: [f"eval/{c.eval.name}/{file}.json"
                          for file in (*c.eval.benchmarks, "scores")],
        leftovers=lambda c: [f"eval/{c.eval.name}/"],
        check=checks.check_benchmarks, outlook=lambda c, _: [", ".join(c.eval.benchmarks)],
    ),
    "tables": Stage(
        "eval.tables", keys=(), wanted=True,
        reads=lambda c: ["eval/*/scores.json"], writes=lambda c: ["tables.md"],
        arguments=lambda c, words: [c.output_dir,
                                    "--dry-run" if "--dry-run" in words else "--quiet"],
    ),
}


def label_of(name: str, config: Config) -> str:
    """A stage with the name of its result: "finetune adg-top"."""
    return f"{name} {STAGES[name].name(config)}".strip()


def inputs_of(name: str, config: Config) -> tuple[list[str], list[str]]:
    """What a stage reads: (what it needs, what it takes where that is present)."""
    return STAGES[name].reads(config), STAGES[name].reads_if_present(config)


def outputs_of(name: str, config: Config) -> list[str]:
    """What a stage writes."""
    return STAGES[name].writes(config)


def needed_stages(config: Config) -> list[str]:
    """The stages that lead to this configuration's table, in order."""
    needed = {name for name, stage in STAGES.items() if stage.wanted}
    for name in reversed(STAGES):
        if name in needed:
            needed |= {producer_of(artefact, config) for artefact in STAGES[name].reads(config)}
    return [name for name in STAGES if name in needed]


def producer_of(artefact: str, config: Config) -> str | None:
    """The stage that writes an artefact under this configuration; None where none does."""
    return next((name for name, stage in STAGES.items() if artefact in stage.writes(config)), None)


# Of any configuration: every name is a pattern
_ANY: Any = SimpleNamespace(
    selection=SimpleNamespace(name="*", measure="*",
                              facts=lambda: SimpleNamespace(measures=lambda: True)),
    train=SimpleNamespace(name="*"), eval=SimpleNamespace(name="*", benchmarks=["*"]),
    embedding=SimpleNamespace(windows=["*"]), compares_with_benchmarks=lambda: True)


def maker_of(artefact: str) -> str | None:
    """The stage that writes an artefact, under whatever configuration; None for a source."""
    return next((name for name, stage in STAGES.items()
                 if any(fnmatch(artefact, pattern) for pattern in stage.writes(_ANY))), None)


def parameters_of(name: str, config: Config) -> dict[str, object]:
    """{"section.key": value} of the keys that decide a stage's output."""
    keys = (*STAGES[name].keys, *STAGES[name].method_keys(config))
    return {key: _with_content(value) if key == "generation.prompt_file"
            else from_root(value) if key in PATH_KEYS and value is not None else value
            for key, value in flatten(config).items()
            if key not in TUNING_KEYS | _NAMES
            and any(key == prefix or key.startswith(prefix + ".") for prefix in keys)}


def _with_content(path: str | None) -> str | None:
    """A file's name and what tells its content from another's."""
    if path is None:
        return None
    text = "\n---\n".join(read_template(Path(path)))
    return f"{Path(path).name} ({hashlib.sha256(text.encode()).hexdigest()[:8]})"
