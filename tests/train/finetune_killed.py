"""The finetune stage, killed after its last step and before its model; run by test_finetune.py.

    torchrun --nproc_per_node=2 tests/train/finetune_killed.py CONFIG [section.key=value ...]
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from adg.base import process  # noqa: E402
from train import finetune  # noqa: E402


def kill(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    finetune.save_model = kill
    process.run_script(finetune.main)
