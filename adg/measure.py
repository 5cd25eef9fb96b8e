"""Stage measure: compute what a non-ADG method needs from a model, per record.

Reads   pool.jsonl                N records
Writes  measures/NAME/*.jsonl     a line per record: {"id": ..., what selection.method measures}
        measures/NAME/*.npy       float32 [n, H], the records' vectors, of a method that has them
        measures/NAME/tags.json, vectors.npy      of method mig: all tags [L], their vectors [L, H]
        measure_parts/NAME/PART/*.jsonl           of a method with several models: what each says

NAME is selection.measure, by default the method. Stage select then chooses by these files.

    python -m adg.measure configs/demo.yaml selection.method=ifd
    torchrun --nproc_per_node=2 -m adg.measure configs/demo.yaml selection.method=ifd
"""

from functools import reduce
from operator import or_
from pathlib import Path

import numpy as np

from adg.base import arrays, artifacts, distributed, process
from adg.base.errors import InputError
from adg.config import Config
from adg.methods import METHODS
from adg.methods.method import VECTOR, Measurer
from adg.models.loader import Loader
from adg.pipeline import planning, stage_run
from adg.pipeline.chunks import Chunks
from adg.pipeline.command import parse_command
from adg.pipeline.sources import model_of
from adg.records import Pool

_ROW = 400  # bytes of a row, about


def main() -> None:
    command = parse_command(__doc__)
    config = command.config
    check_measures(config)
    run = stage_run.begin("measure", config, overwrite=command.overwrite,
                           dry_run=command.dry_run)
    if run is None:
        return
    pool, folder = Pool(run.folder), folder_of(config)
    chunks = Chunks(run, len(pool), lambda i: num_rows(folder, i) < len(chunks.rows[i]))
    if command.dry_run:
        plan(run, len(pool), chunks)
        return
    run.start()
    finish = METHODS[config.selection.method].measure.finish
    chunks.complete(
        lambda mine: measure(config, pool, {i: chunks.rows[i] for i in mine}),
        lambda: finish(folder, loader_of(config), config.selection.settings()) if finish else {})


def check_measures(config: Config) -> None:
    """InputError where the method, as it is configured, measures nothing."""
    if not config.selection.facts().measures():
        names = ", ".join(name for name, method in METHODS.items() if method.measure)
        raise InputError(f"selection.method is {config.selection.method}, which measures nothing "
                         f"as it is configured; methods that do: {names}")


def folder_of(config: Config) -> Path:
    """The folder of the configured measure."""
    return Path(config.output_dir) / "measures" / config.selection.measure


def loader_of(config: Config) -> Loader:
    """What loads the models of the configured method."""
    return Loader(
        {name: model_of(name, config) for name in config.selection.facts().models},
        config.output_dir, dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
        control_tokens=config.generation.control_tokens, gpus=config.embedding.gpus_per_model,
        tokens_per_batch=config.embedding.tokens_per_batch, seed=config.seed,
        gpu_memory_utilization=config.generation.gpu_memory_utilization)


def measure(config: Config, pool: Pool, chunks: dict[int, range]) -> int:
    """Measure the records of `chunks`, by their numbers, with one model after another; how many
    lacked something."""
    loads, folder = METHODS[config.selection.method].measure.loads, folder_of(config)
    several, aside = len(loads) > 1, Path(config.output_dir) / "measure_parts"
    places = {aside / config.selection.measure / part if several else folder: load
              for part, load in loads.items()}
    number_done = sum(lacking(folder, chunks).values())
    to_do = {place: lacking(place, chunks) for place in places}
    with distributed.progress("measure", sum(map(sum, map(dict.values, to_do.values())))) as bar:
        for place, load in places.items():
            if not to_do[place]:
                continue
            measurer = load(loader_of(config), config.selection.settings())
            for i, number in to_do[place].items():
                complete(place, i, pool.rows(chunks[i]), measurer)
                process.beat()
                bar.update(number)
            if several:
                measurer.close()
    if several:
        for i in chunks:
            join(folder, i, list(places))
    return number_done


def lacking(folder: Path, chunks: dict[int, range]) -> dict[int, int]:
    """{chunk: how many of its records are still to be measured}, without those that have all."""
    return {i: number for i, rows in chunks.items() if (number := len(rows) - num_rows(folder, i))}


def join(folder: Path, index: int, parts: list[Path]) -> None:
    """Write a chunk's rows, each with what all parts say of its record."""
    name = artifacts.chunk_name(index, "jsonl")
    rows = zip(*(artifacts.JsonlRows(part / name) for part in parts), strict=True)
    artifacts.write_jsonl(folder / name, (reduce(or_, same) for same in rows))


def num_rows(folder: Path, index: int) -> int:
    """How many records of a chunk have been measured."""
    path = folder / artifacts.chunk_name(index, "jsonl")
    return len(artifacts.JsonlRows(path)) if path.is_file() else 0


def plan(run: stage_run.StageRun, num_records: int, chunks: Chunks) -> None:
    """Report how many records there are to do, with which models, for --dry-run."""
    config, loader = run.config, loader_of(run.config)
    method, missing = METHODS[config.selection.method].measure, chunks.to_do()
    wanted = {i: chunks.rows[i] for i in missing}
    records = sum(map(len, wanted.values()) if run.overwrite
                   else lacking(folder_of(config), wanted).values())
    row, vectors = _ROW * (1 + (len(method.loads) if len(method.loads) > 1 else 0)), {}
    if method.vectors:
        row += 4 * loader.local(method.vectors).described.hidden_size
    if method.finish_model:
        width = loader.local(method.finish_model).described.hidden_size
        vectors = {"vectors": f"of each tag found, {4 * width:,} bytes, beside the disk below"}
    planning.show(run, {
        "records": f"{records:,} of {num_records:,} to do",
        "method": config.selection.method,
        **{name.removeprefix("measure."): source for name, source in loader.sources.items()},
        **vectors,
    }, records=records, disk=row * records, chunks=chunks.rows, missing=missing)


def complete(folder: Path, index: int, records: list[dict], measurer: Measurer) -> None:
    """Append the rows that a chunk of `records` lacks to those it has; their vectors first."""
    after = num_rows(folder, index)
    path = folder / artifacts.chunk_name(index, "jsonl")
    rows = measurer.measure(records[after:])
    vectors = [row.pop(VECTOR) for row in rows if VECTOR in row]
    if vectors:
        arrays.write_array(path.with_suffix(".npy"), np.array(vectors, np.float32), after=after)
    lines = [*(artifacts.JsonlRows(path) if after else ()),
             *({"id": record["id"]} | row
               for record, row in zip(records[after:], rows, strict=True))]
    artifacts.write_jsonl(path, lines)


if __name__ == "__main__":
    process.run_script(main)
