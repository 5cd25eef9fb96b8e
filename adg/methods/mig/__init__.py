"""Method mig: records that bring the most information on a graph of labels (MIG).

gain.py           the graph, and the picks
annotations.py    tags, scores and tag vectors, read and checked
annotate.py       stage measure: the models that tag and score
tag_vectors.py    stage measure: the model of the tags' vectors

Shapes: N records, L labels (the tags in use, sorted), H hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from adg.base.errors import InputError
from adg.base.keys import key, require
from adg.methods.method import MEASURED, Choice, Measure, Method, Reads, Task, without_divergence
from adg.methods.mig import annotate, gain, tag_vectors
from adg.methods.mig.annotations import (
    Annotation,
    annotations_of,
    read_annotation,
    read_names,
    vectors_of,
)

_INSTAG_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions. USER: Please identify tags of "
    "user intentions in the following user query and provide an explanation for each tag. Please "
    'respond in the JSON format {"tag": str, "explanation": str}.\nUser query: {query} ASSISTANT:')
_QUALITY_PROMPT = (
    "You are a helpful assistant. Please identify the quality score of the Response corresponding "
    "to the Question. \n #Question#:\n{query}\n#Response#:\n{output} \n##Quality: ")
_COMPLEXITY_PROMPT = (
    "You are a helpful assistant. Please identify the complexity score of the following user "
    "query. \n##Query: {query}  \n##Complexity: ")


@dataclass
class AnnotatorConfig:
    tagger: str = key("OFA-Sys/InsTagger", "model that tags records: hub name or folder", path=True)
    quality_scorer: str = key("hkust-nlp/deita-quality-scorer", "model that scores outputs",
                              path=True)
    complexity_scorer: str = key("hkust-nlp/deita-complexity-scorer", "model that scores "
                                                                       "instructions", path=True)
    tag_encoder: str = key("intfloat/e5-mistral-7b-instruct", "model for the vectors of tags "
                                                               "(state of the last token)",
                           path=True)
    tagger_prompt: str = key(_INSTAG_PROMPT, "its prompt; {query}: instruction and input")
    quality_prompt: str = key(_QUALITY_PROMPT, "its prompt; {query} and {output}")
    complexity_prompt: str = key(_COMPLEXITY_PROMPT, "its prompt; {query}")
    max_length: int = key(2048, "maximum tokens of prompt and reply; records with longer prompts "
                                 "are truncated at the end")
    max_tag_tokens: int = key(512, "maximum tokens written by the tagger", least=1)
    engine: str = key("vllm", "engine of tagger and scorers: vllm, or transformers (slow)",
                      choices=("vllm", "transformers"))

    def __post_init__(self) -> None:
        low, high = self.max_tag_tokens, self.max_length
        require(high > low, "selection.mig.annotator.max_length", high,
                f"above max_tag_tokens ({low})")
        for name, place in (("tagger", "query"), ("complexity", "query"), ("quality", "output")):
            prompt = getattr(self, f"{name}_prompt")
            require(f"{{{place}}}" in prompt, f"selection.mig.annotator.{name}_prompt", prompt,
                    f"a text with {{{place}}}")


@dataclass
class MigConfig:
    annotations: str | None = key(None, "with tag_vectors: tags, quality_scores and "
                                         "complexity_scores by id, a JSONL file or a folder of "
                                         "them; null: the records' own", path=True)
    tag_vectors: str | None = key(None, "vectors of the tags: a .npy [tags, H] beside a .json of "
                                         "their names, or a folder with vectors.npy and tags.json; "
                                         "null: stage measure computes all of this",
                                  path=True)
    valid_tags: str | None = key(None, "JSON array of the tags that count; null: all", path=True)
    threshold: float = key(0.9, "minimum cosine similarity of two similar tags", least=0, most=1)
    prop_weight: float = key(1.0, "weight of similar tags relative to the tag itself", least=0)
    norm: bool = key(False, "divide a record's score by the number of its tags")
    phi: str = key("pow", "value of a label with accumulated weight x: pow, (x + a)^b, or exp, "
                           "1 - exp(-alpha x)", choices=("pow", "exp"))
    phi_a: float = key(1e-6, "phi pow: a", above=0)
    phi_b: float = key(0.8, "phi pow: b", above=0, most=1)
    phi_alpha: float = key(1.0, "phi exp: alpha", above=0)
    annotator: AnnotatorConfig = field(default_factory=AnnotatorConfig)

    def __post_init__(self) -> None:
        require(self.tag_vectors is not None or self.annotations is None,
                "selection.mig.tag_vectors", None, "a file or folder where "
                "selection.mig.annotations is given")


SLOPES: dict[str, Callable[[MigConfig], gain.Slope]] = {
    "pow": lambda settings: gain.slope_of_power(settings.phi_a, settings.phi_b),
    "exp": lambda settings: gain.slope_of_exponential(settings.phi_alpha),
}


def reads(settings: MigConfig) -> Reads:
    """The measure, or the files that are given in its place."""
    if settings.tag_vectors is None:
        return Reads((MEASURED,), ("select.valid_tags",))
    return Reads(("select.tag_vectors",), ("select.annotations", "select.valid_tags"))


def choose_by_information_gain(task: Task) -> Choice:
    """Top in the order of the picks, the score the gain at the pick; no controls."""
    settings, num_records = task.settings, len(task.pool)
    every = annotations_in(task)
    kept = np.array([row for row, annotation in enumerate(every) if annotation is not None],
                    dtype=np.int64)
    if task.budget > len(kept):
        raise InputError(f"selection.budget is {task.budget}, but {len(kept)} of the "
                         f"{num_records} records have tags and scores: give {len(kept)} at most")
    annotations = [annotation for annotation in every if annotation is not None]
    labels = sorted({tag for annotation in annotations for tag in annotation.tags})
    vectors = vectors_of(Path(settings.tag_vectors or task.measured), labels)           # [L, H]
    similar = gain.propagation(vectors, threshold=settings.threshold, weight=settings.prop_weight)
    values = gain.label_rows(annotations, labels, norm=settings.norm) @ similar          # [N, L]
    rows, gains = gain.pick_by_gain(values, task.budget, SLOPES[settings.phi](settings))
    scores = np.full(num_records, np.nan)
    scores[kept[rows]] = gains
    return without_divergence(task.pool, (kept[rows], (), ()), {
        "kept": len(kept), "dropped": {"without tags or scores": num_records - len(kept)},
        "without_valid_tags": sum(not annotation.tags for annotation in annotations),
        "labels": len(labels), "edges": (similar.nnz - len(labels)) // 2,
    }, score=scores)


def annotations_in(task: Task) -> list[Annotation | None]:
    """The annotation of each record [N]: measured, or given; None where it has none."""
    settings = task.settings
    valid = frozenset(read_names(Path(settings.valid_tags))) if settings.valid_tags else None
    if settings.tag_vectors is None:
        rows = task.measures().checked("tags")
        return [read_annotation(row, where, valid) for row, where in rows]
    path = Path(settings.annotations) if settings.annotations else None
    return annotations_of(task.pool, path, valid)


_SECTION = "selection.mig"
METHOD = Method(
    "MIG",
    lambda told: ("Chosen by information gain on a graph of labels (MIG): a record gives its "
                  "score, the mean of quality times complexity, to its tags and to tags of like "
                  "meaning, and what a label has gathered already counts less."),
    choose_by_information_gain, section="mig", settings=MigConfig,
    keys=tuple(f"{_SECTION}.{name}" for name in (
        "threshold", "prop_weight", "norm", "phi", "phi_a", "phi_b", "phi_alpha")),
    reads=reads,
    files={f"select.{name}": f"{_SECTION}.{name}"
           for name in ("tag_vectors", "annotations", "valid_tags")},
    measure=Measure(
        {"tags": annotate.load_tagger, "quality": annotate.load_quality,
         "complexity": annotate.load_complexity},
        models={f"measure.{role}": f"{_SECTION}.annotator.{role}"
                for role in ("tagger", "quality_scorer", "complexity_scorer", "tag_encoder")},
        keys=("model.dtype", "model.trust_remote_code", *(
            f"{_SECTION}.annotator.{name}" for name in (
                "tagger_prompt", "quality_prompt", "complexity_prompt", "max_length",
                "max_tag_tokens", "engine"))),
        finish=tag_vectors.write_tag_vectors, finish_model="measure.tag_encoder"))
