"""The sections of a configuration but `selection`: every key with its default, unit and limits.

What a key's value may be stands at the key alone; rules over several keys are in adg.config_rules.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from adg.base.keys import DTYPES, MAX_SEED, key
from adg.benchmarks import BENCHMARKS, code_benchmarks, main_benchmarks
from adg.selection import Subsets

PROMPTS = ("alpaca", "alpaca_no_input", "chat", "plain", "file")
HUB = "hf:"  # what pool.path begins with where it names a hub data set
POOL_SCHEMAS = ("alpaca", "dolly", "sharegpt", "wizardlm", "messages", "self_instruct",
                "prompt_completion", "prompt_response", "flan")
SUBSETS = Subsets._fields
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
SANDBOX_CHOICES = ("auto", "require", "off")
REPORTERS = {  # train.report_to: the packages of which one is needed
    "tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",)}


@dataclass
class ModelConfig:
    name_or_path: str = key(MISSING, "backbone: a hub name (also owner/name@revision), a Hugging "
                            "Face folder or a GGUF file", path=True)
    dtype: str = key("bfloat16", "dtype of the weights in every stage", choices=DTYPES)
    trust_remote_code: bool = key(False, "run Python code that comes with the model",
                                  compared=False)
    tensor_parallel_size: int = key(1, "sample, and evaluate with vllm: GPUs over which one engine "
                                    "splits the model", least=1, tuning=True)


@dataclass
class PoolConfig:
    path: str = key(MISSING, "the instruction pool: .jsonl, .json (an array), .parquet, .csv or "
                    ".tsv, also .gz of all but Parquet, a folder of such files, or hf:owner/name",
                    path=True)
    encoding: str = key("utf-8", "encoding of text files: a Python codec such as utf-8, cp1252 or "
                        "utf-16, or auto (inferred from the file; an error if that is not "
                        "certain)", compared=False)
    limit: int | None = key(None, "use only the first N usable records; null: all", least=1)
    schema: str = key("auto", "schema of its records; auto: inferred from the first ones",
                      choices=("auto", *POOL_SCHEMAS), compared=False)
    fields: dict[str, str] = key({}, "names of the fields in the pool, instead of "
                                 "pool.schema: {instruction: question, output: answer}",
                                 choices=("instruction", "input", "output", "id"), compared=False)
    multi_turn: str = key("reject", "turn of a longer conversation that becomes the record; "
                          "reject: rejects such records", choices=("first", "last", "reject"))
    duplicates: str = key("keep", "records that are identical word for word",
                          choices=("keep", "drop", "reject"))
    decontaminate: str = key("report", "records that share 13 consecutive words with a question "
                             "in eval.data_dir; off: not compared",
                             choices=("report", "drop", "off"))
    max_rejected: float = key(0.01, "share of unusable records above which prepare stops",
                              least=0, most=1, compared=False)
    split: str = key("train", "split of a hub data set", compared=False)
    revision: str | None = key(None, "branch, tag or commit of a hub data set; null: the newest",
                               compared=False)

    def on_hub(self) -> bool:
        """Whether pool.path names a hub data set."""
        return self.path.startswith(HUB)


@dataclass
class GenerationConfig:
    sampler: str = key("vllm", "engine that writes the answers; transformers is slow but runs any "
                       "model", choices=("vllm", "transformers"))
    prompt: str = key("alpaca", "prompt template; alpaca_no_input drops the input, chat is the "
                      "tokenizer's own, plain the record alone, file that of prompt_file",
                      choices=PROMPTS)
    prompt_file: str | None = key(None, "prompt template: a text with {instruction} and {input}, "
                                  "or {text} for both; after a line ---, one for records without "
                                  "input", path=True)
    system_prompt: str | None = key(None, "prompt chat: a system message; null: no system message")
    max_prompt_tokens: int | None = key(None, "keep only the first N tokens of a prompt, which may "
                                        "cut off its end; null: all", least=1)
    long_prompts: str = key("reject", "a prompt that leaves no room for max_new_tokens: reject (no "
                            "answers) or cut_input (the end of its input is cut)",
                            choices=("reject", "cut_input"))
    control_tokens: str | None = key(None, "strings of the tokenizer's control tokens in a record "
                                     "(<|im_end|>); null: plain text in every stage; obey: they "
                                     "act as control tokens", choices=("obey",))
    num_answers: int = key(5, "answers per instruction (K)", least=2, compared=False)
    temperature: float = key(1.4, "sampling temperature", above=0)
    top_k: int | None = key(50, "sample from the N likeliest tokens, before top_p; null: from all",
                            least=1)
    top_p: float = key(0.9, "nucleus sampling: share of the probability to keep", above=0, most=1)
    max_new_tokens: int = key(256, "maximum tokens per answer", least=1)
    min_new_tokens: int = key(1, "minimum tokens per answer; an empty answer has no vector",
                              least=0)
    max_model_len: int = key(2048, "maximum tokens of prompt and answer together")
    gpu_memory_utilization: float = key(0.9, "share of each GPU's memory for vLLM", above=0, most=1,
                                        tuning=True)
    max_num_seqs: int | None = key(None, "answers sampled at the same time; null: vLLM's default, "
                                   "64 with transformers", least=1, tuning=True)
    max_num_batched_tokens: int | None = key(None, "tokens per step of vLLM; null: its default",
                                             least=1, tuning=True)
    prefix_caching: bool = key(True, "vLLM: compute shared beginnings of prompts once", tuning=True)
    keep_token_ids: bool = key(False, "also write each answer's token ids; embed then reads these "
                               "instead of tokenising the text", compared=False)
    strip_answers: bool = key(False, "store answers without white space at both ends")
    dtype: str | None = key(None, "dtype of the weights while sampling; null: model.dtype",
                            choices=DTYPES)
    engine_process: bool = key(False, "run vLLM's engine in its own process, separate from the one "
                               "that prepares prompts and reads answers", tuning=True)
    batch_invariant: bool = key(False, "vLLM on GPUs: use kernels whose results do not depend on "
                                "the batch (VLLM_BATCH_INVARIANT); slower", compared=False)


@dataclass
class EmbeddingConfig:
    source: str = key("forward", "source of answer vectors: a forward pass over the answers, or "
                      "the sampler while it samples them, which saves that pass",
                      choices=("forward", "sampling"), compared=False)
    check_answers: int = key(32, "source sampling: also compute the vectors of the first N answers "
                             "by a forward pass, and compare; 0: none", least=0, tuning=True)
    recipe: str = key("paper", "text to embed: paper (prompt and answer, averaged over "
                      "the answer) or released (instruction and answer as one text)",
                      choices=("paper", "released"), compared=False)
    layers: list[int] = key([-4, -3, -2, -1], "layers whose outputs are averaged; -1: the last one",
                            compared=False)
    windows: dict[str, list[int]] = key({}, "additional windows of layers by name, in the same "
                                        "pass; each fills window_grams/NAME/, for "
                                        "selection.window",
                                        compared=False)
    token_weights: str = key("uniform", "weights of the mean over tokens; content: 0 for "
                             "punctuation, 1.3 for digits", choices=("uniform", "content"))
    empty_answers: str = key("leave_out", "an answer without tokens: leave_out (D and I use the "
                             "others), zero (a zero vector) or instruction (recipe released: "
                             "the instruction alone)", choices=("leave_out", "zero", "instruction"))
    max_length: int = key(2048, "maximum tokens of prompt and answer, or the model's limit if that "
                          "is lower; longer answers are truncated at the end", least=1)
    instruction_max_length: int = key(2048, "maximum tokens of an instruction, or the model's "
                                      "limit; longer ones are truncated at the end", least=1)
    tokens_per_batch: int | None = key(None, "tokens per forward pass, padding included; null: "
                                       "16384 on a GPU, 1024 on a CPU", least=1, tuning=True)
    share_prompts: bool = key(True, "recipe paper: compute a prompt once for its K answers if that "
                              "is less work", tuning=True)
    dtype: str | None = key(None, "dtype of the weights while embedding; null: model.dtype",
                            choices=DTYPES)
    gpus_per_model: int = key(1, "GPUs over which one rank splits the model", least=1, tuning=True)
    keep_answer_embeddings: bool = key(False, "also write answer vectors (K x H floats per record)",
                                       compared=False)


@dataclass
class ClusteringConfig:
    num_bins: int | None = key(None, "semantic bins (k-means clusters), 1000 in the paper; null: a "
                               "tenth of the records, at most 1000", least=1)
    batch_size: int = key(4096, "records per mini-batch of k-means", least=1)
    max_batch_share: float = key(1.0, "maximum share of the pool in a mini-batch", above=0,
                                 most=1)
    num_init: int = key(3, "initialisations of k-means; the best is kept", least=1)
    max_iter: int = key(100, "maximum passes over the pool", least=1)
    scratch_dir: str | None = key(None, "folder for the copy of the vectors that k-means reads (N "
                                  "x H x 4 bytes); null: $TMPDIR if that is on a disk with "
                                  "space, else output_dir", tuning=True, path=True)

    def count_bins(self, num_records: int) -> int:
        """The number of bins for a pool of so many records."""
        return self.num_bins or max(1, min(1000, num_records // 10))


@dataclass
class TrainConfig:
    name: str | None = key(None, "folder under models/; null: <selection>-<subset>, as in "
                           "adg-top, or the name of the file in train.subset")
    seed: int | None = key(None, "seed for the order of the records; null: seed", least=0,
                           most=MAX_SEED, compared=False)
    subset: str = key("top", f"training set: {', '.join(SUBSETS)}, or a file of Alpaca records "
                      "(.json or .jsonl)", path=True, compared=False)
    model_name_or_path: str | None = key(None, "model to fine-tune; null: the backbone of the "
                                         "selection", path=True, compared=False)
    prompt: str | None = key(None, "prompt template; null: that of generation.prompt",
                             choices=PROMPTS)
    deepspeed: str = key("configs/deepspeed/zero2.json", "DeepSpeed's configuration file; ZeRO-2 "
                         "and ZeRO-3 sum a step's gradients in float32 unless it says otherwise "
                         "(data_types.grad_accum_dtype)", path=True, compared=False)
    epochs: int = key(5, "passes over the subset", least=1)
    learning_rate: float = key(1e-5, "peak learning rate of AdamW", above=0)
    lr_scheduler: str = key("cosine", "schedule after the warm-up", choices=SCHEDULES)
    warmup_ratio: float = key(0.03, "share of the steps over which the learning rate rises",
                              least=0, below=1)
    weight_decay: float = key(0.0, "weight decay of AdamW", least=0)
    batch_size: int = key(64, "records per optimiser step over all ranks", least=1)
    per_device_batch_size: int = key(8, "maximum records per rank in one forward pass, on average: "
                                     "more short ones, fewer long ones", least=1, tuning=True)
    max_length: int = key(2048, "maximum tokens of prompt and response; longer responses are "
                          "truncated at the end", least=1)
    gradient_checkpointing: bool = key(True, "recompute activations to save memory", tuning=True)
    save_minutes: int | None = key(30, "minutes between checkpoints; null: none by time",
                                   least=1, tuning=True)
    save_steps: int | None = key(None, "optimiser steps between checkpoints; null: none by "
                                 "steps", least=1, tuning=True)
    keep_checkpoints: int = key(2, "checkpoints to keep; at least 2, because the newest may be "
                                "incomplete after a crash", least=2, tuning=True)
    report_to: list[str] = key(["none"], "also report loss and learning rate to one or several of "
                               "these, under the name train.name; each needs its Python package "
                               "and follows its environment variables (WANDB_PROJECT, "
                               "TENSORBOARD_LOGGING_DIR, MLFLOW_TRACKING_URI)",
                               choices=("none", *REPORTERS), tuning=True)

    def subset_file(self) -> Path | None:
        """The file that train.subset names; None where it names a subset of the run."""
        path = Path(self.subset)
        return path if path.suffix in (".json", ".jsonl") else None

    def num_steps(self, num_records: int) -> int:
        """Optimiser steps of a fine-tuning on so many records."""
        return self.epochs * -(-num_records // self.batch_size)

    def num_warmup_steps(self, num_records: int) -> int:
        """Those of them in which the learning rate rises, from 0 in the first, as the Trainer
        counts them."""
        return math.ceil(self.num_steps(num_records) * self.warmup_ratio)


@dataclass
class EvalConfig:
    name: str | None = key(None, "model under models/ to evaluate, or base (the backbone as it "
                           "is); null: train.name")
    benchmarks: list[str] = key(main_benchmarks(), "benchmarks to run", choices=BENCHMARKS)
    backend: str = key("hf", "engine that answers; hf: transformers", choices=("hf", "vllm"),
                       compared=False)
    data_dir: str | None = key(None, "folder of benchmarks in the hub's layout; null: use the hub",
                               path=True)
    limit: int | None = key(None, "first N questions per task; null: all", least=1,
                            compared=False)
    max_new_tokens: int | None = key(None, "maximum tokens per answer; null: the limits of "
                                     "lm-eval's tasks", least=1)
    batch_size: int = key(8, "backend hf: questions per rank in one forward pass", least=1,
                          tuning=True)
    allow_code_execution: bool = key(False, "run programs that the model writes, for "
                                     + ", ".join(code_benchmarks(BENCHMARKS)))
    sandbox: str = key("auto", "sandbox for those programs: auto (if one is available, else a "
                       "warning), require (an error without one) or off (none)",
                       choices=SANDBOX_CHOICES)
