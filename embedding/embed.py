"""Stage embed: compute unit vectors of instructions, and Gram matrices of the answers' spread.

Reads   pool.jsonl                        N records
        answers/*.jsonl                   N rows of K answers
        check_answers/*.jsonl             with embedding.source=sampling: what the first answers are
                                          checked by
Writes  instruction_embeddings/*.npy      float32 [n, H], unit rows
        answer_embeddings/*.npy           float32 [n, K, H], NaN for an answer without a token; only
                                          with embedding.keep_answer_embeddings
        answer_grams/*.npy                float32 [n, K, K], of the centred unit answer vectors;
                                          NaN in the row and column of an answer without a token
        window_grams/NAME/*.npy           the same for each of embedding.windows

Existing rows, of a smaller pool or from the sample stage (embedding.source=sampling), are kept, and
so are those that earlier/ has of records whose place in the pool has changed.

    python -m embedding.embed configs/demo.yaml
    torchrun --nproc_per_node=2 -m embedding.embed configs/demo.yaml
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from adg import answer_vectors
from adg.base import arrays, artifacts, distributed, process
from adg.models import folders
from adg.models.layers import windows_of
from adg.models.loading import LocalModel
from adg.pipeline import planning, stage_run
from adg.pipeline.chunks import Chunks
from adg.pipeline.command import parse_command
from adg.pipeline.earlier import INSTRUCTIONS, Earlier, prune
from adg.records import Answer, Answers, Pool
from embedding import check
from embedding.forward import Embedder, length, load_embedder
from embedding.sequences import RECIPES, Encoder, Row, load_encoder


def main() -> None:
    command = parse_command(__doc__)
    config = command.config
    run = stage_run.begin("embed", config, overwrite=command.overwrite,
                          dry_run=command.dry_run)
    if run is None:
        return
    pool = Pool(run.folder)
    source = LocalModel(folders.local_folder(config.model.name_or_path, config.output_dir),
                        config.model.trust_remote_code)
    check_model(source, run)
    stage = EmbedStage(run, pool, Answers(run.folder, pool), source)
    for index in distributed.my_share(range(len(stage.chunks.rows))):
        stage.answers_of(index)  # all are read once before the first is embedded
    if command.dry_run:
        stage.plan()
        return
    run.start()
    stage.chunks.complete(stage.embed, stage.finish)


def check_model(source: LocalModel, run: stage_run.StageRun) -> None:
    """InputError where the model does not have the layers that embedding asks for, or its weights
    cannot fit this rank's memory. Reads the model's configuration only."""
    from transformers import AutoModel

    settings = run.config.embedding
    windows_of(settings, source.described.num_hidden_layers)
    source.check_room(AutoModel, run.config.embedding_dtype(), gpus=settings.gpus_per_model)


class Existing(NamedTuple):
    """The vectors of one kind that a chunk has already."""

    rows: int  # in the chunk's file, from its first record on
    moved: dict[int, Any]  # in earlier/, by the number of a record after those

    def lacking(self, num_records: int) -> list[int]:
        """The numbers of the chunk's records that are to be embedded."""
        return [number for number in range(self.rows, num_records)
                if number - self.rows not in self.moved]


class Work(NamedTuple):
    """What a chunk lacks: the rows to embed, and the vectors between which theirs go."""

    index: int
    instructions: Existing
    answers: Existing
    of_instructions: list[Row]
    of_answers: list[Row]
    empty: np.ndarray  # bool [n, K]: which answers have no token
    num_records: int  # that lack either
    counts: dict[str, int]


