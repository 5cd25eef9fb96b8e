"""Method scar, through the package where it is installed, and through a stand-in otherwise."""

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import RECORDS

from adg import measure, score_and_select
from adg.base import artifacts
from adg.base.errors import InputError
from adg.config import load_config
from adg.measure import loader_of
from adg.methods.scar import StyleScores
from generation import prepare_pool

STAND_IN = Path(__file__).parent / "stand_in"
SETTINGS = ("selection.method=scar", "selection.scar.max_length=24", "selection.scar.batch_size=3")


@pytest.fixture(params=["stand-in", "scar-tool"])
def package(request, monkeypatch):
    """The module style_ranker.ranker, of the package or of the stand-in."""
    if request.param == "scar-tool":
        pytest.importorskip("style_ranker")
    else:
        for name in [name for name in sys.modules if name.split(".")[0] == "style_ranker"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(STAND_IN)
    yield importlib.import_module("style_ranker.ranker")
    if request.param == "stand-in":
        for name in [name for name in sys.modules if name.split(".")[0] == "style_ranker"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A random RoBERTa of two layers with a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    folder = tmp_path_factory.mktemp("encoder")
    letters = ["<s>", "<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>",
                            eos_token="</s>", model_max_length=30).save_pretrained(folder)
    torch.manual_seed(0)
    RobertaModel(RobertaConfig(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, initializer_range=0.5)).save_pretrained(folder)
    return folder


@pytest.fixture
def ranker(package, encoder, tmp_path) -> Callable[..., str]:
    """Writes a ranker as the package does, other weights than the encoder's in it, and gives the
    override that names it: ranker(drop="...") leaves out the weights of that prefix."""
    import torch
    from transformers import AutoTokenizer

    def write(drop: str = "none") -> str:
        folder = tmp_path / "ranker"
        folder.mkdir()
        given = {"encoder_name": str(encoder), "hidden_dim": 16, "linear_dim": 8}
        (folder / "config.json").write_text(json.dumps(given | {"model_type": "style_ranker"}))
        torch.manual_seed(1)
        config = importlib.import_module("style_ranker.ranker.config")
        model = importlib.import_module("style_ranker.ranker.model").StyleRanker(
            config.StyleRankerConfig(**given))
        weights = {name: value + 0.2 * torch.randn(value.shape)
                   for name, value in model.state_dict().items() if not name.startswith(drop)}
        weights["encoder.embeddings.position_ids"] = torch.arange(32)[None]  # as older ones have
        torch.save(weights, folder / "pytorch_model.bin")
        AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
        return f"selection.scar.model_name_or_path={folder}/pytorch_model.bin"

    return write


def one_by_one(folder: Path, encoder: Path) -> list[float]:
    """The ranker's score of each record alone."""
    import torch
    from style_ranker.ranker.config import StyleRankerConfig
    from style_ranker.ranker.model import StyleRanker
    from transformers import AutoTokenizer

    model = StyleRanker(StyleRankerConfig.from_pretrained(str(folder))).eval()
    model.load_state_dict(torch.load(folder / "pytorch_model.bin"), strict=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores = []
    for record in RECORDS:
        joined = record["instruction"] + ("\n" + record["input"] if record["input"] else "")
        inputs = [part for text in (joined, record["output"])
                  for part in tokenizer(text, return_tensors="pt", truncation=True,
                                        max_length=24).values()]
        with torch.no_grad():
            scores.append(model(*inputs).item())
    return scores


def test_records_are_ranked_by_their_scores(config_file, stage, tmp_path, ranker, encoder):
    settings = (config_file(), *SETTINGS, ranker())
    expected = one_by_one(tmp_path / "ranker", encoder)
    stage(prepare_pool, settings[0])
    stage(measure, *settings)  # chunks of 4, 4 and 2 records in batches of 3
    rows = list(artifacts.JsonlRows(tmp_path / "run/measures/scar"))
    assert [row["id"] for row in rows] == [record["id"] for record in RECORDS]
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 4) for score in expected}) == 10
    stage(score_and_select, *settings)
    order = sorted(range(10), key=lambda i: -expected[i])
    found = {name: [record["id"] for record in json.loads(
        (tmp_path / f"run/subsets/scar/{name}.json").read_text())]
        for name in ("top", "middle", "bottom")}
    assert found["top"] == [f"r{i}" for i in order[:3]]
    assert set(found["bottom"]) == {f"r{i}" for i in order[-3:]}


