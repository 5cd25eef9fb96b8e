"""Embedding three ways, on the same texts and model, each in a process of its own.

    release   what the authors' release does: batch of one, the whole model with its head, all
              hidden states kept, the weight of every token from decoding it
    plain     the usual batched way: no head, 16 texts as they come, padded, all hidden states kept
    ours      embedding.forward, as stage embed runs it

The texts are those of recipe paper with token_weights content, from a run folder with answers. For
each way, medians over rounds that alternate: seconds, texts/s, tokens/s (the tokens of the texts as
the release reads them), useful multiplications as FLOP/s and as share of the matrix-multiplication
peak, measured in the same process (4,096 x 4,096, same dtype), peak memory of the process (on a
GPU: of the device), the worst cosine distance from the release's vectors, and the share of the time
that tokenising takes.

    python tests/bench/embed.py RUN_DIR [--records 300] [--rounds 1] [--dtype float32]
    python tests/bench/embed.py RUN_DIR --llama-8b --dtype bfloat16     on a GPU: random weights
"""

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from adg.config import Config, load_config  # noqa: E402
from adg.models import folders  # noqa: E402
from adg.models.layers import window_layers  # noqa: E402
from adg.records import Answer, Answers, Pool  # noqa: E402
from embedding.forward import Embedder, separate  # noqa: E402
from embedding.pooling import decoder_layers  # noqa: E402
from embedding.sequences import Encoder, Row  # noqa: E402

WINDOW = [-4, -3, -2, -1]
LLAMA_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
            "rope_theta": 500000.0}
PLAIN_BATCH = 16  # texts


