"""A Llama of random weights, for machines that have no model: a folder with a description, a
tokenizer and the weights; at 8B no weights, which are drawn on the device where they are needed."""

from itertools import cycle, islice
from pathlib import Path
from typing import Any

from adg.base import distributed
from adg.config import Config
from adg.models import folders
from adg.records import read_source
from tests.bench.embed import LLAMA_8B

DEMO_POOL = Path(__file__).resolve().parents[3] / "configs/demo/pool.jsonl"
SHAPES = {
    "8b": LLAMA_8B,
    "1b": LLAMA_8B | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                      "tie_word_embeddings": True},
    "tiny": LLAMA_8B | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5,
                        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 4096},
}
_UNWRITTEN = "8b"  # 16 GB, and on one GPU no optimiser for it
_VOCABULARY = 4096
_OUTPUTS = 6  # of the demo's pool that make one output, about as long as those of Alpaca-GPT4


def records(number: int) -> list[dict]:
    """So many records from the demo's pool, each with the outputs of its neighbours too."""
    pool = [record for record, _ in read_source(DEMO_POOL)]
    return [{"id": str(row), "instruction": record["instruction"], "input": record["input"],
             "output": "\n\n".join(own["output"] for own in islice(cycle(pool), row % len(pool),
                                                                  row % len(pool) + _OUTPUTS))}
            for row, record in zip(range(number), cycle(pool), strict=False)]


def make(folder: Path, shape: str, config: Config) -> None:
    """The folder of a model of this shape, its weights in model.dtype; the demo's pool teaches the
    tokenizer."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
    from tokenizers.models import BPE
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([DEMO_POOL.read_text(encoding="utf-8")], trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=["<|begin|>", "<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>",
                            eos_token="<|end|>").save_pretrained(folder)
    LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, bos_token_id=0,
                eos_token_id=1).save_pretrained(folder)
    if shape != _UNWRITTEN:
        draw(AutoModelForCausalLM, folder, config).save_pretrained(folder)


def folder_of(config: Config) -> Path:
    """The model's folder, be it without weights."""
    folder = Path(config.model.name_or_path)
    return folder if is_random(folder) else folders.local_folder(
        config.model.name_or_path, config.output_dir)


def is_random(folder: Path) -> bool:
    """Whether a folder describes a model and holds no weights of it."""
    return (folder / "config.json").is_file() and not any(folder.glob("*.safetensors"))


def draw(kind: Any, folder: Path, config: Config) -> Any:
    """The model that a folder describes, with weights drawn on the first GPU or the CPU.

    `kind` is one of transformers' Auto classes.
    """
    import torch
    from transformers import AutoConfig

    torch.manual_seed(0)
    with torch.device(distributed.device()):
        return kind.from_config(AutoConfig.from_pretrained(folder),
                                dtype=getattr(torch, config.model.dtype)).eval()