class EmbedStage:
    """The chunks of vectors of a pool: which are missing, what they lack, and how it is made."""

    def __init__(self, run: stage_run.StageRun, pool: Pool, answers: Answers,
                 source: LocalModel) -> None:
        self.run, self.config, self.source = run, run.config, source
        self.pool, self.answers = pool, answers
        self.chunks = Chunks(run, len(pool), lambda index: min(self.num_rows(index))
                             < len(self.chunks.rows[index]))

    @cached_property
    def encoder(self) -> Encoder:
        """What makes rows of texts."""
        return load_encoder(self.source, self.config)

    @cached_property
    def embedder(self) -> Embedder:
        """What makes vectors of rows; the model is loaded at its first use."""
        return load_embedder(self.source, self.config)

    @cached_property
    def before(self) -> Earlier:
        """What earlier/ has, once the stage has started."""
        return Earlier(self.run.folder)

    def num_rows(self, index: int) -> tuple[int, int]:
        """How many of a chunk's records have their (instruction's vector, answers' vectors)."""
        path = self.instructions_path(index)
        return (arrays.shape_of(path)[0] if path.exists() else 0,
                answer_vectors.num_rows(self.run.folder, index, self.config.embedding,
                                        self.config.generation.num_answers))

    def instructions_path(self, index: int) -> Any:
        """The file of a chunk's instruction vectors."""
        return self.run.folder / INSTRUCTIONS / artifacts.chunk_name(index, "npy")

    def answers_of(self, index: int) -> list[list[Answer]]:
        """K answers for each record of a chunk; a row of fewer is an error where empty answers are
        left out."""
        settings = self.config.embedding
        return self.answers.generated(
            self.chunks.rows[index], num_answers=self.config.generation.num_answers,
            token_ids=RECIPES[settings.recipe].reads_token_ids,
            padded=settings.empty_answers != "leave_out")

    def embed(self, mine: list[int]) -> int:
        """Complete chunks of vectors; for how many records something was embedded."""
        if distributed.rank() == 0 and self.config.embedding.source == "sampling":
            check.check_sampled(self.run.folder, self.pool, self.encoder, self.embedder,
                                self.config)
        embedded, rows = 0, self.chunks.rows
        with distributed.progress("embed", sum(len(rows[index]) for index in mine)) as progress:
            for work in one_ahead(self.prepare, mine):
                self.write(work)
                embedded += work.num_records
                progress.update(len(rows[work.index]))
        return embedded

    def finish(self) -> dict[str, Any]:
        """Remove what earlier/ no longer serves; what goes into the log."""
        prune(self.run.folder, self.pool)
        return {**check.last_result(self.run.folder, self.config),
                "vector_sources": answer_vectors.sources(self.run.folder)}

    def plan(self) -> None:
        """Report which records are to be embedded, in how many tokens."""
        width = self.source.described.hidden_size
        tokens = texts = num_records = cut = 0
        for index in (to_do := self.chunks.to_do()):
            work = self.prepare(index)
            rows = work.of_instructions + work.of_answers
            texts += sum(len(row.texts) for row in rows)
            tokens += sum(map(length, rows))
            num_records += work.num_records
            cut += work.counts["cut_instructions"] + work.counts["cut_answers"]
        planning.show(self.run, {
            "records": f"{num_records:,} of {len(self.pool):,} to do",
            "texts": f"{texts:,}, {tokens:,} tokens with each prompt counted once; {cut:,} cut",
        }, records=num_records, chunks=self.chunks.rows, missing=to_do,
            disk=4 * num_records * width
            + answer_vectors.num_bytes(num_records, width, self.config.embedding,
                                       self.config.generation.num_answers))

    def prepare(self, index: int) -> Work:
        """Read and tokenise a chunk, and see what of it is to be embedded."""
        rows = self.chunks.rows[index]
        records, answers = self.pool.rows(rows), self.answers_of(index)
        existing = self.existing(index, records)
        of_instructions, cut_instructions = self.encoder.instructions(records)
        of_answers, cut_answers = self.encoder.answers(records, answers)
        counts = {"cut_instructions": cut_instructions, "cut_answers": cut_answers}
        lacking = [kind.lacking(len(rows)) for kind in existing]
        if self.config.embedding.source == "sampling" and lacking[1]:
            counts |= {answer_vectors.BY_FORWARD: len(lacking[1]),
                       answer_vectors.KEPT: len(rows) - len(lacking[1])}
        each = len(of_answers) // len(rows)  # rows of a record's answers
        return Work(
            index, *existing, [of_instructions[number] for number in lacking[0]],
            [row for number in lacking[1]
             for row in of_answers[number * each: (number + 1) * each]],
            np.array([[answer.is_empty() for answer in answers[number]] for number in lacking[1]],
                     bool),
            len({*lacking[0], *lacking[1]}), counts)

    def existing(self, index: int, records: list[dict]) -> tuple[Existing, Existing]:
        """What a chunk has of (instructions' vectors, answers' vectors)."""
        if self.run.overwrite:
            return Existing(0, {}), Existing(0, {})
        instructions, vectors = self.num_rows(index)
        if not vectors:
            instructions = 0  # so that a chunk whose writing was cut short comes out to the bit
        answers = self.answers.rows(self.chunks.rows[index])
        of_instructions = map(self.before.instruction, records[instructions:])
        of_answers = (self.before.vectors(row, self.config) for row in answers[vectors:])
        return tuple(Existing(rows, {number: moved for number, moved in enumerate(values)
                                     if moved is not None})
                     for rows, values in ((instructions, of_instructions), (vectors, of_answers)))

    def write(self, work: Work) -> None:
        """Embed what a chunk lacks, and write it with what exists."""
        rows = work.of_instructions + work.of_answers
        vectors = (self.embedder.embed(rows) if rows                            # [texts, W, H]
                   else np.empty((0, 1 + len(self.config.embedding.windows), 1), np.float32))
        self.run.count(work.index, work.counts)
        number = len(work.of_instructions)
        if number or work.instructions.moved:
            arrays.write_array(
                self.instructions_path(work.index),
                answer_vectors.among(vectors[:number, 0], work.instructions.moved),
                after=work.instructions.rows)
        if len(work.empty) or work.answers.moved:
            shape = (len(work.empty), self.config.generation.num_answers)
            answer_vectors.write(
                self.run.folder, work.index,
                vectors[number:].reshape(*shape, *vectors.shape[1:]), work.empty.reshape(shape),
                self.config.embedding, after=work.answers.rows, kept=work.answers.moved)


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


if __name__ == "__main__":
    process.run_script(main)
