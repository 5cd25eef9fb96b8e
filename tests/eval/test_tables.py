import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from adg.base import artifacts
from adg.base.errors import InputError
from adg.benchmarks import BENCHMARKS, main_benchmarks
from eval import tables
from eval.formats import as_text
from eval.layout import as_table, collect
from eval.published import read_paper
from eval.scores import group_scores, group_stderrs

MAIN = main_benchmarks()


def test_groups_and_average_are_the_papers():
    scores = {"bbh": 60.0, "gsm8k": 40.0, "mmlu": 70.0, "truthfulqa_mc2": 50.0, "mbpp": 30.0,
              "humaneval": 50.0}
    assert group_scores(scores) == {"Reasoning": 50.0, "Knowledge": 60.0, "Code": 40.0,
                                    "Average": 50.0}
    del scores["mbpp"]
    assert group_scores(scores)["Code"] is None and group_scores(scores)["Average"] is None
    assert [BENCHMARKS[name].shots for name in MAIN] == [3, 8, 4, 0, 1, 0]


def test_standard_errors_of_means_follow_their_parts():
    stderrs = {"bbh": 3.0, "gsm8k": 4.0, "mmlu": 1.0, "truthfulqa_mc2": 1.0, "mbpp": None}
    found = group_stderrs(stderrs)
    assert found["Reasoning"] == 2.5 and found["Knowledge"] == pytest.approx(2**0.5 / 2)
    assert found["Code"] is None and found["Average"] is None


def test_published_averages_are_the_means_of_their_groups():
    for methods in read_paper().numbers["main"].values():
        for pools in methods.values():
            for *groups, average in pools.values():
                # one row is 0.037 off in print
                assert sum(groups) / 3 == pytest.approx(average, abs=0.04)


def evaluated(run: Path, name: str, scores: dict, questions: dict, *, seed: int = 42,
              budget: int = 10000, model: str = "meta-llama/Meta-Llama-3-8B", method: str = "adg",
              pool: str = "alpaca_gpt4_data.json", num_answers: int = 5, weight: float = 0.4,
              epochs: int = 5) -> None:
    """What the stages leave of an evaluated model, as far as tables read it."""
    stderrs = dict.fromkeys(scores, 1.0)
    artifacts.write_json(run / "eval" / name / "scores.json", {
        "scores": scores, "groups": group_scores(scores), "questions": questions,
        "stderr": stderrs, "group_stderr": group_stderrs(stderrs)})
    selection, subset = name.rsplit("-", 1)
    made = ("pool.jsonl", "answer_grams/") if method == "adg" else ("pool.jsonl",)
    records = {
        "prepare": {"inputs": {"pool.path": {"name": pool}}, "outputs": {"pool.jsonl": {}}},
        "sample": {"parameters": {"generation.num_answers": num_answers, "seed": seed},
                   "inputs": {"pool.jsonl": {}, "model": {"name": model}},
                   "outputs": {"answers/": {}}},
        "embed": {"inputs": {"pool.jsonl": {}, "answers/": {}}, "outputs": {"answer_grams/": {}}},
        f"select-{selection}": {
            "inputs": dict.fromkeys(made, {}), "parameters": {
                "selection.method": method, "selection.budget": budget, "seed": seed,
                "selection.anisotropy_weight": weight},
            "outputs": {f"subsets/{selection}/{name}.json": {}
                        for name in ("top", "middle", "bottom")}},
        f"finetune-{name}": {"parameters": {"seed": seed, "train.epochs": epochs}, "inputs": {
            f"subsets/{selection}/{subset}.json": {}, "train.model": {"name": model}}},
    }
    for label, record in records.items():
        artifacts.write_json(run / "provenance" / f"{label}.json",
                             record | {"stage": label.replace("-", " ", 1)})


def whole(value: float) -> tuple[dict, dict]:
    """(the same score on every benchmark of the main table, all of their questions)."""
    return (dict.fromkeys(MAIN, value), {name: BENCHMARKS[name].size for name in MAIN})


def cells(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()
            if line.startswith("|")]


