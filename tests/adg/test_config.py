from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from omegaconf.basecontainer import BaseContainer

from adg.base.errors import InputError
from adg.config import (
    PATH_KEYS,
    TUNING_KEYS,
    ClusteringConfig,
    describe_keys,
    flatten,
    load_config,
)
from adg.methods import METHODS
from adg.pipeline.command import parse_command
from adg.pipeline.stages import STAGES, parameters_of
from train.finetune import order_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("override", "message"), [
    ("generation.temprature=1",
     "unknown key generation.temprature; did you mean generation.temperature?"),
    ("temperature=1", "did you mean generation.temperature"),
    ("generation.num_answers=five", "generation.num_answers: Value 'five'"),
    ("generation.num_answers=1", "generation.num_answers is 1; it must be 2 or more"),
    ("model.dtype=float8", "model.dtype is 'float8'; it must be bfloat16, float16 or float32"),
    ("selection.name=a/b", "selection.name"),
    ("train.name=base", "train.name"),
    ("selection.name='a*'", "selection.name is 'a*'"),
    ("eval.name='{x}'", "eval.name"),
    ("output_dir=''", "output_dir is ''"),
    ("seed=4294967296", "seed is 4294967296"),
    ("generation.temperature=inf", "generation.temperature is inf; it must be finite"),
    ("eval.benchmarks=[bbh,arc]", "eval.benchmarks is 'arc'"),
    ("eval.benchmarks=[]", "eval.benchmarks is []; it must be at least one benchmark"),
    ("pool.fields={question: q}", "pool.fields is 'question'; it must be instruction, input,"),
    ("clustering.num_bins=0", "clustering.num_bins is 0; it must be null or 1 or more"),
    ("generation.min_new_tokens=7", "generation.min_new_tokens is 7; it must be at most"),
    ("embedding.empty_answers=instruction", "embedding.empty_answers is 'instruction'"),
    ("train.report_to=tensorbord", "train.report_to is 'tensorbord'; it must be none, "),
    ("train.report_to=[none,wandb]", "train.report_to is ['none', 'wandb']; it must be none alone"),
    ("model=5", "int is not a subclass of ModelConfig"),
    ("generation.max_model_len=4", "generation.max_model_len"),
    ("generation.control_tokens=text", "generation.control_tokens is 'text'; it must be null or "
                                       "obey"),
    ("seed", "section.key=value"),
    ("model.name_or_path='${package_dir:no_such_package}'", "no_such_package is not installed"),
])
def test_what_is_wrong_is_named(config_file, override: str, message: str):
    with pytest.raises(InputError) as error:
        load_config(config_file(), [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [
    "${oc.env:HOME}", "${ oc.env : HOME}", "a-${oc.env:HOME,none}", "${oc.decode:'1'}",
    "${oc.create:{}}", "${oc.select:seed}", "${oc.deprecated:seed}", "${oc.dict.keys:model}",
    "${oc.dict.values:model}", "${package_dir:${oc.env:HOME}}", "${env:HOME}"])
def test_no_resolver_but_our_own_is_asked(config_file, tmp_path: Path, value: str):
    with pytest.raises(InputError, match=r"^the command line: selection.name asks for \$\{"):
        load_config(config_file(), [f"selection.name='{value}'".replace("'1'", "1")])
    below = config_file("below.yaml", selection={"name": value})
    (tmp_path / "x.yaml").write_text("base: below.yaml\n")
    with pytest.raises(InputError) as error:
        load_config(tmp_path / "x.yaml", [])
    assert str(error.value).startswith(f"{below}: selection.name asks for ")
    assert "\n" not in str(error.value)


def test_a_resolver_whose_name_is_put_together_is_not_there_either(config_file, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    for name in ("'${oc.${train.name}:SECRET}'", "'${${train.name}:SECRET}'"):
        with pytest.raises(InputError, match="selection.name: Unsupported interpolation") as error:
            load_config(config_file(), [f"selection.name={name}", "train.name=env"]
                        if "oc." in name else [f"selection.name={name}", "train.name=oc.env"])
        assert "hunter2" not in str(error.value)
    assert set(BaseContainer._resolvers) == {"package_dir"}


def test_references_to_other_keys_stay(config_file):
    config = load_config(config_file(), ["selection.name='k${generation.num_answers}'"])
    assert config.selection.name == "k3"


@pytest.mark.parametrize("content", [
    "root:x:0:0:root:/root:/bin/sh\nme:x:1:1::/home/me:/bin/sh\n", "the secret\nof two lines\n",
    "- the secret\n", "a: [the secret\nb: {\n", "key: |\n secret\n\tx: &a *b\n"])
def test_a_base_that_is_no_configuration_is_not_shown(tmp_path: Path, content: str):
    (tmp_path / "other").write_text(content)
    path = tmp_path / "x.yaml"
    path.write_text("base: other\n")
    with pytest.raises(InputError, match=f"{tmp_path}/other: not ") as error:
        load_config(path, [])
    assert not any(part in str(error.value) for part in ("secret", "root:", "/bin", "home/me"))


def test_a_run_folder_is_not_the_repository_nor_a_home(config_file, monkeypatch, tmp_path: Path):
    home = tmp_path / "home"
    (home / "runs").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "link").symlink_to(ROOT)
    monkeypatch.chdir(ROOT)
    sources = [path for path in ROOT.iterdir()
               if path.is_dir() and (any(path.glob("*.py")) or path.name in ("configs", ".git"))]
    assert len(sources) > 6
    for folder in (".", "/", ROOT, ROOT.parent, home, tmp_path / "link", tmp_path / "link/adg",
                   "runs/..", "configs/demo", *sources):
        with pytest.raises(InputError, match="output_dir is .*; it must be a folder for one run"):
            load_config(config_file(output_dir=str(folder)), [])
    for folder in ("runs/mine", "mine", home / "runs", tmp_path / "link/runs/mine"):
        assert load_config(config_file(output_dir=str(folder)), []).output_dir == str(folder)


def test_a_run_folder_is_no_file_and_a_pool_not_the_whole_disk(config_file, tmp_path: Path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(InputError, match=f"output_dir is '{folder}'; it must be a folder, and "
                                             f"{tmp_path}/file is a file"):
            load_config(config_file(output_dir=str(folder)), [])
    for path in ("/", "//", str(tmp_path / "/".join([".."] * 20))):
        with pytest.raises(InputError, match="pool.path is .*; it must be a file, or a folder that "
                                             "holds only the pool"):
            load_config(config_file(pool={"path": path}), [])


def test_a_missing_key_and_a_missing_file_are_named(tmp_path: Path):
    path = tmp_path / "x.yaml"
    path.write_text("model: {name_or_path: a/b}\npool: {path: p.jsonl}\n")
    with pytest.raises(InputError, match="output_dir is not given"):
        load_config(path, [])
    path.write_text("model: [unclosed\n")
    with pytest.raises(InputError, match="x.yaml: not valid YAML"):
        load_config(path, [])
    for content in (b"[1, 2]", b"5", b"\xff\xfe", b"a: \xe9"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="x.yaml: not a"):
            load_config(path, [])
    with pytest.raises(InputError, match="none.yaml: configuration file not found"):
        load_config(tmp_path / "none.yaml", [])


def test_overrides_win_and_names_follow_the_method(config_file):
    config = load_config(config_file(), ["selection.budget=7", "train.subset=bottom"])
    assert config.selection.budget == 7
    assert (config.selection.name, config.train.name, config.eval.name) == (
        "adg", "adg-bottom", "adg-bottom")


def test_the_papers_values_are_the_defaults():
    keys = {key: default for key, default, *_ in describe_keys()}
    expected = {
        "generation.num_answers": 5, "generation.temperature": 1.4, "generation.top_p": 0.9,
        "generation.max_new_tokens": 256, "generation.prompt": "alpaca",
        "embedding.layers": [-4, -3, -2, -1], "clustering.num_init": 3,
        "selection.budget": 10000, "selection.anisotropy_weight": 0.4, "train.epochs": 5,
        "train.learning_rate": 1e-5, "train.lr_scheduler": "cosine", "train.warmup_ratio": 0.03,
        "train.weight_decay": 0.0, "train.batch_size": 64, "train.max_length": 2048,
        "model.dtype": "bfloat16",
    }
    assert {key: keys[key] for key in expected} == expected
    assert ClusteringConfig().count_bins(52_002) == 1000


@pytest.mark.parametrize(("given", "records", "bins"), [
    (None, 1, 1), (None, 19, 1), (None, 60, 6), (None, 9_999, 999), (None, 10**6, 1000),
    (50, 10**6, 50),
])
def test_bins_left_open_are_a_tenth_of_the_records(given, records, bins):
    assert ClusteringConfig(num_bins=given).count_bins(records) == bins


def test_help_lists_every_key_with_its_limits(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        parse_command("A stage.", ["--help"])
    text = capsys.readouterr().out
    assert all(key in text for key, *_ in describe_keys())
    assert "generation.num_answers (5; 2 or more)" in text
    assert "generation.dtype (null; null, bfloat16, float16 or float32)" in text


def test_every_key_decides_an_output_or_is_known_not_to(config_file):
    """A key that no stage compares would change results unseen."""
    configs = [load_config(config_file(), [f"selection.method={name}"]) for name in METHODS]
    compared = {key for config in configs for name in STAGES for key in parameters_of(name, config)}
    names = {"selection.name", "selection.measure", "train.name", "eval.name"}
    others = {"output_dir", "eval.benchmarks",  # an output each
              "eval.allow_code_execution", "eval.sandbox",  # whether and where programs run
              "selection.score"}  # compared where it is not the default, which older records lack
    rest = {key for key, *_ in describe_keys()} - compared - TUNING_KEYS - set(PATH_KEYS)
    assert rest == names | others


def test_a_bare_off_and_a_single_word_are_what_they_say(config_file, tmp_path: Path):
    below = config_file("below.yaml")
    path = tmp_path / "x.yaml"
    path.write_text(f"base: {below}\npool: {{decontaminate: off}}\neval: {{benchmarks: bbh}}\n")
    config = load_config(path, ["eval.sandbox=off", "train.report_to=wandb"])
    assert (config.pool.decontaminate, config.eval.sandbox) == ("off", "off")
    assert (config.eval.benchmarks, config.train.report_to) == (["bbh"], ["wandb"])
    assert load_config(path, ["pool.decontaminate=drop"]).pool.decontaminate == "drop"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")),
                         ids=lambda path: path.stem)
def test_shipped_configurations_load(path: Path):
    assert flatten(load_config(path, []))["output_dir"] == f"runs/{path.stem}"


def paths(given: dict, prefix: str = "") -> Iterator[str]:
    for name, value in given.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{name}.")


def test_the_papers_recipe_spells_out_every_value_of_adg():
    spelt = set(paths(yaml.safe_load((ROOT / "configs/base/paper.yaml").read_text())))
    keys = {key for key, *_ in describe_keys()
            if not key.startswith("selection.") or key.count(".") == 1}  # no other method's
    own = {"output_dir", "model.name_or_path", "pool.path"}  # of each experiment
    names = {"selection.name", "train.name", "train.model_name_or_path", "eval.name"}
    assert keys - spelt == own | names  # those by what they name


def test_every_cell_of_the_main_table_has_its_file():
    paper = flatten(load_config(ROOT / "configs/llama3_alpaca_gpt4.yaml", []))
    for backbone in ("llama3", "qwen25"):
        for pool in ("alpaca_gpt4", "wizardlm", "cot"):
            cell = flatten(load_config(ROOT / f"configs/{backbone}_{pool}.yaml", []))
            assert {key for key in cell if cell[key] != paper[key]} <= {
                "output_dir", "model.name_or_path", "pool.path"}


def test_the_ablations_are_of_one_sampling_and_one_pass():
    paper, ablations, chinese = (load_config(ROOT / f"configs/llama3_alpaca_gpt4{name}.yaml", [])
                                 for name in ("", "_ablations", "_zh"))
    windows = ablations.embedding.windows
    assert list(windows) == [f"{layers[0]}-{layers[-1]}" for layers in windows.values()]
    last = [32 + layer for layer in ablations.embedding.layers]
    assert [layer for layers in (*windows.values(), last) for layer in layers] == list(range(32))
    assert (ablations.generation.num_answers, ablations.selection.num_answers) == (10, 5)
    paper, ablations, chinese = map(flatten, (paper, ablations, chinese))
    assert {key for key in paper if paper[key] != ablations[key]} == {
        "output_dir", "generation.num_answers", "embedding.windows", "selection.num_answers"}
    assert {key for key in paper if paper[key] != chinese[key]} == {
        "output_dir", "pool.path", "eval.benchmarks"}


def test_a_file_builds_on_its_base(tmp_path: Path, capsys):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/a.yaml").write_text("model: {name_or_path: a/b}\npool: {path: p.jsonl}\n"
                                          "generation: {num_answers: 7, top_p: 0.5}\n")
    path = tmp_path / "x.yaml"
    path.write_text("base: base/a.yaml\noutput_dir: out\ngeneration: {top_p: 0.6}\n")
    config = load_config(path, ["generation.temperature=2"])
    assert (config.generation.num_answers, config.generation.top_p,
            config.generation.temperature) == (7, 0.6, 2.0)
    with pytest.raises(SystemExit):
        parse_command("A stage.", [str(path), "seed=7", "--print-config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["generation"]["num_answers"] == 7 and printed["seed"] == 7
    assert "base" not in printed
    (tmp_path / "base/a.yaml").write_text("base: ../x.yaml\n")
    with pytest.raises(InputError, match="x.yaml builds on this file itself"):
        load_config(path, [])
    path.write_text("base: none.yaml\n")
    with pytest.raises(InputError, match="x.yaml: base: .*none.yaml not found"):
        load_config(path, [])


def test_a_mapping_takes_the_place_of_the_one_below(tmp_path: Path):
    (tmp_path / "a.yaml").write_text(
        "output_dir: out\nmodel: {name_or_path: a/b}\npool: {path: p.jsonl}\n"
        "embedding: {windows: {early: [0, 1], late: [4]}}\n")
    path = tmp_path / "x.yaml"
    path.write_text("base: a.yaml\nembedding: {windows: {middle: [2]}}\n")

    def windows(*overrides: str) -> dict:
        return load_config(path, list(overrides)).embedding.windows

    assert windows() == {"middle": [2]}
    assert windows("embedding.windows.last=[5]") == {"middle": [2], "last": [5]}
    assert windows("embedding.windows={}") == {}
    path.write_text("base: a.yaml\nseed: 1\n")
    assert windows() == {"early": [0, 1], "late": [4]}
    with pytest.raises(InputError, match=r"a name in embedding.windows \(early, late\)"):
        load_config(path, ["selection.window=erly"])


def test_the_released_recipe_differs_in_its_quirks_only():
    paper, released = (flatten(load_config(ROOT / f"configs/{name}.yaml", [])) for name in
                       ("llama3_alpaca_gpt4", "llama3_alpaca_gpt4_released"))
    assert {key for key in paper if paper[key] != released[key]} == {
        "output_dir", "generation.prompt", "generation.max_prompt_tokens",
        "generation.min_new_tokens", "generation.strip_answers", "generation.dtype",
        "embedding.dtype", "embedding.recipe", "embedding.layers",
        "embedding.token_weights", "embedding.empty_answers", "embedding.max_length",
        "embedding.instruction_max_length", "clustering.batch_size", "clustering.max_batch_share",
        "selection.recipe"}


def test_what_the_repository_names_is_found_from_any_folder(tmp_path: Path, monkeypatch):
    here = load_config(ROOT / "configs/demo.yaml", [])
    monkeypatch.chdir(tmp_path)
    there = load_config(Path("configs/demo.yaml"), [])
    assert there.output_dir == str(ROOT / "runs/demo")
    assert there.pool.path == str(ROOT / "configs/demo/pool.jsonl")
    assert there.train.deepspeed == str(ROOT / here.train.deepspeed)
    for name in STAGES:  # nothing is stale for having been asked for elsewhere
        assert parameters_of(name, there) == parameters_of(name, here)
    (tmp_path / "configs/demo").mkdir(parents=True)
    (tmp_path / "configs/demo/pool.jsonl").touch()
    assert load_config(Path("configs/demo.yaml"), []).pool.path == "configs/demo/pool.jsonl"
    assert load_config(Path("configs/demo.yaml"), ["output_dir=mine"]).output_dir == "mine"
    (tmp_path / "x.yaml").write_text(f"base: {ROOT}/configs/demo.yaml\noutput_dir: runs/x\n")
    assert load_config(Path("x.yaml"), []).output_dir == "runs/x"


def test_a_draw_and_a_fine_tuning_may_have_seeds_of_their_own(config_file):
    def seeds(*overrides: str) -> tuple[int, int, int]:
        config = load_config(config_file(), list(overrides))
        return config.seed, config.selection_seed(), config.train_seed()

    assert seeds() == (42, 42, 42) and seeds("seed=5") == (5, 5, 5)
    assert seeds("selection.seed=0", "train.seed=7") == (42, 0, 7)
    for key in ("selection.seed", "train.seed"):
        with pytest.raises(InputError, match=f"{key} is -1; it must be .*from 0"):
            seeds(f"{key}=-1")
    examples = [{"input_ids": [0] * size} for size in range(3, 30)]
    orders = [order_of(examples, load_config(config_file(), own)).steps for own in (
        ["train.seed=7"], ["seed=7"], [])]
    assert orders[0] == orders[1] != orders[2]
