"""What a stage refuses of a configuration, checked too by the pipeline before the first stage."""

from adg.config import Config
from adg.errors import InputError

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


def check_sizes(config: Config, num_records: int) -> None:
    """InputError where the pool is too small for the bins or the budget."""
    for key, value in (("clustering.num_bins", config.clustering.num_bins),
                       ("selection.budget", config.selection.budget)):
        if value > num_records:
            raise InputError(f"{key} is {value}, but the pool has {num_records} records: "
                             f"give {num_records} at most")
