"""The backbone without its head, on this rank's device or spread over several GPUs, ready to embed.
"""

from pathlib import Path
from typing import Any

from adg.config import Config
from adg.models import folders, loading
from adg.models.batches import budget
from adg.models.layers import windows_of
from adg.models.loading import max_positions
from embedding.forward import Embedder
from embedding.sequences import Encoder


def check(folder: Path, config: Config) -> None:
    """InputError where the model has no such layers or its weights cannot fit this rank's memory.

    Reads the model's configuration only.
    """
    from transformers import AutoModel

    windows_of(config.embedding, describe(folder, config).num_hidden_layers)
    loading.check_room(AutoModel, folder, config.embedding_dtype(), config)


def load(folder: Path, config: Config) -> Any:
    """The model in evaluation mode; over several GPUs with embedding.gpus_per_model."""
    from transformers import AutoModel

    return loading.LocalModel(folder, config.model.trust_remote_code).load(
        AutoModel, config.embedding_dtype(), gpus=config.embedding.gpus_per_model)


def load_encoder(folder: Path, config: Config) -> Encoder:
    """What makes rows of texts."""
    tokenizer = folders.load_tokenizer(folder, trust_remote_code=config.model.trust_remote_code)
    described = describe(folder, config)
    return Encoder(tokenizer, config, longest=max_positions(described),
                   num_ids=described.vocab_size)


def load_embedder(folder: Path, config: Config) -> Embedder:
    """What makes vectors of rows."""
    model = load(folder, config)
    return Embedder(
        model, windows_of(config.embedding, model.config.get_text_config().num_hidden_layers),
        share_prompts=config.embedding.share_prompts,
        tokens_per_batch=budget(model, config.embedding.tokens_per_batch))


def describe(folder: Path, config: Config) -> Any:
    """transformers' configuration of the model."""
    return folders.describe(folder, trust_remote_code=config.model.trust_remote_code)
