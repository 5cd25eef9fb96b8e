"""Compare two selections: does it matter which recipe, seed, K or backbone I use?

Prints the overlap of the top subsets (and that expected by chance), the rank correlation of
dispersion, anisotropy and score, how many records moved far, and those that moved most.

    python -m adg.tools.compare_runs runs/demo runs/demo_released
    python -m adg.tools.compare_runs runs/demo/subsets/adg runs/demo/subsets/only-d
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adg import answer_vectors
from adg.base import artifacts
from adg.base.distributed import say
from adg.base.errors import InputError
from adg.base.process import run_script
from adg.methods.divergence import correlation
from adg.tools.run_folder import new_parser, open_run

_FAR = 0.1  # of the records: a rank that moved by more than this moved far
_LISTED = 10  # records that moved most
_COLUMNS = ("dispersion", "anisotropy", "score")


class Selection(NamedTuple):
    """One selection: ids in pool order, columns [N] (NaN where there is none), the ids of top."""

    folder: Path
    ids: list[str]
    columns: dict[str, np.ndarray]
    top: set[str]


def main() -> None:
    parser = new_parser(__doc__)
    for name in ("A", "B"):
        parser.add_argument(name, type=Path, help="a run folder, or a folder subsets/NAME of one")
    arguments = parser.parse_args()
    a, b = read_selection(arguments.A), read_selection(arguments.B)
    say("\n".join(describe(a, b, compare(a, b))))


def folder_of(path: Path) -> Path:
    """A folder subsets/NAME, or that of a run folder's last configuration; prints which one where
    there are others."""
    if (path / "scores.jsonl").is_file():
        return path
    if not (path / "config.yaml").is_file():
        raise InputError(f"{path}: neither a run folder with a config.yaml, nor a folder "
                         f"subsets/NAME with a scores.jsonl")
    folder = path / "subsets" / open_run(path).selection.name
    if not folder.is_dir():
        names = sorted(subset.name for subset in (path / "subsets").glob("*"))
        raise InputError(f"{path}/config.yaml, the last configuration that ran here, names the "
                         f"selection {folder.name}, which was not found: give one of "
                         f"{path}/subsets/ ({', '.join(names) or 'empty'})")
    others = sorted(scores.parent.name for scores in path.glob("subsets/*/scores.jsonl")
                    if scores.parent != folder)
    if others:
        print(f"{path}: the selection {folder.name}, of the last configuration that ran here; give "
              f"{path}/subsets/NAME for another ({', '.join(others)})")
    return folder


def read_selection(path: Path) -> Selection:
    """The selection in a folder subsets/NAME or a run folder."""
    folder = folder_of(path)
    try:
        rows = [(row["id"], *(row[name] for name in _COLUMNS))
                for row in artifacts.JsonlRows(folder / "scores.jsonl")]
        ids = [record_id for record_id, *_ in rows]
        values = np.array([row[1:] for row in rows], dtype=np.float64)                   # [N, 3]
        columns = dict(zip(_COLUMNS, values.reshape(-1, len(_COLUMNS)).T, strict=True))
        top = {record["id"] for record in json.loads((folder / "top.json").read_bytes())}
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise InputError(f"{folder}: not written by select ({error}); run select again") from None
    if len(set(ids)) < len(ids):
        raise InputError(f"{folder}/scores.jsonl: an id occurs twice")
    return Selection(folder, ids, columns, top)


def compare(a: Selection, b: Selection) -> dict:
    """Every number of the comparison, over the records that both have (n of them).

    chosen_a and chosen_b are the sizes of the top subsets, top_a and top_b how many of them are in
    both pools; shared, jaccard and by_chance are of these; spearman is None where a column does not
    vary; moved_far is a share of the records scored in both; moved_most has (id, rank in A, rank in
    B), ranks from 1, of those that moved. Raises InputError where no record is common.
    """
    place = {record_id: row for row, record_id in enumerate(b.ids)}
    rows_a = np.array([row for row, record_id in enumerate(a.ids) if record_id in place], dtype=int)
    ids = [a.ids[row] for row in rows_a]
    if not ids:
        raise InputError(f"{a.folder} and {b.folder} have no record id in common")
    rows_b = np.array([place[record_id] for record_id in ids])
    top_a, top_b = a.top & set(ids), b.top & set(ids)
    ranks = {name: _ranks(a.columns[name][rows_a], b.columns[name][rows_b]) for name in _COLUMNS}
    scored, rank_a, rank_b = ranks["score"]
    moved = np.abs(rank_a - rank_b)
    most = np.argsort(-moved, kind="stable")[: min(_LISTED, np.count_nonzero(moved))]
    return {
        "common": len(ids), "only_a": len(a.ids) - len(ids), "only_b": len(b.ids) - len(ids),
        "chosen_a": len(a.top), "chosen_b": len(b.top),
        "top_a": len(top_a), "top_b": len(top_b), "shared": len(top_a & top_b),
        "jaccard": len(top_a & top_b) / max(1, len(top_a | top_b)),
        "by_chance": len(top_a) * len(top_b) / len(ids), "scored": len(scored),
        "spearman": {name: correlation(left, right) for name, (_, left, right) in ranks.items()},
        "moved_far": float((moved > _FAR * len(scored)).mean()) if len(scored) else None,
        "moved_most": [(ids[scored[i]], float(rank_a[i]), float(rank_b[i])) for i in most],
    }


def _ranks(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows with a value on both sides, their ranks on each): 1 is the highest, ties share one."""
    from scipy.stats import rankdata

    rows = np.flatnonzero(~np.isnan(left) & ~np.isnan(right))
    return rows, rankdata(-left[rows]), rankdata(-right[rows])


