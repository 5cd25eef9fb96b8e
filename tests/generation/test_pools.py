"""Pools of every kind and schema, and a corpus of broken ones: what is wrong is named, what is good
is kept, and nothing is passed over in silence."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import RECORDS

from adg.base import artifacts
from adg.base.errors import InputError
from adg.config import load_config
from adg.config_sections import POOL_SCHEMAS
from generation import json_files, prepare_pool, schemas, text_files

GOOD = [{"id": f"g{i}", "instruction": f"Say {i}.", "output": f"{i}, é"} for i in range(3)]


def lines(*rows: object) -> bytes:
    """JSONL of dicts, and of bytes as they are."""
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n"
                    for row in rows)


def around(bad: object) -> bytes:
    """A bad line between good ones: it stands on line 2."""
    return lines(GOOD[0], bad, *GOOD[1:])


def record(**changes: object) -> dict:
    base = {"id": "bad", "instruction": "Name it.", "input": "", "output": "It."} | changes
    return {key: value for key, value in base.items() if value is not ...}


def column_text(*rows: dict, separator: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", "instruction", "output"], delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


LONG = "x" * 3_000_000
# name: (file's name, content, place of the one rejected record or None, its reason)
REJECTED: dict[str, tuple[str, bytes, dict | None, str]] = {
    name: ("pool.jsonl", around(bad), {"line": 2}, reason) for name, (bad, reason) in {
        "broken json": (b'{"instruction": "a"', "not valid JSON (Expecting"),
        "single quotes": (b"{'instruction': 'a'}", "not valid JSON"),
        "two objects": (b'{"a": 1} {"b": 2}', "not valid JSON (Extra data"),
        "trailing comma": (b'{"instruction": "a",}', "not valid JSON"),
        "python literal": (b'{"instruction": None}', "not valid JSON"),
        "comment": (b"# a comment", "not valid JSON"),
        "raw newline escaped wrongly": (b'{"instruction": "a\\x"}', "not valid JSON"),
        "raw tab in a string": (b'{"instruction": "a\tb", "output": "c"}', "not valid JSON"),
        "raw NUL": (b'{"instruction": "a\0b", "output": "c"}', "not valid JSON"),
        "thousands of brackets": (b"[" * 100_000, "not valid JSON"),
        "latin-1": ('{"instruction": "é"}'.encode("latin-1"), "not UTF-8"),
        "utf-16": ('{"instruction": "a"}'.encode("utf-16-le"), "not valid JSON"),
        "cut in a character": ('{"instruction": "é'.encode()[:-1], "not UTF-8"),
        "a number": (b"7", "a int, not an object"),
        "null": (b"null", "a NoneType, not an object"),
        "a string": (b'"text"', "a str, not an object"),
        "a list": (b"[1, 2]", "a list, not an object"),
        "an empty object": ({}, "instruction is missing"),
        "no instruction": (record(instruction=...), "instruction is missing"),
        "no output": (record(output=...), "output is missing"),
        "instruction null": (record(instruction=None), "instruction is not a string"),
        "output null": (record(output=None), "output is not a string"),
        "instruction a number": (record(instruction=3), "instruction is not a string"),
        "output a list": (record(output=["a"]), "output is not a string"),
        "input a list": (record(input=["a"]), "input is not a string"),
        "input an object": (record(input={"a": 1}), "input is not a string"),
        "empty instruction": (record(instruction=""), "instruction is empty"),
        "blank instruction": (record(instruction=" \n\t"), "instruction is empty"),
        "blank output": (record(output="\u3000"), "output is empty"),
        "NUL in the instruction": (record(instruction="a\0"), "instruction holds a NUL character"),
        "NUL in the input": (record(input="\0"), "input holds a NUL character"),
        "NUL in the output": (record(output="a\0b"), "output holds a NUL character"),
        "lone surrogate": (b'{"instruction": "a \\ud800", "output": "b"}', "cannot be written"),
        "surrogate in another field": (b'{"instruction": "a", "output": "b", "c": "\\udfff"}',
                                       "cannot be written"),
        "NaN": (b'{"instruction": "a", "output": "b", "score": NaN}', "cannot be written"),
        "infinity": (b'{"instruction": "a", "output": "b", "score": -Infinity}',
                     "cannot be written"),
        "an empty id": (record(id=""), "id is empty"),
        "a blank id": (record(id=" "), "id is empty"),
        "a truth value for an id": (record(id=True), "id is a bool, not a string or number"),
        "a list for an id": (record(id=[1, 2]), "id is a list, not a string or number"),
        "an object for an id": (record(id={"a": 1}), "id is a dict, not a string or number"),
        "a key twice": (b'{"instruction": "first", "instruction": "second", "output": "a"}',
                        "a key twice in one object (instruction)"),
        "a key twice deep inside": (
            b'{"instruction": "a", "output": "b", "c": [{"d": 1, "e": 2, "d": 1}]}',
            "a key twice in one object (d)"),
        "an id twice": (record(id="g0"), "its id is another's (the id 'g0' is that of"),
        "a long broken line": (b'{"instruction": "' + LONG.encode(), "not valid JSON"),
    }.items()
} | {
    "last line without its end": ("pool.jsonl", lines(*GOOD)[:-1] + b'\n{"instruction"',
                                  {"line": 4}, "not valid JSON"),
    "gzip with a broken line": ("pool.jsonl.gz", gzip.compress(around(b"{")), {"line": 2},
                                "not valid JSON"),
    "array with a number": ("pool.json", json.dumps([GOOD[0], 5, *GOOD[1:]]).encode(),
                            {"element": 2}, "a int, not an object"),
    "array with an empty object": ("pool.json", json.dumps([GOOD[0], {}, *GOOD[1:]]).encode(),
                                   {"element": 2}, "instruction is missing"),
    "array with a key twice": (
        "pool.json", json.dumps([GOOD[0], "?", *GOOD[1:]]).encode().replace(
            b'"?"', b'{"output": "a", "instruction": "b", "output": "c"}'), {"element": 2},
        "a key twice in one object (output)"),
    "csv with a row that is not UTF-8": (
        "pool.csv", column_text(*GOOD[:1]) + "bad,Wo?,Die größte Stadt ist schön.\r\n".encode(
            "cp1252") + column_text(*GOOD[1:]).split(b"\r\n", 1)[1], {"line": 3}, "not UTF-8"),
    "csv with a short row": ("pool.csv", column_text(*GOOD[:1]) + b"bad,only\r\n"
                             + column_text(*GOOD[1:]).split(b"\r\n", 1)[1], {"line": 3},
                             "fewer fields than the header"),
    "csv with a long row": ("pool.csv", column_text(*GOOD[:1]) + b"bad,a,b,c,d\r\n"
                            + column_text(*GOOD[1:]).split(b"\r\n", 1)[1], {"line": 3},
                            "more fields than the header"),
    "csv with an empty field": ("pool.csv", column_text(GOOD[0], record(input=..., output=""),
                                                        *GOOD[1:]), {"line": 3}, "output is empty"),
}
WHOLE: dict[str, tuple[str, bytes]] = {
    "byte-order mark": ("pool.jsonl", b"\xef\xbb\xbf" + lines(*GOOD)),
    "CRLF": ("pool.jsonl", lines(*GOOD).replace(b"\n", b"\r\n")),
    "blank lines": ("pool.jsonl", b"\n" + lines(*GOOD).replace(b"\n", b"\n \n\n")),
    "no end of the last line": ("pool.jsonl", lines(*GOOD)[:-1]),
    "gzip": ("pool.jsonl.gz", gzip.compress(lines(*GOOD))),
    "two gzip members": ("pool.jsonl.gz", gzip.compress(lines(GOOD[0]))
                         + gzip.compress(lines(*GOOD[1:]))),
    "array": ("pool.json", json.dumps(GOOD, indent=2).encode()),
    "array with a mark": ("pool.json", b"\xef\xbb\xbf \n" + json.dumps(GOOD).encode() + b"\n\n"),
    "array in gzip": ("pool.json.gz", gzip.compress(json.dumps(GOOD).encode())),
    "lines by an array's name": ("pool.json", lines(*GOOD)),
    "csv": ("pool.csv", column_text(*GOOD)),
    "csv with a mark": ("pool.csv", b"\xef\xbb\xbf" + column_text(*GOOD)),
    "csv in gzip": ("pool.csv.gz", gzip.compress(column_text(*GOOD))),
    "csv with semicolons": ("pool.csv", column_text(*GOOD, separator=";")),
    "csv with semicolons and a mark": (
        "pool.csv", b"\xef\xbb\xbf" + column_text(*GOOD, separator=";")),
    "csv with tabs": ("pool.csv", column_text(*GOOD, separator="\t")),
    "tsv": ("pool.tsv", column_text(*GOOD, separator="\t")),
    "csv that names its separator": (
        "pool.csv", b"\xef\xbb\xbfsep=;\r\n" + column_text(*GOOD, separator=";")),
    "csv that names another separator": (
        "pool.csv", b'"sep=|"\n' + column_text(*GOOD, separator="|")),
    "csv with columns that have no name and nothing in them": (
        "pool.csv", column_text(*GOOD, separator=";").replace(b"\r\n", b";;\r\n")),
    "tsv in gzip": ("pool.tsv.gz", gzip.compress(column_text(*GOOD, separator="\t"))),
}
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "an empty file": ("pool.jsonl", b"", "holds no record"),
    "blanks only": ("pool.jsonl", b"\n \n", "holds no record"),
    "an empty array": ("pool.json", b"[]", "holds no record"),
    "an empty array file": ("pool.json", b"", "not a JSON array of records"),
    "a header alone": ("pool.csv", column_text(), "holds no record"),
    "an object for an array": ("pool.json", b'{"data": []}', "not a JSON array of records"),
    "an array cut short": ("pool.json", json.dumps(GOOD).encode()[:-9],
                           "element 3 .* should follow element 2"),
    "an array cut after a comma": ("pool.json", json.dumps(GOOD[:2]).encode()[:-1] + b", ",
                                   "element 3 .* should follow element 2"),
    "an array without its end": ("pool.json", json.dumps(GOOD).encode()[:-1],
                                 "another element or the end should follow element 3"),
    "an array without a comma": ("pool.json", json.dumps(GOOD).encode().replace(b"}, {", b"} {"),
                                 "another element or the end should follow element 1"),
    "two arrays": ("pool.json", json.dumps(GOOD).encode() * 2, "the end of the file should follow"),
    "an array in latin-1": ("pool.json", '[{"instruction": "é"}]'.encode("latin-1"), "not UTF-8"),
    "a gzip cut short": ("pool.jsonl.gz", gzip.compress(lines(*GOOD) * 99)[:-20], "cut short"),
    "no gzip": ("pool.jsonl.gz", lines(*GOOD), "cut short or damaged"),
    "a damaged gzip": ("pool.jsonl.gz", gzip.compress(lines(*GOOD))[:25] + b"\xff" * 30,
                       "cut short or damaged"),
    "no Parquet": ("pool.parquet", lines(*GOOD), "not a whole Parquet file"),
    "an open quote": ("pool.csv", column_text(*GOOD) + b'bad,"open', "pool.csv:4: not valid CSV"),
    "another separator": ("pool.csv", column_text(*GOOD, separator="|"),
                          "pool.csv:1: the header is one field, 'id|instruction|output': no comma, "
                          "semicolon or tab"),
    "a tsv with commas": ("pool.tsv", column_text(*GOOD), "the header is one field, .*: no tab"),
    "a column twice": ("pool.csv", b"id,instruction,output,instruction\na,b,c,d\n",
                       "pool.csv:1: the column 'instruction' stands twice in the header"),
    "a column twice after the separator": ("pool.csv", b"sep=;\noutput;output\na;b\n",
                                           "pool.csv:2: the column 'output' stands twice"),
    "other columns": ("pool.csv", b"question;answer\na;b\n",
                      "fields of the first records .answer, question; the separator is semicolon"),
    "rows that do not fit": ("pool.csv", b"instruction;output\na,b\nc,d\n",
                             "2 x fewer fields than the header, the separator is semicolon"),
    "a header in latin-1": ("pool.csv", "instruction,output,né\na,b,c\n".encode("latin-1"),
                            "pool.csv:1: not UTF-8, perhaps cp1252"),
    "other fields": ("pool.jsonl", lines({"question": "a", "answer": "b"}),
                     r"no known schema has the fields .*\(answer, question\).*pool.fields."
                     r"instruction=\S+ pool.fields.input=\S+ pool.fields.output="),
    "another kind of file": ("pool.txt", lines(*GOOD), "is none of .jsonl, .json"),
    "nothing usable": ("pool.jsonl", lines(record(output="")), "no usable record among 1: 1 x "
                                                               "output is empty"),
}


def prepare(stage: Callable, config_file: Callable, folder: Path, name: str, content: bytes,
            **settings: object) -> Path:
    (folder / name).write_bytes(content)
    stage(prepare_pool, config_file(pool={"path": str(folder / name)} | settings,
                                    clustering={"num_bins": 1}, selection={"budget": 1}))
    return folder / "run"


def pool_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "pool.jsonl").open(encoding="utf-8")]


@pytest.mark.parametrize("case", REJECTED)
def test_a_bad_record_is_put_aside_and_the_good_ones_stay(config_file, stage, tmp_path, case):
    name, content, place, reason = REJECTED[case]
    run = prepare(stage, config_file, tmp_path, name, content, max_rejected=0.4)
    kept = pool_of(run)
    assert [row | {"input": ""} for row in GOOD] == kept
    [row] = [json.loads(line) for line in (run / "rejected.jsonl").open(encoding="utf-8")]
    assert row["file"] == str(tmp_path / name) and place.items() <= row.items()
    assert reason in row["reason"]
    assert row["record"] not in (None, "") or case == "null"


def test_the_corpus_is_large_enough():
    assert len(REJECTED) + len(WHOLE) + len(REFUSED) >= 60


@pytest.mark.parametrize("case", WHOLE)
def test_what_is_only_unusual_is_read_whole(config_file, stage, tmp_path, case):
    run = prepare(stage, config_file, tmp_path, *WHOLE[case])
    assert pool_of(run) == [row | {"input": ""} for row in GOOD]
    assert (run / "rejected.jsonl").read_bytes() == b""


@pytest.mark.parametrize("case", REFUSED)
def test_a_source_that_cannot_be_read_is_named(config_file, stage, tmp_path, case):
    name, content, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        prepare(stage, config_file, tmp_path, name, content)
    assert not [path for path in (tmp_path / "run").rglob("*") if "jsonl" in path.name]


GERMAN = [{"id": f"g{i}", "instruction": "Wie heißt die größte Stadt Österreichs?",
           "output": f"Wien; {i} schöne Grüße, – “ä”."} for i in range(20)]
FRENCH = [{"id": "f", "instruction": "Où est le garçon, à l'école?", "output": "Il a mangé."}]


def encoded(name: str, encoding: str, rows: list[dict]) -> bytes:
    """A pool's file in another encoding, with letters as they are."""
    text = {"pool.csv": column_text(*rows).decode(), "pool.json": json.dumps(
        rows, ensure_ascii=False), "pool.jsonl": "".join(json.dumps(
            row, ensure_ascii=False) + "\n" for row in rows)}[name]
    return text.encode(encoding)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["pool.csv", "pool.json", "pool.jsonl"])
