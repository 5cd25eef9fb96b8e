"""YAML files that build on another one, and what their values may refer to."""

import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from adg.base.errors import InputError
from adg.base.paths import ROOT

_RESOLVER = re.compile(r"(?<!\\)\$\{\s*([^\s${}:]+)\s*:")  # of an interpolation ${name:argument}


def read(path: Path, mappings: Iterable[str], above: tuple[Path, ...] = ()) -> DictConfig:
    """A YAML file on top of its `base`; `above` are the files that build on it.

    Of two mappings among `mappings` the one of the file replaces that of its base. A relative
    `output_dir` in a file of the repository leads from the repository.
    """
    values = _parse(path)
    output_dir = OmegaConf.to_container(values, resolve=False).get("output_dir")
    if isinstance(output_dir, str) and path.resolve().is_relative_to(ROOT) and Path.cwd() != ROOT:
        values.output_dir = str(ROOT / output_dir)
    base = values.pop("base", None)
    if base is None:
        return values
    below = path.parent / str(base)
    if not below.is_file() or below.resolve() in above:
        problem = "builds on this file itself" if below.is_file() else "not found"
        raise InputError(f"{path}: base: {below} {problem}")
    return merge(read(below, mappings, (*above, path.resolve())), values,
                 [name for name in mappings if OmegaConf.select(values, name) is not None])


def _parse(path: Path) -> DictConfig:
    try:
        text = path.read_text(encoding="utf-8")
        if not isinstance(yaml.compose(text, Loader=yaml.SafeLoader), yaml.MappingNode | None):
            raise InputError(f"{path}: not a YAML mapping of configuration keys")
        values = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML mapping in UTF-8 ({error})") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {problem_of(error)}") from None
    check_resolvers(values, str(path))
    return values


def problem_of(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text, and where, without the text itself: it may be a secret."""
    mark = getattr(error, "problem_mark", None)
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return f"{getattr(error, 'problem', None) or 'cannot be read'}{place}"


def merge(below: DictConfig, values: DictConfig, replaced: Iterable[str]) -> DictConfig:
    """`values` on top of `below`, whose mappings `replaced` are emptied first."""
    for name in replaced:
        OmegaConf.update(below, name, {}, merge=False)
    return OmegaConf.merge(below, values)


def check_resolvers(values: DictConfig, source: str) -> None:
    """InputError where a value asks a resolver other than package_dir."""
    for name, text in _texts(OmegaConf.to_container(values, resolve=False), ""):
        for resolver in _RESOLVER.findall(text):
            if resolver != "package_dir":
                raise InputError(f"{source}: {name} asks for ${{{resolver}:...}}, but only "
                                 f"${{package_dir:NAME}} and ${{section.key}} are resolved")


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """(its key, text) of every text in a tree of dicts and lists."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict | list):
        for part, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(below, f"{name}.{part}" if name else str(part))


def _package_dir(name: str) -> str:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"${{package_dir:{name}}}: the Python package {name} is not installed; "
                         f"`bash run.sh setup` installs what the demo needs")
    return spec.submodule_search_locations[0]


# A configuration may come from anyone, and its values end up in data cards: none of OmegaConf's
# own resolvers, such as ${oc.env:NAME}, can be used in it.
for _name in ("coerce", "create", "decode", "deprecated", "env", "select", "dict.keys",
              "dict.values"):
    OmegaConf.clear_resolver(f"oc.{_name}")
OmegaConf.register_resolver("package_dir", _package_dir, replace=True)
