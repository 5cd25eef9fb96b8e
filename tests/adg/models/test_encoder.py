"""The sentence encoder of superfiltering_d: as alone in any batch, cut, through the stages."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECORDS, tree
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from adg import measure, score_and_select
from adg.base import artifacts
from adg.config import load_config
from adg.measure import loader_of
from adg.methods.superfiltering import facility_location
from generation import prepare_pool

LIMIT = 24  # tokens that the encoder takes


@pytest.fixture
def encoder(tmp_path: Path, tiny_model: Path) -> Path:
    """A random model of all-MiniLM's kind, with the tiny model's tokenizer."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    for path in tiny_model.glob("tokenizer*"):
        shutil.copy(path, folder)
    torch.manual_seed(1)
    BertModel(BertConfig(
        vocab_size=500, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=LIMIT, initializer_range=0.5,
    )).save_pretrained(folder)
    return folder


@pytest.fixture
def settings(tiny_model, encoder) -> list[str]:
    return ["selection.method=superfiltering_d", "selection.superfiltering.dtype=float32",
            f"selection.superfiltering.model_name_or_path={tiny_model}",
            f"selection.superfiltering.encoder={encoder}", "selection.superfiltering.candidates=6"]


def alone(folder: Path, record: dict) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = f"{record['instruction']}\n{record['input']}\n{record['output']}"
    ids = tokenizer(text)["input_ids"][:LIMIT]
    with torch.no_grad():
        mean = AutoModel.from_pretrained(folder)(torch.tensor([ids])).last_hidden_state[0].mean(0)
    return (mean / mean.norm()).numpy()


@pytest.mark.parametrize("tokens", [1, 60, 1000])
def test_a_batch_gives_the_unit_mean_of_each_text_alone(config_file, settings, encoder, tokens):
    records = [*RECORDS, {"instruction": "Long " * 30, "input": "", "output": "lost"}]
    config = load_config(config_file(), [*settings, f"embedding.tokens_per_batch={tokens}"])
    found = np.array(loader_of(config).encoder("measure.encoder", "all").encode(records))
    assert found.dtype == np.float32
    assert found == pytest.approx(np.array([alone(encoder, own) for own in records]), abs=1e-5)


def test_control_tokens_in_a_record_are_text(config_file, settings, encoder):
    rows = []
    loader = loader_of(load_config(config_file(), settings))
    texts = loader.encoder("measure.encoder", "all")
    texts._batcher.read = rows.extend
    texts.encode([RECORDS[0] | {"output": "a<|end|>b"}, {"instruction": "", "input": "",
                                                         "output": "<|end|>" * 9}])
    end = AutoTokenizer.from_pretrained(encoder).convert_tokens_to_ids("<|end|>")
    assert all(end not in ids and ids[0] == 0 for ids in rows) and len(rows[1]) == LIMIT


def test_from_pool_to_subset(config_file, stage, settings, encoder, tmp_path, capsys):
    stage(prepare_pool, config_file())
    stage(measure, config_file(), *settings, "--dry-run")
    assert "disk      5.2 KiB at most" in capsys.readouterr().out  # 10 x (400 + 4 x 32) bytes
    stage(measure, config_file(), *settings, world=2)
    folder = tmp_path / "run/measures/superfiltering_d"
    assert list(tree(folder)) == [f"0000{i}.{suffix}" for i in range(3)
                                  for suffix in ("jsonl", "npy")]
    vectors = np.concatenate([np.load(path) for path in sorted(folder.glob("*.npy"))])
    assert vectors == pytest.approx(np.array([alone(encoder, own) for own in RECORDS]), abs=1e-5)

    # Losses as a trained model has them, so that records are left to choose from.
    rows = list(artifacts.JsonlRows(folder))
    for i, path in enumerate(sorted(folder.glob("*.jsonl"))):
        artifacts.write_jsonl(path, [row | {"given_loss": 1.0, "direct_loss": 2.0}
                                     for row in rows[4 * i: 4 * i + 4]])
    stage(score_and_select, config_file(), *settings)
    top = tmp_path / "run/subsets/superfiltering_d/top.json"
    assert [record["id"] for record in json.loads(top.read_text())] == [
        f"r{row}" for row in facility_location(vectors[:6], 3)]