def test_a_pool_in_another_encoding_is_read_in_it_and_in_no_other(config_file, stage, tmp_path,
                                                                  name, encoding):
    content = encoded(name, encoding, GERMAN)
    for given in (encoding, "auto"):
        run = prepare(stage, config_file, tmp_path, name, content, encoding=given)
        assert pool_of(run) == [row | {"input": ""} for row in GERMAN]
    with pytest.raises(InputError, match="not UTF-8, perhaps cp1252: try pool.encoding=cp1252"
                       if encoding == "cp1252" else "not UTF-8|not a JSON array|not valid JSON"):
        prepare(stage, config_file, tmp_path, name, content, encoding="utf-8")


def test_an_encoding_that_is_not_certain_is_asked_for(config_file, stage, tmp_path):
    for name in ("pool.csv", "pool.json", "pool.jsonl"):
        content = encoded(name, "cp1252", FRENCH)
        with pytest.raises(InputError, match=r"pool.encoding is auto, but the encoding of .* is "
                                             r"not certain \(perhaps cp1252 or"):
            prepare(stage, config_file, tmp_path, name, content, encoding="auto")
        run = prepare(stage, config_file, tmp_path, name, content, encoding="cp1252")
        assert pool_of(run) == [FRENCH[0] | {"input": ""}]
        with pytest.raises(InputError, match="not ascii, perhaps cp1252 or"):
            prepare(stage, config_file, tmp_path, name, content, encoding="ascii")


