import numpy as np
import pytest

from adg.errors import InputError
from adg.selection import largest_remainder, select_paper


def test_quotas_by_hand():
    assert largest_remainder(np.array([5, 3, 2]), 4).tolist() == [2, 1, 1]  # 2, 1.2, 0.8
    assert largest_remainder(np.array([1, 1, 1]), 2).tolist() == [1, 1, 0]  # equal: the earlier bin
    assert largest_remainder(np.array([3, 3, 6]), 2).tolist() == [1, 0, 1]  # 0.5, 0.5, 1
    assert largest_remainder(np.array([4, 0, 2]), 6).tolist() == [4, 0, 2]


def test_subsets_by_hand():
    scores = np.array([0.9, 0.1, 0.5, 0.7, 0.3, 0.2, 0.8, 0.6, 0.4])
    bins = np.array([0, 0, 0, 0, 0, 0, 7, 7, 7])  # six and three records; budget 3: two and one
    top, middle, bottom = select_paper(scores, bins, 3)
    assert top.tolist() == [0, 6, 3]  # bin 0: .9 and .7; bin 7: .8; by score
    assert bottom.tolist() == [8, 5, 1]  # .4; .2 and .1
    assert middle.tolist() == [7, 2, 4]  # what is left


def test_ties_go_by_pool_order_and_a_record_without_score_is_never_chosen():
    scores = np.array([np.nan, 0.5, 0.5, 0.5, 0.5, np.nan])
    top, middle, bottom = select_paper(scores, np.zeros(6, int), 1)
    assert top.tolist() == [1] and bottom.tolist() == [4]
    assert not {0, 5} & {*top, *middle, *bottom}


def test_controls_of_bins_too_small_come_from_elsewhere():
    scores = np.array([0.9, 0.8, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.6])
    bins = np.array([1, 2, 3, 3, 3, 3, 3, 3, 3])  # two bins of one record
    top, middle, bottom = select_paper(scores, bins, 3)
    assert len(middle) == len(bottom) == 3
    assert len({*top, *middle, *bottom}) == 9


def test_controls_shrink_where_three_budgets_exceed_the_pool():
    top, middle, bottom = select_paper(np.arange(10.0), np.zeros(10, int), 5)
    assert (len(top), len(middle), len(bottom)) == (5, 2, 2)


@pytest.mark.parametrize("budget", [0, 4])
def test_budget_outside_the_scored_records_is_refused(budget: int):
    with pytest.raises(InputError, match="selection.budget"):
        select_paper(np.array([0.1, np.nan, 0.3, 0.2]), np.zeros(4, int), budget)


def test_contract_on_random_pools():
    rng = np.random.default_rng(0)
    for _ in range(400):
        n = int(rng.integers(2, 80))
        scores = np.where(rng.random(n) < 0.1, np.nan, rng.integers(0, 9, n) / 8)
        bins = rng.integers(0, rng.integers(1, 12), n)
        scored = int(np.count_nonzero(~np.isnan(scores)))
        if not scored:
            continue
        budget = int(rng.integers(1, scored + 1))
        subsets = select_paper(scores, bins, budget)
        control = min(budget, (scored - budget) // 2)
        assert [len(part) for part in subsets] == [budget, control, control]
        everything = np.concatenate(subsets)
        assert len(set(everything.tolist())) == len(everything)
        assert not np.isnan(scores[everything]).any()
        for label in np.unique(bins):
            members = [i for i in np.argsort(-scores, kind="stable")[:scored] if bins[i] == label]
            chosen = [i for i in subsets.top if bins[i] == label]
            assert chosen == members[: len(chosen)]
            assert abs(len(chosen) - budget * len(members) / scored) < 1
        relabelled = select_paper(scores, 100 - bins, budget)
        assert all((a == b).all() for a, b in zip(subsets, relabelled, strict=True))
