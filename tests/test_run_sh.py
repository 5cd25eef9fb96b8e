"""run.sh: what it installs, keeps, refuses and starts. Stand-ins take Python's and pip's place."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

# Installs nothing: says what it was asked for. PIP_FAILS: what pip cannot install.
_PYTHON = """#!/bin/bash
case "$*" in
    "-m venv "*) echo "new .venv"
        rm -rf .venv && mkdir -p .venv/bin .venv/lib/python3.11/site-packages
        cp "$STAND_INS/python" .venv/bin/python ;;
    "-m pip install "*) echo "pip ${*:4}"; [[ -z "${PIP_FAILS:-}" || "$*" != *"$PIP_FAILS"* ]] ;;
    "-m pip uninstall "*) echo "pip removes ${*: -1}" ;;
    *"torch.version.cuda is None"*) [ -n "${CUDA_BUILD-yes}" ] ;;
    "-m adg.pipeline "*) echo "pipeline ${*:3}, GPUs ${CUDA_VISIBLE_DEVICES-all}"
        [ -z "${SAY_WHERE:-}" ] || echo "in $PWD, modules from $PYTHONPATH $PYTHONSAFEPATH" ;;
esac
"""
_PROGRAMS = {
    "python": _PYTHON, "c++": "#!/bin/bash\n",
    "nvidia-smi": """#!/bin/bash
[ -n "${DRIVER:-}" ] || exit 9
case "$*" in
    -L) echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)"; echo "GPU 1: NVIDIA H100 80GB HBM3" ;;
    *driver_version*) echo "$DRIVER"; echo "$DRIVER" ;;
    *) echo "| NVIDIA-SMI $DRIVER   Driver Version: $DRIVER   CUDA Version: ${CUDA:-12.2}     |" ;;
