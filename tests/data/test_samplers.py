import json
import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remind_jax.data import samplers
from remind_jax.errors import UserError
from tests.reference import shapley as slow

SIZES = st.integers(1, 40)


def stream(order: samplers.Order, batch_size: int, steps: int) -> np.ndarray:
    return np.concatenate([order(step, batch_size) for step in range(steps)])


@given(n=SIZES, batch_size=SIZES, seed=st.integers(0, 2**64 - 1))
def test_every_epoch_holds_every_sample_once(n: int, batch_size: int, seed: int) -> None:
    places = stream(samplers.shuffled(seed, n), batch_size, steps=-(-3 * n // batch_size))
    for epoch in range(3):
        assert sorted(places[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(n=SIZES, batch_size=SIZES, start=st.integers(0, 100))
def test_the_stream_does_not_depend_on_where_it_is_cut(n: int, batch_size: int, start: int) -> None:
    whole = stream(samplers.shuffled(3, n), 1, steps=(start + 2) * batch_size)
    resumed = samplers.shuffled(3, n)  # has seen no earlier step
    assert resumed(start, batch_size).tolist() == whole[start * batch_size : (start + 1) * batch_size].tolist()


def test_epochs_and_seeds_differ() -> None:
    epochs = samplers.shuffled(0, 1000)(0, 3000).reshape(3, 1000)
    others = np.stack([samplers.shuffled(seed, 1000)(0, 1000) for seed in (1, 2, 42)])
    distinct = {tuple(order) for order in np.concatenate([epochs, others, np.arange(1000)[None]])}
    assert len(distinct) == 7


def test_a_far_step_costs_no_walk_through_the_earlier_ones() -> None:
    far = 10**12
    batch = samplers.shuffled(0, 7)(far, 7)
    assert sorted(batch) == list(range(7))
    np.testing.assert_array_equal(batch, samplers.shuffled(0, 7)(far, 7))


def test_every_place_of_an_epoch_is_equally_likely() -> None:
    # 4 samples, 4,000 epochs: each sample is first 1,000 times on average, standard deviation sqrt(4000 * 3/16) = 27.
    first = samplers.shuffled(0, 4)(0, 16_000).reshape(4000, 4)[:, 0]
    assert np.abs(np.bincount(first, minlength=4) - 1000).max() < 5 * 27


def test_the_stream_is_the_one_of_earlier_versions() -> None:
    # A resumed run continues the stream it began. If this fails, resumed runs see other data: raise the major version.
    assert samplers.shuffled(42, 10)(0, 10).tolist() == [0, 2, 6, 9, 3, 5, 4, 8, 7, 1]
    groups = np.arange(10) % 3
    assert samplers.group_balanced(42, groups)(5, 10).tolist() == [3, 9, 4, 2, 7, 4, 7, 9, 9, 4]
    others = (
        samplers.most_modalities_first(42, groups, 1),
        samplers.group_pairs(42, groups),
        samplers.fair_batch(42, groups, np.array([0.2, 0.3, 0.5]), 3),
    )
    assert [order(0, 10).tolist() for order in others] == [
        [8, 5, 2, 7, 1, 4, 9, 6, 0, 3],
        [7, 8, 4, 8, 7, 2, 4, 2, 7, 2],
        [8, 1, 6, 5, 2, 4, 8, 0, 7, 2],
    ]


def test_threads_see_the_same_order() -> None:
    order, alone = samplers.shuffled(5, 50), samplers.shuffled(5, 50)
    found = {}

    def ask(step: int) -> None:
        found[step] = order(step, 7)

    threads = [threading.Thread(target=ask, args=(step,)) for step in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for step in range(40):
        np.testing.assert_array_equal(found[step], alone(step, 7))


def test_groups_are_drawn_alike_and_members_alike_within() -> None:
    groups = np.array([7] * 90 + [0] * 9 + [3])  # numbers need not be 0 to g-1, nor all of them present
    draws = stream(samplers.group_balanced(0, groups), 100, steps=300)
    # 30,000 draws: 10,000 a group, standard deviation sqrt(30000 * 2/9) = 82.
    for group in (0, 3, 7):
        assert abs(np.sum(groups[draws] == group) - 10_000) < 5 * 82
    # 10,000 draws over the 90 members of group 7: 111 each, standard deviation 10.5.
    assert np.abs(np.bincount(draws, minlength=100)[:90] - 111).max() < 6 * 10.5
    shuffled = stream(samplers.shuffled(0, 100), 100, steps=300)
    assert np.sum(groups[shuffled] == 3) == 300, "unbalanced, the smallest group comes once in a hundred"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), SIZES, st.integers(0, 1000))
def test_balanced_positions_are_valid_and_depend_on_the_step_only(
    groups: list[int], batch_size: int, step: int
) -> None:
    batch = samplers.group_balanced(1, np.array(groups))(step, batch_size)
    assert batch.dtype == np.int64
    assert batch.shape == (batch_size,)
    assert batch.min() >= 0
    assert batch.max() < len(groups)
    np.testing.assert_array_equal(batch, samplers.group_balanced(1, np.array(groups))(step, batch_size))


def test_balanced_steps_and_seeds_differ() -> None:
    order = samplers.group_balanced(0, np.arange(1000) % 5)
    batches = [order(0, 64), order(1, 64), samplers.group_balanced(1, np.arange(1000) % 5)(0, 64)]
    assert len({tuple(batch) for batch in batches}) == 3


# ---- Most modalities first ------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 4), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 3))
def test_first_epochs_go_down_in_modalities_and_later_ones_are_shuffled(
    observed: list[int], batch_size: int, epochs: int
) -> None:
    observed, n = np.array(observed), len(observed)
    order = samplers.most_modalities_first(5, observed, epochs)
    places = stream(order, batch_size, steps=-(-5 * n // batch_size))
    for epoch in range(5):
        part = places[epoch * n : (epoch + 1) * n]
        assert sorted(part) == list(range(n))
        if epoch < epochs:
            assert (np.diff(observed[part]) <= 0).all()
        else:
            assert part.tolist() == stream(samplers.shuffled(5, n), n, epoch + 1)[epoch * n :].tolist()
    # From the middle, as a resumed run would ask.
    resumed = samplers.most_modalities_first(5, observed, epochs)
    assert resumed(2, batch_size).tolist() == stream(order, batch_size, 3)[2 * batch_size :].tolist()


def test_samples_alike_in_modalities_do_not_come_in_the_order_of_the_table() -> None:
    order = samplers.most_modalities_first(0, np.repeat([1, 3, 2], 50), 2)
    epochs = [order(epoch, 150) for epoch in range(2)]
    assert sorted(epochs[0][:50]) == list(range(50, 100))
    assert sorted(epochs[0][50:100]) == list(range(100, 150))
    assert epochs[0][:50].tolist() != list(range(50, 100))
    assert epochs[0].tolist() != epochs[1].tolist()


# ---- Pairs of groups ------------------------------------------------------------------------------------------------


def test_a_batch_alternates_between_two_groups_and_all_pairs_are_as_likely() -> None:
    groups = np.array([0] * 90 + [4] * 9 + [2] * 3 + [1])
    order = samplers.group_pairs(0, groups)
    seen = {}
    for step in range(3000):
        batch = groups[order(step, 8)].reshape(4, 2)
        assert (batch == batch[0]).all()
        pair = tuple(batch[0].tolist())
        seen[pair] = seen.get(pair, 0) + 1
    assert len(seen) == 12  # ordered pairs of four groups
    assert all(one != other for one, other in seen)
    # 250 steps a pair, standard deviation sqrt(3000 * 11 / 144) = 15.
    assert max(abs(n - 250) for n in seen.values()) < 5 * 15
    members = np.concatenate([order(step, 8) for step in range(3000)])
    ofs = np.bincount(members[groups[members] == 0], minlength=103)[:90]  # 24,000 / 4 over 90 members: 67 each, sd 8
    assert np.abs(ofs - 6000 / 90).max() < 60


def test_a_group_against_the_rest_leaves_the_group_out_and_takes_the_rest_as_it_is() -> None:
    groups = np.array([0] * 60 + [1] * 30 + [2] * 10)
    order = samplers.group_pairs(3, groups, "vs_rest")
    rest = {0: [], 1: [], 2: []}
    for step in range(2000):
        batch = groups[order(step, 16)].reshape(8, 2)
        (one,) = set(batch[:, 0].tolist())
        rest[one] += batch[:, 1].tolist()
    assert all(one not in others for one, others in rest.items())
    # Against group 2 stand groups 0 and 1 in their proportion, 2 to 1.
    assert np.mean(np.array(rest[2]) == 0) == pytest.approx(2 / 3, abs=0.03)
    assert np.mean(np.array(rest[0]) == 1) == pytest.approx(3 / 4, abs=0.03)


def test_pairs_need_two_groups_and_depend_on_seed_and_step_only() -> None:
    with pytest.raises(UserError, match="two groups"):
        samplers.group_pairs(0, np.zeros(5, int))
    groups = np.arange(50) % 5
    batches = [samplers.group_pairs(seed, groups)(step, 10).tolist() for seed, step in ((0, 7), (0, 8), (1, 7))]
    assert len({tuple(batch) for batch in batches}) == 3
    assert samplers.group_pairs(0, groups)(7, 10).tolist() == batches[0]


# ---- FairBatch ------------------------------------------------------------------------------------------------------


def test_two_groups_move_by_the_published_rule() -> None:
    """The share of one group goes up by alpha where its loss is higher, else down, within [0, 1]."""
    share, alpha, rng = 0.02, 0.015, np.random.default_rng(0)
    shares = np.array([share, 1 - share])
    visited = []
    for i in range(60):
        losses = rng.random(2) if i % 3 else np.array([0.1, 0.9])
        share = min(1.0, max(0.0, share + alpha * (1 if losses[0] > losses[1] else -1)))
        for mode in ("minmax", "adjacent"):
            moved = samplers.move_shares(shares, losses, alpha, mode)
            np.testing.assert_allclose(moved, [share, 1 - share], atol=1e-12)
        shares = moved
        visited.append(share)
    assert min(visited) == 0.0
    assert len({round(x, 6) for x in visited}) > 3


def test_moves_by_hand() -> None:
    shares, losses = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.9, 0.4])
    np.testing.assert_allclose(samplers.move_shares(shares, losses, 0.1), [0.4, 0.4, 0.2])
    losses = np.array([0.5, 0.2, 0.9])  # gaps of neighbours 0.3 and 0.7
    np.testing.assert_allclose(samplers.move_shares(shares, losses, 0.1, "adjacent"), [0.5, 0.2, 0.3])
    losses = np.array([0.5, 0.9, 0.2])
    np.testing.assert_allclose(samplers.move_shares(shares, losses, 0.1, "adjacent"), [0.5, 0.4, 0.1])
    # One whose loss nobody knows keeps out: neighbours are then those on both sides of it.
    losses = np.array([0.1, np.nan, 0.9])
    for mode in ("minmax", "adjacent"):
        np.testing.assert_allclose(samplers.move_shares(shares, losses, 0.1, mode), [0.4, 0.3, 0.3])
    for losses in (np.full(3, 0.4), np.array([np.nan, 0.4, np.nan])):
        assert samplers.move_shares(shares, losses, 0.1).tolist() == shares.tolist()
    # A group that has nothing left gives nothing: the others make room.
    found = samplers.move_shares(np.array([0.0, 0.6, 0.4]), np.array([0.1, 0.2, 0.3]), 0.1)
    np.testing.assert_allclose(found, [0.0, 0.6 / 1.1, 0.5 / 1.1])


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=12), st.integers(0, 500))
def test_largest_remainders_sum_to_the_total_and_keep_to_the_quota(weights: list[float], total: int) -> None:
    shares = np.array(weights) / sum(weights)
    counts = samplers.largest_remainder(shares, total)
    assert counts.sum() == total
    assert (np.abs(counts - shares * total) < 1 + 1e-9).all()
    # No group that was rounded down has a larger remainder than one that was rounded up.
    rest = shares * total - np.floor(shares * total)
    up = counts > np.floor(shares * total)
    assert not up.any() or up.all() or rest[up].min() >= rest[~up].max() - 1e-9


def test_largest_remainders_by_hand() -> None:
    # Quotas 4.7, 3.1 and 2.2 of ten: the one left goes to the largest remainder.
    assert samplers.largest_remainder(np.array([0.47, 0.31, 0.22]), 10).tolist() == [5, 3, 2]
    assert samplers.largest_remainder(np.array([0.25, 0.25, 0.25, 0.25]), 6).tolist() == [2, 2, 1, 1]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 16), st.integers(1, 6), st.integers(0, 3))
