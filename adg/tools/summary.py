"""Summarise a run: its most recent selection, or the one named.

    python -m adg.tools.summary runs/demo
    python -m adg.tools.summary runs/demo/subsets/random

Reads only files in the run folder. Parts whose stage has not run are not shown, nor those made from
inputs that differ from the files now present.
"""

import json
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from adg import geometry
from adg.base import artifacts
from adg.base.distributed import say
from adg.base.process import run_script
from adg.config import SUBSETS, Config
from adg.methods.method import words
from adg.pipeline.identity import Identities
from adg.pipeline.record import read_log, read_records
from adg.pipeline.sources import is_outside
from adg.pipeline.stages import STAGES, label_of, outputs_of
from adg.tools.run_folder import new_parser, open_selection

_EXAMPLES = 3  # records shown from each end of the ranking
_ANSWERS = 2  # answers shown of each
_BINS = 20  # up to here each bin is shown
_WIDTH = 100


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_DIR",
                        help="a run folder, or a folder subsets/NAME of one")
    say("\n".join(summarise(*open_selection(parser.parse_args().run))))


def summarise(run: Path, config: Config) -> list[str]:
    """The lines of the summary; its first heading names the selection."""
    log = last_lines(run, config)
    old = out_of_date(run, config)
    fits = {name: line for name, line in log.items() if name not in old}
    parts: dict[str, list[str]] = {}
    if old:
        parts["Out of date"] = textwrap.wrap(
            f"{', '.join(old.values())}: not made from what {run} holds now, so that their results "
            f"are not shown. Run these stages again.", _WIDTH)
    if "prepare" in fits:
        parts["Records"] = [_records(fits, config)]
    if "select" in fits and config.selection.method == "adg":
        subsets = run / "subsets" / config.selection.name
        scores = artifacts.JsonlRows(subsets / "scores.jsonl")
        parts["Dispersion, anisotropy, score"] = _spread(fits["select"], config)
        parts["Highest and lowest scores"] = _extremes(run, scores)
        parts["Subsets by bin"] = _by_bin(subsets, scores)
    selected, evaluated = (log.get(name, {}).get("time", "") for name in ("select", "evaluate"))
    if ((run / "tables.md").is_file() and not old.keys() & {"evaluate", "tables"}
            and evaluated >= selected):
        parts["Benchmarks"] = [(run / "tables.md").read_text(encoding="utf-8").rstrip()]
    parts |= {"Time": _times(log), "Files": _files(run, config)}
    headings = list(parts)
    headings[0] += f" (selection {config.selection.name})"
    return [line for heading, lines in zip(headings, parts.values(), strict=True)
            for line in (_title(heading), *lines)]


def last_lines(run: Path, config: Config) -> dict[str, dict]:
    """{stage: its last line of log.jsonl} for the names of this configuration."""
    labels = set(_labels(config).values())
    return {line["stage"]: line for line in read_log(run) if line["label"] in labels}


def out_of_date(run: Path, config: Config) -> dict[str, str]:
    """{stage: its label} of those that have finished, but not with what the run folder holds now.

    That is a stage one input of which is another now than its record says, one that is being redone
    and has not ended, and one that works on what such a stage wrote. What lies outside the run
    folder, or has been removed from it to save disk, is not looked at.
    """
    identities, records, log = Identities(run, config), read_records(run), last_lines(run, config)
    stale: dict[str, str] = {}
    outputs = set() if (run / "pool.jsonl").is_file() else {"pool.jsonl"}  # that fit nothing
    for name, label in _labels(config).items():
        if name not in log:
            continue
        record = records.get(label, {"state": "lost", "inputs": {}})
        inputs = {path: known for path, known in record["inputs"].items() if not is_outside(path)}
        if (record["state"] != "finished" or outputs & inputs.keys() or any(
                (now := identities.artefact(path)) and now["sha256"] != known["sha256"]
                for path, known in inputs.items())):
            stale[name] = label
            outputs |= set(outputs_of(name, config))
    return stale


def _labels(config: Config) -> dict[str, str]:
    """{stage: its label} for the names of this configuration."""
    return {name: label_of(name, config) for name in STAGES}


def _title(text: str) -> str:
    return f"\n== {text} " + "=" * max(0, _WIDTH - len(text) - 4)


def _records(log: dict[str, dict], config: Config) -> str:
    prepare = log["prepare"]
    left_out = [(number, kind) for kind in ("rejected", "dropped_duplicates")
                if (number := prepare.get(kind)) or kind == "rejected"]
    text = ", ".join([f"{prepare['records'] + sum(number for number, _ in left_out)} read",
                      *(f"{number} {kind.replace('_', ' ')}" for number, kind in left_out),
                      f"{prepare['records']} in the pool"])
    if "select" in log:
        sizes = ", ".join(f"{name} {size}" for name, size in log["select"]["subset_sizes"].items())
        if "scored" in log["select"]:
            text += f"; {log['select']['scored']} scored"
        if "dropped" in log["select"]:
            text += (f"; {log['select']['kept']} kept by {config.selection.method}, dropped: "
                     + words(log["select"]["dropped"]))
        text += f"; {sizes}"
    return text


