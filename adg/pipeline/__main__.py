"""Every stage in order, each in processes of its own; what is done is skipped.

    bash run.sh configs/demo.yaml                          all stages
    bash run.sh configs/demo.yaml embed cluster select     only these
    bash run.sh configs/demo.yaml selection.budget=6       with a configuration value replaced
    bash run.sh configs/demo.yaml --seeds 3                also with seed + 1 and seed + 2; the
                                                           table has means and deviations
    bash run.sh configs/demo.yaml --quiet                  only a line per stage, and errors
    bash run.sh configs/demo.yaml --help generation        the configuration keys of one section
    bash run.sh setup [gpu|cpu]                            only the set-up of .venv

--seeds: where answers are sampled, another seed has a run folder of its own, OUTPUT_DIR-seedN.
Other methods share all that no seed decides: within the run folder, selection.seed and train.seed
make models NAME-seedN, and subsets NAME-seedN where records are drawn (selection.method=random).

NPROC in the environment: processes per stage that runs under torchrun; by default one per GPU, and
two where there is none.
"""

import argparse
import ast
import contextlib
import difflib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from adg.base import distributed, lock
from adg.base.distributed import die_with_parent, run_script, say
from adg.base.errors import InputError
from adg.base.paths import ROOT, looked_in
from adg.config import Config, flatten
from adg.models import folders
from adg.pipeline import planning
from adg.pipeline.checks import (
    check_bins,
    check_budget,
    check_consent,
    check_layers,
    check_reporting,
    check_sandbox,
    read_sharding,
)
from adg.pipeline.command import Command, parse_command
from adg.pipeline.provenance import StageRun
from adg.pipeline.stages import (
    OUTSIDE,
    STAGES,
    inputs_of,
    label_of,
    model_key,
    model_of,
    needed_stages,
)
from adg.records import Pool
from adg.tools import summary

_RANKS_WITHOUT_GPU = 2
_OPTIONS = ("--seeds", "--quiet", "--overwrite", "--dry-run", "--print-config", "--help", "-h")
_USAGE = ("bash run.sh CONFIG [STAGE ...] [section.key=value ...] [--seeds N] [--quiet] "
          "[--overwrite] [--dry-run] [--print-config] [--help [SECTION]]")


def main() -> None:
    about = f"{__doc__}\nstages, in order:\n{describe_stages()}"
    if {"-h", "--help"} & set(sys.argv):
        parse_command(about, usage=_USAGE)
    given, number, quiet = split_options(sys.argv[1:])
    stages, arguments = split_stages(given)
    command = parse_command(about, arguments, usage=_USAGE)
    if quiet and command.dry_run:
        raise InputError("--quiet with --dry-run: a dry run does nothing but say")
    first = command.config
    folders = [run(stages, arguments, command, quiet=quiet)]
    for seed in range(first.seed + 1, first.seed + number):
        own = [*arguments, *with_seed(seed, first)]
        folders.append(run(stages, own, parse_command(about, own), quiet=quiet))
    if len(folders := list(dict.fromkeys(folders))) > 1 and not command.dry_run and all(
            any(folder.glob("eval/*/scores.json")) for folder in folders):
        module = STAGES["tables"].module
        if quiet:
            print(f"the table of all seeds: {hint(module, *folders)}")
        else:
            subprocess.run([sys.executable, "-m", module, *folders], check=True)


def describe_stages() -> str:
    """A line or two for each stage, from the head of its module."""
    lines = []
    for name, stage in STAGES.items():
        path = (ROOT / stage.module.replace(".", "/")).with_suffix(".py")
        head = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n\n")[0]
        text = " ".join(head.split()).partition(": ")[2]
        lines.append(textwrap.fill(f"  {name:10}{text}", 100, subsequent_indent=" " * 12))
    return "\n".join(lines)


