"""The benchmarks, a row each: what lm-eval runs, which number counts, where the questions stand.

Everything else asks these rows: the configuration, the check of a pool for test questions, the
consent to run programs, the stage, the table. A further benchmark is a further row.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Questions(NamedTuple):
    """The test questions on disk: DATA_SET/*/SPLIT.jsonl in eval.data_dir, the hub's layout."""

    data_set: str
    split: str
    fields: tuple[str, ...]  # what of a line is the question's text


class Code(NamedTuple):
    """How an answer becomes a program; it is run, for which the user's consent is needed."""

    continues_prompt: bool  # the program is the prompt with the answer, or the answer by itself
    shots: str | None = None  # the function of lm-eval's task that lists the examples in the prompt


class Benchmark(NamedTuple):
    """How one number of the table is obtained."""

    title: str
    task: str  # lm-eval's task, group or tag
    shots: int  # examples in the prompt
    metric: str  # "metric,filter": the key of lm-eval's results that counts
    group: str
    size: int  # questions of the whole benchmark: fewer are marked as not comparable
    questions: Questions | None = None  # None: a pool is not compared with them
    code: Code | None = None
    optional: bool = False  # not in the default of eval.benchmarks, the groups and the average


BENCHMARKS = {
    "bbh": Benchmark(
        "BBH", "bbh", 3, "exact_match,get-answer", "Reasoning", 6511,
        Questions("SaylorTwift/bbh", "test", ("input",))),
    "gsm8k": Benchmark(
        "GSM8K", "gsm8k", 8, "exact_match,strict-match", "Reasoning", 1319,
        Questions("openai/gsm8k", "test", ("question", "answer"))),
    "mmlu": Benchmark(
        "MMLU", "mmlu", 4, "acc,none", "Knowledge", 14042,
        Questions("cais/mmlu", "test", ("question", "choices"))),
    "truthfulqa_mc2": Benchmark(
        "TruthfulQA", "truthfulqa_mc2", 0, "acc,none", "Knowledge", 817,
        Questions("truthfulqa/truthful_qa", "validation", ("question",))),
    "mbpp": Benchmark(
        "MBPP", "mbpp", 1, "pass_at_1,none", "Code", 500,
        Questions("google-research-datasets/mbpp", "test", ("text",)),
        Code(continues_prompt=False, shots="list_fewshot_samples")),
    "humaneval": Benchmark(
        "HumanEval", "humaneval", 0, "pass_at_1,create_test", "Code", 164,
        Questions("openai/openai_humaneval", "test", ("prompt",)),
        Code(continues_prompt=True)),
    # 5-shot, as the authors of both have it: the paper does not say
    "cmmlu": Benchmark("CMMLU", "cmmlu", 5, "acc,none", "Chinese", 11582, optional=True),
    "ceval-valid": Benchmark("C-Eval", "ceval-valid", 5, "acc,none", "Chinese", 1346,
                             optional=True),
}


def main_benchmarks() -> list[str]:
    """The benchmarks of the paper's main table, by default evaluated."""
    return [name for name, row in BENCHMARKS.items() if not row.optional]


def groups() -> dict[str, list[str]]:
    """{group: its benchmarks} of the main table: a group's score is their mean, and the average is
    that of the groups (paper, set-up)."""
    members: dict[str, list[str]] = {}
    for name in main_benchmarks():
        members.setdefault(BENCHMARKS[name].group, []).append(name)
    return members


def code_benchmarks(names: Iterable[str]) -> list[str]:
    """Those of the benchmarks that run programs which the model writes."""
    return [name for name in names if BENCHMARKS[name].code is not None]
