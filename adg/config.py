"""The configuration of one experiment: dataclasses, then a YAML file, then `section.key=value`.

Every field states its unit and what it is for; `--help` of every stage prints them all. A key
marked as tuning changes speed or memory only: changing it makes no result stale.
"""

import difflib
import importlib.util
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adg.base.errors import InputError
from adg.base.keys import (
    DTYPES,
    NAME_RULE,
    dtype_or_none,
    is_name,
    key,
    one_of,
    positive_or_none,
    require,
    seed_or_none,
)
from adg.base.paths import ROOT, find, looked_in
from adg.benchmarks import BENCHMARKS, code_benchmarks, main_benchmarks
from adg.selection_config import SelectionConfig

PROMPTS = ("alpaca", "alpaca_no_input", "chat", "plain", "file")
_RESOLVER = re.compile(r"(?<!\\)\$\{\s*([^\s${}:]+)\s*:")  # of an interpolation ${name:argument}
HUB = "hf:"  # what pool.path begins with where it names a hub data set
POOL_SCHEMAS = ("alpaca", "dolly", "sharegpt", "wizardlm", "messages", "self_instruct",
                "prompt_completion", "prompt_response", "flan")
SUBSETS = ("top", "middle", "bottom")


@dataclass
class ModelConfig:
    name_or_path: str = key(MISSING, "backbone: a hub name (also owner/name@revision), a Hugging "
                                    "Face folder or a GGUF file", path=True)
    dtype: str = key("bfloat16", "weights in every stage: bfloat16, float16 or float32")
    trust_remote_code: bool = key(False, "run Python code that comes with the model")
    tensor_parallel_size: int = key(1, "sample, and evaluate with vllm: GPUs that one engine "
                                       "spreads the model over", tuning=True)

    def __post_init__(self) -> None:
        one_of("model.dtype", self.dtype, DTYPES)
        size = self.tensor_parallel_size
        require(size >= 1, "model.tensor_parallel_size", size, "1 or more")


@dataclass
class PoolConfig:
    path: str = key(MISSING, "the instruction pool: .jsonl, .json (an array), .parquet, .csv or "
                              ".tsv, also .gz of all but Parquet, a folder of such files, or "
                              "hf:owner/name", path=True)
    encoding: str = key("utf-8", "of text files: a Python codec such as utf-8, cp1252 or utf-16, "
                                  "or auto (told by the file; refused where that is not certain)")
    limit: int | None = key(None, "use only the first so many usable records; null: all")
    schema: str = key("auto", "what shape its records have: auto (told by the first ones), "
                               + ", ".join(POOL_SCHEMAS))
    fields: dict[str, str] = key({}, "fields of other names, as {instruction: question, output: "
                                      "answer}, also input and id; instead of pool.schema")
    multi_turn: str = key("reject", "a conversation of several turns: first, last, or reject it")
    duplicates: str = key("keep", "records that are the same word for word: keep, drop or reject")
    decontaminate: str = key("report", "records that share 13 words in a row with a question in "
                                        "eval.data_dir: report, drop, or off (not looked for)")
    max_rejected: float = key(0.01, "share of unusable records above which prepare stops")
    split: str = key("train", "of a hub data set")
    revision: str | None = key(None, "of a hub data set: branch, tag or commit; null: the newest")

    def __post_init__(self) -> None:
        positive_or_none("pool.limit", self.limit)
        one_of("pool.schema", self.schema, ("auto", *POOL_SCHEMAS))
        require(self.encoding == "auto" or _is_codec(self.encoding), "pool.encoding",
                self.encoding, "auto or a Python codec for text such as utf-8, cp1252 or utf-16")
        one_of("pool.multi_turn", self.multi_turn, ("first", "last", "reject"))
        one_of("pool.duplicates", self.duplicates, ("keep", "drop", "reject"))
        if self.decontaminate == "False":  # what YAML makes of a bare off
            self.decontaminate = "off"
        one_of("pool.decontaminate", self.decontaminate, ("report", "drop", "off"))
        for name in self.fields:
            one_of("pool.fields", name, ("instruction", "input", "output", "id"))
        require(self.schema == "auto" or not self.fields, "pool.schema", self.schema,
                "auto with pool.fields, which say all")
        require(0 <= self.max_rejected <= 1, "pool.max_rejected", self.max_rejected,
                "from 0 to 1")

    def on_hub(self) -> bool:
        """Whether pool.path names a hub data set."""
        return self.path.startswith(HUB)


