"""Analytic operation and parameter counts against hand counts, XLA's own count and the arrays of real models."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from remind_jax.models.encoders import t5
from remind_jax.models.fusion.soft_moe import FusionSpec
from remind_jax.models.model import ModelSpec, make_network
from remind_jax.ops import flops

# Table 17's fusion block: four modalities of 197 tokens, 128 experts.
TABLE17 = {"n": 788, "d": 768, "e": 128, "s": 1, "f": 3072}
PROBE = {"layers": 3, "width": 256, "heads": 4, "head_width": 64, "hidden": 512}


class Input(NamedTuple):
    kind: str
    shape: tuple[int, ...]
    vocabulary: int


def compiled_flops(spec: ModelSpec, inputs: dict[str, Input], groups: int, gate: str) -> tuple[float, int]:
    """XLA's operations for one sample, and the number of parameters; nothing is run."""
    network = make_network(spec, inputs, groups, 2)
    params = jax.eval_shape(network.init, jax.random.key(0))
    batch = {
        name: jax.ShapeDtypeStruct((1, *i.shape), jnp.int32 if i.kind == "text" else jnp.float32)
        for name, i in inputs.items()
    }
    batch["present"] = jax.ShapeDtypeStruct((1, len(inputs)), jnp.bool_)
    batch["group"] = jax.ShapeDtypeStruct((1,), jnp.int32)
    apply = jax.jit(functools.partial(network.apply, gate=gate))
    cost = apply.lower(params, batch).compile().cost_analysis()
    return cost["flops"], sum(math.prod(x.shape) for x in params.values())


def test_hand_counts_of_the_fusion_block_of_table_17() -> None:
    parts = flops.fusion_block(**TABLE17, groups=15, gate="gated")
    giga = {name: cost.flops / 1e9 for name, cost in parts.items()}
    assert giga["projections"] == pytest.approx(3.72, abs=0.005)
    assert giga["attention"] == pytest.approx(1.91, abs=0.005)
    assert giga["dispatch"] == giga["combine"] == pytest.approx(0.155, abs=0.0005)
    assert giga["router"] == pytest.approx(2 * 0.155, abs=0.001)  # the second product is the price of the gate
    assert giga["experts"] == pytest.approx(1.21, abs=0.005)
    assert parts["experts"].parameters == 128 * (2 * 768 * 3072 + 3072 + 768)
    assert parts["group_router"].parameters == 1_474_560
    assert flops.total(flops.fusion_block(**TABLE17)).flops / 1e9 == pytest.approx(7.3, abs=0.05)


def test_only_the_gate_takes_a_second_router_product() -> None:
    never, always, gated = (
        flops.total(flops.fusion_block(**TABLE17, groups=5, gate=gate)).flops for gate in ("never", "always", "gated")
    )
    assert never == always
    assert gated - never == 2 * 788 * 768 * 128


@pytest.mark.parametrize("gate", ["never", "always", "gated"])
def test_the_network_costs_what_xla_counts(gate: str) -> None:
    d, tokens, patch, groups = 256, 32, 48, 3
    fusion = FusionSpec(experts=16, slots=2, hidden=512, heads=4, group_routers=True)
    spec = ModelSpec(width=d, tokens=tokens, encoder_hidden=0, fusion=fusion)
    inputs = {name: Input("embedding", (tokens, patch), 0) for name in ("a", "b")}
    parts = [flops.patch_encoder(t=tokens, patch=patch, d=d) for _ in inputs]
    parts.append(flops.fusion_block(n=2 * tokens, d=d, e=16, s=2, f=512, groups=groups, gate=gate))
    parts.append({"head": flops.linear(1, d, 2), "imputation": flops.Cost(0, groups * d)})
    counted, parameters = compiled_flops(spec, inputs, groups, gate)
    assert flops.total(parts).flops == pytest.approx(counted, rel=0.03)
    assert flops.total(parts).parameters == parameters


@pytest.mark.parametrize("gated", [False, True])
def test_the_text_encoder_costs_what_xla_counts_without_a_scan(monkeypatch: pytest.MonkeyPatch, gated: bool) -> None:
    monkeypatch.setitem(t5.SIZES, "probe", PROBE)
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    d, tokens, length = 128, 4, 64
    fusion = FusionSpec(experts=2, hidden=8, heads=4)
    spec = ModelSpec(width=d, tokens=tokens, text_size="probe", text_gated=gated, imputation="zero", fusion=fusion)
    parts = [flops.t5_encoder(length=length, vocabulary=50, gated=gated, t=tokens, d=d, **PROBE)]
    parts.append(flops.fusion_block(n=tokens, d=d, e=2, s=1, f=8))
    parts.append({"head": flops.linear(1, d, 2)})
    counted, parameters = compiled_flops(spec, {"note": Input("text", (length,), 50)}, 1, "never")
    assert flops.total(parts).flops == pytest.approx(counted, rel=0.03)
    assert flops.total(parts).parameters == parameters


def test_a_hidden_layer_of_a_patch_encoder_counts() -> None:
    # 4 patches: 6 -> 10 -> 8, biases 10 and 8, positions 4 x 8.
    cost = flops.total(flops.patch_encoder(t=4, patch=6, d=8, hidden=10))
    assert cost == flops.Cost(2 * 4 * (6 * 10 + 10 * 8), 6 * 10 + 10 + 10 * 8 + 8 + 32)


def test_total_takes_one_mapping_or_several() -> None:
    part = {"a": flops.Cost(1, 2), "b": flops.Cost(3, 4)}
    assert flops.total(part) == flops.Cost(4, 6)
    assert flops.total([part, part]) == flops.Cost(8, 12)
