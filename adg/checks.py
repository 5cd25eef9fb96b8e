"""What a stage refuses of a configuration, checked too by the pipeline before the first stage."""

import json
from pathlib import Path

from adg.config import Config
from adg.errors import InputError
from adg.layers import windows_of
from adg.models import describe, source_of

CODE_BENCHMARKS = ("mbpp", "humaneval")  # run programs that the model writes


def check_consent(config: Config) -> None:
    """InputError where a benchmark runs the model's programs and nobody has allowed that."""
    names = [name for name in config.eval.benchmarks if name in CODE_BENCHMARKS]
    if names and not config.eval.allow_code_execution:
        raise InputError(f"eval.allow_code_execution is false, but {' and '.join(names)} run "
                         f"programs that the model writes: set it to true, or take them out of "
                         f"eval.benchmarks")


def accumulation_steps(config: Config, ranks: int) -> int:
    """Forward passes per optimiser step, so that train.batch_size holds whatever the rank count.

    Raises InputError that names the nearest batch sizes where it does not divide.
    """
    size, per_device = config.train.batch_size, config.train.per_device_batch_size
    step = per_device * ranks
    if size % step:
        nearest = [value for value in (size // step * step, (size // step + 1) * step) if value]
        raise InputError(
            f"train.batch_size is {size}, no multiple of {step} (train.per_device_batch_size x "
            f"ranks, {per_device} x {ranks}); nearest: {' or '.join(map(str, nearest))}")
    return size // step


def check_layers(config: Config) -> None:
    """InputError where the backbone has not the layers that embedding asks for.

    A GGUF file is looked at when it has been made a folder.
    """
    source = source_of(config.model.name_or_path)
    if source.is_dir():
        described = describe(source, trust_remote_code=config.model.trust_remote_code)
        windows_of(config.embedding, described.num_hidden_layers)


def check_bins(config: Config, num_records: int) -> None:
    """InputError where there are fewer records than the bins that they are to be put into."""
    if config.selection.method == "adg":
        _at_most("clustering.num_bins", config.clustering.num_bins, num_records)


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


def _at_most(key: str, value: int, num_records: int) -> None:
    if value > num_records:
        raise InputError(f"{key} is {value}, but the pool has {num_records} records: "
                         f"give {num_records} at most")


def check_deepspeed_file(config: Config) -> None:
    """InputError where train.deepspeed is no JSON file."""
    path = Path(config.train.deepspeed)
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"train.deepspeed: {path} is not there") from None
    except ValueError as error:
        raise InputError(f"train.deepspeed: {path} is not valid JSON ({error})") from None
