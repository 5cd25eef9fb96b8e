"""What the tools share: their command line, and how a run folder is opened."""

import argparse
from pathlib import Path

from adg.base.errors import InputError
from adg.config import Config, load_config


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


def open_run(run: Path) -> Config:
    """The configuration that last ran in a folder, whatever the folder was called then."""
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run}/ holds no config.yaml: not a run folder")
    config = load_config(run / "config.yaml", [])
    config.output_dir = str(run)
    return config
