"""Texts of unlike length to batches of about as much work each."""

TOKENS_PER_BATCH = {"cuda": 16384, "cpu": 1024}  # by device, where the configuration is silent


def plan_batches(lengths: list[int], tokens_per_batch: int) -> list[list[int]]:
    """Positions of each batch: longest first, padded size at most tokens_per_batch (or one)."""
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > tokens_per_batch:
            batches.append([])
        batches[-1].append(position)
    return batches
