"""Fusions of the arena: their equations, and what is missing has no say."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from remind_jax.errors import UserError
from remind_jax.methods import ARENA
from remind_jax.models.fusion import FUSIONS
from remind_jax.models.fusion.late import WholeFusion
from remind_jax.models.network import make_network
from tests.models.pure import PureFusion, jitted, normal_tokens, random_params
from tests.models.specs import fusion_of, model_of
from tests.models.test_model import TABULAR, make_batch
from tests.models.test_model import B as SAMPLES
from tests.models.test_model import C as CLASSES
from tests.models.test_model import G as GROUPS
from tests.reference import arena as slow

B, M, D, C, G, H = 5, 3, 8, 4, 3, 2
OWNER = np.array([0, 0, 1, 2, 2, 2])
PRESENT = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0]], bool)
SMALL = {"heads": H, "experts": 4, "hidden": 6, "latents": 3}
# Those that act in training, too, have files of their own.
KINDS = [kind for kind, fusion in FUSIONS.items() if issubclass(fusion, WholeFusion) and hasattr(slow, kind)]
LAYERS = 2
every = pytest.mark.parametrize("kind", KINDS)


class Fusion(PureFusion):
    def __init__(self, kind: str, **options: Any):
        spec, fusion = fusion_of(kind=kind, **SMALL, blocks=LAYERS, **options), FUSIONS[kind]
        outputs = {"num_outputs": C} if fusion.predicts else {}
        super().__init__(lambda: fusion(spec, D, G, M, nnx.Rngs(params=0), **outputs), OWNER)


@functools.cache
def made(kind: str, **options: Any) -> Fusion:
    return Fusion(kind, **options)


def tokens(seed: int = 0) -> jax.Array:
    return jnp.asarray(normal_tokens((B, len(OWNER), D), seed))


@every
def test_a_fusion_equals_what_loops_make_of_its_equations(kind: str) -> None:
    fusion, more = made(kind), {"heads": H, "layers": LAYERS} if kind in ("healnet", "umse") else {}
    found, p, sums = fusion(fusion.params, tokens(), PRESENT), fusion.wide(), {}
    for i in range(B):
        own = np.flatnonzero(PRESENT[i]).tolist()
        expected = getattr(slow, kind)(p, np.asarray(tokens()[i], float), OWNER, own, **more)
        for name in ("features", "logits"):
            assert (getattr(found, name) is None) is (name not in expected)
            if name in expected:
                np.testing.assert_allclose(getattr(found, name)[i], expected[name], rtol=2e-4, atol=2e-5)
        if "experts" in expected:
            there = np.asarray(found.experts.present[i])
            assert there[:M].tolist() == PRESENT[i].tolist()
            np.testing.assert_allclose(found.experts.logits[i][there], expected["experts"][there], rtol=2e-4, atol=2e-5)
        if "weights" in expected:
            np.testing.assert_allclose(found.experts.weights[i], expected["weights"], rtol=2e-4, atol=2e-5)
        for name in found.sums or ():
            sums[name] = sums.get(name, 0.0) + expected[name]
    assert bool(FUSIONS[kind].penalised) is bool(sums)
    for name, value in sums.items():
        np.testing.assert_allclose(found.sums[name], value, rtol=2e-4, err_msg=name)


@every
def test_samples_do_not_see_each_other_and_parts_of_a_batch_add_up(kind: str) -> None:
    fusion, order, keys = made(kind, dropout=0.4), np.array([3, 0, 4, 2, 1]), jax.random.split(jax.random.key(0), B)
    for given in (None, keys):
        whole = fusion(fusion.params, tokens(), PRESENT, given)
        moved = fusion(fusion.params, tokens()[order], PRESENT[order], None if given is None else given[order])
        np.testing.assert_allclose(moved.features, whole.features[order], atol=2e-5)
        if whole.logits is not None:
            np.testing.assert_allclose(moved.logits, whole.logits[order], atol=2e-5)
    plain = fusion(fusion.params, tokens(), PRESENT)
    answer = "features" if kind not in ("medfuse", "late_fusion") else "logits"
    assert np.abs(getattr(whole, answer) - getattr(plain, answer)).max() > 1e-3  # dropout is on
    if plain.sums is not None:
        first, second = (fusion(fusion.params, tokens()[part], PRESENT[part]) for part in (slice(0, 2), slice(2, B)))
        for name, value in plain.sums.items():
            np.testing.assert_allclose(first.sums[name] + second.sums[name], value, rtol=1e-4)


@every
def test_a_sample_without_any_modality_has_an_answer_and_slopes(kind: str) -> None:
    fusion, x = made(kind), jnp.zeros_like(tokens())

    def total(params):
        found = fusion(params, x, jnp.zeros_like(PRESENT))
        outputs = (found.features, found.logits, found.sums)
        return sum(jnp.sum(y) for y in jax.tree.leaves(outputs))

    value, slopes = jax.jit(jax.value_and_grad(total))(fusion.params)
    assert np.isfinite(value)
    assert all(np.isfinite(slope).all() for slope in jax.tree.leaves(slopes))


@every
def test_one_program_serves_any_number_of_samples(kind: str) -> None:
    fusion = made(kind)
    (count,) = jax.export.symbolic_shape("b")
    shapes = [jax.ShapeDtypeStruct((count, len(OWNER), D), jnp.float32), jax.ShapeDtypeStruct((count, M), jnp.bool)]
    answer = "logits" if FUSIONS[kind].predicts else "features"
    program = jax.export.export(jax.jit(lambda x, present: getattr(fusion(fusion.params, x, present), answer)))(*shapes)
    for n in (B, 2):
        x, present = tokens()[:n], PRESENT[:n]
        expected = getattr(fusion(fusion.params, x, present), answer)
        np.testing.assert_allclose(program.call(x, present), expected, atol=1e-5)


# ---- In a network ----------------------------------------------------------------------------------------------------


@functools.cache
def network(kind: str):
    preset = next(keys for keys in ARENA.values() if keys.get("fusion.kind") == kind)
    spec = model_of(width=D, tokens=2, imputation=preset["model.imputation"], fusion=fusion_of(kind=kind, **SMALL))
    found = jitted(make_network(spec, TABULAR, GROUPS, CLASSES))
    return found, random_params(found.shapes)


@every
def test_what_is_missing_changes_nothing(kind: str) -> None:
    net, params = network(kind)
    batch = make_batch()
    changed = {name: np.array(batch[name]) for name in TABULAR}
    changed["labs"][1], changed["views"][2] = 1e6, -1e6  # which these samples do not have
    before, after = (net.apply(params, given, gate="never") for given in (batch, batch | changed))
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(one, other)
    changed["labs"][0] += 1.0  # which this sample has
    assert np.abs(net.apply(params, batch | changed, gate="never").logits - before.logits)[0].max() > 1e-4
    assert before.logits.shape == (SAMPLES, CLASSES)

    def loss(params):
        output = net.apply(params, batch | {"present": np.array([[False, True]] * SAMPLES)}, gate="never")
        return jnp.sum(jnp.sin(output.logits))

    slopes = jax.jit(jax.grad(loss))(params)
    assert not any(np.abs(slope).max() for path, slope in slopes.items() if path.startswith("encoders/labs"))
    assert any(np.abs(slope).max() > 0 for path, slope in slopes.items() if path.startswith("encoders/views"))


@every
def test_members_share_what_leaves_the_heads_to_them(kind: str) -> None:
    spec = model_of(width=D, tokens=2, members=2, imputation="zero", fusion=fusion_of(kind=kind, **SMALL))
    if FUSIONS[kind].predicts:
        with pytest.raises(UserError, match=f"fusion.kind={kind} has heads of its own"):
            make_network(spec, TABULAR, GROUPS, CLASSES)
        return
    found = jitted(make_network(spec, TABULAR, GROUPS, CLASSES))
    output = found.apply(random_params(found.shapes), make_batch(), gate="never")
    assert output.members.shape == (SAMPLES, 2, CLASSES)
    assert np.abs(output.members[:, 0] - output.members[:, 1]).max() > 1e-3
