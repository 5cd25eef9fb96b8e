"""The crash matrix: each stage killed before each of its file operations in turn, and run again.

    python tests/crash/matrix.py CONFIG [STAGE ...] [--direct-writes]

prepare, cluster, select and tables are killed by SIGKILL at each operation. Of the stages that load
a model one run keeps a copy of the run folder before each operation: what a kill there leaves. From
each state that differs from the others the stage is run again, and must end with the bytes of an
undisturbed run. Then the disk is full from some operation on, or may not be written: one line must
say so, no half file be left, and a rerun end with the same bytes.

Ends with status 1 where something fails. --direct-writes replaces the writing aside by writing to
the path itself: a demonstration that this is found.

Every run is a fork of a process that has imported what the stage needs. Three such processes share
the stages, each in a folder of its own, where the run folder has the same relative path.
"""

import argparse
import contextlib
import copy
import errno
import gc
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1",
               "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}

from operations import Operation, watch  # noqa: E402

from adg.base import arrays, artifacts, process  # noqa: E402
from adg.config import Config, load_config  # noqa: E402
from adg.pipeline import command  # noqa: E402
from adg.pipeline.record import read_log, read_records  # noqa: E402
from adg.pipeline.stages import STAGES, outputs_of  # noqa: E402
from adg.tools.verify import Evidence, verify  # noqa: E402

_BY_COPIES = ("sample", "embed", "measure", "finetune", "evaluate")
_SHARES = (("finetune",), ("sample", "embed", "measure", "evaluate"),
           ("prepare", "cluster", "select", "tables"))  # the last one without torch
_TIME = re.compile(rb'"(began|time|seconds|records_per_second)": [^,]*')
_RUN = Path("run")
_NEED_SPACE = ("open", "mkdir", "write", "second half of write", "fsync")
_NAMED = ("open", "mkdir", "rename", "remove")  # the system's error says of which file
_FULL_DISKS = 5  # moments at which the disk of a stage is full from then on, spread over its run
_LARGEST = 1 << 16  # bytes of a file: less than the tiny model's weights
_TIMED = ("log.jsonl", "provenance/", "train/")  # times stand in these: looked at otherwise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="those to kill; default: all")
    parser.add_argument("--every", type=int, default=1, metavar="N",
                        help="of the stages that load a model, run only every N-th state again")
    parser.add_argument("--direct-writes", action="store_true")
    arguments = parser.parse_args()
    if arguments.direct_writes:
        artifacts.written_aside = arrays.written_aside = written_directly
    killed = arguments.stages or list(STAGES)
    Lab.every = arguments.every
    results = together(arguments.config, killed)
    for result in sorted(results, key=lambda result: list(STAGES).index(result.stage)):
        print(f"{result.stage}: {result.points} kill points, {result.states} different states of "
              f"the run folder, {result.reruns} of them run again; refused {result.refusals} "
              f"times; {len(result.failures)} failures")
        for failure in result.failures:
            print(f"    {failure}")
    failures = sum(len(result.failures) for result in results)
    print(f"crash matrix: {sum(result.points for result in results)} kill points in {len(results)} "
          f"stages, {sum(result.refusals for result in results)} full disks and read-only folders, "
          f"{failures} failures")
    sys.exit(1 if failures else 0)


class Result(NamedTuple):
    """What the matrix found for one stage."""

    stage: str
    points: int  # operations before which it was killed
    states: int  # different ones that the kills left
    reruns: int  # of these
    refusals: int  # runs in which the disk was full or could not be written
    failures: list[str]


def together(config_path: Path, killed: list[str]) -> list[Result]:
    """The results of the stages in `killed`, from several processes.

    One of them imports everything, runs all stages undisturbed and is forked once more.
    """
    base = Path(load_config(config_path, []).output_dir).with_name("lab").resolve()
    base.mkdir()
    config = load_config(config_path, [f"output_dir={_RUN}"])
    command._help_on_keys = str
    *heavy, light = [[name for name in share if name in killed] for share in _SHARES]
    for name in _SHARES[-1]:
        import_module(STAGES[name].module)
    import sklearn.cluster  # noqa: F401

    reader, writer = os.pipe()

    def all_heavy() -> None:
        os.close(reader)
        warm_up(Path(config.model.name_or_path))
        Lab(config, base, base / "all").run_all(killed)
        os.close(writer)  # what the light share waits for
        join([fork(partial(work, config, base, share)) for share in heavy if share])

    pid = fork(all_heavy)
    os.close(writer)
    os.read(reader, 1)
    work(config, base, light)
    join([pid])
    return [Result(*row) for path in base.glob("*.json") for row in json.loads(path.read_text())]


