"""The configuration's section `selection`: a key or a section for what each method asks."""

from dataclasses import dataclass, field

from adg.keys import NAME_RULE, is_name, key, one_of, require
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
