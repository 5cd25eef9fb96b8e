"""The GPUs that a stage may use, what is said where torch cannot use them, ninja on PATH, and
what ends with a stage."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import psutil
import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM

from adg.base import distributed, process
from adg.base.errors import InputError
from adg.config import load_config
from adg.models import loading
from adg.models.vllm_options import engine_options
from generation import prepare_pool, sample_answers
from generation.transformers_sampler import TransformersSampler
from generation.vllm_sampler import VllmSampler
from train import finetune

MIG = "MIG-3dcbcc22-5b0c-5fd7-9ab5-2ca3a8ccc4c1"
UUID = "GPU-2d971e69-8147-8221-a055-e26573950f91"

ENGINE = {"dtype": "float32", "seed": 0, "trust_remote_code": False, "gpu_memory_utilization": 0.9,
          "own_process": False}


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts an nvidia-smi first on PATH that lists these GPUs."""

    def put(*lines: str) -> None:
        folder = tmp_path / "driver"
        folder.mkdir()
        program = folder / "nvidia-smi"
        program.write_text("\n".join(["#!/bin/sh", "cat <<'END'", *lines, "END", ""]))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return put


@pytest.fixture
def unusable_gpu(nvidia_smi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that nvidia-smi lists and torch cannot use, as with an old driver."""
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020).\n"
                           "Please update it.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    nvidia_smi(f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {UUID})")


@pytest.mark.parametrize(("visible", "count", "mine"), [
    (None, 2, "1"), ("", 0, ""), ("-1", 0, "-1"), ("NoDevFiles", 0, "NoDevFiles"), ("4", 1, "4"),
    ("3, 5,6", 3, "5"), ("1,-1,2", 1, "1"), (f"{UUID},{MIG}", 2, MIG), (MIG, 1, MIG)])
def test_gpus_are_counted_and_claimed_as_cuda_reads_them(nvidia_smi, visible: str | None,
                                                         count: int, mine: str):
    nvidia_smi(f"GPU 0: NVIDIA A100-SXM4-40GB (UUID: {UUID})",
               f"  MIG 3g.20gb     Device  0: (UUID: {MIG})", "GPU 1: NVIDIA A100-SXM4-40GB (...)")
    with mock.patch.dict(os.environ, {"LOCAL_RANK": "1"}):
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
        assert distributed.count_gpus() == count
        distributed.claim_gpus(1, "key")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == mine


def test_a_gpu_that_torch_cannot_use_is_an_error_wherever_a_model_is_put(config_file, tiny_model,
                                                                         unusable_gpu, monkeypatch):
    config, said = load_config(config_file(), []), re.escape(
        f"1 GPU(s) are listed (nvidia-smi, CUDA_VISIBLE_DEVICES), but torch {torch.__version__} "
        f"cannot use them: The NVIDIA driver on your system is too old (found version 12020). It "
        f"needs NVIDIA driver 580 or newer")
    source, read = loading.LocalModel(tiny_model), (AutoModelForCausalLM, "float32")
    for start in (distributed.device, finetune.prepare_environment,
                  lambda: source.check_room(*read), lambda: source.load(*read),
                  lambda: engine_options(**ENGINE),
                  lambda: VllmSampler(source, config),
                  lambda: TransformersSampler(source, config)):
        with pytest.raises(InputError, match=said):
            start()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert distributed.device() == "cpu"


def test_attention_on_gpus_is_not_left_to_cudnn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    try:
        assert distributed.on_gpu() and not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def test_torch_is_asked_for_gpus_in_one_place():
    folders = ("adg", "generation", "embedding", "train", "eval")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in sources if "cuda.is_available()" in path.read_text()] == [
        "distributed.py"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use this machine's GPU")
def test_a_stage_says_in_one_line_that_torch_cannot_use_the_gpu(config_file, stage, nvidia_smi,
                                                                capsys):
    path = config_file()
    stage(prepare_pool, path)
    nvidia_smi("GPU 0: NVIDIA H100 80GB HBM3 (...)")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        process.run_script(lambda: stage(sample_answers, path))
    assert ended.value.code == 2
    assert re.fullmatch(r"error: 1 GPU\(s\) are listed .* but torch .* cannot use them: .*\n",
                        capsys.readouterr().err)


def test_vllm_for_gpus_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(InputError, match="the GPU build of vLLM is installed, but no GPU.*setup"):
        engine_options(**ENGINE)


def test_a_stage_finds_the_ninja_of_its_environment(tmp_path: Path):
    """torch and DeepSpeed run `ninja`, which a folder of PATH must hold."""
    code = ("from torch.utils.cpp_extension import verify_ninja_availability\n"
            "from adg.base.process import run_script\n"
            "run_script(verify_ninja_availability)")
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, text=True,
                           capture_output=True, env={**os.environ, "PATH": str(tmp_path)})
    assert ended.returncode == 0, ended.stderr


_PARENT = """
import subprocess, sys
from adg.base.process import end_children_with_this_process
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"],
                         start_new_session=True)
end_children_with_this_process()
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_has_started_ends_with_it():
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], cwd=ROOT, stdout=subprocess.PIPE,
                              stdin=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    child.wait(timeout=60)


def test_ctrl_c_is_one_line_and_status_130(capsys, monkeypatch):
    def main() -> None:
        raise KeyboardInterrupt

    for rank, said in (("0", "\nstopped; the same command goes on from here\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as ended:
            process.run_script(main)
        assert ended.value.code == 130 and capsys.readouterr().err == said


_MANY_LINES = """
from adg.base.process import run_script
def main():
    {before}
    for number in range(100_000):
        print(number)
run_script(main)
"""


def test_a_reader_that_goes_away_is_no_traceback():
    """As with `| head`. Of another pipe, a break is a defect and keeps its traceback."""
    for before, status in (("pass", 141), ("raise BrokenPipeError", 1)):
        process = subprocess.Popen([sys.executable, "-c", _MANY_LINES.format(before=before)],
                                   cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if status == 141:
            process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait() == status and ("Traceback" in errors) == (status == 1), errors
