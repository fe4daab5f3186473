import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remind_jax.data import samplers
from remind_jax.errors import UserError

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
    assert samplers.group_balanced(42, np.arange(10) % 3)(5, 10).tolist() == [3, 9, 4, 2, 7, 4, 7, 9, 9, 4]


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


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    for make in (lambda: samplers.shuffled(seed, 3), lambda: samplers.group_balanced(seed, np.zeros(3, int))):
        with pytest.raises(UserError, match="seed"):
            make()


def test_no_samples_are_refused() -> None:
    with pytest.raises(UserError, match="no training samples"):
        samplers.shuffled(0, 0)
    with pytest.raises(UserError, match="no training samples"):
        samplers.group_balanced(0, np.zeros(0, int))
