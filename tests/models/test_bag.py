"""The bag of terms, against scikit-learn's TF-IDF and by what must not matter."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.feature_extraction.text import TfidfTransformer

from remind_jax.config import base
from remind_jax.data.inputs import EOS, PAD
from remind_jax.data.kinds.text import bag
from remind_jax.models.encoders.bag import WIDTH, BagEncoder, bag_weights
from remind_jax.models.spec import model_spec

V, N = 12, 9


def _ids(seed: int, rows: int = 20) -> np.ndarray:
    """Ids of texts of any length, some of them empty, with their ends."""
    rng, ids = np.random.default_rng(seed), np.full((rows, N), PAD, np.int32)
    for row, length in zip(ids, rng.integers(0, N, rows), strict=True):
        row[: length + 1] = [*rng.integers(2, V, length), EOS]
    return ids


def _encoder(dense: bool = False) -> BagEncoder:
    return BagEncoder(V, tokens=2, width=4, dropout=0.5, rngs=nnx.Rngs(params=0), dense=dense)


def test_weights_of_terms_are_those_of_scikit_learns_tf_idf():
    ids = _ids(0)
    reference = TfidfTransformer(sublinear_tf=True).fit(bag(ids, V))
    kept = jnp.array((ids != PAD) & (ids != EOS))
    weights = bag_weights(jnp.array(ids), kept, jnp.log(jnp.array(reference.idf_, jnp.float32)))
    found = np.zeros((len(ids), V))
    np.add.at(found, (np.arange(len(ids))[:, None], ids), np.asarray(weights))
    np.testing.assert_allclose(found, reference.transform(bag(ids, V)).toarray(), atol=1e-6)


def test_its_work_does_not_grow_with_the_square_of_the_length():
    ids = jnp.array(_ids(0))
    traced = jax.make_jaxpr(bag_weights)(ids, ids > EOS, jnp.zeros(V))
    shapes = [each.aval.shape for equation in traced.eqns for each in equation.outvars]
    assert (20, N) in shapes
    assert not [shape for shape in shapes if shape.count(N) > 1]


def test_networks_of_an_ensemble_compute_the_same_without_gathering_vectors():
    ids, keys = jnp.array(_ids(3)), jax.random.split(jax.random.key(0), 20)

    def loss_and_gradient(encoder: BagEncoder) -> list[jax.Array]:
        graph, state = nnx.split(encoder)
        loss = jax.jit(jax.value_and_grad(lambda state: jnp.sum(nnx.merge(graph, state)(ids, keys) ** 2)))
        return jax.tree.leaves(loss(state))

    found = [loss_and_gradient(_encoder(dense)) for dense in (False, True)]
    assert len(found[0]) == 5
    chex.assert_trees_all_close(*found, rtol=3e-5, atol=3e-6)
    config = base("manifest")
    assert not model_spec(config).several
    config.ensemble = 2
    assert model_spec(config).several
    traced = [str(jax.make_jaxpr(functools.partial(_encoder(dense), keys=None))(ids)) for dense in (False, True)]
    assert [f"f32[20,{N},{WIDTH}]" in text for text in traced] == [True, False]


@pytest.mark.parametrize("dense", [False, True])
def test_a_program_takes_any_number_of_texts(dense):
    encoder = _encoder(dense)
    (rows,) = jax.export.symbolic_shape("b")
    program = jax.export.export(jax.jit(lambda ids: encoder(ids, None)))(jax.ShapeDtypeStruct((rows, N), jnp.int32))
    alone = jax.jit(lambda ids: encoder(ids, None))
    for number in (1, 7):
        ids = jnp.array(_ids(0, number))
        np.testing.assert_allclose(program.call(ids), alone(ids), atol=1e-6)


def test_the_order_of_terms_is_of_no_account_and_their_number_is():
    ids = jnp.array([[4, 5, 4, EOS, PAD], [5, 4, 4, EOS, PAD], [5, 4, 5, EOS, PAD]])
    one, other, third = np.asarray(_encoder()(ids, None))
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.abs(one - third).max() > 1e-2


def test_padding_does_not_count_and_an_empty_text_is_the_bias():
    ids, encoder = _ids(1), _encoder()
    encoder.adapter.bias[...] = jnp.arange(8.0)
    tokens = np.asarray(encoder(jnp.array(ids), None))
    longer = np.pad(ids, ((0, 0), (0, 7)), constant_values=PAD)
    assert tokens.shape == (20, 2, 4)
    np.testing.assert_allclose(tokens, np.asarray(encoder(jnp.array(longer), None)), atol=1e-6)
    empty = np.asarray(encoder(jnp.array([[EOS, PAD]]), None))
    np.testing.assert_array_equal(empty.reshape(-1), np.arange(8.0))


def test_dropout_takes_terms_away_and_what_is_left_has_length_one():
    ids, keys = jnp.array(_ids(2, 200)), jax.random.split(jax.random.key(0), 200)
    features = jax.jit(_encoder().features)
    found = features(ids, keys)
    assert found.shape == (200, 1, WIDTH)
    changed = np.abs(np.asarray(found - features(ids, None))).max(axis=(1, 2)) > 1e-6
    assert 0.6 < changed.mean() < 1.0
    # Of one term, however often it is there, nothing or all is left.
    same = features(jnp.full((200, 3), 4), keys)
    norms = np.linalg.norm(np.asarray(same)[:, 0], axis=-1)
    whole = np.linalg.norm(np.asarray(features(jnp.full((1, 3), 4), None)))
    assert 0 < (norms == 0).mean() < 0.4
    np.testing.assert_allclose(norms[norms > 0], whole, rtol=1e-5)
