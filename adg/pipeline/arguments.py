"""What `bash run.sh` was asked for: stages, options, seeds."""

import argparse
import ast
import difflib
import textwrap
from collections.abc import Iterable

from adg.base.errors import InputError
from adg.base.paths import ROOT
from adg.config import Config
from adg.pipeline.stages import STAGES, needed_stages, parameters_of

_OPTIONS = ("--seeds", "--quiet", "--overwrite", "--dry-run", "--print-config", "--help", "-h")


def split_options(arguments: list[str]) -> tuple[list[str], int, bool]:
    """(the other arguments, how many seeds --seeds asks for, whether --quiet is there)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--quiet", action="store_true")
    options, rest = parser.parse_known_args(arguments)
    if not options.seeds.isdecimal() or int(options.seeds) < 1:
        raise InputError(f"--seeds {options.seeds}: it must be a number, 1 or more")
    return rest, int(options.seeds), options.quiet


def split_stages(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(stages asked for, in the pipeline's order; the other arguments).

    A stage is a bare word after the configuration; without one, all that are needed are meant.
    """
    for word in arguments:
        if word.startswith("-") and word not in _OPTIONS:
            raise InputError(f"unknown option {word}{_meant(word, _OPTIONS)} A value of the "
                             f"configuration is written section.key=value")
    words = [word for word in arguments if not word.startswith("-") and "=" not in word]
    asked = words[1:]
    for word in asked:
        if word not in STAGES:
            raise InputError(f"unknown stage {word}{_meant(word, STAGES)} The stages: "
                             f"{', '.join(STAGES)}")
    rest = [word for word in arguments if word not in asked]
    return [name for name in STAGES if name in asked], rest


def _meant(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]}?" if near else "."


def with_seed(seed: int, first: Config) -> list[str]:
    """The overrides that run a configuration with another seed, beside what the first one made.

    Where a stage whose result has no name depends on the seed, another seed is another run folder.
    """
    selection, train = first.selection, first.train
    if any("seed" in parameters_of(name, first) and not STAGES[name].name(first)
           for name in needed_stages(first)):
        return [f"seed={seed}", f"output_dir={first.output_dir}-seed{seed}"]
    words = [f"train.seed={seed}", f"train.name={train.name}-seed{seed}"]
    if first.eval.name == train.name:
        words.append(f"eval.name={train.name}-seed{seed}")
    if "selection.seed" in selection.facts().keys and train.subset_file() is None:
        words += [f"selection.seed={seed}", f"selection.name={selection.name}-seed{seed}"]
    return words


def describe_stages() -> str:
    """A line or two for each stage, from the head of its module."""
    lines = []
    for name, stage in STAGES.items():
        path = (ROOT / stage.module.replace(".", "/")).with_suffix(".py")
        head = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n\n")[0]
        text = " ".join(head.split()).partition(": ")[2]
        lines.append(textwrap.fill(f"  {name:10}{text}", 100, subsequent_indent=" " * 12))
    return "\n".join(lines)
