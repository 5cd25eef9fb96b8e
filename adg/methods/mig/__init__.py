"""Method mig: records that bring the most information on a graph of labels (MIG).

settings.py       keys and prompts
gain.py           the graph, and the picks
annotations.py    tags, scores and tag vectors, read and checked
annotate.py       stage measure: the models that tag and score
tag_vectors.py    stage measure: the model of the tags' vectors

Shapes: N records, L labels (the tags in use, sorted), H hidden.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from adg.base.errors import InputError
from adg.methods.method import MEASURED, Choice, Measure, Method, Reads, Task, without_divergence
from adg.methods.mig import annotate, gain, tag_vectors
from adg.methods.mig.annotations import (
    Annotation,
    annotations_of,
    read_annotation,
    read_names,
    vectors_of,
)
from adg.methods.mig.settings import MigConfig

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
