"""The configuration's section `selection`: a key or a section for what each method asks."""

from dataclasses import dataclass, field

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
from adg.method_facts import FACTS, MethodFacts

_CANDIDATES = 0.2  # of the pool, as the release of SuperFiltering has it


@dataclass
class IfdConfig:
    model_name_or_path: str | None = key(None, "what measures: a hub name, folder or GGUF file, as "
                                                "a pre-experienced model; null: the backbone",
                                         path=True)
    dtype: str | None = key("float32", "its weights: bfloat16, float16, or float32, as the release "
                                        "has it; null: model.dtype")
    prompt: str = key("alpaca", "template around a record: alpaca, or wiz (Vicuna's short form)")
    max_length: int = key(512, "tokens of prompt and output; longer ones lose their end")
    recipe: str = key("intended", "output alone: intended (the tokens that are scored after the "
                                   "prompt too) or released (cut as for the authors' tokenizer, "
                                   "and what is longer then is dropped)")

    def __post_init__(self) -> None:
        dtype_or_none("selection.ifd.dtype", self.dtype)
        one_of("selection.ifd.prompt", self.prompt, ("alpaca", "wiz"))
        one_of("selection.ifd.recipe", self.recipe, ("intended", "released"))
        least = self.max_length
        require(least >= 2, "selection.ifd.max_length", least, "2 or more")


@dataclass
class PreExperienceConfig:
    model_name_or_path: str | None = key(None, "what measures; null: the backbone", path=True)
    dtype: str | None = key("float32", "its weights: bfloat16, float16, or float32, as the release "
                                        "has it; null: model.dtype")
    prompt: str = key("alpaca", "template around a record: alpaca, or wiz (Vicuna's short form)")
    max_length: int = key(512, "tokens of a filled-in template; longer ones lose their end")
    clusters: int = key(100, "k-means clusters of the instructions' vectors")
    per_cluster: int = key(10, "records of each; a smaller cluster goes whole")
    low_percentile: float = key(25.0, "of the perplexities in a cluster: none below is taken")
    high_percentile: float = key(75.0, "of the perplexities in a cluster: none above is taken")
    num_init: int = key(10, "starts of k-means, of which the best is kept: scikit-learn's default "
                             "before 1.4, 1 from then on")
    random_state: int = key(0, "seed of k-means")

    def __post_init__(self) -> None:
        dtype_or_none("selection.pre_experience.dtype", self.dtype)
        one_of("selection.pre_experience.prompt", self.prompt, ("alpaca", "wiz"))
        for name, least in {"max_length": 2, "clusters": 1, "per_cluster": 1, "num_init": 1,
                            "random_state": 0}.items():
            value = getattr(self, name)
            require(value >= least, f"selection.pre_experience.{name}", value, f"{least} or more")
        low, high = self.low_percentile, self.high_percentile
        require(0 <= low <= 100, "selection.pre_experience.low_percentile", low, "from 0 to 100")
        require(low <= high <= 100, "selection.pre_experience.high_percentile", high,
                f"from low_percentile ({low:g}) to 100")


@dataclass
class SuperfilteringConfig:
    model_name_or_path: str = key("openai-community/gpt2", "what measures: a hub name, folder or "
                                                            "GGUF file", path=True)
    dtype: str = key("float32", "its weights: bfloat16, float16 or float32, as the release has it")
    max_length: int = key(1024, "tokens of instruction and output; longer ones lose their end")
    threshold: float = key(1.0, "only a record of a lower IFD is kept")
    candidates: int | None = key(None, "superfiltering_d: records of the highest IFD from which "
                                        "is picked; null: a fifth of the pool")
    encoder: str = key("sentence-transformers/all-MiniLM-L6-v2", "superfiltering_d: what makes "
                                                                  "vectors of the records",
                       path=True)
    text: str = key("all", "superfiltering_d: what it reads: all (instruction, input and output), "
                            "instruction or output")

    def __post_init__(self) -> None:
        one_of("selection.superfiltering.dtype", self.dtype, DTYPES)
        one_of("selection.superfiltering.text", self.text, ("all", "instruction", "output"))
        length, least = self.max_length, self.threshold
        require(length >= 2, "selection.superfiltering.max_length", length, "2 or more")
        require(least > 0, "selection.superfiltering.threshold", least, "above 0")
        positive_or_none("selection.superfiltering.candidates", self.candidates)

    def count_candidates(self, num_records: int) -> int:
        """Candidates of superfiltering_d in a pool, if so many are kept."""
        return self.candidates or int(_CANDIDATES * num_records)