@pytest.mark.parametrize("encoding", ["utf-8", "auto"])
def test_guesses_that_are_close_are_named_and_none_is_advised(config_file, stage, tmp_path,
                                                              encoding):
    content = encoded("pool.jsonl", "cp1252", [
        {"instruction": f"Say {i}", "output": f"answer é {i}"} for i in range(50)])
    with pytest.raises(InputError, match="perhaps cp1252 or .*: find out which") as error:
        prepare(stage, config_file, tmp_path, "pool.jsonl", content, encoding=encoding)
    assert "pool.encoding=" not in str(error.value)


@pytest.mark.parametrize("name", ["pool.csv", "pool.json", "pool.jsonl"])
def test_utf16_without_its_mark_is_told(config_file, stage, tmp_path, name):
    content = encoded(name, "utf-16-le", GERMAN)
    with pytest.raises(InputError, match=r"not utf-16, perhaps utf_16_le: try pool.encoding="
                                         r"utf_16_le \(UTF-16 stream does not start with BOM\)"):
        prepare(stage, config_file, tmp_path, name, content, encoding="utf-16")


def test_auto_leaves_utf8_with_a_broken_line_utf8(config_file, stage, tmp_path):
    content = encoded("pool.jsonl", "utf-8", GERMAN) + encoded("pool.jsonl", "cp1252", FRENCH)
    run = prepare(stage, config_file, tmp_path, "pool.jsonl", content, encoding="auto",
                  max_rejected=0.1)
    assert [row["id"] for row in pool_of(run)] == [row["id"] for row in GERMAN]
    [row] = [json.loads(line) for line in (run / "rejected.jsonl").open()]
    assert row["reason"].startswith("not UTF-8")