def test_a_row_says_what_it_is_and_lies_beside_its_published_cell(tmp_path: Path, stage, capsys):
    evaluated(tmp_path / "mine", "adg-top", *whole(51.0))
    evaluated(tmp_path / "mine", "adg-bottom", {"bbh": 12.0, "gsm8k": 5.0},
              {"bbh": 9, "gsm8k": 1319})
    stage(tables, tmp_path / "mine")
    table = cells(capsys.readouterr().out)
    assert table[0] == ["", "method", "backbone", "pool", "budget", "BBH", "GSM8K", "MMLU",
                        "TruthfulQA", "MBPP", "HumanEval", "Reasoning", "Knowledge", "Code",
                        "Average"]
    bottom, top, *paper = table[2:]
    assert bottom == [
        "mine: adg-bottom", "ADG, bottom", "LLaMA3-8B", "Alpaca-GPT4", "10,000", "12.00* se 1.00",
        "5.00 se 1.00", "–", "–", "–", "–", "8.50* se 0.71", "–", "–", "–"]
    assert top[:5] == ["mine: adg-top", "ADG", "LLaMA3-8B", "Alpaca-GPT4", "10,000"]
    assert top[5:] == ["51.00 se 1.00", "**51.00** se 1.00", *["51.00 se 1.00"] * 4,
                       "**51.00** (+0.89) se 0.71", "51.00 (-9.31) se 0.71",
                       "**51.00** (+8.86) se 0.71", "**51.00** (+0.15) se 0.41"]
    assert len(paper) == 8 and {line[2] for line in paper} == {"LLaMA3-8B"}
    assert paper[-1][5:] == ["–"] * 6 + ["50.11", "**60.31**", "42.14", "50.85"]


def test_seeds_of_one_cell_become_a_mean_and_other_settings_do_not(tmp_path: Path):
    for seed, value in ((1, 50.0), (2, 52.0), (3, 54.0)):
        evaluated(tmp_path / f"s{seed}", "adg-top", *whole(value), seed=seed)
    evaluated(tmp_path / "again", "adg-top", *whole(60.0), seed=3)
    evaluated(tmp_path / "longer", "adg-top", *whole(70.0), seed=4, epochs=6)
    evaluated(tmp_path / "few", "adg-top", *whole(30.0), num_answers=3, weight=0.0)
    evaluated(tmp_path / "other", "random-top", *whole(40.0), method="random",
              pool="mine.jsonl", model="x/y")
    rows, _ = collect([tmp_path / name for name in
                              ("s1", "s2", "s3", "again", "longer", "few", "other")])
    ours = [row for row in rows if row.source == "ours"]
    assert [len(row.names) for row in ours] == [3, 1, 1, 1, 1]
    first = ours[0].cells["Average"]
    assert (first.value, first.deviation) == (52.0, 2.0)
    assert first.delta == pytest.approx(52.0 - 50.85) and first.stderr is None
    assert ours[3].design.variant == "K = 3, lambda = 0"
    assert ours[4].design == ("Random", "y", "mine.jsonl", "10,000", "")
    assert ours[4].cells["Average"].delta is None and ours[4].cells["bbh"].stderr == 1.0
    assert "52.00 ± 2.00 (+1.15)" in as_text(as_table(ours, []))


def test_runs_of_other_pools_or_models_are_no_seeds_of_one_cell(tmp_path: Path):
    given = {}
    for seed, (name, changed) in enumerate({
            "one": {}, "two": {}, "pool": {("prepare", "pool.path")},
            "drawer": {("sample", "model")}, "tuned": {("finetune-adg-top", "train.model")},
            "hand": {("select-adg", "pool.jsonl")}, "zeroed": {}}.items()):
        run = tmp_path / name
        evaluated(run, "adg-top", *whole(50.0 + seed), seed=seed)
        for label, source in (("prepare", "pool.path"), ("sample", "model"),
                              ("finetune-adg-top", "train.model"), ("select-adg", "pool.jsonl")):
            path = run / f"provenance/{label}.json"
            record = json.loads(path.read_text())
            record.setdefault("inputs", {}).setdefault(source, {})["sha256"] = (
                "other" if (label, source) in changed else "same")
            if (label, name) in (("sample", "two"), ("sample", "zeroed")):  # others took none
                record["inputs"]["model"]["whole"] = name
            record["inputs"]["eval.data_dir"] = {"sha256": name}  # decides no subset and no model
            artifacts.write_json(path, record)
        given[name] = run
    rows, _ = collect(list(given.values()))
    assert [row.names for row in rows if row.source == "ours"] == [
        ("one: adg-top", "two: adg-top"), ("pool: adg-top",), ("drawer: adg-top",),
        ("tuned: adg-top",), ("hand: adg-top",), ("zeroed: adg-top",)]
    assert len({row.design for row in rows if row.source == "ours"}) == 1


