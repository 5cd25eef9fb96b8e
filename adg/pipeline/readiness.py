"""What the pipeline asks before a stage: may it run, and is there anything to do?"""

from collections.abc import Iterator
from pathlib import Path

from adg.base.errors import InputError
from adg.config import Config
from adg.pipeline.sources import is_outside
from adg.pipeline.stage_run import StageRun
from adg.pipeline.stages import STAGES, inputs_of
from adg.pipeline.staleness import Kind, Verdict, allowed
from adg.records import Pool


def check_ahead(stages: list[str], config: Config) -> None:
    """InputError for what a late stage would refuse, before hours of work in an early one."""
    for name in stages:
        STAGES[name].check(config)


def check_before(name: str, stages: list[str], config: Config) -> None:
    """InputError where a stage after an expensive one would refuse the pool or the model."""
    for objection in objections(name, stages, config):
        raise InputError(objection)


def objections(name: str, stages: list[str], config: Config) -> Iterator[str]:
    """What those of `stages` that come after an expensive one would refuse of pool or model."""
    after = list(STAGES)[list(STAGES).index(name) + 1:]
    later = [(other, check) for other in after
             if other in stages and (check := STAGES[other].check_pool)]
    if STAGES[name].expensive and later:
        num_records = len(Pool(Path(config.output_dir)))
        for other, check in later:
            try:
                check(config, num_records)
            except InputError as error:
                yield f"{other} would refuse: {error}"


def options_to_run(name: str, config: Config, *, overwrite: bool = False, named: bool = False,
                   dry_run: bool = False) -> list[str] | None:
    """The options that a stage is to run with, --overwrite or none; None where it is done, which
    is printed. InputError where it must not run.

    `overwrite` redoes a stage that is stale or refused, and any that is `named`. What has been
    hashed to see that is kept for the next command, unless this is a `dry_run`.
    """
    run = StageRun(name, config)
    verdict = Verdict(Kind.REDO) if overwrite and named else run.judge()
    if not dry_run:
        run.keep_hashes()
    if overwrite and verdict.kind in (Kind.REDO, Kind.REFUSE):
        run.check_inputs()
        return ["--overwrite"]
    if allowed(verdict).kind is not Kind.DONE:
        run.check_inputs()
        return []
    for note in (*run.notes, *verdict.notes):
        print(f"[{run.label}] note: {note}")
    print(f"[{run.label}] done before")
    return None


def inner_inputs(stages: list[str], config: Config) -> list[str]:
    """What the stages read in the run folder."""
    names = (name for stage in stages for group in inputs_of(stage, config) for name in group)
    return [name for name in dict.fromkeys(names) if not is_outside(name)]