def test_epochs_have_the_shares_without_replacement(sizes: list[int], batch: int, steps: int, epoch: int) -> None:
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    shares = np.random.default_rng(len(groups)).dirichlet(np.ones(len(sizes)))
    order = samplers.fair_batch(9, groups, shares, steps)
    batches = [order(epoch * steps + i, batch) for i in range(steps)]
    assert all(len(places) == batch for places in batches)
    drawn = np.concatenate(batches)
    counts = samplers.largest_remainder(shares, steps * batch)
    assert np.bincount(groups[drawn], minlength=len(sizes)).tolist() == counts.tolist()
    times = np.bincount(drawn, minlength=len(groups))
    for g in range(len(sizes)):
        mine = times[groups == g]
        assert mine.max() - mine.min() <= 1  # a sample comes again only after all others of its group
    # From the middle, by a sampler that has drawn nothing before.
    again = samplers.fair_batch(9, groups, shares, steps)(epoch * steps + steps - 1, batch)
    assert again.tolist() == batches[-1].tolist()


def test_groups_are_spread_over_the_batches_of_an_epoch() -> None:
    groups = np.repeat([0, 1, 2], [700, 295, 5])
    shares = np.array([0.6, 0.395, 0.005])
    batches = [groups[samplers.fair_batch(1, groups, shares, 50)(i, 20)] for i in range(50)]
    counts = np.array([np.bincount(batch, minlength=3) for batch in batches])
    assert np.abs(counts - 20 * shares).max() < 2
    # A tenth of a sample in a batch, which rounding batch by batch would never draw: five in the epoch, one at a time.
    assert counts[:, 2].sum() == 5
    assert counts[:, 2].max() == 1
    later = samplers.fair_batch(1, groups, shares, 50)(50, 20)
    assert later.tolist() != samplers.fair_batch(1, groups, shares, 50)(0, 20).tolist()


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12), st.integers(1, 300), st.integers(0, 3))
def test_no_group_gets_less_than_the_least_and_the_others_pay_for_it(weights: list[float], total: int, least: int):
    weights[0] += 0.01  # not all of them zero
    shares = np.array(weights) / sum(weights)
    plain, counts = samplers.largest_remainder(shares, total), samplers.apportion(shares, total, least)
    assert counts.sum() == total
    if least * len(shares) > total or plain.min() >= least:
        assert counts.tolist() == plain.tolist()
    else:
        assert counts.min() == least
        assert (counts[plain <= least] == least).all()
        assert (counts <= np.maximum(plain, least)).all()