def test_other_settings_than_the_papers_are_said_and_have_no_difference(tmp_path: Path):
    evaluated(tmp_path / "paper", "adg-top", *whole(50.0))
    evaluated(tmp_path / "short", "adg-top", *whole(50.0), epochs=1)
    artifacts.write_json(tmp_path / "paper/provenance/prepare.json", {
        "stage": "prepare", "parameters": {"pool.encoding": "auto", "chunk_size": 9},  # no setting
        "inputs": {"pool.path": {"name": "alpaca_gpt4_data.json"}}, "outputs": {"pool.jsonl": {}}})
    rows, notes = collect([tmp_path / "paper", tmp_path / "short"])
    deltas = {row.names[0]: row.cells["Average"].delta for row in rows if row.source == "ours"}
    assert deltas["paper: adg-top"] == pytest.approx(-0.85) and deltas["short: adg-top"] is None
    own = [note for note in notes if "settings other than" in note]
    assert len(own) == 1 and own[0].startswith("short: adg-top: ")
    assert own[0].endswith("train.epochs 1 (5).")
    path = tmp_path / "paper/provenance/sample.json"
    artifacts.write_json(path, json.loads(path.read_text()) | {
        "parameters": {"generation.num_answers": 5, "seed": 1, "generation.temperature": 0.7,
                       "generation.top_p": 0.9}})  # and no top-k yet
    artifacts.write_json(tmp_path / "paper/provenance/evaluate-adg-top.json", {
        "stage": "evaluate adg-top", "parameters": {"eval.backend": "hf"}})  # the same numbers
    path = tmp_path / "paper/provenance/prepare.json"
    artifacts.write_json(path, json.loads(path.read_text()) | {"parameters": {"pool.limit": 9}})
    rows, notes = collect([tmp_path / "paper"])
    assert rows[0].differs == (
        "pool.limit 9 (null)", "generation.temperature 0.7 (1.4)", "generation.top_k null (50)")


def test_models_go_by_their_names_whatever_the_revision_or_cache(tmp_path: Path):
    for name, model in (("a", "meta-llama/Meta-Llama-3-8B@62bd457"), ("b", str(
            Path("/x/hub/models--meta-llama--Meta-Llama-3-8B/snapshots/62bd457")))):
        evaluated(tmp_path / name, "adg-top", *whole(50.0), model=model)
    rows, _ = collect([tmp_path / "a", tmp_path / "b"])
    assert {row.design.backbone for row in rows if row.source == "ours"} == {"LLaMA3-8B"}


def test_a_rows_method_says_which_model_measured(tmp_path: Path):
    for name, measurer in (("ifd", "meta-llama/Meta-Llama-3-8B"), ("ifd_pre", "x/pre_experience"),
                           ("superfiltering", "openai-community/gpt2")):
        run = tmp_path / name
        evaluated(run, f"{name}-top", *whole(50.0), method=name.removesuffix("_pre"))
        path = run / f"provenance/select-{name}.json"
        artifacts.write_json(path, json.loads(path.read_text()) | {
            "inputs": {"pool.jsonl": {}, f"measures/{name}/": {}}})
        artifacts.write_json(run / f"provenance/measure-{name}.json", {
            "stage": f"measure {name}", "parameters": {"selection.method": name},
            "inputs": {"measure.model": {"name": measurer}},
            "outputs": {f"measures/{name}/": {}}})
    evaluated(tmp_path / "pick", "pre_experience-top", *whole(50.0), method="pre_experience")
    names = ("ifd", "ifd_pre", "superfiltering", "pick")
    rows, _ = collect([tmp_path / name for name in names])
    ours = [row.design for row in rows if row.source == "ours"]
    assert [(own.method, own.budget, own.variant) for own in ours] == [
        ("IFD", "10,000", ""), ("IFD", "10,000", "measured by pre_experience"),
        ("SuperFiltering", "10,000", ""), ("Pre-experience (IFD)", "", "")]
    delta = [row.cells["Average"].delta is not None for row in rows if row.source == "ours"]
    assert delta == [True, False, True, False]


