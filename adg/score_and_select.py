"""Stage select: from Gram matrices and bins to scores and the top, middle and bottom subsets.

Reads   pool.jsonl                            N records
        bins.npy                              int32 [N]
        answer_grams/*.npy                    float32 [n, K, K]
        answers/*.jsonl                       only copied into the subsets; may be absent
Writes  subsets/NAME/scores.jsonl             a line per record: bin, dispersion, anisotropy, score
        subsets/NAME/top.json, middle.json, bottom.json

    python -m adg.score_and_select configs/demo.yaml
"""

from pathlib import Path

import numpy as np

from adg import artifacts, geometry, provenance, selection
from adg.checks import check_budget
from adg.command import parse_command
from adg.config import SelectionConfig
from adg.distributed import run_script, say
from adg.errors import InputError
from adg.records import Answers, Pool

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def main() -> None:
    config, overwrite = parse_command(__doc__)
    run = provenance.begin("select", config, overwrite=overwrite)
    if run is None:
        return
    pool = Pool(run.folder)
    check_budget(config, len(pool))
    bins = read_bins(run.folder / "bins.npy", len(pool))
    grams = artifacts.read_arrays(run.folder / "answer_grams", len(pool), row_dims=2)
    check_grams(grams, run.folder / "answer_grams")
    table = METHODS[config.selection.method](grams, config.selection)
    table["bin"] = bins
    subsets = selection.RECIPES[config.selection.recipe](table["score"], bins,
                                                         config.selection.budget)
    run.start()
    write_subsets(run.folder / "subsets" / config.selection.name, pool, table, subsets,
                  Answers(run.folder, pool) if (run.folder / "answers").is_dir() else None)
    unscored = [pool.rows(range(row, row + 1))[0]["id"] for row in
                np.flatnonzero(np.isnan(table["score"]))[:10]]
    report = describe_scores(table, config.selection.anisotropy_weight)
    show_report(report, unscored, subsets)
    run.finish(records=len(pool), **report, unscored_ids=unscored,
               subset_sizes={name: len(rows) for name, rows in subsets._asdict().items()})


def read_bins(path: Path, num_records: int) -> np.ndarray:
    """The bin of each record, int [N]; InputError where the file is something else."""
    bins = np.array(artifacts.read_array(path))
    if bins.shape != (num_records,) or bins.dtype.kind not in "iu":
        raise InputError(f"{path}: {bins.dtype} of shape {bins.shape}; expected integers of shape "
                         f"({num_records},), one for each record of pool.jsonl")
    return bins


def check_grams(grams: np.ndarray, folder: Path) -> None:
    """InputError where [N, K, K] cannot be Gram matrices of centred unit vectors.

    Each is symmetric with a trace from 0 to K; a missing answer is NaN in its whole row and column.
    """
    num_answers = grams.shape[1]
    if grams.shape[1] != grams.shape[2] or num_answers < 2:
        raise InputError(f"{folder}/ has rows of shape {grams.shape[1:]}; expected K x K with K of "
                         f"2 or more")
    missing = np.isnan(np.diagonal(grams, axis1=1, axis2=2))                            # [N, K]
    filled = np.where(missing[:, :, None] | missing[:, None, :], 0.0, grams)
    with np.errstate(invalid="ignore", over="ignore"):
        trace = np.trace(filled, axis1=1, axis2=2)
        uneven = np.abs(filled - np.swapaxes(filled, 1, 2)).max(axis=(1, 2))
    stray = (~np.isnan(grams) & (missing[:, :, None] | missing[:, None, :])).any(axis=(1, 2))
    good = (uneven <= 1e-4) & (trace >= -1e-4) & (trace <= num_answers * (1 + 1e-4)) & ~stray
    if not good.all():
        raise InputError(f"{folder}/: row {np.flatnonzero(~good)[0]} (of {(~good).sum()} such) is "
                         f"no Gram matrix of centred unit vectors; make its chunk again")


