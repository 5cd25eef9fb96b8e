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
from typing import Any

import numpy as np

from adg import arrays, artifacts, distributed, models, provenance
from adg.command import parse_command
from adg.config import Config
from adg.geometry import centred_grams
from adg.prompts import check_template
from adg.records import Answers, Pool
from embedding.pooling import (
    EMPTY_VECTORS,
    RECIPES,
    TOKEN_WEIGHTS,
    embed_sequences,
    hidden_state_indices,
    weigh,
)


def main() -> None:
    config, overwrite = parse_command(__doc__)
    run = provenance.begin("embed", config, overwrite=overwrite)
    if run is None:
        return
    pool = Pool(run.folder)
    answers = Answers(run.folder, pool)
    folder = models.local_folder(config.model.name_or_path, config.output_dir)
    hidden_state_indices(config.embedding.layers, models.num_layers(
        folder, trust_remote_code=config.model.trust_remote_code))
    chunks = artifacts.chunk_bounds(len(pool), config.chunk_size)
    for rows in (chunks[i] for i in distributed.my_share(range(len(chunks)))):
        read_answers(answers, rows, config)  # all, before the first is embedded
    run.start()
    missing = [i for i in range(len(chunks))
               if not all(path.exists() for path in chunk_paths(run.folder, i, config).values())]
    mine = distributed.my_share(missing)
    if mine:
        model, tokenizer, weights = load_backbone(folder, config)
        with distributed.progress("embed", sum(len(chunks[i]) for i in mine)) as progress:
            for i in mine:
                records = pool.rows(chunks[i])
                texts = read_answers(answers, chunks[i], config)
                vectors = embed_records(records, texts, model, tokenizer, weights, config)
                for name, path in chunk_paths(run.folder, i, config).items():
                    arrays.write_array(path, vectors[name])
                progress.update(len(records))
    if all(path.exists() for i in range(len(chunks))
           for path in chunk_paths(run.folder, i, config).values()):
        run.finish(records=sum(len(chunks[i]) for i in missing))


def chunk_paths(folder: Path, index: int, config: Config) -> dict[str, Path]:
    """The files of one chunk, in the order in which they are written."""
    names = ["instruction_embeddings", "answer_embeddings", "answer_grams"]
    if not config.embedding.keep_answer_embeddings:
        names.remove("answer_embeddings")
    return {name: folder / name / artifacts.chunk_name(index, "npy") for name in names}


def read_answers(answers: Answers, rows: range, config: Config) -> list[list[str]]:
    """K texts for each of `rows`; a row of fewer is an error where empty answers are left out."""
    return answers.texts(rows, num_answers=config.generation.num_answers,
                         padded=config.embedding.empty_answers != "leave_out")


def load_backbone(folder: Path, config: Config) -> tuple[Any, Any, list[float] | None]:
    """(model without its head on this rank's device, tokenizer, weight of each token or None)."""
    import torch
    from transformers import AutoModel

    tokenizer = models.load_tokenizer(folder, trust_remote_code=config.model.trust_remote_code)
    check_template(config.generation.prompt, tokenizer)
    model = AutoModel.from_pretrained(folder, dtype=getattr(torch, config.model.dtype),
                                      trust_remote_code=config.model.trust_remote_code)
    weights = TOKEN_WEIGHTS[config.embedding.token_weights](tokenizer)
    return model.to(distributed.device()).eval(), tokenizer, weights


def embed_records(records: list[dict], texts: list[list[str]], model: Any, tokenizer: Any,
                  weights: list[float] | None, config: Config) -> dict[str, np.ndarray]:
    """{"instruction_embeddings" [n, H], "answer_embeddings" [n, K, H], "answer_grams" [n, K, K]}"""
    settings = config.embedding
    recipe = RECIPES[settings.recipe]
    sequences = [recipe.instruction(record, tokenizer, config) for record in records]
    sequences += [recipe.answer(record, text, tokenizer, config)
                  for record, own in zip(records, texts, strict=True) for text in own]
    vectors = embed_sequences(model, [weigh(sequence, weights) for sequence in sequences],
                              settings.layers, tokens_per_batch=settings.tokens_per_batch)
    of_answers = vectors[len(records):].reshape(len(records), -1, vectors.shape[1])     # [n, K, H]
    if settings.empty_answers in EMPTY_VECTORS:
        empty = np.array([[not text for text in own] for own in texts])                 # [n, K]
        of_answers[empty] = EMPTY_VECTORS[settings.empty_answers]
    return {"instruction_embeddings": vectors[: len(records)], "answer_embeddings": of_answers,
            "answer_grams": centred_grams(of_answers).astype(np.float32)}


if __name__ == "__main__":
    distributed.run_script(main)