def _is_codec(name: str) -> bool:
    """Whether Python knows an encoding of text by this name."""
    try:
        return "a\n".encode(name).decode(name) == "a\n"
    except (LookupError, ValueError):  # unknown or of bytes alone; a name with a NUL
        return False


@dataclass
class GenerationConfig:
    sampler: str = key("vllm", "engine that answers: vllm, or transformers (slow, runs any model)")
    prompt: str = key("alpaca", "prompt template: alpaca, alpaca_no_input (drops the input), chat "
                                 "(the tokenizer's own), plain (the record alone) or file")
    prompt_file: str | None = key(None, "prompt file: a text with {instruction} and {input}, or "
                                         "{text} for both; after a line ---, one without input",
                                   path=True)
    system_prompt: str | None = key(None, "prompt chat: a system message; null: none of ours")
    max_prompt_tokens: int | None = key(None, "only the prompt's first so many tokens, which may "
                                               "cut off its end; null: all")
    long_prompts: str = key("reject", "a prompt without room for max_new_tokens: reject (no "
                                       "answers) or cut_input (the end of its input is cut)")
    control_tokens: str | None = key(None, "control tokens of the tokenizer that stand in a record "
                                            "(<|im_end|>): null: they are text, in every stage; "
                                            "obey: they are control tokens there too")
    num_answers: int = key(5, "answers per instruction (K)")
    temperature: float = key(1.4, "sampling temperature")
    top_k: int | None = key(50, "only the so many likeliest tokens are drawn from, before top_p; "
                                 "null: all")
    top_p: float = key(0.9, "nucleus sampling: share of probability that is kept")
    max_new_tokens: int = key(256, "tokens per answer at most")
    min_new_tokens: int = key(1, "tokens per answer at least; an answer without one has no vector")
    max_model_len: int = key(2048, "tokens of prompt and answer together that the engine takes")
    gpu_memory_utilization: float = key(0.9, "share of each GPU's memory for vLLM", tuning=True)
    max_num_seqs: int | None = key(None, "answers that the engine draws at once; null: vLLM's own "
                                          "choice, 64 with transformers", tuning=True)
    max_num_batched_tokens: int | None = key(None, "tokens of one step of vLLM; null: its own "
                                                    "choice", tuning=True)
    prefix_caching: bool = key(True, "vLLM: compute what prompts share once", tuning=True)
    keep_token_ids: bool = key(False, "also write each answer's token ids; embedding then reads "
                                       "them, and not what its text tokenises to")
    strip_answers: bool = key(False, "store answers without white space at both ends")
    dtype: str | None = key(None, "weights while sampling: bfloat16, float16 or float32; null: "
                                   "model.dtype")
    engine_process: bool = key(False, "vLLM's engine runs in a process of its own, beside the one "
                                       "that prepares prompts and reads answers", tuning=True)
    batch_invariant: bool = key(False, "vLLM on GPUs: kernels whose results do not depend on the "
                                        "batch (VLLM_BATCH_INVARIANT); slower")

    def __post_init__(self) -> None:
        one_of("generation.sampler", self.sampler, ("vllm", "transformers"))
        one_of("generation.prompt", self.prompt, PROMPTS)
        positive_or_none("generation.max_prompt_tokens", self.max_prompt_tokens)
        one_of("generation.long_prompts", self.long_prompts, ("reject", "cut_input"))
        require(self.control_tokens in (None, "obey"), "generation.control_tokens",
                self.control_tokens, "null or obey")
        dtype_or_none("generation.dtype", self.dtype)
        require(self.num_answers >= 2, "generation.num_answers", self.num_answers, "2 or more")
        require(self.temperature > 0, "generation.temperature", self.temperature, "above 0")
        positive_or_none("generation.top_k", self.top_k)
        require(0 < self.top_p <= 1, "generation.top_p", self.top_p, "above 0 and at most 1")
        low, high = self.min_new_tokens, self.max_new_tokens
        require(high >= 1, "generation.max_new_tokens", high, "1 or more")
        require(0 <= low <= high, "generation.min_new_tokens", low, "from 0 to max_new_tokens")
        room = self.max_model_len
        require(room > high, "generation.max_model_len", room, f"above max_new_tokens ({high})")
        positive_or_none("generation.max_num_seqs", self.max_num_seqs)
        positive_or_none("generation.max_num_batched_tokens", self.max_num_batched_tokens)
        share = self.gpu_memory_utilization
        require(0 < share <= 1, "generation.gpu_memory_utilization", share, "above 0, at most 1")


