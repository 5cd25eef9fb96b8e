"""The house's arrows: adg imports no other folder, no stage another, heavy libraries wait. Inside
adg the base knows nothing above it, methods and models know neither configuration nor pipeline."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from adg.pipeline.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("generation", "embedding", "train", "eval")
ALLOWED = {"adg": {"adg"}, **{folder: {"adg", folder} for folder in FOLDERS}}
HOME = {"vllm": {"adg", "generation", "eval"}, "deepspeed": {"train"}, "lm_eval": {"eval"}}
HEAVY = {"vllm", "deepspeed", "lm_eval"}
WITHIN_VLLM = "vllm_worker.py"  # what vLLM itself imports, and nothing else may
FILES = [path for folder in ALLOWED for path in sorted((ROOT / folder).rglob("*.py"))]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
           for path in FILES}

# Inside adg: what each room may import beside itself. The top level is the method, but for the
# modules of the configuration and the stages
_BELOW_METHODS = {"base", "method", "models"}
ROOMS = {
    "base": set(),
    "method": {"base"},
    "models": {"base", "method"},
    "methods": _BELOW_METHODS,
    "configuration": {*_BELOW_METHODS, "methods"},
    "pipeline": {*_BELOW_METHODS, "methods", "configuration"},
    "stages": {*_BELOW_METHODS, "methods", "configuration", "pipeline"},
    "tools": {*_BELOW_METHODS, "methods", "configuration", "pipeline", "stages"},
}


def modules_in(tree: ast.AST) -> set[str]:
    """What a file imports anywhere, also for its type hints alone."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide an arrow"
            names |= {full if (full := f"{node.module}.{name.name}") in MODULES else node.module
                      for name in node.names}
    return names


def imports(tree: ast.AST) -> set[str]:
    return {name.split(".")[0] for name in modules_in(tree)}


def room_of(module: str) -> str:
    """The room of a module of adg."""
    name = module.split(".")[1]
    if name in ROOMS:
        return name
    if module in {stage.module for stage in STAGES.values()}:
        return "stages"
    return "configuration" if name.startswith("config") or name == "selection_config" else "method"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path):
    folder, tree = path.relative_to(ROOT).parts[0], ast.parse(path.read_text())
    names = imports(tree)
    assert names & set(ALLOWED) <= ALLOWED[folder]
    for library, homes in HOME.items():
        assert library not in names or folder in homes
    at_import = ast.Module([node for node in tree.body
                            if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert path.name == WITHIN_VLLM or not imports(at_import) & HEAVY


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """{module: those of ours that it imports}."""
    return {name: modules_in(ast.parse(path.read_text())) & MODULES.keys() - {name}
            for name, path in MODULES.items()}


def test_arrows_inside_adg_point_down(graph):
    wrong = {(module, target) for module, targets in graph.items() if module.startswith("adg.")
             for target in targets if target.startswith("adg.")
             and room_of(target) not in ROOMS[room_of(module)] | {room_of(module)}}
    assert wrong == set()


def test_no_stage_imports_another(graph):
    stages = {stage.module for stage in STAGES.values()}
    assert not [(stage, other) for stage in stages for other in graph[stage] & stages]


def test_imports_have_no_circle(graph):
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_every_folder_was_walked():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(ALLOWED)
    assert len(FILES) > 20
