"""Stage embed: instructions to unit vectors, the answers to the Gram matrix of their spread.

Reads   pool.jsonl                        N records
        answers/*.jsonl                   N rows of K answers
        check_answers/*.jsonl             with embedding.source=sampling: what the first answers are
                                          checked by
Writes  instruction_embeddings/*.npy      float32 [n, H], unit rows
        answer_embeddings/*.npy           float32 [n, K, H], NaN for an answer without a token (see
                                          embedding.empty_answers); only with
                                          embedding.keep_answer_embeddings
        answer_grams/*.npy                float32 [n, K, K], of the centred unit answer vectors;
                                          NaN in the row and column of an answer without a token
        window_grams/NAME/*.npy           the same for each of embedding.windows

Rows that are there already, of a smaller run or from the sample stage (embedding.source=sampling),
are kept, also those that earlier/ has of records whose place in the pool has changed.

    python -m embedding.embed configs/demo.yaml
    torchrun --nproc_per_node=2 -m embedding.embed configs/demo.yaml
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adg import answer_vectors
from adg.base import arrays, artifacts, distributed, process
from adg.config import Config
from adg.models import folders
from adg.pipeline import earlier, planning, stage_run
from adg.pipeline.command import parse_command
from adg.records import Answer, Answers, Pool
from embedding import backbone, check
from embedding.forward import Embedder, length
from embedding.sequences import RECIPES, Encoder, Row


def main() -> None:
    command = parse_command(__doc__)
    config = command.config
    run = stage_run.begin("embed", config, overwrite=command.overwrite,
                           dry_run=command.dry_run)
    if run is None:
        return
    folder = folders.local_folder(config.model.name_or_path, config.output_dir)
    backbone.check(folder, config)
    pool = Pool(run.folder)
    answers = Answers(run.folder, pool)
    chunks = artifacts.chunk_bounds(len(pool), run.chunk_size)
    for i in distributed.my_share(range(len(chunks))):
        read_answers(answers, chunks[i], config)  # all, before the first is embedded

    def missing() -> list[int]:
        return [i for i in range(len(chunks)) if min(rows_there(run.folder, i, config))
                < len(chunks[i])]

    if command.dry_run:
        plan(run, pool, answers, folder, chunks, list(range(len(chunks))) if command.overwrite
             else missing())
        return
    run.start()
    mine = distributed.my_share(distributed.agreed("chunks to do", missing))
    embedded = 0
    if mine:
        before = earlier.Earlier(run.folder)
        encoder = backbone.load_encoder(folder, config)
        load_embedder = cache(lambda: backbone.load_embedder(folder, config))
        if distributed.rank() == 0 and config.embedding.source == "sampling":
            check.check_sampled(run.folder, pool, encoder, load_embedder(), config)
        with distributed.progress("embed", sum(len(chunks[i]) for i in mine)) as progress:
            for work in one_ahead(lambda i: prepare(run, i, chunks[i], pool, answers, encoder,
                                                    before), mine):
                embedded += complete(run, work, load_embedder)
                progress.update(len(chunks[work.index]))
    if run.done_by_all(missing, records=embedded):
        earlier.prune(run.folder, pool)
        run.finish(records=run.records_done, **check.found(run.folder, config),
                   vector_sources=answer_vectors.sources(run.folder))
    distributed.barrier("finished")


def instructions_path(folder: Path, index: int) -> Path:
    """The file of a chunk's instruction vectors."""
    return folder / earlier.INSTRUCTIONS / artifacts.chunk_name(index, "npy")


def rows_there(folder: Path, index: int, config: Config) -> tuple[int, int]:
    """How many of a chunk's records have their (instruction's vector, answers' vectors)."""
    path = instructions_path(folder, index)
    return (arrays.shape_of(path)[0] if path.exists() else 0,
            answer_vectors.num_rows(folder, index, config))


def read_answers(answers: Answers, rows: range, config: Config) -> list[list[Answer]]:
    """K answers for each of `rows`; a row of fewer is an error where empty answers are left out."""
    return answers.generated(rows, num_answers=config.generation.num_answers,
                             token_ids=RECIPES[config.embedding.recipe].reads_token_ids,
                             padded=config.embedding.empty_answers != "leave_out")


def plan(run: stage_run.StageRun, pool: Pool, answers: Answers, folder: Path,
         chunks: list[range], missing: list[int]) -> None:
    """Say what there is to do with the model in `folder`."""
    config, before = run.config, earlier.Earlier(run.folder)
    encoder = backbone.load_encoder(folder, config)
    width = backbone.describe(folder, config).hidden_size
    tokens = texts = num_records = cut = 0
    for i in missing:
        work = prepare(run, i, chunks[i], pool, answers, encoder, before)
        rows = work.of_instructions + work.of_answers
        texts += sum(len(row.texts) for row in rows)
        tokens += sum(map(length, rows))
        num_records += work.num_records
        cut += work.counts["cut_instructions"] + work.counts["cut_answers"]
    planning.show(run, {
        "records": f"{num_records:,} of {len(pool):,} to do",
        "texts": f"{texts:,}, {tokens:,} tokens with each prompt counted once; {cut:,} cut",
    }, records=num_records, chunks=chunks, missing=missing,
        disk=4 * num_records * width + answer_vectors.num_bytes(num_records, width, config))


