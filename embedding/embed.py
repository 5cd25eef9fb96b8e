"""Stage embed: instructions to unit vectors, the answers to the Gram matrix of their spread.

Reads   pool.jsonl                        N records
        answers/*.jsonl                   N rows of K answers
Writes  instruction_embeddings/*.npy      float32 [n, H], unit rows
        answer_embeddings/*.npy           float32 [n, K, H], NaN for an answer without a token (see
                                          embedding.empty_answers); only with
                                          embedding.keep_answer_embeddings
        answer_grams/*.npy                float32 [n, K, K], of the centred unit answer vectors;
                                          NaN in the row and column of an answer without a token

    python -m embedding.embed configs/demo.yaml
    torchrun --nproc_per_node=2 -m embedding.embed configs/demo.yaml
"""

from pathlib import Path

import numpy as np

from adg import arrays, artifacts, distributed, models, planning, provenance
from adg.command import parse_command
from adg.config import Config
from adg.geometry import centred_grams
from adg.records import Answers, Pool
from embedding import backbone
from embedding.forward import Embedder, length
from embedding.sequences import Encoder

TOKENS_PER_BATCH = {"cuda": 16384, "cpu": 1024}
EMPTY_VECTORS = {"leave_out": np.nan, "zero": 0.0}  # in place of what the recipe makes of one


def main() -> None:
    command = parse_command(__doc__)
    config = command.config
    run = provenance.begin("embed", config, overwrite=command.overwrite)
    if run is None:
        return
    folder = models.local_folder(config.model.name_or_path, config.output_dir)
    backbone.check(folder, config)
    pool = Pool(run.folder)
    answers = Answers(run.folder, pool)
    chunks = artifacts.chunk_bounds(len(pool), config.chunk_size)
    for i in distributed.my_share(range(len(chunks))):
        read_answers(answers, chunks[i], config)  # all, before the first is embedded

    def missing() -> list[int]:
        return [i for i in range(len(chunks)) if not is_there(run.folder, i, config)]

    if command.dry_run:
        plan(run, pool, answers, folder, chunks, list(range(len(chunks))) if command.overwrite
             else missing())
        return
    run.start()
    to_do = missing()
    mine = distributed.my_share(to_do)
    if mine:
        encoder, embedder = load_encoder(folder, config), load_embedder(folder, config)
        with distributed.progress("embed", sum(len(chunks[i]) for i in mine)) as progress:
            for i in mine:
                records = pool.rows(chunks[i])
                texts = read_answers(answers, chunks[i], config)
                vectors, cut = embed_records(records, texts, encoder, embedder, config)
                run.count(i, cut)
                for name, path in chunk_paths(run.folder, i, config).items():
                    arrays.write_array(path, vectors[name])
                progress.update(len(records))
    if not missing():
        run.finish(records=sum(len(chunks[i]) for i in to_do))


def chunk_paths(folder: Path, index: int, config: Config) -> dict[str, Path]:
    """The files of one chunk, in the order in which they are written."""
    names = ["instruction_embeddings", "answer_embeddings", "answer_grams"]
    if not config.embedding.keep_answer_embeddings:
        names.remove("answer_embeddings")
    return {name: folder / name / artifacts.chunk_name(index, "npy") for name in names}


def is_there(folder: Path, index: int, config: Config) -> bool:
    """Whether all files of a chunk exist."""
    return all(path.exists() for path in chunk_paths(folder, index, config).values())


def read_answers(answers: Answers, rows: range, config: Config) -> list[list[str]]:
    """K texts for each of `rows`; a row of fewer is an error where empty answers are left out."""
    return answers.texts(rows, num_answers=config.generation.num_answers,
                         padded=config.embedding.empty_answers != "leave_out")


def plan(run: provenance.StageRun, pool: Pool, answers: Answers, folder: Path,
         chunks: list[range], missing: list[int]) -> None:
    """Say what there is to do with the model in `folder`."""
    encoder = load_encoder(folder, run.config)
    width = backbone.describe(folder, run.config).hidden_size
    config, num_answers = run.config, run.config.generation.num_answers
    tokens = cut = 0
    for i in missing:
        records = pool.rows(chunks[i])
        texts = read_answers(answers, chunks[i], config)
        for rows, num_cut in (encoder.instructions(records), encoder.answers(records, texts)):
            tokens, cut = tokens + sum(map(length, rows)), cut + num_cut
    num_records = sum(len(chunks[i]) for i in missing)
    kept = num_answers if config.embedding.keep_answer_embeddings else 0
    planning.show(run, {
        "records": f"{num_records:,} of {len(pool):,} to do",
        "texts": f"{num_records * (num_answers + 1):,}, {tokens:,} tokens with each prompt counted "
                 f"once; {cut:,} cut",
    }, records=num_records, chunks=chunks, missing=missing,
        disk=4 * num_records * (width * (1 + kept) + num_answers**2))


def load_encoder(folder: Path, config: Config) -> Encoder:
    """What makes rows of texts."""
    tokenizer = models.load_tokenizer(folder, trust_remote_code=config.model.trust_remote_code)
    described = backbone.describe(folder, config)
    return Encoder(tokenizer, config, longest=backbone.max_positions(described))


def load_embedder(folder: Path, config: Config) -> Embedder:
    """What makes vectors of rows, on this rank's device."""
    model = backbone.load(folder, config)
    return Embedder(
        model, config.embedding.layers, share_prompts=config.embedding.share_prompts,
        tokens_per_batch=config.embedding.tokens_per_batch or TOKENS_PER_BATCH[model.device.type])


def embed_records(records: list[dict], texts: list[list[str]], encoder: Encoder,
                  embedder: Embedder, config: Config) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays of a chunk, and how many of its texts were cut.

    {"instruction_embeddings" [n, H], "answer_embeddings" [n, K, H], "answer_grams" [n, K, K]}
    """
    of_instructions, cut_instructions = encoder.instructions(records)
    of_answers, cut_answers = encoder.answers(records, texts)
    vectors = embedder.embed(of_instructions + of_answers)
    answers = vectors[len(records):].reshape(len(records), -1, vectors.shape[1])        # [n, K, H]
    empty_answers = config.embedding.empty_answers
    if empty_answers in EMPTY_VECTORS:
        empty = np.array([[not text for text in own] for own in texts])                 # [n, K]
        answers[empty] = EMPTY_VECTORS[empty_answers]
    arrays_of_chunk = {"instruction_embeddings": vectors[: len(records)],
                       "answer_embeddings": answers,
                       "answer_grams": centred_grams(answers).astype(np.float32)}
    return arrays_of_chunk, {"cut_instructions": cut_instructions, "cut_answers": cut_answers}


if __name__ == "__main__":
    distributed.run_script(main)
