import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax.ops import convolution
from remind_jax.ops.convolution import Statistics, Unit, batch_norm, convolve, max_pool
from tests.reference import resnet as slow


def unit(scale: list[float], bias: list[float], mean: list[float], variance: list[float]) -> Unit:
    scale, bias, mean, variance = (jnp.asarray(x, jnp.float32) for x in (scale, bias, mean, variance))
    return Unit(jnp.zeros((1, 1, 1, 1)), scale, bias, Statistics(mean, variance))


PLAIN = unit([1.0], [0.0], [0.0], [1.0])


# ---- Convolution and pool -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positions", "window", "strides"),
    [
        ((7, 5), (3, 3), (1, 1)),
        ((7, 6), (3, 3), (2, 2)),
        ((9, 8), (7, 7), (2, 2)),
        ((5, 6), (1, 1), (2, 2)),
        ((1, 2), (7, 7), (2, 2)),
        ((5, 6, 3), (3, 3, 3), (2, 2, 2)),
        ((4, 6, 5), (3, 7, 7), (1, 2, 2)),
        ((4, 3, 3), (1, 1, 1), (2, 2, 2)),
    ],
)
def test_a_convolution_is_the_sum_over_its_window(positions, window, strides) -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *positions, 3)), rng.normal(size=(*window, 3, 2))
    found = convolve(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), strides)
    np.testing.assert_allclose(found, slow.convolve(x, kernel, strides), atol=2e-5)


def test_zeros_lie_on_both_sides_whatever_the_stride() -> None:
    x = jnp.asarray([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 4, 1)
    found = convolve(x, jnp.ones((1, 3, 1, 1)), (1, 2))
    assert found.ravel().tolist() == [0 + 1 + 2, 2 + 3 + 4]  # XLA's "SAME" would begin with 1 + 2 + 3


def test_the_border_of_a_pool_is_lower_than_all_numbers() -> None:
    x = -jnp.arange(1.0, 21.0).reshape(1, 5, 4, 1)  # rows of four: -1 -2 -3 -4, -5 -6 -7 -8, …
    assert max_pool(x)[0, :, :, 0].tolist() == [[-1, -2], [-5, -6], [-13, -14]]
    np.testing.assert_allclose(max_pool(x), slow.max_pool(np.asarray(x)))


# ---- Batch norm -----------------------------------------------------------------------------------------------------


def test_frozen_statistics_are_used_and_kept() -> None:
    given = unit([2.0, 1.0], [1.0, 0.0], [3.0, -1.0], [4.0, 0.25])
    found, running = batch_norm(jnp.asarray([[5.0, -1.0], [1.0, 0.0]]).reshape(2, 1, 1, 2), given)
    # 2 (5 - 3) / 2 + 1 = 3 and 2 (1 - 3) / 2 + 1 = -1; (-1 + 1) / 0.5 = 0 and (0 + 1) / 0.5 = 2.
    np.testing.assert_allclose(found.reshape(2, 2), [[3.0, 0.0], [-1.0, 2.0]], atol=1e-4)
    assert running is None


@pytest.mark.parametrize("absent", [100.0, -3.0])
def test_training_takes_the_statistics_of_present_samples(absent: float) -> None:
    x = jnp.asarray([[1.0, 3.0], [absent, absent], [5.0, 7.0]]).reshape(3, 2, 1, 1)
    given = unit([2.0], [1.0], [10.0], [2.0])
    found, running = batch_norm(x, given, present=jnp.asarray([True, False, True]))
    # 1, 3, 5, 7: mean 4, variance 20 / 4 = 5, and 20 / 3 without bias.
    by_hand = 2.0 * (np.array([1.0, 3.0, 5.0, 7.0]) - 4.0) / np.sqrt(5.0) + 1.0
    np.testing.assert_allclose(found[jnp.asarray([0, 2])].ravel(), by_hand, atol=1e-5)
    np.testing.assert_allclose(found[1].ravel(), [1.0, 1.0])
    np.testing.assert_allclose(running.mean, [0.9 * 10.0 + 0.1 * 4.0], rtol=1e-6)
    np.testing.assert_allclose(running.variance, [0.9 * 2.0 + 0.1 * 20.0 / 3.0], rtol=1e-6)


@pytest.mark.parametrize(("positions", "present"), [(3, [False, False]), (1, [True, False])])
def test_too_few_values_leave_running_statistics(positions: int, present: list[bool]) -> None:
    given = unit([2.0], [0.5], [10.0], [3.0])
    x, present = 7.0 + jnp.arange(2.0 * positions).reshape(2, positions, 1), jnp.asarray(present)
    found, running = batch_norm(x, given, present=present)
    np.testing.assert_array_equal(found, np.full(x.shape, 0.5))
    assert (running.mean.tolist(), running.variance.tolist()) == ([10.0], [3.0])
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(batch_norm(x, given, present=present)[0])))(x)
    chex.assert_tree_all_finite(gradient)


def test_absent_samples_have_no_part_in_gradients() -> None:
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.normal(size=(3, 4, 1)), jnp.float32) for _ in range(2))

    def loss(x: jax.Array, weights: jax.Array, present: list[bool]) -> jax.Array:
        return jnp.sum(weights * jnp.sin(batch_norm(x, PLAIN, present=jnp.asarray(present))[0]))

    all_three, two = (jax.grad(loss)(x[:n], weights[:n], [True, True, False][:n]) for n in (3, 2))
    np.testing.assert_allclose(all_three[:2], two, atol=1e-6)
    assert np.abs(two).min() > 1e-4
    assert not np.any(all_three[2])


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_a_batch_in_parts_has_the_statistics_of_the_whole(self) -> None:
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(6, 4, 1)), jnp.float32)
        present = jnp.asarray([True, False, True, True, True, False])
        whole = batch_norm(x, PLAIN, present=present)

        def part(x: jax.Array, present: jax.Array):
            return batch_norm(x, PLAIN, present=present, axis_name="devices")

        # Two devices, or one that maps over both parts.
        on_devices = self.variant.type == chex.ChexVariantType.WITH_PMAP
        options = {"axis_name": "devices", "n_devices": 2, "broadcast_args_to_devices": False, "reduce_fn": None}
        run = self.variant(part if on_devices else jax.vmap(part, axis_name="devices"), **options)
        found, running = run(x.reshape(2, 3, 4, 1), present.reshape(2, 3))
        np.testing.assert_allclose(found.reshape(x.shape), whole[0], atol=1e-6)
        chex.assert_trees_all_close(running, jax.tree.map(lambda x: jnp.stack([x] * 2), whole[1]), rtol=1e-6)
        alone = batch_norm(x[:3], PLAIN, present=present[:3])[0]
        assert np.abs(alone - whole[0][:3]).max() > 0.01


# ---- Blocks ---------------------------------------------------------------------------------------------------------


def test_the_first_wide_window_takes_the_strides() -> None:
    def weights(side: int) -> Unit:
        return PLAIN._replace(kernel=jnp.ones((side, side, 1, 1)))

    x = jnp.arange(36.0).reshape(1, 6, 6, 1)
    block = convolution.Block((weights(1), weights(3), weights(1)), weights(1))
    found, statistics = convolution.residual_block(x, block, (2, 2), batch_norm)
    assert statistics == convolution.BlockStatistics((None, None, None), None)
    # Row 2, column 2 of x is 14, the middle of a window whose sum is 9 x 14; at a corner 0 + 1 + 6 + 7.
    np.testing.assert_allclose(found[0, :2, :2, 0].diagonal(), [0 + 14, 14 + 9 * 14], rtol=1e-4)