esac
""",
    "getconf": '#!/bin/bash\necho "glibc ${GLIBC:-2.35}"\n',
    "df": '#!/bin/bash\necho "Filesystem blocks"; echo "disk 0 0 $((${GIB:-99} * 1048576)) 0% /"\n',
}
LOGIN, GPU_NODE = {}, {"DRIVER": "580.65.06"}
GPU, CPU = "pip -qq -r requirements.txt", "pip -qq -r requirements-cpu.txt"


@pytest.fixture
def run_sh(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """run_sh("setup", "gpu", DRIVER="580.1", ...): run.sh in a folder of its own."""
    stand_ins, folder = tmp_path / "stand-ins", tmp_path / "adg"
    for path in (stand_ins, folder):
        path.mkdir()
    for name, text in _PROGRAMS.items():
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)
    for name in ("run.sh", "requirements.txt", "requirements-cpu.txt"):
        shutil.copy(ROOT / name, folder)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", folder / "run.sh", *arguments], capture_output=True, text=True, check=False,
            cwd=environment.pop("cwd", None),
            env={"PATH": f"{stand_ins}{os.pathsep}{os.environ['PATH']}", "PYTHON": "python",
                 "STAND_INS": str(stand_ins), **environment})

    run.folder = folder
    return run


def test_the_machine_decides_what_a_new_environment_is_for(run_sh):
    for node, kind, other in ((GPU_NODE, GPU, CPU), (LOGIN, CPU, GPU)):
        shutil.rmtree(run_sh.folder / ".venv", ignore_errors=True)
        first = run_sh("configs/x.yaml", "select", **node)
        assert first.returncode == 0, first.stderr
        assert first.stdout.count("new .venv\n") == 1
        assert kind in first.stdout and other not in first.stdout
        assert "pipeline configs/x.yaml select, GPUs all\n" in first.stdout
        assert run_sh("setup", **node).stdout == ""  # all is there
        assert run_sh("configs/x.yaml", **node).stdout == "pipeline configs/x.yaml, GPUs all\n"


def test_an_environment_for_gpus_is_made_and_kept_on_a_login_node(run_sh):
    made = run_sh("setup", "gpu", **LOGIN)
    assert made.returncode == 0 and GPU in made.stdout
    for node in (LOGIN, GPU_NODE):
        for arguments in (["setup"], ["setup", "gpu"]):
            assert run_sh(*arguments, **node).stdout == ""
        assert run_sh("configs/x.yaml", **node).stdout == "pipeline configs/x.yaml, GPUs all\n"


def test_an_environment_for_the_cpu_is_not_used_unasked_where_there_is_a_gpu(run_sh):
    run_sh("setup", **LOGIN)
    before = (run_sh.folder / ".venv/complete").read_text()
    for arguments in (["setup"], ["configs/x.yaml"]):
        refused = run_sh(*arguments, **GPU_NODE)
        assert refused.returncode == 1 and refused.stdout == ""
        assert refused.stderr == (
            "set-up: .venv is for the CPU, and this machine has a GPU: `bash run.sh setup gpu` "
            "replaces it, `bash run.sh setup cpu` keeps it and leaves the GPU unused\n")
    hidden = run_sh("configs/x.yaml", CUDA_VISIBLE_DEVICES="", **GPU_NODE)
    assert hidden.stdout == "pipeline configs/x.yaml, GPUs \n"
    assert (run_sh.folder / ".venv/complete").read_text() == before

    kept = run_sh("setup", "cpu", **GPU_NODE)
    assert kept.returncode == 0 and "pip" not in kept.stdout
    used = run_sh("configs/x.yaml", **GPU_NODE)
    assert used.stdout == (
        "set-up: .venv is for the CPU, as requested: the GPU here is not used\n"
        "pipeline configs/x.yaml, GPUs \n")
    assert run_sh("configs/x.yaml", **LOGIN).stdout == "pipeline configs/x.yaml, GPUs all\n"


def test_another_kind_gets_a_new_environment(run_sh):
    run_sh("setup", **LOGIN)
    replaced = run_sh("setup", "gpu", **GPU_NODE)
    assert replaced.stdout.startswith(
        "set-up: .venv was made from requirements-cpu.txt; it is replaced by one from "
        "requirements.txt\n"
        "new .venv\n")
    assert GPU in replaced.stdout and CPU not in replaced.stdout
    assert CPU in run_sh("setup", "cpu", **LOGIN).stdout


def test_changed_requirements_are_installed_into_the_same_environment(run_sh):
    run_sh("setup", "gpu", **LOGIN)
    with (run_sh.folder / "requirements-cpu.txt").open("a") as file:
        file.write("other==1\n")
    assert run_sh("setup", **LOGIN).stdout == ""
    with (run_sh.folder / "requirements.txt").open("a") as file:
        file.write("other==1\n")
    again = run_sh("setup", **LOGIN)
    assert GPU in again.stdout and "new .venv" not in again.stdout
    assert run_sh("setup", **LOGIN).stdout == ""


def test_an_interrupted_set_up_goes_on_as_what_it_was(run_sh):
    failed = run_sh("setup", "gpu", PIP_FAILS="requirements.txt", **LOGIN)
    assert failed.returncode == 1 and "pip could not install requirements.txt" in failed.stderr
    assert not (run_sh.folder / ".venv/complete").exists()
    resumed = run_sh("configs/x.yaml", **LOGIN)
    assert GPU in resumed.stdout and "new .venv" not in resumed.stdout


def test_a_torch_without_cuda_does_not_pass_for_a_set_up_for_gpus(run_sh):
    failed = run_sh("setup", "gpu", CUDA_BUILD="", **LOGIN)
    assert failed.returncode == 1
    assert "pip found a build of torch without CUDA" in failed.stderr
    assert "pip removes torch\n" in failed.stdout  # or pip would take it for installed
    assert not (run_sh.folder / ".venv/complete").exists()


@pytest.mark.parametrize(("arguments", "environment", "message"), [
    ("setup gpu", {"DRIVER": "535.183.01"},
     "the NVIDIA driver here is 535.183.01: torch's CUDA 13 needs 580 or newer"),
    ("configs/x.yaml", {"DRIVER": "575.57.08"}, "the NVIDIA driver here is 575.57.08"),
    ("setup gpu", {"GLIBC": "2.28"}, "glibc 2.31 or newer is needed (Debian 11, Ubuntu 20.04, RHEL "
     "9), and this is glibc 2.28"),
    ("setup cpu", {"GLIBC": "2.28"}, "glibc 2.31 or newer is needed"),
    ("setup gpu", {"GIB": "19"}, "19 GiB of disk are free here, 20 GiB are needed"),
    ("setup cpu", {"GIB": "7"}, "7 GiB of disk are free here, 8 GiB are needed"),
    ("setup tpu", {}, "unknown kind of set-up: tpu; it is gpu or cpu"),
    ("setup gpu cpu", {}, "unknown kind of set-up: gpu cpu"),
])
def test_what_will_not_do_is_said_in_a_line_before_anything_is_made(
        run_sh, arguments: str, environment: dict, message: str):
    refused = run_sh(*arguments.split(), **environment)
    assert refused.returncode == 1 and refused.stdout == ""
    assert refused.stderr.startswith(f"set-up: {message}") and refused.stderr.count("\n") == 1
    assert not (run_sh.folder / ".venv").exists()


def test_an_old_driver_with_cuda_compat_and_the_oldest_glibc_will_do(run_sh):
    made = run_sh("setup", "gpu", DRIVER="550.54.15", CUDA="13.0", GLIBC="2.31")
    assert made.returncode == 0 and GPU in made.stdout


def test_the_pipeline_starts_where_the_user_stands(run_sh, tmp_path: Path):
    (tmp_path / "my data").mkdir()
    run_sh("setup", **LOGIN)
    started = run_sh("my first.yaml", "select", cwd=tmp_path / "my data", SAY_WHERE="1",
                     PYTHONPATH="/other")
    assert started.stdout == (
        "pipeline my first.yaml select, GPUs all\n"
        f"in {tmp_path}/my data, modules from {run_sh.folder}:/other 1\n"), started.stderr


def test_modules_are_found_from_every_folder(run_sh, tmp_path: Path):
    link = run_sh.folder / ".venv/lib/python3.11/site-packages/adg.pth"
    run_sh("setup", **LOGIN)
    assert link.read_text() == f"{run_sh.folder}\n"
    for arguments, change in ((["setup"], link.unlink),
                              (["configs/x.yaml"], lambda: link.write_text("/elsewhere\n"))):
        change()
        again = run_sh(*arguments, cwd=tmp_path, **LOGIN)
        assert again.returncode == 0 and "pip -" not in again.stdout and again.stderr == ""
        assert link.read_text() == f"{run_sh.folder}\n"
    (run_sh.folder / "adg_module.py").touch()
    code = f"import site; site.addsitedir({str(link.parent)!r}); import adg_module"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


def test_help_is_the_pipelines_and_sets_nothing_up(run_sh, tmp_path: Path):
    for arguments in (["--help"], ["-h"], ["configs/x.yaml", "--help"], ["--help", "generation"]):
        shown = run_sh(*arguments, cwd=tmp_path)
        assert shown.returncode == 0 and "bash run.sh configs/demo.yaml" in shown.stdout
        assert "The set-up has not run yet" in shown.stdout
        assert not (run_sh.folder / ".venv").exists()
    run_sh("setup", **LOGIN)
    for arguments in (["--help"], ["configs/x.yaml", "--help"], ["--help", "generation"]):
        assert run_sh(*arguments).stdout == f"pipeline {' '.join(arguments)}, GPUs all\n"
    assert run_sh().returncode == 2
