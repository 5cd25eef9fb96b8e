"""Errors of libraries that write weights by themselves."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from adg.base import artifacts
from adg.base.errors import InputError


@contextlib.contextmanager
def saving(folder: Path, unfinished: Path | None = None) -> Iterator[None]:
    """An error that names `folder` where torch or safetensors cannot write what it is to hold.

    What they raise on a full disk is not an OSError. `unfinished`: the folder that they write to,
    which is then removed.
    """
    from safetensors import SafetensorError

    try:
        with artifacts.naming(folder):
            yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError) or (isinstance(error, RuntimeError)
                                          and "PytorchStreamWriter" not in str(error)):
            raise
        raise InputError(f"{folder}: cannot be written ({str(error).splitlines()[0]}); is the disk "
                         f"full?") from None
