"""The finetune stage with every batch it learns from written down; run by test_finetune.py.

    python tests/train/finetune_recorded.py BATCHES.jsonl CONFIG [section.key=value ...]
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from adg.base import process  # noqa: E402
from train import finetune, trainer  # noqa: E402


def main() -> None:
    batches, plain = Path(sys.argv.pop(1)), trainer.collate

    def recorded(examples: list[dict]) -> dict:
        with batches.open("a") as file:
            file.write(json.dumps(examples) + "\n")
        return plain(examples)

    trainer.collate = recorded
    finetune.main()


if __name__ == "__main__":
    process.run_script(main)
