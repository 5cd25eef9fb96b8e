"""The verdict on a stage, from plain values: no file is read."""

from dataclasses import replace

import pytest

from adg.pipeline.staleness import Kind, Present, Verdict, changes_since, judge, misfit

POOL = {"sha256": "a" * 64, "files": 1, "bytes": 10}
LARGER = {"sha256": "b" * 64, "files": 1, "bytes": 20}
MODEL = {"name": "m", "sha256": "c" * 64}
ANSWERS = {"sha256": "d" * 64, "files": 3}
RECORD = {"stage": "sample", "state": "finished", "extends": False, "began": "2026",
          "parameters": {"seed": 42}, "inputs": {"pool.jsonl": POOL, "model": MODEL},
          "outputs": {"answers/": ANSWERS}, "grew_from": {}}
PRESENT = Present("sample", "runs/x", {"seed": 42}, {"pool.jsonl": POOL, "model": MODEL},
                  {"answers/": ANSWERS}, required=("pool.jsonl", "model"), expensive=True)
CHEAP = replace(PRESENT, label="select adg", expensive=False)
NOTHING = {"answers/": None}


def kind_and_why(record: dict | None, present: Present) -> tuple[Kind, str]:
    verdict = judge(record, present)
    return verdict.kind, verdict.why


def test_what_fits_and_is_whole_is_done():
    assert judge(RECORD, PRESENT) == Verdict(Kind.DONE)


@pytest.mark.parametrize(("record", "present", "why"), [
    (None, replace(PRESENT, outputs=NOTHING), ""),
    (RECORD, replace(PRESENT, outputs=NOTHING), "answers/ is incomplete"),
    (RECORD, replace(PRESENT, outputs={"answers/": ANSWERS | {"files": 2}}),
     "answers/ is incomplete"),
    (RECORD | {"state": "started", "outputs": {}}, PRESENT, "an earlier run was interrupted"),
])
def test_what_is_not_there_yet_is_run(record, present, why):
    assert kind_and_why(record, present) == (Kind.RUN, why)


def test_an_interrupted_extension_still_extends():
    record = RECORD | {"state": "started", "extends": True, "outputs": {}}
    assert judge(record, PRESENT).extends and not judge(RECORD, PRESENT).extends


def test_a_changed_parameter_redoes_a_cheap_stage_and_is_refused_by_an_expensive_one():
    why, other = "seed was 42 and is 7", {"seed": 7}
    redo = judge(RECORD, replace(CHEAP, parameters=other))
    assert (redo.kind, redo.why, redo.notes) == (Kind.REDO, why, (f"stale, because {why}",))
    refused = judge(RECORD, replace(PRESENT, parameters=other))
    assert (refused.kind, refused.why) == (Kind.REFUSE, why)
    assert refused.error == (
        f"sample: {why}. What runs/x holds was made with the old value and is kept: go back to "
        f"that value, use another output_dir, or redo it: bash run.sh CONFIG sample --overwrite "
        f"(or --overwrite with the stage's own command)")
    named = judge(RECORD, replace(PRESENT, label="finetune x", parameters=other))
    assert named.ways == ("go back to that value, use another output_dir (or name), or redo it: "
                          "bash run.sh CONFIG finetune --overwrite")
    # where nothing of it is left there is nothing to keep
    gone = replace(PRESENT, parameters=other, outputs=NOTHING)
    assert judge(RECORD, gone).kind is Kind.REDO
    assert judge(RECORD, replace(gone, unfinished=True)).kind is Kind.REFUSE


def test_more_answers_are_a_changed_parameter():
    record = RECORD | {"parameters": {"generation.num_answers": 3}}
    more = replace(PRESENT, parameters={"generation.num_answers": 5},
                   grown=frozenset({"generation.num_answers"}))
    assert kind_and_why(record, more) == (Kind.REFUSE, "generation.num_answers was 3 and is 5")


def test_fewer_answers_are_refused_with_the_way_that_takes_the_first():
    record = RECORD | {"parameters": {"generation.num_answers": 5}}
    ways = judge(record, replace(PRESENT, parameters={"generation.num_answers": 3})).ways
    assert ways.startswith("take the first 3 of these answers with selection.num_answers=3, go ")


def test_only_another_model_by_name_can_be_gone_back_to():
    for name, back in (("m", False), ("other", True)):
        model = {"name": name, "sha256": "e" * 64}
        ways = judge(RECORD, replace(PRESENT, inputs={"pool.jsonl": POOL, "model": model})).ways
        assert ways.startswith("go back to that value, " if back else "use another output_dir or ")


