"""The rows of the stages hang together, and nothing about a stage stands outside its row."""

import ast
from pathlib import Path

import pytest

from adg.config import load_config
from adg.methods import METHODS
from adg.pipeline import stages
from adg.pipeline.sources import is_outside, sources
from adg.pipeline.stages import STAGES, inputs_of, maker_of, outputs_of, producer_of

HERE = Path(stages.__file__).parent


@pytest.fixture(params=METHODS)
def config(request, config_file):
    return load_config(config_file(), [f"selection.method={request.param}",
                                       "embedding.windows.late=[-1]"])


def test_what_a_stage_writes_is_known_by_its_name(config):
    for name in STAGES:
        for path in outputs_of(name, config):
            assert maker_of(path) == producer_of(path, config) == name
            assert not is_outside(path)


def test_what_a_stage_reads_is_a_source_or_written_by_one_before_it(config):
    order = list(STAGES)
    for name in STAGES:
        for path in sum(inputs_of(name, config), []):
            maker = maker_of(path)
            if is_outside(path):
                assert maker is None and path in sources(config)
            else:
                assert order.index(maker) < order.index(name)


def test_what_grows_or_changes_freely_is_an_input(config):
    for stage in STAGES.values():
        assert {*stage.grows, *stage.follows} <= {*stage.reads(config)}
        assert set(stage.reports) <= {*stage.writes(config)}


def test_an_input_under_another_name_has_a_maker_and_no_producer(config_file):
    config = load_config(config_file(), ["eval.name=mine"])
    assert maker_of("models/mine/") == "finetune"
    assert producer_of("models/mine/", config) is None
    assert maker_of("eval/*/scores.json") == "evaluate" and maker_of("model") is None


def test_no_stages_name_is_asked_for_outside_its_row():
    for path in HERE.glob("*.py"):
        compared = {node.value for test in ast.walk(ast.parse(path.read_text()))
                    if isinstance(test, ast.Compare) for node in ast.walk(test)
                    if isinstance(node, ast.Constant)}
        assert not compared & set(STAGES), path.name