def test_pieces_of_a_long_line_are_guessed_by_whole_characters(tmp_path):
    rows = [{"instruction": "请用一句话解释什么是机器学习。" * 1000, "output": "首都是北京。"}] * 3
    path = tmp_path / "pool.json"
    for shift in range(2):  # the sample ends at the end of a character, or within one
        path.write_bytes(b" " * shift + json.dumps(rows, ensure_ascii=False).encode("gb18030"))
        assert text_files.guess_encoding(path) == (["gb18030"], True)


@pytest.mark.parametrize("name", [
    "utf-9", "rot13", "base64", "undefined", "a\0b", "", "idna", "punycode", "unicode_escape",
    "Raw_Unicode_Escape"])
def test_an_unknown_encoding_is_refused(config_file, name):
    with pytest.raises(InputError, match="pool.encoding is .*; it must be auto or a Python codec"):
        load_config(config_file(pool={"encoding": name}), [])


def test_numbers_stay_ids(config_file, stage, tmp_path):
    run = prepare(stage, config_file, tmp_path, "pool.jsonl",
                  lines(record(id=0), record(id=1.5), record(id=None)))
    assert [row["id"] for row in pool_of(run)] == ["0", "1.5", "2"]


def test_fields_that_no_prompt_shows_and_fields_that_select_writes_are_named(
        config_file, stage, tmp_path, capsys):
    run = prepare(stage, config_file, tmp_path, "pool.jsonl", lines(
        record(id="a", context="in", score=1), record(id="b", bin=2, adg_score=3)))
    said = capsys.readouterr().out
    assert "fields not used in prompts: context, score, bin, adg_score; pool.fields.input=" in said
    assert ("fields that select writes too: score, bin; in the subsets these stay the pool's, and "
            "those of select are adg_adg_score, adg_bin") in said
    assert pool_of(run)[1]["adg_score"] == 3
    prepare(stage, config_file, tmp_path, "pool.jsonl", lines({"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}))
    assert "fields" not in capsys.readouterr().out
    prepare(stage, config_file, tmp_path, "pool.jsonl", lines(SCHEMAS["flan"]))
    assert "fields not used in prompts: task\n" in capsys.readouterr().out


def test_too_many_bad_records_stop_with_a_summary(config_file, stage, tmp_path):
    rows = [*GOOD, record(output=""), b"{", record(output=" "), record(instruction=1)]
    with pytest.raises(InputError) as error:
        prepare(stage, config_file, tmp_path, "pool.jsonl", lines(*rows))
    for part in ("4 of 7 records", "(schema alpaca)", "pool.max_rejected (0.01)",
                 "2 x output is empty (first: ", "pool.jsonl:4)", "1 x not valid JSON",
                 "1 x instruction is not a string"):
        assert part in str(error.value)
    run = prepare(stage, config_file, tmp_path, "pool.jsonl", lines(*rows), max_rejected=0.6)
    assert len(pool_of(run)) == 3 and len((run / "rejected.jsonl").read_text().splitlines()) == 4


def test_a_line_of_50_megabytes(config_file, stage, tmp_path):
    large = record(output="y" * 50_000_000)
    run = prepare(stage, config_file, tmp_path, "pool.jsonl", lines(GOOD[0], large))
    assert [len(row["output"]) for row in pool_of(run)] == [4, 50_000_000]


def test_an_array_is_read_across_its_blocks(config_file, stage, tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "_BLOCK", 7)
    rows = [row | {"number": -12345.5 * i, "list": [1, [2]]} for i, row in enumerate(GOOD)]
    run = prepare(stage, config_file, tmp_path, "pool.json", json.dumps(rows, indent=3).encode())
    assert [row["number"] for row in pool_of(run)] == [row["number"] for row in rows]


@pytest.mark.parametrize(("choice", "ids", "rejected"), [
    ("keep", ["a", "b", "c", "d"], 0), ("drop", ["a", "c"], 0), ("reject", ["a", "c"], 2)])
def test_duplicates_are_kept_dropped_or_rejected(config_file, stage, tmp_path, choice, ids,
                                                 rejected):
    rows = [record(id=name, output="1" if name == "c" else "2") for name in "abcd"]
    run = prepare(stage, config_file, tmp_path, "pool.jsonl", lines(*rows), duplicates=choice)
    assert [row["id"] for row in pool_of(run)] == ids
    assert len((run / "rejected.jsonl").read_text().splitlines()) == rejected
    log = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert log["dropped_duplicates"] == (2 if choice == "drop" else 0)


CHAT = [("user", "Hi."), ("assistant", "Hello."), ("user", "Bye."), ("assistant", "Ciao.")]
SCHEMAS = {
    "alpaca": {"instruction": "Hi.", "input": "in", "output": "Hello."},
    "dolly": {"instruction": "Hi.", "context": "in", "response": "Hello.", "category": "x"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi."},
                                   {"from": "gpt", "value": "Hello."}]},
    "messages": {"messages": [{"role": "system", "content": "Be kind."},
                              *({"role": role, "content": text} for role, text in CHAT[:2])]},
    "self_instruct": {"instruction": "Hi.", "instances": [{"input": "in", "output": "Hello."}]},
    "prompt_completion": {"prompt": "Hi.", "completion": "Hello."},
    "prompt_response": {"prompt": "Hi.", "response": "Hello."},
    "flan": {"inputs": "Hi.", "targets": "Hello.", "task": "t"},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_told_by_the_first_records(config_file, stage, tmp_path, capsys, name):
    rows = [SCHEMAS[name] | {"extra": {"kept": [i]}} for i in range(3)]
    run = prepare(stage, config_file, tmp_path, "pool.jsonl", lines(*rows))
    assert f"schema: {name}" in capsys.readouterr().out
    kept = pool_of(run)
    given = "in" if "in" in json.dumps(SCHEMAS[name]).split('"') else ""
    assert [(row["instruction"], row["input"], row["output"]) for row in kept] == [
        ("Hi.", given, "Hello.")] * 3
    assert [row["extra"] for row in kept] == [{"kept": [i]} for i in range(3)]
    other = "flan" if name != "flan" else "alpaca"
    with pytest.raises(InputError, match="no usable record among 3: 3 x .* is missing"):
        prepare(stage, config_file, tmp_path, "pool.jsonl", lines(*rows), schema=other)


def test_every_schema_can_be_asked_for_by_name():
    assert set(schemas.SCHEMAS) == set(POOL_SCHEMAS)


def test_wizardlm_and_several_turns(config_file, stage, tmp_path):
    row = {"idx": "w", "conversations": [
        {"from": {"user": "human", "assistant": "gpt"}[role], "value": text}
        for role, text in CHAT]}
    for schema in ("auto", "wizardlm"):
        for choice, expected in (("first", ("Hi.", "Hello.")), ("last", ("Bye.", "Ciao."))):
            run = prepare(stage, config_file, tmp_path, "pool.jsonl", lines(row), schema=schema,
                          multi_turn=choice)
            assert [(own["instruction"], own["output"]) for own in pool_of(run)] == [expected]
    with pytest.raises(InputError, match="1 x 2 turns, and pool.multi_turn is reject"):
        prepare(stage, config_file, tmp_path, "pool.jsonl", lines(row))


@pytest.mark.parametrize(("messages", "reason"), [
    ("text", "not a list of messages"), ([1], "not a list of messages"),
    ([{"role": "user"}], "without a known role or without content"),
    ([{"role": "judge", "content": "a"}], "without a known role"),
    ([{"role": "assistant", "content": "a"}], "no message of a user that an assistant answers"),
    ([], "no message of a user"),
])
def test_a_conversation_that_is_none_is_named(config_file, stage, tmp_path, messages, reason):
    with pytest.raises(InputError, match=reason):
        prepare(stage, config_file, tmp_path, "pool.jsonl", lines({"messages": messages}))


def test_fields_of_other_names_are_mapped(config_file, stage, tmp_path):
    rows = [{"q": "Hi.", "a": "Hello.", "key": 7, "z": 1}]
    run = prepare(stage, config_file, tmp_path, "pool.jsonl", lines(*rows),
                  fields={"instruction": "q", "output": "a", "id": "key"})
    assert pool_of(run) == [{"id": "7", "instruction": "Hi.", "input": "", "output": "Hello.",
                             "z": 1}]
    for overrides, message in ((["pool.fields.text=q"], "pool.fields is 'text'"),
                               (["pool.fields.id=q", "pool.schema=flan"], "pool.schema is 'flan'")):
        with pytest.raises(InputError, match=message):
            load_config(config_file(), overrides)


def test_a_mapped_field_is_never_replaced_by_one_of_the_usual_name(config_file, stage, tmp_path):
    rows = [{"q": "Hi.", "a": "Hello.", "c": "in", "input": "no", "output": "no"},
            {"q": "Hi?", "a": "Hello?", "input": "no"},
            {"q": "Hi!", "output": "no"}, {"instruction": "no", "a": "Hello!"}]
    run = prepare(stage, config_file, tmp_path, "pool.jsonl", lines(*rows), max_rejected=0.5,
                  fields={"instruction": "q", "output": "a", "input": "c"})
    assert pool_of(run) == [
        {"id": "0", "instruction": "Hi.", "input": "in", "output": "Hello."},
        {"id": "1", "instruction": "Hi?", "input": "", "output": "Hello?"}]
    reasons = [json.loads(line)["reason"] for line in (run / "rejected.jsonl").open()]
    assert reasons == ["a is missing", "q is missing"]
    run = prepare(stage, config_file, tmp_path, "pool.jsonl", lines(
        {"q": "a", "output": "b", "key": 7, "id": 1}, {"q": "c", "output": "d", "id": 2}),
        fields={"instruction": "q", "id": "key"})
    assert [row["id"] for row in pool_of(run)] == ["7", "1"]
    run = prepare(stage, config_file, tmp_path, "pool.jsonl", lines(
        {"instruction": "answer", "output": "question"}),
        fields={"instruction": "output", "output": "instruction"})
    assert pool_of(run)[0] | {"id": ""} == {"id": "", "instruction": "question", "input": "",
                                            "output": "answer"}


@pytest.mark.parametrize("target, name, near", [
    ("input", "contxt", "context"), ("output", "outptu", "output"), ("instruction", "qq", "q"),
    ("id", "context_", "context")])
def test_a_mapped_field_that_no_record_has_is_an_error(config_file, stage, tmp_path, target, name,
                                                       near):
    rows = [{"q": "Hi.", "output": "Hello.", "context": "in"}, {"q": "Hi?", "output": "Hello?"}]
    with pytest.raises(InputError, match=rf"pool.fields.{target} is {name}, which no record has; "
                                         rf"did you mean {near}\?"):
        prepare(stage, config_file, tmp_path, "pool.jsonl", lines(*rows),
                fields={"instruction": "q"} | {target: name})


def test_columns_without_a_name_are_fields_where_they_hold_something(config_file, stage, tmp_path):
    content = b"id,instruction,output,,\na,Say.,It.,,\nb,Ask.,It?,,x\nc,Go.,No.,y,\n"
    run = prepare(stage, config_file, tmp_path, "pool.csv", content)
    assert [list(row)[4:] for row in pool_of(run)] == [[], ["column 5"], [""]]


def test_a_dry_run_names_fields_and_the_commonest_reason(config_file, stage, tmp_path, capsys):
    (tmp_path / "pool.jsonl").write_bytes(lines(
        {"q": "Hi.", "a": "Hello.", "topic": "x"}, {"q": "Hi.", "a": ""}, {"q": "Hi.", "a": ""},
        {"q": 1, "a": "Hello."}))
    stage(prepare_pool, config_file(), "pool.fields.instruction=q", "pool.fields.output=a",
          "pool.max_rejected=1", "--dry-run")
    said = capsys.readouterr().out
    assert "  schema    that of pool.fields\n" in said
    assert "  records   1 usable, 3 rejected (mostly: output is empty)\n" in said
    assert "  fields not used in prompts: topic; pool.fields.input=topic would" in said


def test_a_folder_that_cannot_be_read_is_named(config_file, stage, tmp_path, monkeypatch):
    (tmp_path / "pools").mkdir()
    path = config_file(pool={"path": str(tmp_path / "pools")})

    def rglob(folder: Path, pattern: str) -> list[Path]:
        raise PermissionError(13, "Permission denied", f"{folder}/secret")

    monkeypatch.setattr(Path, "rglob", rglob)
    with pytest.raises(InputError, match="pool.path: .*/pools/ cannot be read .*secret"):
        stage(prepare_pool, path)


def test_parquet_a_folder_and_the_hub(config_file, stage, tmp_path, monkeypatch):
    import datasets
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "folder"
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD[:1]), folder / "b.parquet")
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines(GOOD[1])))
    (folder / "c.csv").write_bytes(column_text(GOOD[2]))
    (folder / "README.md").write_text("no pool")
    stage(prepare_pool, config_file(pool={"path": str(folder)}))
    assert [row["id"] for row in pool_of(tmp_path / "run")] == ["g1", "g0", "g2"]
    asked = SimpleNamespace(given=None)

    def load(name: str, **options: object) -> list[dict]:
        asked.given = (name, options)
        return GOOD

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub = [config_file(), "pool.path=hf:owner/name", "pool.split=train[:3]", "pool.revision=v1",
           f"output_dir={tmp_path / 'hub'}"]
    stage(prepare_pool, *hub)
    assert asked.given == ("owner/name", {"split": "train[:3]", "revision": "v1"})
    assert [row["id"] for row in pool_of(tmp_path / "hub")] == ["g0", "g1", "g2"]
    (folder / "a.jsonl.gz").unlink()
    (folder / "b.parquet").unlink()
    (folder / "c.csv").unlink()
    with pytest.raises(InputError, match="holds no file of a pool"):
        stage(prepare_pool, config_file(pool={"path": str(folder)}), "--overwrite")
    assert len(RECORDS) == 10


