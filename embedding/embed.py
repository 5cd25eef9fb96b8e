"""Stage embed: instructions to unit vectors, the answers to the Gram matrix of their spread.

Reads   pool.jsonl                        N records
        answers/*.jsonl                   N rows of K answers
Writes  instruction_embeddings/*.npy      float32 [n, H], unit rows
        answer_embeddings/*.npy           float32 [n, K, H], NaN for an answer without a token; only
                                          with embedding.keep_answer_embeddings
        answer_grams/*.npy                float32 [n, K, K], of the centred unit answer vectors;
                                          NaN in the row and column of an answer without a token

    python -m embedding.embed configs/demo.yaml
    torchrun --nproc_per_node=2 -m embedding.embed configs/demo.yaml
"""

from pathlib import Path
from typing import Any

import numpy as np

from adg import artifacts, distributed, models, provenance
from adg.command import parse_command
from adg.config import Config
from adg.geometry import centred_grams
from adg.prompts import check_template
from adg.records import Answers, Pool
from embedding.pooling import RECIPES, embed_sequences, hidden_state_indices


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
        answers.texts(rows, num_answers=config.generation.num_answers)  # all, before the first
    run.start()
    missing = [i for i in range(len(chunks))
               if not all(path.exists() for path in chunk_paths(run.folder, i, config).values())]
    mine = distributed.my_share(missing)
    if mine:
        model, tokenizer = load_backbone(folder, config)
        with distributed.progress("embed", sum(len(chunks[i]) for i in mine)) as progress:
            for i in mine:
                records = pool.rows(chunks[i])
                texts = answers.texts(chunks[i], num_answers=config.generation.num_answers)
                arrays = embed_records(records, texts, model, tokenizer, config)
                for name, path in chunk_paths(run.folder, i, config).items():
                    artifacts.write_array(path, arrays[name])
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


def load_backbone(folder: Path, config: Config) -> tuple[Any, Any]:
    """(model without its language-model head on this rank's device, tokenizer)."""
    import torch
    from transformers import AutoModel

    tokenizer = models.load_tokenizer(folder, trust_remote_code=config.model.trust_remote_code)
    check_template(config.generation.prompt, tokenizer)
    model = AutoModel.from_pretrained(folder, dtype=getattr(torch, config.model.dtype),
                                      trust_remote_code=config.model.trust_remote_code)
    return model.to(distributed.device()).eval(), tokenizer


def embed_records(records: list[dict], texts: list[list[str]], model: Any, tokenizer: Any,
                  config: Config) -> dict[str, np.ndarray]:
    """{"instruction_embeddings" [n, H], "answer_embeddings" [n, K, H], "answer_grams" [n, K, K]}"""
    settings, template = config.embedding, config.generation.prompt
    recipe = RECIPES[settings.recipe]
    instructions = [recipe.instruction(record, tokenizer, settings.max_length)
                    for record in records]
    answers = [recipe.answer(record, text, template, tokenizer, settings.max_length)
               for record, own in zip(records, texts, strict=True) for text in own]
    vectors = embed_sequences(model, instructions + answers, settings.layers,
                              tokens_per_batch=settings.tokens_per_batch)
    of_answers = vectors[len(records):].reshape(len(records), -1, vectors.shape[1])     # [n, K, H]
    return {"instruction_embeddings": vectors[: len(records)], "answer_embeddings": of_answers,
            "answer_grams": centred_grams(of_answers).astype(np.float32)}


if __name__ == "__main__":
    distributed.run_script(main)
