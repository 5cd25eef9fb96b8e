"""What the tests share: a tiny random model, a small pool, a configuration, ways to run a stage."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml
from hypothesis import settings

from adg.base import distributed, process

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
ROOT = Path(__file__).resolve().parents[1]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # as many threads as processors, in each worker, get in the way
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["PYTHONWARNINGS"] = "ignore"

_TEXT = [
    "Name the three primary colours. Red, yellow and blue are the primary colours.",
    "Write a function that adds two numbers. def add(a, b): return a + b",
    "Translate the sentence into French. Le chat dort sur le canapé.",
    "What is 12 times 7? It is 84, because 12 times 7 is 84.",
]
_CHAT = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
         "{% if add_generation_prompt %}<|assistant|>{% endif %}")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 5 layers (head size 32, as vLLM's processor kernels ask) with a byte-level
    BPE tokenizer that adds a begin-of-text token and has a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
    tokenizer.train_from_iterator(_TEXT, trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|end|>",
        chat_template=_CHAT).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=64, intermediate_size=96,
        num_hidden_layers=5, num_attention_heads=2, num_key_value_heads=2, head_dim=32,
        max_position_embeddings=2048, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        initializer_range=0.2,
    )).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gguf(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of the tiny model's weights and vocabulary, in float32."""
    import gguf
    from safetensors.torch import load_file

    path = tmp_path_factory.mktemp("tiny-gguf") / "tiny.gguf"
    config = json.loads((tiny_model / "config.json").read_text())
    bpe = json.loads((tiny_model / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    for ours, theirs in (("context_length", "max_position_embeddings"),
                         ("block_count", "num_hidden_layers"), ("embedding_length", "hidden_size"),
                         ("feed_forward_length", "intermediate_size"),
                         ("head_count", "num_attention_heads"),
                         ("head_count_kv", "num_key_value_heads"),
                         ("layer_norm_rms_eps", "rms_norm_eps"), ("vocab_size", "vocab_size")):
        getattr(writer, f"add_{ours}")(config[theirs])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, value in load_file(tiny_model / "model.safetensors").items():
        writer.add_tensor(names.get_name(name, (".weight",)), value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


RECORDS = [
    {"id": f"r{i}", "instruction": text, "input": "" if i % 3 else f"number {i}",
     "output": f"Answer {i}."}
    for i, text in enumerate([
        "Name the colours.", "Add the numbers.", "Translate into French.", "What is 12 times 7?",
        "Write a poem.", "说出三种颜色。", "Sort the list.", "Explain the joke.",
        "Summarise the text.", "Who wrote the book?",
    ])
]


@pytest.fixture
def config_file(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Writes the tiny model's configuration: config_file(section={"key": value}, ...) -> path."""

    def write(name: str = "config.yaml", **sections: object) -> Path:
        pool = tmp_path / "pool.jsonl"
        if not pool.exists():
            pool.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
        config = {
            "output_dir": str(tmp_path / "run"), "chunk_size": 4,
            "model": {"name_or_path": str(tiny_model), "dtype": "float32"},
            "pool": {"path": str(pool)},
            "generation": {"sampler": "transformers", "max_new_tokens": 6, "max_model_len": 512,
                           "num_answers": 3},
            "clustering": {"num_bins": 3}, "selection": {"budget": 3},
            "train": {"epochs": 2, "batch_size": 2, "per_device_batch_size": 1, "max_length": 256},
            "eval": {"data_dir": str(ROOT / "configs/demo/benchmarks"), "limit": 1,
                     "max_new_tokens": 8, "allow_code_execution": True},
        }
        for section, values in sections.items():
            if isinstance(values, dict):
                config.setdefault(section, {}).update(values)
            else:
                config[section] = values
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a stage's main in this process: stage(module, path, "a.b=1").

    With world=3 it is run by three ranks; with rank=0 too, only that one is run, until it waits for
    another or ends.
    """

    def run(module: object, *arguments: object, rank: int | None = None, world: int = 1) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["stage", *map(str, arguments)])
            patch.setenv("RANK", "0")
            patch.setenv("WORLD_SIZE", str(world))
            try:
                if world == 1:
                    module.main()
                else:
                    Ranks(range(world) if rank is None else [rank], patch).run(module.main)
            finally:
                process.unwatch()  # a stage that fails ends with its process, which this one is not

    return run


class Ranks:
    """Ranks as threads of one process, of which one runs at a time, until it waits for another."""

    class Waits(BaseException):
        """What ends a rank that waits for one that does not run."""

    def __init__(self, ranks: Iterable[int], patch: pytest.MonkeyPatch) -> None:
        from torch.distributed import HashStore

        self.store, self.running, self.errors = HashStore(), list(ranks), []
        self.waiting = False  # for one that does not run
        self.turns = {rank: threading.Semaphore(0) for rank in self.running}
        patch.setattr(distributed, "_store", lambda: self.store)
        patch.setattr(distributed, "_value", self.value)

    def run(self, main: Callable[[], None]) -> None:
        """Have each rank run `main`; raises what the first one to fail has raised."""
        threads = [threading.Thread(target=self._rank, args=(rank, main)) for rank in self.running]
        for thread in threads:
            thread.start()
        self.turns[self.running[0]].release()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        if self.store.check(["chunks/0"]) and not self.waiting:
            assert self.store.check([f"finished/{rank}" for rank in self.turns]), "one left early"

    def value(self, key: str, other: int) -> bytes:
        """As the function of adg.base.distributed."""
        rank = distributed.rank()
        while not self.store.check([key]):
            if other not in self.running:
                raise self.Waits
            self.turns[other].release()
            self._take_turn(rank)
        return self.store.get(key)

    def _rank(self, rank: int, main: Callable[[], None]) -> None:
        self._take_turn(rank)
        try:
            main()
        except self.Waits:
            self.waiting = True
        except BaseException as error:
            self.errors.append(error)
        self.running.remove(rank)
        if self.running:
            self.turns[self.running[0]].release()

    def _take_turn(self, rank: int) -> None:
        self.turns[rank].acquire()
        os.environ["RANK"] = str(rank)


def command(module: str, *arguments: object, ranks: int = 0, **environment: str
            ) -> subprocess.CompletedProcess:
    """Runs a stage as a user does: python -m, or torchrun where ranks is given."""
    launcher = ["adg.pipeline.launch", f"--nproc_per_node={ranks}", "-m"] if ranks else []
    return subprocess.run(
        [sys.executable, "-m", *launcher, module, *map(str, arguments)], cwd=ROOT, check=False,
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def tree(folder: Path) -> dict[str, bytes]:
    """{relative path: content} of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}