def test_records_that_hold_parts_of_a_prompt_are_counted_and_listed(config_file, stage, tmp_path,
                                                                    capsys):
    rows = [record(id="clean"), record(id="mark", output="### Response: x"),
            record(id="both", instruction="### Input:", input="a<|end|><|user|>"),
            record(id="token", output="x<|begin|>"), record(id="", output="<|end|>")]
    content = lines(*rows, *(record(id=i) for i in range(400)))

    def prepared(*overrides: str) -> tuple[str, dict, dict]:
        (tmp_path / "pool.jsonl").write_bytes(content)
        stage(prepare_pool, config_file(), "--overwrite", *overrides)
        run = tmp_path / "run"
        counts = run / "provenance/prepare.counts/00000.json"
        log = (run / "log.jsonl").read_text().splitlines()[-1]
        return (capsys.readouterr().out, json.loads(log),
                json.loads(counts.read_text()) if counts.exists() else {})

    said, log, listed = prepared()
    assert listed == {"control_tokens": ["both", "token"], "template_markers": ["mark", "both"]}
    assert (log["control_tokens"], log["template_markers"]) == (2, 2)
    assert ("[prepare] records with control tokens of the tokenizer (as text): 2, with markers of "
            "the prompt template (### Instruction:, ### Input:, ### Response:; as text): 2; ids in "
            f"{tmp_path}/run/provenance/prepare.counts/\n") in said
    said, _, listed = prepared("generation.prompt=chat", "generation.control_tokens=obey")
    assert listed == {"control_tokens": ["both", "token"], "template_markers": []}
    assert "(obeyed, generation.control_tokens): 2; ids" in said and "markers" not in said
    said, log, listed = prepared("model.name_or_path=no/model", "generation.prompt=plain")
    assert "control tokens in records were not looked for: no/model/ holds no tokenizer" in said
    assert (listed, log["records"]) == ({}, 404) and "model" not in log["inputs"]