@dataclass
class ZipConfig:
    recipe: str = key("intended", "intended (exactly the budget, no record twice) or released "
                                   "(rounded up to whole rounds; where candidates run out, some "
                                   "come twice)")
    candidates: int = key(10000, "records of the lowest ratio that a round tries (k1)")
    shortlist: int = key(200, "of these, the lowest with all that is picked, from which a round "
                               "picks (k2)")
    picks_per_round: int = key(100, "picks of a round (k3)")
    source: str | None = key(None, "what each record's text, which is compressed, names as its "
                                    "source; null: the pool's file name without its ending",
                             compared=False)

    def __post_init__(self) -> None:
        one_of("selection.zip.recipe", self.recipe, ("intended", "released"))
        low, middle, high = self.picks_per_round, self.shortlist, self.candidates
        require(low >= 1, "selection.zip.picks_per_round", low, "1 or more")
        require(middle >= low, "selection.zip.shortlist", middle,
                f"at least selection.zip.picks_per_round ({low})")
        require(high >= middle, "selection.zip.candidates", high,
                f"at least selection.zip.shortlist ({middle})")


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
    tag_encoder: str = key("intfloat/e5-mistral-7b-instruct", "model of the tags' vectors: the "
                                                               "state of the last token", path=True)
    tagger_prompt: str = key(_INSTAG_PROMPT, "what it reads; {query}: instruction and input")
    quality_prompt: str = key(_QUALITY_PROMPT, "what it reads; {query} and {output}")
    complexity_prompt: str = key(_COMPLEXITY_PROMPT, "what it reads; {query}")
    max_length: int = key(2048, "tokens of prompt and reply; a longer prompt's record loses its "
                                 "end")
    max_tag_tokens: int = key(512, "tokens that the tagger writes at most")
    engine: str = key("vllm", "engine of tagger and scorers: vllm, or transformers (slow)")

    def __post_init__(self) -> None:
        one_of("selection.mig.annotator.engine", self.engine, ("vllm", "transformers"))
        low, high = self.max_tag_tokens, self.max_length
        require(low >= 1, "selection.mig.annotator.max_tag_tokens", low, "1 or more")
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
    tag_vectors: str | None = key(None, "vectors of the tags: a .npy [tags, H] with a .json of "
                                         "their names beside it, or a folder with vectors.npy and "
                                         "tags.json; null: stage measure makes all of this",
                                  path=True)
    valid_tags: str | None = key(None, "JSON array of the tags that count; null: all", path=True)
    threshold: float = key(0.9, "cosine similarity from which two tags are alike")
    prop_weight: float = key(1.0, "weight of like tags beside the tag itself")
    norm: bool = key(False, "divide a record's score by the number of its tags")
    phi: str = key("pow", "what a label is worth that has gathered x: pow, (x + a)^b, or exp, "
                           "1 - exp(-alpha x)")
    phi_a: float = key(1e-6, "phi pow: a")
    phi_b: float = key(0.8, "phi pow: b")
    phi_alpha: float = key(1.0, "phi exp: alpha")
    annotator: AnnotatorConfig = field(default_factory=AnnotatorConfig)

    def __post_init__(self) -> None:
        require(0 <= self.threshold <= 1, "selection.mig.threshold", self.threshold,
                "from 0 to 1")
        require(self.prop_weight >= 0, "selection.mig.prop_weight", self.prop_weight, "0 or more")
        one_of("selection.mig.phi", self.phi, ("pow", "exp"))
        for name in ("phi_a", "phi_b", "phi_alpha"):
            allowed = "above 0 and at most 1" if name == "phi_b" else "above 0"
            value = getattr(self, name)
            require(value > 0 and (name != "phi_b" or value <= 1), f"selection.mig.{name}", value,
                    allowed)


