"""What the pipeline knows of each method agrees with what chooses and measures."""

import re

import pytest

from adg.base.errors import InputError
from adg.config import describe_keys, load_config
from adg.measure import FINISHERS, MEASURERS, loaders
from adg.method_facts import FACTS
from adg.methods import METHODS
from adg.pipeline.sources import model_of
from adg.pipeline.stages import inputs_of, needed_stages, parameters_of

MEASURED = [name for name, facts in FACTS.items() if facts.measures()]


def test_every_method_is_whole():
    assert set(METHODS) == set(FACTS)
    assert set(MEASURERS) == set(MEASURED)
    assert all(map(callable, (load for name in MEASURERS for load in loaders(name).values())))
    assert set(FINISHERS) <= set(MEASURERS)
    assert len({facts.title for facts in FACTS.values()}) == len(FACTS)


def test_every_key_of_a_method_is_one():
    keys = [key for key, *_ in describe_keys()]
    for facts in FACTS.values():
        for own in (*facts.keys, *facts.measure_keys, *facts.models.values(),
                    *facts.files.values()):
            assert any(key == own or key.startswith(own + ".") for key in keys), own


@pytest.mark.parametrize("method", MEASURED)
def test_a_measured_method_needs_its_measure_and_no_answers(config_file, method: str):
    config = load_config(config_file(), [f"selection.method={method}"])
    assert config.selection.measure == method
    assert needed_stages(config) == ["prepare", "measure", "select", "finetune", "evaluate",
                                     "tables"]
    assert f"measures/{method}/" in inputs_of("select", config)[0]


def test_the_model_of_a_measure_is_the_backbone_or_its_own(config_file, tiny_model):
    config = load_config(config_file(), ["selection.method=ifd"])
    assert model_of("measure.model", config) == str(tiny_model)
    config = load_config(config_file(), ["selection.method=ifd", "selection.measure=other",
                                         "selection.ifd.model_name_or_path=a/b"])
    assert model_of("measure.model", config) == "a/b"
    assert "measures/other/" in inputs_of("select", config)[0]


@pytest.mark.parametrize("stage", ["measure", "select"])
def test_another_methods_key_makes_nothing_stale(config_file, stage: str):
    for method in MEASURED:
        config = load_config(config_file(), [f"selection.method={method}"])
        for key in parameters_of(stage, config):
            section = re.match(r"selection\.(\w+)\.", key)
            assert not section or section[1] == method.removesuffix("_d")


def test_a_measure_is_not_named_in_vain(config_file):
    with pytest.raises(InputError, match="selection.measure is 'x'; it must be null with "
                                         "selection.method random"):
        load_config(config_file(), ["selection.method=random", "selection.measure=x"])
