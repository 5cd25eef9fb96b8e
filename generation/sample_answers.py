"""Stage sample: draw K answers to each instruction of the pool.

Reads   pool.jsonl            N records
Writes  answers/*.jsonl       N records with generated_answers, finish_reasons and num_tokens [K]
                              (token_ids [K] too with generation.keep_token_ids), a file per
                              chunk_size records; existing ones are not drawn again
        earlier/              where the pool has changed: the answers and vectors that are looked at
                              for unchanged records (adg.pipeline.earlier)
        answer_grams/*.npy    with embedding.source=sampling: the answers' vectors, as the embed
                              stage writes them (window_grams/, answer_embeddings/ likewise)
        check_answers/*.jsonl         and of the first embedding.check_answers answers the token
                              ids and vectors, for a check by the embed stage

    python -m generation.sample_answers configs/demo.yaml
    torchrun --nproc_per_node=2 -m generation.sample_answers configs/demo.yaml
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adg import answer_vectors
from adg.base import artifacts, distributed, process
from adg.base.errors import InputError
from adg.config import Config
from adg.models import folders
from adg.models.loading import LocalModel
from adg.pipeline import earlier, planning, stage_run
from adg.pipeline.chunks import Chunks
from adg.pipeline.command import parse_command
from adg.pipeline.readiness import objections
from adg.pipeline.stages import needed_stages
from adg.prompts import Prompter
from adg.records import Pool
from generation.drafts import Draft, draw
from generation.samplers import Sampler, left_unused
from generation.transformers_sampler import TransformersSampler
from generation.vllm_sampler import VllmSampler

_BYTES_PER_TOKEN = 6  # of an answer in a file, about; more than most tokens have
SAMPLERS: dict[str, Callable[[LocalModel, Config], Sampler]] = {
    "vllm": VllmSampler, "transformers": TransformersSampler}


def main() -> None:
    command = parse_command(__doc__, prompts=True)
    config = command.config
    if command.show_prompts:
        show_prompts(command.show_prompts, config)
        return
    run = stage_run.begin("sample", config, overwrite=command.overwrite, dry_run=command.dry_run)
    if run is None:
        return
    if config.embedding.source == "sampling":
        run.makes_part_of("embed")
    pool = Pool(run.folder)
    for objection in objections("sample", needed_stages(config), config):
        distributed.say(f"[sample] note: {objection}")
    distributed.claim_gpus(config.model.tensor_parallel_size, "model.tensor_parallel_size")
    source = backbone(config)
    stage = SampleStage(run, pool, source, load_prompter(source, config))
    if command.dry_run:
        stage.plan()
        return
    unused = left_unused(source.folder, config.generation)
    say_notes(unused, config)
    run.start(follow=lambda: earlier.set_aside(run.folder, stage.unfit()))
    stage.chunks.complete(
        stage.sample, lambda: {"generation_config_unused": unused} if unused else {})


def backbone(config: Config) -> LocalModel:
    """The configured model; InputError where the configuration asks more of it than it takes."""
    folder = folders.local_folder(config.model.name_or_path, config.output_dir)
    limit = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
    length = config.generation.max_model_len
    surplus = config.embedding.source == "sampling"
    if limit is not None and length + surplus > limit:
        raise InputError(f"generation.max_model_len is {length}, but the model takes {limit} tokens"
                         + ", and embedding.source=sampling draws one more" * surplus)
    return LocalModel(folder, config.model.trust_remote_code)


def load_prompter(source: LocalModel, config: Config) -> Prompter:
    """What makes prompts of records."""
    return Prompter(config.generation.prompt, source.tokenizer(), config.generation)


def say_notes(unused: dict[str, Any], config: Config) -> None:
    """Say what is `unused` of the model's own settings, and what two answers come to."""
    if unused:
        distributed.say(f"[sample] note: the model's generation_config.json asks for {unused}, "
                        f"which is not done: the section generation decides")
    if note := config.selection.note(config.generation.num_answers):
        distributed.say(f"[sample] note: {note}")


