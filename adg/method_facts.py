"""What the pipeline knows of each value of selection.method: names, keys, inputs, models.

How a method chooses, and what it measures of each record, is in adg/methods/.
"""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class MethodFacts:
    """One method, but for how it chooses.

    Inputs are as in adg.pipeline.stages: paths in the run folder, `{measure}` for the name of its
    measure, or names of what lies outside it, which `models` and `files` tie to configuration keys.
    """

    title: str  # in tables
    about: str  # a sentence for the data card; its {names} are those that adg.card fills in
    keys: tuple[str, ...] = ()  # keys or sections that decide the choice, but for _EVERY's
    inputs: tuple[str, ...] = ()  # of stage select, beside pool.jsonl
    optional_inputs: tuple[str, ...] = ()
    measure_keys: tuple[str, ...] = ()  # keys or sections that decide what stage measure writes
    measure_inputs: tuple[str, ...] = ()  # of stage measure, beside pool.jsonl
    models: dict[str, str] = field(default_factory=dict)  # {input outside the run: key of a model}
    files: dict[str, str] = field(default_factory=dict)  # {input outside the run: key of a path}
    heeds_budget: bool = True
    given: "MethodFacts | None" = None  # with files for what stage measure would make otherwise

    def measures(self) -> bool:
        """Whether stage measure comes before the choice."""
        return _MEASURED in self.inputs


_MEASURED = "measures/{measure}/"
_SUPERFILTERING = ("model.trust_remote_code", "selection.superfiltering.dtype",
                   "selection.superfiltering.max_length")
_ROLES = ("tagger", "quality_scorer", "complexity_scorer", "tag_encoder")
EVERY = ("seed", "selection.method", "selection.budget")  # keys of every method

_ANNOTATOR = "selection.mig.annotator"
_MIG = MethodFacts(
    "MIG",
    "Chosen by information gain on a graph of labels (MIG): a record gives its score, the mean of "
    "quality times complexity, to its tags and to tags of like meaning, and what a label has "
    "gathered already counts less.",
    keys=tuple(f"selection.mig.{key}" for key in (
        "threshold", "prop_weight", "norm", "phi", "phi_a", "phi_b", "phi_alpha")),
    inputs=(_MEASURED,), optional_inputs=("select.valid_tags",),
    measure_keys=("model.dtype", "model.trust_remote_code", *(f"{_ANNOTATOR}.{key}" for key in (
        "tagger_prompt", "quality_prompt", "complexity_prompt", "max_length", "max_tag_tokens",
        "engine"))),
    measure_inputs=tuple(f"measure.{role}" for role in _ROLES),
    models={f"measure.{role}": f"{_ANNOTATOR}.{role}" for role in _ROLES},
    files={"select.valid_tags": "selection.mig.valid_tags"},
)
_MIG = replace(_MIG, given=replace(
    _MIG, inputs=("select.tag_vectors",),
    optional_inputs=("select.annotations", "select.valid_tags"),
    measure_keys=(), measure_inputs=(), models={},
    files={f"select.{key}": f"selection.mig.{key}"
           for key in ("tag_vectors", "annotations", "valid_tags")}))

FACTS = {
    "adg": MethodFacts(
        "ADG",
        "Chosen by answer divergence (ADG): the backbone answered each instruction {k} times "
        "(temperature {temperature:g}, {top_k}top-p {top_p:g}, at most {tokens} tokens); "
        "dispersion D and anisotropy I of the answers' hidden states make the score "
        "s = {score}, and each of {bins} semantic bins gives in proportion to its size "
        "(recipe {recipe}).",
        keys=("selection.window", "selection.recipe", "selection.num_answers",
              "selection.anisotropy_weight"),
        inputs=("bins.npy", "answer_grams/"), optional_inputs=("answers/",),
    ),
    "random": MethodFacts("Random", "Drawn at random, without replacement.",
                          keys=("selection.seed",)),
    "longest": MethodFacts("Longest", "The records with the longest outputs, in characters."),
    "all": MethodFacts("All Data", "The whole pool.", heeds_budget=False),
    "ifd": MethodFacts(
        "IFD",
        "The records of the highest instruction-following difficulty (IFD) of at most 1: the loss "
        "of the output after the instruction, divided by its loss alone, both of {model}.",
        keys=("selection.ifd.recipe",), inputs=(_MEASURED,),
        measure_keys=("model.dtype", "model.trust_remote_code", "selection.ifd.dtype",
                      "selection.ifd.prompt", "selection.ifd.max_length", "selection.ifd.recipe"),
        measure_inputs=("measure.model",),
        models={"measure.model": "selection.ifd.model_name_or_path"},
    ),
    "pre_experience": MethodFacts(
        "Pre-experience (IFD)",
        "What IFD's pre-experienced model is fine-tuned on: some records of each of "
        "{clusters} k-means clusters of the instructions' vectors, of middling perplexity, both of "
        "{model}.",
        keys=tuple(f"selection.pre_experience.{key}" for key in (
            "clusters", "per_cluster", "low_percentile", "high_percentile", "num_init",
            "random_state")),
        inputs=(_MEASURED,),
        measure_keys=("model.dtype", "model.trust_remote_code", "selection.pre_experience.dtype",
                      "selection.pre_experience.prompt", "selection.pre_experience.max_length"),
        measure_inputs=("measure.model",),
        models={"measure.model": "selection.pre_experience.model_name_or_path"},
        heeds_budget=False,
    ),
    "superfiltering": MethodFacts(
        "SuperFiltering",
        "The records of the highest instruction-following difficulty (IFD) below {threshold:g}: "
        "the perplexity of the output after the instruction, divided by its perplexity alone, "
        "both of {model}.",
        keys=("selection.superfiltering.threshold",), inputs=(_MEASURED,),
        measure_keys=_SUPERFILTERING, measure_inputs=("measure.model",),
        models={"measure.model": "selection.superfiltering.model_name_or_path"},
    ),
    "superfiltering_d": MethodFacts(
        "SuperFiltering.D",
        "Of the records of the highest instruction-following difficulty (IFD) below "
        "{threshold:g}, those that facility location picks; the perplexities and the vectors are "
        "of {model}.",
        keys=("selection.superfiltering.threshold", "selection.superfiltering.candidates"),
        inputs=(_MEASURED,), measure_keys=(*_SUPERFILTERING, "selection.superfiltering.text"),
        measure_inputs=("measure.model", "measure.encoder"),
        models={"measure.model": "selection.superfiltering.model_name_or_path",
                "measure.encoder": "selection.superfiltering.encoder"},
    ),
    "zip": MethodFacts(
        "ZIP",
        "Chosen for variety by compression (ZIP): round after round those records that zlib "
        "compresses least together with all that was chosen before, and with each other.",
        keys=("selection.zip",),
    ),
    "mig": _MIG,
    "scar": MethodFacts(
        "SCAR",
        "The records of the highest score of {model}, which ranks by how consistent the "
        "style of their outputs is (SCAR).",
        inputs=(_MEASURED,),
        measure_keys=("model.trust_remote_code", "selection.scar.encoder_name_or_path",
                      "selection.scar.max_length"),
        measure_inputs=("measure.ranker",),
        models={"measure.ranker": "selection.scar.model_name_or_path"},
    ),
}


def outside_inputs() -> tuple[str, ...]:
    """The names of all that methods read from outside the run folder."""
    every = [*FACTS.values(), *(facts.given for facts in FACTS.values() if facts.given)]
    return tuple(dict.fromkeys(name for facts in every for name in (*facts.models, *facts.files)))
