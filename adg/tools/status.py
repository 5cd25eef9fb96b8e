"""What is done, and what would the pipeline do with this configuration? A line per stage, also of
those behind a stage that is stale. Nothing is run or changed.

    python -m adg.tools.status configs/demo.yaml
    python -m adg.tools.status configs/demo.yaml selection.budget=6
"""

from adg.base.errors import InputError, printable
from adg.base.process import run_script
from adg.config import Config, load_config
from adg.pipeline.stages import inputs_of, label_of, maker_of, needed_stages, producer_of
from adg.pipeline.staleness import Kind, Verdict
from adg.pipeline.view import StageView
from adg.tools.run_folder import config_parser

_WORDS = {Kind.RUN: "will run", Kind.REDO: "will be redone because",
          Kind.EXTEND: "will be extended because", Kind.REFUSE: "refused because",
          Kind.WAIT: "refused because", Kind.DONE: "done"}


def main() -> None:
    arguments = config_parser(__doc__).parse_intermixed_args()
    print("\n".join(map(printable, status(load_config(arguments.config, arguments.overrides)))))


def status(config: Config) -> list[str]:
    """The line of each stage, in the pipeline's order."""
    pending: list[str] = []  # stages that are not done
    rows = []
    for name in needed_stages(config):
        before = [stage for stage in producers_of(name, config) if stage in pending]
        verdict = judge(name, config, is_first=not before)
        if before or verdict.kind is not Kind.DONE:
            pending.append(name)
        rows.append((label_of(name, config), describe(verdict, before)))
    width = max(len(label) for label, _ in rows)
    return [f"{label:{width}}  {text}" for label, text in rows]


def producers_of(name: str, config: Config) -> list[str]:
    """The stages whose output a stage reads, those of a pattern included."""
    required, optional = inputs_of(name, config)
    makers = (maker_of(path) if "*" in path else producer_of(path, config)
              for path in required + optional)
    return [stage for stage in dict.fromkeys(makers) if stage]


def judge(name: str, config: Config, *, is_first: bool) -> Verdict:
    """What is to be done about a stage; to refuse too what it would refuse before it starts.

    `is_first`: no stage before it is to run, so that its inputs are what they will be.
    """
    view = StageView(name, config)
    verdict = view.judge()
    if verdict.kind not in (Kind.DONE, Kind.REFUSE):
        try:
            view.stage.check(config)
            if is_first and verdict.kind is not Kind.WAIT:
                view.check_inputs()
        except InputError as error:
            return Verdict(Kind.REFUSE, str(error))
    return verdict


def describe(verdict: Verdict, before: list[str]) -> str:
    """A verdict in words, on a stage that comes after the stages `before`, which are not done."""
    after = f"after {', '.join(before)}"
    if before and verdict.kind in (Kind.DONE, Kind.RUN, Kind.WAIT):
        return f"runs {after}"
    text = _WORDS[verdict.kind]
    if verdict.kind is Kind.DONE:
        return f"{text} ({'; '.join(verdict.notes)})" if verdict.notes else text
    if verdict.why:
        text += f": {verdict.why}" if verdict.kind is Kind.RUN else f" {verdict.why}"
    return f"{text} ({after})" if before else text


if __name__ == "__main__":
    run_script(main)