class There(NamedTuple):
    """What there is of one kind of a chunk's vectors."""

    rows: int  # in the chunk's file, from its first record on
    kept: dict[int, Any]  # in earlier/, by the number of a record after those

    def lacking(self, num_records: int) -> list[int]:
        """The numbers of the chunk's records that are to be embedded."""
        return [number for number in range(self.rows, num_records)
                if number - self.rows not in self.kept]


class Work(NamedTuple):
    """What a chunk lacks: the rows to embed, and between what they go."""

    index: int
    instructions: There
    answers: There
    of_instructions: list[Row]
    of_answers: list[Row]
    empty: np.ndarray  # bool [n, K]: which answers have no token
    num_records: int  # that lack either
    counts: dict[str, int]


def one_ahead(prepare: Callable[[int], Work], chunks: Iterable[int]) -> Iterator[Work]:
    """The work of each chunk, in order; the next one's is prepared while one is embedded."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = []
        for index in chunks:
            coming.append(thread.submit(prepare, index))
            if len(coming) > 1:
                yield coming.pop(0).result()
        for last in coming:
            yield last.result()


def prepare(run: stage_run.StageRun, index: int, rows: range, pool: Pool, answers: Answers,
            encoder: Encoder, before: earlier.Earlier) -> Work:
    """Read and tokenise a chunk of pool `rows`, and see what of it is to be embedded."""
    config, records = run.config, pool.rows(rows)
    own = read_answers(answers, rows, config)
    instructions, vectors = look(run, index, records, answers.rows(rows), before)
    of_instructions, cut_instructions = encoder.instructions(records)
    of_answers, cut_answers = encoder.answers(records, own)
    counts = {"cut_instructions": cut_instructions, "cut_answers": cut_answers}
    lacking = [there.lacking(len(rows)) for there in (instructions, vectors)]
    if config.embedding.source == "sampling" and lacking[1]:
        counts |= {answer_vectors.BY_FORWARD: len(lacking[1]),
                   answer_vectors.KEPT: len(rows) - len(lacking[1])}
    each = len(of_answers) // len(rows)  # rows of a record's answers
    return Work(
        index, instructions, vectors, [of_instructions[number] for number in lacking[0]],
        [row for number in lacking[1] for row in of_answers[number * each: (number + 1) * each]],
        np.array([[answer.is_empty() for answer in own[number]] for number in lacking[1]], bool),
        len({number for numbers in lacking for number in numbers}), counts)


def look(run: stage_run.StageRun, index: int, records: list[dict], answers: list[dict],
         before: earlier.Earlier) -> tuple[There, There]:
    """What there is of a chunk's (instructions' vectors, answers' vectors)."""
    if run.overwrite:
        return There(0, {}), There(0, {})
    instructions, vectors = rows_there(run.folder, index, run.config)
    if not vectors:
        instructions = 0  # so that a chunk whose writing was cut short comes out to the last bit
    found = ((number, before.instruction(record))
             for number, record in enumerate(records[instructions:]))
    of_answers = ((number, before.vectors(row, run.config))
                  for number, row in enumerate(answers[vectors:]))
    return (There(instructions, {number: own for number, own in found if own is not None}),
            There(vectors, {number: own for number, own in of_answers if own is not None}))


def complete(run: stage_run.StageRun, work: Work, load_embedder: Callable[[], Embedder]) -> int:
    """Embed what a chunk lacks, and write it with what there is; for how many records."""
    rows = work.of_instructions + work.of_answers
    found = (load_embedder().embed(rows) if rows                                # [texts, W, H]
             else np.empty((0, 1 + len(run.config.embedding.windows), 1), np.float32))
    run.count(work.index, work.counts)
    number = len(work.of_instructions)
    if number or work.instructions.kept:
        arrays.write_array(instructions_path(run.folder, work.index),
                           answer_vectors.among(found[:number, 0], work.instructions.kept),
                           after=work.instructions.rows)
    if len(work.empty) or work.answers.kept:
        shape = (len(work.empty), run.config.generation.num_answers)
        answer_vectors.write(run.folder, work.index,
                             found[number:].reshape(*shape, *found.shape[1:]),
                             work.empty.reshape(shape), run.config, after=work.answers.rows,
                             kept=work.answers.kept)
    return work.num_records


if __name__ == "__main__":
    process.run_script(main)