def test_four_formats_hold_the_same_numbers(tmp_path: Path, stage, capsys):
    evaluated(tmp_path / "a_b", "adg-top", *whole(51.0))
    printed = {}
    for kind in tables.FORMATS:
        stage(tables, tmp_path / "a_b", "--format", kind)
        printed[kind] = capsys.readouterr().out
    for text in printed.values():
        assert "ADG" in text and "50.85" in text and "51.0" in text
    assert r"a\_b: adg-top & ADG & LLaMA3-8B" in re.sub(" +", " ", printed["latex"])
    assert "51.00 ($-$9.31) se 0.71" in printed["latex"] and r"\bottomrule" in printed["latex"]
    assert r"\textbf{51.00} (+0.15) se 0.41" in printed["latex"]
    assert "**51.00** (+0.15)" in printed["markdown"] and "**" not in printed["text"]
    assert "se: standard error of a single run" in printed["text"]
    row = json.loads(printed["json"])["rows"][0]
    assert row["numbers"]["Average"]["delta"] == pytest.approx(0.15)
    assert row["numbers"]["bbh"]["stderr"] == 1.0
    widths = {len(line) for line in printed["markdown"].splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_the_chinese_pool_has_its_own_columns(tmp_path: Path):
    evaluated(tmp_path / "zh", "adg-top", {"cmmlu": 46.0, "ceval-valid": 45.0},
              {"cmmlu": 11582, "ceval-valid": 1346}, pool="alpaca_gpt4_data_zh.json")
    rows, notes = collect([tmp_path / "zh"])
    text = as_text(as_table(rows, notes))
    assert "CMMLU" in text and "C-Eval" in text and "44.02" in text


def test_several_runs_share_a_table_and_an_empty_one_is_named(tmp_path: Path, stage, capsys):
    for name in ("a", "b"):
        artifacts.write_json(tmp_path / name / "eval/base/scores.json", {
            "scores": {"bbh": 1.0}, "groups": group_scores({"bbh": 1.0}),
            "questions": {"bbh": 6511}})
    stage(tables, tmp_path / "a", tmp_path / "b")
    printed = capsys.readouterr().out
    assert "a: base" in printed and "b: base" in printed and "*" not in printed
    with pytest.raises(InputError, match="none/ not found"):
        stage(tables, tmp_path / "none")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="run evaluate first"):
        stage(tables, tmp_path / "none")


def test_columns_rows_and_the_papers_rows_are_chosen(tmp_path: Path, stage, capsys):
    run = tmp_path / "run"
    for name, value in (("random-top", 40.0), ("adg-top", 41.0)):
        evaluated(run, name, {"gsm8k": value, "mmlu": 50.0}, {"gsm8k": 20, "mmlu": 14042},
                  method=name.split("-")[0], model="x/small")

    def shown(*arguments: str) -> tuple[list[list[str]], str]:
        stage(tables, run, *arguments)
        printed = capsys.readouterr().out
        return cells(printed), printed

    table, printed = shown()
    assert table[0][5:] == ["GSM8K", "MMLU"] and len(table) == 4
    assert [line[1] for line in table[2:]] == ["ADG", "Random"]
    assert table[2][5:] == ["**41.00**\\* se 1.00", "50.00 se 1.00"]  # equal: none is the best
    assert "None of the paper's rows is of this backbone and pool: --paper shows some." in printed
    table, printed = shown("--paper")
    assert table[0][5:] == ["GSM8K", "MMLU", "Reasoning", "Knowledge", "Code", "Average"]
    assert [line[0] for line in table[4:]] == ["paper"] * 4 and "None of" not in printed
    assert table[2][5] == "**41.00**\\* se 1.00"
    table, _ = shown("--rows", "Random", "run: adg-top", "--benchmarks", "mmlu", "GSM8K", "BBH")
    assert table[0][5:] == ["MMLU", "GSM8K", "BBH"]
    assert [line[1] for line in table[2:]] == ["Random", "ADG"] and table[2][-1] == "–"
    assert len(shown("--rows", "adg-top")[0]) == 3
    with pytest.raises(InputError, match=r"no row is called x; there are: run: adg-top \(ADG\); "):
        shown("--rows", "x")
    with pytest.raises(SystemExit):
        shown("--benchmarks", "arc")
    evaluated(tmp_path / "cell", "adg-top", *whole(51.0))
    rows, _ = collect([tmp_path / "cell"], paper=False)
    assert [row.source for row in rows] == ["ours"]


