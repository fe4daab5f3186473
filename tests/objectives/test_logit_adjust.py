"""Priors by hand, and what adjusted logits are the optimum of."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remind_jax.objectives import logit_adjust
from remind_jax.ops import losses

# Two groups and three classes; the rare group lacks a class.
COUNTS = np.array([[60, 30, 5], [0, 4, 1]])
POOLED = np.array([60, 34, 6])
tables = st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=5)


def slow_prior(kind: str, counts: list[list[int]], smoothing: float) -> list[list[float]]:
    pooled = [sum(column) for column in zip(*counts, strict=True)]
    rows = [row if kind == "class_given_group" else pooled for row in counts] + [pooled]
    return [[(n + smoothing) / (sum(row) + smoothing * len(row)) for n in row] for row in rows]


@given(tables, st.sampled_from(["class", "class_given_group"]), st.sampled_from([0.5, 1.0, 10.0]))
def test_priors_equal_the_reference(counts: list[list[int]], kind: str, smoothing: float) -> None:
    found = logit_adjust.log_prior(kind, np.array(counts), smoothing)
    np.testing.assert_allclose(np.exp(found), slow_prior(kind, counts, smoothing), rtol=1e-5)
    assert found.dtype == np.float32


def test_priors_by_hand() -> None:
    smooth = np.array([61, 35, 7]) / 103
    np.testing.assert_allclose(np.exp(logit_adjust.log_prior("class", COUNTS)), [smooth] * 3, rtol=1e-6)
    rows = [np.array([61, 31, 6]) / 98, np.array([1, 5, 2]) / 8, smooth]
    np.testing.assert_allclose(np.exp(logit_adjust.log_prior("class_given_group", COUNTS)), rows, rtol=1e-6)


def test_a_class_that_a_group_lacks_stays_finite() -> None:
    chex.assert_tree_all_finite(logit_adjust.log_prior("class_given_group", COUNTS, smoothing=0.0))
    assert np.exp(logit_adjust.log_prior("class_given_group", COUNTS))[1, 0] == pytest.approx(1 / 8)


def test_a_prior_of_groups_changes_nothing_and_one_of_classes_in_groups_does() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    groups = np.array([0, 1, 0, 1])
    of_group = np.log(COUNTS.sum(axis=1) / COUNTS.sum())[groups].astype(np.float32)
    np.testing.assert_allclose(jax.nn.softmax(logits + of_group[:, None]), jax.nn.softmax(logits), rtol=1e-5)
    moved = jax.nn.softmax(logits + logit_adjust.log_prior("class_given_group", COUNTS)[groups])
    assert np.abs(moved - jax.nn.softmax(logits)).max() > 0.1


def test_where_offsets_act() -> None:
    prior = logit_adjust.log_prior("class", COUNTS)
    np.testing.assert_allclose(logit_adjust.train_offset("class", "loss", COUNTS, tau=0.5), 0.5 * prior)
    np.testing.assert_allclose(logit_adjust.predict_offset("class", "posthoc", COUNTS, tau=0.5), -0.5 * prior)
    assert logit_adjust.train_offset("class", "posthoc", COUNTS) is None
    assert logit_adjust.predict_offset("class", "loss", COUNTS) is None
    for mode in logit_adjust.MODES:
        assert logit_adjust.train_offset("none", mode, COUNTS) is None
        assert logit_adjust.predict_offset("none", mode, COUNTS) is None


def test_both_modes_aim_at_the_posterior_of_evenly_frequent_classes() -> None:
    """Two inputs seen with known rates in three classes: what the rates of the classes alone did is taken out."""
    likelihood = np.array([[0.5, 0.2, 0.9], [0.5, 0.8, 0.1]])  # p(x | y), rows inputs
    prior = POOLED / POOLED.sum()
    joint = likelihood * prior
    posterior = joint / joint.sum(axis=1, keepdims=True)
    balanced = likelihood / likelihood.sum(axis=1, keepdims=True)
    assert posterior.argmax(axis=1).tolist() != balanced.argmax(axis=1).tolist()
    offset = logit_adjust.predict_offset("class", "posthoc", COUNTS, smoothing=0.0)
    found = jax.nn.softmax(jnp.asarray(np.log(posterior), jnp.float32) + offset[:1])
    np.testing.assert_allclose(found, balanced, rtol=1e-4)

    # The expected adjusted loss over the joint distribution is flat where softmax(logits) is that posterior.
    offset = logit_adjust.train_offset("class", "loss", COUNTS, smoothing=0.0)
    x, y = (i.reshape(-1) for i in np.meshgrid(np.arange(2), np.arange(3), indexing="ij"))

    def expected_loss(logits: jax.Array) -> jax.Array:
        return jnp.sum(losses.cross_entropy((logits + offset[:1])[x], y) * joint[x, y].astype(np.float32))

    flat = jax.grad(expected_loss)(jnp.asarray(np.log(balanced), jnp.float32))
    np.testing.assert_allclose(flat, np.zeros((2, 3)), atol=1e-6)
    assert np.abs(jax.grad(expected_loss)(jnp.asarray(np.log(posterior), jnp.float32))).max() > 1e-2
