"""A first hour on a GPU: what one node can measure of this project, in one command.

    python -m tests.bench.gpu RUN_OR_CONFIG [section.key=value ...] [--minutes 60] [--out DIR]
    python -m tests.bench.gpu --random 8b       without a model: what random weights can tell

    machine     GPUs, compilers, packages
    peak        a product of two large matrices, of which MFU is a share
    sample      vLLM's own generate without and with seeds; the stage's loop with the engine in its
                process and in one of its own, and with vectors from sampling
    check       how far vectors from sampling are from those of a forward pass
    embed       answers of 30 and of 250 tokens, prompts shared or not
    finetune    ZeRO-2 and ZeRO-3 at several batches, a rank for each GPU, against a plain loop;
                memory against the estimate of --dry-run
    evaluate    GSM8K and BBH by hf and by vllm

Every part runs once, then all are repeated while the time lasts; the table shows medians. What the
machine lacks is skipped and said; what fails is reported, and the others go on. Without a GPU, or
with --small, a few records of each. Written are gpu-HOST-TIME.json, .md and .log (the output of
every command) to bench/ in the run folder, or to --out; a scratch folder beside them is removed.
"""

import argparse
import platform
import sys
import tempfile
from datetime import datetime
from functools import partial
from pathlib import Path

from adg.base import process
from adg.base.errors import InputError
from tests.bench.gpu import (
    embedding,
    evaluation,
    machine,
    random_model,
    sampling,
    scratch,
    training,
)
from tests.bench.gpu.bench import SIZES, Bench, Sizes
from tests.bench.gpu.command import Failed
from tests.bench.gpu.plan import Budget, Part, measure
from tests.bench.gpu.report import Report


def main() -> None:
    arguments = parse()
    budget = Budget(arguments.minutes)
    gpus = machine.gpus()
    if arguments.random == "8b" and not gpus:
        raise InputError("--random 8b is for a GPU, and there is none: --random 1b or tiny")
    size = "small" if arguments.small or not gpus else "gpu"
    parts = chosen(SIZES[size], arguments.only)
    out = folder_for(arguments)
    name = f"gpu-{platform.node()}-{datetime.now():%Y%m%d-%H%M%S}"
    report = Report({"command": " ".join(["python -m tests.bench.gpu", *sys.argv[1:]]),
                     "host": platform.node(), "began": f"{datetime.now():%Y-%m-%d %H:%M}",
                     "size": size})
    with tempfile.TemporaryDirectory(dir=out, prefix=".scratch-",
                                     ignore_cleanup_errors=True) as folder:
        config = scratch.read_config(arguments.source, arguments.overrides, Path(folder))
        config = scratch.make(arguments.source, arguments.random, config, Path(folder),
                              SIZES[size].records, out / f"{name}.log", budget.left())
        report.about |= {"model": arguments.random or config.model.name_or_path,
                         "dtype": config.model.dtype}
        measure(parts, Bench(
            config=config, gpus=len(gpus), gpu_memory=min((memory for _, memory, _ in gpus),
                                                          default=0),
            random=random_model.is_random(Path(config.model.name_or_path)), sizes=SIZES[size],
            budget=budget, folder=Path(folder), log=out / f"{name}.log",
            report=report, write=partial(report.write, out, name)), SIZES[size].rounds)
    report.about["minutes"] = round(arguments.minutes - budget.left() / 60, 1)
    print(report.markdown())
    print(*report.write(out, name), sep="\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.gpu", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s RUN_OR_CONFIG [section.key=value ...] [options]")
    parser.add_argument("words", nargs="*", metavar="RUN_OR_CONFIG [section.key=value ...]",
                        help="a run folder or a configuration, and values of it replaced")
    parser.add_argument("--minutes", type=float, default=60, help="that all of it may take (60)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results are written; "
                        "without a run folder: adg-bench/ among the temporary files")
    parser.add_argument("--small", action="store_true", help="a few records of each, as on a CPU")
    parser.add_argument("--random", choices=tuple(random_model.SHAPES), help="in the place of "
                        "RUN_OR_CONFIG: a Llama of random weights of this size")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="PART,...",
                        help="these parts alone")
    arguments = parser.parse_intermixed_args()
    sources = [Path(word) for word in arguments.words if "=" not in word]
    if len(sources) != (arguments.random is None):
        parser.error("give one RUN_OR_CONFIG, or --random")
    arguments.source = sources[0] if sources else None
    arguments.overrides = [word for word in arguments.words if "=" in word]
    return arguments


def chosen(sizes: Sizes, only: list[str] | None) -> list[Part]:
    """The parts in order, or those that --only names."""
    parts = [*machine.parts(), *embedding.peak_parts(), *sampling.parts(), *embedding.parts(),
             *training.parts(sizes), *evaluation.parts()]
    names = list(dict.fromkeys(part.what for part in parts))
    unknown = [name for name in only or () if name not in names]
    if unknown:
        raise InputError(f"--only {unknown[0]}: no such part; there are {', '.join(names)}")
    return [part for part in parts if only is None or part.what in only]


def folder_for(arguments: argparse.Namespace) -> Path:
    """Where the results are written: --out, or bench/ in the run folder."""
    out = arguments.out
    if out is None and arguments.source is None:
        out = Path(tempfile.gettempdir()) / "adg-bench"
    elif out is None and arguments.source.is_dir():
        out = arguments.source / "bench"
    elif out is None:
        config = scratch.read_config(arguments.source, arguments.overrides, Path())
        out = Path(config.output_dir) / "bench"
    out.mkdir(parents=True, exist_ok=True)
    return out


def run() -> None:
    try:
        main()
    except Failed as error:
        raise InputError(f"the pool could not be made: {error}") from None


if __name__ == "__main__":
    process.run_script(run)