def test_the_least_by_hand() -> None:
    # Of 6, 4 and 0 the last is raised to one; the others are 5 and 3 above that, and the larger of them gives it up.
    assert samplers.apportion(np.array([0.6, 0.4, 0.0]), 10, 1).tolist() == [5, 4, 1]
    assert samplers.apportion(np.array([0.6, 0.4, 0.0]), 10, 0).tolist() == [6, 4, 0]
    assert samplers.apportion(np.array([1.0, 0.0, 0.0]), 2, 1).tolist() == [2, 0, 0]  # less than one for each


def _observed(sampler: samplers.FairBatch, first: int, losses: list[float | None], rejected: float = 0.0) -> None:
    """Steps from `first` to the half or the end of an epoch of ten, in which each group has a sample, or none."""
    count = np.array([loss is not None for loss in losses], np.float32)
    sums = np.array([loss or 0.0 for loss in losses], np.float32) * count
    metrics = {"group_loss_sum": sums, "group_count": count, "train/rejected": np.float32(rejected)}
    for step in range(first, first + 5):
        sampler.observe(step, metrics)


def test_shares_follow_the_losses_and_survive_a_restart() -> None:
    groups = np.repeat([0, 1, 2], [50, 30, 20])
    sampler = samplers.FairBatch(0, groups, 10, alpha=0.1)
    assert sampler.epoch_steps == 10
    assert [sampler.known_until(step) for step in (0, 9, 10)] == [10, 10, 20]
    np.testing.assert_allclose(sampler.figures()["sampler/share"], [0.5, 0.3, 0.2])
    first = sampler.order(0, 10).tolist()
    _observed(sampler, 1, [0.2, None, 0.8])
    assert sampler.order(0, 10).tolist() == first
    _observed(sampler, 6, [9.0, None, np.nan], rejected=1.0)  # counts nowhere, and its epoch ends all the same
    np.testing.assert_allclose(sampler.figures()["sampler/share"], [0.4, 0.3, 0.3])
    assert sampler.order(0, 10).tolist() != first

    _observed(sampler, 11, [0.5, 0.1, None])  # half an epoch, then the process ends
    other = samplers.FairBatch(0, groups, 10, alpha=0.1)
    other.restore(json.loads(json.dumps(sampler.record())))
    assert other.record() == sampler.record()
    for each in (sampler, other):
        _observed(each, 16, [0.5, 0.3, None])
    # Group 2 was not drawn and still counts with its 0.8; group 1 has the mean of its two halves, 0.2.
    np.testing.assert_allclose(sampler.shares, [0.4, 0.2, 0.4])
    assert other.record() == sampler.record()
    assert other.order(25, 10).tolist() == sampler.order(25, 10).tolist()