def fork(task: Callable[[], None]) -> int:
    """Do something in a process of its own; its id."""
    pid = os.fork()
    if not pid:
        status = 70
        try:
            task()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def join(pids: list[int]) -> None:
    """Wait for processes; an end where one has failed."""
    if any([os.waitpid(pid, 0)[1] for pid in pids]):
        sys.exit("a process of the matrix ended with an error")


def work(config: Config, base: Path, share: list[str]) -> None:
    """Disturb the stages of a share and leave the results."""
    if not share:
        return
    lab, results = Lab(config, base, base / "-".join(share)), []
    for name in share:
        operations = lab.take(name)
        failures, states, reruns = lab.disturb(name, operations)
        refusals, more = lab.refuse(name, operations)
        results.append(Result(name, len(operations), states, reruns, refusals,
                              failures + more))
    (base / f"{share[0]}.json").write_text(json.dumps(results))


def warm_up(model: Path) -> None:
    """Import what the stages import, once for all processes that are forked from this one."""
    import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    import lm_eval.evaluator
    import lm_eval.tasks
    import matplotlib.backends.backend_agg  # noqa: F401
    import rouge_score.rouge_scorer  # noqa: F401
    from lm_eval import simple_evaluate  # noqa: F401
    from lm_eval.models.huggingface import HFLM  # noqa: F401
    from transformers import (  # noqa: F401
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaForCausalLM,
        Trainer,
        TrainingArguments,
    )

    for stage in STAGES.values():
        import_module(stage.module)
    import_module("train.callbacks")
    tasks = Path(lm_eval.tasks.__file__).parent  # lm-eval reads only the tasks that are asked for
    lm_eval.tasks.TaskManager = partial(
        lm_eval.tasks.TaskManager, include_defaults=False,
        include_path=[str(tasks / name) for name in ("truthfulqa", "humaneval")])
    lm_eval.evaluator.add_env_info = lambda result: None  # two seconds of listing packages
    AutoModelForCausalLM.from_pretrained(model)  # compiles many patterns
    gc.freeze()


