"""Is this run folder what its stages wrote, and do its parts belong together?

Every file is read and hashed anew and compared with provenance/ and log.jsonl: outputs that were
edited, swapped or lost, stages that worked from other inputs than are there, with another model or
other settings than the stage before. Ends with status 1 where something does not fit.

    python -m adg.tools.verify runs/demo
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from adg import answer_vectors
from adg.base.errors import InputError
from adg.base.hashes import HashCache
from adg.base.process import run_script
from adg.config import Config
from adg.pipeline.identity import Identities
from adg.pipeline.record import read_log, read_records
from adg.pipeline.sources import is_of_method, is_outside, models
from adg.pipeline.stages import STAGES
from adg.pipeline.staleness import differ
from adg.tools.run_folder import run_from_command_line

_SHARED = ("chunk_size", "model.", "generation.")  # what sample and embed must agree on


def main() -> None:
    run, config = run_from_command_line(__doc__)
    records = read_records(run)
    problems = list(verify(run, records, config))
    for problem in problems:
        print(f"does not fit: {problem}")
    for source, chunks in answer_vectors.sources(run).items():
        print(f"answer vectors of chunks {chunks}: from {source}")
    print(f"{run}: {len(records)} stages looked at, {len(problems)} problem(s)")
    sys.exit(1 if problems else 0)


def verify(run: Path, records: dict[str, dict], config: Config) -> Iterator[str]:
    """What does not fit, a line each, in the pipeline's order."""
    identities = Identities(run, config, cached=False)
    logged = {line["label"]: line for line in read_log(run)}
    makers = {name: label for label, record in records.items() for name in record["outputs"]}
    names = list(STAGES)
    for label in sorted(records, key=lambda label: (names.index(label.split()[0]), label)):
        record = records[label]
        if record["state"] != "finished":
            yield f"{label} was started and has not ended"
            continue
        if logged.get(label, {}).get("outputs") != record["outputs"]:
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
    before = HashCache(run / "provenance" / "sha256.json").known()
    old = {path for path in before if Path(path).is_relative_to(run / name)}
    new = {str(path) for path in identities.files(name)}
    which = [f"{Path(path).name} is missing" for path in sorted(old - new)]
    which += [f"{Path(path).name} changed" for path in sorted(old & new)
              if identities.sha256(Path(path)) != before[path]]
    which += [f"{Path(path).name} is new" for path in sorted(new - old)] if old else []
    yield (f"{name} is not what {label} wrote ({written['files']} file(s) then, {now['files']} "
           f"now{''.join(f'; {text}' for text in which[:5])})")


def _foreign(label: str, name: str, known: dict, records: dict[str, dict], makers: dict[str, str],
             identities: Identities, config: Config) -> Iterator[str]:
    """Whether a stage's input is not what is there, or not what its maker wrote."""
    if is_outside(name):
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
