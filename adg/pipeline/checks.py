"""What stages refuse of a configuration: the pipeline checks it before its first stage."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from adg.base.errors import InputError
from adg.base.paths import looked_in
from adg.benchmarks import code_benchmarks
from adg.config import Config
from adg.config_sections import REPORTERS
from adg.methods.method import at_most
from adg.models.folders import source_of
from adg.models.layers import windows_of
from adg.models.loading import LocalModel
from adg.pipeline.sources import model_key, model_of, value_of


def check_pool_path(config: Config) -> None:
    """InputError where there is no pool to prepare and none that has been prepared."""
    path = config.pool.path
    if not (config.pool.on_hub() or Path(path).exists()
            or (Path(config.output_dir) / "pool.jsonl").is_file()):
        raise InputError(f"pool.path: {path} not found{looked_in(path)}")


def check_backbone(config: Config) -> None:
    """InputError where the backbone is not found."""
    source_of(config.model.name_or_path)


def check_method_models(config: Config) -> None:
    """InputError where a model that the selection's method measures with is not found."""
    for name in config.selection.facts().models:
        source_of(model_of(name, config), model_key(name, config))


def check_method_files(config: Config) -> None:
    """InputError where a file that the selection's method reads is not found."""
    for key in config.selection.facts().files.values():
        path = value_of(key, config)
        if path is not None and not Path(path).exists():
            raise InputError(f"{key}: {path} not found{looked_in(path)}")


def check_training(config: Config) -> None:
    """InputError where fine-tuning lacks its model, DeepSpeed's configuration or a package, or
    where not even the whole budget takes it through a step that learns."""
    read_sharding(config)
    check_reporting(config)
    if config.train.subset_file() is None and config.selection.facts().heeds_budget:
        check_warmup(config, config.selection.budget)
    source_of(model_of("train.model", config), model_key("train.model", config))


def check_benchmarks(config: Config) -> None:
    """InputError where evaluation may not run programs, or its data are not found."""
    check_consent(config)
    data = config.eval.data_dir
    if data is not None and not Path(data).is_dir():
        raise InputError(f"eval.data_dir: {data}/ not found{looked_in(data)}")
    check_sandbox(config)


def check_consent(config: Config) -> None:
    """InputError where a benchmark runs the model's programs and nobody has allowed that."""
    names = code_benchmarks(config.eval.benchmarks)
    if names and not config.eval.allow_code_execution:
        raise InputError(f"eval.allow_code_execution is false, but {' and '.join(names)} run "
                         f"programs that the model writes: set it to true, or take them out of "
                         f"eval.benchmarks")


def check_sandbox(config: Config) -> None:
    """InputError where programs must run in a sandbox and none works on this machine."""
    if code_benchmarks(config.eval.benchmarks) and config.eval.sandbox == "require":
        probe = subprocess.run([sys.executable, "-m", "eval.programs", "require"], check=False,
                               capture_output=True, text=True)
        if probe.returncode:
            raise InputError(probe.stderr.strip().removeprefix("error: "))


def check_layers(config: Config) -> None:
    """InputError where embedding asks for layers that the backbone does not have.

    A GGUF file is looked at when it has been made a folder.
    """
    source = source_of(config.model.name_or_path)
    if source.is_dir():
        described = LocalModel(source, config.model.trust_remote_code).described
        windows_of(config.embedding, described.num_hidden_layers)


def check_scratch(config: Config) -> None:
    """InputError where the folder for k-means' copy of the vectors is not found."""
    folder = config.clustering.scratch_dir
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"clustering.scratch_dir: {folder}/ not found")


def check_bins(config: Config, num_records: int) -> None:
    """InputError where there are fewer records than the bins that they are to be put into."""
    if config.selection.method == "adg":
        at_most("clustering.num_bins", config.clustering.count_bins(num_records), num_records,
                or_else="null, for a tenth of the records")


def check_budget(config: Config, num_records: int) -> None:
    """InputError where there are fewer records than the budget or the method's own sizes ask for.
    """
    config.selection.check_sizes(num_records)


def check_warmup(config: Config, num_records: int) -> None:
    """InputError where the only step of a fine-tuning is the first of a warm-up: its rate is 0."""
    settings = config.train
    steps = settings.num_steps(num_records)
    if steps == settings.num_warmup_steps(num_records) == 1:
        raise InputError(
            f"fine-tuning would learn nothing: {num_records} records at train.batch_size="
            f"{settings.batch_size} and train.epochs={settings.epochs} make 1 step, and with "
            f"train.warmup_ratio={settings.warmup_ratio:g} the learning rate of the first step is "
            f"0. Raise train.epochs, lower train.batch_size, or set train.warmup_ratio=0")


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
    """DeepSpeed's configuration in train.deepspeed; InputError where it is not a JSON file.

    Where ZeRO shards the gradients and the file says nothing else, those of a step's passes are
    summed in float32: DeepSpeed's default is the model's type.
    """
    path = Path(config.train.deepspeed)
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) | {}
    except FileNotFoundError:
        raise InputError(f"train.deepspeed: {path} not found{looked_in(path)}") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"train.deepspeed: {path} is not valid JSON ({error})") from None
    if settings.get("zero_optimization", {}).get("stage", 0) >= 2:
        settings["data_types"] = {"grad_accum_dtype": "fp32"} | settings.get("data_types", {})
    return settings
