"""The house's arrows: adg imports no other folder, no stage another, heavy libraries wait."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("generation", "embedding", "train", "eval")
ALLOWED = {"adg": {"adg"}, **{folder: {"adg", folder} for folder in STAGES}}
HOME = {"vllm": {"adg", "generation", "eval"}, "deepspeed": {"train"}, "lm_eval": {"eval"}}
HEAVY = {"vllm", "deepspeed", "lm_eval"}
WITHIN_VLLM = "vllm_worker.py"  # what vLLM itself imports, and nothing else may
FILES = [path for folder in ALLOWED for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide an arrow"
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path):
    folder, tree = path.relative_to(ROOT).parts[0], ast.parse(path.read_text())
    found = imports(tree)
    assert found & set(ALLOWED) <= ALLOWED[folder]
    for library, homes in HOME.items():
        assert library not in found or folder in homes
    at_import = ast.Module([node for node in tree.body
                            if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert path.name == WITHIN_VLLM or not imports(at_import) & HEAVY


def test_every_folder_was_walked():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(ALLOWED)
    assert len(FILES) > 20