def test_control_tokens_in_a_record_are_text(config_file, ranker, monkeypatch):
    config = load_config(config_file(), [*SETTINGS, ranker()])
    scores = StyleScores(loader_of(config), config.selection.scar)
    read = []
    monkeypatch.setattr(importlib.import_module("style_ranker.rank"), "score_pairs",
                        lambda model, tokenizer, instructions, answers, **options: [
                            read.append(tokenizer(text)["input_ids"]) or 0.0 for text in answers])
    texts = ["b a", "b</s>a", "</s>"]
    scores.measure([{"instruction": "Sort.", "input": "", "output": text} for text in texts])
    assert [ids.count(2) for ids in read[:3]] == [1, 1, 1]  # the end that the tokenizer adds
    assert scores._tokenizer.decode(read[1]).replace(" ", "") == "<s>b</s>a</s>"
    scores.measure([{"instruction": "Sort.", "input": "", "output": "b a"}])
    assert read[-1] == read[0]


def test_out_of_memory_halves_the_batch_and_is_said(config_file, stage, tmp_path, ranker, encoder,
                                                    monkeypatch, capsys):
    import torch

    settings = (config_file(), *SETTINGS, ranker(), "selection.scar.batch_size=5")
    expected = one_by_one(tmp_path / "ranker", encoder)
    stage(prepare_pool, settings[0])
    rank = importlib.import_module("style_ranker.rank")
    whole, room = rank.score_pairs, 2

    def short_of_memory(*given, batch_size, **options):
        if batch_size > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return whole(*given, batch_size=batch_size, **options)

    monkeypatch.setattr(rank, "score_pairs", short_of_memory)
    stage(measure, *settings)
    rows = list(artifacts.JsonlRows(tmp_path / "run/measures/scar"))
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-5)
    assert "selection.scar.batch_size is 2 from here on" in capsys.readouterr().err
    room = 1
    with pytest.raises(InputError, match="two records do not fit .*lower selection.scar.max_"):
        stage(measure, *settings, "selection.measure=again")


def test_equal_scores_keep_the_pools_order(config_file, stage, tmp_path):
    settings = (config_file(), *SETTINGS)
    stage(prepare_pool, settings[0])
    artifacts.write_jsonl(tmp_path / "run/measures/scar/all.jsonl", (
        {"id": record["id"], "score": i % 2} for i, record in enumerate(RECORDS)))
    stage(score_and_select, *settings)
    top = json.loads((tmp_path / "run/subsets/scar/top.json").read_text())
    assert [record["id"] for record in top] == ["r1", "r3", "r5"]


@pytest.mark.parametrize(("override", "drop", "message"), [
    ("selection.scar.model_name_or_path={tmp_path}/ranker", "none", "its weights as a pickle"),
    ("seed=1", "encoder.encoder.layer.1", "16 missing"),
    ("seed=1", "encoder.embeddings.word", "1 missing ['encoder.embeddings.word_embeddings"),
    ("selection.scar.max_length=31", "none", "selection.scar.max_length is 31, but the ranker "
                                             "takes 30 tokens"),
    ("selection.scar.encoder_name_or_path={coded}", "none", "model.trust_remote_code is false"),
    ("selection.scar.encoder_name_or_path={small}", "none", "are not those of a ranker"),
    ("selection.scar.encoder_name_or_path={other}", "none", "are not those of a ranker"),
])
def test_what_would_give_other_scores_is_refused(config_file, stage, tmp_path, ranker, encoder,
                                                 override, drop, message):
    from transformers import RobertaConfig, RobertaModel

    for name, changes in (("small", {"num_hidden_layers": 1}), ("other", {"hidden_size": 32})):
        described = RobertaConfig.from_pretrained(encoder)
        described.update(changes)
        RobertaModel(described).save_pretrained(tmp_path / name)
    RobertaModel(RobertaConfig.from_pretrained(encoder)).save_pretrained(tmp_path / "coded")
    path = tmp_path / "coded/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "m.M"}}))
    named = override.format(**{name: tmp_path / name for name in ("coded", "small", "other")},
                            tmp_path=tmp_path)
    settings = (config_file(), *SETTINGS, ranker(drop), named)
    stage(prepare_pool, settings[0])
    with pytest.raises(InputError) as error:
        stage(measure, *settings)
    assert message in str(error.value)
    assert not list((tmp_path / "run/measures").rglob("*.jsonl"))


def test_a_missing_package_is_named_with_what_installs_it(config_file, stage, monkeypatch, ranker):
    settings = (config_file(), *SETTINGS, ranker())
    stage(prepare_pool, settings[0])
    monkeypatch.setitem(sys.modules, "style_ranker.ranker.config", None)
    with pytest.raises(InputError, match="pip install --no-deps scar-tool==0.35"):
        stage(measure, *settings)