@dataclass
class EmbeddingConfig:
    source: str = key("forward", "where answers' vectors come from: forward (a pass over them) or "
                                  "sampling (from the sampler as it draws them: no second pass)")
    check_answers: int = key(32, "source sampling: the first so many answers are also computed by "
                                  "a forward pass, and compared; 0: none", tuning=True)
    recipe: str = key("paper", "what text makes a vector: paper (prompt and answer, averaged over "
                                "the answer) or released (instruction and answer as one text)")
    layers: list[int] = key([-4, -3, -2, -1], "layers whose outputs are averaged; -1: last")
    windows: dict[str, list[int]] = key({}, "further windows of layers by name, from the same "
                                             "pass: each fills window_grams/NAME/, for "
                                             "selection.window")
    token_weights: str = key("uniform", "weights in the mean: uniform, or content (0 for "
                                         "punctuation, 1.3 for figures)")
    empty_answers: str = key("leave_out", "an answer without a token: leave_out (D and I are over "
                                           "the others), zero (a zero vector) or instruction "
                                           "(recipe released: the instruction alone)")
    max_length: int = key(2048, "tokens of prompt plus answer, or the model's limit where that "
                                  "is lower; longer answers lose their end")
    instruction_max_length: int = key(2048, "tokens of an instruction, or the model's limit; "
                                             "longer ones lose their end")
    tokens_per_batch: int | None = key(None, "tokens of one forward pass, padding included; null: "
                                              "16384 on a GPU, 1024 on a processor", tuning=True)
    share_prompts: bool = key(True, "recipe paper: read a prompt once for its K answers, where "
                                     "that is less work", tuning=True)
    dtype: str | None = key(None, "weights while embedding: bfloat16, float16 or float32; null: "
                                   "model.dtype")
    gpus_per_model: int = key(1, "GPUs that one rank spreads the model over", tuning=True)
    keep_answer_embeddings: bool = key(False, "also write answer vectors (K x H floats a record)")

    def __post_init__(self) -> None:
        one_of("embedding.recipe", self.recipe, ("paper", "released"))
        one_of("embedding.token_weights", self.token_weights, ("uniform", "content"))
        allowed = ("leave_out", "zero", *["instruction"] * (self.recipe == "released"))
        one_of("embedding.empty_answers", self.empty_answers, allowed)
        one_of("embedding.source", self.source, ("forward", "sampling"))
        for name, layers in {"": self.layers, **self.windows}.items():
            key = f"embedding.windows.{name}" if name else "embedding.layers"
            require(not name or is_name(name), "embedding.windows", name,
                    f"named by {NAME_RULE}")
            require(bool(layers), key, layers, "at least one layer")
            require(len(set(layers)) == len(layers), key, layers, "layers that differ")
        require(self.check_answers >= 0, "embedding.check_answers", self.check_answers,
                "0 or more")
        if self.source == "sampling":
            self._check_sampling()
        dtype_or_none("embedding.dtype", self.dtype)
        positive_or_none("embedding.tokens_per_batch", self.tokens_per_batch)
        for name in ("max_length", "instruction_max_length", "gpus_per_model"):
            value = getattr(self, name)
            require(value >= 1, f"embedding.{name}", value, "1 or more")


    def _check_sampling(self) -> None:
        why = "with embedding.source sampling, which sees each answer after its own prompt only"
        require(self.recipe == "paper", "embedding.recipe", self.recipe, f"paper {why}: released "
                "embeds other texts; use embedding.source=forward")
        require(self.token_weights == "uniform", "embedding.token_weights", self.token_weights,
                "uniform with embedding.source sampling, which counts every token once; use "
                "embedding.source=forward")


