"""A killed compilation leaves a lock, on which every later start of DeepSpeed would wait."""

import os
import time
from pathlib import Path

import pytest

from train import operators


@pytest.mark.parametrize("place", ["given", "own"])
def test_an_old_lock_is_removed(tmp_path: Path, monkeypatch, capsys, place: str):
    folder = tmp_path / "cpu_adam" if place == "given" else tmp_path / "py311_cpu" / "cpu_adam"
    if place == "given":
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    else:
        monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
        monkeypatch.setattr("torch.utils.cpp_extension.get_default_build_root",
                            lambda: str(tmp_path))
    folder.mkdir(parents=True)
    lock = folder / "lock"
    lock.touch()
    old = time.time() - operators.ABANDONED - 1
    os.utime(lock, (old, old))
    operators.clear_abandoned_locks()
    assert not lock.exists()
    assert str(lock) in capsys.readouterr().out


def test_a_young_lock_is_waited_for(tmp_path: Path, monkeypatch, capsys):
    """It may be another run's: the message names the file, and nobody removes it but its owner."""
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    waits = []

    def wait(seconds: float) -> None:
        assert lock.exists()
        waits.append(seconds)
        if len(waits) == 3:
            lock.unlink()  # the other run's compilation is done

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(operators.time, "sleep", wait)
    operators.clear_abandoned_locks()
    said = capsys.readouterr().out
    assert len(waits) == 3 and said.count("waiting for") == 1 and f"remove {lock}" in said
