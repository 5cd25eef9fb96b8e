"""What a method declares reaches the configuration, the pipeline and the stages."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

from adg.base.errors import InputError
from adg.config import describe_keys, load_config
from adg.methods import METHODS
from adg.pipeline.sources import model_of
from adg.pipeline.stages import inputs_of, needed_stages, parameters_of

MEASURED = [name for name, method in METHODS.items() if method.measure]


def test_the_configuration_is_read_without_heavy_libraries():
    heavy = ("torch", "transformers", "scipy", "sklearn", "vllm")
    code = f"import adg.config, sys; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_titles_tell_methods_apart():
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


def test_every_key_that_a_method_names_is_one():
    keys = [key for key, *_ in describe_keys()]
    for method in METHODS.values():
        named = [*method.keys, *method.later_keys, *method.files.values()]
        if method.measure:
            named += [*method.measure.keys, *method.measure.models.values()]
        for name in named:
            assert any(f"{key}.".startswith(f"{name}.") for key in keys), name


@pytest.mark.parametrize("method", MEASURED)
def test_a_measured_method_needs_its_measure_and_no_answers(config_file, method: str):
    config = load_config(config_file(), [f"selection.method={method}"])
    assert config.selection.measure == method
    assert needed_stages(config) == ["prepare", "measure", "select", "finetune", "evaluate",
                                     "tables"]
    assert f"measures/{method}/" in inputs_of("select", config)[0]


def test_a_method_reads_what_its_settings_say(config_file):
    def read(*overrides: str) -> tuple[list[str], list[str]]:
        return inputs_of("select", load_config(config_file(), list(overrides)))

    assert read()[0] == ["pool.jsonl", "bins.npy", "answer_grams/"]
    assert "window_grams/w/" in read("embedding.windows={w: [0]}", "selection.window=w")[0]
    assert read("selection.method=mig") == (["pool.jsonl", "measures/mig/"], ["select.valid_tags"])
    given = load_config(config_file(), ["selection.method=mig", "selection.mig.tag_vectors=v.npy"])
    assert inputs_of("select", given) == (["pool.jsonl", "select.tag_vectors"],
                                          ["select.annotations", "select.valid_tags"])
    facts = given.selection.facts()
    assert not facts.measures() and facts.models == {} and facts.measure_keys == ()


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
            assert not section or section[1] == METHODS[method].section


def test_a_measure_is_not_named_in_vain(config_file):
    with pytest.raises(InputError, match="selection.measure is 'x'; it must be null with "
                                         "selection.method random"):
        load_config(config_file(), ["selection.method=random", "selection.measure=x"])
