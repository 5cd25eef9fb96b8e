"""The command line that all stages share, and their --help."""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

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

    `prompts`: the stage has prompts to show too. `usage`: the command line, where it has more.
    """
    parser = argparse.ArgumentParser(
        description=about, usage=usage, allow_abbrev=False, epilog=_help_on_keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, as in configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", default=[],
                        help="replaces a value of the file")
    parser.add_argument("-h", "--help", nargs="?", action=_Help, metavar="SECTION",
                        help="show this message, or the configuration keys of one section, and "
                             "stop")
    parser.add_argument("--overwrite", action="store_true",
                        help="delete this stage's earlier output of the same name and do it anew")
    parser.add_argument("--dry-run", action="store_true",
                        help="say how much there is to do, and how long it may take; write nothing")
    parser.add_argument("--print-config", action="store_true",
                        help="print the whole resolved configuration, and stop")
    parser.set_defaults(show_prompts=0)
    if prompts:
        parser.add_argument("--show-prompts", type=int, metavar="N",
                            help="print the prompts of the first N records, and stop")
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
    """Every key, or those of a section; InputError where there is none of that name."""
    lines = ["configuration keys, with their defaults (* changes speed or memory, never a result):"]
    keys = [row for row in describe_keys() if not section or row[0].startswith(f"{section}.")]
    if not keys:
        names = dict.fromkeys(key.rpartition(".")[0] for key, *_ in describe_keys() if "." in key)
        raise InputError(f"{section} is no section of the configuration: {', '.join(names)}")
    for key, default, about, tuning in keys:
        shown = "required" if default == MISSING else OmegaConf.to_yaml([default]).strip()[2:]
        if isinstance(default, list):
            shown = f"[{', '.join(map(str, default))}]"
        lines.append(f"  {key}{'*' if tuning else ''} ({shown})\n      {about}")
    return "\n".join(lines)