def test_draws_within_a_run_folder_are_seeds_of_one_row(tmp_path: Path):
    run = tmp_path / "run"
    for seed, value in ((42, 50.0), (43, 52.0), (44, 54.0)):
        selection = "random" if seed == 42 else f"random-seed{seed}"
        evaluated(run, f"{selection}-top", *whole(value), method="random")
        for label, key in ((f"select-{selection}", "selection.seed"),
                           (f"finetune-{selection}-top", "train.seed")):
            path = run / f"provenance/{label}.json"
            record = json.loads(path.read_text())
            record["parameters"][key] = None if seed == 42 else seed
            artifacts.write_json(path, record)
    rows, _ = collect([run], paper=False)
    assert len(rows) == 1 and len(rows[0].names) == 3 and rows[0].design.method == "Random"
    assert (rows[0].cells["Average"].value, rows[0].cells["Average"].deviation) == (52.0, 2.0)
    assert not rows[0].differs  # from the paper's settings


def test_a_caption_names_the_benchmarks_of_the_table(tmp_path: Path, stage, capsys):
    run = tmp_path / "run"
    evaluated(run, "adg-top", *whole(51.0))
    evaluated(run, "random-top", {"gsm8k": 40.0}, {"gsm8k": 1319}, method="random")

    def caption(*arguments: str) -> str:
        stage(tables, run, "--format", "latex", "--benchmarks", *arguments)
        return re.search(r"\\caption{(.*)}", capsys.readouterr().out)[1]

    assert caption("gsm8k", "truthfulqa_mc2", "Average").startswith(
        "Results in percent: GSM8K (8-shot, exact match), TruthfulQA (0-shot, accuracy). Average: "
        "mean of the groups' means. se: ")
    assert caption("Reasoning").startswith(
        "Results in percent: BBH (3-shot, exact match), GSM8K (8-shot, exact match). se: ")
    assert caption("Average", "--no-paper").startswith("Results in percent. Average: ")


def test_columns_without_a_number_are_shown_where_they_are_asked_for(tmp_path: Path, stage, capsys):
    run = tmp_path / "run"
    evaluated(run, "adg-top", *whole(51.0))
    evaluated(run, "random-top", {"gsm8k": 40.0}, {"gsm8k": 1319}, method="random")

    def head(*arguments: str) -> list[str]:
        stage(tables, run, "--rows", "random-top", *arguments)
        return cells(capsys.readouterr().out)[0][5:]

    assert head() == ["GSM8K"]
    assert head("--benchmarks", "gsm8k", "Average") == ["GSM8K", "Average"]


def test_notes_speak_of_the_marks_that_are_shown(tmp_path: Path, stage, capsys):
    run = tmp_path / "run"
    evaluated(run, "adg-top", {"gsm8k": 41.0, "bbh": 50.0}, {"gsm8k": 20, "bbh": 6511},
              model="x/small")
    evaluated(run, "adg-bottom", {"bbh": 50.0}, {"bbh": 6511}, model="x/small")
    for seed in (1, 2):
        evaluated(tmp_path / f"s{seed}", "adg-top", *whole(50.0 + seed), seed=seed)

    def notes(*arguments: str | Path) -> str:
        stage(tables, *arguments, "--format", "text")
        return capsys.readouterr().out.split("\n\n")[1]

    own = notes(run, "--benchmarks", "bbh", "--no-paper")
    assert own == ("In percent. se: standard error of a single run over its questions.\n")
    own = notes(run, "--benchmarks", "bbh", "gsm8k", "--no-paper")
    assert "–: not given or not run.\n* on a part of the benchmark (questions: GSM8K 20 of" in own
    assert "*" in notes(run, "--benchmarks", "Reasoning", "--no-paper")
    seeds = tmp_path / "s1", tmp_path / "s2"
    assert notes(*seeds, "--benchmarks", "bbh") == "In percent. ±: standard deviation over seeds.\n"
    own = notes(*seeds, "--benchmarks", "bbh", "Average")
    assert own == (
        "In percent. In brackets: difference to the published number of the same cell. "
        "±: standard deviation over seeds. –: not given or not run; the paper gives groups only.\n")


