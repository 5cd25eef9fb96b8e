"""The configuration of one experiment: dataclasses, then a YAML file, then `section.key=value`.

Every key states its unit and what it is for; `--help` of every stage prints them all. A key marked
as tuning changes speed or memory only: changing it makes no result stale.
"""

import difflib
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adg import config_rules as rules
from adg.base import yaml_files
from adg.base.errors import InputError
from adg.base.keys import MAX_SEED, allowed, check, key
from adg.base.paths import find, looked_in
from adg.config_sections import (
    HUB,
    SUBSETS,
    ClusteringConfig,
    EmbeddingConfig,
    EvalConfig,
    GenerationConfig,
    ModelConfig,
    PoolConfig,
    TrainConfig,
)
from adg.selection_config import SelectionConfig


@dataclass
class Config:
    output_dir: str = key(MISSING, "the run folder: one pool and one backbone")
    seed: int = key(42, "seed of sampling, k-means, selection and training", least=0,
                    most=MAX_SEED, compared=False)
    chunk_size: int | None = key(None, "records per file of answers/ and vectors, the unit of "
                                 "work; null: 1/64 of the pool, but 8 to 500, or more for very "
                                 "large pools", least=1, compared=False)
    stall_timeout: int = key(3600, "seconds without progress after which a rank of sample, embed, "
                             "measure, finetune or evaluate exits; 0: never", least=0,
                             tuning=True)
    model: ModelConfig = field(default_factory=ModelConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    clustering: ClusteringConfig = field(default_factory=ClusteringConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def sampling_dtype(self) -> str:
        """The dtype of the backbone's weights while it answers."""
        return self.generation.dtype or self.model.dtype

    def embedding_dtype(self) -> str:
        """The dtype of the backbone's weights while texts become vectors."""
        return self.embedding.dtype or self.model.dtype

    def selection_seed(self) -> int:
        """The seed of a draw of records."""
        return self.seed if self.selection.seed is None else self.selection.seed

    def train_seed(self) -> int:
        """The seed of fine-tuning."""
        return self.seed if self.train.seed is None else self.train.seed

    def compares_with_benchmarks(self) -> bool:
        """Whether prepare compares the pool with benchmarks on disk."""
        return self.pool.decontaminate != "off" and self.eval.data_dir is not None

    def __post_init__(self) -> None:
        check(self)
        rules.check_output_dir(self.output_dir)
        rules.check_pool(self.pool)
        rules.check_lengths(self.generation)
        rules.check_layers(self.embedding, self.selection.window)
        rules.check_sampler(self.generation, self.model)
        rules.check_one_pass(self.embedding, self.generation.max_model_len,
                             dtype=self.embedding_dtype(), sampling_dtype=self.sampling_dtype())
        rules.check_num_answers(self.selection.num_answers, self.generation.num_answers)
        rules.check_training(self.train, self.eval)
        self._fill_in()
        rules.check_prompts(self.generation, self.train)
        rules.check_names({f"{section}.name": getattr(self, section).name
                           for section in ("selection", "train", "eval")})

    def _fill_in(self) -> None:
        """Replace null by what it stands for, where that is known from other keys."""
        self.selection.fill_in(Path(self.pool.path.removeprefix(HUB)).name)
        file = self.train.subset_file()
        self.train.name = self.train.name or (
            file.stem if file else f"{self.selection.name}-{self.train.subset}")
        self.train.prompt = self.train.prompt or self.generation.prompt
        self.eval.name = self.eval.name or self.train.name


class Key(NamedTuple):
    """A configuration key as it is declared."""

    name: str  # section.key
    default: Any
    about: str
    tuning: bool
    allowed: str  # in words; empty where the type says all


def _fields(node: type = Config, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """(section.key, its field) of every configuration key."""
    for item in fields(node):
        if is_dataclass(item.type):
            yield from _fields(item.type, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, item


def describe_keys() -> list[Key]:
    """Every configuration key, in order."""
    return [Key(name, item.default if item.default is not NO_DEFAULT else item.default_factory(),
                item.metadata["about"], item.metadata["tuning"], allowed(item))
            for name, item in _FIELDS.items()]


_FIELDS = dict(_fields())
# Keys whose value is a mapping: one that is given replaces the one that it builds on
_MAPPINGS = frozenset(name for name, default, *_ in describe_keys() if isinstance(default, dict))
TUNING_KEYS = frozenset(name for name, item in _FIELDS.items() if item.metadata["tuning"])
PATH_KEYS = tuple(name for name, item in _FIELDS.items() if item.metadata["path"])
NOT_COMPARED_KEYS = frozenset(  # a difference in these is no difference to the paper's setting
    name for name, item in _FIELDS.items() if not item.metadata["compared"])


def load_config(path: Path, overrides: list[str]) -> Config:
    """The checked configuration: defaults, the YAML at `path`, then `section.key=value` overrides.

    A YAML's key `base` names another, beside it or by a relative path, whose values it builds on.
    Relative paths to inputs, the YAML's own included, lead from the current folder, else from the
    repository (adg.base.paths). A relative output_dir leads from the current folder; one that a
    YAML in the repository gives, from the repository.

    Raises InputError that names the key (for an unknown one, also the nearest).
    """
    path = Path(find(str(path)))
    if not path.is_file():
        raise InputError(f"{path}: configuration file not found{looked_in(path)}")
    for text in overrides:
        if "=" not in text:
            raise InputError(f"{text!r} is not an override: write section.key=value")
    source = str(path)
    try:
        config = OmegaConf.merge(OmegaConf.structured(Config),
                                 _as_declared(yaml_files.read(path, _MAPPINGS)))
        source = "the command line"
        values = OmegaConf.from_dotlist(overrides)
        yaml_files.check_resolvers(values, source)
        config = yaml_files.merge(config, _as_declared(values),
                                  _MAPPINGS & {text.partition("=")[0] for text in overrides})
        source = str(path)
        return _with_inputs_found(OmegaConf.to_object(config))
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not valid YAML: {yaml_files.problem_of(error)}") from None
    except OmegaConfBaseException as error:
        raise InputError(f"{source}: {_explain(error)}") from None


def _as_declared(values: DictConfig) -> DictConfig:
    """The same values, but a bare off, which YAML reads as false, is the word where that is a
    choice, and a single word is a list of one where a key takes several."""
    tree = OmegaConf.to_container(values, resolve=False)
    for name, item in _FIELDS.items():
        *sections, last = name.split(".")
        section = reduce(lambda node, part: node.get(part) if isinstance(node, dict) else None,
                         sections, tree)
        value = section.get(last) if isinstance(section, dict) else None
        if value is False and "off" in (item.metadata["limits"].choices or ()):
            section[last] = "off"
        elif item.type == list[str] and isinstance(value, str) and "${" not in value:
            section[last] = [value]
    return OmegaConf.create(tree)


def _with_inputs_found(config: Config) -> Config:
    for name in PATH_KEYS:
        *section, last = name.split(".")
        node = reduce(getattr, section, config)
        value = getattr(node, last)
        if value is not None and value not in SUBSETS:
            setattr(node, last, find(value))
    return config


def unknown_key(name: str) -> str:
    """That there is no such key, and which one may have been meant."""
    by_last_part = [known for known in _FIELDS if known.split(".")[-1] == name.split(".")[-1]]
    near = by_last_part or difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.5)
    return f"unknown key {name}; " + (f"did you mean {near[0]}?" if near else "--help lists them")


def _explain(error: OmegaConfBaseException) -> str:
    name, first_line = getattr(error, "full_key", None), str(error).splitlines()[0]
    first_line = first_line.removeprefix("InputError raised while resolving interpolation: ")
    if isinstance(error, KeyError):
        return unknown_key(name)
    if "missing mandatory" in first_line.lower():
        return f"{name} is not given, and it has no default"
    return f"{name}: {first_line}" if name else first_line


def flatten(config: Config) -> dict[str, Any]:
    """{"section.key": value} of every key."""
    return {name: reduce(getattr, name.split("."), config) for name in _FIELDS}


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML: what a run folder keeps as config.yaml."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