class SampleStage:
    """The chunks of answers of a pool: which are missing, what they lack, and how it is made."""

    def __init__(self, run: stage_run.StageRun, pool: Pool, source: LocalModel,
                 prompter: Prompter) -> None:
        self.run, self.config, self.pool = run, run.config, pool
        self.source, self.prompter = source, prompter
        self.chunks = Chunks(run, len(pool), self.is_missing)

    def path(self, index: int) -> Path:
        """The file of a chunk."""
        return self.run.folder / "answers" / artifacts.chunk_name(index, "jsonl")

    def is_missing(self, index: int) -> bool:
        """Whether a chunk has no file, or one of a smaller pool, which is added to."""
        return not self.path(index).exists() or (
            self.run.extends and len(self.on_disk(index)) < len(self.chunks.rows[index]))

    def on_disk(self, index: int) -> Sequence[dict] | artifacts.JsonlRows:
        """The rows of a chunk's file; none where there is no file, or one of another K."""
        if not self.path(index).exists():
            return ()
        rows = artifacts.JsonlRows(self.path(index))
        answers = rows.row(0)[0]["generated_answers"] if len(rows) else ()
        return rows if len(answers) == self.config.generation.num_answers else ()

    def unfit(self) -> list[int]:
        """The chunks that do not hold the pool's records in the pool's order."""
        return earlier.unfit_chunks(self.run.folder, self.pool, self.run.chunk_size)

    def kept(self, index: int, on_disk: Iterable[dict],
             before: earlier.Earlier) -> list[dict | None]:
        """For each record of a chunk the row that has its answers, of its file or of `before`."""
        kept: list[dict | None] = list(on_disk)
        return kept + [before.row(record, self.config.generation.num_answers)
                       for record in self.pool.rows(self.chunks.rows[index])[len(kept):]]

    def draft(self, index: int, before: earlier.Earlier) -> Draft:
        """A chunk with what is kept of it, and the requests for the rest."""
        rows, on_disk = self.chunks.rows[index], self.on_disk(index)
        return Draft(index, self.pool.rows(rows), self.prompter, self.config, first_row=rows.start,
                     kept=self.kept(index, on_disk, before), num_on_disk=len(on_disk))

    def sample(self, mine: list[int]) -> int:
        """Complete chunks of answers; for how many records answers were drawn."""
        before = earlier.Earlier(self.run.folder)
        lacking = sum(row is None for index in mine
                      for row in self.kept(index, self.on_disk(index), before))
        sampler = SAMPLERS[self.config.generation.sampler](self.source, self.config) \
            if lacking else None
        drafts = (self.draft(index, before) for index in mine)
        with distributed.progress("sample", lacking) as progress:
            for draft in draw(drafts, sampler, progress.update):
                if self.config.embedding.source == "sampling":
                    write_vectors(self.run.folder, draft, self.source.described.hidden_size,
                                  self.config, before)
                self.run.count(draft.index, draft.notes)
                artifacts.write_jsonl(self.path(draft.index), draft.rows)
        return lacking

    def plan(self) -> None:
        """Report how many records lack answers, and what these may take."""
        run, rows = self.run, self.chunks.rows
        moved = set(self.unfit() if run.follows else ())
        before = earlier.Earlier(run.folder, sorted(moved))
        to_do = sorted({*self.chunks.to_do(), *moved} & set(range(len(rows))))
        lacking = self.pool if run.overwrite else (
            record for index in to_do for record, row in zip(
                self.pool.rows(rows[index]),
                self.kept(index, () if index in moved else self.on_disk(index), before),
                strict=True) if row is None)
        work, num_records, disk = self.work_on(lacking)
        planning.show(run, work, records=num_records, disk=disk, chunks=rows, missing=to_do)

    def work_on(self, lacking: Iterable[dict]) -> tuple[dict[str, str], int, int]:
        """(what records without answers come to, in words; their number; bytes on disk)."""
        settings, tokens, fits = self.config.generation, 0, Counter()
        for record in lacking:
            ids, how = self.prompter.fitted(record)
            tokens += len(ids)
            fits[how] += 1
        num_records = fits.total()
        num_answers = num_records * settings.num_answers
        at_most = num_answers * settings.max_new_tokens
        pool_bytes = self.run.folder.joinpath("pool.jsonl").stat().st_size
        disk = pool_bytes * num_records // len(self.pool) + at_most * _BYTES_PER_TOKEN
        if self.config.embedding.source == "sampling":
            disk += answer_vectors.num_bytes(num_records, self.source.described.hidden_size,
                                             self.config.embedding,
                                             self.config.generation.num_answers)
        return {
            "records": f"{num_records:,} of {len(self.pool):,} to do",
            "prompts": f"{tokens:,} tokens; {fits['cut']:,} cut, {fits['too_long']:,} rejected",
            "answers": f"{num_answers:,}, {at_most:,} tokens at most",
        }, num_records, disk


