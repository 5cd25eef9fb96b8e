"""Operators that DeepSpeed compiles at its first start, and what a killed compilation leaves."""

import os
import time
from pathlib import Path

from adg.base.distributed import say

ABANDONED = 300  # seconds; the compilation of an operator takes half a minute


def clear_abandoned_locks() -> None:
    """Remove the locks of compilations that were killed, for which torch would wait without end.

    A lock names nobody, so it is its age that tells: one younger than `ABANDONED` is waited for.
    """
    for lock in _locks():
        said = False
        while (age := _age(lock)) is not None:
            if age > ABANDONED:
                lock.unlink(missing_ok=True)
                say(f"[finetune] {lock} was left by a compilation that was killed: removed")
                break
            if not said:
                say(f"[finetune] waiting for another compilation of {lock.parent.name}, "
                    f"{ABANDONED / 60:.0f} minutes at most; if there is none, remove {lock}")
                said = True
            time.sleep(0.2)


def _locks() -> list[Path]:
    from torch.utils.cpp_extension import get_default_build_root

    if folder := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return sorted(Path(folder).glob("*/lock"))
    return sorted(Path(get_default_build_root()).glob("*/*/lock"))  # by version of Python and CUDA


def _age(path: Path) -> float | None:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
