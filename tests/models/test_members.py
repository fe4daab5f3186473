"""The linear path beside the fusion, predictors that share a network, and networks side by side."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax.models.network import ensemble_of, make_network
from tests.models.pure import jitted, random_params
from tests.models.specs import fusion_of, model_of
from tests.models.test_model import TABULAR, B, C, D, G, make_batch

K = 3
FUSION = fusion_of(heads=2, experts=4, hidden=6, group_routers=True, scale=4.0, dropout=0.3)
SPEC = model_of(width=D, tokens=2, imputation="modality+group", encoder_dropout=0.3, fusion=FUSION)


@functools.cache
def _made(members: int = 1, wide: bool = False, kind: str = "soft_moe"):
    fusion = FUSION if kind == "soft_moe" else fusion_of(heads=2, experts=4, hidden=6, kind=kind, share_experts=True)
    spec = model_of(**{**vars(SPEC), "members": members, "wide": wide, "fusion": fusion})
    network = jitted(make_network(spec, TABULAR, G, C))
    return network, random_params(network.shapes)


def _softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(np.asarray(x, np.float64) - np.max(x, axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


# ---- The linear path -------------------------------------------------------------------------------------------------


def test_the_linear_path_adds_a_map_of_the_observed_tokens() -> None:
    network, params = _made(wide=True)
    batch = make_batch()
    found = network.apply(params, batch, gate="always")
    plain = network.apply(params | {"wide": jnp.zeros_like(params["wide"])}, batch, gate="always")
    tokens, weights = np.asarray(found.tokens, np.float64), np.asarray(params["wide"], np.float64)
    expected = np.zeros((B, C))
    for i in range(B):
        for j in range(tokens.shape[1]):
            if found.observed[i, j]:
                expected[i] += tokens[i, j] @ weights[j]
    np.testing.assert_allclose(found.logits - plain.logits, expected, rtol=1e-4, atol=1e-5)
    assert not np.asarray(found.observed).all()


def test_the_linear_path_starts_at_zero_and_learns() -> None:
    network, _ = _made(wide=True)
    fresh = network.init(0)
    assert not np.asarray(fresh["wide"]).any()
    assert fresh["wide"].shape == (2 + 3, D, C)  # two tokens of the labs, three of the views

    def loss(params):
        return jnp.sum(network.apply(params, make_batch(), gate="always").logits[:, 0] ** 2)

    assert np.abs(jax.jit(jax.grad(loss))(fresh | {"head/bias": jnp.ones(C)})["wide"]).max() > 1e-3


# ---- Members ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["soft_moe", "fuse_moe", "flex_moe"])
def test_members_are_single_networks_with_scaled_tokens_and_their_own_heads(kind: str) -> None:
    network, params = _made(K, wide=True, kind=kind)
    alone, _ = _made(1, wide=True, kind=kind)
    batch = make_batch()
    found = network.apply(params, batch, gate="always")
    shared = {path: x for path, x in params.items() if not path.startswith("members/")}
    owner = np.array([0, 0, 1, 1, 1])
    for i in range(K):
        head = {"head/kernel": params["members/head"][i], "head/bias": params["members/head_bias"][i]}
        one = shared | head | {"wide": jnp.zeros_like(params["wide"])}
        tokens = found.tokens * params["members/input_scale"][i][owner][None]
        fused = alone.fuse(one, tokens, found.observed, batch["group"], gate="always")
        wide = jnp.einsum("bnd,ndc->bc", jnp.where(found.observed[:, :, None], found.tokens, 0.0), params["wide"])
        np.testing.assert_allclose(found.members[:, i], fused.logits + wide, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.exp(found.logits), _softmax(found.members).mean(axis=1), rtol=1e-4)
    assert found.features.shape == (B, D)
    assert found.open_rate.shape == (B,)
    assert np.abs(found.members[:, 0] - found.members[:, 1]).max() > 1e-2


def test_members_start_with_random_signs_and_dropout_of_their_own() -> None:
    network, params = _made(K)
    fresh = network.init(0)
    signs = np.asarray(fresh["members/input_scale"])
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.5
    assert "head/kernel" not in fresh
    same = dict(params)
    for path in ("members/input_scale", "members/head", "members/head_bias"):
        same[path] = jnp.broadcast_to(params[path][:1], params[path].shape)
    batch, keys = make_batch(), jax.random.split(jax.random.key(3), B)
    still = network.apply(same, batch, gate="always").members
    np.testing.assert_allclose(still[:, 0], still[:, 1], rtol=1e-5, atol=1e-6)
    dropped = network.apply(same, batch, gate="always", keys=keys).members
    assert np.abs(dropped[:, 0] - dropped[:, 1]).max() > 1e-2
    again = network.apply(same, batch, gate="always", keys=keys).members
    np.testing.assert_array_equal(dropped, again)


# ---- Ensembles -------------------------------------------------------------------------------------------------------


def test_an_ensemble_of_one_is_the_network() -> None:
    network, _ = _made()
    assert ensemble_of(network, 1) is network


def test_an_ensemble_has_the_networks_beside_each_other() -> None:
    network, _ = _made()
    several = jitted(ensemble_of(network, K))
    batch, params, first = make_batch(), several.init(5), network.init(5)
    for made, weights in ((network, first), (ensemble_of(network, K), params)):
        assert {path: x.shape for path, x in made.shapes.items()} == {path: x.shape for path, x in weights.items()}
    for path, x in params.items():
        np.testing.assert_array_equal(x[0], first[path])
    assert np.abs(params["head/kernel"][0] - params["head/kernel"][1]).max() > 1e-2
    params = {path: x + 0.1 * jnp.arange(float(K)).reshape(-1, *[1] * (x.ndim - 1)) for path, x in params.items()}
    each = [network.apply({path: x[i] for path, x in params.items()}, batch, gate="always") for i in range(K)]
    found = several.apply(params, batch, gate="always")
    np.testing.assert_allclose(np.exp(found.logits), np.mean([_softmax(x.logits) for x in each], axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.features, np.mean([x.features for x in each], axis=0), rtol=1e-4, atol=1e-5)
    assert several.encode(params, batch).shape == (K, B, 5, D)
