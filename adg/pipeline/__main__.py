"""Run every stage in order, each in its own processes; completed stages are skipped.

    bash run.sh configs/demo.yaml                          all stages
    bash run.sh configs/demo.yaml embed cluster select     only these
    bash run.sh configs/demo.yaml selection.budget=6       with a configuration value replaced
    bash run.sh configs/demo.yaml --seeds 3                also with seed + 1 and seed + 2; the
                                                           table has means and deviations
    bash run.sh configs/demo.yaml --quiet                  only a line per stage, and errors
    bash run.sh configs/demo.yaml --overwrite              redo what is stale or refused, but
                                                           nothing that is done
    bash run.sh configs/demo.yaml embed --overwrite        redo this stage, done or not
    bash run.sh configs/demo.yaml --help generation        the configuration keys of one section
    bash run.sh setup [gpu|cpu]                            only the set-up of .venv

--seeds: if answers are sampled, each further seed has its own run folder, OUTPUT_DIR-seedN. Methods
that draw no answers stay in one run folder and vary selection.seed and train.seed, giving models
NAME-seedN, and subsets NAME-seedN if records are drawn (selection.method=random).

NPROC in the environment: processes per torchrun stage; by default one per GPU, or two without GPUs.
"""

import subprocess
import sys
import time
from pathlib import Path

from adg.base import lock
from adg.base.errors import InputError
from adg.base.process import run_script
from adg.config import Config
from adg.pipeline import processes
from adg.pipeline.arguments import describe_stages, split_options, split_stages, with_seed
from adg.pipeline.command import Command, parse_command
from adg.pipeline.dry_run import dry_run
from adg.pipeline.readiness import check_ahead, check_before, inner_inputs, options_to_run
from adg.pipeline.stages import STAGES, needed_stages

_USAGE = ("bash run.sh CONFIG [STAGE ...] [section.key=value ...] [--seeds N] [--quiet] "
          "[--overwrite] [--dry-run] [--print-config] [--help [SECTION]]")


def main() -> None:
    about = f"{__doc__}\nstages, in order:\n{describe_stages()}"
    if {"-h", "--help"} & set(sys.argv):
        parse_command(about, usage=_USAGE)
    words, num_seeds, quiet = split_options(sys.argv[1:])
    stages, arguments = split_stages(words)
    command = parse_command(about, arguments, usage=_USAGE)
    if quiet and command.dry_run:
        raise InputError("--quiet with --dry-run: a dry run only prints")
    first = command.config
    folders = [run(stages, arguments, command, quiet=quiet)]
    for seed in range(first.seed + 1, first.seed + num_seeds):
        words = [*arguments, *with_seed(seed, first)]
        folders.append(run(stages, words, parse_command(about, words), quiet=quiet))
    if not command.dry_run:
        show_table(list(dict.fromkeys(folders)), quiet=quiet)


def show_table(folders: list[Path], *, quiet: bool) -> None:
    """Print the table of several run folders, all of which have been evaluated."""
    if len(folders) == 1 or not all(any(folder.glob("eval/*/scores.json")) for folder in folders):
        return
    module = STAGES["tables"].module
    if quiet:
        print(f"the table of all seeds: {processes.hint(module, *folders)}")
    else:
        subprocess.run([sys.executable, "-m", module, *folders], check=True)


def run(stages: list[str], arguments: list[str], command: Command, *, quiet: bool = False) -> Path:
    """Run the stages of one configuration, all that are needed where none is named; its run folder.

    `command` is what `arguments` say; the stages get the arguments themselves. `quiet`: print no
    more than a line per stage.
    """
    config = command.config
    folder = Path(config.output_dir)
    named, stages = bool(stages), stages or needed_stages(config)
    check_ahead(stages, config)
    began = time.monotonic()
    ran = (dry_run if command.dry_run else run_stages)(stages, arguments, command, named=named,
                                                       quiet=quiet)
    if not ran and not quiet:
        print(f"nothing to do: {len(stages)} stages are done. To see the results again: "
              f"{processes.hint('adg.tools.summary', results_of(config))}")
    elif not command.dry_run and not quiet:
        sys.stdout.flush()
        subprocess.run([sys.executable, "-m", "adg.tools.summary", results_of(config)], check=True)
        print(f"\n{', '.join(ran)} done in {time.monotonic() - began:.0f} s")
    return folder


def results_of(config: Config) -> Path:
    """What the summary is asked for: the selection of a configuration, where there is one."""
    subsets = Path(config.output_dir) / "subsets" / config.selection.name
    return subsets if subsets.is_dir() else Path(config.output_dir)


def run_stages(stages: list[str], arguments: list[str], command: Command, *, named: bool,
               quiet: bool) -> list[str]:
    """Run each stage that is not done, or is to be redone; those that ran."""
    config, ran = command.config, []
    words = [word for word in arguments if word != "--overwrite"]
    ranks, environment = processes.layout()
    for name in stages:
        options = options_to_run(name, config, overwrite=command.overwrite, named=named)
        if options is None:
            continue
        check_before(name, stages, config)
        own_ranks = processes.ranks_for(name, config, ranks)
        if not ran:
            environment[lock.PIPELINE] = str(lock.take_for_pipeline(
                Path(config.output_dir), inner_inputs(stages, config)))
        if not quiet:
            processes.say_start(name, own_ranks)
        processes.run_stage(name, [*words, *options], config, own_ranks, environment, quiet=quiet)
        ran.append(name)
    return ran


if __name__ == "__main__":
    run_script(main)
