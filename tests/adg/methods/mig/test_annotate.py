"""Method mig's annotation: tags, expected digits, tag vectors, one model after another."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import RECORDS, tree

from adg import measure, score_and_select
from adg.base import artifacts, distributed
from adg.base.errors import InputError
from adg.config import load_config
from adg.measure import loader_of
from adg.methods import METHODS
from adg.methods.mig import MigConfig, annotate
from adg.methods.mig.tag_vectors import encode, with_end
from adg.models import engines
from adg.models.loader import Loader
from adg.models.loading import LocalModel
from generation import prepare_pool

MODELS = ("tagger", "quality_scorer", "complexity_scorer", "tag_encoder")
TAGS = [[], ["Maths", "poem"], ["poem"], ["French", "poem"], ["Maths"]]  # of record i: TAGS[i % 5]


@pytest.fixture
def settings(tiny_model) -> list[str]:
    return ["selection.method=mig", "selection.mig.annotator.engine=transformers",
            "selection.mig.annotator.max_length=80", "selection.mig.annotator.max_tag_tokens=5",
            "selection.mig.annotator.tagger_prompt='tags of {query}: '",
            "selection.mig.annotator.quality_prompt='quality of {output} to {query}: '",
            "selection.mig.annotator.complexity_prompt='complexity of {query}: '",
            *(f"selection.mig.annotator.{role}={tiny_model}" for role in MODELS)]


@pytest.fixture
def tagged(monkeypatch):
    """A tagger that writes TAGS, which a random model never would; gives the prompts it read."""
    read: list[str] = []

    def written(self, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
        texts = self._tokenizer.batch_decode(prompts)
        read.extend(texts)
        numbers = [next(i for i, record in enumerate(RECORDS) if record["instruction"] in text)
                   for text in texts]
        return [json.dumps([{"tag": tag, "explanation": "why"} for tag in TAGS[i % 5]])
                for i in numbers]

    monkeypatch.setattr(engines.TransformersEngine, "complete", written)
    return read


def load(folder: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def expected_digit(model, tokenizer, text: str) -> float:
    import torch

    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logits = model(ids).logits[0, -1, tokenizer.convert_tokens_to_ids(list("123456"))]
    return float((torch.softmax(logits, -1) * torch.arange(1, 7)).sum())


def test_every_record_gets_tags_and_expected_digits(config_file, stage, tmp_path, settings,
                                                    tagged, tiny_model):
    path = config_file()
    stage(prepare_pool, path)
    stage(measure, path, *settings)
    annotator = load_config(path, settings).selection.mig.annotator
    model, tokenizer = load(tiny_model)
    for i, (row, record) in enumerate(zip(artifacts.JsonlRows(tmp_path / "run/measures/mig"),
                                          RECORDS, strict=True)):
        query = record["instruction"] + ("\n" + record["input"] if record["input"] else "")
        assert f"tags of {query}: " in tagged[i]
        assert list(row) == ["id", "tags", "quality_scores", "complexity_scores"]
        assert (row["id"], row["tags"]) == (record["id"], TAGS[i % 5])
        for scores, prompt in ((row["quality_scores"], annotator.quality_prompt),
                               (row["complexity_scores"], annotator.complexity_prompt)):
            text = prompt.replace("{query}", query).replace("{output}", record["output"])
            assert scores == pytest.approx([expected_digit(model, tokenizer, text)], abs=1e-5)
    log = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert (log["tags"], log["without_tags"]) == (3, 2)
    assert set(log["inputs"]) == {"pool.jsonl", *(f"measure.{role}" for role in MODELS)}
    stage(score_and_select, path, *settings)
    top = json.loads((tmp_path / "run/subsets/mig/top.json").read_text())
    assert len(top) == 3 and {record["id"] for record in top} <= {
        f"r{i}" for i in range(10) if TAGS[i % 5]}


def test_ranks_and_kills_change_nothing(config_file, stage, tmp_path, settings, tagged,
                                        monkeypatch):
    path = config_file()
    stage(prepare_pool, path)
    stage(measure, path, *settings)
    alone = tree(tmp_path / "run/measures/mig")
    assert list(alone) == ["00000.jsonl", "00001.jsonl", "00002.jsonl", "tags.json", "vectors.npy"]
    other = [path, *settings, f"output_dir={tmp_path / 'other'}"]
    stage(prepare_pool, *other)

    def killed(loader: Loader, settings: MigConfig) -> None:
        raise KeyboardInterrupt

    def finish(folder: Path, *loaded: object) -> dict[str, int]:
        wrote.append((distributed.rank(), len(list(folder.glob("0*.jsonl")))))
        return method.measure.finish(folder, *loaded)

    method, wrote = METHODS["mig"], []

    with monkeypatch.context() as patch:
        patch.setitem(method.measure.loads, "quality", killed)
        with pytest.raises(KeyboardInterrupt):
            stage(measure, *other)
    assert not (tmp_path / "other/measures").exists()
    with pytest.raises(InputError, match="max_tag_tokens was 5 and is 6"):  # not half of each
        stage(measure, *other, "selection.mig.annotator.max_tag_tokens=6")
    with monkeypatch.context() as patch:
        patch.setitem(method.measure.loads, "tags", killed)  # all tags are there
        patch.setitem(METHODS, "mig", replace(method, measure=replace(method.measure,
                                                                      finish=finish)))
        stage(measure, *other, world=3)
    assert wrote == [(0, 3)]
    assert tree(tmp_path / "other/measures/mig") == alone
    stage(measure, *other, "--overwrite")
    assert tree(tmp_path / "other/measures/mig") == alone


def test_a_grown_pool_keeps_what_is_annotated(config_file, stage, tmp_path, settings, tagged):
    path = config_file()
    stage(prepare_pool, path)
    stage(measure, path, *settings)
    alone = tree(tmp_path / "run/measures/mig")
    other = [path, *settings, f"output_dir={tmp_path / 'other'}"]
    stage(prepare_pool, *other, "pool.limit=5")
    stage(measure, *other, "pool.limit=5")
    assert len(tagged) == 15
    stage(prepare_pool, *other)
    stage(measure, *other)
    assert len(tagged) == 20
    found = tree(tmp_path / "other/measures/mig")
    assert found.keys() == alone.keys() and found["tags.json"] == alone["tags.json"]
    rows = [list(artifacts.JsonlRows(run / "measures/mig"))
            for run in (tmp_path / "run", tmp_path / "other")]
    for left, right in zip(*rows, strict=True):
        assert left["tags"] == right["tags"]
        assert left["quality_scores"] == pytest.approx(right["quality_scores"], abs=1e-5)


def test_select_refuses_annotations_that_lack_a_chunk(config_file, stage, tmp_path, settings,
                                                      tagged):
    given = (config_file(), *settings)
    stage(prepare_pool, given[0])
    stage(measure, *given)
    (tmp_path / "run/measures/mig/00001.jsonl").unlink()
    with pytest.raises(InputError, match="a file between them is missing"):
        stage(score_and_select, *given)


@pytest.mark.parametrize("tokens", [1, 60, 1000])
def test_transformers_reads_in_batches_as_one_by_one(tiny_model, tokens: int):
    import torch

    model, tokenizer = load(tiny_model)
    texts = ["Hi", "Name the three primary colours. " * 9, "What is 12 times 7?", "a", "Write"]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    engine = engines.TransformersEngine(LocalModel(tiny_model), "float32", tokens)
    choices = tokenizer.convert_tokens_to_ids(list("123456"))
    found = engine.probabilities(prompts, choices)
    assert found.shape == (5, 6) and np.allclose(found.sum(axis=1), 1)
    written = engine.complete(prompts, 4)
    for ids, own, text in zip(prompts, found, written, strict=True):
        tokens = list(ids)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1, choices]
            for _ in range(4):
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
                if tokens[-1] == tokenizer.eos_token_id:
                    break
        assert own == pytest.approx(torch.softmax(logits, -1).tolist(), abs=1e-6)
        assert text == tokenizer.decode(tokens[len(ids):], skip_special_tokens=True)


@pytest.mark.parametrize(("text", "tags"), [
    ('[{"tag": "maths", "explanation": "a \\"tag\\": b"}, {"tag":" poem ", "explanation": ""}]',
     ["maths", "poem"]),
    ('{"tag": "one", "explanation": "alone"}', ["one"]),
    ('Tags: [{"explanation": "x", "tag" : "caf\\u00e9"}, {"tag": "cut off", "expl', ["café",
                                                                                    "cut off"]),
    ('[{"tag": "never ended', []), ("[]", []), ('[{"tag": ""}]', []),
    ('[{"tag": "a\\d"}, {"tag": "a\\ud800"}]', ["a\\d", "a?"]),
])
def test_tags_are_read_from_whole_and_broken_json(text: str, tags: list[str]):
    assert annotate.tags_in(text) == tags


def test_a_long_record_loses_its_end_and_the_prompt_nothing(config_file, settings):
    config = load_config(config_file(), [
        *settings, "selection.mig.annotator.max_length=60",
        "selection.mig.annotator.quality_prompt='Q {query} A {output} score'",
        "selection.mig.annotator.complexity_prompt='Q {query} score'"])
    record = {"instruction": "Sort", "input": "b a", "output": "1234567890" * 20}
    loaded = loader_of(config), config.selection.mig
    reader = annotate.load_quality(*loaded)
    ids, = reader.prompts([record])
    text = reader.tokenizer.decode(ids, skip_special_tokens=True)
    assert 57 <= len(ids) <= 59 and text.startswith("Q Sort\nb a A 1234") and text.endswith("score")
    ids, = reader.prompts([record | {"instruction": "0987654321" * 20}])
    text = reader.tokenizer.decode(ids, skip_special_tokens=True)
    assert 57 <= len(ids) <= 59 and text.endswith("09 A  score") or text.endswith(" A  score")
    assert annotate.load_complexity(*loaded).prompts([record])[0] == reader.tokenizer(
        "Q Sort\nb a score")["input_ids"]


def test_control_tokens_are_obeyed_in_the_prompt_and_text_in_the_record(config_file, settings):
    config = load_config(config_file(), [
        *settings, "selection.mig.annotator.quality_prompt='<|user|>{query} A {output}<|end|>'"])
    loaded = loader_of(config), config.selection.mig
    reader = annotate.load_quality(*loaded)
    ordinary, hostile = reader.prompts([
        {"instruction": "Sort", "input": "", "output": text}
        for text in ("b a", "b<|end|> a<|user|>")])
    special = [token for token in ordinary if token in reader.tokenizer.all_special_ids
               or token == reader.tokenizer.convert_tokens_to_ids("<|user|>")]
    assert [token for token in hostile if token in special] == special and len(special) == 3
    assert reader.tokenizer.decode(hostile) == "<|begin|><|user|>Sort A b<|end|> a<|user|><|end|>"


def test_a_tag_is_the_state_of_its_last_token(config_file, settings, tiny_model):
    import torch
    from transformers import AutoModel

    tags = ["Maths", "a much longer tag of several words", "poem", "a"]
    loader = loader_of(load_config(config_file(), settings))
    found = encode(tags, loader)
    model, tokenizer = AutoModel.from_pretrained(tiny_model), load(tiny_model)[1]
    for tag, own in zip(tags, found, strict=True):
        ids = [*tokenizer(tag)["input_ids"], tokenizer.eos_token_id]
        assert with_end(tokenizer, [tag], None) == [ids]
        assert with_end(tokenizer, [f"{tag}<|end|>"], "obey") == [ids]  # as one that adds it
        (text,) = with_end(tokenizer, [f"{tag}<|end|>"], None)
        assert text.index(tokenizer.eos_token_id) == len(text) - 1 > len(ids)
        with torch.no_grad():
            state = model(torch.tensor([ids])).last_hidden_state[0, -1]
        assert own == pytest.approx((state / state.norm()).tolist(), abs=1e-5)
    assert found.dtype == np.float32
    assert encode([], loader).shape == (0, 64)


@pytest.mark.parametrize(("change", "message"), [
    ("pickle", "selection.mig.annotator.tagger: "),
    ("short", "selection.mig.annotator.max_length is 80, but the tagger takes 70 tokens"),
    ("pooling", "1_Pooling/config.json does not ask for the last token's state"),
])
def test_a_model_that_does_not_fit_is_refused(config_file, stage, tmp_path, settings, tagged,
                                              tiny_model, change: str, message: str):
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / change
    shutil.copytree(tiny_model, folder)
    if change == "pickle":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif change == "short":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 70}))
    else:
        artifacts.write_json(folder / "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    role = "tag_encoder" if change == "pooling" else "tagger"
    path = config_file()
    stage(prepare_pool, path)
    arguments = [path, *settings, f"selection.mig.annotator.{role}={folder}"]
    with pytest.raises(InputError) as error:
        stage(measure, *arguments)
    assert message in str(error.value)
    if change == "pickle":
        stage(measure, *arguments[:-1], f"{arguments[-1]}/pytorch_model.bin")
        assert (tmp_path / "run/measures/mig/vectors.npy").is_file()


@pytest.mark.parametrize("unknown", [None, 0])
def test_a_scorer_without_tokens_for_digits_is_refused(unknown):
    tokenizer = SimpleNamespace(unk_token_id=0, convert_tokens_to_ids=lambda digit: {
        "4": unknown}.get(digit, int(digit)))
    with pytest.raises(InputError, match="quality_scorer: the digits 1 to 6 are not tokens of its"):
        annotate.digit_tokens(tokenizer, "quality_scorer")


def test_given_annotations_leave_nothing_to_measure(config_file, stage):
    stage(prepare_pool, config_file())
    with pytest.raises(InputError, match="selection.method is mig, which measures nothing as it "):
        stage(measure, config_file(), "selection.method=mig", "selection.mig.tag_vectors=v.npy")
