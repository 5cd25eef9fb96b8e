"""The finetune stage once for each list of overrides, imported once; run by test_finetune.py.

    python tests/train/finetune_forked.py CONFIG "section.key=value ..." ["section.key=value ..."]
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from adg.base.process import run_script  # noqa: E402
from train import finetune  # noqa: E402


def main() -> None:
    finetune.prepare_environment()
    import deepspeed  # noqa: F401

    import train.trainer  # noqa: F401

    config, runs = sys.argv[1], sys.argv[2:]
    for overrides in runs:
        pid = os.fork()
        if not pid:
            sys.argv[1:] = [config, *overrides.split()]
            finetune.main()
            return
        if os.waitpid(pid, 0)[1]:
            sys.exit(f"the run with {overrides} failed")


if __name__ == "__main__":
    run_script(main)
