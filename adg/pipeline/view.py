"""One stage of one run folder, looked at: what was made, what fits, what is to be done. Nothing
here writes."""

import shlex
from pathlib import Path
from typing import Any

from adg.base import artifacts
from adg.base.errors import InputError
from adg.config import Config
from adg.models import folders
from adg.pipeline.identity import Identities
from adg.pipeline.record import read_record, record_path
from adg.pipeline.sources import is_outside, model_key, models, path_of
from adg.pipeline.stages import (
    STAGES,
    inputs_of,
    label_of,
    maker_of,
    outputs_of,
    parameters_of,
    producer_of,
)
from adg.pipeline.staleness import Kind, Present, Verdict, allowed, differ, judge, misfit


class StageView:
    """A stage of the run folder that a configuration names."""

    def __init__(self, name: str, config: Config, *, overwrite: bool = False,
                 identities: Identities | None = None) -> None:
        """`overwrite`: as if nothing of the stage was there."""
        self.name, self.config, self.stage = name, config, STAGES[name]
        self.overwrite = overwrite
        self.folder = Path(config.output_dir)
        self.label = label_of(name, config)
        self.outputs = outputs_of(name, config)
        self.leftovers = self.stage.leftovers(config)
        self.record_path = record_path(self.folder, self.label)
        self.identities = identities or Identities(self.folder, config)
        self.notes: list[str] = []  # on parameters that are left open
        self.parameters = self._parameters()

    # Parameters

    def _parameters(self) -> dict[str, Any]:
        """Those that decide the output; what the configuration leaves open is filled in."""
        parameters = parameters_of(self.name, self.config)
        if "chunk_size" in parameters:
            parameters["chunk_size"] = self.config.chunk_size or self._chunk_size()
        if "clustering.num_bins" in parameters:
            parameters["clustering.num_bins"] = self.config.clustering.num_bins or self._num_bins()
        return parameters

    @property
    def chunk_size(self) -> int:
        """Records of a chunk of this stage's output."""
        return self.parameters["chunk_size"]

    def _chunk_size(self) -> int:
        """That of the chunks in the run folder, whatever the pool has grown to since; without any,
        the one for this pool."""
        records = [self.record() or {}]
        for name in (name for name, stage in STAGES.items() if "chunk_size" in stage.keys):
            records += [artifacts.parse_record(path.read_bytes(), str(path)) for path in
                        sorted(self.record_path.parent.glob(f"{name}*.json"))]
        sizes = (record.get("parameters", {}).get("chunk_size") for record in records)
        return next(filter(None, sizes), None) or artifacts.chunk_size_for(self._num_records())

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
        previous = record and record["parameters"].get("clustering.num_bins")
        if previous in (None, number) or differ(record["inputs"].get("pool.jsonl"),
                                                self.identities.artefact("pool.jsonl")):
            return number
        self.notes.append(f"clustering.num_bins is left open: the {previous} bins of before stay; "
                          f"{number} with cluster --overwrite or clustering.num_bins={number}")
        return previous

    # What there is

    def record(self) -> dict | None:
        """The stage's record; None where nothing was recorded."""
        return read_record(self.record_path)

    def was_started(self) -> bool:
        """Whether an earlier run started this very work and was killed before its end."""
        record = self.record()
        return not self.overwrite and record is not None and record["state"] == "started"

    def inputs(self, *, whole: bool = True) -> dict[str, dict]:
        """The identity of each input; InputError where a required one is missing.

        `whole`: models are hashed whole, as is to be recorded.
        """
        present = self.inputs_present(whole=whole)
        for name in inputs_of(self.name, self.config)[0]:
            if name not in present:
                raise InputError(self._missing(name))
        return present

    def inputs_present(self, *, whole: bool = True) -> dict[str, dict]:
        """The identity of each input that is there; InputError where a source is not found."""
        required, optional = inputs_of(self.name, self.config)
        identities = {name: self.identities.outside(name, whole=whole) if is_outside(name)
                      else self.identities.artefact(name) for name in required + optional}
        return {name: identity for name, identity in identities.items() if identity is not None}

    def _missing(self, name: str) -> str:
        return (f"{self.name} needs {self.folder}/{name}, which is missing: run "
                f"{maker_of(name)} first")

    def present(self, record: dict | None) -> Present:
        """What there is of the stage, to be judged by its record."""
        required, optional = inputs_of(self.name, self.config)
        names = dict.fromkeys([*(record["inputs"] if record else ()), *required, *optional])
        inputs = {name: self.now(name, record) for name in names} if record else {
            name: self.identities.artefact(name) for name in names if not is_outside(name)}
        outputs = {name: self.identities.artefact(name) for name in self.outputs}
        return Present(
            self.label, str(self.folder), self.parameters, inputs, outputs,
            defaults=self.config.selection.facts().later_keys,
            remade=self._remade(record, inputs) if record else {},
            missing={name: self._missing(name) for name in required
                     if name in inputs and inputs[name] is None},
            required=tuple(required),
            unfinished=any((self.folder / name).is_dir() for name in self.leftovers),
            expensive=self.stage.expensive, follows=self.stage.follows, reports=self.stage.reports,
            grown=frozenset(name for name in self.stage.grows
                            if record and self._has_grown(name, record, inputs.get(name))),
            edited={name: self.identities.edited(name) for name in outputs})

    def _remade(self, record: dict, inputs: dict[str, dict | None]) -> dict[str, str]:
        """{input: the stage that has written it anew since the record, as it is now}."""
        changed = {name: producer for name, now in inputs.items() if now
                   and record["inputs"].get(name) and differ(record["inputs"][name], now)
                   and (producer := self.producer(name))}
        return {name: producer.label for name, producer in changed.items()
                if (made := producer.record())
                and not differ(made["outputs"].get(name), inputs[name])}

    def now(self, name: str, record: dict) -> dict | None:
        """What an input is now. A source that is gone counts as unchanged once the stage has
        finished; of another name, and before, InputError."""
        if not is_outside(name):
            return self.identities.artefact(name)
        known = record["inputs"].get(name)
        try:
            return self.identities.outside(name, whole="whole" in (known or ()))
        except InputError:
            path = path_of(name, self.config)
            if record["state"] == "finished" and known and (
                    Path(path).name == Path(known["name"]).name):
                return known
            raise

    def _has_grown(self, name: str, record: dict, now: dict | None) -> bool:
        """Whether an input is what it was by the record, and more."""
        known = record["inputs"].get(name)
        if not known or not now or not differ(known, now):
            return False
        producer = self.producer(name)
        made = producer and producer.record()
        return self.identities.starts_with(name, known) or bool(
            made and known["sha256"] in made.get("grew_from", {}).get(name, ()))

    # What is to be done, and whether inputs belong together

    def judge(self, *, alone: bool = False) -> Verdict:
        """What is to be done about the stage; `alone`: whatever becomes of those before it."""
        try:
            record = self.record()
            verdict = judge(record, self.present(record))
            if record and not alone and verdict.kind is Kind.DONE and (
                    reason := self._misfit_behind(record)):
                return Verdict(Kind.WAIT, reason, reason)
        except InputError as error:  # a source that is not found, a record that is corrupt
            return Verdict(Kind.REFUSE, str(error), str(error))
        return verdict

    def is_done(self) -> bool:
        """Whether there is nothing to do; InputError where the stage must not run."""
        return allowed(self.judge()).kind is Kind.DONE

    def check_inputs(self) -> list[str]:
        """Notes on the inputs; InputError where one is missing or unfinished, does not fit the
        configuration, or is of another pool or model than the others, and where a model's weights
        cannot be loaded."""
        notes, inputs = [], self.inputs(whole=False)
        for name, identity in inputs.items():
            if name in models(self.config):
                folders.source_of(path_of(name, self.config), model_key(name, self.config))
            producer = self.producer(name)
            if producer is None:
                continue
            record = producer.record()
            if record is None:
                notes.append(f"{name} was made elsewhere (no provenance): taken as it is")
                continue
            if reason := producer.misfit(name):
                raise InputError(reason)
            if (record["outputs"].get(name) or {}).get("sha256") != identity["sha256"]:
                notes.append(f"{name} is not what {producer.name} wrote"
                             f"{self.identities.edited(name)}: taken as it is; "
                             f"python -m adg.tools.verify {shlex.quote(str(self.folder))} "
                             f"looks at all")
        return notes

    @property
    def elsewhere(self) -> list[str]:
        """The artefacts that the stage reads and no stage has recorded."""
        required, optional = inputs_of(self.name, self.config)
        return [name for name in required + optional if self.identities.files(name)
                and (producer := self.producer(name)) and producer.record() is None]

    def misfit(self, name: str) -> str | None:
        """Why an output of this stage, or what it was made from, does not do as an input."""
        record = self.record()
        if record is None:
            return None
        inputs = {source: self.now(source, record) for source in record["inputs"]}
        present = Present(self.label, str(self.folder), self.parameters, inputs, outputs={},
                          defaults=self.config.selection.facts().later_keys)
        return misfit(name, record, present) or self._misfit_behind(record)

    def _misfit_behind(self, record: dict) -> str | None:
        """What does not fit of what the stage was made from."""
        producers = ((name, self.producer(name)) for name in record["inputs"])
        return next((reason for name, producer in producers
                     if producer and (reason := producer.misfit(name))), None)

    def producer(self, name: str) -> "StageView | None":
        """The stage of this configuration that makes an input; None for any other input."""
        stage = producer_of(name, self.config)
        return stage and StageView(stage, self.config, identities=self.identities)