@pytest.mark.parametrize("floor", [True, False])
def test_a_starved_combination_comes_back(floor: bool) -> None:
    """Group 2 is learnt first and loses its share; from epoch 10 on it is the hardest, which only a draw can tell."""
    groups = np.repeat([0, 1, 2], [50, 40, 10])
    sampler = samplers.FairBatch(0, groups, 10, alpha=0.05, floor=floor)
    drawn, shares = [], []
    for epoch in range(20):
        losses = np.array([0.5, 0.6, 0.1 if epoch < 10 else 0.9])
        for step in range(10 * epoch, 10 * epoch + 10):
            count = np.bincount(groups[sampler.order(step, 10)], minlength=3)
            metrics = {"group_loss_sum": losses * count, "group_count": count, "train/rejected": 0.0}
            sampler.observe(step + 1, metrics)
            drawn.append(count)
        shares.append(sampler.shares[2])
    of_starved = np.array(drawn).reshape(20, 10, 3).sum(axis=1)[:, 2]
    assert shares[4] == shares[9] == 0.0
    assert of_starved[5:11].tolist() == [int(floor)] * 6
    assert (shares[-1] > 0.3) == floor
    assert (of_starved[-1] > 20) == floor


def test_samplers_of_a_fixed_order_have_nothing_to_observe_or_keep() -> None:
    order = samplers.shuffled(3, 17)
    sampler = samplers.Sampler(order)
    sampler.observe(1, {"group_loss_sum": np.ones(2), "group_count": np.ones(2), "train/rejected": 0.0})
    sampler.restore(sampler.record())
    assert (sampler.record(), sampler.figures()) == ({}, {})
    assert sampler.known_until(10**6) > 10**12
    assert [sampler.order(step, 4).tolist() for step in range(9)] == [order(step, 4).tolist() for step in range(9)]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    groups = np.arange(3)
    for make in (
        lambda: samplers.shuffled(seed, 3),
        lambda: samplers.group_balanced(seed, groups),
        lambda: samplers.most_modalities_first(seed, groups, 1),
        lambda: samplers.group_pairs(seed, groups),
        lambda: samplers.fair_batch(seed, groups, np.ones(3) / 3, 1),
    ):
        with pytest.raises(UserError, match="seed"):
            make()


