"""What must hold among several keys of a configuration; the limits of one key stand at the key."""

import codecs
import os
from pathlib import Path

from adg.base.keys import NAME_RULE, is_name, listed, require
from adg.base.paths import ROOT
from adg.config_sections import (
    SUBSETS,
    EmbeddingConfig,
    EvalConfig,
    GenerationConfig,
    ModelConfig,
    PoolConfig,
    TrainConfig,
)


def check_output_dir(output_dir: str) -> None:
    """InputError where a folder cannot hold a run, or its files would mix with others."""
    require(bool(output_dir.strip()), "output_dir", output_dir, "a folder's name")
    folder = Path(output_dir)
    require(_may_hold_a_run(folder), "output_dir", output_dir, "a folder for one run, as in "
            "runs/mine: not the repository, its source folders or one that contains it, nor your "
            "home folder or /")
    nearest = next((path for path in (folder, *folder.parents) if os.path.exists(path)), ROOT)
    require(nearest.is_dir(), "output_dir", output_dir, f"a folder, and {nearest} is a file")


def _may_hold_a_run(folder: Path) -> bool:
    """Whether a run folder is none of those whose files a run would mix with."""
    folder = folder.resolve()
    if folder in (Path(os.path.expanduser("~")).resolve(), ROOT, *ROOT.parents):
        return False
    if not folder.is_relative_to(ROOT):
        return True
    top = ROOT / folder.relative_to(ROOT).parts[0]
    return not (top.name.startswith(".") or top.name in ("configs", "tests")
                or (top / "__init__.py").is_file())


_NO_FILES = ("idna", "punycode", "unicode-escape", "raw-unicode-escape")  # codecs of other things


def check_pool(pool: PoolConfig) -> None:
    """InputError for an encoding that Python does not have, and for keys that exclude others."""
    require(pool.encoding == "auto" or _is_codec(pool.encoding), "pool.encoding", pool.encoding,
            "auto or a Python codec for text such as utf-8, cp1252 or utf-16")
    require(pool.on_hub() or Path(pool.path).resolve() != Path("/"), "pool.path", pool.path,
            "a file, or a folder that holds only the pool")
    require(pool.schema == "auto" or not pool.fields, "pool.schema", pool.schema,
            "auto with pool.fields, which name every field")


def _is_codec(name: str) -> bool:
    """Whether Python has an encoding of text files of this name."""
    try:
        return ("a\n".encode(name).decode(name) == "a\n"
                and codecs.lookup(name).name not in _NO_FILES)
    except (LookupError, ValueError):  # unknown or of bytes alone; a name with a NUL
        return False


def check_lengths(generation: GenerationConfig) -> None:
    """InputError where the numbers of tokens do not fit one another."""
    shortest, longest = generation.min_new_tokens, generation.max_new_tokens
    require(shortest <= longest, "generation.min_new_tokens", shortest,
            f"at most max_new_tokens ({longest})")
    require(generation.max_model_len > longest, "generation.max_model_len",
            generation.max_model_len, f"above max_new_tokens ({longest})")


def check_layers(embedding: EmbeddingConfig, window: str | None) -> None:
    """InputError for windows of layers that cannot be; `window` is selection.window."""
    for own, layers in {"": embedding.layers, **embedding.windows}.items():
        name = f"embedding.windows.{own}" if own else "embedding.layers"
        require(not own or is_name(own), "embedding.windows", own, f"named by {NAME_RULE}")
        require(bool(layers), name, layers, "at least one layer")
        require(len(set(layers)) == len(layers), name, layers, "without duplicates")
    require(window is None or window in embedding.windows, "selection.window", window,
            f"null or a name in embedding.windows ({', '.join(embedding.windows)})")
    require(embedding.empty_answers != "instruction" or embedding.recipe == "released",
            "embedding.empty_answers", "instruction", "leave_out or zero with embedding.recipe "
            f"{embedding.recipe}")


def check_sampler(generation: GenerationConfig, model: ModelConfig) -> None:
    """InputError for what only vLLM can do, with another sampler."""
    if generation.sampler != "vllm":
        require(model.tensor_parallel_size == 1, "model.tensor_parallel_size",
                model.tensor_parallel_size, "1 with generation.sampler transformers")
        require(not generation.batch_invariant, "generation.batch_invariant", True,
                "false with generation.sampler transformers")


def check_one_pass(embedding: EmbeddingConfig, room: int, *, dtype: str,
                   sampling_dtype: str) -> None:
    """Where the sampler's own pass makes the vectors, nothing may ask for another text or dtype.

    `room` is generation.max_model_len, `dtype` that in which texts become vectors.
    """
    if embedding.source != "sampling":
        return
    why = "with embedding.source sampling, which"
    require(embedding.recipe == "paper", "embedding.recipe", embedding.recipe, f"paper {why} sees "
            "each answer after its own prompt only: released embeds other texts; use "
            "embedding.source=forward")
    require(embedding.token_weights == "uniform", "embedding.token_weights",
            embedding.token_weights, f"uniform {why} counts every token once; use "
            "embedding.source=forward")
    require(dtype == sampling_dtype, "embedding.dtype", dtype,
            f"{sampling_dtype} {why} samples answers in it")
    require(embedding.max_length >= room, "embedding.max_length", embedding.max_length,
            f"at least generation.max_model_len ({room}) {why} embeds answers whole")


def check_num_answers(used: int | None, sampled: int) -> None:
    """InputError where more answers are used (selection.num_answers) than are sampled."""
    require(used is None or used <= sampled, "selection.num_answers", used,
            f"at most generation.num_answers ({sampled})")


def check_training(train: TrainConfig, evaluation: EvalConfig) -> None:
    """InputError for a subset, a report or benchmarks that cannot be."""
    require(train.subset in SUBSETS or train.subset_file() is not None, "train.subset",
            train.subset, listed((*SUBSETS, "a file ending in .json or .jsonl")))
    require("none" not in train.report_to or len(train.report_to) == 1, "train.report_to",
            train.report_to, "none alone, or without none")
    require(bool(evaluation.benchmarks), "eval.benchmarks", evaluation.benchmarks,
            "at least one benchmark")


def check_prompts(generation: GenerationConfig, train: TrainConfig) -> None:
    """InputError for options of a prompt that is not used, and where a prompt file is lacking."""
    prompts = generation.prompt, train.prompt
    for option, prompt in (("prompt_file", "file"), ("system_prompt", "chat")):
        value = getattr(generation, option)
        require(value is None or prompt in prompts, f"generation.{option}", value,
                f"null, as neither generation.prompt nor train.prompt is {prompt}")
    require(generation.prompt_file is not None or "file" not in prompts, "generation.prompt_file",
            None, "a file, as generation.prompt or train.prompt is file")


def check_names(names: dict[str, str]) -> None:
    """InputError for a name, by its key, that cannot be a folder's."""
    for name_key, name in names.items():
        require(is_name(name), name_key, name, NAME_RULE)
    require(names["train.name"] != "base", "train.name", "base",
            "another name: base is the backbone as it is")
