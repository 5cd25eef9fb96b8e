"""Every stage, killed at each of its file operations; a disk that is full or may not be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RECORDS, ROOT

from adg.base import artifacts


@pytest.fixture
def small(config_file, tmp_path: Path) -> Path:
    """A configuration whose stages write few files: three records in two chunks, one checkpoint."""
    artifacts.write_jsonl(tmp_path / "three.jsonl", RECORDS[:3])
    return config_file(
        pool={"path": str(tmp_path / "three.jsonl")}, chunk_size=2,
        generation={"num_answers": 2, "max_new_tokens": 2}, clustering={"num_bins": 2},
        selection={"budget": 1},
        train={"epochs": 2, "batch_size": 1, "save_steps": 1, "max_length": 256,
               "deepspeed": str(ROOT / "configs/deepspeed/zero2.json")},
        eval={"benchmarks": ["truthfulqa_mc2", "humaneval"], "batch_size": 1})


def matrix(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "tests/crash/matrix.py", *map(str, arguments)], cwd=ROOT, check=False,
        capture_output=True, text=True, env=os.environ)


def test_a_stage_killed_at_any_file_operation_ends_with_the_same_bytes(small: Path):
    result = matrix(small, "--every", 16)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " kill points in 9 stages, " in result.stdout and ", 0 failures" in result.stdout


def test_a_direct_write_is_found(small: Path):
    result = matrix(small, "prepare", "--direct-writes")
    print(result.stdout)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "pool.jsonl is there and not whole" in result.stdout
