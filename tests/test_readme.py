"""The commands and the configuration that README.md gives."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import RECORDS, ROOT

from adg.config import load_config
from adg.pipeline.__main__ import check_ahead, check_before
from adg.pipeline.stages import needed_stages
from generation import prepare_pool

_STAND_INS = {
    "scontrol": "echo node7; echo node8",
    "srun": 'echo "srun $*"; [ "${*: -2:1}" != "$FAILING" ]',
    "python": '[ "$1" != -c ] || exec "$REAL_PYTHON" "$@"; echo "python $*"',
}


def run_slurm_script(folder: Path, failing: str = "") -> subprocess.CompletedProcess:
    """README's script for SLURM, with tensor_parallel_size 2 and stand-ins for what it starts.

    `failing`: a module that fails.
    """
    found = re.search(r"^Several nodes .*?\n```\n(#!/bin/bash\n.*?)```\n",
                      (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (folder / "job.sh").write_text(found[1].replace("TENSOR_PARALLEL=1", "TENSOR_PARALLEL=2"))
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
    for name, own in (("runs/mine", "run"), ("my-pool.jsonl", "pool.jsonl")):
        assert block.count(name) == 1
        block = block.replace(name, str(tmp_path / own))
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
