"""Verify that a run folder is what its stages wrote, and that its parts belong together.

Every file is reread, hashed and compared with provenance/ and log.jsonl. This finds outputs that
were edited, swapped or lost, and stages that used inputs, a model or settings different from those
of the stage before. Exits with status 1 if it finds anything.

    python -m adg.tools.verify runs/demo
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from adg import answer_vectors
from adg.base.errors import InputError
from adg.base.hashes import HashCache, read_cache
from adg.base.process import run_script
from adg.config import Config
from adg.pipeline.identity import Identities
from adg.pipeline.record import HASHES, read_log, read_record, record_paths
from adg.pipeline.sources import is_of_method, is_outside, models
from adg.pipeline.stages import STAGES
from adg.pipeline.staleness import differ
from adg.tools.run_folder import new_parser, open_run

_SHARED = ("chunk_size", "model.", "generation.")  # what sample and embed must agree on


class Evidence(NamedTuple):
    """What a run folder says of itself, as far as it can be read."""

    config: Config | None
    records: dict[str, dict]  # by label
    logged: dict[str, dict] | None  # the last line of each label; None where one is damaged
    damaged: list[str]  # what cannot be read, a line each


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a run folder")
    run = parser.parse_args().run
    evidence = read_evidence(run)
    problems = [*evidence.damaged, *verify(run, evidence)]
    for problem in problems:
        print(f"does not fit: {problem}")
    for source, chunks in answer_vectors.sources(run).items():
        print(f"answer vectors of chunks {chunks}: from {source}")
    print(f"{run}: {len(evidence.records)} stages looked at, {len(problems)} problem(s)")
    sys.exit(1 if problems else 0)


def read_evidence(run: Path) -> Evidence:
    """What can be read; InputError where this is no run folder."""
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run}/ holds no config.yaml: not a run folder")
    damaged: list[str] = []

    def read(reader: Callable[[], Any]) -> Any:
        try:
            return reader()
        except (InputError, UnicodeDecodeError) as error:
            damaged.append(str(error))
            return None

    config = read(lambda: open_run(run))
    if config is None:
        damaged[-1] += "; what lies outside the run folder is not looked at"
    records = (read(lambda path=path: _record_of_stage(path)) for path in record_paths(run))
    by_label = {record["stage"]: record for record in records if record}
    logged = read(lambda: _last_lines(run))
    read(lambda: _check_hashes(run / "provenance" / HASHES))
    return Evidence(config, by_label, logged, damaged)


def _record_of_stage(path: Path) -> dict | None:
    """A record that is whole; None where the file is embed's report of what it checked."""
    record = read_record(path)
    if path.name.endswith(".check.json") and "stage" not in record:
        return None
    parts = [record.get(name) for name in ("parameters", "inputs", "outputs")]
    if (str(record.get("stage")).split(" ")[0] not in STAGES or not record.get("state")
            or not all(isinstance(part, dict) for part in parts)
            or not all(isinstance(known, dict) and (is_outside(name) or "sha256" in known)
                       for part in parts[1:] for name, known in part.items() if known is not None)):
        raise InputError(f"{path}: not a provenance record: remove it, and what its stage wrote "
                         f"counts as made elsewhere")
    return record


def _last_lines(run: Path) -> dict[str, dict]:
    lines = read_log(run)
    for number, line in enumerate(lines, 1):
        if not isinstance(line.get("label"), str):
            raise InputError(f"{run}/log.jsonl:{number}: not the line of a stage")
    return {line["label"]: line for line in lines}


def _check_hashes(path: Path) -> None:
    try:
        if path.is_file():
            read_cache(path)
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}): remove it, and files are hashed anew"
                         ) from None


def verify(run: Path, evidence: Evidence) -> Iterator[str]:
    """What does not fit, a line each, in the pipeline's order."""
    config, records = evidence.config, evidence.records
    identities = Identities(run, config, cached=False)
    makers = {name: label for label, record in records.items() for name in record["outputs"]}
    names = list(STAGES)
    for label in sorted(records, key=lambda label: (names.index(label.split()[0]), label)):
        record = records[label]
        if record["state"] != "finished":
            yield f"{label} was started and has not ended"
            continue
        if evidence.logged is not None and (
                evidence.logged.get(label, {}).get("outputs") != record["outputs"]):
            yield f"log.jsonl has no line of {label} with the outputs in provenance/"
        for name, written in record["outputs"].items():
            yield from _changed(run, identities, name, written, label)
        for name, known in record["inputs"].items():
            yield from _foreign(label, name, known, records, makers, identities, config)
    yield from _at_odds(records)


def _changed(run: Path, identities: Identities, name: str, written: dict | None,
             label: str) -> Iterator[str]:
    """Whether an output is not what a stage wrote, and which of its files that are."""
    now = identities.artefact(name)
    if written is None or now == written:
        return
    if now is None:
        yield f"{name} not found; {label} wrote it"
        return
    before = HashCache(run / "provenance" / HASHES).known()
    old = {path for path in before if Path(path).is_relative_to(run / name)}
    new = {str(path) for path in identities.files(name)}
    which = [f"{Path(path).name} is missing" for path in sorted(old - new)]
    which += [f"{Path(path).name} changed" for path in sorted(old & new)
              if identities.sha256(Path(path)) != before[path]]
    which += [f"{Path(path).name} is new" for path in sorted(new - old)] if old else []
    if written.get("files", now["files"]) != now["files"]:
        which = [f"{written['files']} file(s) then, {now['files']} now", *which[:5]]
    yield f"{name} is not what {label} wrote" + (f" ({'; '.join(which[:6])})" if which else "")


def _foreign(label: str, name: str, known: dict, records: dict[str, dict], makers: dict[str, str],
             identities: Identities, config: Config | None) -> Iterator[str]:
    """Whether a stage's input is not what is there, or not what its maker wrote."""
    if is_outside(name):
        if config is None:
            return
        several = name == "train.model" or is_of_method(name)  # each NAME has one of its own
        if several and name not in models(config):
            return
        try:
            now = identities.outside(name, whole="whole" in known)
        except InputError:
            return  # a source may be gone once it has been read
        if now is not None and differ(known, now) and not (
                several and now["name"] != known["name"]):
            yield f"{label} was made with another {name} than there is now ({known['name']})"
        return
    maker = makers.get(name)
    written = records[maker]["outputs"][name] if maker else None
    if written is not None and written["sha256"] != known["sha256"]:
        yield f"{label} was made from another {name} than {maker} wrote"
    elif written is None and (now := identities.artefact(name)) and (
            now["sha256"] != known["sha256"]):
        yield f"{label} was made from another {name} than there is now"


def _at_odds(records: dict[str, dict]) -> Iterator[str]:
    """Whether answers and vectors were made by different models or with different settings."""
    sample, embed = records.get("sample"), records.get("embed")
    if not sample or not embed:
        return
    models = [record["inputs"].get("model") for record in (sample, embed)]
    if all(models) and differ(*models):
        yield f"embed used {models[1]['name']}, but sample another model, {models[0]['name']}"
    for key in sorted(sample["parameters"].keys() & embed["parameters"].keys()):
        a, b = sample["parameters"][key], embed["parameters"][key]
        if key.startswith(_SHARED) and a != b:
            yield f"{key} was {json.dumps(a)} in sample and {json.dumps(b)} in embed"


if __name__ == "__main__":
    run_script(main)
