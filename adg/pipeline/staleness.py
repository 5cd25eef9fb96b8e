"""What becomes of a stage: done, run, redone, added to, refused. Values in, a verdict out: no file
is read, and nothing is changed.

A record is what provenance/ keeps of a stage (adg.pipeline.record); an identity is the {"sha256":
...} of a file, folder or model (adg.pipeline.identity).
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from adg.base.errors import InputError


class Kind(StrEnum):
    """What is to be done about a stage."""

    DONE = "done"
    RUN = "run"  # nothing of it was made yet, or an unfinished run resumes
    REDO = "redo"
    EXTEND = "extend"  # what was made is kept and added to
    REFUSE = "refuse"
    WAIT = "wait"  # an input is missing or does not fit: another stage runs first


@dataclass(frozen=True)
class Verdict:
    """What is to be done about a stage, and why."""

    kind: Kind
    why: str = ""
    error: str = ""  # to refuse and wait: what is to be raised
    ways: str = ""  # to refuse: what a person can do about it
    notes: tuple[str, ...] = ()  # what a person should know, and no error
    extends: bool = False  # whether output of an earlier run is added to, now or still
    follows: bool = False  # whether an input has changed otherwise than by growing


@dataclass(frozen=True)
class Present:
    """What a configuration and its run folder hold of one stage, beside its record."""

    label: str
    folder: str
    parameters: dict[str, Any]
    inputs: dict[str, dict | None]  # the identity of each, also of those in the record
    outputs: dict[str, dict | None]
    missing: dict[str, str] = field(default_factory=dict)  # inputs: what is to be said of each
    required: tuple[str, ...] = ()  # inputs
    unfinished: bool = False  # whether an unfinished run has left anything
    expensive: bool = False
    grown: frozenset[str] = frozenset()  # inputs that are what they were, and more
    follows: tuple[str, ...] = ()  # inputs that may change freely
    reports: tuple[str, ...] = ()  # outputs that output made elsewhere may lack
    edited: dict[str, str] = field(default_factory=dict)  # outputs: which of their files changed
    remade: dict[str, str] = field(default_factory=dict)  # inputs: the stage that made them anew
    defaults: dict[str, Any] = field(default_factory=dict)  # of parameters recorded at others only


def judge(record: dict | None, present: Present) -> Verdict:
    """What is to be done about a stage, by its record and what is present."""
    verdict = _judge(record, present)
    if present.missing and verdict.kind is not Kind.REFUSE and (
            record is not None or verdict.kind is Kind.RUN):
        error = next(iter(present.missing.values()))
        return Verdict(Kind.WAIT, error, error)
    return verdict


def _judge(record: dict | None, present: Present) -> Verdict:
    if record is None:
        return _made_elsewhere(present)
    why = "; ".join(changes := changes_since(record, present))
    begun = present.unfinished or any(present.outputs.values())
    if not changes:
        return _unchanged(record, present)
    if begun and may_go_on(record, present):
        follows = bool(_not_grown(record, present))
        kept = "what was made" + " of unchanged records" * follows
        return Verdict(Kind.EXTEND, why, notes=(f"{kept} is kept and added to, because {why}",),
                       extends=True, follows=follows)
    if begun and present.expensive:
        return _refused(why, record, present)
    return Verdict(Kind.REDO, why, notes=(f"stale, because {why}",))


def redo_command(stage: str) -> str:
    """The command that redoes a stage."""
    return f"bash run.sh CONFIG {stage} --overwrite"


def _refused(why: str, record: dict, present: Present) -> Verdict:
    """Of expensive output that was made with other parameters or inputs."""
    anew = any(old and (now := present.inputs.get(name)) and differ(old, now)
               and old.get("name") == now.get("name") for name, old in record["inputs"].items())
    stage, _, name = present.label.partition(" ")
    ways = [*_with_fewer_answers(record["parameters"], present.parameters),
            *["go back to that value"] * (not anew),
            "use another output_dir" + " (or name)" * bool(name),
            f"or redo it: {redo_command(stage)}"]
    ways = ", ".join(ways) if len(ways) > 2 else " ".join(ways)
    made = "from what was there before" if anew else "with the old value"
    return Verdict(Kind.REFUSE, why, (
        f"{present.label}: {why}. What {present.folder} holds was made {made} and is kept: {ways} "
        f"(or --overwrite with the stage's own command)"), ways)


def _with_fewer_answers(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The way that needs no new answers, where fewer are asked for than there are."""
    fewer = new.get("generation.num_answers", 0)
    return ([f"take the first {fewer} of these answers with selection.num_answers={fewer}"]
            if 0 < fewer < old.get("generation.num_answers", 0) else [])


