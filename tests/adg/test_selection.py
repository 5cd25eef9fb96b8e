import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adg.base.errors import InputError
from adg.selection import largest_remainder, select_paper, select_released


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


@st.composite
def pools(draw, ties: bool = True) -> tuple[np.ndarray, np.ndarray, int]:
    """(scores, bins, budget) of a random pool; some records without a score."""
    n = draw(st.integers(2, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.integers(0, 9, n) / 8 if ties else rng.permutation(n) / n
    scores = np.where(rng.random(n) < draw(st.sampled_from([0.0, 0.2])), np.nan, scores)
    scores[0] = 0.5 if ties else 2.0
    scored = int(np.count_nonzero(~np.isnan(scores)))
    bins = rng.integers(0, draw(st.integers(1, 14)), n)
    return scores, bins, draw(st.integers(1, scored))


@given(pools())
def test_exact_disjoint_and_the_best_of_each_bin(pool):
    scores, bins, budget = pool
    scored = np.flatnonzero(~np.isnan(scores))
    subsets = select_paper(scores, bins, budget)
    control = min(budget, (len(scored) - budget) // 2)
    assert [len(part) for part in subsets] == [budget, control, control]
    everything = np.concatenate(subsets)
    assert len(set(everything.tolist())) == len(everything)
    assert set(everything) <= set(scored)
    for part in subsets:
        assert part.tolist() == sorted(part, key=lambda i: (-scores[i], i))
    for label in np.unique(bins[scored]):
        members = sorted(scored[bins[scored] == label], key=lambda i: (-scores[i], i))
        chosen = [i for i in subsets.top if bins[i] == label]
        assert chosen == members[: len(chosen)]
        assert abs(len(chosen) - budget * len(members) / len(scored)) < 1


@given(pools())
def test_controls_keep_to_their_bins_where_the_bins_allow_it(pool):
    scores, bins, budget = pool
    scored = np.flatnonzero(~np.isnan(scores))
    subsets = select_paper(scores, bins, budget)
    sizes = {label: np.count_nonzero(bins[scored] == label) for label in np.unique(bins[scored])}
    top = {label: np.count_nonzero(bins[subsets.top] == label) for label in sizes}
    control = len(subsets.bottom)
    if all(sizes[label] - top[label] >= 2 * np.ceil(control * sizes[label] / len(scored))
           for label in sizes):
        for part in (subsets.middle, subsets.bottom):
            for label, size in sizes.items():
                own = np.count_nonzero(bins[part] == label)
                assert abs(own - control * size / len(scored)) < 1


@given(pools(), st.randoms(use_true_random=False))
def test_the_names_of_the_bins_do_not_matter(pool, random):
    scores, bins, budget = pool
    names = list(range(100, 100 + int(bins.max()) + 1))
    random.shuffle(names)
    renamed = np.array(names)[bins]
    for select in (select_paper, select_released):
        for one, other in zip(select(scores, bins, budget), select(scores, renamed, budget),
                              strict=True):
            assert one.tolist() == other.tolist()


@given(pools(ties=False), st.integers(0, 2**32 - 1))
def test_the_order_of_the_pool_does_not_matter(pool, seed):
    scores, bins, budget = pool
    order = np.random.default_rng(seed).permutation(len(scores))
    moved = select_paper(scores[order], bins[order], budget)
    for one, other in zip(select_paper(scores, bins, budget), moved, strict=True):
        assert one.tolist() == order[other].tolist()


def by_the_table(scores: np.ndarray, bins: np.ndarray, budget: int) -> list[list[int]]:
    """Recipe `released` a second time, record by record, from the description of the release."""
    chosen = [[], [], []]
    for label in dict.fromkeys(bins.tolist()):
        ranked = sorted((i for i in range(len(bins)) if bins[i] == label),
                        key=lambda i: scores[i], reverse=True)
        quota = central = max(1, budget * len(ranked) // len(scores))
        if len(ranked) < 3:
            chosen[1] += sorted(ranked)
            continue
        if 3 * quota > len(ranked):
            quota = max(1, quota * len(ranked) // (3 * quota))
            central = len(ranked) - 2 * quota
        between = ranked[quota: len(ranked) - quota]
        start = (len(between) - central) // 2
        chosen[0] += ranked[:quota]
        chosen[1] += between[start: start + central]
        chosen[2] += ranked[len(ranked) - quota:]
    return [part if len(part) <= budget else
            sorted(part, key=lambda i: scores[i], reverse=number < 2)[:budget]
            for number, part in enumerate(chosen)]


@given(pools())
def test_released_quotas_are_the_tables(pool):
    scores, bins, budget = pool
    scores = np.nan_to_num(scores, nan=0.1)  # the release knows no record without a score
    expected = by_the_table(scores, bins, budget)
    assert [part.tolist() for part in select_released(scores, bins, budget)] == expected


def test_released_quotas_by_hand():
    scores = np.array([0.1, 0.9, 0.5, 0.4, 0.8, 0.7, 0.2])
    bins = np.array([5, 5, 5, 5, 5, 3, 3])  # budget 2 of 7: five records give one to each subset
    top, middle, bottom = select_released(scores, bins, 2)
    assert top.tolist() == [1] and bottom.tolist() == [0]  # fewer than the budget, and not filled
    assert middle.tolist() == [5, 2]  # 2 between .8, .5, .4; 5 and 6 whole; cut to two by score