def write_vectors(folder: Path, draft: Draft, width: int, config: Config,
                  before: earlier.Earlier | None = None) -> None:
    """Write the vectors of a chunk's records after those that its file held, with those that
    `before` has.

    Where some of the kept records have none, the chunk's vectors are removed: the embed stage
    computes them all.
    """
    after = draft.num_on_disk
    moved = {number: before.vectors(row, config) for number, row in enumerate(draft.kept)
             if number >= after and row is not None}
    if None in moved.values() or answer_vectors.num_rows(
            folder, draft.index, config.embedding, config.generation.num_answers) < after:
        answer_vectors.remove(folder, draft.index, config.embedding)
        return
    shape = (config.generation.num_answers, 1 + len(config.embedding.windows), width)
    drawn = {number: draft.vectors.get(number, np.full(shape, np.nan, np.float32))
             for number in range(after, len(draft.rows)) if number not in moved}
    write_checked(folder, draft, drawn)
    draft.notes[answer_vectors.BY_SAMPLING] = len(drawn)
    vectors = np.stack([*drawn.values()]) if drawn else np.empty((0, *shape), np.float32)
    empty = np.isnan(vectors).any(axis=(2, 3))                                     # [n, K]
    answer_vectors.write(folder, draft.index, vectors, empty, config.embedding, after=after,
                         kept={number - after: rows for number, rows in moved.items()})


def write_checked(folder: Path, draft: Draft, drawn: dict[int, np.ndarray]) -> None:
    """Write the token ids and unit vectors by which the embed stage checks, of the first rows."""
    rows = [{"row": draft.first_row + number, "id": draft.rows[number]["id"],
             "token_ids": draft.token_ids[number], "vectors": [
                 None if np.isnan(vectors).any() else answer_vectors.unit(vectors).tolist()
                 for vectors in drawn[number]]}
            for number in drawn if draft.is_checked(number)]
    if rows:
        artifacts.write_jsonl(folder / answer_vectors.CHECK_FOLDER
                              / artifacts.chunk_name(draft.index, "jsonl"), rows)


def show_prompts(number: int, config: Config) -> None:
    """Print what the model reads of the first records, special tokens included."""
    pool = Pool(Path(config.output_dir))
    source = backbone(config)
    tokenizer, prompter = source.tokenizer(), load_prompter(source, config)
    for record in pool.rows(range(number)):
        ids, how = prompter.fitted(record)
        if prompter.control_tokens.are_in(record["instruction"], record["input"]):
            how += ", control tokens in the record as text"
        distributed.say(f"== {record['id']}: {len(ids)} tokens, {how}\n{tokenizer.decode(ids)}")


if __name__ == "__main__":
    process.run_script(main)