def main() -> None:
    arguments = parse()
    if arguments.way:
        run_way(arguments)
        return
    device = device_of(arguments)
    print(f"{arguments.records} records of {arguments.run}, {arguments.dtype}, {device}"
          + (", Llama of 8B with random weights" if arguments.llama_8b else ""), flush=True)
    runs: dict[str, list[dict]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for way in WAYS:
                runs[way].append(measure(way, Path(folder)))
        reference = unit(np.load(Path(folder) / "release.npy"))
        for way, results in runs.items():
            vectors = unit(np.load(Path(folder) / f"{way}.npy"))
            worst = max(0.0, 1 - (reference * vectors).sum(1).min())
            report(way, results, statistics.median(r["seconds"] for r in runs["release"]), worst)
    if device == "cpu":
        print("not run: the same on a GPU (none here)")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a run folder with answers/")
    parser.add_argument("--records", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--tokens-per-batch", type=int, default=1024)
    parser.add_argument("--no-shared-prompts", action="store_true", help="ours without sharing")
    parser.add_argument("--row-by-row", action="store_true", help="ours with attention over shared "
                        "prompts row by row, as on a CPU, and not in one call a layer")
    parser.add_argument("--llama-8b", action="store_true",
                        help="a random Llama of 8B in place of the run's model")
    parser.add_argument("--way", choices=tuple(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--vectors", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def device_of(arguments: argparse.Namespace) -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if arguments.llama_8b:
        raise SystemExit("--llama-8b needs a GPU, and there is none: not run")
    return "cpu"


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1 in float64."""
    return vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)


def measure(way: str, folder: Path) -> dict:
    """One way in a process of its own; its last line is what it measured."""
    command = [sys.executable, *sys.argv, "--way", way, "--vectors", str(folder / f"{way}.npy")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(way: str, results: list[dict], release: float, worst: float) -> None:
    value = {key: statistics.median(result[key] for result in results) for key in results[0]}
    seconds, speed = value["seconds"], value["flops"] / value["seconds"]
    print(f"{way:8} {seconds:8.1f} s ({release / seconds:5.2f} x)  {value['texts'] / seconds:7.1f} "
          f"texts/s  {value['tokens'] / seconds:9.0f} tokens/s  {speed / 1e9:9.1f} GFLOP/s "
          f"({speed / value['peak']:4.0%} of {value['peak'] / 1e9:.1f})  "
          f"{value['memory'] / 2**30:6.2f} GiB  1 - cos {worst:.1e}  "
          f"tokenising {value['encoding'] / seconds:.1%}", flush=True)


# One way


def run_way(arguments: argparse.Namespace) -> None:
    import torch

    config = load_config(arguments.run / "config.yaml", ["embedding.token_weights=content"])
    tokenizer, load = backbone(arguments, config)
    pool = Pool(arguments.run)
    wanted = range(min(arguments.records, len(pool)))
    texts = Answers(arguments.run, pool).generated(
        wanted, num_answers=config.generation.num_answers)
    model, records = load(arguments.way == "release"), pool.rows(wanted)
    encoder = Encoder(tokenizer, config, longest=2**31, num_ids=model.config.vocab_size)
    embed = WAYS[arguments.way](model, tokenizer, arguments)
    embed(encode(records[:2], texts[:2], encoder))  # warm-up
    synchronise()
    start = time.perf_counter()
    rows = encode(records, texts, encoder)
    encoded = time.perf_counter() - start
    vectors, read = embed(rows)
    synchronise()
    seconds = time.perf_counter() - start
    np.save(arguments.vectors, vectors)
    memory = (torch.cuda.max_memory_allocated() if torch.cuda.is_available()
              else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    print(json.dumps({
        "seconds": seconds, "encoding": encoded, "texts": len(vectors), "memory": memory,
        "peak": matmul_peak(model),
        "tokens": sum(len(part.texts[0]) for row in rows for part in separate(row)),
        "flops": sum(useful_flops(row, model) for row in read)}))


def backbone(arguments: argparse.Namespace, config: Config) -> tuple[Any, Callable[[bool], Any]]:
    """(tokenizer, what loads the model with or without its head)."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig

    folder = folders.local_folder(config.model.name_or_path, config.output_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, arguments.dtype)

    def load(with_head: bool) -> Any:
        kind = AutoModelForCausalLM if with_head else AutoModel
        if not arguments.llama_8b:
            return kind.from_pretrained(folder, dtype=dtype).to(device).eval()
        torch.manual_seed(0)
        with torch.device(device):
            return kind.from_config(LlamaConfig(**LLAMA_8B), dtype=dtype).eval()

    return folders.load_tokenizer(folder, trust_remote_code=False), load


def encode(records: list[dict], texts: list[list[Answer]], encoder: Encoder) -> list[Row]:
    return encoder.instructions(records)[0] + encoder.answers(records, texts)[0]


def release_way(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> Callable:
    import torch

    def embed(rows: list[Row]) -> tuple[np.ndarray, list[Row]]:
        parts, vectors = [part for row in rows for part in separate(row)], []
        for part in parts:
            ids, marks = part.texts[0], part.weights[0]
            weights = torch.tensor([mark and weight_of(tokenizer.decode([token]))
                                    for token, mark in zip(ids, marks, strict=True)])
            if not weights.any():
                weights = torch.tensor(marks)
            with torch.inference_mode():
                states = model(torch.tensor([ids], device=model.device),
                               output_hidden_states=True).hidden_states
                window = torch.stack([state[0].float() for state in states[-4:]]).mean(0)
                mean = (window * weights.to(model.device)[:, None]).sum(0) / weights.sum()
                vectors.append(torch.nn.functional.normalize(mean, dim=0).cpu().numpy())
        return np.array(vectors), parts

    return embed


def weight_of(text: str) -> float:
    """The release's weight of one decoded token."""
    text = text.strip()
    if not text or re.fullmatch(r"""[\s,.;:!?()\[\]{}"'`~\-_/\\]+""", text):
        return 0.0
    return float(np.float16(1.3)) if re.search(r"[\d%℃°]", text) else 1.0


def plain_way(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> Callable:
    import torch

    def embed(rows: list[Row]) -> tuple[np.ndarray, list[Row]]:
        parts, vectors = [part for row in rows for part in separate(row)], []
        for start in range(0, len(parts), PLAIN_BATCH):
            batch = parts[start: start + PLAIN_BATCH]
            longest = max(len(part.texts[0]) for part in batch)
            ids, weights, read = (torch.tensor(list(values), device=model.device) for values in zip(
                *[((part.texts[0] + [0] * longest)[:longest],
                   (part.weights[0] + [0.0] * longest)[:longest],
                   ([1] * len(part.texts[0]) + [0] * longest)[:longest]) for part in batch],
                strict=True))
            with torch.inference_mode():
                states = model(ids, attention_mask=read, output_hidden_states=True).hidden_states
                window = torch.stack([state.float() for state in states[-4:]]).mean(0)
                mean = (window * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True)
                vectors.append(torch.nn.functional.normalize(mean, dim=-1).cpu().numpy())
        return np.concatenate(vectors), parts

    return embed


def our_way(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> Callable:
    windows = [window_layers(WINDOW, model.config.num_hidden_layers)]
    embedder = Embedder(model, windows, tokens_per_batch=arguments.tokens_per_batch,
                        share_prompts=not arguments.no_shared_prompts,
                        one_call=not arguments.row_by_row)

    def embed(rows: list[Row]) -> tuple[np.ndarray, list[Row]]:
        return embedder.embed(rows)[:, 0], [part for row in rows for part in embedder.parts(row)]

    return embed


WAYS = {"release": release_way, "plain": plain_way, "ours": our_way}


# The yardsticks


def synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def useful_flops(row: Row, model: Any) -> float:
    """Multiplications and additions for the tokens of a row, padding and masked pairs left out."""
    stack = decoder_layers(model)
    weights = sum(weight.numel() for weight in stack.parameters())
    head = model.get_output_embeddings() if hasattr(model, "lm_head") else None
    weights += head.weight.numel() if head is not None else 0
    prompt, texts = len(row.prompt), [len(text) for text in row.texts]
    pairs = prompt**2 / 2 + sum(prompt * length + length**2 / 2 for length in texts)
    width = model.config.num_attention_heads * (
        getattr(model.config, "head_dim", None)
        or model.config.hidden_size // model.config.num_attention_heads)
    return 2 * weights * (prompt + sum(texts)) + 4 * pairs * width * len(stack)


def matmul_peak(model: Any, size: int = 4096) -> float:
    """FLOP/s of a product of two square matrices on the model's device in its dtype: the best of
    10."""
    import torch

    a, b = (torch.randn(size, size, device=model.device, dtype=model.dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        synchronise()
        start = time.perf_counter()
        a @ b
        synchronise()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


if __name__ == "__main__":
    main()
