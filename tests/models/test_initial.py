import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from remind_jax.data.kinds import KINDS
from remind_jax.models import initial
from remind_jax.models.fusion.soft_moe import SoftMoEBlock
from remind_jax.models.network import ensemble_of, make_network
from tests import programs
from tests.models.specs import fusion_of, model_of

SIZE = (300, 400)
SMALL = ("vit_tiny", "resnet_small", "r3d_small")


def _draw(rule, shape=SIZE, seed=0):
    return initial.draw(lambda key: _Holder(rule, shape, nnx.Rngs(params=key)), seed)["x"]


class _Holder(nnx.Module):
    def __init__(self, rule, shape, rngs):
        self.x = initial.param(rngs, rule, *shape)


class _Foreign(nnx.Module):
    """A module from outside: an initializer of Flax, next to a rule."""

    def __init__(self, rngs):
        self.x = initial.param(rngs, initial.normal(1.0), 3)
        self.own = nnx.Linear(200, 300, rngs=rngs)


@pytest.mark.parametrize(
    ("rule", "std", "fourth", "largest"),
    [
        (initial.normal(0.3), 0.3, 3.0, np.inf),
        (initial.cut_normal(0.3), 0.3, 2.37, 2 * 0.3 / 0.8796),
        (initial.signs, 1.0, 1.0, 1.0),
    ],
    ids=["normal", "cut normal", "signs"],
)
def test_draws_have_the_moments_of_their_distribution(rule, std, fourth, largest) -> None:
    x = _draw(rule).astype(np.float64)
    assert x.shape == SIZE
    assert abs(x.mean()) < 4 * std / np.sqrt(x.size)
    np.testing.assert_allclose(x.std(), std, rtol=0.01)
    np.testing.assert_allclose(np.mean(x**4) / std**4, fourth, rtol=0.03)
    assert np.abs(x).max() <= largest * 1.001
    assert np.abs(np.corrcoef(x[:-1].ravel(), x[1:].ravel())[0, 1]) < 0.015


def test_maps_begin_as_those_of_flax() -> None:
    """LeCun's rule, and He's where the gain is two: the moments of Flax's own draws."""
    for gain, theirs in ((1.0, nnx.initializers.lecun_normal()), (2.0, nnx.initializers.he_normal())):
        ours = initial.draw(lambda key, gain=gain: initial.linear(*SIZE, nnx.Rngs(params=key), gain), 0)
        expected = np.asarray(theirs(jax.random.key(0), SIZE))
        np.testing.assert_allclose(ours["kernel"].std(), expected.std(), rtol=0.01)
        np.testing.assert_allclose(np.abs(ours["kernel"]).max(), np.abs(expected).max(), rtol=0.01)
        assert not ours["bias"].any()


def _network(names=("a", "b"), **fusion):
    inputs = {name: KINDS["tabular"].spec((5,), 0) for name in names}
    spec = fusion_of(heads=2, experts=3, hidden=8, group_routers=True, **fusion)
    return make_network(model_of(width=8, fusion=spec), inputs, 2, 3)


def test_a_weight_follows_from_the_seed_and_its_path_alone() -> None:
    one, other = _network().init(0), _network(("c", "b", "a")).init(0)
    for path in ("encoders/a/embed/kernel", "encoders/b/embed/kernel", "block_0/router", "head/kernel"):
        np.testing.assert_array_equal(one[path], other[path])
        assert np.abs(one[path] - _network().init(1)[path]).max() > 0.01
    assert np.abs(one["encoders/a/embed/kernel"] - one["encoders/b/embed/kernel"]).max() > 0.01


def test_networks_of_an_ensemble_differ_and_the_first_is_the_one_alone() -> None:
    several, one = ensemble_of(_network(), 3).init(4), _network().init(4)
    for path, x in several.items():
        np.testing.assert_array_equal(x[0], one[path])
    router = several["block_0/router"]
    assert min(np.abs(router[i] - router[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))) > 0.1


def test_networks_of_an_ensemble_are_traced_once() -> None:
    traced: list[jax.Array] = []

    def build(key: jax.Array) -> nnx.Module:
        traced.append(key)
        return initial.linear(3, 2, nnx.Rngs(params=key))

    one, two = (initial.draw(build, 0, network)["kernel"] for network in (0, 1))
    assert np.abs(one - two).max() > 0.01
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        *((encoder, {}) for encoder in (*SMALL, "text", "table")),
        ("table", {"residual_init": "sinusoidal"}),
        ("table", {"router_rank": 2}),
        ("table", {"gate_threshold": "auto"}),
        ("table", {"kind": "fuse_moe", "group_routers": False}),
    ],
)
def test_nothing_is_compiled_for_what_the_package_declares(encoder, options) -> None:
    kinds = {
        "table": ("tabular", (5,), {}),
        "text": ("text", (7,), {}),
        "vit_tiny": ("image", (32, 32, 3), {"image_encoder": "vit_tiny"}),
        "resnet_small": ("image", (32, 32, 3), {"image_encoder": "resnet_small"}),
        "r3d_small": ("volume", (4, 16, 16, 1), {"volume_encoder": "r3d_small"}),
    }
    kind, shape, model = kinds[encoder]
    fusion = fusion_of(**{"heads": 2, "experts": 3, "hidden": 8, "group_routers": True, "top_k": 2} | options)
    network = make_network(model_of(width=8, fusion=fusion, **model), {"x": KINDS[kind].spec(shape, 20)}, 2, 3)
    with programs.compiled() as names:
        found = network.init(0)
    assert not names
    assert {path: (x.shape, x.dtype) for path, x in found.items()} == {
        path: (x.shape, x.dtype) for path, x in network.shapes.items()
    }


def test_a_parameter_without_a_rule_is_what_its_initializer_gives() -> None:
    def build(key):
        return _Foreign(nnx.Rngs(params=key))

    with programs.compiled() as names:
        found = initial.draw(build, 0)
    assert "jit(others)" in names
    again, other = (initial.draw(build, seed) for seed in (0, 1))
    np.testing.assert_allclose(found["own/kernel"].std(), 200**-0.5, rtol=0.02)
    np.testing.assert_array_equal(found["own/kernel"], again["own/kernel"])
    assert np.abs(found["own/kernel"] - other["own/kernel"]).max() > 0.01
    assert isinstance(found["own/bias"], np.ndarray)


def test_a_module_made_outside_of_a_trace_has_its_values() -> None:
    block = SoftMoEBlock(fusion_of(heads=2, experts=3, hidden=8), 8, 2, 2, nnx.Rngs(params=0))
    np.testing.assert_allclose(np.asarray(block.expert_in[...]).std(), 8**-0.5, rtol=0.2)
    assert jnp.all(block.moe_norm.scale[...] == 1.0)