def test_no_samples_are_refused() -> None:
    with pytest.raises(UserError, match="no training samples"):
        samplers.shuffled(0, 0)
    with pytest.raises(UserError, match="no training samples"):
        samplers.group_balanced(0, np.zeros(0, int))


# ---- Knock-out by Shapley values -------------------------------------------------------------------------------------

RATES = {"power": 1.0, "least": 0.02, "most": 0.5}


def test_knock_out_rates_are_those_of_a_loop_and_by_hand() -> None:
    for seed, power in ((0, 1.0), (1, 0.5), (2, 2.0)):
        values = np.random.default_rng(seed).normal(size=5)
        found = samplers.knockout_rates(values, power, 0.05, 0.3)
        np.testing.assert_allclose(found, slow.knockout_rates([*values], power, 0.05, 0.3), rtol=1e-12)
        assert found.argmin() == values.argmin()
        assert found.argmax() == values.argmax()
    # All of m stay together in half of the samples; without differences rates are the same.
    np.testing.assert_allclose((1 - samplers.knockout_rates(np.ones(3), **RATES)) ** 3, 0.5)
    base = 1 - 0.5**0.5
    np.testing.assert_allclose(samplers.knockout_rates(np.array([0.3, 0.1]), **RATES), [0.5, 0.02])
    np.testing.assert_allclose(samplers.knockout_rates(np.array([3.0, 0.0]), 0.5, 0.0, 0.9), [base * 2**0.5, 0.0])


