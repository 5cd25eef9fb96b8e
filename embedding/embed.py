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
are kept.

    python -m embedding.embed configs/demo.yaml
    torchrun --nproc_per_node=2 -m embedding.embed configs/demo.yaml
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adg import answer_vectors, arrays, artifacts, distributed, models, planning, provenance
from adg.command import parse_command
from adg.config import Config
from adg.records import Answer, Answers, Pool
from embedding import backbone, check
from embedding.forward import Embedder, length
from embedding.sequences import RECIPES, Encoder, Row


def main() -> None:
    command = parse_command(__doc__)
    config = command.config
    run = provenance.begin("embed", config, overwrite=command.overwrite,
                           dry_run=command.dry_run)
    if run is None:
        return
    folder = models.local_folder(config.model.name_or_path, config.output_dir)
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
    to_do = distributed.agreed("chunks to do", missing)
    mine = distributed.my_share(to_do)
    if mine:
        encoder = backbone.load_encoder(folder, config)
        embedder = backbone.load_embedder(folder, config)
        if distributed.rank() == 0:
            check.check_sampled(run.folder, pool, encoder, embedder, config)
        with distributed.progress("embed", sum(len(chunks[i]) for i in mine)) as progress:
            for work in one_ahead(
                    lambda i: prepare(run, i, chunks[i], pool, answers, encoder), mine):
                complete(run, work, embedder)
                progress.update(len(chunks[work.index]))
    if run.done_by_all(missing):
        run.finish(records=sum(len(chunks[i]) for i in to_do), **check.found(run.folder, config),
                   vector_sources=answer_vectors.sources(run.folder))
    distributed.barrier("finished")


def instructions_path(folder: Path, index: int) -> Path:
    """The file of a chunk's instruction vectors."""
    return folder / "instruction_embeddings" / artifacts.chunk_name(index, "npy")


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


def plan(run: provenance.StageRun, pool: Pool, answers: Answers, folder: Path,
         chunks: list[range], missing: list[int]) -> None:
    """Say what there is to do with the model in `folder`."""
    encoder = backbone.load_encoder(folder, run.config)
    width = backbone.describe(folder, run.config).hidden_size
    config = run.config
    tokens = cut = texts = 0
    for i in missing:
        instructions, vectors = (0, 0) if run.overwrite else rows_there(run.folder, i, config)
        for found in (encoder.instructions(pool.rows(chunks[i][instructions:])),
                      encoder.answers(pool.rows(chunks[i][vectors:]),
                                      read_answers(answers, chunks[i][vectors:], config))):
            texts += sum(len(row.texts) for row in found[0])
            tokens, cut = tokens + sum(map(length, found[0])), cut + found[1]
    num_records = sum(len(chunks[i]) for i in missing)
    planning.show(run, {
        "records": f"{num_records:,} of {len(pool):,} to do",
        "texts": f"{texts:,}, {tokens:,} tokens with each prompt counted once; {cut:,} cut",
    }, records=num_records, chunks=chunks, missing=missing,
        disk=4 * num_records * width + answer_vectors.num_bytes(num_records, width, config))


class Work(NamedTuple):
    """What a chunk lacks: the rows to embed, and after which of its records they go."""

    index: int
    after: tuple[int, int]  # records that have their (instruction's vector, answers' vectors)
    of_instructions: list[Row]
    of_answers: list[Row]
    empty: np.ndarray  # bool [n, K]: which answers have no token
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


def prepare(run: provenance.StageRun, index: int, rows: range, pool: Pool, answers: Answers,
            encoder: Encoder) -> Work:
    """Read and tokenise what a chunk of pool `rows` lacks."""
    config = run.config
    instructions, vectors = rows_there(run.folder, index, config)
    if not vectors:
        instructions = 0  # so that a chunk whose writing was cut short comes out to the last bit
    own = read_answers(answers, rows[vectors:], config)
    of_instructions, cut_instructions = encoder.instructions(pool.rows(rows[instructions:]))
    of_answers, cut_answers = encoder.answers(pool.rows(rows[vectors:]), own)
    counts = {"cut_instructions": cut_instructions, "cut_answers": cut_answers}
    if config.embedding.source == "sampling" and own:
        counts |= {answer_vectors.BY_FORWARD: len(own), answer_vectors.KEPT: vectors}
    empty = np.array([[answer.is_empty() for answer in answers] for answers in own])
    return Work(index, (instructions, vectors), of_instructions, of_answers, empty, counts)


def complete(run: provenance.StageRun, work: Work, embedder: Embedder) -> None:
    """Embed what a chunk lacks, and write it after what is there."""
    found = embedder.embed(work.of_instructions + work.of_answers)              # [texts, W, H]
    run.count(work.index, work.counts)
    instructions, vectors = work.after
    number = len(work.of_instructions)
    if number:
        arrays.write_array(instructions_path(run.folder, work.index), found[:number, 0],
                           after=instructions)
    if len(work.empty):
        by_record = found[number:].reshape(*work.empty.shape, *found.shape[1:])
        answer_vectors.write(run.folder, work.index, by_record, work.empty, run.config,
                             after=vectors)


if __name__ == "__main__":
    distributed.run_script(main)