def test_what_was_made_anew_is_said_without_hashes():
    present = replace(PRESENT, inputs={"pool.jsonl": LARGER, "model": MODEL},
                      remade={"pool.jsonl": "prepare"})
    assert judge(RECORD, present).why == "pool.jsonl was made anew by prepare since"


def test_parameters_recorded_at_other_values_alone_are_told_with_their_default():
    present = replace(CHEAP, parameters={"seed": 42, "score": "new"}, defaults={"score": "old"})
    assert judge(RECORD, present).why == "score was 'old' and is 'new'"
    back = RECORD | {"parameters": present.parameters}
    assert judge(back, replace(present, parameters={"seed": 42})).why == (
        "score was 'new' and is 'old'")


@pytest.mark.parametrize(("grown", "follows", "kind", "followed"), [
    ({"pool.jsonl"}, (), Kind.EXTEND, False),
    ((), ("pool.jsonl",), Kind.EXTEND, True),
    ((), (), Kind.REFUSE, False),
])
def test_a_pool_that_grew_or_may_change_extends(grown, follows, kind, followed):
    present = replace(PRESENT, inputs=PRESENT.inputs | {"pool.jsonl": LARGER},
                      grown=frozenset(grown), follows=follows)
    verdict = judge(RECORD, present)
    assert (verdict.kind, verdict.follows) == (kind, followed)
    assert verdict.why == "pool.jsonl was aaaaaaaa and is bbbbbbbb"
    assert verdict.extends == (kind is Kind.EXTEND)
    if grown or follows:  # growth excuses nothing else
        assert judge(RECORD, replace(present, parameters={"seed": 7})).kind is Kind.REFUSE


def test_a_missing_input_waits_but_a_refusal_comes_first():
    missing = replace(PRESENT, inputs={"pool.jsonl": None, "model": MODEL},
                      missing={"pool.jsonl": "run prepare first"})
    for record, present in ((RECORD, missing), (None, replace(missing, outputs=NOTHING))):
        assert judge(record, present) == Verdict(Kind.WAIT, "run prepare first",
                                                 "run prepare first")
    assert judge(RECORD, replace(missing, parameters={"seed": 7})).kind is Kind.REFUSE


def test_output_made_elsewhere_is_kept_where_it_is_whole():
    two = replace(PRESENT, outputs={"pool.jsonl": POOL, "rejected.jsonl": None})
    refused = judge(None, two)
    assert refused.kind is Kind.REFUSE and "rejected.jsonl is missing" in refused.error
    verdict = judge(None, replace(two, reports=("rejected.jsonl",), missing={"pool.path": "x"}))
    assert verdict.kind is Kind.DONE
    assert verdict.notes == ("pool.jsonl was made elsewhere (no provenance): kept as it is",)


def test_an_edited_output_is_noted():
    present = replace(PRESENT, outputs={"answers/": ANSWERS | {"sha256": "e"}},
                      edited={"answers/": " (00000.jsonl changed)"})
    assert judge(RECORD, present).notes == (
        "answers/ is not what sample wrote (00000.jsonl changed): kept as it is",)


def test_two_models_of_one_sample_differ_by_their_whole_hashes():
    known, now = MODEL | {"whole": "1" * 64}, MODEL | {"whole": "2" * 64}
    record = RECORD | {"inputs": {"model": known}}
    assert changes_since(record, replace(PRESENT, inputs={"model": now})) == [
        "model was m 11111111 and is m 22222222"]
    assert changes_since(record, replace(PRESENT, inputs={"model": MODEL})) == []


def test_the_start_of_a_part_lacks_what_its_maker_writes():
    record = RECORD | {"state": "started", "inputs": {"model": MODEL}, "outputs": {}}
    assert changes_since(record, PRESENT) == []
    assert changes_since(record | {"state": "finished"}, PRESENT) == [
        "pool.jsonl was absent and is aaaaaaaa"]


def test_an_input_is_unfinished_or_does_not_fit():
    assert misfit("answers/", RECORD, PRESENT) is None
    assert misfit("answers/", RECORD | {"state": "started"}, PRESENT) == (
        "runs/x/answers/ is unfinished: run sample again")
    assert misfit("answers/", RECORD, replace(PRESENT, parameters={"seed": 7})) == (
        "runs/x/answers/ does not fit the configuration: seed was 42 and is 7; run sample again")
    gone = replace(PRESENT, inputs={"pool.jsonl": None, "model": MODEL})
    assert misfit("answers/", RECORD, gone) is None  # removed to save disk
