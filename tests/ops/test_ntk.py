"""Gradient directions: three estimators against a dense float64 Jacobian, cases with known answers, and signs."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax.data.kinds import KINDS
from remind_jax.models.network import make_network
from remind_jax.ops import ntk
from tests.models.specs import fusion_of, model_of

N = 20


@pytest.fixture(autouse=True, scope="module")
def _less_optimisation():
    """Less optimisation of what is compiled, which is most of the time these tests take."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


def _linear():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w": jax.random.normal(keys[0], (7, 3))}
    return _classifier(lambda p, b: b["x"] @ p["w"]), params, _batch(keys[1], 7)


def _mlp():
    keys = jax.random.split(jax.random.key(1), 4)
    params = {"a": jax.random.normal(keys[0], (5, 16)), "b": {"c": jax.random.normal(keys[1], (16, 3))}}
    return _classifier(lambda p, b: jnp.tanh(b["x"] @ p["a"]) @ p["b"]["c"]), params, _batch(keys[2], 5)


def _remind():
    """A small REMIND network whose group routers act."""
    fusion = fusion_of(heads=2, experts=3, hidden=8, group_routers=True, residual_init="sinusoidal")
    inputs = {"x": KINDS["tabular"].spec((5,), 0), "y": KINDS["embedding"].spec((2, 4), 0)}
    network = make_network(model_of(width=8, fusion=fusion), inputs, 2, 3)
    keys = jax.random.split(jax.random.key(2), 3)
    batch = _batch(keys[1], 5) | {"y": jax.random.normal(keys[2], (N, 2, 4))}
    batch |= {"present": jnp.arange(N)[:, None] % 2 < jnp.array([[2, 1]]), "group": jnp.arange(N) % 2}
    return _classifier(lambda p, b: network.apply(p, b, gate="always").logits), network.init(0), batch


def _batch(key, width):
    first, second = jax.random.split(key)
    return {"x": jax.random.normal(first, (N, width)), "label": jax.random.randint(second, (N,), 0, 3)}


def _classifier(logits):
    return {kind: lambda p, b, kind=kind: ntk.OUTPUTS[kind](logits(p, b), b["label"]) for kind in ntk.OUTPUTS}