def split_options(arguments: list[str]) -> tuple[list[str], int, bool]:
    """(the other arguments, how many seeds --seeds asks for, whether --quiet is there)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--quiet", action="store_true")
    found, rest = parser.parse_known_args(arguments)
    if not found.seeds.isdecimal() or int(found.seeds) < 1:
        raise InputError(f"--seeds {found.seeds}: it must be a number, 1 or more")
    return rest, int(found.seeds), found.quiet


def with_seed(seed: int, first: Config) -> list[str]:
    """The overrides that run a configuration with another seed, beside what the first one made."""
    selection, train = first.selection, first.train
    if "sample" in needed_stages(first):
        return [f"seed={seed}", f"output_dir={first.output_dir}-seed{seed}"]
    own = [f"train.seed={seed}", f"train.name={train.name}-seed{seed}"]
    if first.eval.name == train.name:
        own.append(f"eval.name={train.name}-seed{seed}")
    if "selection.seed" in selection.facts().keys and train.subset_file() is None:
        own += [f"selection.seed={seed}", f"selection.name={selection.name}-seed{seed}"]
    return own


def run(stages: list[str], arguments: list[str], command: Command, *, quiet: bool = False) -> Path:
    """Run the stages of one configuration, all that are needed where none is given; its run folder.

    `command` is what `arguments` say; the stages are given the arguments themselves. `quiet`: say
    no more than a line per stage.
    """
    config = command.config
    folder = Path(config.output_dir)
    stages = stages or needed_stages(config)
    ranks, environment = layout()
    check_ahead(stages, config)
    began, ran = time.monotonic(), []
    if command.dry_run:
        ran = dry_run(stages, arguments, command, ranks, environment)
    for name in stages if not command.dry_run else ():
        if not command.overwrite and already_done(name, config):
            continue
        check_before(name, stages, config)
        own = ranks_for(name, config, ranks)
        if not ran:
            environment[lock.PIPELINE] = str(lock.take_for_pipeline(folder, inner_inputs(stages,
                                                                                         config)))
        if not quiet:
            say_start(name, own)
        run_stage(name, arguments, config, own, environment, quiet=quiet)
        ran.append(name)
    if quiet or command.dry_run and ran:
        return folder
    if not ran:
        print(f"nothing to do: {len(stages)} stages are done. To see the results again: "
              f"{hint('adg.tools.summary', folder)}")
        return folder
    say("\n".join(summary.summarise(folder, config)))
    print(f"\n{', '.join(ran)} done in {time.monotonic() - began:.0f} s")
    return folder


def inner_inputs(stages: list[str], config: Config) -> list[str]:
    """What the stages read in the run folder."""
    names = (name for stage in stages for own in inputs_of(stage, config) for name in own)
    return [name for name in dict.fromkeys(names) if name not in OUTSIDE]


def say_start(name: str, ranks: int) -> None:
    """Say that a stage starts, and on how many ranks where it has several."""
    print(f"\n[{name}] starts" + (f" on {ranks} ranks" if STAGES[name].parallel else ""),
          flush=True)


def dry_run(stages: list[str], arguments: list[str], command: Command, ranks: int,
            environment: dict[str, str]) -> list[str]:
    """Have each stage that is not done say what it would do; those that did.

    A pool that is not prepared yet is prepared aside. Of a stage whose inputs are not there, as
    they are what an earlier one would make, the pool and the configuration have to say.
    """
    config, folder, ran = command.config, command.config.output_dir, []
    with contextlib.ExitStack() as on_end:
        for name in stages:
            try:
                if command.overwrite:
                    StageRun(name, config).check_inputs()
                elif already_done(name, config, dry_run=True):
                    continue
            except InputError as error:
                if not ran:
                    raise
                say(f"[{name}] cannot say yet: {str(error).replace(config.output_dir, folder)}")
                for line in planning.outlook(name, config):
                    say(f"  {line}")
                continue
            check_before(name, stages, config)
            own = ranks_for(name, config, ranks)
            say_start(name, own)
            run_stage(name, arguments, config, own, environment)
            ran.append(name)
            if name == "prepare" and not (Path(folder) / "pool.jsonl").exists():
                aside = on_end.enter_context(prepared_aside(arguments, config, environment))
                config = replace(config, output_dir=str(aside))
                arguments = [*arguments, f"output_dir={aside}"]
    return ran


@contextlib.contextmanager
def prepared_aside(arguments: list[str], config: Config,
                   environment: dict[str, str]) -> Iterator[Path]:
    """A run folder with the prepared pool, gone at the end.

    It is beside the one of the configuration, whose disk and whose dequantised models it shares;
    where nothing can be written there, in $TMPDIR.
    """
    folder = Path(config.output_dir).absolute()
    beside = planning.nearest(folder)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.dry-run-", dir=beside if os.access(
            beside, os.W_OK) else None) as aside:
        if (models := folder.with_name("models")).is_dir():
            (Path(aside) / "models").symlink_to(models)
        own = Path(aside) / folder.name
        given = [word for word in arguments if word != "--dry-run"]
        status = wait_for([sys.executable, "-m", STAGES["prepare"].module, *given,
                           f"output_dir={own}"], environment, quiet=True)
        if status:
            sys.exit(status)
        yield own


def split_stages(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(stages asked for, in the pipeline's order; the other arguments).

    A stage is a bare word after the configuration; without one, all that are needed are meant.
    """
    for word in arguments:
        if word.startswith("-") and word not in _OPTIONS:
            near = difflib.get_close_matches(word, _OPTIONS, n=1)
            raise InputError(f"{word} is no option" + (f"; did you mean {near[0]}?" if near
                                                            else ".")
                             + " A value of the configuration is written section.key=value")
    words = [word for word in arguments if not word.startswith("-") and "=" not in word]
    asked = words[1:]
    for word in asked:
        if word not in STAGES:
            near = difflib.get_close_matches(word, STAGES, n=1)
            raise InputError(f"{word} is no stage" + (f"; did you mean {near[0]}?" if near else ".")
                             + f" The stages: {', '.join(STAGES)}")
    rest = [word for word in arguments if word not in asked]
    return [name for name in STAGES if name in asked], rest


