"""Check that vectors from the sampler agree with those of a forward pass.

With embedding.source=sampling the sample stage leaves check_answers/: the token ids and vectors of
the first embedding.check_answers answers. Here the same ids go through the model once more, and the
deviations |v - w| of the unit vectors are reported, each times the fourth root of its answer's
tokens. Beyond BOUNDS they are an error: do not trust the vectors, use embedding.source=forward. The
embed stage does so before it starts; by hand:

    python -m embedding.check RUN_DIR
"""

import argparse
import json
from pathlib import Path

import numpy as np

from adg.answer_vectors import CHECK_FOLDER
from adg.base import artifacts, distributed, process
from adg.base.errors import InputError
from adg.config import Config, load_config
from adg.models import folders
from adg.models.loading import LocalModel
from adg.records import Answer, Pool
from embedding.forward import Embedder, load_embedder
from embedding.sequences import Encoder, load_encoder

# The largest and the median deviation times n ** 0.25, over answers of n tokens. Rounding is not
# alike in all tokens, so an answer's falls with n, though not as independent errors' would (n **
# 0.5). SmolLM2 in bfloat16, by two ways of attention: 1.3% a token, |v - w| of 0.014, 0.0066 and
# 0.0031 for 1, 16 and 256 tokens: 0.013 in the median and 0.025 at most whatever n, and 0.022 and
# 0.037 where kernels differ by 2% a token; in float32 1e-6. What is to be found, with answers of 4
# to 40 and of 30 to 256 tokens, in the median: the last layer left out 0.045 and 0.08, another in
# its place or all four one off 0.16 and 0.23. A token left out (|v - w| of 0.36, 0.044 and 0.0025
# for 2, 16 and 256) is found by the largest, 0.2, where one answer has up to some 20 tokens.
BOUNDS = {"float32": (4e-4, 2e-4), "bfloat16": (0.06, 0.04), "float16": (0.06, 0.04)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a run folder that was sampled "
                        "with embedding.source=sampling")
    run = parser.parse_args().run
    config = load_config(run / "config.yaml", [f"output_dir={run}"])
    if not (run / CHECK_FOLDER).is_dir():
        raise InputError(f"{run}/{CHECK_FOLDER}/ not found: the sample stage writes it with "
                         f"embedding.source=sampling and embedding.check_answers above 0")
    source = LocalModel(folders.local_folder(config.model.name_or_path, config.output_dir),
                        config.model.trust_remote_code)
    check_sampled(run, Pool(run), load_encoder(source, config), load_embedder(source, config),
                  config)


def check_sampled(run: Path, pool: Pool, encoder: Encoder, embedder: Embedder,
                  config: Config) -> None:
    """Compare, report, and leave the result in provenance/; nothing where there is nothing to
    compare.

    InputError where the two sources deviate by more than BOUNDS.
    """
    if config.embedding.source != "sampling" or not (run / CHECK_FOLDER).is_dir():
        return
    rows = [row for path in sorted((run / CHECK_FOLDER).glob("*.jsonl"))  # not of every chunk
            for row in artifacts.JsonlRows(path)]
    if not rows:
        return
    gaps = deviations(rows, pool, encoder, embedder)
    largest, median = (float(of(gaps)) if len(gaps) else 0.0 for of in (np.max, np.median))
    bounds = BOUNDS[config.embedding_dtype()]
    distributed.say(f"[embed] {len(gaps)} answers by both sources: vectors deviate by "
                    f"{largest:.1e} at most (bound {bounds[0]:g}), {median:.1e} in the median "
                    f"(bound {bounds[1]:g})")
    if not (largest <= bounds[0] and median <= bounds[1]):
        raise InputError(
            f"{run}/{CHECK_FOLDER}: the sampler's vectors deviate from the forward pass's by "
            f"{largest:.1e} at most and {median:.1e} in the median, above {bounds[0]:g} or "
            f"{bounds[1]:g}: they are not to be trusted; redo them: bash "
            f"run.sh CONFIG embed embedding.source=forward --overwrite")
    artifacts.write_json(_result_path(run), {
        "checked_answers": len(gaps), "largest_deviation": largest, "median_deviation": median,
        "bounds": bounds})


def deviations(rows: list[dict], pool: Pool, encoder: Encoder, embedder: Embedder) -> np.ndarray:
    """|v - w| n ** 0.25 of each answer of n > 0 tokens, the largest over its windows."""
    records = [pool.row(row["row"])[0] for row in rows]
    answers = [[Answer("", ids) for ids in row["token_ids"]] for row in rows]
    forward = embedder.embed(encoder.answers(records, answers)[0])              # [answers, W, H]
    sampled = np.array([vectors or np.full(forward.shape[1:], np.nan).tolist()
                        for row in rows for vectors in row["vectors"]])
    lengths = np.array([len(answer.token_ids) for drawn in answers for answer in drawn])
    filled = lengths > 0
    gaps = np.linalg.norm(forward[filled] - sampled[filled], axis=-1).max(axis=-1)
    return gaps * lengths[filled] ** 0.25


def last_result(run: Path, config: Config) -> dict:
    """The result of the last check, for the log; empty where there was none."""
    path = _result_path(run)
    checked = config.embedding.source == "sampling" and path.is_file()
    return {"check": json.loads(path.read_text(encoding="utf-8"))} if checked else {}


def _result_path(run: Path) -> Path:
    return run / "provenance" / "embed.check.json"


if __name__ == "__main__":
    process.run_script(main)
