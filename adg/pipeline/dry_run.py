"""--dry-run: each stage says what it would do, and nothing is written to output_dir."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from adg.base.artifacts import JsonlRows
from adg.base.distributed import say
from adg.base.errors import InputError
from adg.base.units import nearest
from adg.config import Config
from adg.pipeline import processes
from adg.pipeline.command import Command
from adg.pipeline.readiness import check_before, options_to_run
from adg.pipeline.stages import STAGES


def dry_run(stages: list[str], arguments: list[str], command: Command, *, named: bool,
            quiet: bool = False) -> list[str]:
    """Have each stage that is not done say what it would do; those that did.

    A pool that is not prepared yet is prepared aside. Of a stage whose inputs are missing, as an
    earlier one would make them, the pool and the configuration have to say.
    """
    config, folder, ran = command.config, command.config.output_dir, []
    arguments = [word for word in arguments if word != "--overwrite"]
    ranks, environment = processes.layout()
    with contextlib.ExitStack() as on_end:
        for name in stages:
            try:
                options = options_to_run(name, config, overwrite=command.overwrite, named=named,
                                         dry_run=True)
            except InputError as error:
                if not ran:
                    raise
                say(f"[{name}] cannot say yet: {str(error).replace(config.output_dir, folder)}")
                say_outlook(name, config)
                continue
            if options is None:
                continue
            check_before(name, stages, config)
            own_ranks = processes.ranks_for(name, config, ranks)
            processes.say_start(name, own_ranks)
            processes.run_stage(name, [*arguments, *options], config, own_ranks, environment)
            ran.append(name)
            if ("pool.jsonl" in STAGES[name].writes(config)
                    and not (Path(folder) / "pool.jsonl").exists()):
                aside = on_end.enter_context(prepared_aside(name, arguments, config, environment))
                config = replace(config, output_dir=str(aside))
                arguments = [*arguments, f"output_dir={aside}"]
    return ran


def say_outlook(name: str, config: Config) -> None:
    """Print what pool and configuration say of a stage whose inputs are missing."""
    pool = Path(config.output_dir) / "pool.jsonl"
    for line in STAGES[name].outlook(config, len(JsonlRows(pool)) if pool.is_file() else 0):
        say(f"  {line}")


@contextlib.contextmanager
def prepared_aside(name: str, arguments: list[str], config: Config,
                   environment: dict[str, str]) -> Iterator[Path]:
    """A run folder with the pool that stage `name` prepares, gone at the end.

    It is beside the one of the configuration, whose disk and whose dequantised models it shares;
    where nothing can be written there, in $TMPDIR.
    """
    folder = Path(config.output_dir).absolute()
    beside = nearest(folder)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.dry-run-", dir=beside if os.access(
            beside, os.W_OK) else None) as aside:
        models = folder.with_name("models")
        if Path(config.model.name_or_path).suffix == ".gguf" and os.access(beside, os.W_OK):
            models.mkdir(parents=True, exist_ok=True)  # the run finds what this converts
        if models.is_dir():
            (Path(aside) / "models").symlink_to(models)
        prepared = Path(aside) / folder.name
        words = [word for word in arguments if word != "--dry-run"]
        status = processes.wait_for([sys.executable, "-m", STAGES[name].module, *words,
                                     f"output_dir={prepared}"], environment, quiet=True)
        if status:
            sys.exit(status)
        yield prepared