def score_by_divergence(grams: np.ndarray, config: SelectionConfig) -> dict[str, np.ndarray]:
    """{"num_answers", "dispersion", "anisotropy", "score"} by adg, each [N], from [N, K, K]."""
    if grams.shape[1] != grams.shape[2]:
        raise InputError(f"answer_grams/ has rows of shape {grams.shape[1:]}; "
                         f"a Gram matrix is square")
    dispersion, anisotropy = geometry.dispersion(grams), geometry.anisotropy(grams)
    return {
        "num_answers": geometry.num_answers(grams),
        "dispersion": dispersion, "anisotropy": anisotropy,
        "score": geometry.divergence_score(dispersion, anisotropy, config.anisotropy_weight),
    }


METHODS = {"adg": score_by_divergence}


def write_subsets(folder: Path, pool: Pool, table: dict[str, np.ndarray],
                  subsets: selection.Subsets, answers: Answers | None) -> None:
    """scores.jsonl of all records, and the three subsets as Alpaca-format JSON arrays."""
    columns = {name: [_plain(value) for value in table[name].tolist()]
               for name in ("bin", "num_answers", "dispersion", "anisotropy", "score")}
    for name, rows in subsets._asdict().items():
        chosen = []
        for row in rows.tolist():
            record = pool.rows(range(row, row + 1))[0]
            if answers is not None:
                record["generated_answers"] = (
                    answers.texts(range(row, row + 1))[0])
            for column in ("dispersion", "anisotropy", "score", "bin"):
                record[column] = columns[column][row]
            chosen.append(record)
        artifacts.write_json(folder / f"{name}.json", chosen)
    artifacts.write_jsonl(folder / "scores.jsonl", (
        {"id": record["id"]} | {column: values[row] for column, values in columns.items()}
        for row, record in enumerate(pool)
    ))


def _plain(value: float | int) -> float | int | None:
    return None if isinstance(value, float) and np.isnan(value) else value


def describe_scores(table: dict[str, np.ndarray], anisotropy_weight: float) -> dict:
    """Counts, quantiles, correlations, and the share of the score's variance that each term brings.

    A term's share is its covariance with the score over the score's variance; the two sum to 1.
    Shares and correlations are None where there is no variance.
    """
    scored = ~np.isnan(table["score"])
    columns = {name: table[name][scored] for name in ("dispersion", "anisotropy", "score")}
    terms = {"dispersion": (1 - anisotropy_weight) * columns["dispersion"],
             "anisotropy": anisotropy_weight * columns["anisotropy"]}
    variance = columns["score"].var() if scored.any() else 0.0
    pairs = (("dispersion", "anisotropy"), ("dispersion", "score"), ("anisotropy", "score"))
    return {
        "scored": int(scored.sum()), "unscored": int((~scored).sum()),
        "incomplete": int((scored & (table["num_answers"] < table["num_answers"].max())).sum()),
        "quantiles": {name: {str(q): float(np.quantile(values, q)) for q in _QUANTILES}
                      for name, values in columns.items() if len(values)},
        "variance_share": {
            name: float(np.mean((term - term.mean()) * (columns["score"] - columns["score"].mean()))
                        / variance) if variance > 0 else None for name, term in terms.items()},
        "correlation": {f"{a}-{b}": _correlation(columns[a], columns[b]) for a, b in pairs},
    }


def _correlation(left: np.ndarray, right: np.ndarray) -> float | None:
    if len(left) < 2 or left.std() == 0 or right.std() == 0:
        return None
    return float(np.corrcoef(left, right)[0, 1])


def show_report(report: dict, unscored: list[str], subsets: selection.Subsets) -> None:
    """What a person wants to know of a selection, in a few lines."""
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in subsets._asdict().items())
    say(f"[select] {report['scored']} records scored, {report['unscored']} not; {sizes}")
    if len(subsets.middle) < len(subsets.top):
        say("[select] note: three subsets of this budget exceed the scored records, so middle and "
            "bottom are each half of what top leaves")
    if report["unscored"]:
        say(f"[select] not scored, for want of two answers with a vector: {', '.join(unscored)}"
            + (" ..." if report["unscored"] > len(unscored) else ""))


if __name__ == "__main__":
    run_script(main)
