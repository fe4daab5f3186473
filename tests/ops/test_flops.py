"""Counted operations against hand counts and XLA's own count."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax.models.encoders import t5
from remind_jax.models.network import make_network
from remind_jax.models.spec import ModelSpec
from remind_jax.ops import flops
from tests.models.specs import fusion_of, model_of

PROBE = {"layers": 3, "width": 256, "heads": 4, "head_width": 64, "hidden": 512}


class Input(NamedTuple):
    encoder: str
    shape: tuple[int, ...]
    vocabulary: int


def network(spec: ModelSpec, inputs: dict[str, Input], groups: int, gate: str):
    """A forward pass, and the shapes of its parameters and of one sample."""
    made = make_network(spec, inputs, groups, 2)
    dtypes = {"text": jnp.int32, "image": jnp.uint8}
    batch = {
        name: jax.ShapeDtypeStruct((1, *i.shape), dtypes.get(i.encoder, jnp.float32)) for name, i in inputs.items()
    }
    batch["present"] = jax.ShapeDtypeStruct((1, len(inputs)), jnp.bool_)
    batch["group"] = jax.ShapeDtypeStruct((1,), jnp.int32)
    return functools.partial(made.apply, gate=gate), made.shapes, batch


def xla_count(apply, params, batch) -> float:
    return jax.jit(apply).lower(params, batch).compile().cost_analysis()["flops"]


@pytest.fixture(scope="module")
def table17() -> dict[str, dict[str, int]]:
    """Fusion of Table 17: four modalities of 197 tokens, 128 experts, 15 combinations."""
    fusion = fusion_of(experts=128, hidden=3072, group_routers=True)
    inputs = {f"m{i}": Input("patch", (197, 768), 0) for i in range(4)}
    spec = model_of(width=768, fusion=fusion)
    return {gate: flops.count(*network(spec, inputs, 15, gate)) for gate in ("never", "always", "gated")}


def test_hand_counts_of_the_fusion_block_of_table_17(table17) -> None:
    giga = {name.removeprefix("block_0/"): count / 1e9 for name, count in table17["gated"].items()}
    assert giga["attention"] == pytest.approx(3.72 + 1.91, abs=0.005)
    assert giga["dispatch"] == giga["combine"] == pytest.approx(0.155, abs=0.0005)
    assert giga["router"] == pytest.approx(2 * 0.155, abs=0.001)  # the second product is the price of the gate
    assert giga["experts"] == pytest.approx(1.21, abs=0.005)
    plain = sum(count for name, count in table17["never"].items() if name.startswith("block_0/"))
    assert plain / 1e9 == pytest.approx(7.3, abs=0.05)


def test_only_the_gate_takes_a_second_router_product(table17) -> None:
    never, always, gated = (table17[gate].total() for gate in ("never", "always", "gated"))
    assert never == always
    assert gated - never == 2 * 788 * 768 * 128


@pytest.mark.parametrize("gate", ["never", "always", "gated"])
def test_the_network_costs_what_xla_counts(gate: str) -> None:
    d, tokens, patch, groups = 256, 32, 48, 3
    fusion = fusion_of(experts=16, slots=2, hidden=512, heads=4, group_routers=True)
    spec = model_of(width=d, tokens=tokens, encoder_hidden=0, fusion=fusion)
    parts = network(spec, {name: Input("patch", (tokens, patch), 0) for name in ("a", "b")}, groups, gate)
    counted = flops.count(*parts)
    assert counted.total() == pytest.approx(xla_count(*parts), rel=0.03)
    assert counted["encoders/a"] == counted["encoders/b"] == 2 * tokens * patch * d


@pytest.mark.parametrize("gated", [False, True])
def test_a_scan_counts_as_often_as_it_runs(monkeypatch: pytest.MonkeyPatch, gated: bool) -> None:
    monkeypatch.setitem(t5.SIZES, "probe", PROBE)
    spec = model_of(
        width=128,
        tokens=4,
        text_size="probe",
        text_gated=gated,
        imputation="zero",
        fusion=fusion_of(experts=2, hidden=8, heads=4),
    )
    inputs = {"note": Input("text", (64,), 50)}
    counted = flops.count(*network(spec, inputs, 1, "never"))
    # By hand: projections, scores and mixing, and the feed-forward layers, three times over.
    inner, wide = 4 * 64, 3 if gated else 2
    layer = 8 * 64 * 256 * inner + 4 * 64 * 64 * inner + wide * 2 * 64 * 256 * 512
    assert counted["encoders/note"] == 3 * layer + 2 * 64 * 4 * 256 + 2 * 4 * 256 * 128
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    assert counted.total() == pytest.approx(xla_count(*network(spec, inputs, 1, "never")), rel=0.03)


def test_a_convolution_by_hand() -> None:
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )

    x, kernel = jax.ShapeDtypeStruct((3, 9, 9, 4), np.float32), jax.ShapeDtypeStruct((3, 3, 2, 6), np.float32)
    # 4 x 4 outputs of 6 channels, each a sum over 3 x 3 positions and the 2 channels of its group.
    assert flops.count(convolve, x, kernel) == {"": 3 * 4 * 4 * 6 * 2 * (3 * 3 * 2)}


def test_a_gradient_counts_its_three_products() -> None:
    w, x = jax.ShapeDtypeStruct((5, 7), np.float32), jax.ShapeDtypeStruct((11, 5), np.float32)
    forward = 2 * 11 * 5 * 7
    gradient = jax.grad(lambda w, x: jnp.sum((x @ w) ** 2), argnums=(0, 1))
    assert flops.count(gradient, w, x).total() == 3 * forward
    assert flops.count(jax.grad(lambda w, x: jnp.sum((x @ w) ** 2)), w, x).total() == 2 * forward


def test_of_two_branches_the_costlier_counts_and_an_open_loop_is_refused() -> None:
    w = jax.ShapeDtypeStruct((4, 4), np.float32)
    branching = lambda w: jax.lax.cond(w[0, 0] > 0, lambda w: w @ w @ w, lambda w: w @ w, w)  # noqa: E731
    assert flops.count(branching, w).total() == 2 * 2 * math.prod((4, 4, 4))
    with pytest.raises(ValueError, match="unknown length"):
        flops.count(lambda w: jax.lax.while_loop(lambda w: jnp.sum(w) < 9, lambda w: w @ w, w), w)