def test_a_run_that_is_given_twice_is_listed_once(tmp_path: Path, stage, capsys):
    evaluated(tmp_path / "run", "adg-top", *whole(51.0), model="x/small")
    stage(tables, tmp_path / "run", tmp_path / "run/eval/..", "--benchmarks", "bbh")
    assert len(cells(capsys.readouterr().out)) == 3


def test_the_best_is_by_the_digits_that_are_printed(tmp_path: Path, stage, capsys):
    for name, value in (("a", 50.001), ("b", 50.004), ("c", 49.0)):
        evaluated(tmp_path / name, "adg-top", {"bbh": value}, {"bbh": 6511}, model="x/small")
    stage(tables, tmp_path / "a", tmp_path / "b")
    assert "**" not in capsys.readouterr().out
    stage(tables, *(tmp_path / name for name in "abc"))
    assert capsys.readouterr().out.count("**50.00**") == 2


LATEX = r"""\documentclass{article}
\usepackage{booktabs}
\begin{document}
%s
\end{document}
"""


def test_latex_compiles_whatever_the_names(tmp_path: Path, stage, capsys):
    """By pdflatex where there is one; what would stop it is looked for in any case."""
    run = tmp_path / r"[a_b]&50%#{~^}\<x>$|"
    evaluated(run, "adg-top", *whole(51.0), model="x/small_1", pool="50%_of_#1.jsonl")
    evaluated(run, "adg-bottom", {"bbh": 12.0}, {"bbh": 9}, model="x/small_1")
    stage(tables, run, "--format", "latex", "--paper")
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[:3] == [r"% \usepackage{booktabs}", r"\begin{table}", r"\centering"]
    assert lines[3].startswith(
        r"\caption{Results in percent: BBH (3-shot, exact match), GSM8K (8-shot, exact match), "
        r"MMLU (4-shot, accuracy), TruthfulQA (0-shot, accuracy), MBPP (1-shot, pass@1), HumanEval "
        r"(0-shot, pass@1). Average: mean of the groups' means. *: on a part of the questions "
        r"(BBH 9 of 6511). se: standard error over the questions of a single run (seed 42).")
    assert lines[4] == r"\label{tab:results}"
    name = r"[a\_b]\&50\%\#\{\textasciitilde{}\textasciicircum{}\}\textbackslash{}$<$x$>$\$$|$"
    rows = [line for line in lines if line.endswith(r" \\")]
    assert re.sub(" +", " ", rows[1]).startswith(
        rf"{{}}{name}: adg-bottom & ADG, bottom & small\_1 & ")
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    stage(tables, run, "--format", "latex", "--caption", r"Mine, $\lambda = 0.4$", "--label", "t")
    assert "\\caption{Mine, $\\lambda = 0.4$}\n\\label{t}\n" in capsys.readouterr().out
    if shutil.which("pdflatex"):
        (tmp_path / "table.tex").write_text(LATEX % printed)
        made = subprocess.run(["pdflatex", "-halt-on-error", "table.tex"], cwd=tmp_path,
                              capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert made.returncode == 0, made.stdout


def test_stdout_is_the_tables_alone(config_file, tmp_path: Path, stage, capsys):
    run = tmp_path / "run"
    evaluated(run, "adg-top", *whole(51.0))
    (run / "config.yaml").write_text(config_file().read_text())
    for said in ("1 records in", "done before"):
        stage(tables, run, "--format", "json")
        printed = capsys.readouterr()
        assert json.loads(printed.out)["rows"][0]["method"] == "ADG" and said in printed.err
    before = (run / "tables.md").read_text()
    (run / "tables.md").unlink()
    stage(tables, run, "--format", "latex", "--benchmarks", "mmlu", "--no-paper")
    assert (run / "tables.md").read_text() == before and "BBH" in before  # without options
    assert capsys.readouterr().out.startswith(
        "% \\usepackage{booktabs}\n\\begin{table}\n\\centering\n"
        "\\caption{Results in percent: MMLU (4-shot, accuracy). se")
    for arguments, message in (((run, "--caption", "x"), "--caption needs --format latex"),
                               ((run, run, "--paired", "--rows", "x"), "no meaning with --paired")):
        with pytest.raises(InputError, match=message):
            stage(tables, *arguments)
