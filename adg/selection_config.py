"""The configuration's section `selection`: what all methods share, and each method's own keys."""

from dataclasses import dataclass, field, make_dataclass
from typing import Any

from adg.base.keys import NAME_RULE, is_name, key, require
from adg.methods import METHODS
from adg.methods.method import Facts, at_most


@dataclass
class _Shared:
    """Keys that no method has alone."""

    name: str | None = key(None, "folder under subsets/; null: the method's name")
    method: str = key("adg", "method that chooses the records: " + ", ".join(METHODS) +
                             " (longest: output in characters; all: the whole pool, whatever the "
                             "budget)",
                      choices=METHODS, compared=False)
    measure: str | None = key(None, "folder under measures/, for a method that measures; null: the "
                                     "method's name")
    budget: int = key(10000, "records in each subset", least=1, compared=False)


_SECTIONS = {method.section: method.settings for method in METHODS.values() if method.section}
_IN_SELECTION = [method.settings for method in METHODS.values()
                 if method.settings and not method.section]
_Keys = make_dataclass(
    "_Keys", [(name, kind, field(default_factory=kind)) for name, kind in _SECTIONS.items()],
    bases=(*reversed(_IN_SELECTION), _Shared))  # fields come in the order of the bases, last first


@dataclass
class SelectionConfig(_Keys):
    """The section, made from METHODS."""

    def settings(self) -> Any:
        """The method's own keys."""
        section = METHODS[self.method].section
        return getattr(self, section) if section else self

    def facts(self) -> Facts:
        """What the pipeline knows of the method, as it is configured."""
        return METHODS[self.method].facts(self.settings(), self.measure)

    def fill_in(self, pool: str) -> None:
        """Fill in what is null and follows from the method and the name of the pool's file."""
        self.name = self.name or self.method
        if self.facts().measures():
            self.measure = self.measure or self.method
            require(is_name(self.measure), "selection.measure", self.measure, NAME_RULE)
        require(self.measure is None or self.facts().measures(), "selection.measure",
                self.measure, f"null with selection.method {self.method}, which measures nothing")

        METHODS[self.method].fill_in(self.settings(), pool)

    def check_sizes(self, num_records: int) -> None:
        """InputError where a pool is too small for the budget or the method's own sizes."""
        method = METHODS[self.method]
        if method.heeds_budget:
            at_most("selection.budget", self.budget, num_records)
        method.check_sizes(self.settings(), self.budget, num_records)

    def note(self, num_answers: float) -> str | None:
        """What a person should know who has num_answers of each record; None: nothing."""
        return METHODS[self.method].note(self.settings(), num_answers)
