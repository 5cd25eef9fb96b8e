"""What fine-tuning reports to TensorBoard and wandb, for which small modules stand in."""

import json
import textwrap
from pathlib import Path

import pytest
from conftest import RECORDS, command

from adg import config_sections
from adg.base import artifacts
from adg.base.errors import InputError
from adg.config import load_config
from adg.pipeline.checks import check_reporting

STAND_INS = {
    "tensorboardX/__init__.py": """
        import json
        from pathlib import Path
        class SummaryWriter:
            def __init__(self, log_dir):
                self.file = Path(log_dir) / "scalars.jsonl"
                self.file.parent.mkdir(parents=True)
            def add_scalar(self, name, value, step):
                with self.file.open("a") as file:
                    file.write(json.dumps([name, value, step]) + "\\n")
            def add_text(self, *_): pass
            def flush(self): pass
            def close(self): pass
        """,
    "wandb/__init__.py": """
        import json, os
        run = None
        class Run:
            summary = {}
            def _label(self, code): pass
        class Config(dict):
            def update(self, values, allow_val_change): pass
        config = Config()
        def record(*values):
            with open(os.environ["RECORDED"], "a") as file:
                file.write(json.dumps(values) + "\\n")
        def init(project, name):
            global run
            run = Run()
            record(project, name)
        def log(values):
            record(values)
        """,
    "wandb/sdk/__init__.py": "",
    "wandb/sdk/lib/__init__.py": "",
    "wandb/sdk/lib/config_util.py": "class ConfigError(Exception): pass",
}


def lines(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_step_is_reported_under_the_models_name(config_file, tmp_path: Path):
    for name, content in STAND_INS.items():
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(content))
    artifacts.write_json(tmp_path / "run/subsets/adg/top.json", RECORDS)
    ended = command("train.finetune", config_file(), "train.report_to=[tensorboard,wandb]",
                    "train.epochs=1", "train.name=mine", PYTHONPATH=str(tmp_path / "packages"),
                    WANDB_PROJECT="project", RECORDED=str(tmp_path / "recorded"))
    assert ended.returncode == 0, ended.stderr
    losses = [row["loss"] for row in lines(tmp_path / "run/train/mine/metrics.jsonl")]
    assert len(losses) == 5
    first, *logged = lines(tmp_path / "recorded")
    assert first == ["project", "mine"]
    assert [row["train/loss"] for row, in logged if "train/loss" in row] == losses
    written, = (tmp_path / "run/train/mine/runs").glob("*/scalars.jsonl")
    assert [row[1:] for row in lines(written) if row[0] == "train/loss"] == [
        [loss, step] for step, loss in enumerate(losses, 1)]


def test_a_package_that_is_not_installed_is_named(config_file, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(config_sections.REPORTERS, "wandb", ("no_such_package",))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "no_such_package").mkdir()  # as the folder of runs that wandb writes
    with pytest.raises(InputError, match="train.report_to is wandb, but the Python package "
                                         "no_such_package is not installed"):
        check_reporting(load_config(config_file(), ["train.report_to=wandb"]))
    check_reporting(load_config(config_file(), []))
