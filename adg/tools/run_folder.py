"""What the tools share: their command line, and how a run folder is opened."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from adg.base.errors import InputError
from adg.config import Config, flatten, load_config
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


def run_from_command_line(about: str) -> tuple[Path, Config]:
    """The run folder that the command names, with its configuration."""
    parser = new_parser(about)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a run folder")
    run = parser.parse_args().run
    return run, open_run(run)


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
    made_with = read_records(run).get(f"select {name}", {}).get("parameters", {})
    return run, open_run(run, [f"selection.name={name}", "train.name=null", "eval.name=null", *(
        f"{key}={json.dumps(made_with[key])}" for key in flatten(config)
        if key.startswith("selection.") and key in made_with)])
