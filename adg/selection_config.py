"""The configuration's section `selection`: a key or a section for what each method asks."""

from dataclasses import dataclass, field

from adg.keys import DTYPES, NAME_RULE, is_name, key, one_of, positive_or_none, require
from adg.method_facts import FACTS


@dataclass
class IfdConfig:
    model_name_or_path: str | None = key(None, "what measures: a hub name, folder or GGUF file, as "
                                                "a pre-experienced model; null: the backbone")
    prompt: str = key("alpaca", "template around a record: alpaca, or wiz (Vicuna's short form)")
    max_length: int = key(512, "tokens of prompt and output; longer ones lose their end")
    recipe: str = key("intended", "output alone: intended (the tokens that are scored after the "
                                   "prompt too) or released (cut as for the authors' tokenizer, "
                                   "and what is longer then is dropped)")

    def __post_init__(self) -> None:
        one_of("selection.ifd.prompt", self.prompt, ("alpaca", "wiz"))
        one_of("selection.ifd.recipe", self.recipe, ("intended", "released"))
        least = self.max_length
        require(least >= 2, "selection.ifd.max_length", least, "2 or more")


@dataclass
class PreExperienceConfig:
    model_name_or_path: str | None = key(None, "what measures; null: the backbone")
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
                                                            "GGUF file")
    dtype: str = key("float32", "its weights: bfloat16, float16 or float32, as the release has it")
    max_length: int = key(1024, "tokens of instruction and output; longer ones lose their end")
    threshold: float = key(1.0, "only a record of a lower IFD is kept")
    candidates: int | None = key(None, "superfiltering_d: records of the highest IFD from which "
                                        "is picked; null: a fifth of the pool")
    encoder: str = key("sentence-transformers/all-MiniLM-L6-v2", "superfiltering_d: what makes "
                                                                  "vectors of the records")
    text: str = key("all", "superfiltering_d: what it reads: all (instruction, input and output), "
                            "instruction or output")

    def __post_init__(self) -> None:
        one_of("selection.superfiltering.dtype", self.dtype, DTYPES)
        one_of("selection.superfiltering.text", self.text, ("all", "instruction", "output"))
        length, least = self.max_length, self.threshold
        require(length >= 2, "selection.superfiltering.max_length", length, "2 or more")
        require(least > 0, "selection.superfiltering.threshold", least, "above 0")
        positive_or_none("selection.superfiltering.candidates", self.candidates)


@dataclass
class SelectionConfig:
    name: str | None = key(None, "folder under subsets/; null: the method's name")
    method: str = key("adg", "what chooses the records: " + ", ".join(FACTS) + " (longest: output "
                              "in characters; all: the whole pool, whatever the budget)")
    measure: str | None = key(None, "folder under measures/ of a method that measures; null: the "
                                     "method's name")
    window: str | None = key(None, "adg: which of embedding.windows scores; null: "
                                    "embedding.layers")
    recipe: str = key("paper", "adg: how bins share the budget: paper (largest remainder, exact) "
                                "or released (the release's quotas: other sizes than asked)")
    budget: int = key(10000, "records in each subset")
    anisotropy_weight: float = key(0.4, "adg: lambda in score = (1 - lambda) D + lambda I; "
                                         "0: D alone, 1: I alone")
    ifd: IfdConfig = field(default_factory=IfdConfig)
    pre_experience: PreExperienceConfig = field(default_factory=PreExperienceConfig)
    superfiltering: SuperfilteringConfig = field(default_factory=SuperfilteringConfig)

    def __post_init__(self) -> None:
        one_of("selection.method", self.method, tuple(FACTS))
        one_of("selection.recipe", self.recipe, ("paper", "released"))
        require(self.budget >= 1, "selection.budget", self.budget, "1 or more")
        weight = self.anisotropy_weight
        require(0 <= weight <= 1, "selection.anisotropy_weight", weight, "from 0 to 1")

    def fill_in_names(self) -> None:
        """Give what is named by its method its name."""
        self.name = self.name or self.method
        if FACTS[self.method].measures():
            self.measure = self.measure or self.method
            require(is_name(self.measure), "selection.measure", self.measure, NAME_RULE)
        require(self.measure is None or FACTS[self.method].measures(), "selection.measure",
                self.measure, f"null with selection.method {self.method}, which measures nothing")