@dataclass
class ScarConfig:
    model_name_or_path: str = key("lizhuang144/scar-roberta-base", "ranker with its tokenizer: a "
                                                                    "folder or hub name, or "
                                                                    "DIR/pytorch_model.bin",
                                  path=True)
    encoder_name_or_path: str | None = key(None, "folder or hub name of its encoder, whose weights "
                                                  "the ranker replaces; null: the one that its "
                                                  "config.json names", path=True)
    max_length: int = key(512, "tokens of instruction and input, and of the output; longer ones "
                                "lose their end")
    batch_size: int = key(32, "records of one forward pass", tuning=True)

    def __post_init__(self) -> None:
        require(self.max_length >= 2, "selection.scar.max_length", self.max_length, "2 or more")
        require(self.batch_size >= 2, "selection.scar.batch_size", self.batch_size,
                "2 or more: the package fails on a batch of one record")


@dataclass
class SelectionConfig:
    name: str | None = key(None, "folder under subsets/; null: the method's name")
    method: str = key("adg", "what chooses the records: " + ", ".join(FACTS) + " (longest: output "
                              "in characters; all: the whole pool, whatever the budget)",
                      compared=False)
    measure: str | None = key(None, "folder under measures/ of a method that measures; null: the "
                                     "method's name")
    window: str | None = key(None, "adg: which of embedding.windows scores; null: "
                                    "embedding.layers", compared=False)
    recipe: str = key("paper", "adg: how bins share the budget: paper (largest remainder, exact) "
                                "or released (the release's quotas: other sizes than asked)",
                      compared=False)
    budget: int = key(10000, "records in each subset", compared=False)
    seed: int | None = key(None, "random: of the draw; null: seed", compared=False)
    num_answers: int | None = key(None, "adg: the first so many answers alone, as if no more had "
                                        "been drawn; null: all of generation.num_answers",
                                   compared=False)
    anisotropy_weight: float = key(0.4, "adg: lambda in score = (1 - lambda) D + lambda I; "
                                         "0: D alone, 1: I alone", compared=False)
    ifd: IfdConfig = field(default_factory=IfdConfig)
    pre_experience: PreExperienceConfig = field(default_factory=PreExperienceConfig)
    superfiltering: SuperfilteringConfig = field(default_factory=SuperfilteringConfig)
    zip: ZipConfig = field(default_factory=ZipConfig)
    mig: MigConfig = field(default_factory=MigConfig)
    scar: ScarConfig = field(default_factory=ScarConfig)

    def __post_init__(self) -> None:
        one_of("selection.method", self.method, tuple(FACTS))
        one_of("selection.recipe", self.recipe, ("paper", "released"))
        require(self.budget >= 1, "selection.budget", self.budget, "1 or more")
        seed_or_none("selection.seed", self.seed)
        require(self.num_answers is None or self.num_answers >= 2, "selection.num_answers",
                self.num_answers, "null or 2 or more")
        weight = self.anisotropy_weight
        require(0 <= weight <= 1, "selection.anisotropy_weight", weight, "from 0 to 1")
        require(self.mig.tag_vectors is not None or self.mig.annotations is None,
                "selection.mig.tag_vectors", None, "a file or folder where "
                "selection.mig.annotations is given")

    def facts(self) -> MethodFacts:
        """What the pipeline knows of the method, as it is configured."""
        facts = FACTS[self.method]
        return facts.given if self.method == "mig" and self.mig.tag_vectors else facts

    def fill_in_names(self) -> None:
        """Give what is named by its method its name."""
        self.name = self.name or self.method
        if self.facts().measures():
            self.measure = self.measure or self.method
            require(is_name(self.measure), "selection.measure", self.measure, NAME_RULE)
        require(self.measure is None or self.facts().measures(), "selection.measure",
                self.measure, f"null with selection.method {self.method}, which measures nothing")
