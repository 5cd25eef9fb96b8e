"""How the models that measure for a method come into memory, on this rank."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adg.models import folders
from adg.models.loading import LocalModel

if TYPE_CHECKING:
    from adg.models.causal import CausalModel
    from adg.models.encoder import TextEncoder
    from adg.models.engines import Engine


@dataclass(frozen=True)
class Loader:
    """Loads models by the names that they have as inputs of stage measure."""

    sources: dict[str, str]  # {input: hub name, folder or GGUF file}
    output_dir: str  # the run folder, beside which a GGUF file is dequantised
    dtype: str = "float32"
    trust_remote_code: bool = False
    control_tokens: str | None = None  # generation.control_tokens
    gpus: int = 1  # of one model
    tokens_per_batch: int | None = None
    seed: int = 0  # of an engine
    gpu_memory_utilization: float = 0.9  # of vLLM

    def local(self, name: str) -> LocalModel:
        """A model in a folder."""
        return LocalModel(folders.local_folder(self.sources[name], self.output_dir),
                          self.trust_remote_code)

    def causal(self, name: str, dtype: str | None, max_length: int, key: str, *,
               vectors: bool = False) -> "CausalModel":
        """A causal language model that gives the losses of texts.

        InputError where it takes fewer than max_length tokens, which configuration key `key` asks
        for.
        """
        from adg.models.causal import load_causal

        return load_causal(self.local(name), dtype or self.dtype, max_length=max_length, key=key,
                           gpus=self.gpus, tokens_per_batch=self.tokens_per_batch,
                           vectors=vectors, control_tokens=self.control_tokens)

    def encoder(self, name: str, fields: str) -> "TextEncoder":
        """A sentence encoder that reads these fields of a record."""
        from adg.models import encoder

        return encoder.load(self.local(name), fields, gpus=self.gpus,
                            tokens_per_batch=self.tokens_per_batch,
                            control_tokens=self.control_tokens)

    def engine(self, engine: str, model: LocalModel, max_length: int) -> "Engine":
        """An engine that reads prompts of up to max_length tokens."""
        from adg.models import engines

        return engines.start(engine, model, self.dtype, max_length=max_length, seed=self.seed,
                             gpu_memory_utilization=self.gpu_memory_utilization,
                             tokens_per_batch=self.tokens_per_batch)

    def source(self, name: str, key: str) -> Path:
        """The folder of a model that transformers does not load; errors name `key`."""
        return folders.source_of(self.sources[name], key)
