"""What is done, and what would the pipeline do with this configuration? A line per stage that the
table needs or that has left something in the run folder, also of those behind a stage that is
stale. Nothing is run or changed.

    python -m adg.tools.status configs/demo.yaml
    python -m adg.tools.status configs/demo.yaml selection.budget=6
    python -m adg.tools.status configs/demo.yaml embed cluster      only these stages
"""

import sys
from collections.abc import Collection
from typing import NamedTuple

from adg.base.errors import InputError, printable
from adg.base.process import run_script
from adg.config import Config, load_config
from adg.pipeline.arguments import split_stages
from adg.pipeline.stages import STAGES, inputs_of, label_of, maker_of, needed_stages, producer_of
from adg.pipeline.staleness import Kind, Verdict
from adg.pipeline.view import StageView
from adg.tools.run_folder import config_parser

_WORDS = {Kind.RUN: "will run", Kind.REDO: "will be redone because",
          Kind.EXTEND: "will be extended because", Kind.REFUSE: "refused because",
          Kind.WAIT: "refused because", Kind.DONE: "done"}
_OF_RUN_SH = ("--overwrite", "--dry-run", "--seeds", "--quiet", "--print-config")


class Pending(NamedTuple):
    """A stage that is not done, before others."""

    name: str
    artefacts: str  # that the other one reads of it
    may_fit: bool  # whether they may turn out as they were
    certain: bool  # whether it runs at all


def main() -> None:
    for word in sys.argv[1:]:
        if word in _OF_RUN_SH:
            raise InputError(f"{word}: status only looks, and says what a run without options "
                             f"would do; give {word} to bash run.sh or to a stage")
    stages, words = split_stages(sys.argv[1:])
    arguments = config_parser(__doc__).parse_intermixed_args(words)
    config = load_config(arguments.config, arguments.overrides)
    print("\n".join(map(printable, status(config, stages))))


def status(config: Config, stages: Collection[str] = ()) -> list[str]:
    """The line of each stage, in the pipeline's order; `stages`: of these only."""
    needed = needed_stages(config)
    pending: dict[str, tuple[bool, bool]] = {}  # {stage that is not done: (may_fit, certain)}
    rows = []
    for name in STAGES:
        if name not in {*needed, *stages} and not has_run(name, config):
            continue
        reads = artefacts_by_producer(name, config)
        before = [Pending(stage, ", ".join(reads[stage]), *pending[stage])
                  for stage in pending if stage in reads]
        verdict = judge(name, config, is_first=not before)
        is_done = verdict.kind is Kind.DONE
        if before or not is_done:
            may_fit = all(stage.may_fit for stage in before) and (
                is_done or (verdict.kind is Kind.REDO and not STAGES[name].expensive))
            pending[name] = (may_fit, not is_done or not may_fit)
        text = describe(verdict, before)
        if not stages or name in stages:
            rows.append((label_of(name, config),
                         text if name in needed else f"{text} (not needed for the table)"))
    width = max(len(label) for label, _ in rows)
    return [f"{label:{width}}  {text}" for label, text in rows]


def has_run(name: str, config: Config) -> bool:
    """Whether a stage has left a record or output in the run folder."""
    view = StageView(name, config)
    return view.record_path.is_file() or any(map(view.identities.files, view.outputs))


def artefacts_by_producer(name: str, config: Config) -> dict[str, list[str]]:
    """{stage: what another one reads of its output}, that of a pattern included."""
    required, optional = inputs_of(name, config)
    reads: dict[str, list[str]] = {}
    for path in required + optional:
        if stage := maker_of(path) if "*" in path else producer_of(path, config):
            reads.setdefault(stage, []).append(path)
    return reads


def judge(name: str, config: Config, *, is_first: bool) -> Verdict:
    """What is to be done about a stage; to refuse too what it would refuse before it starts.

    `is_first`: no stage before it is to run, so that its inputs are what they will be.
    """
    view = StageView(name, config)
    verdict = view.judge(alone=not is_first)
    if verdict.kind not in (Kind.DONE, Kind.REFUSE):
        try:
            view.stage.check(config)
            if is_first and verdict.kind is not Kind.WAIT:
                view.check_inputs()
        except InputError as error:
            return Verdict(Kind.REFUSE, str(error))
    return verdict


def describe(verdict: Verdict, before: list[Pending]) -> str:
    """A verdict in words, on a stage that comes after the stages `before`, which are not done."""
    after = f"after {', '.join(stage.name for stage in before)}"
    if before and verdict.kind is Kind.DONE and all(stage.may_fit for stage in before):
        changes = [stage for stage in before if stage.certain] or before
        return "done, unless " + " or ".join(f"{stage.name} changes {stage.artefacts}"
                                             for stage in changes)
    if before and verdict.kind in (Kind.DONE, Kind.RUN, Kind.WAIT):
        return f"runs {after}"
    text = _WORDS[verdict.kind]
    if verdict.kind is Kind.DONE:
        return f"{text} ({'; '.join(verdict.notes)})" if verdict.notes else text
    if verdict.why:
        text += f": {verdict.why}" if verdict.kind is Kind.RUN else f" {verdict.why}"
    text += f" ({after})" if before else ""
    return f"{text}; {verdict.ways}" if verdict.ways else text


if __name__ == "__main__":
    run_script(main)
