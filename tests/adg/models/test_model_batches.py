"""Batches by a token budget: every item once, halved out of memory, padded on either side."""

import pytest
import torch

from adg.base.errors import InputError
from adg.models.batches import Batcher, padded, plan_batches


def test_batches_keep_to_the_budget_and_hold_every_text_once():
    lengths = [5, 100, 7, 7, 30, 1]
    batches = plan_batches(lengths, 60)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    for batch in batches:
        assert len(batch) * max(lengths[i] for i in batch) <= 60 or len(batch) == 1


def of_room(room: int, seen: list[list[str]]):
    """Reads texts of at most so many letters together, padding included."""
    def read(batch: list[str]) -> list[str]:
        if len(batch) * max(map(len, batch)) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        seen.append(batch)
        return [text.upper() for text in batch]

    return read


def test_results_come_in_the_items_order_and_the_budget_is_halved(capsys):
    seen: list[list[str]] = []
    batcher = Batcher(of_room(6, seen), 20, limit="a.max_length")
    texts = ["aa", "bbbb", "c", "ddd", "eeee"]
    assert batcher.read(texts) == [text.upper() for text in texts]
    assert seen == [["bbbb"], ["eeee"], ["ddd"], ["aa", "c"]]
    assert batcher.tokens_per_batch == 4
    assert "[measure] out of memory with 5 x 4 tokens: split" in capsys.readouterr().err
    with pytest.raises(InputError, match="a text of 7 tokens does not fit .*: lower a.max_length"):
        batcher.read(["a" * 7])


def test_an_item_that_does_not_fit_is_split_where_it_can_be():
    seen: list[list[str]] = []
    batcher = Batcher(of_room(3, seen), 9, split=lambda text: text.split("-"))
    assert list(batcher.batches(["aaa-bb", "c"])) == [(["aaa"], ["AAA"]), (["bb"], ["BB"]),
                                                      (["c"], ["C"])]
    with pytest.raises(InputError, match="a text of 4 tokens does not fit"):
        batcher.read(["dddd"])


def test_padding_goes_to_either_side():
    assert padded([[1, 2, 3], [4]]).tolist() == [[1, 2, 3], [4, 0, 0]]
    assert padded([[1, 2, 3], []], side="left", value=9).tolist() == [[1, 2, 3], [9, 9, 9]]
    assert padded([[1.5], []], dtype=torch.float32).dtype == torch.float32