@dataclass
class ClusteringConfig:
    num_bins: int | None = key(None, "semantic bins (k-means clusters), 1000 in the paper; null: a "
                                     "tenth of the records, at most 1000")
    batch_size: int = key(4096, "records of one mini-batch of k-means")
    max_batch_share: float = key(1.0, "share of the pool that a mini-batch holds at most")
    num_init: int = key(3, "starts of k-means, of which the best is kept")
    max_iter: int = key(100, "passes over the pool at most")
    scratch_dir: str | None = key(None, "folder for the copy of the vectors that k-means reads (N "
                                         "x H x 4 bytes); null: $TMPDIR where that is on a disk "
                                         "with room, else output_dir", tuning=True, path=True)

    def __post_init__(self) -> None:
        positive_or_none("clustering.num_bins", self.num_bins)
        for name in ("batch_size", "num_init", "max_iter"):
            value = getattr(self, name)
            require(value >= 1, f"clustering.{name}", value, "1 or more")
        share = self.max_batch_share
        require(0 < share <= 1, "clustering.max_batch_share", share, "above 0 and at most 1")

    def count_bins(self, num_records: int) -> int:
        """The bins of a pool of so many records."""
        return self.num_bins or max(1, min(1000, num_records // 10))


@dataclass
class TrainConfig:
    name: str | None = key(None, "folder under models/; null: <selection>-<subset>, as in "
                                  "adg-top, or the name of the file in train.subset")
    seed: int | None = key(None, "of the order of the records; null: seed")
    subset: str = key("top", "what to fine-tune on: top, middle, bottom, or a file of Alpaca "
                              "records (.json or .jsonl)", path=True)
    model_name_or_path: str | None = key(None, "what is fine-tuned; null: the selecting backbone",
                                         path=True)
    prompt: str | None = key(None, "prompt template; null: the one of generation.prompt")
    deepspeed: str = key("configs/deepspeed/zero2.json", "DeepSpeed's configuration file; ZeRO-2 "
                         "and ZeRO-3 sum a step's gradients in float32 unless it says otherwise "
                         "(data_types.grad_accum_dtype)", path=True)
    epochs: int = key(5, "passes over the subset")
    learning_rate: float = key(1e-5, "peak learning rate of AdamW")
    lr_scheduler: str = key("cosine", "schedule after the warm-up: cosine, linear or constant")
    warmup_ratio: float = key(0.03, "share of the steps in which the learning rate rises")
    weight_decay: float = key(0.0, "AdamW's weight decay")
    batch_size: int = key(64, "records per optimiser step over all ranks")
    per_device_batch_size: int = key(8, "records per rank in one forward pass on average, at most: "
                                        "short ones share it with more, long ones with fewer",
                                     tuning=True)
    max_length: int = key(2048, "tokens of prompt and response; a longer response loses its end")
    gradient_checkpointing: bool = key(True, "recompute activations: less memory", tuning=True)
    save_minutes: int | None = key(30, "minutes between two checkpoints; null: not by time",
                                   tuning=True)
    save_steps: int | None = key(None, "optimiser steps between two checkpoints; null: not by "
                                       "steps", tuning=True)
    keep_checkpoints: int = key(2, "newest checkpoints that are kept", tuning=True)

    def __post_init__(self) -> None:
        require(self.prompt is None or self.prompt in PROMPTS, "train.prompt", self.prompt,
                "null or " + " or ".join(PROMPTS))
        require(self.subset in SUBSETS or self.subset_file() is not None, "train.subset",
                self.subset, " or ".join(SUBSETS) + ", or a file ending in .json or .jsonl")
        one_of("train.lr_scheduler", self.lr_scheduler, ("cosine", "linear", "constant"))
        for name in ("epochs", "batch_size", "per_device_batch_size", "max_length"):
            value = getattr(self, name)
            require(value >= 1, f"train.{name}", value, "1 or more")
        for name in ("save_minutes", "save_steps"):
            positive_or_none(f"train.{name}", getattr(self, name))
        require(self.keep_checkpoints >= 2, "train.keep_checkpoints", self.keep_checkpoints,
                "2 or more: the newest may be half written when a machine dies")
        seed_or_none("train.seed", self.seed)
        require(self.learning_rate > 0, "train.learning_rate", self.learning_rate, "above 0")
        ratio = self.warmup_ratio
        require(0 <= ratio < 1, "train.warmup_ratio", ratio, "from 0 to below 1")
        require(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "0 or more")


    def subset_file(self) -> Path | None:
        """The file that train.subset names; None where it names a subset of the run."""
        path = Path(self.subset)
        return path if path.suffix in (".json", ".jsonl") else None


@dataclass
class EvalConfig:
    name: str | None = key(None, "model under models/ to evaluate, or base; null: train.name")
    benchmarks: list[str] = key(main_benchmarks(), "which of " + ", ".join(BENCHMARKS))
    backend: str = key("hf", "engine that answers: hf (transformers) or vllm")
    data_dir: str | None = key(None, "benchmarks on disk in the hub's layout; null: from the hub",
                               path=True)
    limit: int | None = key(None, "first so many questions of each task; null: all")
    max_new_tokens: int | None = key(None, "tokens per answer; null: as lm-eval's tasks say")
    batch_size: int = key(8, "backend hf: questions per rank in one forward pass", tuning=True)
    allow_code_execution: bool = key(False, "run programs that the model writes: those of "
                                            + ", ".join(code_benchmarks(BENCHMARKS)))
    sandbox: str = key("auto", "what those programs run in: auto (a sandbox where one works here, "
                               "else a warning), require (a sandbox or an error) or off")

    def __post_init__(self) -> None:
        for name in self.benchmarks:
            one_of("eval.benchmarks", name, tuple(BENCHMARKS))
        one_of("eval.backend", self.backend, ("hf", "vllm"))
        if self.sandbox == "False":  # what YAML makes of a bare off
            self.sandbox = "off"
        one_of("eval.sandbox", self.sandbox, ("auto", "require", "off"))
        require(bool(self.benchmarks), "eval.benchmarks", self.benchmarks,
                "at least one benchmark")
        for name in ("limit", "max_new_tokens"):
            positive_or_none(f"eval.{name}", getattr(self, name))
        require(self.batch_size >= 1, "eval.batch_size", self.batch_size, "1 or more")


@dataclass
class Config:
    output_dir: str = key(MISSING, "the run folder: one pool and one backbone")
    seed: int = key(42, "of sampling, k-means, selection and training")
    chunk_size: int | None = key(None, "records per file and unit of work in answers/ and the "
                                 "vectors; null: a 64th of the pool, but 8 to 500, and more of a "
                                 "pool of millions")
    stall_timeout: int = key(3600, "seconds without progress after which a rank of sample, embed, "
                             "measure, finetune or evaluate ends itself; 0: never", tuning=True)
    model: ModelConfig = field(default_factory=ModelConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    clustering: ClusteringConfig = field(default_factory=ClusteringConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def sampling_dtype(self) -> str:
        """What the backbone's weights are in while it answers."""
        return self.generation.dtype or self.model.dtype

    def embedding_dtype(self) -> str:
        """What the backbone's weights are in while texts become vectors."""
        return self.embedding.dtype or self.model.dtype

    def selection_seed(self) -> int:
        """The seed of a draw of records."""
        return self.seed if self.selection.seed is None else self.selection.seed

    def train_seed(self) -> int:
        """The seed of fine-tuning."""
        return self.seed if self.train.seed is None else self.train.seed

    def compares_with_benchmarks(self) -> bool:
        """Whether prepare compares the pool with benchmarks that are at hand."""
        return self.pool.decontaminate != "off" and self.eval.data_dir is not None

    def __post_init__(self) -> None:
        positive_or_none("chunk_size", self.chunk_size)
        require(self.stall_timeout >= 0, "stall_timeout", self.stall_timeout, "0 or more")
        seed_or_none("seed", self.seed)
        require(bool(self.output_dir.strip()), "output_dir", self.output_dir, "a folder's name")
        require(_may_hold_a_run(Path(self.output_dir)), "output_dir", self.output_dir, "a folder "
                "for one run, as in runs/mine: not the repository, its source folders or what it "
                "is in, nor your home folder or /")
        for name, value in flatten(self).items():
            require(not isinstance(value, float) or math.isfinite(value), name, value, "finite")
        if self.generation.sampler != "vllm":
            size = self.model.tensor_parallel_size
            require(size == 1, "model.tensor_parallel_size", size, "1 with generation.sampler "
                                                                    "transformers")
            require(not self.generation.batch_invariant, "generation.batch_invariant", True,
                    "false with generation.sampler transformers")
        if self.embedding.source == "sampling":
            drawn, embedded = self.sampling_dtype(), self.embedding_dtype()
            require(drawn == embedded, "embedding.dtype", embedded, f"{drawn} with "
                    "embedding.source sampling, as answers are drawn in it")
            least = self.generation.max_model_len
            require(self.embedding.max_length >= least, "embedding.max_length",
                    self.embedding.max_length, f"at least generation.max_model_len ({least}) with "
                    "embedding.source sampling, which embeds answers whole")
        drawn, used = self.generation.num_answers, self.selection.num_answers
        require(used is None or used <= drawn, "selection.num_answers", used,
                f"at most generation.num_answers ({drawn})")
        window = self.selection.window
        require(window is None or window in self.embedding.windows, "selection.window", window,
                f"null or a name in embedding.windows ({', '.join(self.embedding.windows)})")
        self.selection.fill_in_names()
        if self.selection.method == "zip" and self.selection.zip.source is None:
            self.selection.zip.source = Path(self.pool.path.removeprefix(HUB)).name.split(".")[0]
        file = self.train.subset_file()
        self.train.name = self.train.name or (
            file.stem if file else f"{self.selection.name}-{self.train.subset}")
        self.train.prompt = self.train.prompt or self.generation.prompt
        for option, prompt in (("prompt_file", "file"), ("system_prompt", "chat")):
            used = prompt in (self.generation.prompt, self.train.prompt)
            value = getattr(self.generation, option)
            require(value is None or used, f"generation.{option}", value,
                    f"null, as neither generation.prompt nor train.prompt is {prompt}")
        require(self.generation.prompt_file is not None
                or "file" not in (self.generation.prompt, self.train.prompt),
                "generation.prompt_file", None, "a file, as a prompt is file")
        self.eval.name = self.eval.name or self.train.name
        for section in ("selection", "train", "eval"):
            name = getattr(self, section).name
            require(is_name(name), f"{section}.name", name, NAME_RULE)
        require(self.train.name != "base", "train.name", "base",
                "another name: base is the backbone")


def _may_hold_a_run(folder: Path) -> bool:
    """Whether a run folder is none of those whose files a run would lie among."""
    folder = folder.resolve()
    if folder in (Path(os.path.expanduser("~")).resolve(), ROOT, *ROOT.parents):
        return False
    if not folder.is_relative_to(ROOT):
        return True
    top = ROOT / folder.relative_to(ROOT).parts[0]
    return not (top.name.startswith(".") or top.name in ("configs", "tests")
                or (top / "__init__.py").is_file())


def _package_dir(name: str) -> str:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"${{package_dir:{name}}}: the Python package {name} is not installed; "
                         f"`bash run.sh setup` installs what the demo needs")
    return spec.submodule_search_locations[0]


# A configuration may come from anyone, and its values end up in data cards: none of OmegaConf's own
# resolvers, as ${oc.env:NAME}, is there to be asked.
for _name in ("coerce", "create", "decode", "deprecated", "env", "select", "dict.keys",
              "dict.values"):
    OmegaConf.clear_resolver(f"oc.{_name}")
OmegaConf.register_resolver("package_dir", _package_dir, replace=True)


def _fields(node: type = Config, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """(section.key, its field) of every configuration key."""
    for item in fields(node):
        if is_dataclass(item.type):
            yield from _fields(item.type, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, item


def describe_keys() -> list[tuple[str, Any, str, bool]]:
    """Every configuration key: (section.key, default, what it is, whether it only tunes speed)."""
    return [(name, item.default if item.default is not NO_DEFAULT else item.default_factory(),
             item.metadata["about"], item.metadata["tuning"]) for name, item in _fields()]


# Keys whose value is a mapping: one that is given takes the place of the one that it builds on
_MAPPINGS = frozenset(key for key, default, *_ in describe_keys() if isinstance(default, dict))
TUNING_KEYS = frozenset(key for key, _, _, tuning in describe_keys() if tuning)
PATH_KEYS = tuple(name for name, item in _fields() if item.metadata["path"])


def load_config(path: Path, overrides: list[str]) -> Config:
    """The checked configuration: defaults, the YAML at `path`, then `section.key=value` overrides.

    A YAML's key `base` names another, beside it or by a relative path, whose values it builds on.
    Relative paths to inputs, the YAML's own included, lead from the current folder, else from the
    repository (adg.base.paths). A relative output_dir leads from the current folder; one that a
    YAML in the repository gives, from the repository.

    Raises InputError that names the key (and the nearest one, where there is none of that name).
    """
    path = Path(find(str(path)))
    if not path.is_file():
        raise InputError(f"{path}: there is no such configuration file{looked_in(path)}")
    for text in overrides:
        if "=" not in text:
            raise InputError(f"{text!r} is no override: write section.key=value")
    config, source = OmegaConf.structured(Config), str(path)
    try:
        config = OmegaConf.merge(config, _read_yaml(path, ()))
        source = "the command line"
        given = OmegaConf.from_dotlist(overrides)
        _check_resolvers(given, source)
        config = _merge(config, given,
                        _MAPPINGS & {text.partition("=")[0] for text in overrides})
        source = str(path)
        return _with_inputs_found(OmegaConf.to_object(config))
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not valid YAML: {_problem_of(error)}") from None
    except OmegaConfBaseException as error:
        raise InputError(f"{source}: {_explain(error)}") from None


def _with_inputs_found(config: Config) -> Config:
    for name in PATH_KEYS:
        *section, last = name.split(".")
        node = reduce(getattr, section, config)
        value = getattr(node, last)
        if value is not None and value not in SUBSETS:
            setattr(node, last, find(value))
    return config


def _read_yaml(path: Path, above: tuple[Path, ...]) -> DictConfig:
    """A YAML file on top of its base; `above` are the files that build on it."""
    try:
        text = path.read_text(encoding="utf-8")
        if not isinstance(yaml.compose(text, Loader=yaml.SafeLoader), yaml.MappingNode | None):
            raise InputError(f"{path}: not a YAML mapping of configuration keys")
        given = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML mapping in UTF-8 ({error})") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {_problem_of(error)}") from None
    _check_resolvers(given, str(path))
    output_dir = OmegaConf.to_container(given, resolve=False).get("output_dir")
    if isinstance(output_dir, str) and path.resolve().is_relative_to(ROOT) and Path.cwd() != ROOT:
        given.output_dir = str(ROOT / output_dir)
    base = given.pop("base", None)
    if base is None:
        return given
    below = path.parent / str(base)
    if not below.is_file() or below.resolve() in above:
        problem = "builds on this file itself" if below.is_file() else "is not there"
        raise InputError(f"{path}: base: {below} {problem}")
    return _merge(_read_yaml(below, (*above, path.resolve())), given,
                  [name for name in _MAPPINGS if OmegaConf.select(given, name) is not None])


def _problem_of(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text, and where, without the text itself: it may be a secret."""
    mark = getattr(error, "problem_mark", None)
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return f"{getattr(error, 'problem', None) or 'it cannot be read'}{place}"


def _check_resolvers(given: DictConfig, source: str) -> None:
    """InputError where a value asks a resolver other than package_dir."""
    for name, value in _texts(OmegaConf.to_container(given, resolve=False), ""):
        for resolver in _RESOLVER.findall(value):
            if resolver != "package_dir":
                raise InputError(f"{source}: {name} asks for ${{{resolver}:...}}, but only "
                                 f"${{package_dir:NAME}} and ${{section.key}} are resolved")


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """(its key, text) of every text in a tree of dicts and lists."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict | list):
        for part, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(below, f"{name}.{part}" if name else str(part))


def _merge(below: DictConfig, given: DictConfig, whole: Iterable[str]) -> DictConfig:
    """`given` on top of `below`, in the place of whose mappings `whole` its own stand."""
    for name in whole:
        OmegaConf.update(below, name, {}, merge=False)
    return OmegaConf.merge(below, given)


def no_key(key: str) -> str:
    """That there is no such key, and which one may have been meant."""
    names = [name for name, *_ in describe_keys()]
    by_last_part = [name for name in names if name.split(".")[-1] == key.split(".")[-1]]
    near = by_last_part or difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"{key} is no key" + (f"; did you mean {near[0]}?" if near else "; --help lists them")


def _explain(error: OmegaConfBaseException) -> str:
    key, first_line = getattr(error, "full_key", None), str(error).splitlines()[0]
    first_line = first_line.removeprefix("InputError raised while resolving interpolation: ")
    if isinstance(error, KeyError):
        return no_key(key)
    if "missing mandatory" in first_line.lower():
        return f"{key} is not given, and it has no default"
    return f"{key}: {first_line}" if key else first_line


def flatten(config: Config) -> dict[str, Any]:
    """{"section.key": value} of every key."""
    return {key: reduce(getattr, key.split("."), config) for key, *_ in describe_keys()}


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML: what a run folder keeps as config.yaml."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
