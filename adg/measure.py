"""Stage measure: what a method other than ADG needs of a model, for each record of the pool.

Reads   pool.jsonl                N records
Writes  measures/NAME/*.jsonl     a line per record: {"id": ..., what selection.method measures}
        measures/NAME/*.npy       float32 [n, H], the records' vectors, of a method that has them
        measures/NAME/tags.json, vectors.npy      of method mig: all tags [L], their vectors [L, H]
        measure_parts/NAME/PART/*.jsonl           of a method with several models: what each says

NAME is selection.measure, by default the method. Stage select then chooses by these files.

    python -m adg.measure configs/demo.yaml selection.method=ifd
    torchrun --nproc_per_node=2 -m adg.measure configs/demo.yaml selection.method=ifd
"""

from collections.abc import Callable
from functools import reduce
from importlib import import_module
from operator import or_
from pathlib import Path
from typing import Protocol

import numpy as np

from adg.base import arrays, artifacts, distributed, process
from adg.base.errors import InputError
from adg.config import Config
from adg.methods import measures
from adg.models import folders
from adg.pipeline import planning, stage_run
from adg.pipeline.command import parse_command
from adg.pipeline.sources import model_of
from adg.pipeline.stages import inputs_of
from adg.records import Pool

_ROW = 400  # bytes of a row, about
_WITH_VECTORS = {"pre_experience": "measure.model", "superfiltering_d": "measure.encoder"}


class Measurer(Protocol):
    """A model, loaded, and what one method asks of it; one of several has `close()` too."""

    def measure(self, records: list[dict]) -> list[dict]:
        """What there is to know of each record, without its id; a vector under measures.VECTOR."""


# {method: "module:function" of what loads its measurer by the configuration}, or by PART those of
# several models, which do not fit in memory together and come one after another
MEASURERS: dict[str, str | dict[str, str]] = {
    "ifd": "adg.methods.losses:load_ifd",
    "pre_experience": "adg.methods.losses:load_pre_experience",
    "superfiltering": "adg.methods.losses:load_superfiltering",
    "superfiltering_d": "adg.methods.losses:load_superfiltering",
    "scar": "adg.methods.ranker:StyleScores",
    "mig": {"tags": "adg.methods.annotate:load_tagger",
            "quality": "adg.methods.annotate:load_quality",
            "complexity": "adg.methods.annotate:load_complexity"},
}
# {method: what writes, once all records are measured, what is of the pool as a whole}
FINISHERS = {"mig": "adg.methods.tag_vectors:write_tag_vectors"}


def main() -> None:
    command = parse_command(__doc__)
    config = command.config
    method = config.selection.method
    if not config.selection.facts().measures():
        raise InputError(f"selection.method is {method}, which measures nothing as it is "
                         f"configured; methods that do: {', '.join(MEASURERS)}")
    run = stage_run.begin("measure", config, overwrite=command.overwrite,
                           dry_run=command.dry_run)
    if run is None:
        return
    pool = Pool(run.folder)
    folder = measures.folder_of(run.folder, config)
    chunks = artifacts.chunk_bounds(len(pool), run.chunk_size)

    def missing() -> list[int]:
        return [i for i in range(len(chunks)) if rows_there(folder, i) < len(chunks[i])]

    if command.dry_run:
        plan(run, len(pool), chunks, list(range(len(chunks))) if command.overwrite else missing())
        return
    run.start()
    mine = distributed.my_share(distributed.agreed("chunks to do", missing))
    to_do = sum(len(chunks[i]) - rows_there(folder, i) for i in mine)
    if mine:
        measure(run, pool, {i: chunks[i] for i in mine})
    if run.done_by_all(missing, records=to_do):
        counts = found_at(FINISHERS[method])(folder, config) if method in FINISHERS else {}
        run.finish(records=run.records_done, **counts)
    distributed.barrier("finished")


