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

from functools import reduce
from operator import or_
from pathlib import Path

import numpy as np

from adg.base import arrays, artifacts, distributed, watchdog
from adg.base.errors import InputError
from adg.config import Config
from adg.methods import METHODS
from adg.methods.method import VECTOR, Measurer
from adg.models.loader import Loader
from adg.pipeline import planning, provenance
from adg.pipeline.command import parse_command
from adg.pipeline.stages import model_of
from adg.records import Pool

_ROW = 400  # bytes of a row, about


def main() -> None:
    command = parse_command(__doc__)
    config = command.config
    check_measures(config)
    run = provenance.begin("measure", config, overwrite=command.overwrite,
                           dry_run=command.dry_run)
    if run is None:
        return
    pool = Pool(run.folder)
    folder = folder_of(config)
    chunks = artifacts.chunk_bounds(len(pool), run.chunk_size)

    def missing() -> list[int]:
        return [i for i in range(len(chunks)) if num_rows(folder, i) < len(chunks[i])]

    if command.dry_run:
        plan(run, len(pool), chunks, list(range(len(chunks))) if command.overwrite else missing())
        return
    run.start()
    mine = distributed.my_share(distributed.agreed("chunks to do", missing))
    to_do = sum(len(chunks[i]) - num_rows(folder, i) for i in mine)
    if mine:
        measure(config, pool, {i: chunks[i] for i in mine})
    if run.done_by_all(missing, records=to_do):
        finish = METHODS[config.selection.method].measure.finish
        counts = finish(folder, loader_of(config), config.selection.settings()) if finish else {}
        run.finish(records=run.records_done, **counts)
    distributed.barrier("finished")


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


def measure(config: Config, pool: Pool, chunks: dict[int, range]) -> None:
    """Measure the records of `chunks`, by their numbers, with one model after another."""
    loads, folder = METHODS[config.selection.method].measure.loads, folder_of(config)
    parts = [Path(config.output_dir) / "measure_parts" / config.selection.measure / part
             for part in loads]
    places = parts if len(parts) > 1 else [folder]
    lacking = {place: {i: number for i in chunks
                       if (number := len(chunks[i]) - num_rows(place, i))} for place in places}
    with distributed.progress("measure", sum(map(sum, map(dict.values, lacking.values())))) as bar:
        for load, place in zip(loads.values(), places, strict=True):
            measurer = (load(loader_of(config), config.selection.settings()) if lacking[place]
                        else None)
            for i, number in lacking[place].items():
                complete(place, i, pool.rows(chunks[i]), measurer)
                watchdog.beat()
                bar.update(number)
            if measurer and len(parts) > 1:
                measurer.close()
    for i in chunks if len(parts) > 1 else ():
        join(folder, i, parts)


def join(folder: Path, index: int, parts: list[Path]) -> None:
    """Write a chunk's rows, each with what all parts say of its record."""
    name = artifacts.chunk_name(index, "jsonl")
    rows = zip(*(artifacts.JsonlRows(part / name) for part in parts), strict=True)
    artifacts.write_jsonl(folder / name, (reduce(or_, same) for same in rows))


def num_rows(folder: Path, index: int) -> int:
    """How many records of a chunk have been measured."""
    path = folder / artifacts.chunk_name(index, "jsonl")
    return len(artifacts.JsonlRows(path)) if path.is_file() else 0


def plan(run: provenance.StageRun, num_records: int, chunks: list[range],
         missing: list[int]) -> None:
    """Say what there is to do."""
    config, loader = run.config, loader_of(run.config)
    method = METHODS[config.selection.method].measure
    records = sum(len(chunks[i]) - (0 if run.overwrite else num_rows(folder_of(config), i))
                  for i in missing)
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
    }, records=records, disk=row * records, chunks=chunks, missing=missing)


def complete(folder: Path, index: int, records: list[dict], measurer: Measurer) -> None:
    """Write what a chunk of `records` lacks, after what is there; its vectors first."""
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
    distributed.run_script(main)
