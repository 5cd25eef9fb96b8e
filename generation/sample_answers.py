"""Stage sample: draw K answers to every instruction of the pool.

Reads   pool.jsonl            N records
Writes  answers/*.jsonl       N records with generated_answers, finish_reasons and num_tokens [K]
                              (token_ids [K] too with generation.keep_token_ids), a file per
                              chunk_size records; what is there is not drawn again
        earlier/              where the pool has changed: the answers and vectors that are looked at
                              for unchanged records (adg.pipeline.earlier)
        answer_grams/*.npy    with embedding.source=sampling: the answers' vectors, as the embed
                              stage writes them (window_grams/, answer_embeddings/ likewise)
        check_answers/*.jsonl         and of the first embedding.check_answers answers the token
                              ids and vectors, for a check by the embed stage

    python -m generation.sample_answers configs/demo.yaml
    torchrun --nproc_per_node=2 -m generation.sample_answers configs/demo.yaml
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from adg import answer_vectors
from adg.base import artifacts, distributed, process
from adg.base.errors import InputError
from adg.config import Config
from adg.models import folders
from adg.pipeline import earlier, planning, stage_run
from adg.pipeline.checks import check_bins, check_budget
from adg.pipeline.command import parse_command
from adg.prompts import Prompter
from adg.records import Pool
from generation.answers import Answer, Request
from generation.samplers import SAMPLERS, Sampler, left_unused

_BYTES_PER_TOKEN = 6  # of an answer in a file, about; more than most tokens have
_TOO_LONG = "prompt_too_long"  # finish reason of the empty answers to a prompt that leaves no room


def main() -> None:
    command = parse_command(__doc__, prompts=True)
    config = command.config
    if command.show_prompts:
        show_prompts(command.show_prompts, config)
        return
    run = stage_run.begin("sample", config, overwrite=command.overwrite,
                           dry_run=command.dry_run)
    if run is None:
        return
    if config.embedding.source == "sampling":
        run.makes_part_of("embed")
    pool = Pool(run.folder)
    check_bins(config, len(pool))  # what later stages would refuse, before the hours of this one
    check_budget(config, len(pool))
    distributed.claim_gpus(config.model.tensor_parallel_size, "model.tensor_parallel_size")
    folder = folders.local_folder(config.model.name_or_path, config.output_dir)
    tokenizer = load_checked_tokenizer(folder, config)
    prompter = Prompter(config.generation.prompt, tokenizer, config.generation)
    described = folders.describe(folder, trust_remote_code=config.model.trust_remote_code)
    chunks = artifacts.chunk_bounds(len(pool), run.chunk_size)
    paths = [run.folder / "answers" / artifacts.chunk_name(i, "jsonl") for i in range(len(chunks))]

    def missing() -> list[int]:
        return [i for i, path in enumerate(paths) if not path.exists() or run.extends
                and not is_whole(path, len(chunks[i]), config.generation.num_answers)]

    def unfit() -> list[int]:
        return earlier.unfit_chunks(run.folder, pool, run.chunk_size)

    if command.dry_run:
        moved = unfit() if run.follows else []
        before = earlier.Earlier(run.folder, moved)
        if command.overwrite:
            to_do, lacking = list(range(len(chunks))), pool
        else:
            to_do = sorted({*missing(), *moved} & set(range(len(chunks))))
            lacking = (record for i in to_do for record in unanswered(
                None if i in moved else paths[i], pool.rows(chunks[i]), before, config))
        plan(run, len(pool), lacking, prompter, described.hidden_size, chunks, to_do)
        return
    unused = left_unused(folder, config.generation)
    if unused:
        distributed.say(f"[sample] note: the model's generation_config.json asks for {unused}, "
                        f"which is not done: the section generation decides")
    if note := config.selection.note(config.generation.num_answers):
        distributed.say(f"[sample] note: {note}")
    run.start(follow=lambda: earlier.set_aside(run.folder, unfit()))
    mine = distributed.my_share(distributed.agreed("chunks to do", missing))
    before = earlier.Earlier(run.folder)
    to_do = sum(len(unanswered(paths[i], pool.rows(chunks[i]), before, config)) for i in mine)
    if mine:
        drafts = (Draft(i, pool.rows(chunks[i]), paths[i], prompter, config, before,
                        first_row=chunks[i].start) for i in mine)
        sampler = SAMPLERS[config.generation.sampler](folder, config) if to_do else None
        with distributed.progress("sample", to_do) as progress:
            for draft in draw(drafts, sampler, progress.update):
                if config.embedding.source == "sampling":
                    write_vectors(run.folder, draft, described.hidden_size, config, before)
                run.count(draft.index, draft.notes)
                artifacts.write_jsonl(draft.path, draft.rows)
    if run.done_by_all(missing, records=to_do):
        run.finish(records=run.records_done,
                   **({"generation_config_unused": unused} if unused else {}))
    distributed.barrier("finished")


def write_vectors(folder: Path, draft: "Draft", width: int, config: Config,
                  before: earlier.Earlier) -> None:
    """Write the vectors of a chunk's new records, after those that an earlier run left.

    Where an earlier run's answers have been added to, or their vectors are not kept, the chunk's
    are removed: the embed stage computes them all.
    """
    num_answers, after = config.generation.num_answers, draft.num_there
    if draft.num_earlier == [num_answers] * after:
        return
    kept = {number: before.vectors(row, config)
            for number, row in enumerate(draft.rows[after:], after) if draft.num_earlier[number]}
    if (draft.num_earlier[:after] != [num_answers] * after or None in kept.values()
            or not all(draft.num_earlier[number] == num_answers for number in kept)
            or answer_vectors.num_rows(folder, draft.index, config) < after):
        answer_vectors.remove(folder, draft.index, config)
        return
    shape = (num_answers, 1 + len(config.embedding.windows), width)
    drawn = {number: draft.vectors.get(number, np.full(shape, np.nan, np.float32))
             for number in range(after, len(draft.rows)) if number not in kept}
    checked = [number for number in drawn if draft.first_row + number < draft.checked]
    if checked:
        artifacts.write_jsonl(
            folder / answer_vectors.CHECK_FOLDER / artifacts.chunk_name(draft.index, "jsonl"),
            ({"row": draft.first_row + number, "id": draft.rows[number]["id"],
              "token_ids": draft.token_ids[number], "vectors": [
                  None if np.isnan(own).any() else answer_vectors.unit(own).tolist()
                  for own in drawn[number]]}
             for number in checked))
    draft.notes[answer_vectors.BY_SAMPLING] = len(drawn)
    vectors = np.stack([*drawn.values()]) if drawn else np.empty((0, *shape), np.float32)
    empty = np.isnan(vectors).any(axis=(2, 3))                                     # [n, K]
    answer_vectors.write(folder, draft.index, vectors, empty, config, after=after,
                         kept={number - after: own for number, own in kept.items()})


def show_prompts(number: int, config: Config) -> None:
    """Print what the model reads of the first records, special tokens included."""
    folder = folders.local_folder(config.model.name_or_path, config.output_dir)
    tokenizer = load_checked_tokenizer(folder, config)
    prompter = Prompter(config.generation.prompt, tokenizer, config.generation)
    for record in Pool(Path(config.output_dir)).rows(range(number)):
        ids, how = prompter.fitted(record)
        if prompter.control_tokens.are_in(record["instruction"], record["input"]):
            how += ", control tokens in the record as text"
        distributed.say(f"== {record['id']}: {len(ids)} tokens, {how}\n{tokenizer.decode(ids)}")


def plan(run: stage_run.StageRun, pool_size: int, lacking: Iterable[dict], prompter: Prompter,
         width: int, chunks: list[range], missing: list[int]) -> None:
    """Say what there is to do for the records that lack answers, with a model of this width."""
    settings = run.config.generation
    tokens, found = 0, Counter()
    for record in lacking:
        ids, how = prompter.fitted(record)
        tokens += len(ids)
        found[how] += 1
    num_records = found.total()
    num_answers = num_records * settings.num_answers
    at_most = num_answers * settings.max_new_tokens
    stored = run.folder.joinpath("pool.jsonl").stat().st_size * num_records // pool_size
    if run.config.embedding.source == "sampling":
        stored += answer_vectors.num_bytes(num_records, width, run.config)
    planning.show(run, {
        "records": f"{num_records:,} of {pool_size:,} to do",
        "prompts": f"{tokens:,} tokens; {found['cut']:,} cut, {found['too_long']:,} rejected",
        "answers": f"{num_answers:,}, {at_most:,} tokens at most",
    }, records=num_records, disk=stored + at_most * _BYTES_PER_TOKEN, chunks=chunks,
        missing=missing)


def load_checked_tokenizer(folder: Path, config: Config) -> Any:
    """The tokenizer; InputError where model and configuration do not fit each other."""
    limit = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
    length = config.generation.max_model_len
    surplus = config.embedding.source == "sampling"
    if limit is not None and length + surplus > limit:
        raise InputError(f"generation.max_model_len is {length}, but the model takes {limit} tokens"
                         + ", and embedding.source=sampling draws one more" * surplus)
    return folders.load_tokenizer(folder, trust_remote_code=config.model.trust_remote_code)


def is_whole(path: Path, num_rows: int, num_answers: int) -> bool:
    """Whether a file of an earlier, smaller run holds all rows with all answers."""
    rows = artifacts.JsonlRows(path)
    return len(rows) == num_rows and len(rows.row(0)[0]["generated_answers"]) == num_answers


def unanswered(path: Path | None, records: list[dict], before: earlier.Earlier,
               config: Config) -> list[dict]:
    """The records of a chunk that lack answers, in its file (None: there is none) and before."""
    rows = rows_there(path)
    rows += [before.row(record) for record in records[len(rows):]]
    return [record for record, row in zip(records, rows, strict=True)
            if len(row.get("generated_answers", ())) < config.generation.num_answers]


def rows_there(path: Path | None) -> list[dict]:
    """The rows of a chunk's file; none where there is no file."""
    return [] if path is None or not path.exists() else list(artifacts.JsonlRows(path))


