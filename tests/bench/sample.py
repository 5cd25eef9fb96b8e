"""Sampling through the stage against bare vLLM: the same prompts, seeds and parameters.

    bare      one call of LLM.generate with all requests at once: the engine's own speed
    stage     the stage's loop: requests handed over as there is room, answers written by chunk

Each in a process of its own, alternating over rounds; the engine's start is left out of both. For
each, as medians: tokens/s, records/s, and the stage's share of bare. The answers must be the same.

    python tests/bench/sample.py RUN_DIR [--records 200] [--chunk-size 16] [--rounds 3]

RUN_DIR is a run folder with pool.jsonl and config.yaml, as the demo leaves it.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from adg.base import artifacts  # noqa: E402
from adg.config import load_config  # noqa: E402
from adg.models import folders  # noqa: E402
from adg.models.loading import LocalModel  # noqa: E402
from adg.prompts import Prompter  # noqa: E402
from adg.records import Pool  # noqa: E402
from generation.drafts import Draft, draw  # noqa: E402
from generation.vllm_sampler import VllmSampler  # noqa: E402

WAYS = ("bare", "stage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--chunk-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--override", action="append", default=[], metavar="section.key=value")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(run_way(arguments)))
        return
    results: dict[str, list[dict]] = {way: [] for way in WAYS}
    for number in range(arguments.rounds):
        for way in WAYS if number % 2 == 0 else WAYS[::-1]:
            done = subprocess.run([sys.executable, *sys.argv, "--way", way], check=True,
                                  stdout=subprocess.PIPE, text=True)
            results[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(way, results[way][-1], flush=True)
    speeds = {way: statistics.median(own["tokens"] / own["seconds"] for own in found)
              for way, found in results.items()}
    if len({own["sha256"] for found in results.values() for own in found}) != 1:
        raise SystemExit("the answers differ")
    for way, found in results.items():
        seconds = statistics.median(own["seconds"] for own in found)
        print(f"{way:6} {seconds:7.1f} s  {speeds[way]:7.1f} tokens/s  "
              f"{found[0]['records'] / seconds:6.2f} records/s")
    print(f"the stage has {speeds['stage'] / speeds['bare']:.1%} of bare vLLM's speed, on "
          f"{results['bare'][0]['answers']} answers")


def run_way(arguments: argparse.Namespace) -> dict:
    config = load_config(arguments.run / "config.yaml", arguments.override)
    source = LocalModel(folders.local_folder(config.model.name_or_path, config.output_dir),
                        config.model.trust_remote_code)
    prompter = Prompter(config.generation.prompt, source.tokenizer(), config.generation)
    pool = Pool(arguments.run)
    records = pool.rows(range(min(arguments.records, len(pool))))
    sampler = VllmSampler(source, config)
    warm_up = [Draft(0, records[:4], prompter, config)]
    for _ in draw(iter(warm_up), sampler):
        pass
    start = time.perf_counter()
    if arguments.way == "stage":
        with tempfile.TemporaryDirectory() as target:
            drafts = (Draft(i, records[rows.start: rows.stop], prompter, config)
                      for i, rows in enumerate(artifacts.chunk_bounds(len(records),
                                                                      arguments.chunk_size)))
            for draft in draw(drafts, sampler):
                artifacts.write_jsonl(
                    Path(target) / artifacts.chunk_name(draft.index, "jsonl"), draft.rows)
            seconds = time.perf_counter() - start
            texts = [(text, number) for row in artifacts.JsonlRows(Path(target)) for text, number in
                     zip(row["generated_answers"], row["num_tokens"], strict=True)]
    else:
        requests = Draft(0, records, prompter, config).requests.values()
        outputs = sampler.llm.generate(
            [{"prompt_token_ids": request.prompt} for request in requests],
            [sampler.parameters(request) for request in requests], use_tqdm=False)
        seconds = time.perf_counter() - start
        texts = [(drawn.text, len(drawn.token_ids) - (drawn.finish_reason == "stop"))
                 for output in outputs for drawn in output.outputs]
    return {"seconds": seconds, "records": len(records), "answers": len(texts),
            "tokens": sum(number for _, number in texts),
            "sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest()}


if __name__ == "__main__":
    main()
