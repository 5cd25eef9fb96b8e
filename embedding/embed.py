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

from adg import arrays, artifacts, distributed, models, provenance
from adg.command import parse_command
from adg.config import Config
from adg.geometry import centred_grams
from adg.records import Answers, Pool
from embedding import backbone
from embedding.forward import Embedder
from embedding.sequences import Encoder

TOKENS_PER_BATCH = {"cuda": 16384, "cpu": 1024}
EMPTY_VECTORS = {"leave_out": np.nan, "zero": 0.0}  # in place of what the recipe makes of one


def main() -> None:
    config, overwrite = parse_command(__doc__)
    run = provenance.begin("embed", config, overwrite=overwrite)
    if run is None:
        return
    folder = models.local_folder(config.model.name_or_path, config.output_dir)
    backbone.check(folder, config)
    pool = Pool(run.folder)
    answers = Answers(run.folder, pool)
    chunks = artifacts.chunk_bounds(len(pool), config.chunk_size)
    for i in distributed.my_share(range(len(chunks))):
        read_answers(answers, chunks[i], config)  # all, before the first is embedded
    run.start()
    missing = [i for i in range(len(chunks)) if not is_there(run.folder, i, config)]
    mine = distributed.my_share(missing)
    if mine:
        encoder, embedder = load_backbone(folder, config)
        with distributed.progress("embed", sum(len(chunks[i]) for i in mine)) as progress:
            for i in mine:
                records = pool.rows(chunks[i])
                texts = read_answers(answers, chunks[i], config)
                vectors, cut = embed_records(records, texts, encoder, embedder, config)
                run.count(i, cut)
                for name, path in chunk_paths(run.folder, i, config).items():
                    arrays.write_array(path, vectors[name])
                progress.update(len(records))
    if all(is_there(run.folder, i, config) for i in range(len(chunks))):
        run.finish(records=sum(len(chunks[i]) for i in missing))


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


def load_backbone(folder: Path, config: Config) -> tuple[Encoder, Embedder]:
    """What makes rows of texts, and what makes vectors of rows, on this rank's device."""
    tokenizer = models.load_tokenizer(folder, trust_remote_code=config.model.trust_remote_code)
    model = backbone.load(folder, config)
    encoder = Encoder(tokenizer, config, longest=backbone.max_positions(model))
    return encoder, Embedder(
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
