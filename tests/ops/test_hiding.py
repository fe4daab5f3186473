import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax.ops import hiding

N = 4_000


def _hidden(present: list[bool], samples: float, modalities: float) -> np.ndarray:
    rows = jnp.broadcast_to(jnp.asarray(present), (N, len(present)))
    keys = jax.random.split(jax.random.key(0), N)
    return np.asarray(hiding.hide_modalities(rows, keys, samples=samples, modalities=modalities))


def test_what_is_missing_stays_missing_and_something_always_stays() -> None:
    left = _hidden([True, False, True, True, False], samples=1.0, modalities=0.9)
    assert not left[:, [1, 4]].any()
    assert left.any(axis=1).all()
    # Sharp: at this rate most samples keep one modality only, each of the three as often as the others.
    alone = left[left.sum(axis=1) == 1]
    assert len(alone) > 0.9 * N
    np.testing.assert_allclose(alone.mean(axis=0)[[0, 2, 3]], 1 / 3, atol=0.04)


@pytest.mark.parametrize(("samples", "modalities"), [(0.4, 0.3), (1.0, 0.3), (0.4, 0.6)])
def test_shares_are_those_asked_for(samples: float, modalities: float) -> None:
    left = _hidden([True, True], samples, modalities)
    # Of two modalities: both stay with (1-r)^2, one goes with 1-(1-r)^2, and both never go.
    changed = 1 - (1 - modalities) ** 2
    assert 1 - left.all(axis=1).mean() == pytest.approx(samples * changed, abs=0.03)
    np.testing.assert_allclose(1 - left.mean(axis=0), samples * changed / 2, atol=0.03)


def test_a_sample_with_one_modality_and_a_share_of_none_lose_nothing() -> None:
    assert _hidden([False, True], 1.0, 0.99)[:, 1].all()
    assert _hidden([True, True, True], 0.0, 0.99).all()


def test_samples_do_not_depend_on_each_other() -> None:
    keys = jax.random.split(jax.random.key(1), 6)
    present = jnp.ones((6, 3), bool)
    options = {"samples": 0.8, "modalities": 0.5}
    whole = hiding.hide_modalities(present, keys, **options)
    parts = [hiding.hide_modalities(present[i : i + 1], keys[i : i + 1], **options)[0] for i in range(6)]
    np.testing.assert_array_equal(whole, parts)


def test_combinations_are_looked_up_by_what_is_present() -> None:
    masks = jnp.asarray([[True, True, False], [False, True, True], [True, False, False]])
    present = jnp.asarray([[True, False, False], [True, True, True], [False, True, True], [True, True, False]])
    found = hiding.group_of(present, masks)
    assert found.tolist() == [2, 3, 1, 0]  # all three is no combination of training: 3, the number of them
    assert found.dtype == jnp.int32


def test_a_proper_part_is_any_but_none_and_all_as_often() -> None:
    rows = jnp.broadcast_to(jnp.asarray([True, False, True, True]), (N, 4))
    left = np.asarray(hiding.proper_part(rows, jax.random.split(jax.random.key(2), N)))
    parts, counts = np.unique(left, axis=0, return_counts=True)
    assert len(parts) == 6
    assert not parts[:, 1].any()
    assert set(parts.sum(axis=1)) == {1, 2}
    np.testing.assert_allclose(counts / N, 1 / 6, atol=0.025)
    alone = jnp.asarray([[False, True, False]] * 8)
    np.testing.assert_array_equal(hiding.proper_part(alone, jax.random.split(jax.random.key(3), 8)), alone)


def test_each_modality_goes_at_its_own_rate_and_none_is_favoured_where_all_would_go() -> None:
    rates = jnp.broadcast_to(jnp.asarray([0.9, 0.6, 0.0]), (N, 3))
    keys = jax.random.split(jax.random.key(4), N)
    left = hiding.hide_modalities(jnp.ones((N, 3), bool), keys, samples=1.0, modalities=rates)
    np.testing.assert_allclose(1 - np.asarray(left).mean(axis=0), [0.9, 0.6, 0.0], atol=0.025)
    two = hiding.hide_modalities(
        jnp.broadcast_to(jnp.asarray([True, True, False]), (N, 3)), keys, samples=1.0, modalities=rates
    )
    stays = np.asarray(two)[:, :2]
    assert stays.any(axis=1).all()
    # All would go with 0.54, and then each of the two stays as often.
    np.testing.assert_allclose(stays.mean(axis=0), [0.1 + 0.27, 0.4 + 0.27], atol=0.03)