def _spread(line: dict, config: Config) -> list[str]:
    rows = [f"{'':12}{'min':>8}{'5%':>8}{'25%':>8}{'median':>8}{'75%':>8}{'95%':>8}{'max':>8}"]
    for name, quantiles in line["quantiles"].items():
        rows.append(f"{name:12}" + "".join(f"{value:8.4f}" for value in quantiles.values()))
    settings, shares = config.selection, line.get("variance_share", {})
    if None in shares.values():
        return [*rows, "all scores are equal"]
    decides = (f"; share of the score's variance: dispersion {shares['dispersion']:.0%}, "
               f"anisotropy {shares['anisotropy']:.0%}: {max(shares, key=shares.get)} decides"
               if shares else "")
    formula = geometry.formula(settings.score, settings.anisotropy_weight, "dispersion",
                               "anisotropy")
    correlations = ", ".join(f"{pair.replace('-', ' and ')} "
                             f"{'-' if value is None else format(value, '.2f')}"
                             for pair, value in line["correlation"].items())
    return [*rows, f"score = {formula}{decides}",
            f"correlations: {correlations}",
            f"of the {line['subset_sizes']['top']} records of top, "
            f"{line['top_shared_with']['dispersion_alone']} are in that of dispersion alone, "
            f"{line['top_shared_with']['anisotropy_alone']} in that of anisotropy alone"]


def _extremes(run: Path, scores: artifacts.JsonlRows) -> list[str]:
    values = np.array([row["score"] for row in scores], dtype=np.float64)  # null: NaN, sorted last
    ranking = np.argsort(-values, kind="stable")[: np.count_nonzero(~np.isnan(values))].tolist()
    shown = dict.fromkeys(ranking[:_EXAMPLES] + ranking[-_EXAMPLES:])
    pool = artifacts.JsonlRows(run / "pool.jsonl")
    answers = artifacts.JsonlRows(run / "answers") if (run / "answers").is_dir() else None
    lines = []
    for row in shown:
        (record, _), (score, _) = pool.row(row), scores.row(row)
        lines.append(f"{score['score']:.4f}  D {score['dispersion']:.4f}  "
                     f"I {score['anisotropy']:.4f}  {score['id']}: "
                     + _short(record["instruction"], 60))
        if answers is not None:
            texts = answers.row(row)[0]["generated_answers"]
            lines += [f"        - {_short(text, _WIDTH - 10)}" for text in texts[:_ANSWERS]]
    return lines


def _short(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder=" ...") or "(empty)"


def _by_bin(subsets: Path, scores: artifacts.JsonlRows) -> list[str]:
    counts = {"records": Counter(row["bin"] for row in scores)}
    bins = sorted(counts["records"])
    if len(bins) > _BINS:
        sizes = counts["records"].values()
        return [f"{len(bins)} bins of {min(sizes)} to {max(sizes)} records; "
                f"see {subsets / 'scores.jsonl'}"]
    bin_of = {row["id"]: row["bin"] for row in scores}
    for name in SUBSETS:
        chosen = json.loads((subsets / f"{name}.json").read_text(encoding="utf-8"))
        counts[name] = Counter(bin_of.get(record["id"]) for record in chosen)
    rows = [f"{'bin':10}" + "".join(f"{bin_:>5}" for bin_ in bins) + f"{'all':>7}"]
    for name, counter in counts.items():
        rows.append(f"{name:10}" + "".join(f"{counter[bin_]:>5}" for bin_ in bins)
                    + f"{counter.total():>7}")
    return rows


def _times(log: dict[str, dict]) -> list[str]:
    rows = [f"{name:10}{log[name]['seconds']:9.1f} s{log[name]['records']:8} records"
            for name in STAGES if name in log]
    return [*rows, f"{'together':10}{sum(line['seconds'] for line in log.values()):9.1f} s"]


def _files(run: Path, config: Config) -> list[str]:
    paths = {name: [str(run / path) for path in outputs_of(name, config) if (run / path).exists()]
             for name in STAGES}
    paths["every"] = [str(run / "config.yaml"), str(run / "log.jsonl")]
    return [line for name, of_stage in paths.items() if of_stage
            for line in _listed(name, of_stage)]


def _listed(name: str, paths: list[str]) -> Iterator[str]:
    """The paths of a stage, in lines that break between two of them alone."""
    line = f"{name:10}{paths[0]}"
    for path in paths[1:]:
        if len(line) + len(path) + 3 > _WIDTH:
            yield f"{line},"
            line = f"{'':10}{path}"
        else:
            line += f", {path}"
    yield line


if __name__ == "__main__":
    run_script(main)
