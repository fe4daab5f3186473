import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from remind_jax.ops import sparse_moe
from remind_jax.ops.soft_moe import Experts
from tests.reference import sparse_moe as slow

R, D, E, F, K = 11, 6, 5, 4, 2


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def experts() -> Experts:
    shapes = ((E, D, F), (E, F), (E, F, D), (E, D))
    return Experts(*(jnp.asarray(normal(*shape, seed=i + 1)) for i, shape in enumerate(shapes)))


@pytest.mark.parametrize("kind", sparse_moe.SCORES)
def test_scores_equal_the_reference(kind: str) -> None:
    x, router = normal(R, D), normal(D, E, seed=9)
    found = sparse_moe.expert_scores(jnp.asarray(x), jnp.asarray(router), kind)
    expected = [slow.score(row.astype(float), router.astype(float), kind) for row in x]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_token_on_a_routers_place_has_a_finite_gradient() -> None:
    router = jnp.asarray(normal(D, E))
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(sparse_moe.expert_scores(w[:, 0][None], w, "laplace"))))(router)
    chex.assert_tree_all_finite(gradient)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(1, 2, E)
    def test_experts_are_computed_as_one_by_one(self, k: int) -> None:
        x, clean, weights = normal(R, D), normal(R, E, seed=5), experts()

        def mix(x, clean, weights):
            choice = sparse_moe.top_experts(clean, k)
            return sparse_moe.apply_top_experts(x, choice, weights), choice.weights

        found, shares = self.variant(mix)(jnp.asarray(x), jnp.asarray(clean), weights)
        wide = [np.asarray(w, float) for w in weights]
        expected = [slow.mix(row.astype(float), s.astype(float), k, *wide) for row, s in zip(x, clean, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(np.sum(shares, axis=-1), 1.0, atol=1e-6)


def test_gradients_reach_tokens_scores_and_the_chosen_experts_only() -> None:
    x, clean = jnp.asarray(normal(3, D)), jnp.asarray(normal(3, E, seed=5))

    @jax.jit
    def total(x, clean, weights):
        return jnp.sum(jnp.sin(sparse_moe.apply_top_experts(x, sparse_moe.top_experts(clean, K), weights)))

    by_x, by_clean, by_weights = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(x, clean, experts())
    used = np.zeros(E, bool)
    used[np.asarray(sparse_moe.top_experts(clean, K).experts).ravel()] = True
    assert 0 < used.sum() < E
    assert (np.abs(by_weights.w_in).max(axis=(1, 2)) > 0).tolist() == used.tolist()
    assert np.abs(by_x).max() > 0
    assert np.abs(by_clean).max() > 0
    step = 1e-2
    for i in range(E):
        moved = clean.at[1, i].add(step), clean.at[1, i].add(-step)
        slope = (total(x, moved[0], experts()) - total(x, moved[1], experts())) / (2 * step)
        np.testing.assert_allclose(by_clean[1, i], slope, atol=2e-3)


def test_load_is_the_probability_of_being_chosen() -> None:
    clean, noise = normal(R, E), normal(R, E, seed=7)
    deviation = 0.3 + np.abs(normal(R, E, seed=8))
    found = sparse_moe.top_experts(*(jnp.asarray(x) for x in (clean,)), K, jnp.asarray(noise), jnp.asarray(deviation))
    noisy = clean + noise * deviation
    for i in range(R):
        expected = slow.load(clean[i].astype(float), noisy[i].astype(float), deviation[i].astype(float), K)
        np.testing.assert_allclose(found.load[i], expected, atol=1e-5)
    # And by drawing the noise of one expert again many times.
    draws = np.random.default_rng(0).normal(size=4_000) * deviation[0, 2] + clean[0, 2]
    others = np.sort(np.delete(noisy[0], 2))[::-1]
    assert abs(np.mean(draws > others[K - 1]) - float(found.load[0, 2])) < 0.03


def test_experts_that_may_not_be_chosen_have_no_load() -> None:
    clean = jnp.asarray(normal(R, E)).at[:, :2].set(-jnp.inf)
    found = sparse_moe.top_experts(clean, K, jnp.asarray(normal(R, E, seed=1)), jnp.ones((R, E)))
    chex.assert_tree_all_finite(found)
    assert not np.asarray(found.load)[:, :2].any()
    assert np.asarray(found.experts).min() >= 2


@pytest.mark.parametrize("hidden", [1, E - K, E - 1])
def test_gradients_are_finite_where_few_experts_may_be_chosen(hidden: int) -> None:
    """With as many experts as are chosen nothing is left out, and there is nothing to beat."""
    k = min(K, E - hidden)
    closed = np.arange(E) < hidden

    def total(clean, deviation):
        choice = sparse_moe.top_experts(
            jnp.where(jnp.asarray(closed)[None], -jnp.inf, clean), k, jnp.asarray(normal(R, E, seed=1)), deviation
        )
        return jnp.sum(jnp.sin(choice.load)) + jnp.sum(jnp.sin(choice.weights)), choice.load

    gradient = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    gradients, load = gradient(jnp.asarray(normal(R, E)), jnp.ones((R, E)))
    chex.assert_tree_all_finite(gradients)
    assert not np.asarray(load)[:, closed].any()
    certain = E - hidden == k
    assert bool((np.asarray(load)[:, ~closed] == 1.0).all()) is certain


@pytest.mark.parametrize("chosen", [[0] * R, [E - 1] * R, list(range(E)) * 2 + [3], [0, 4] * 5 + [4]])
def test_no_token_is_dropped_however_uneven_the_choice(chosen: list[int]) -> None:
    x, weights = normal(R, D), experts()
    choice = sparse_moe.TopExperts(jnp.asarray(chosen)[:, None], jnp.ones((R, 1)), jnp.zeros((R, E)))
    found = sparse_moe.apply_top_experts(jnp.asarray(x), choice, weights)
    wide = [np.asarray(w, float) for w in weights]
    for i, expert in enumerate(chosen):
        alone = np.where(np.arange(E) == expert, 0.0, -1e9)
        np.testing.assert_allclose(found[i], slow.mix(x[i].astype(float), alone, 1, *wide), rtol=1e-4, atol=1e-4)


def test_gradients_of_single_samples_sum_to_that_of_all() -> None:
    """Analyses take them by vmap."""
    x, clean = jnp.asarray(normal(4, 3, D)), jnp.asarray(normal(4, 3, E, seed=5))

    def gradient(x, clean):
        def total(weights):
            return jnp.sum(jnp.sin(sparse_moe.apply_top_experts(x, sparse_moe.top_experts(clean, K), weights)))

        return jax.grad(total)(experts())

    single, whole = jax.jit(jax.vmap(gradient))(x, clean), jax.jit(gradient)(x.reshape(12, D), clean.reshape(12, E))
    summed = jax.tree.map(lambda x: jnp.sum(x, axis=0), single)
    chex.assert_trees_all_close(summed, whole, rtol=1e-7, atol=1e-5)


def test_penalties_by_hand() -> None:
    np.testing.assert_allclose(sparse_moe.unevenness(jnp.asarray([[1.0, 3.0], [2.0, 2.0]])), 1 / 4, rtol=1e-6)
    x = np.abs(normal(E)).astype(np.float32)
    np.testing.assert_allclose(sparse_moe.unevenness(jnp.asarray(x)), slow.unevenness(x.astype(float)), rtol=1e-5)
    # Each modality on an expert of its own: entropies 0, of the average log 2.
    apart = sparse_moe.modality_entropy(jnp.asarray([[5.0, 0.0], [0.0, 2.0]]))
    np.testing.assert_allclose(apart, -np.log(2), rtol=1e-5)
    both = sparse_moe.modality_entropy(jnp.asarray([[5.0, 5.0], [1.0, 1.0]]))
    np.testing.assert_allclose(both, 0.0, atol=1e-6)
    sums = {"importance": jnp.asarray([[1.0, 3.0]]), "load": jnp.asarray([[2.0, 2.0]])}
    sums |= {"surprise": jnp.asarray(6.0), "surprised": jnp.asarray(4.0)}
    found = sparse_moe.block_penalty(sums, balance=2.0, entropy=7.0, specialize=3.0)
    np.testing.assert_allclose(found, 2.0 / 4 + 3.0 * 1.5, rtol=1e-6)


def test_no_sample_that_misses_something_costs_nothing() -> None:
    sums = {"importance": jnp.asarray([[2.0, 2.0], [0.0, 0.0]]), "load": jnp.zeros((2, 2))}
    sums |= {"surprise": jnp.asarray(0.0), "surprised": jnp.asarray(0.0)}
    assert float(sparse_moe.block_penalty(sums, balance=1.0, entropy=1.0, specialize=1.0)) == 0.0
