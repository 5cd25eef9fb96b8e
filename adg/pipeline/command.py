"""The command line that all stages share, and their --help."""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import MISSING, OmegaConf

from adg.base.errors import InputError
from adg.config import Config, describe_keys, load_config, to_yaml


class Command(NamedTuple):
    """What a stage was asked to do."""

    config: Config
    overwrite: bool
    dry_run: bool
    show_prompts: int  # records whose prompts are printed


def parse_command(about: str, argv: list[str] | None = None, *,
                  prompts: bool = False, usage: str | None = None) -> Command:
    """A stage's arguments: CONFIG, section.key=value ..., --overwrite, --dry-run, --print-config.

    `prompts`: the stage can show its prompts. `usage`: the command line, where it has more.
    """
    parser = argparse.ArgumentParser(
        description=about, usage=usage, allow_abbrev=False, epilog=_help_on_keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG",
                        help="a YAML file such as those in configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", default=[],
                        help="replace a value of the file")
    parser.add_argument("-h", "--help", nargs="?", action=_Help, metavar="SECTION",
                        help="print this message, or the configuration keys of one section, and "
                             "exit")
    parser.add_argument("--overwrite", action="store_true",
                        help="delete a stage's earlier output and run it again; with run.sh: the "
                             "stages named, or without names those that are stale or refused, "
                             "never one that is done")
    parser.add_argument("--dry-run", action="store_true",
                        help="print what there is to do and how long it may take; write "
                             "nothing to output_dir")
    parser.add_argument("--print-config", action="store_true",
                        help="print the resolved configuration and exit")
    parser.set_defaults(show_prompts=0)
    if prompts:
        parser.add_argument("--show-prompts", type=int, metavar="N",
                            help="print the prompts of the first N records and exit")
    arguments = parser.parse_intermixed_args(sys.argv[1:] if argv is None else argv)
    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(to_yaml(config), end="")
        parser.exit()
    return Command(config, arguments.overwrite, arguments.dry_run, arguments.show_prompts)


class _Help(argparse.Action):
    """--help, of everything or of one section."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
                 values: str | None, option_string: str | None = None) -> None:
        if values is None:
            parser.print_help()
        else:
            print(_help_on_keys(values))
        parser.exit()


def _help_on_keys(section: str = "") -> str:
    """Every key, or those of a section; InputError for an unknown section."""
    lines = ["configuration keys (default; what is allowed); * changes speed or memory, never a "
             "result:"]
    keys = [row for row in describe_keys() if not section or row[0].startswith(f"{section}.")]
    if not keys:
        names = dict.fromkeys(key.rpartition(".")[0] for key, *_ in describe_keys() if "." in key)
        raise InputError(f"unknown section {section}; the sections are {', '.join(names)}")
    for key in keys:
        allowed = f"; {key.allowed}" if key.allowed else ""
        lines.append(f"  {key.name}{'*' if key.tuning else ''} ({_shown(key.default)}{allowed})\n"
                     f"      {key.about}")
    return "\n".join(lines)


def _shown(default: Any) -> str:
    if default == MISSING:
        return "required"
    if isinstance(default, list):
        return f"[{', '.join(map(str, default))}]"
    return OmegaConf.to_yaml([default]).strip()[2:]