def _worth(weights: np.ndarray, asked: list[tuple[bool, ...]]) -> Callable[[np.ndarray], float]:
    """A utility to which each modality adds its weight, and the first two together half of their product."""

    def utility(mask: np.ndarray) -> float:
        asked.append(tuple(mask))
        return float(mask @ weights + 0.5 * weights[0] * weights[1] * mask[0] * mask[1])

    return utility


def test_knock_out_looks_at_every_subset_and_keeps_its_rates() -> None:
    weights, asked = np.array([0.4, 0.2, 0.0]), []
    sampler = samplers.Knockout(samplers.shuffled(0, 10), 3, 5, **RATES)
    assert [sampler.known_until(step) for step in (0, 4, 5)] == [5, 5, 10]
    first = sampler.rates
    assert sampler.judge(4, _worth(weights, asked)) == {}
    assert not asked
    np.testing.assert_array_equal(sampler.facts(4)[samplers.KNOCKOUT], np.tile(np.float32(first), (4, 1)))
    found = sampler.judge(5, _worth(weights, asked))
    assert len(set(asked)) == len(asked) == 8
    np.testing.assert_allclose(found["knockout/value"], [0.42, 0.22, 0.0], atol=1e-12)
    np.testing.assert_allclose(sampler.rates, slow.knockout_rates([0.42, 0.22, 0.0], **RATES))
    assert sampler.facts(2)[samplers.KNOCKOUT].dtype == np.float32
    other = samplers.Knockout(samplers.shuffled(0, 10), 3, 5, **RATES)
    other.restore(json.loads(json.dumps(sampler.record())))
    np.testing.assert_array_equal(other.rates, sampler.rates)


def test_of_many_modalities_knock_out_draws_orders() -> None:
    m, asked = samplers.EXACT + 2, []
    weights = np.linspace(0.1, 1.0, m)
    sampler = samplers.Knockout(samplers.shuffled(0, 10), m, 5, power=1.0, least=0.0, most=0.9)
    found = sampler.judge(5, _worth(weights, asked))["knockout/value"]
    assert len(asked) == samplers.ORDERS * (m + 1)
    # What is not shared is exact in every order; the product goes to the later of the two.
    np.testing.assert_allclose(found[2:], weights[2:], atol=1e-12)
    assert found.sum() == pytest.approx(weights.sum() + 0.5 * weights[0] * weights[1])
    np.testing.assert_allclose(found[:2] - weights[:2], 0.25 * weights[0] * weights[1], rtol=0.5)
    again = samplers.Knockout(samplers.shuffled(0, 10), m, 5, power=1.0, least=0.0, most=0.9)
    np.testing.assert_array_equal(again.judge(5, _worth(weights, []))["knockout/value"], found)
