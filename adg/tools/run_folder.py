"""What the tools share: their command line, and how a run folder is opened."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adg.base.errors import InputError
from adg.config import Config, describe_keys, load_config
from adg.pipeline.record import read_records


def new_parser(about: str) -> argparse.ArgumentParser:
    """A parser whose --help shows `about` as it is written."""
    return argparse.ArgumentParser(description=about, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def config_parser(about: str) -> argparse.ArgumentParser:
    """A parser of CONFIG [section.key=value ...]; use `parse_intermixed_args`."""
    parser = new_parser(about)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, as in configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value",
                        help="replaces a value of the file")
    return parser


def open_run(run: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration that last ran in a folder, whatever the folder was called then."""
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run}/ holds no config.yaml: not a run folder")
    config = load_config(run / "config.yaml", list(overrides))
    config.output_dir = str(run)
    return config


def open_selection(path: Path) -> tuple[Path, Config]:
    """(run folder, its configuration) of a run folder, or of a folder subsets/NAME of one: the
    configuration is then what that selection was made with."""
    if path.parent.name != "subsets":
        return path, open_run(path)
    run, name = path.parent.parent, path.name
    config = open_run(run)
    if not path.is_dir():
        raise InputError(f"{path}/ not found; there are: " + (", ".join(
            sorted(folder.name for folder in (run / "subsets").glob("*/"))) or "none"))
    if config.selection.name == name:
        return run, config
    overrides = {"train.name": None, "eval.name": None, **made_with(run, name)}
    return run, open_run(run, [f"{key}={json.dumps(value)}" for key, value in overrides.items()])


def made_with(run: Path, name: str) -> dict[str, Any]:
    """{"selection.key": value} of a selection, by its record: other keys have their defaults."""
    record = read_records(run).get(f"select {name}", {})
    measure = next((path.split("/")[1] for path in record.get("inputs", {})
                    if path.startswith("measures/")), None)
    defaults = {key.name: key.default for key in describe_keys()
                if key.name.startswith("selection.")}
    return defaults | {key: value for key, value in record.get("parameters", {}).items()
                       if key in defaults} | {"selection.name": name, "selection.measure": measure}
