"""What pool and configuration say of a stage whose inputs are missing, for a dry run.

Each takes the configuration and the number of the pool's records, 0 where there is none yet.
"""

from pathlib import Path

from adg.answer_vectors import num_bytes
from adg.base.units import space
from adg.config import Config
from adg.models.folders import source_of
from adg.models.loading import LocalModel


def of_vectors(config: Config, num_records: int) -> list[str]:
    """The texts to embed, and the disk that their vectors take where the model is a folder."""
    if not num_records:
        return []
    answers = num_records * config.generation.num_answers
    lines = [f"{num_records:,} instructions, {answers:,} answers"]
    source = source_of(config.model.name_or_path)
    if source.is_dir():
        width = LocalModel(source, config.model.trust_remote_code).described.hidden_size
        needed = 4 * num_records * width + num_bytes(
            num_records, width, config.embedding, config.generation.num_answers)
        lines.append(f"disk: {space(needed, Path(config.output_dir))}")
    return lines


def of_bins(config: Config, num_records: int) -> list[str]:
    """How many vectors are clustered, and to how many bins."""
    bins = config.clustering.count_bins(num_records)
    return [f"{num_records:,} vectors, to {bins:,} bins"] if num_records else []


def of_choice(config: Config, num_records: int) -> list[str]:
    """How many records are chosen."""
    chosen = _num_chosen(config, num_records)
    return [] if chosen is None else [f"{chosen:,} of {num_records:,} records"]


def of_training(config: Config, num_records: int) -> list[str]:
    """How many records and steps the fine-tuning takes."""
    chosen, settings = _num_chosen(config, num_records), config.train
    if chosen is None:
        return []
    steps = settings.epochs * -(-chosen // settings.batch_size)
    return [f"{chosen:,} records at most, {settings.epochs} epochs, {steps:,} steps"]


def _num_chosen(config: Config, num_records: int) -> int | None:
    """The records of top; None where there is no pool yet, or the method's own settings decide."""
    if not num_records or config.selection.method == "pre_experience":
        return None
    return config.selection.budget if config.selection.facts().heeds_budget else num_records