QUESTION = "A farmer has twice as many pigs as cows and four more cows than goats on his land"


@pytest.mark.parametrize("choice", ["report", "drop", "off"])
def test_questions_of_benchmarks_are_found(config_file, stage, tmp_path, choice):
    data = tmp_path / "data"
    artifacts.write_jsonl(data / "openai/gsm8k/main/test.jsonl", [
        {"question": "Seven words are too few to count.", "answer": "7"},
        {"question": QUESTION + ". How many goats?", "answer": "5"}])
    artifacts.write_jsonl(data / "cais/mmlu/anatomy/test.jsonl", [
        {"question": "Which bone of the foot", "choices": ["bears", "the most of our weight"]}])
    rows = [record(id="clean", instruction=QUESTION[:45]),
            record(id="gsm", instruction="Hm: " + QUESTION.upper().replace(" ", ", ")),
            record(id="whole", output="which bone of the foot -- bears the most of our weight!")]
    (tmp_path / "pool.jsonl").write_bytes(lines(*rows))
    stage(prepare_pool, config_file(), f"eval.data_dir={data}", f"pool.decontaminate={choice}")
    run = tmp_path / "run"
    kept = [row["id"] for row in pool_of(run)]
    assert kept == (["clean"] if choice == "drop" else ["clean", "gsm", "whole"])
    if choice == "off":
        assert not (run / "contamination.jsonl").exists()
        return
    found = [json.loads(line) for line in (run / "contamination.jsonl").open()]
    assert [(row["id"], row["benchmark"], row["task"], row["question"]) for row in found] == [
        ("gsm", "gsm8k", "main", 2), ("whole", "mmlu", "anatomy", 1)]
    assert found[0]["words"].split() == QUESTION.lower().split()[:13]
    rejected = [json.loads(line) for line in (run / "rejected.jsonl").open()]
    assert [row["reason"].split(" (")[0] for row in rejected] == (
        ["overlaps with gsm8k main:2", "overlaps with mmlu anatomy:1"] if choice == "drop" else [])
    stage(prepare_pool, config_file(), f"eval.data_dir={data}", f"pool.decontaminate={choice}")
    assert len((run / "log.jsonl").read_text().splitlines()) == 1