def check_ahead(stages: list[str], config: Config) -> None:
    """InputError for what a late stage would refuse, before hours of work in an early one."""
    prepared = (Path(config.output_dir) / "pool.jsonl").is_file()
    there = config.pool.on_hub() or Path(config.pool.path).exists()
    if "prepare" in stages and not prepared and not there:
        raise InputError(f"pool.path: {config.pool.path} is not there"
                         f"{looked_in(config.pool.path)}")
    if "evaluate" in stages:
        check_consent(config)
        check_sandbox(config)
    if "sample" in stages or "embed" in stages:
        folders.source_of(config.model.name_or_path)
    if "measure" in stages:
        for name in config.selection.facts().models:
            folders.source_of(model_of(name, config), model_key(name, config))
    if "select" in stages:
        for key in config.selection.facts().files.values():
            path = flatten(config)[key]
            if path is not None and not Path(path).exists():
                raise InputError(f"{key}: {path} is not there{looked_in(path)}")
    if "finetune" in stages:
        read_sharding(config)
        check_reporting(config)
        folders.source_of(model_of("train.model", config), model_key("train.model", config))
    data = config.eval.data_dir
    if "evaluate" in stages and data is not None and not Path(data).is_dir():
        raise InputError(f"eval.data_dir: {data}/ is not there{looked_in(data)}")


def check_before(name: str, stages: list[str], config: Config) -> None:
    """InputError for what a later stage would refuse of the pool or the model, before stage `name`.
    """
    if name == "sample" and "embed" in stages:
        check_layers(config)
    if name not in ("sample", "embed", "measure"):
        return
    num_records = len(Pool(Path(config.output_dir)))
    if "cluster" in stages:
        check_bins(config, num_records)
    if "select" in stages:
        check_budget(config, num_records)


