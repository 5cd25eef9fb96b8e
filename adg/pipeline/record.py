"""What a run folder says of its past: the lines of log.jsonl, the records in provenance/."""

from pathlib import Path

from adg.base import artifacts


def read_log(run: Path) -> list[dict]:
    """The line of every stage that has finished, oldest first."""
    path = run / "log.jsonl"
    return list(artifacts.JsonlRows(path)) if path.is_file() else []


def read_records(run: Path) -> dict[str, dict]:
    """{label: record} of every stage that has started, as in "finetune adg-top"."""
    found = (artifacts.parse_record(path.read_bytes(), str(path))
             for path in sorted((run / "provenance").glob("*.json")))
    return {record["stage"]: record for record in found if "stage" in record}