def dense_jacobian(f, params, batch) -> np.ndarray:
    """J [n, p] in float64, by forward mode over the whole batch."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), params)
        data = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), batch)
        data = {k: x.astype(jnp.float64) if x.dtype == jnp.float32 else x for k, x in data.items()}
        with jax.numpy_dtype_promotion("standard"):
            columns = jax.jit(jax.jacfwd(f))(wide, data)
        return np.concatenate([np.asarray(x, np.float64).reshape(N, -1) for x in jax.tree.leaves(columns)], axis=1)


def flat(tree) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def cos(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (_linear, "loss"),
        (_mlp, "margin"),
        (_mlp, "loss"),
        (_mlp, "logit"),
        pytest.param(_remind, "margin", marks=pytest.mark.slow),
    ],
    ids=["linear-loss", "mlp-margin", "mlp-loss", "mlp-logit", "remind-margin"],
)
def test_all_estimators_give_the_dense_direction(model, kind):
    outputs, params, batch = model()
    f = outputs[kind]
    jacobian = dense_jacobian(f, params, batch)
    values, vectors = np.linalg.eigh(jacobian @ jacobian.T)
    for method in ntk.METHODS:
        found = ntk.top_direction(f, params, batch, method=method)
        assert abs(cos(flat(found.gradient), jacobian.T @ vectors[:, -1])) >= 0.99999, method
        assert cos(flat(found.mean), jacobian.mean(axis=0)) >= 0.99999, method
        np.testing.assert_allclose(found.lambda1, values[-1], rtol=1e-4, err_msg=method)
        np.testing.assert_allclose(found.lambda2, values[-2], rtol=1e-2, err_msg=method)
        np.testing.assert_allclose(found.trace, values.sum(), rtol=1e-4, err_msg=method)
        np.testing.assert_allclose(flat(found.gradient) @ flat(found.gradient), values[-1], rtol=1e-4, err_msg=method)
        assert np.sum(found.u) >= 0
        np.testing.assert_allclose(np.linalg.norm(found.u), 1.0, rtol=1e-5)


@pytest.mark.parametrize("method", ntk.METHODS)
def test_rows_of_weight_zero_do_not_count(method):
    outputs, params, batch = _mlp()
    f, weight = outputs["margin"], (np.arange(N) < 9).astype(np.float32)
    padded = ntk.top_direction(f, params, batch, weight, method=method)
    alone = ntk.top_direction(f, params, jax.tree.map(lambda x: x[:9], batch), method=method)
    assert float(ntk.cosine(padded.gradient, alone.gradient)) >= 0.99999
    assert float(ntk.cosine(padded.mean, alone.mean)) >= 0.99999
    np.testing.assert_allclose(flat(padded.mean), flat(alone.mean), rtol=1e-4, atol=1e-6)
    for name in ("lambda1", "lambda2", "trace"):
        np.testing.assert_allclose(getattr(padded, name), getattr(alone, name), rtol=1e-2)
    np.testing.assert_allclose(padded.u[9:], 0.0, atol=1e-6)


def test_the_score_follows_from_blocks_of_the_kernel():
    """GC = uᵀ Θ(X, X_k) u' / √(λ1 λ1'), with chunks that do not divide the number of rows."""
    outputs, params, batch = _mlp()
    f = outputs["margin"]
    part = jax.tree.map(lambda x: x[3:10], batch)
    whole, group = (ntk.top_direction(f, params, b, method="exact") for b in (batch, part))
    block = ntk.gram_matrix(f, params, batch, part, chunk=6)
    np.testing.assert_allclose(block, ntk.gram_matrix(f, params, batch, part), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(block, ntk.gram_matrix(f, params, batch, chunk=6)[:, 3:10], rtol=1e-5, atol=1e-5)
    jacobian = dense_jacobian(f, params, batch)
    np.testing.assert_allclose(block, jacobian @ jacobian[3:10].T, rtol=1e-3, atol=1e-3)
    expected = float(whole.u @ block @ group.u / jnp.sqrt(whole.lambda1 * group.lambda1))
    np.testing.assert_allclose(ntk.consistency(whole, group).gc, expected, atol=1e-5)


def _projection(params, batch):
    """Outputs whose gradients are the rows of x."""
    return batch["x"] @ params["w"]


WEIGHTS = {"w": jnp.array([0.3, -0.2, 0.9])}


def _rows(*rows):
    return {"x": np.array(rows, np.float32)}


@pytest.mark.parametrize("method", ntk.METHODS)
@pytest.mark.parametrize(
    ("other", "gc", "abs_gc"),
    [([0.0, 2.0, 0.0], 0.0, 0.0), ([3.0, 0.0, 0.0], 1.0, 1.0), ([-1.0, 0.0, 0.0], -1.0, 1.0)],
    ids=["orthogonal", "equal", "opposite"],
)
def test_known_angles(method, other, gc, abs_gc):
    first = _rows([1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    score = ntk.consistencies(_projection, WEIGHTS, first, {"other": _rows(other, other)}, method=method)["other"]
    np.testing.assert_allclose(score[:3], [gc, abs_gc, gc], atol=1e-6)
    assert score.n == 2
    np.testing.assert_allclose([score.lambda1, score.trace], 2 * np.dot(other, other), rtol=1e-5)
    np.testing.assert_allclose(score.lambda2, 0.0, atol=1e-4)


@pytest.mark.parametrize("method", ntk.METHODS)
def test_a_group_that_is_the_whole_agrees_with_it(method):
    outputs, params, batch = _mlp()
    score = ntk.consistencies(outputs["loss"], params, batch, {0: batch}, method=method)[0]
    np.testing.assert_allclose(score[:3], 1.0, atol=1e-5)


def test_dominant_direction_is_not_the_mean_gradient():
    """Two opposite pairs cancel in the mean; what is left there is the small third axis."""
    batch = _rows([5, 0, 0], [-5, 0, 0], [0, 0, 1])
    found = ntk.top_direction(_projection, WEIGHTS, batch, method="exact")
    np.testing.assert_allclose(np.abs(found.gradient["w"]), [50**0.5, 0, 0], atol=1e-5)
    np.testing.assert_allclose(found.mean["w"], [0, 0, 1 / 3], atol=1e-6)


def test_lanczos_sees_an_eigenvalue_that_occurs_twice():
    found = ntk.top_direction(_projection, WEIGHTS, _rows([2, 0, 0], [0, 2, 0], [0, 0, 1]), method="lanczos")
    np.testing.assert_allclose([found.lambda1, found.lambda2, found.trace], [4, 4, 9], rtol=1e-5)


def test_the_sign_does_not_hang_on_the_eigensolver():
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 40):
        u = jnp.asarray(rng.normal(size=size), jnp.float32)
        np.testing.assert_array_equal(ntk.orient(u), ntk.orient(-u))
        assert jnp.sum(ntk.orient(u)) >= 0
    balanced = jnp.array([-1.0, 1.0]) / jnp.sqrt(2.0)  # sums to zero: the first entry decides
    np.testing.assert_array_equal(ntk.orient(balanced), ntk.orient(-balanced))
    assert ntk.orient(balanced)[0] > 0


def test_no_rounding_takes_a_cosine_out_of_its_range():
    rows = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    assert max(float(ntk.cosine(row, row)) for row in rows) == 1.0
    assert min(float(ntk.cosine(row, -row)) for row in rows) == -1.0


def test_margin_and_logit_by_hand():
    logits, labels = jnp.array([[1.0, 4.0, 2.0], [3.0, 0.5, -1.0]]), jnp.array([2, 0])
    np.testing.assert_allclose(ntk.logit_margin(logits, labels), [-2.0, 2.5])
    np.testing.assert_allclose(ntk.true_class_logit(logits, labels), [2.0, 3.0])
    two = jnp.array([[1.5, -0.5]])
    np.testing.assert_allclose(ntk.logit_margin(two, jnp.array([1])), [-2.0])  # f_y - f_other
    gradient = jax.grad(lambda x: ntk.logit_margin(x, jnp.array([1]))[0])(two)
    np.testing.assert_allclose(gradient, [[-1.0, 1.0]])


def test_a_group_without_gradient_has_no_score():
    score = ntk.consistencies(_projection, WEIGHTS, _rows([1, 0, 0]), {0: _rows([0, 0, 0])}, method="exact")[0]
    assert np.isnan(score.gc)
    assert np.isnan(score.cos_mean_gradient)


def test_the_draw_is_equal_in_number_and_without_repeats():
    groups = np.array(["a"] * 50 + ["b"] * 3 + ["c"] * 20)
    drawn, whole = ntk.sample_groups(groups, 8, 30, seed=1)
    assert {name: len(rows) for name, rows in drawn.items()} == {"a": 8, "b": 3, "c": 8}
    assert all((groups[rows] == name).all() and len(set(rows)) == len(rows) for name, rows in drawn.items())
    assert len(set(whole)) == 30
    again, other = ntk.sample_groups(groups, 8, 30, seed=1), ntk.sample_groups(groups, 8, 30, seed=2)
    np.testing.assert_array_equal(again[1], whole)
    assert not np.array_equal(other[1], whole)
    drawn, whole = ntk.sample_groups(groups, 8, 30, balanced=True)
    np.testing.assert_array_equal(whole, np.sort(np.concatenate(list(drawn.values()))))


def test_public_function_on_a_part_of_a_model():
    _, params, batch = _mlp()

    def loss(trained, rows, fixed):
        return jnp.square(jnp.tanh(rows["x"] @ fixed["a"]) @ trained["c"]).sum(axis=1)

    groups = np.arange(N) % 2
    options = {"fixed": {"a": params["a"]}, "n": N, "whole": N}
    scores = {m: ntk.gradient_consistency(loss, params["b"], batch, groups, method=m, **options) for m in ntk.METHODS}
    jacobian = dense_jacobian(lambda p, b: loss(p["b"], b, {"a": p["a"]}), params, batch)
    jacobian = jacobian[:, params["a"].size :]  # leaves come in the order of their keys: a, then b
    dominant = {k: np.linalg.svd(jacobian[rows])[2][0] for k, rows in {"all": groups >= 0, 0: groups == 0}.items()}
    for found in scores.values():
        assert set(found) == {0, 1}
        assert found[0].n == 10
        np.testing.assert_allclose(found[0].abs_gc, abs(dominant["all"] @ dominant[0]), atol=1e-4)
        mean = cos(jacobian.mean(axis=0), jacobian[groups == 0].mean(axis=0))
        np.testing.assert_allclose(found[0].cos_mean_gradient, mean, atol=1e-4)


def test_the_example_in_the_text_runs():
    lines = inspect.getdoc(ntk.gradient_consistency).split("\n")
    example = "\n".join(line[4:] for line in lines if line.startswith("    ") or not line.strip())
    example = example[: example.index("score.lambda1)") + len("score.lambda1)")]
    rng = np.random.default_rng(0)
    names = {
        "x": rng.normal(size=(30, 4)).astype(np.float32),
        "y": rng.normal(size=30).astype(np.float32),
        "hospital": np.array(["north", "south", "west"] * 10),
        "params": {"in": jnp.ones((4, 3)) * jnp.arange(1.0, 4.0)[None], "out": jnp.ones((3, 1))},
        "gradient_consistency": ntk.gradient_consistency,
        "jnp": jnp,
    }
    exec(example, names)
    assert set(names["scores"]) == {"north", "south", "west"}
    assert all(0 <= score.abs_gc <= 1 and score.n == 10 for score in names["scores"].values())


def test_mistakes_are_named():
    outputs, params, batch = _mlp()
    with pytest.raises(ValueError, match="unknown method 'eig'"):
        ntk.top_direction(outputs["loss"], params, batch, method="eig")
    with pytest.raises(ValueError, match="one number a row"):
        ntk.top_direction(lambda p, b: jnp.mean(b["x"] @ p["a"]), params, batch)


def test_auto_goes_by_size():
    """A Jacobian of 256 MB, one of 8 GB whose factors take 8 MB, and one of 8 GB without factors."""
    rows = {"x": jax.ShapeDtypeStruct((32, 1000), jnp.float32)}
    small, large = ({"w": jax.ShapeDtypeStruct((1000, width), jnp.float32)} for width in (1000, 64_000))

    def product(params, batch):
        return jnp.sum(batch["x"] @ params["w"], axis=1)

    def elementwise(params, batch):
        return jnp.sum(jnp.sin(params["w"] * batch["x"][:, :, None]), axis=(1, 2))

    assert ntk.resolve_method("auto", product, small, rows) == "exact"
    assert ntk.resolve_method("auto", product, large, rows) == "gram"
    with jax.numpy_rank_promotion("allow"):
        assert ntk.resolve_method("auto", elementwise, large, rows) == "lanczos"
    assert ntk.resolve_method("exact", product, large, rows) == "exact"
