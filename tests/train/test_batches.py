"""Steps, and how their records are dealt to ranks and forward passes."""

from itertools import chain, combinations, pairwise

import pytest
from accelerate.data_loader import SeedableRandomSampler
from hypothesis import given
from hypothesis import strategies as st

from train.batches import passes, plan_order, share

LENGTHS = [10 + (37 * i) % 90 for i in range(150)]


def order(ranks: int = 2, per_device: int = 8, batch_size: int = 64, epochs: int = 2):
    return plan_order(LENGTHS, batch_size=batch_size, per_device=per_device, epochs=epochs, seed=7,
                      ranks=ranks)


@pytest.mark.parametrize(("ranks", "per_device"), [(1, 64), (2, 8), (3, 8), (5, 2), (100, 8)])
def test_a_step_has_the_same_records_whatever_ranks_and_batches(ranks, per_device):
    plan, count = order(ranks, per_device), passes(64, per_device, ranks)
    by_rank = [plan.batches(rank) for rank in range(ranks)]
    assert {len(batches) for batches in by_rank} == {count * len(plan.steps)}
    for step in range(len(plan.steps)):
        seen = [record for batches in by_rank
                for record in chain(*batches[step * count: (step + 1) * count])]
        expected = sorted(chain(*order(1, 64).steps[step]))
        assert sorted(record for record in seen if record < len(LENGTHS)) == expected
        assert plan.records(step) == len(expected)
        assert plan.tokens(step) == sum(LENGTHS[record] for record in expected)


def test_an_epoch_has_every_record_once_in_the_order_of_a_seeded_sampler():
    plan = order()
    assert [plan.records(step) for step in range(6)] == [64, 64, 22] * 2
    sampler = SeedableRandomSampler(LENGTHS, data_seed=7)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        shuffled = list(sampler)
        for step, start in enumerate(range(0, 150, 64), start=3 * epoch):
            assert set(chain(*plan.steps[step])) == set(shuffled[start: start + 64])


def test_passes_of_like_records_have_about_as_many_tokens():
    plan = order(ranks=4)
    for step in plan.steps:
        for batch in step:
            assert [LENGTHS[i] for i in batch] == sorted((LENGTHS[i] for i in batch), reverse=True)
    assert plan.largest() <= 8 * max(LENGTHS)
    assert 4 * plan.slowest() < 1.25 * sum(plan.tokens(step) for step in range(6))


@pytest.mark.parametrize(("ranks", "expected"), [(1, 32), (2, 16), (3, 11), (16, 2), (64, 1)])
def test_a_rank_has_so_many_records_in_a_pass_on_average_at_most(ranks, expected):
    assert passes(64, 2, ranks) == expected


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(1, 5))
def test_no_other_shares_have_a_smaller_largest_batch(lengths, batches):
    lengths = sorted(lengths, reverse=True)

    def largest(sizes: list[int]) -> int:
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return max(size * lengths[start] for size, start in zip(sizes, starts, strict=True) if size)

    found = share(lengths, batches)
    assert sum(found) == len(lengths) and len(found) == batches
    if len(lengths) >= batches:
        assert min(found) >= 1
        bounds = ([0, *cut, len(lengths)]
                  for cut in combinations(range(1, len(lengths)), batches - 1))
        assert largest(found) == min(
            largest([end - start for start, end in pairwise(cut)]) for cut in bounds)
