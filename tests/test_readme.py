"""What the READMEs give: commands, keys, links, a script for SLURM, a short configuration."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RECORDS, ROOT

from adg.base import artifacts
from adg.config import describe_keys, load_config
from adg.methods.method import Choice, Task
from adg.models.loader import Loader
from adg.pipeline.__main__ import check_ahead, check_before
from adg.pipeline.stages import needed_stages
from adg.records import Pool
from generation import prepare_pool

READMES = [path for folder in (".", "adg", "configs", "embedding", "eval", "generation", "tests",
                               "train") for path in sorted((ROOT / folder).glob(
                                   "README.md" if folder == "." else "**/README.md"))]
_STAND_INS = {
    "scontrol": "echo node7; echo node8",
    "srun": 'echo "srun $*"; [ "${*: -2:1}" != "$FAILING" ]',
    "python": '[ "$1" != -c ] || exec "$REAL_PYTHON" "$@"; echo "python $*"',
}


def run_slurm_script(folder: Path, failing: str = "") -> subprocess.CompletedProcess:
    """The script for SLURM, with tensor_parallel_size 2 and stand-ins for what it starts.

    `failing`: a module that fails.
    """
    script = re.search(r"^```\n(#!/bin/bash\n.*?)```\n",
                       (ROOT / "adg/pipeline/README.md").read_text(), re.DOTALL | re.MULTILINE)[1]
    (folder / "job.sh").write_text(script.replace("TENSOR_PARALLEL=1", "TENSOR_PARALLEL=2"))
    (folder / "configs").mkdir()
    (folder / "configs/yours.yaml").write_text("output_dir: runs/mine\n")
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    for name, text in _STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    slurm = {"SLURM_CPUS_PER_TASK": "64", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2",
             "SLURM_JOB_ID": "11"}
    return subprocess.run(
        ["bash", "job.sh"], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, **slurm, "FAILING": failing, "REAL_PYTHON": sys.executable})


def test_the_script_for_slurm_runs_every_stage_on_all_cores_and_gpus(tmp_path: Path):
    def across(ranks: int, module: str) -> str:
        return (f"srun --cpus-per-task=64 torchrun --nnodes=2 --nproc_per_node={ranks} "
                f"--rdzv_backend=c10d --rdzv_id=11-{module} --rdzv_endpoint=node7:29500 "
                f"-m {module} configs/yours.yaml")

    done = run_slurm_script(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "python -m generation.prepare_pool configs/yours.yaml",
        across(4, "generation.sample_answers"), across(8, "embedding.embed"),
        "python -m embedding.cluster configs/yours.yaml",
        "python -m adg.score_and_select configs/yours.yaml",
        across(8, "train.finetune"), across(8, "eval.run_benchmarks"),
        "python -m eval.tables runs/mine"]


def test_the_script_for_slurm_stops_at_the_first_failure(tmp_path: Path):
    failed = run_slurm_script(tmp_path, failing="embedding.embed")
    assert failed.returncode == 1
    assert "embedding.embed" in failed.stdout.splitlines()[-1]


def test_the_short_configuration_is_one_that_the_pipeline_takes(tmp_path: Path, tiny_model: Path,
                                                               stage):
    block = re.search(r"^```yaml\n(output_dir: .*?)```\n", (ROOT / "README.md").read_text(),
                      re.DOTALL | re.MULTILINE)[1]
    assert len(block.splitlines()) <= 10
    for name, target in (("runs/mine", "run"), ("my-pool.jsonl", "pool.jsonl")):
        assert block.count(name) == 1
        block = block.replace(name, str(tmp_path / target))
    (tmp_path / "mine.yaml").write_text(block.replace("my-model", str(tiny_model)))
    (tmp_path / "pool.jsonl").write_text("".join(
        json.dumps({"question": record["instruction"], "answer": record["output"]}) + "\n"
        for record in RECORDS * 3))
    config = load_config(tmp_path / "mine.yaml", [])
    stages = needed_stages(config)
    check_ahead(stages, config)
    stage(prepare_pool, tmp_path / "mine.yaml")
    for name in stages:
        check_before(name, stages, config)
    assert len((tmp_path / "run/pool.jsonl").read_text().splitlines()) == 30
    assert config.clustering.count_bins(30) == 3


def test_the_methods_that_might_be_added_choose(tmp_path: Path, tiny_model: Path):
    plain, with_model = re.findall(r"^```python\n(.*?)^```$", (
        ROOT / "adg/methods/README.md").read_text(), re.DOTALL | re.MULTILINE)
    records = [record | {"output": "word " * (4 + i)} for i, record in enumerate(RECORDS)]
    artifacts.write_jsonl(tmp_path / "pool.jsonl", records)
    names: dict = {}

    def chosen(block: str) -> Choice:
        exec(block, names)  # the second block goes on with the first one's imports
        method = names["METHOD"]
        settings = method.settings()
        if method.measure:
            loader = Loader({"measure.model": str(tiny_model)}, str(tmp_path / "run"))
            rows = method.measure.loads[""](loader, settings).measure(records)
            artifacts.write_jsonl(tmp_path / "measures/00000.jsonl", (
                {"id": record["id"]} | row for record, row in zip(records, rows, strict=True)))
        return method.choose(Task(tmp_path, Pool(tmp_path), settings, 2, 0,
                                  tmp_path / "measures"))

    assert chosen(plain).subsets.top.tolist() == [1, 2]  # the first has four words
    choice = chosen(with_model)
    assert list(choice.subsets.top) == list((-choice.columns["score"]).argsort()[:2])


def named_by(readme: Path) -> str:
    return str(readme.parent.relative_to(ROOT))


def prose(readme: Path) -> str:
    """A README without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", readme.read_text(), flags=re.DOTALL | re.MULTILINE)