class Draft:
    """A chunk of answers in the making: its rows, and the requests for what they lack.

    A prompt that leaves no room for max_new_tokens (generation.long_prompts) gets K empty answers
    with the finish reason `prompt_too_long`: its record has no vectors, is not scored, and is
    listed by the select stage. `notes` lists the ids of such records, and of cut ones.
    """

    def __init__(self, index: int, records: list[dict], path: Path, prompter: Prompter,
                 config: Config, before: earlier.Earlier, *, first_row: int = 0) -> None:
        self.index, self.path, self.first_row = index, path, first_row
        self._drawn = _DRAWN + ("token_ids",) * config.generation.keep_token_ids
        self._stripped = config.generation.strip_answers
        self.rows = [_row(record, self._drawn) for record in records]
        there = rows_there(path)
        self.num_there = len(there)
        there += [before.row(record) for record in records[len(there):]]
        for row, known in zip(self.rows, there, strict=True):
            row |= {name: list(known[name]) for name in self._drawn if known}
        self.num_earlier = [len(row["generated_answers"]) for row in self.rows]
        self.vectors: dict[int, np.ndarray] = {}  # [K, W, H] by the number of the row
        self.checked = -(-config.embedding.check_answers // config.generation.num_answers)
        self.token_ids: dict[int, list[list[int]]] = defaultdict(list)  # of the first rows
        self.notes: dict[str, Any] = {"cut_prompts": [], "rejected_prompts": []}
        self.requests: dict[int, Request] = {}  # by the number of the row
        self.num_unasked = 0  # rows that lacked answers and get empty ones
        for number, (row, record) in enumerate(zip(self.rows, records, strict=True)):
            self._ask(number, row, record, prompter, config)

    def _ask(self, number: int, row: dict, record: dict, prompter: Prompter,
             config: Config) -> None:
        ids, how = prompter.fitted(record)
        have = len(row["generated_answers"])
        lacking = config.generation.num_answers - have
        if how == "too_long":
            self.notes["rejected_prompts"].append(record["id"])
            self.num_unasked += lacking > 0
            self._add(number, [Answer("", _TOO_LONG, [])] * lacking)
            return
        if how == "cut":
            self.notes["cut_prompts"].append(record["id"])
        if lacking:
            seed = seed_of(record["id"], config.seed) + have
            self.requests[number] = Request(ids, seed, lacking)

    def put(self, number: int, answers: list[Answer]) -> None:
        """Take the answers to one request."""
        del self.requests[number]
        self._add(number, answers)

    def _add(self, number: int, answers: list[Answer]) -> None:
        for answer in answers:
            text = answer.text.strip() if self._stripped else answer.text
            values = {"generated_answers": text, "finish_reasons": answer.finish_reason,
                      "num_tokens": len(answer.token_ids), "token_ids": answer.token_ids}
            for name in self._drawn:
                self.rows[number][name].append(values[name])
            if self.first_row + number < self.checked:
                self.token_ids[number].append(answer.token_ids)
        if answers and all(answer.vectors is not None for answer in answers):
            self.vectors[number] = np.stack([answer.vectors for answer in answers])


_DRAWN = ("generated_answers", "finish_reasons", "num_tokens")


def _row(record: dict, drawn: tuple[str, ...]) -> dict:
    return {name: record[name] for name in ("id", "instruction", "input", "output")} | {
        name: [] for name in drawn}


def draw(drafts: Iterator[Draft], sampler: Sampler | None,
         update: Callable[[int], Any] = lambda number: None) -> Iterator[Draft]:
    """Each draft as soon as it is whole; `update` hears how many more records have been answered.

    Drafts that lack nothing need no sampler. The next chunk's requests are handed over while the
    last ones of this are being answered.
    """
    places: dict[int, tuple[Draft, int]] = {}  # of each request that is being answered
    numbers = count()
    empty: list[Draft] = []  # drafts that lack nothing the sampler could give

    def requests() -> Iterator[Request]:
        for draft in drafts:
            update(draft.num_unasked)
            if not draft.requests:
                empty.append(draft)
            for number, request in list(draft.requests.items()):
                places[next(numbers)] = draft, number
                yield request

    for place, answers in sampler.stream(requests()) if sampler else requests():
        process.beat()
        draft, number = places.pop(place)
        draft.put(number, answers)
        update(1)
        if not draft.requests:
            yield draft
        while empty:
            yield empty.pop()
    yield from empty


def seed_of(record_id: str, seed: int) -> int:
    """The seed of a record's first answer, below 2**62: its own whatever else is in the pool."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{record_id}".encode()).digest()[:8]) >> 2


if __name__ == "__main__":
    process.run_script(main)
