"""Embedding answers of 30 and of 250 tokens: answers/s, tokens/s and MFU, on one device."""

import time
from collections.abc import Iterator
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from adg.base import distributed
from adg.config import Config
from adg.models.batches import budget
from adg.models.layers import windows_of
from adg.models.loading import LocalModel
from adg.records import Answer, Pool
from tests.bench.embed import matmul_peak, synchronise, useful_flops
from tests.bench.gpu import random_model
from tests.bench.gpu.bench import PEAK, Bench, serve
from tests.bench.gpu.plan import Part
from tests.bench.gpu.report import Reading

LENGTHS = (30, 250)  # tokens of an answer
WAYS = {  # the first is the baseline: (a prompt is read once for its answers, in one call a layer)
    "a prompt for each answer": (False, False),
    "prompts shared, attention row by row": (True, False),
    "prompts shared, attention in one call": (True, True),
}


def peak_parts() -> list[Part]:
    return [Part(PEAK[0], PEAK[1], ("torch",), 30, peak_readings, repeats=False)]


def parts() -> list[Part]:
    return [Part("embed", f"{length} tokens", ("torch", "transformers"), 120,
                 partial(readings, length)) for length in LENGTHS]


def peak_readings(bench: Bench) -> Iterator[Reading]:
    yield Reading(*PEAK, bench.ask("embedding", "peak", {"size": bench.sizes.matrix}) / 1e12)


def readings(length: int, bench: Bench) -> Iterator[Reading]:
    for own in bench.ask("embedding", "embed", {"length": length,
                                                "tokens": bench.sizes.answer_tokens}):
        setting, below = own["setting"], own["baseline"]
        if "skipped" in own:
            yield Reading("embed", setting, note=f"skipped: {own['skipped']}")
            continue
        yield Reading("embed", setting, "answers/s", own["answers"] / own["seconds"], below)
        yield Reading("embed", setting, "tokens/s", own["tokens"] / own["seconds"], below)
        yield bench.mfu("embed", setting, own["flops"] / own["seconds"], below)


# In a process of its own


def peak(config: Config, *, size: int) -> float:
    """FLOP/s of a product of two matrices in the model's dtype."""
    import torch

    where = SimpleNamespace(device=distributed.device(), dtype=getattr(torch, config.model.dtype))
    return matmul_peak(where, size)


def embed(config: Config, *, length: int, tokens: int) -> list[dict]:
    """Each of WAYS as `timed` has it, for answers of `length` tokens; the model is loaded once."""
    from transformers import AutoModel

    from embedding.forward import Embedder
    from embedding.sequences import load_encoder

    folder = random_model.folder_of(config)
    source = LocalModel(folder, config.model.trust_remote_code)
    encoder = load_encoder(source, config)
    model = (random_model.draw(AutoModel, folder, config) if random_model.is_random(folder)
             else source.load(AutoModel, config.embedding_dtype(),
                              gpus=config.embedding.gpus_per_model))
    windows = windows_of(config.embedding, model.config.get_text_config().num_hidden_layers)
    embedder = Embedder(model, windows, tokens_per_batch=budget(
        model, config.embedding.tokens_per_batch))
    able = embedder.shares, getattr(embedder, "one_call", False)
    rows, _ = encoder.answers(*stored(config, encoder.tokenizer, length, tokens))
    return [{"setting": f"{length} tokens, {name}",
             "baseline": f"{length} tokens, {next(iter(WAYS))}",
             **timed(embedder, rows, way, able)} for name, way in WAYS.items()]


def timed(embedder: Any, rows: list, way: tuple[bool, bool], able: tuple[bool, bool]) -> dict:
    """Seconds, answers, tokens and operations of one of WAYS, or why it is skipped."""
    from embedding.forward import length

    for wanted, can, name in zip(way, able, ("sharing of prompts", "attention in one call"),
                                 strict=True):
        if wanted and not can:
            return {"skipped": f"no {name} with this version, model and device"}
    embedder.shares, embedder.one_call = way
    embedder.embed(rows[: max(2, len(rows) // 8)])  # warm-up
    synchronise()
    start = time.perf_counter()
    embedder.embed(rows)
    seconds = time.perf_counter() - start
    read = [part for row in rows for part in embedder.parts(row)]
    return {"seconds": seconds, "answers": sum(len(row.texts) for row in rows),
            "tokens": sum(map(length, read)),
            "flops": sum(useful_flops(part, embedder.model) for part in read)}


def stored(config: Config, tokenizer: Any, length: int,
            tokens: int) -> tuple[list[dict], list[list[Answer]]]:
    """Records and their K answers, all of `length` tokens and of about `tokens` together: what the
    pool's outputs say, one after the other."""
    pool, num_answers = Pool(Path(config.output_dir)), config.generation.num_answers
    outputs = tokenizer([record["output"] for record in pool], add_special_tokens=False,
                        verbose=False)["input_ids"]
    stream = cycle(chain.from_iterable(outputs))

    def answer() -> Answer:
        ids = list(islice(stream, length))
        return Answer(tokenizer.decode(ids), ids)

    records = list(islice(cycle(pool), max(2, tokens // (length * num_answers))))
    return records, [[answer() for _ in range(num_answers)] for _ in records]


if __name__ == "__main__":
    serve({"peak": peak, "embed": embed})