def _made_elsewhere(present: Present) -> Verdict:
    """Of output without a record."""
    names = [name for name, identity in present.outputs.items() if identity]
    if not names:
        return Verdict(Kind.RUN)
    lacking = [name for name, identity in present.outputs.items()
               if not identity and name not in present.reports]
    if lacking:
        ways = f"complete it, or redo it: {redo_command(present.label.split()[0])}"
        return Verdict(Kind.REFUSE, f"{', '.join(lacking)} is missing", (
            f"{present.folder}: {', '.join(names)} was not written by {present.label}, and "
            f"{', '.join(lacking)} is missing: {ways}"), ways)
    return Verdict(Kind.DONE, notes=(
        f"{', '.join(names)} was made elsewhere (no provenance): kept as it is",))


def _unchanged(record: dict, present: Present) -> Verdict:
    """Of output that fits parameters and inputs, as far as it is whole."""
    extends = record.get("extends", False)
    if record["state"] != "finished":
        return Verdict(Kind.RUN, "an earlier run was interrupted", extends=extends)
    notes = []
    for name, identity in present.outputs.items():
        written = record["outputs"].get(name)
        if not identity or written and identity["files"] < written["files"]:
            return Verdict(Kind.RUN, f"{name} is incomplete", notes=tuple(notes), extends=extends)
        if written and identity["sha256"] != written["sha256"]:
            notes.append(f"{name} is not what {present.label.split()[0]} wrote"
                         f"{present.edited.get(name, '')}: kept as it is")
    return Verdict(Kind.DONE, notes=tuple(notes))


def changes_since(record: dict, present: Present) -> list[str]:
    """What differs between a record and what is present, in words; missing inputs do not count."""
    changes = differences(record["parameters"], present.parameters, present.defaults)
    for name, now in present.inputs.items():
        known = record["inputs"].get(name)
        if known is None and name in present.required and record["state"] == "started":
            continue  # only another stage that makes a part of this one's output starts so
        if name not in present.missing and differ(known, now):
            changes.append(f"{name} was made anew by {present.remade[name]} since"
                           if name in present.remade else describe(name, known, now))
    return changes


def allowed(verdict: Verdict) -> Verdict:
    """The verdict; InputError where it is that the stage must not run."""
    if verdict.error:
        raise InputError(verdict.error)
    return verdict


def may_go_on(record: dict, present: Present) -> bool:
    """Whether all that changed since a record are inputs that grew, or that may change freely."""
    return (not differences(record["parameters"], present.parameters, present.defaults)
            and set(_not_grown(record, present)) <= set(present.follows))


def _not_grown(record: dict, present: Present) -> list[str]:
    """The inputs that changed since a record otherwise than by growing where they may."""
    return [name for name, known in record["inputs"].items()
            if name not in present.grown and name not in present.missing
            and differ(known, present.inputs.get(name))]


def misfit(name: str, record: dict, present: Present) -> str | None:
    """Why an output of this stage does not do as an input of another; None where it does."""
    stage = present.label.split()[0]
    if record["state"] != "finished":
        return f"{present.folder}/{name} is unfinished: run {stage} again"
    changes = differences(record["parameters"], present.parameters, present.defaults) + [
        describe(source, known, now) for source, known in record["inputs"].items()
        if (now := present.inputs.get(source)) and differ(known, now)]
    return (f"{present.folder}/{name} does not fit the configuration: {'; '.join(changes)}; "
            f"run {stage} again") if changes else None


def differences(old: dict[str, Any], new: dict[str, Any],
                defaults: dict[str, Any] | None = None) -> list[str]:
    """Which parameters differ, with both values; `defaults` of those that may lack one."""
    keys = {**old, **new}
    old, new = {**(defaults or {}), **old}, {**(defaults or {}), **new}
    return [f"{key} was {old.get(key)!r} and is {new.get(key)!r}"
            for key in keys if old.get(key) != new.get(key)]


def differ(known: dict | None, now: dict | None) -> bool:
    """Whether two identities are of different things: also of models whose samples are the same,
    where both have been hashed whole."""
    if known is None or now is None:
        return known is not now
    return known["sha256"] != now["sha256"] or (
        "whole" in known and "whole" in now and known["whole"] != now["whole"])


def describe(name: str, old: dict | None, new: dict | None) -> str:
    """How an input has changed, in words."""
    same = old and new and old["sha256"] == new["sha256"]
    key = "whole" if same else "sha256"  # what tells them apart

    def shown(value: dict | None) -> str:
        return " ".join([value.get("name", ""), value[key][:8]]).strip() if value else "absent"

    return f"{name} was {shown(old)} and is {shown(new)}"
