import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from remind_jax.ops import imputation

B, M, N, D, G = 3, 2, 3, 4, 2  # the first modality has one token, the second two
OWNER = np.array([0, 1, 1])
PRESENT = np.array([[True, False], [False, True], [True, True]])
OBSERVED = PRESENT[:, OWNER]
GROUPS = np.array([1, 0, G])  # the last sample has a combination that training has not seen


def tables(seed: int = 0) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(M, D)), jnp.float32), jnp.asarray(rng.normal(size=(G, D)), jnp.float32)


def test_an_unseen_group_takes_the_mean_row() -> None:
    table = jnp.asarray([[1.0, 2.0], [3.0, 6.0], [5.0, -2.0]])
    rows = imputation.group_rows(table, jnp.asarray([2, 3, 0, 1]))
    np.testing.assert_allclose(rows, [[5.0, -2.0], [3.0, 2.0], [1.0, 2.0], [3.0, 6.0]], atol=1e-6)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*imputation.KINDS)
    def test_imputed_tokens_are_sums_of_the_rows_of_their_tables(self, kind: str) -> None:
        modality, group = tables()
        used = (modality if "modality" in kind else None, group if "group" in kind else None)
        found = self.variant(imputation.imputed_tokens)(jnp.asarray(GROUPS), *used)
        found = np.broadcast_to(found, (B, M, D))
        rows = [np.asarray(group[1]), np.asarray(group[0]), np.asarray(group).mean(axis=0)]
        for i in range(B):
            for m in range(M):
                expected = np.zeros(D)
                expected += np.asarray(modality[m]) if "modality" in kind else 0.0
                expected += rows[i] if "group" in kind else 0.0
                np.testing.assert_allclose(found[i, m], expected, atol=1e-6)


def test_a_bank_has_a_row_for_each_combination_and_modality() -> None:
    bank = jnp.asarray(np.random.default_rng(0).normal(size=(G, M, D)), jnp.float32)
    found = imputation.imputed_tokens(jnp.asarray(GROUPS), None, bank)
    np.testing.assert_allclose(found, [bank[1], bank[0], np.asarray(bank).mean(axis=0)], atol=1e-6)


def test_filled_tokens_are_the_encoded_ones_where_observed_and_imputed_ones_elsewhere() -> None:
    rng = np.random.default_rng(1)
    tokens, imputed = (jnp.asarray(rng.normal(size=(B, N, D)), jnp.float32) for _ in range(2))
    filled = np.asarray(imputation.fill_missing(tokens, jnp.asarray(OBSERVED), imputed))
    for i in range(B):
        for n in range(N):
            np.testing.assert_array_equal(filled[i, n], tokens[i, n] if OBSERVED[i, n] else imputed[i, n])


def test_missing_tokens_get_no_gradient_and_no_value_even_if_they_are_nan() -> None:
    tokens = jnp.where(jnp.asarray(OBSERVED)[:, :, None], jnp.ones((B, N, D)), jnp.nan)

    def total(tokens: jax.Array, group: jax.Array) -> jax.Array:
        imputed = jnp.broadcast_to(imputation.imputed_tokens(jnp.asarray(GROUPS), None, group), tokens.shape)
        return jnp.sum(jnp.square(imputation.fill_missing(tokens, jnp.asarray(OBSERVED), imputed)))

    by_tokens, by_table = jax.grad(total, argnums=(0, 1))(tokens, tables()[1])
    np.testing.assert_array_equal(by_tokens[~OBSERVED], 0.0)
    np.testing.assert_array_equal(by_tokens[OBSERVED], 2.0)
    chex.assert_tree_all_finite(by_table)
    assert (np.asarray(by_table) != 0).all()


def test_a_sample_that_lacks_nothing_moves_no_table() -> None:
    def total(group: jax.Array) -> jax.Array:
        imputed = imputation.imputed_tokens(jnp.zeros(1, int), None, group)
        return jnp.sum(imputation.fill_missing(jnp.ones((1, N, D)), jnp.ones((1, N), bool), imputed))

    np.testing.assert_array_equal(jax.grad(total)(tables()[1]), np.zeros((G, D)))


def test_tokens_keep_their_type() -> None:
    tokens = jnp.ones((B, N, D), jnp.bfloat16)
    imputed = imputation.imputed_tokens(jnp.asarray(GROUPS), *tables())[:, OWNER]
    assert imputation.fill_missing(tokens, jnp.asarray(OBSERVED), imputed).dtype == jnp.bfloat16


# ---- Running means --------------------------------------------------------------------------------------------------


def test_running_means_move_a_tenth_of_the_way_to_the_mean_of_what_is_there() -> None:
    x = np.random.default_rng(2).normal(size=(B, M, D)).astype(np.float32)
    x[1, 0] = np.nan  # which that sample does not have
    found = jax.jit(imputation.running_means)(tables()[0], x, PRESENT)
    for m in range(M):
        mean = np.mean([x[b, m] for b in range(B) if PRESENT[b, m]], axis=0)
        np.testing.assert_allclose(found[m], 0.9 * np.asarray(tables()[0][m]) + 0.1 * mean, rtol=1e-5)
    none = imputation.running_means(tables()[0], x, PRESENT & np.array([False, True]))
    np.testing.assert_array_equal(none[0], tables()[0][0])
    assert np.abs(none[1] - tables()[0][1]).max() > 0


def test_running_means_of_devices_are_those_of_the_whole_batch() -> None:
    x = np.random.default_rng(3).normal(size=(4, M, D)).astype(np.float32)
    present = np.array([[True, True], [True, False], [True, False], [False, False]])
    whole = imputation.running_means(tables()[0], x, present)
    halves = jax.vmap(lambda x, p: imputation.running_means(tables()[0], x, p, "devices"), axis_name="devices")(
        x.reshape(2, 2, M, D), present.reshape(2, 2, M)
    )
    for half in halves:
        np.testing.assert_allclose(half, whole, rtol=1e-6)
