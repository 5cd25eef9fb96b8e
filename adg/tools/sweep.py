"""Select for every combination of some values, from stored answers and vectors.

Each combination is a separate selection, subsets/<its values>/, and is skipped if it is done.
Values that a method ignores make no further selections and are left out of the name. The number
of top records that each two selections share is printed.

    python -m adg.tools.sweep configs/demo.yaml --over selection.anisotropy_weight=0,0.2,0.4,1
    python -m adg.tools.sweep configs/demo.yaml --over selection.num_answers=3,5 \\
        --over selection.recipe=paper,released
    python -m adg.tools.sweep configs/demo.yaml --over selection.method=adg,random,longest,ifd
"""

import argparse
import itertools
import json
import re
import sys
from pathlib import Path

from adg import score_and_select
from adg.base.distributed import say
from adg.base.errors import InputError
from adg.base.process import run_script
from adg.config import Config, describe_keys, flatten, load_config, unknown_key
from adg.pipeline import processes
from adg.pipeline.command import Command
from adg.pipeline.stages import STAGES
from adg.pipeline.view import StageView
from adg.tools.run_folder import config_parser


def main() -> None:
    parser = config_parser(__doc__)
    parser.add_argument("--over", action="append", required=True, metavar="KEY=VALUE,VALUE",
                        help="a key of selection and its values; may be given several times")
    arguments = parser.parse_intermixed_args()
    keys = [text.partition("=")[0] for text in arguments.over]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
        raise InputError(f"--over {twice} is given twice: write all its values after one")
    combinations = list(itertools.product(*map(read_values, arguments.over)))
    planned = {}  # all, before the first works
    for config, words in (configure(combination, arguments) for combination in combinations):
        planned.setdefault(values_of(keys, config), (config, words))
    tops, problems = {}, []
    for config, words in planned.values():
        name = config.selection.name
        try:
            tops[name] = select(config, words)
        except InputError as error:
            problems.append(f"not selected: {name}: {error}")
        except SystemExit as ended:  # of stage measure, which has said why
            problems.append(f"not selected: {name}: measure ended with status {ended.code}")
    say("\n".join(["", *overlaps(tops), *problems]))
    sys.exit(2 if problems else 0)


def read_values(text: str) -> list[tuple[str, str]]:
    """[(key, value), ...] of one --over; InputError where the key is none of a selection."""
    key, _, values = text.partition("=")
    if key not in {name for name, *_ in describe_keys()}:
        raise InputError(f"--over {unknown_key(key)}")
    if not key.startswith("selection.") or key == "selection.name":
        raise InputError(f"--over {key}: not a key of selection; a sweep selects again from what "
                         f"is stored, so other keys need a run folder of their own")
    pairs = [(key, value) for value in values.split(",") if value]
    if not pairs:
        raise InputError(f"--over {text}: write {key}=VALUE,VALUE")
    return pairs


def values_of(keys: list[str], config: Config) -> str:
    """The values of the keys that a configuration's method reads: 0.4 and .40 are the same."""
    values = flatten(config)
    return json.dumps([config.selection.method, *(values[key] for key in keys
                                                  if reads(config, key))])


def name_of(combination: tuple[tuple[str, str], ...]) -> str:
    """The name of a combination's selection: anisotropy_weight-0.2_recipe-paper."""
    parts = [value if key == "selection.method" else f"{key.removeprefix('selection.')}-{value}"
             for key, value in combination]
    return re.sub(r"[^A-Za-z0-9._-]", "-", "_".join(parts))


def configure(combination: tuple[tuple[str, str], ...],
              arguments: argparse.Namespace) -> tuple[Config, list[str]]:
    """(a combination's configuration, the arguments that give it); InputError if invalid."""
    overrides = [*arguments.overrides, *(f"{key}={value}" for key, value in combination)]
    config = load_config(arguments.config, overrides)
    combination = tuple(pair for pair in combination if reads(config, pair[0]))
    if combination:  # else all that is left is the method, by whose name a selection goes anyway
        overrides.append(f"selection.name={name_of(combination)}")
    config = load_config(arguments.config, overrides)
    if of_measure := measure_of(config, combination):
        overrides += of_measure
        config = load_config(arguments.config, overrides)
    return config, [str(arguments.config), *overrides]


def reads(config: Config, key: str) -> bool:
    """Whether the method of a configuration reads a key of selection."""
    facts = config.selection.facts()
    if key in ("selection.budget", "selection.measure"):
        return facts.heeds_budget if key == "selection.budget" else facts.measures()
    deciding = (*STAGES["select"].keys, *facts.keys, *facts.measure_keys, *facts.models.values(),
                *facts.files.values())
    return any(f"{key}.".startswith(f"{prefix}.") for prefix in deciding)


def measure_of(config: Config, combination: tuple[tuple[str, str], ...]) -> list[str]:
    """What gives a combination a measure of its own, where its values decide what is measured."""
    selection, facts = config.selection, config.selection.facts()
    deciding = tuple(pair for pair in combination
                     if pair[0] in (*facts.measure_keys, *facts.models.values()))
    if not deciding or selection.measure != selection.method:  # or named by hand
        return []
    return [f"selection.measure={name_of((('selection.method', selection.method), *deciding))}"]


def select(config: Config, arguments: list[str]) -> set[str]:
    """The ids of a selection's top, chosen and measured where that is not done."""
    say(f"== {config.selection.name}")
    if config.selection.facts().measures() and not StageView("measure", config).is_done():
        ranks, environment = processes.layout()
        processes.run_stage("measure", arguments, config, ranks, environment)
    score_and_select.select(Command(config, overwrite=False, dry_run=False, show_prompts=0))
    path = Path(config.output_dir) / "subsets" / config.selection.name / "top.json"
    return {record["id"] for record in json.loads(path.read_bytes())}


def overlaps(tops: dict[str, set[str]]) -> list[str]:
    """A Markdown table: how many records the tops of each two selections share."""
    head = ["shared", *(f"{number}" for number in range(1, len(tops) + 1))]
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * len(tops)]
    for number, (name, top) in enumerate(tops.items(), 1):
        counts = (str(len(top & other)) for other in tops.values())
        lines.append(f"| {number}. {name} | {' | '.join(counts)} |")
    return lines


if __name__ == "__main__":
    run_script(main)