@contextlib.contextmanager
def written_directly(path: Path) -> Iterator[Path]:
    """What written_aside must not be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    yield path


class Lab:
    """A folder in which a run folder is put back and a stage run again.

    `base`/STAGE.before and `base`/STAGE.after are the run folder before and after an undisturbed
    run; what that did to files is in STAGE.operations.
    """

    every = 1  # of the states of a stage that loads a model, those that are run again

    def __init__(self, config: Config, base: Path, folder: Path) -> None:
        self.config, self.base = config, base
        self.run, self.copies, self.errors = (folder / name for name in (_RUN, "copies", "errors"))
        folder.mkdir()
        os.chdir(folder)

    def run_all(self, killed: list[str]) -> None:
        """Run the stages undisturbed, in turn, up to the last of `killed`."""
        names = list(STAGES)
        for name in names[: 1 + max(map(names.index, killed))]:
            self.run.mkdir(exist_ok=True)
            replace(self.base / f"{name}.before", self.run)
            replace(self.run, self.base / f"{name}.before")  # new times, as in every later run
            with self.base.joinpath(f"{name}.operations").open("wb", buffering=0) as file:
                status = self.stage(name, lambda operation, file=file: file.write(
                    ("\t".join(operation) + "\n").encode()))
            if status != 0:
                raise RuntimeError(f"{name} ended with {status}:\n{self.errors.read_text()}")
            replace(self.base / f"{name}.after", self.run)

    def take(self, name: str) -> list[Operation]:
        """Turn to a stage; what it does to files, in order."""
        self.before, self.after = (self.base / f"{name}.{when}" for when in ("before", "after"))
        lines = (self.base / f"{name}.operations").read_text().splitlines()
        return [Operation(*line.split("\t")) for line in lines]

    def config_of(self, name: str) -> Config:
        """The configuration of a stage: measure has a method that measures."""
        config = copy.deepcopy(self.config)
        if name == "measure":
            config.selection.method = config.selection.name = config.selection.measure = "ifd"
        return config

    def stage(self, name: str, meet: Callable[[Operation], None] | None = None, *,
              limited: bool = False) -> int:
        """Run a stage in a process of its own; its exit status, negative where it was killed."""
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        status = 70
        try:
            with self.errors.open("w") as errors:
                os.dup2(errors.fileno(), 1)
                os.dup2(errors.fileno(), 2)
            target = str(_RUN) if name == "tables" else "config"
            sys.argv = [name, target, *(["--quiet"] if name == "tables" else [])]
            if limited:
                resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST, -1))
            command.load_config = lambda *_: self.config_of(name)  # read once for all runs
            if meet is not None:
                watch(self.run, meet)
            process.run_script(import_module(STAGES[name].module).main)
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def disturb(self, name: str, operations: list[Operation]) -> tuple[list[str], int, int]:
        """(what went wrong, how many states the kills leave, how many of them were run again)."""
        every, reruns = self.every if name in _BY_COPIES else 1, 0
        failures: list[str] = []
        states: set[str] = set()
        places = self.copied(name) if name in _BY_COPIES else self.killed(name, operations)
        for number, place in enumerate(places):
            when = f"{name} killed before the {operations[number]}"
            state = state_of(place)
            if state in states:
                continue
            states.add(state)
            failures += [f"{when}: {problem}" for problem in self.torn(name, place)]
            if len(states) % every != 1 % every:
                continue
            reruns += 1
            if place != self.run:
                replace(self.run, place)
            status = self.stage(name)
            problems = self.differences(name) if status == 0 else [
                f"the rerun ended with status {status}: {self.errors.read_text()[-300:]}"]
            failures += [f"{when}: {problem}" for problem in problems]
        return failures, len(states), reruns

    def killed(self, name: str, operations: list[Operation]) -> Iterator[Path]:
        """The run folder as a kill before each operation leaves it."""
        for number in range(len(operations)):
            replace(self.run, self.before)
            countdown = iter(range(number, -1, -1))

            def kill(_: Operation, countdown: Iterator[int] = countdown) -> None:
                if next(countdown) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            status = self.stage(name, kill)
            if status != -signal.SIGKILL:
                raise RuntimeError(f"{name} was to be killed and ended with status {status}")
            yield self.run

    def copied(self, name: str) -> Iterator[Path]:
        """Copies of the run folder before each operation of one run."""
        replace(self.run, self.before)
        shutil.rmtree(self.copies, ignore_errors=True)
        number = iter(range(10**6))
        status = self.stage(name, lambda _: shutil.copytree(
            self.run, self.copies / str(next(number))))
        if status != 0:
            raise RuntimeError(f"{name} ended with status {status}:\n{self.errors.read_text()}")
        return (self.copies / str(own) for own in range(len(list(self.copies.iterdir()))))

    def refuse(self, name: str, operations: list[Operation]) -> tuple[int, list[str]]:
        """(how often, what went wrong): the disk is full from an operation on, or read-only."""
        needing = [number for number, own in enumerate(operations) if own.kind in _NEED_SPACE]
        moments = [(number, errno.ENOSPC) for number in
                   needing[3:: max(1, len(needing) // _FULL_DISKS)]] + [(0, errno.EROFS)]
        if name == "finetune":
            moments.append((-1, errno.EFBIG))
        failures = []
        for first, reason in moments:
            when = f"{name} with {os.strerror(reason)} from " + (
                f"the {operations[first]} on" if first >= 0 else f"{_LARGEST} bytes on")
            replace(self.run, self.before)
            if first >= 0:
                status = self.stage(name, refusing(_RUN, first, reason))
            else:
                status = self.stage(name, limited=True)
            failures += [f"{when}: {problem}" for problem in self.unclear(name, status, reason)]
            if first != 0 and self.stage(name) != 0:
                failures.append(f"{when}: the rerun ended with {self.errors.read_text()[-300:]}")
            elif first != 0:
                failures += [f"{when}: {problem}" for problem in self.differences(name)]
        return len(moments), failures

    def unclear(self, name: str, status: int, reason: int) -> Iterator[str]:
        """What a stage that could not write should not have left or said."""
        said = self.errors.read_text()
        errors = [line for line in said.splitlines() if "error: " in line]
        if status != 2 or len(errors) != 1 or "Traceback" in said:
            yield f"status {status} and: {said[-1500:]}"
        elif f"{_RUN}/" not in errors[0] and f"'{_RUN}'" not in errors[0] or not any(
                text in errors[0] for text in (os.strerror(reason), "cannot be written")):
            yield f"the error is not clear: {errors[0]}"
        yield from self.torn(name, self.run)
        for path in tree(self.run):
            if ".partial" in path:
                yield f"{path} is left"

    # What must hold

    def torn(self, name: str, place: Path) -> Iterator[str]:
        """Outputs that are there and not whole."""
        whole = outputs(self.after, name, self.config_of(name))
        for path, content in outputs(place, name, self.config_of(name)).items():
            if content != whole.get(path):
                yield f"{path} is there and not whole"

    def differences(self, name: str) -> Iterator[str]:
        """What an undisturbed run left and this one did not, or otherwise."""
        there, expected = visible(self.run), visible(self.after)
        if there.keys() != expected.keys():
            yield f"other files: {sorted(there.keys() ^ expected.keys())}"
        for path in there.keys() & expected.keys():
            if not path.startswith(_TIMED) and there[path] != expected[path]:
                yield f"{path} has other bytes"
        lines = [line["label"] for line in read_log(self.run)]
        if lines != [line["label"] for line in read_log(self.after)]:
            yield f"log.jsonl has the lines {lines}"
        if any(record["state"] != "finished" for record in read_records(self.run).values()):
            yield "a stage counts as unfinished"
        logged = {line["label"]: line for line in read_log(self.run)}
        yield from verify(self.run, Evidence(self.config, read_records(self.run), logged, []))


def refusing(folder: Path, first: int, reason: int) -> Callable[[Operation], None]:
    """Refuses operation `first` and those after it that a full or read-only disk does."""
    seen = iter(range(10**6))

    def refuse(operation: Operation) -> None:
        if next(seen) >= first and (reason == errno.EROFS or operation.kind in _NEED_SPACE):
            named = [str(folder / operation.path)] if operation.kind in _NAMED else []
            raise OSError(reason, os.strerror(reason), *named)

    return refuse


def state_of(folder: Path) -> str:
    """What tells one state of a run folder from another, times left out."""
    found = [(path, b"" if path.endswith(("sha256.json", ".lock")) else _TIME.sub(b"", content))
             for path, content in sorted(tree(folder).items())]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def outputs(folder: Path, name: str, config: Config) -> dict[str, bytes]:
    """{path: content} of a stage's outputs that are there."""
    return {path: content for path, content in visible(folder).items()
            if path.startswith(tuple(outputs_of(name, config)))}


def visible(folder: Path) -> dict[str, bytes]:
    """{path: content} of the files that are not hidden, without times in them."""
    return {path: _without_times(path, content) for path, content in tree(folder).items()
            if not any(part.startswith(".") for part in path.split("/"))}


def _without_times(path: str, content: bytes) -> bytes:
    if not path.startswith("eval/") or not content.startswith(b"{") or b'"lm_eval"' not in content:
        return content
    with contextlib.suppress(ValueError):  # half a file
        result = json.loads(content)
        result["lm_eval"].pop("date")
        return json.dumps(result).encode()
    return content


def tree(folder: Path) -> dict[str, bytes]:
    """{relative path: content} of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


def replace(folder: Path, source: Path) -> None:
    """Make `folder` a copy of `source`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)


if __name__ == "__main__":
    main()
