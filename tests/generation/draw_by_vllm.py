"""Engines under stress, each drawing the same answers with their vectors; run by test_one_pass.py.

    python tests/generation/draw_by_vllm.py CONFIG OUT_DIR VARIANT ...

For each variant OUT_DIR/VARIANT.json holds {"answers": [N][K] of {"text", "token_ids", "vectors"},
"split": prompts that were read in several steps, "refed": answer tokens that were computed again}.
"""

import json
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from adg.config import load_config  # noqa: E402
from adg.models import folders  # noqa: E402
from adg.models.loading import LocalModel  # noqa: E402
from adg.prompts import Prompter  # noqa: E402
from adg.records import Pool  # noqa: E402
from generation.drafts import Draft  # noqa: E402
from generation.samplers import Request  # noqa: E402
from generation.vllm_sampler import VllmSampler  # noqa: E402

VARIANTS = {
    "plain": {}, "no_prefix_caching": {"enable_prefix_caching": False},
    "preempted": {"num_gpu_blocks_override": 0},  # as few as one request needs
    "split": {"max_num_batched_tokens": 64, "max_num_seqs": 16, "enable_chunked_prefill": True},
    "one_by_one": {}, "asynchronous": {"async_scheduling": True},
}


def main() -> None:
    config = load_config(Path(sys.argv[1]), [])
    folder = folders.local_folder(config.model.name_or_path, config.output_dir)
    prompter = Prompter(config.generation.prompt, folders.load_tokenizer(
        folder, trust_remote_code=False), config.generation)
    records = list(Pool(Path(config.output_dir)))
    draft = Draft(0, records, prompter, config)
    requests = list(draft.requests.values())
    for name in sys.argv[3:]:
        found = draw(name, requests, folder, config)
        Path(sys.argv[2], f"{name}.json").write_text(json.dumps(found))


def draw(name: str, requests: list[Request], folder: Path, config) -> dict:
    sampler = start(VARIANTS[name], folder, config, requests)
    from generation import vllm_worker

    seen = {"split": 0, "refed": 0}
    add = vllm_worker.StateSums.add

    def counted(self, batch, mean_of):
        for own, scheduled, computed, prompt in zip(*batch, strict=True):
            seen["split"] += computed + scheduled < prompt
            seen["refed"] += max(0, min(self._counts.get(own, 0), computed + scheduled - prompt)
                                 - max(0, computed - prompt))
        add(self, batch, mean_of)

    vllm_worker.StateSums.add = counted
    if name == "one_by_one":
        single = [Request(prompt, seed + k, 1) for prompt, seed, number in requests
                  for k in range(number)]
        alone = [answers[0] for _, answers in sorted(sampler.stream(iter(single)))]
        number = requests[0].num_answers
        answers = [alone[i: i + number] for i in range(0, len(alone), number)]
    else:
        answers = [own for _, own in sorted(sampler.stream(iter(requests)),
                                            key=lambda pair: pair[0])]
    vllm_worker.StateSums.add = add
    left = sampler.llm.collective_rpc(lambda worker: len(worker.sums._slots))
    assert left == [0], "rows of answers were left behind"
    return seen | {"answers": [[{"text": answer.text, "token_ids": answer.token_ids,
                                 "reason": answer.finish_reason,
                                 "vectors": answer.vectors.tolist()} for answer in own]
                               for own in answers]}


def start(options: dict, folder: Path, config, requests: list[Request]) -> VllmSampler:
    import vllm

    if "num_gpu_blocks_override" in options:
        longest = max(len(request.prompt) for request in requests)
        options = {"num_gpu_blocks_override": 4 + -(-max(
            config.generation.max_model_len + 1, longest) // 32), "block_size": 32}
    llm = vllm.LLM
    vllm.LLM = lambda *own, **settings: partial(llm, *own)(**settings | options)
    try:
        return VllmSampler(LocalModel(folder), config)
    finally:
        vllm.LLM = llm


if __name__ == "__main__":
    main()