def before_recipes(readme: Path) -> str:
    """A README without its examples of what might be added, whose names are made up."""
    return readme.read_text().partition("\n## How to add")[0]


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def anchors(readme: Path) -> set[str]:
    """What GitHub makes of its headings."""
    headings = re.findall(r"^#+ (.*)$", prose(readme), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_first_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("readme", READMES, ids=named_by)
def test_links_lead_somewhere(readme: Path):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(readme)):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = readme.parent / path if path else readme
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("readme", READMES, ids=named_by)
def test_lines_have_one_width(readme: Path):
    assert not [line for line in prose(readme).splitlines()
                if len(line) > 100 and not line.startswith("|")]


@pytest.mark.parametrize("readme", READMES, ids=named_by)
def test_commands_modules_and_files_exist(readme: Path):
    text = re.sub(r"\\?\n\s*", " ", before_recipes(readme))
    for module in re.findall(r"(?:python|torchrun [^`|]*?) -m ([a-z][\w.]*)", text):
        assert is_module(module), module
    for path in re.findall(r"(?<![\w/])((?:adg|configs|embedding|eval|generation|tests|train)/"
                           r"[a-z0-9_/.]*\.(?:py|yaml|jsonl|json))\b", text):
        assert path == "configs/yours.yaml" or (ROOT / path).is_file(), path


@pytest.mark.parametrize("readme", READMES, ids=named_by)
def test_configuration_keys_exist(readme: Path):
    keys = {name for name, *_ in describe_keys()}
    sections = "|".join({name.split(".")[0] for name in keys if "." in name})
    free = "pool.fields.", "embedding.windows."  # below these, names are the user's own
    for name in re.findall(rf"(?<![\w/.])((?:{sections})(?:\.[a-z_]+)+)(?=[=`:])",
                           before_recipes(readme)):
        assert (name.startswith(free) or name.endswith((".py", ".jsonl")) or is_module(name)
                or any(key == name or key.startswith(f"{name}.") for key in keys)), name
