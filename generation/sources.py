"""Where a pool comes from: files of any of these kinds, a folder of them, or a hub data set.

.jsonl  .json (an array, or an object a line)  .parquet  .csv and .tsv, each but Parquet also
compressed as .gz and in any encoding (pool.encoding); `hf:owner/name`.
What cannot be read as a record is yielded too, with the reason: nothing is skipped silently.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from adg.base.errors import InputError
from adg.config import HUB, PoolConfig
from generation.csv_files import read_columns
from generation.json_files import read_array, read_lines
from generation.raw import Raw
from generation.text_files import kind

_ROWS = 1000  # of a Parquet file that are read at once


def read_pool(settings: PoolConfig) -> Iterator[Raw]:
    """Every record of pool.path in order; InputError where a source cannot be read at all."""
    if settings.on_hub():
        yield from _from_hub(settings)
        return
    for path in pool_files(settings.path):
        try:
            yield from READERS[kind(path)](path, settings)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path}: the compressed file is cut short or damaged ({error}); get "
                             f"it again") from None


def pool_files(pool_path: str) -> list[Path]:
    """The files that pool.path stands for; InputError where there is none."""
    path = Path(pool_path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and kind(file) in READERS
                       and not any(part.startswith(".") for part in file.relative_to(path).parts))
        if not files:
            raise InputError(f"pool.path: {path}/ holds no file of a pool ({', '.join(READERS)}, "
                             f"also with .gz)")
        return files
    if not path.is_file():
        raise InputError(f"pool.path: {path} not found")
    if kind(path) not in READERS:
        raise InputError(f"pool.path: {path} is none of {', '.join(READERS)} (also with .gz), a "
                         f"folder, or hf:owner/name")
    return [path]


def _table(path: Path, settings: PoolConfig) -> Iterator[Raw]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield Raw(row, str(path), "row", number)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})"
                         ) from None


def _from_hub(settings: PoolConfig) -> Iterator[Raw]:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    name = settings.path.removeprefix(HUB)
    try:
        rows = datasets.load_dataset(name, split=settings.split, revision=settings.revision)
    except (DatasetNotFoundError, ConnectionError, ValueError, OSError) as error:
        raise InputError(f"pool.path: the hub did not give {name}, split {settings.split}: "
                         f"{str(error).splitlines()[0]}") from None
    for number, row in enumerate(rows, start=1):
        yield Raw(row, settings.path, "row", number)


READERS: dict[str, Callable[[Path, PoolConfig], Iterator[Raw]]] = {
    ".jsonl": read_lines, ".json": read_array, ".parquet": _table, ".csv": read_columns,
    ".tsv": read_columns}
