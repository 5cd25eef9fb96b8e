"""Which checkpoint a resumed run continues from, and what is removed when none is needed."""

import json
import shutil
from pathlib import Path

from adg.base import distributed
from adg.base.errors import InputError

WHOLE = "complete.json"  # written into a checkpoint when all of its files are on disk


def last_whole_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None.

    DeepSpeed cuts the optimiser's state by rank; InputError where the rank count is another now.
    """
    whole = sorted(work.glob(f"checkpoint-*/{WHOLE}"),
                   key=lambda path: int(path.parent.name.removeprefix("checkpoint-")))
    if not whole:
        return None
    ranks = json.loads(whole[-1].read_text())["world_size"]
    if ranks != distributed.world_size():
        raise InputError(f"{whole[-1].parent} was written by {ranks} rank(s), and this run has "
                         f"{distributed.world_size()}: start it with {ranks}, or train from the "
                         f"beginning: bash run.sh CONFIG finetune --overwrite")
    return whole[-1].parent


def remove_checkpoints(work: Path) -> None:
    """Remove what a killed run would have continued from: several times the size of the model."""
    for folder in work.glob("checkpoint-*"):
        shutil.rmtree(folder)


def remove_partial_checkpoints(work: Path) -> None:
    """Remove the checkpoints that were not written to their end, as far as that is possible."""
    for folder in work.glob("checkpoint-*"):
        if not (folder / WHOLE).exists():
            shutil.rmtree(folder, ignore_errors=True)