def measure(run: stage_run.StageRun, pool: Pool, chunks: dict[int, range]) -> None:
    """Measure the records of `chunks`, by their numbers, with one model after another."""
    config, loads = run.config, loaders(run.config.selection.method)
    folder = measures.folder_of(run.folder, config)
    parts = [run.folder / "measure_parts" / config.selection.measure / part for part in loads]
    places = parts if len(parts) > 1 else [folder]
    lacking = {own: {i: number for i in chunks if (number := len(chunks[i]) - rows_there(own, i))}
               for own in places}
    with distributed.progress("measure", sum(map(sum, map(dict.values, lacking.values())))) as bar:
        for load, own in zip(loads.values(), places, strict=True):
            measurer = load(config) if lacking[own] else None
            for i, number in lacking[own].items():
                complete(own, i, pool.rows(chunks[i]), measurer)
                process.beat()
                bar.update(number)
            if measurer and len(parts) > 1:
                measurer.close()
    for i in chunks if len(parts) > 1 else ():
        join(folder, i, parts)


def loaders(method: str) -> dict[str, Callable[[Config], Measurer]]:
    """What loads a method's measurers, by PART ("" where there is one)."""
    given = MEASURERS[method]
    return {part: found_at(place)
            for part, place in (given if isinstance(given, dict) else {"": given}).items()}


def found_at(place: str) -> Callable:
    """The function of "module:function"; the module is imported here and not before."""
    module, function = place.split(":")
    return getattr(import_module(module), function)


def join(folder: Path, index: int, parts: list[Path]) -> None:
    """Write a chunk's rows, each with what all parts say of its record."""
    name = artifacts.chunk_name(index, "jsonl")
    rows = zip(*(artifacts.JsonlRows(part / name) for part in parts), strict=True)
    artifacts.write_jsonl(folder / name, (reduce(or_, own) for own in rows))


def rows_there(folder: Path, index: int) -> int:
    """How many records of a chunk have been measured."""
    path = folder / artifacts.chunk_name(index, "jsonl")
    return len(artifacts.JsonlRows(path)) if path.is_file() else 0


def plan(run: stage_run.StageRun, num_records: int, chunks: list[range],
         missing: list[int]) -> None:
    """Say what there is to do."""
    config = run.config
    outside = [name for name in inputs_of("measure", config)[0] if name.startswith("measure.")]
    folder = measures.folder_of(run.folder, config)
    records = sum(len(chunks[i]) - (0 if run.overwrite else rows_there(folder, i))
                  for i in missing)
    loads = loaders(config.selection.method)
    row, vectors = _ROW * (1 + (len(loads) if len(loads) > 1 else 0)), {}
    if config.selection.method in _WITH_VECTORS:
        row += 4 * width_of(_WITH_VECTORS[config.selection.method], config)
    if config.selection.method in FINISHERS:
        width = width_of("measure.tag_encoder", config)
        vectors = {"vectors": f"of each tag found, {4 * width:,} bytes, beside the disk below"}
    planning.show(run, {
        "records": f"{records:,} of {num_records:,} to do",
        "method": config.selection.method,
        **{name.removeprefix("measure."): model_of(name, config) for name in outside}, **vectors,
    }, records=records, disk=row * records, chunks=chunks, missing=missing)


def width_of(name: str, config: Config) -> int:
    """Dimensions of the vectors of a method's model."""
    folder = folders.local_folder(model_of(name, config), config.output_dir)
    trust = config.model.trust_remote_code
    return folders.describe(folder, trust_remote_code=trust).hidden_size


def complete(folder: Path, index: int, records: list[dict], measurer: Measurer) -> None:
    """Write what a chunk of `records` lacks, after what is there; its vectors first."""
    after = rows_there(folder, index)
    path = folder / artifacts.chunk_name(index, "jsonl")
    rows = measurer.measure(records[after:])
    vectors = [row.pop(measures.VECTOR) for row in rows if measures.VECTOR in row]
    if vectors:
        arrays.write_array(path.with_suffix(".npy"), np.array(vectors, np.float32), after=after)
    lines = [*(artifacts.JsonlRows(path) if after else ()),
             *({"id": record["id"]} | row
               for record, row in zip(records[after:], rows, strict=True))]
    artifacts.write_jsonl(path, lines)


if __name__ == "__main__":
    process.run_script(main)
