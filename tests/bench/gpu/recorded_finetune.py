"""The finetune stage, and then a line from each rank: the GPU memory that it took at most.

    torchrun ... -m tests.bench.gpu.recorded_finetune CONFIG [section.key=value ...]
"""

from adg.base import distributed, process
from train import finetune

MARK = "peak memory in bytes:"


def main() -> None:
    import torch

    finetune.main()
    if torch.cuda.is_available():
        distributed.warn(f"{MARK} {torch.cuda.max_memory_allocated()}")


if __name__ == "__main__":
    process.run_script(main)
