"""Stage sample: draw K answers to every instruction of the pool.

Reads   pool.jsonl            N records
Writes  answers/*.jsonl       N records with generated_answers [K] and finish_reasons [K], a file
                              per chunk_size records; a chunk that is there is not drawn again

    python -m generation.sample_answers configs/demo.yaml
    torchrun --nproc_per_node=2 -m generation.sample_answers configs/demo.yaml
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adg import artifacts, distributed, models, provenance
from adg.command import parse_command
from adg.config import Config
from adg.errors import InputError
from adg.prompts import check_template, prompt_ids
from adg.records import Pool
from generation.samplers import SAMPLERS, Answer, Sampler

_TOO_LONG = "prompt_too_long"  # finish reason of the empty answers to a prompt that leaves no room


def main() -> None:
    config, overwrite = parse_command(__doc__)
    run = provenance.begin("sample", config, overwrite=overwrite)
    if run is None:
        return
    pool = Pool(run.folder)
    distributed.claim_gpu()
    folder = models.local_folder(config.model.name_or_path, config.output_dir)
    tokenizer = load_checked_tokenizer(folder, config)
    run.start()
    chunks = artifacts.chunk_bounds(len(pool), config.chunk_size)
    paths = [run.folder / "answers" / artifacts.chunk_name(i, "jsonl") for i in range(len(chunks))]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    mine = distributed.my_share(missing)
    if mine:
        sampler = SAMPLERS[config.generation.sampler](folder, config)
        with distributed.progress("sample", sum(len(chunks[i]) for i in mine)) as progress:
            for i in mine:
                records = pool.rows(chunks[i])
                artifacts.write_jsonl(paths[i], answer(records, tokenizer, sampler, config))
                progress.update(len(records))
    if all(path.exists() for path in paths):
        run.finish(records=sum(len(chunks[i]) for i in missing))


def load_checked_tokenizer(folder: Path, config: Config) -> Any:
    """The tokenizer; InputError where model and configuration do not fit each other."""
    limit = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
    length = config.generation.max_model_len
    if limit is not None and length > limit:
        raise InputError(f"generation.max_model_len is {length}, "
                         f"but the model takes {limit} tokens")
    tokenizer = models.load_tokenizer(folder, trust_remote_code=config.model.trust_remote_code)
    check_template(config.generation.prompt, tokenizer)
    return tokenizer


def answer(records: list[dict], tokenizer: Any, sampler: Sampler, config: Config) -> list[dict]:
    """A row of answers/ for each record, in order.

    A prompt that leaves no room for max_new_tokens gets K empty answers with the finish reason
    `prompt_too_long`: its record has no vectors, is not scored, and is listed by the select stage.
    """
    settings = config.generation
    room = settings.max_model_len - settings.max_new_tokens
    prompts = [prompt_ids(record, settings.prompt, tokenizer, settings.max_prompt_tokens)
               for record in records]
    fitting = [i for i, ids in enumerate(prompts) if len(ids) <= room]
    drawn = sampler.sample([prompts[i] for i in fitting],
                           [seed_of(records[i]["id"], config.seed) for i in fitting])
    answers = [[Answer("", _TOO_LONG)] * settings.num_answers for _ in records]
    for i, texts in zip(fitting, drawn, strict=True):
        answers[i] = texts
    for i in sorted(set(range(len(records))) - set(fitting)):
        tqdm.write(f"[sample] {records[i]['id']}: a prompt of {len(prompts[i])} tokens leaves no "
                   f"room for {settings.max_new_tokens} within max_model_len; left without answers")
    return [{
        **{name: record[name] for name in ("id", "instruction", "input", "output")},
        "generated_answers": [text.text for text in texts],
        "finish_reasons": [text.finish_reason for text in texts],
    } for record, texts in zip(records, answers, strict=True)]


def seed_of(record_id: str, seed: int) -> int:
    """The seed of a record's first answer, below 2**62: its own whatever else is in the pool."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{record_id}".encode()).digest()[:8]) >> 2


if __name__ == "__main__":
    distributed.run_script(main)