def describe(a: Selection, b: Selection, figures: dict) -> list[str]:
    """The comparison in words."""
    spearman = ", ".join(f"{name} {'-' if value is None else format(value, '.3f')}"
                         for name, value in figures["spearman"].items())
    lines = [
        *(f"{name}: {side.folder}{_source_of(side)}" for name, side in (("A", a), ("B", b))),
        f"records: {figures['common']} in both, {figures['only_a']} only in A, "
        f"{figures['only_b']} only in B",
        f"top: {_chosen('a', figures)}, {_chosen('b', figures)}; {figures['shared']} are chosen by "
        f"both (Jaccard {figures['jaccard']:.3f}); chance would give {figures['by_chance']:.1f}",
        f"Spearman correlation over {figures['scored']} records scored in both: {spearman}"
        if figures["scored"] else "no record is scored in both",
    ]
    if figures["moved_far"] is not None:
        lines.append(f"rank by score moved by more than a tenth of the records: "
                     f"{figures['moved_far']:.0%}")
    if figures["moved_most"]:
        lines.append("moved most (rank in A, in B):")
        texts = _instructions(a, {record_id for record_id, *_ in figures["moved_most"]})
        lines += [f"{rank_a:9.0f}{rank_b:9.0f}  {record_id}: {texts.get(record_id, '')}"
                  for record_id, rank_a, rank_b in figures["moved_most"]]
    return lines


def _chosen(name: str, figures: dict) -> str:
    """How many records a selection chose, and how many of them are in both pools."""
    chosen, common = figures[f"chosen_{name}"], figures[f"top_{name}"]
    return f"{name.upper()} chose {chosen}" + (
        "" if chosen == common else f", of which {common} are in both pools")


def _source_of(selection: Selection) -> str:
    """Which chunks of vectors came from sampling, where it was asked to give them."""
    found = answer_vectors.sources(selection.folder.parent.parent)
    return "".join(f"; chunks {chunks} from {source}" for source, chunks in found.items())


def _instructions(selection: Selection, wanted: set[str]) -> dict[str, str]:
    """{id: beginning of its instruction}, where the run folder has its pool."""
    pool = selection.folder.parent.parent / "pool.jsonl"
    if not pool.is_file():
        return {}
    return {record["id"]: " ".join(record["instruction"].split())[:70]
            for record in artifacts.JsonlRows(pool) if record["id"] in wanted}


if __name__ == "__main__":
    run_script(main)