def already_done(name: str, config: Config, *, dry_run: bool = False) -> bool:
    """Whether a stage is done, said; InputError where its output must not be touched."""
    run = StageRun(name, config)
    done = run.is_done()
    if not dry_run:
        run.keep_hashes()
    if done:
        for note in run.notes:
            print(f"[{run.label}] note: {note}")
        print(f"[{run.label}] done before")
    else:
        run.check_inputs()
    return done


def layout() -> tuple[int, dict[str, str]]:
    """(ranks per parallel stage, environment of the stages).

    On the processor the threads of a rank are those of a default run whatever NPROC says, so that
    sums are made in the same order.
    """
    gpus = distributed.count_gpus()
    text = os.environ.get("NPROC", str(gpus or _RANKS_WITHOUT_GPU))
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"NPROC is {text!r}; it must be a number of processes, 1 or more")
    environment = dict(os.environ)
    if not gpus:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // _RANKS_WITHOUT_GPU)))
        environment.setdefault("DS_ACCELERATOR", "cpu")
    environment.setdefault("PYTHONWARNINGS", "ignore")
    return int(text), environment


def ranks_for(name: str, config: Config, ranks: int) -> int:
    """The ranks of one stage: fewer where each takes several GPUs, unless NPROC says how many."""
    gpus = {"sample": config.model.tensor_parallel_size,
            "embed": config.embedding.gpus_per_model,
            "measure": config.embedding.gpus_per_model,
            "evaluate": config.model.tensor_parallel_size if config.eval.backend == "vllm" else 1,
            }.get(name, 1)
    return ranks if "NPROC" in os.environ else max(1, ranks // gpus)


def hint(module: str, *folders: Path) -> str:
    """The command line that runs a module on run folders, from the current folder."""
    if Path.cwd() == ROOT:
        return shlex.join([".venv/bin/python", "-m", module, *map(str, folders)])
    command = [".venv/bin/python", "-m", module, *(str(folder.resolve()) for folder in folders)]
    return f"(cd {shlex.quote(str(ROOT))} && {shlex.join(command)})"


def run_stage(name: str, arguments: list[str], config: Config, ranks: int,
              environment: dict[str, str], *, quiet: bool = False) -> None:
    """Run one stage; a stage that fails ends the pipeline with its exit status.

    `quiet`: a line when it is done, and its errors.
    """
    stage, began = STAGES[name], time.monotonic()
    command = [sys.executable, "-m"]
    if stage.parallel:
        command += ["adg.pipeline.launch", f"--nproc_per_node={ranks}", "-m"]
    own = [config.output_dir, "--dry-run" if "--dry-run" in arguments else "--quiet"]
    command += [stage.module, *(own if name == "tables" else arguments)]
    status = wait_for(command, environment, quiet=quiet)
    if status:
        if status != 2:  # an input error has said what to do
            label = label_of(name, config).replace(" ", "-")
            log = Path(config.output_dir) / "provenance" / f"{label}.0.log"
            print(f"[{name}] ended with status {status}; the same command goes on from here"
                  + (f"; {log} holds what its engines said on rank 0" if log.is_file() else ""),
                  file=sys.stderr)
        sys.exit(status)
    if quiet:
        print(f"[{label_of(name, config)}] done in {time.monotonic() - began:.0f} s",
              flush=True)


def wait_for(command: list[str], environment: dict[str, str], *, quiet: bool) -> int:
    """Run a command to its end; its exit status, as a shell has it. `quiet`: it only says errors.

    On Ctrl-C it is this process that ends it: its processes, of which torchrun's ranks would not
    hear of it, take SIGTERM without a word.
    """
    process = subprocess.Popen(
        command, env=environment | {"TQDM_DISABLE": "1"} if quiet else environment,
        stdout=subprocess.DEVNULL if quiet else None, preexec_fn=_begin_stage)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    return status if status >= 0 else 128 - status


def _begin_stage() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    run_script(main)
