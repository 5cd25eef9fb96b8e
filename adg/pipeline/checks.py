"""What a stage refuses of a configuration, checked too by the pipeline before the first stage."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from adg.base.errors import InputError
from adg.base.paths import looked_in
from adg.config import Config
from adg.config_sections import REPORTERS
from adg.models.folders import describe, source_of
from adg.models.layers import windows_of

CODE_BENCHMARKS = ("mbpp", "humaneval")  # run programs that the model writes


def code_benchmarks(config: Config) -> list[str]:
    """The benchmarks of the configuration that run programs that the model writes."""
    return [name for name in config.eval.benchmarks if name in CODE_BENCHMARKS]


def check_consent(config: Config) -> None:
    """InputError where a benchmark runs the model's programs and nobody has allowed that."""
    names = code_benchmarks(config)
    if names and not config.eval.allow_code_execution:
        raise InputError(f"eval.allow_code_execution is false, but {' and '.join(names)} run "
                         f"programs that the model writes: set it to true, or take them out of "
                         f"eval.benchmarks")


def check_sandbox(config: Config) -> None:
    """InputError where programs must run in a sandbox and none works on this machine."""
    if code_benchmarks(config) and config.eval.sandbox == "require":
        probe = subprocess.run([sys.executable, "-m", "eval.programs", "require"], check=False,
                               capture_output=True, text=True)
        if probe.returncode:
            raise InputError(probe.stderr.strip().removeprefix("error: "))


def check_layers(config: Config) -> None:
    """InputError where the backbone has not the layers that embedding asks for.

    A GGUF file is looked at when it has been made a folder.
    """
    source = source_of(config.model.name_or_path)
    if source.is_dir():
        described = describe(source, trust_remote_code=config.model.trust_remote_code)
        windows_of(config.embedding, described.num_hidden_layers)


def note_on_two_answers(config: Config, num_answers: float) -> str | None:
    """What a person should know who asks for anisotropy of `num_answers` answers; None for more
    than two, or where it does not count."""
    weight = config.selection.anisotropy_weight
    if config.selection.method != "adg" or num_answers != 2 or weight == 0:
        return None
    return ("the anisotropy of two answers is 0 by construction (they lie on a line): "
            + ("with selection.anisotropy_weight=1 all scores are 0, and select refuses them"
               if weight == 1 else f"dispersion alone decides, and selection.anisotropy_weight "
               f"({weight:g}) only scales the score"))


def check_bins(config: Config, num_records: int) -> None:
    """InputError where there are fewer records than the bins that they are to be put into."""
    if config.selection.method == "adg":
        _at_most("clustering.num_bins", config.clustering.count_bins(num_records), num_records,
                 or_else="null, for a tenth of the records")


def check_budget(config: Config, num_records: int) -> None:
    """InputError where there are fewer records than the budget or the method's own sizes ask for.
    """
    selection = config.selection
    if selection.facts().heeds_budget:
        _at_most("selection.budget", selection.budget, num_records)
    if selection.method == "pre_experience":
        _at_most("selection.pre_experience.clusters", selection.pre_experience.clusters,
                 num_records)
    if selection.method == "superfiltering_d":
        key, candidates = "selection.superfiltering.candidates", selection.superfiltering.candidates
        _at_most(key, candidates or 0, num_records)
        number = selection.superfiltering.count_candidates(num_records)
        if selection.budget > number:
            raise InputError(
                f"selection.budget is {selection.budget}, but superfiltering_d picks among "
                f"{number} candidates{'' if candidates else ', a fifth of the pool'}: raise {key}, "
                f"or lower the budget")


def _at_most(key: str, value: int, num_records: int, *, or_else: str = "") -> None:
    if value > num_records:
        raise InputError(f"{key} is {value}, but the pool has {num_records} records: "
                         f"give {num_records} at most" + (f", or {or_else}" if or_else else ""))


def check_reporting(config: Config) -> None:
    """InputError where fine-tuning is to report to something that is not installed."""
    for name in config.train.report_to:
        packages = REPORTERS.get(name, ())
        specs = map(importlib.util.find_spec, packages)
        if packages and not any(spec is not None and spec.origin for spec in specs):
            raise InputError(f"train.report_to is {name}, but the Python package "
                             f"{' or '.join(packages)} is not installed: install it, or set "
                             f"train.report_to=none")


def read_sharding(config: Config) -> dict:
    """DeepSpeed's configuration in train.deepspeed; InputError where it is no JSON file.

    Where ZeRO shards the gradients and the file says nothing else, those of a step's passes are
    summed in float32: DeepSpeed's default is the model's type.
    """
    path = Path(config.train.deepspeed)
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) | {}
    except FileNotFoundError:
        raise InputError(f"train.deepspeed: {path} is not there{looked_in(path)}") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"train.deepspeed: {path} is not valid JSON ({error})") from None
    if settings.get("zero_optimization", {}).get("stage", 0) >= 2:
        settings["data_types"] = {"grad_accum_dtype": "fp32"} | settings.get("data_types", {})
    return settings
