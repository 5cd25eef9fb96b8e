"""One run of a stage: its start, its counts, its end.

A stage that starts writes `provenance/<stage>.json` with the parameters and inputs that decide its
output; once finished it adds the hashes of what it wrote, and one line to `log.jsonl`. A later run
compares these with its own configuration and files (adg.pipeline.view). Output without a record
was made elsewhere: it is taken as it is, with a note.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from adg.base import artifacts, distributed, lock, log_file, process, screen
from adg.base.errors import InputError
from adg.config import Config, to_yaml
from adg.pipeline import counts as tally
from adg.pipeline import record as records
from adg.pipeline.stages import inputs_of
from adg.pipeline.staleness import (
    Kind,
    Verdict,
    allowed,
    changes_since,
    differ,
    differences,
    judge,
    redo_command,
)
from adg.pipeline.view import StageView
from adg.records import Pool, check_ids


class StageRun(StageView):
    """A stage that is about to run, runs, or ends."""

    def __init__(self, name: str, config: Config, *, overwrite: bool = False) -> None:
        """`overwrite`: remove what an earlier run of this stage wrote."""
        super().__init__(name, config, overwrite=overwrite)
        self.extends = False  # whether output of an earlier run is being added to
        self.follows = False  # whether that is of a pool that has not only grown since
        self.records_done = 0  # by all ranks of this run
        self.parts: list[StageRun] = []  # stages some of whose output this one makes
        self.counts_path = self.record_path.with_suffix(".counts")  # a folder
        self.started = time.monotonic()

    # Start

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
        if distributed.rank() > 0 and (
                changes := distributed.settled(lambda: self._unlike(record))):
            raise InputError(f"{self.label}: {'; '.join(changes)}: the former is rank 0's, and all "
                             f"ranks need the same configuration, model and run folder")
        if self.stage.torchrun:
            screen.engines_write_to(self.record_path.with_suffix(f".{distributed.rank()}.log"))
            if limit := self.config.stall_timeout:
                distributed.say(f"[{self.label}] a rank that makes no progress for {limit} s ends "
                                f"with a stack trace (stall_timeout)")
            process.watch(limit)

    def _unlike(self, record: dict) -> list[str]:
        """What this rank sees otherwise than the one that wrote a record."""
        present = replace(self.present(record), remade={})
        return [*present.missing.values(), *changes_since(record, present)]

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
        verdict = self._agreed_again(record)
        if record is None or verdict.kind is Kind.REDO:
            shutil.rmtree(self.counts_path, ignore_errors=True)
        if verdict.follows:
            follow()
        resumes = record is not None and record["state"] == "started" and verdict.kind is Kind.RUN
        self._write_start(self.inputs(), self._grew_from(record) if verdict.extends else {},
                          extends=verdict.extends, began=record.get("began") if resumes else None)
        artifacts.write_text(self.folder / "config.yaml", to_yaml(self.config))
        self.identities.save()
        return self.record()

    def _agreed_again(self, record: dict | None) -> Verdict:
        """The verdict under the lock: another run may have ended since it was first asked for."""
        return Verdict(Kind.RUN) if record is None else allowed(judge(record, self.present(record)))

    def _write_start(self, inputs: dict[str, dict], grew_from: dict[str, list[str]], *,
                     extends: bool = False, began: str | None = None) -> None:
        artifacts.write_json(self.record_path, {
            "stage": self.label, "state": "started", "extends": extends,
            "began": began or datetime.now(UTC).isoformat(),
            "parameters": self.parameters, "inputs": inputs, "outputs": {}, "grew_from": grew_from})

    def _grew_from(self, record: dict) -> dict[str, list[str]]:
        """{output: hashes that it had when a smaller run of this stage had finished}."""
        return {name: [*record.get("grew_from", {}).get(name, ()),
                       *([record["outputs"][name]["sha256"]] if record["outputs"].get(name)
                         else [])]
                for name in self.outputs}

    def _delete_outputs(self) -> None:
        names = [*self.outputs, *self.leftovers]
        for path in [*(self.folder / name for name in names), self.counts_path,
                     self.record_path]:  # last: without it what is left counts as made elsewhere
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    # A stage that makes a part of what is another's

    def makes_part_of(self, name: str) -> None:
        """Announce that this stage writes some output of stage `name`, whose record it starts.

        InputError where there is output of that stage that does not fit the configuration.
        """
        part = StageRun(name, self.config)
        part.identities = self.identities
        record = part.record()
        outputs = [output for output in part.outputs if self.identities.artefact(output)]
        if outputs and not self.overwrite:
            reasons = (["it has no provenance"] if record is None
                       else differences(record["parameters"], part.parameters))
            if record and differ(record["inputs"].get("model"), part.now("model", record)):
                reasons.append("model is another")
            if reasons:
                raise InputError(f"{self.name} would add to {self.folder}/{', '.join(outputs)}, "
                                 f"but {'; '.join(reasons)}: give another output_dir, move it "
                                 f"away, or redo it with {redo_command(self.name)}")
        self.parts.append(part)

    def _start_as_part(self, maker: "StageRun") -> None:
        if self.record() is None:
            self._write_start({name: identity for name, identity in self.inputs_present().items()
                               if name not in maker.outputs}, {})

    # The end

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
        if left := distributed.settled(missing):
            raise InputError(f"{self.label}: {len(left)} chunks are not in {self.folder}, though "
                             f"every rank has done its own: is output_dir one folder of all nodes?")
        process.watch(self.config.stall_timeout)
        return True

    def count(self, chunk: int, counts: dict[str, int | list]) -> None:
        """Keep what there is to count or to list in a chunk, over ranks and restarts."""
        tally.keep(self.counts_path, chunk, counts)

    def finish(self, *, records: int, **counts: Any) -> None:
        """Mark the stage done and append its line to log.jsonl; `records` is what this run did."""
        process.unwatch()
        seconds = time.monotonic() - self.started
        total = tally.total(self.counts_path)
        finished = self._record_end(records, seconds, counts | total)
        lock.release(self.folder, self.label)
        if not finished:
            return
        notes = [f"{name.replace('_', ' ')}: {number}" for name, number in total.items()]
        if notes:
            notes.append(f"by chunk in {self.counts_path}/")
        print(f"[{self.label}] {records} records in {seconds:.1f} s "
              f"({'; '.join([f'{records / seconds:.2f} records/s', *notes])})", flush=True)

    def _record_end(self, number: int, seconds: float, counts: dict[str, Any]) -> bool:
        """Write the log's line, then the record; whether no other rank had done so."""
        path = self.folder / "log.jsonl"
        with path.open("a+b", buffering=0) as log, lock.held(log):  # one stage at a time
            lines = log_file.drop_torn_line(log)
            record = self.record()
            if record["state"] == "finished":
                return False
            record |= {"state": "finished", "extends": False,
                       "outputs": {name: self.identities.artefact(name) for name in self.outputs}}
            if not records.has_line(lines, record):
                log_file.append_line(log, json.dumps({
                    "time": datetime.now(UTC).isoformat(timespec="seconds"), "stage": self.name,
                    "label": self.label, "records": number, "seconds": round(seconds, 2),
                    "records_per_second": round(number / seconds, 3), **counts,
                    "world_size": distributed.world_size(), "versions": records.versions(),
                    **{key: record.get(key)
                       for key in ("began", "parameters", "inputs", "outputs")},
                }, ensure_ascii=False))
            artifacts.write_json(self.record_path, record)
            self.identities.save()
        return True

    def keep_hashes(self) -> None:
        """Keep what has been hashed for later commands, where that can be written."""
        if self.record_path.parent.is_dir():
            with contextlib.suppress(OSError):
                self.identities.save()


def begin(name: str, config: Config, *, overwrite: bool = False,
          dry_run: bool = False) -> StageRun | None:
    """Check a stage; its `start` is to be called before the first write. None where all is done.

    Raises InputError where inputs are missing, unfinished or do not belong together, and where an
    expensive stage's earlier output was made with other parameters. Changes nothing on disk, but
    for the hashes that it keeps where all is done, and this is not a `dry_run`.
    """
    distributed.join()
    run = StageRun(name, config, overwrite=overwrite)
    verdict = Verdict(Kind.RUN) if overwrite else allowed(run.judge())
    done = verdict.kind is Kind.DONE
    run.extends, run.follows = verdict.extends, verdict.follows
    notes = [*run.notes, *verdict.notes, *(() if done else run.check_inputs())]
    if not done and distributed.rank() == 0 and "pool.jsonl" in run.elsewhere:
        check_ids(Pool(run.folder))
    for note in dict.fromkeys(notes):
        distributed.say(f"[{run.label}] note: {note}")
    if done:
        distributed.say(f"[{run.label}] done before: nothing to do")
        if not dry_run and distributed.rank() == 0:
            run.keep_hashes()
        return None
    return run
