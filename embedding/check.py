"""Do the vectors that the sampler gave agree with those of a forward pass? A check of both.

With embedding.source=sampling the sample stage leaves check_answers/: the token ids and vectors of
the first embedding.check_answers answers. Here the same ids go through the model once more, and the
largest deviation |v - w| of two unit vectors is said. Beyond MAX_DEVIATION it is an error: do not
trust the vectors, use embedding.source=forward. The embed stage does so before it starts; by hand:

    python -m embedding.check RUN_DIR
"""

import argparse
import json
from pathlib import Path

import numpy as np

from adg import artifacts, distributed, models
from adg.answer_vectors import CHECK_FOLDER
from adg.config import Config, load_config
from adg.errors import InputError
from adg.records import Answer, Pool
from embedding import backbone
from embedding.forward import Embedder
from embedding.sequences import Encoder

# Rounding gives 1e-6 in float32 and 0.01 in bfloat16 (SmolLM2). What is to be found gives more: a
# layer left out 0.03, another in its place 0.05, all four one off 0.08, a token left out 0.14.
MAX_DEVIATION = {"float32": 1e-4, "bfloat16": 0.025, "float16": 0.025}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a run folder that was sampled "
                        "with embedding.source=sampling")
    run = parser.parse_args().run
    config = load_config(run / "config.yaml", [f"output_dir={run}"])
    if not (run / CHECK_FOLDER).is_dir():
        raise InputError(f"{run}/{CHECK_FOLDER}/ is not there: the sample stage writes it with "
                         f"embedding.source=sampling and embedding.check_answers above 0")
    folder = models.local_folder(config.model.name_or_path, config.output_dir)
    check_sampled(run, Pool(run), backbone.load_encoder(folder, config),
                  backbone.load_embedder(folder, config), config)


def check_sampled(run: Path, pool: Pool, encoder: Encoder, embedder: Embedder,
                  config: Config) -> None:
    """Compare, say, and leave the result in provenance/; nothing where there is nothing to compare.

    InputError where the two sources deviate by more than MAX_DEVIATION.
    """
    if config.embedding.source != "sampling" or not (run / CHECK_FOLDER).is_dir():
        return
    rows = list(artifacts.JsonlRows(run / CHECK_FOLDER))
    largest, number = deviation(rows, pool, encoder, embedder)
    bound = MAX_DEVIATION[config.model.dtype]
    distributed.say(f"[embed] {number} answers by both sources: vectors deviate by {largest:.1e} "
                    f"at most (bound {bound:g})")
    if not largest <= bound:
        raise InputError(
            f"{run}/{CHECK_FOLDER}: the sampler's vectors deviate from the forward pass's by "
            f"{largest:.1e}, above {bound:g}: they are not to be trusted; run embed with "
            f"embedding.source=forward --overwrite")
    artifacts.write_json(_result_path(run), {"checked_answers": number,
                                             "largest_deviation": largest, "bound": bound})


def deviation(rows: list[dict], pool: Pool, encoder: Encoder,
              embedder: Embedder) -> tuple[float, int]:
    """(largest |v - w| over windows and answers with a token, how many of these there are)."""
    records = [pool.rows(range(row["row"], row["row"] + 1))[0] for row in rows]
    answers = [[Answer("", ids) for ids in row["token_ids"]] for row in rows]
    forward = embedder.embed(encoder.answers(records, answers)[0])              # [answers, W, H]
    sampled = np.array([vectors or np.full(forward.shape[1:], np.nan).tolist()
                        for row in rows for vectors in row["vectors"]])
    known = np.array([not answer.is_empty() for own in answers for answer in own])
    gaps = np.linalg.norm(forward[known] - sampled[known], axis=-1)
    return float(gaps.max(initial=0.0)), int(known.sum())


def found(run: Path, config: Config) -> dict:
    """What the last check found, for the log; empty where there was none."""
    path = _result_path(run)
    checked = config.embedding.source == "sampling" and path.is_file()
    return {"check": json.loads(path.read_text(encoding="utf-8"))} if checked else {}


def _result_path(run: Path) -> Path:
    return run / "provenance" / "embed.check.json"


if __name__ == "__main__":
    distributed.run_script(main)
