"""Tables whose rows are trained each by itself: against an AdamW a row, against whole tables, on several devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from remind_jax.config import base, validate
from remind_jax.errors import UserError
from remind_jax.inference import model_folder
from remind_jax.methods import apply_method
from remind_jax.models.model import Output
from remind_jax.models.network import Network
from remind_jax.objectives.group_dro import group_dro
from remind_jax.runtime.devices import make_program
from remind_jax.training import optimizer as states
from remind_jax.training import row_adamw
from remind_jax.training.run import train_and_evaluate
from remind_jax.training.stages import plan_stages
from tests import tiny_runs
from tests.training import steps

G, D, CLASSES = 6, 4, 3
TABLE = "block_0/group_router"
# Combination 5 is never there, 4 once, 0 always; the last batch has one combination only.
BATCHES = [[0, 1, 1, 0], [0, 2, 0, 4], [0, 1, 2, 3], [0, 0, 0, 0]]


@pytest.fixture(autouse=True)
def _promotion_as_optax_needs_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


def _rate(count):
    return 0.1 / (1.0 + count)


def _schedule_at(step: int) -> float:
    return float(_rate(jnp.float32(step)))


def test_each_row_is_trained_by_an_adamw_of_its_own_steps():
    """Against optax, run for every row alone over the steps that have it, at the learning rate of those steps."""
    rng = np.random.default_rng(0)
    tables = {TABLE: rng.normal(size=(G, D, 2)), "imputation/group": rng.normal(size=(G, D)), "head/kernel": np.ones(3)}
    params = start = {path: jnp.asarray(x, jnp.float32) for path, x in tables.items()}
    optimizer = row_adamw.row_adamw(_rate, weight_decay=0.3)
    state, given = optimizer.init(params), []
    for groups in BATCHES:
        where, _ = row_adamw.of_batch(jnp.asarray(groups), G, None)
        gradient = {p: jnp.asarray(rng.normal(size=(len(where), *x.shape[1:])), jnp.float32) for p, x in params.items()}
        given.append((np.asarray(where), gradient))
        updates, state = jax.jit(optimizer.update)(gradient, state, params, rows=where)
        np.testing.assert_array_equal(updates["head/kernel"], gradient["head/kernel"])
        params = row_adamw.add(params, updates | {"head/kernel": jnp.zeros(3)}, where)
    for path in (TABLE, "imputation/group"):
        for row in range(G):
            value, moments = start[path][row], None
            for step, (where, gradient) in enumerate(given):
                if row not in where:
                    continue
                alone = optax.adamw(_schedule_at(step), weight_decay=0.3)
                moments = alone.init(value) if moments is None else moments
                update, moments = alone.update(gradient[path][list(where).index(row)], moments, value)
                value = value + update
            np.testing.assert_allclose(params[path][row], value, rtol=1e-5, atol=1e-6)
        assert state.counts[path].tolist() == [4, 2, 2, 1, 1, 0]
        np.testing.assert_array_equal(params[path][5], start[path][5])
        assert np.abs(params[path][:5] - start[path][:5]).min(axis=tuple(range(1, params[path].ndim))).min() > 1e-4


def test_the_rows_of_a_batch_are_its_combinations():
    where, local = row_adamw.of_batch(jnp.asarray([4, 1, 4, 0]), G, None)
    assert where.tolist() == [0, 1, 4, G]
    assert local.tolist() == [2, 1, 2, 0]
    where, local = row_adamw.of_batch(jnp.asarray([1, 0, 1, 1]), 2, None)  # fewer combinations than samples
    assert (where.tolist(), local.tolist()) == ([0, 1], [1, 0, 1, 1])


def _network() -> Network:
    """Logits from a row of a table for each combination, beside a linear map of the labs."""

    def init(seed):
        first, second = jax.random.split(jax.random.key(seed))
        return {TABLE: jax.random.normal(first, (G, CLASSES)), "head/kernel": jax.random.normal(second, (D, CLASSES))}

    def apply(params, batch, *, gate, keys=None, resting=False):
        del gate, keys, resting
        logits = batch["labs"] @ params["head/kernel"] + params[TABLE][batch["group"]]
        return Output(logits, logits, jnp.zeros(len(logits)))

    return Network(init, apply, apply, apply)


def _batch(groups, step: int) -> dict[str, np.ndarray]:
    rng, b = np.random.default_rng(step), len(groups)
    labs, label = rng.normal(size=(b, D)).astype(np.float32), rng.integers(0, CLASSES, b).astype(np.int32)
    return {"labs": labs, "label": label, "group": np.asarray(groups, np.int32), "weight": np.ones(b, np.float32)}


def _train(
    group_rows: str, batches, kind: str = "jit", devices: int = 1, programs: str = "one", ensemble: int = 1, scale=1.0
):
    """The state after a step a batch, and the metrics of the last, whose inputs are multiplied by `scale`."""
    config = base()
    apply_method(config, "remind")
    config.update({"ensemble": ensemble, "dro": {"every": 2}, "optim": {"group_rows": group_rows}})
    config.update({"model": {"encoder_dropout": 0.0}, "fusion": {"dropout": 0.0}, "train": {"joint_epochs": 0.0}})
    (stage,) = plan_stages(config, 100, {})
    network, by_rows = _network(), row_adamw.only_of_batch(config, G)

    def make(dro):
        return states.make_optimizer(_rate, weight_decay=0.3, clip=0.5, dro=dro, by_rows=by_rows)

    step, optimizer = steps.composed(config, network, np.full((G, CLASSES), 10), stage, make, decay=0.75)
    params = network.init(0)
    if ensemble > 1:
        params = jax.tree.map(lambda *x: jnp.stack(x), *(network.init(i) for i in range(ensemble)))
    state = states.start(params, stage.is_frozen, optimizer, 0, True, ensemble, by_rows)
    program = make_program(step, kind, jax.devices()[:devices], programs)
    placed = program.place(state)
    for i, groups in enumerate(batches):
        batch = _batch(groups, i)
        batch["labs"] *= scale if i == len(batches) - 1 else 1.0
        placed, metrics = program.step(placed, batch)
    return program.fetch(placed), program.read(metrics)


def test_a_step_by_rows_is_the_step_of_whole_tables_where_every_combination_is_in_every_batch():
    batches = [[*range(G), 0, 1]] * 3
    (mine, metrics), (whole, other) = _train("batch", batches), _train("all", batches)
    chex.assert_trees_all_close(mine.params, whole.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(metrics, other, rtol=1e-5)
    assert (set(mine.ema), set(whole.ema)) == ({"head/kernel"}, {TABLE, "head/kernel"})
    np.testing.assert_array_equal(mine.weights()[TABLE], mine.params[TABLE])


def test_absent_combinations_rest_and_those_of_whole_tables_do_not():
    batches = [[0, 1, 2, 3], [0, 0, 0, 0], [0, 0, 0, 0]]
    for group_rows, rests in (("batch", True), ("all", False)):
        after, _ = _train(group_rows, batches)
        first, _ = _train(group_rows, batches[:1])
        assert np.array_equal(after.params[TABLE][1:], first.params[TABLE][1:]) == rests
        assert np.abs(after.params[TABLE][0] - first.params[TABLE][0]).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "devices", "programs"),
    [
        ("jit", 4, "two"),
        ("pmap", 4, "one"),
        pytest.param("jit", 1, "two", marks=pytest.mark.slow),
        pytest.param("pmap", 2, "two", marks=pytest.mark.slow),
    ],
)
def test_rows_are_the_same_on_any_number_of_devices(kind, devices, programs):
    (one, expected), (other, metrics) = _train("batch", BATCHES), _train("batch", BATCHES, kind, devices, programs)
    chex.assert_trees_all_close(other.params, one.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(other.opt_state["rows"], one.opt_state["rows"], rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(metrics, expected, rtol=2e-5)


def test_a_rejected_step_leaves_the_rows_of_its_batch_as_they_are():
    before, _ = _train("batch", BATCHES[:2])
    after, metrics = _train("batch", BATCHES[:3], scale=np.inf)
    assert metrics["train/rejected"] == 1
    assert after.step == 3
    chex.assert_trees_all_equal(after._replace(step=before.step), before)


@pytest.mark.slow
def test_networks_of_an_ensemble_have_rows_of_their_own():
    single, _ = _train("batch", BATCHES)
    several, _ = _train("batch", BATCHES, ensemble=2)
    np.testing.assert_allclose(several.params[TABLE][0], single.params[TABLE], rtol=1e-5, atol=1e-6)
    assert np.abs(several.params[TABLE][1] - single.params[TABLE]).max() > 0.1


def test_rows_of_the_batch_are_chosen_where_combinations_outnumber_it():
    config = base("synthetic")
    config.train.batch_size = 32
    assert not row_adamw.only_of_batch(config, 32)
    assert row_adamw.only_of_batch(config, 33)
    config.train.hide_samples = 0.5  # some samples are then of no combination
    assert not row_adamw.only_of_batch(config, 33)
    config.optim.group_rows = "batch"
    with pytest.raises(UserError, match=r"group_rows=batch .* train\.hide_samples=0"):
        validate(config)


def test_the_state_holds_two_moments_of_every_row_and_no_buffer_twice():
    params = {TABLE: jnp.zeros((G, D)), "imputation/group": jnp.zeros((G, D)), "head/kernel": jnp.zeros((D, 3))}
    optimizer = states.make_optimizer(_rate, weight_decay=0.1, clip=1.0, dro=group_dro(G), by_rows=True)
    state = states.start(params, lambda path: False, optimizer, 0, ema=True, by_rows=True)
    leaves = jax.tree.leaves(state)
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)
    assert sum(x.size for x in jax.tree.leaves(state.opt_state["rows"].mu)) == 2 * G * D
    assert not any(row_adamw.is_table(path) for path in state.opt_state["adamw"][0].mu)


@pytest.mark.slow
@pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
def test_a_run_by_rows_trains_both_stages_and_reports(tmp_path):
    config = tiny_runs.config(tmp_path / "cache", optim__group_rows="batch")
    report = train_and_evaluate(config, tmp_path / "run", verbose=False)
    assert report["method"] == "remind"
    weights = model_folder.open_model(tmp_path / "run").params
    assert np.abs(weights[TABLE]).max() > 0
