"""One step function on one device, over a mesh (`jit`) and one program a device (`pmap`): the same numbers."""

import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax.config import base
from remind_jax.data.kinds.embedding import EMBEDDING
from remind_jax.data.kinds.pixels import IMAGE
from remind_jax.data.kinds.tabular import TABULAR
from remind_jax.errors import UserError
from remind_jax.methods import apply_method
from remind_jax.models.network import ensemble_of, make_network
from remind_jax.models.spec import model_spec
from remind_jax.runtime.devices import (
    KINDS,
    choose_devices,
    compiled,
    host_copy,
    kept_programs,
    make_program,
    users_programs,
)
from remind_jax.training import optimizer as states
from remind_jax.training.stages import plan_stages
from remind_jax.training.step import Step
from tests import tiny_runs
from tests.models.pure import linear_network, random_params
from tests.training import steps

pytestmark = pytest.mark.usefixtures("quick_compilation")

INPUTS = {"labs": TABULAR.spec((5,)), "scan": EMBEDDING.spec((2, 4))}
COUNTS = np.array([60, 30, 10])
CELLS = np.array([[20, 20, 20], [10, 10, 10], [4, 3, 3]])  # by class
MASKS = np.array([[True, True], [True, False], [False, True]])
# Of the four devices the first two see one group only, the third sees two and the last the rare one alone.
GROUPS = np.array([0, 0, 0, 0, 0, 1, 2, 2], np.int32)
STEPS = 5
SLOW = [("jit", "one"), ("pmap", "two")]


def _config(**changes):
    config = base()
    apply_method(config, "remind")
    config.model.update(width=8, encoder_dropout=0.3)
    config.fusion.update(heads=2, experts=3, hidden=8, dropout=0.3, preset="paper_eq", gate_threshold=0.85)
    config.dro.update(gamma=2.0, every=2)
    config.train.update(batch_size=len(GROUPS), freeze="encoders+projections", joint_epochs=0.0)
    config.optim.update(ema=0.9, clip=0.5)
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


def _batch(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    b = len(GROUPS)
    present = MASKS[GROUPS]
    return {
        "labs": rng.normal(size=(b, 5)).astype(np.float32),
        "scan": rng.normal(size=(b, 2, 4)).astype(np.float32),
        "present": present,
        "group": GROUPS,
        "label": rng.integers(0, 3, b).astype(np.int32),
        "row": np.arange(b, dtype=np.int32),
        "weight": np.ones(b, np.float32),
    }


def _start(config, network=None, stage: int = -1):
    """The step function of a stage, the last one, and its state on the host."""
    network = network or make_network(model_spec(config), INPUTS, len(COUNTS), 3)
    stage = plan_stages(config, 100, INPUTS)[stage]

    def make(dro):
        return states.make_optimizer(lambda count: 0.01, weight_decay=0.1, clip=config.optim.clip, dro=dro)

    decay = config.optim.ema
    step, optimizer = steps.composed(config, network, CELLS, stage, make, decay=decay, masks=MASKS)
    params = jax.device_get(ensemble_of(network, config.ensemble).init(0))
    if "block_0/group_router" in params:
        # Away from zero, so that group routing matters from the first step.
        noise = np.random.default_rng(0).normal(size=params["block_0/group_router"].shape).astype(np.float32)
        params["block_0/group_router"] = 0.3 * noise
    return step, host_copy(states.start(params, stage.is_frozen, optimizer, 0, ema=True, ensemble=config.ensemble))


def _train(step, state, kind: str, devices: int, programs: str = "one", experts: int = 1):
    """The state after some steps, and the metrics of each."""
    program = make_program(step, kind, jax.devices()[:devices], programs, experts)
    placed, metrics = program.place(state), []
    for i in range(STEPS):
        placed, values = program.step(placed, _batch(i))
        metrics.append(program.read(values))
    return program.fetch(placed), metrics


@pytest.fixture(scope="module")
def alone():
    """Trained on one device."""
    return _train(*_start(_config()), "jit", 1)


def _assert_same(one, other):
    """Parameters, averages, frozen weights, group weights and metrics agree."""
    (state, metrics), (other_state, other_metrics) = one, other
    for name in ("params", "ema", "frozen"):
        mine, theirs = getattr(state, name), getattr(other_state, name)
        assert mine.keys() == theirs.keys()
        for path in mine:
            # Softmax does not see the bias of the keys: its gradient is rounding noise, which Adam blows up.
            noise = path.endswith("query_key_value/bias")
            np.testing.assert_allclose(mine[path], theirs[path], rtol=1e-5, atol=1e-2 if noise else 2e-5, err_msg=path)
    dro, other_dro = state.opt_state["dro"], other_state.opt_state["dro"]
    for mine, theirs in zip(dro, other_dro, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(metrics, other_metrics, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_allclose(mine[name], theirs[name], rtol=2e-5, atol=1e-5, err_msg=name)


def test_the_setting_exercises_what_it_should(alone):
    state, metrics = alone
    _, start = _start(_config())
    # λ moved far from where it began, the gate was open for some samples, the frozen stayed, the others moved.
    assert np.abs(metrics[-1]["lambda"] - metrics[0]["lambda"]).max() > 0.1
    assert 0.05 < np.mean([m["gate/open_rate"] for m in metrics]) < 0.95
    assert state.frozen
    assert all(np.array_equal(state.frozen[path], start.frozen[path]) for path in state.frozen)
    assert np.abs(state.params["block_0/group_router"] - start.params["block_0/group_router"]).max() > 1e-3
    assert int(state.step) == STEPS


@pytest.mark.parametrize(
    ("kind", "programs"), [("jit", "two"), ("pmap", "one"), *(pytest.param(*x, marks=pytest.mark.slow) for x in SLOW)]
)
def test_four_devices_give_the_numbers_of_one(alone, kind, programs):
    _assert_same(_train(*_start(_config()), kind, 4, programs), alone)


@pytest.mark.slow
def test_the_first_stage_gives_the_same_numbers_in_two_programs():
    step, state = _start(_config(train__joint_epochs=1.0), stage=0)
    assert "block_0/group_router" in state.frozen
    _assert_same(_train(step, state, "jit", 1, "two"), _train(step, state, "jit", 1))


def test_two_programs_use_the_memory_of_one_gradient_and_keep_it_out_of_the_state():
    """Each run of the first program is given the last gradient, and no array of a state or of metrics is among them."""
    given = []

    def compile_it(function, donate_argnums):
        ready = jax.jit(function, donate_argnums=donate_argnums, keep_unused=True)

        def run(*arguments):
            if donate_argnums == 2:
                given.append({path: x.unsafe_buffer_pointer() for path, x in arguments[2].items()})
            return ready(*arguments)

        return run

    step, state = _start(_config(), linear_network())
    run = compiled(step, "two", "cpu", compile_it)
    state = jax.device_put(state, jax.devices()[0])
    for i in range(3):
        state, metrics = run(state, jax.device_put(_batch(i), jax.devices()[0]))
    assert given[0].keys() == state.params.keys()
    assert given[1] == given[2]
    held = {x.unsafe_buffer_pointer() for x in jax.tree.leaves((state, metrics))}
    assert not held & set(given[2].values())


@pytest.mark.parametrize(("entries", "programs"), [(2**21, 2), (2**21 - 1, 1)])
def test_large_steps_run_as_two_programs_on_cpu(entries, programs):
    def made(platform, choice, axis_name=None):
        count = []
        update = lambda state, gradient, found: (state, found)  # noqa: E731
        step = Step(lambda state, batch, axis_name: (state.params, batch), update)
        run = compiled(step, choice, platform, lambda f, donate_argnums: count.append(1) or f, axis_name)
        run(states.TrainState(0, {"w": jnp.zeros(entries, jnp.float32)}, {}, {}, {}, 0), {})
        return len(count)

    assert made("cpu", "auto") == programs
    assert (made("gpu", "auto"), made("cpu", "auto", "data"), made("cpu", "one"), made("gpu", "two")) == (1, 1, 1, 2)


@pytest.mark.slow
def test_ensembles_give_the_same_numbers_on_any_number_of_devices():
    config = _config(model__wide=True, model__members=2, train__hide_samples=0.5, objective__distill_weight=0.5)
    config.update(ensemble=3, ensemble_plain=1)
    one = _train(*_start(config), "jit", 1)
    for kind in KINDS:
        _assert_same(_train(*_start(config), kind, 4, "two"), one)
    router = one[0].params["block_0/group_router"]
    assert len(router) == 3
    # Only a plain network leaves its group routers alone; others have dropout of their own and go other ways.
    assert np.abs(router[1] - router[2]).max() > 1e-3


@pytest.mark.slow
def test_fair_mixup_looks_at_the_pairs_of_all_devices():
    config = _config(objective__mixup_weight=2.0)
    one = _train(*_start(config), "jit", 1)
    _assert_same(_train(*_start(config), "pmap", 4), one)
    assert all(metrics["train/mixup"] > 0.01 for metrics in one[1])
    step, state = _start(config, linear_network())
    one = _train(step, state, "jit", 1)
    for kind, devices in (("jit", 4), ("pmap", 2), ("pmap", 4)):
        _assert_same(_train(step, state, kind, devices), one)
    plain = _train(*_start(_config(), linear_network()), "jit", 1)
    assert np.abs(one[0].params["head/kernel"] - plain[0].params["head/kernel"]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("method", "term"), [("fuse_moe", "entropy"), ("flex_moe", "specialize")])
def test_sparse_routing_is_balanced_over_the_samples_of_all_devices(method, term):
    def start(**weights):
        config = _config(**{f"objective__{name}_weight": value for name, value in weights.items()})
        apply_method(config, method)
        config.objective.update(kind="group_dro", **{f"{name}_weight": value for name, value in weights.items()})
        config.fusion.update(top_k=2)
        return _start(config)

    weights = {"balance": 0.5, term: 0.5}
    one = _train(*start(**weights), "jit", 1)
    for kind in KINDS:
        _assert_same(_train(*start(**weights), kind, 4), one)
    assert len({float(metrics["train/routing"]) for metrics in one[1]}) == STEPS
    free = _train(*start(balance=0.0, **{term: 0.0}), "jit", 1)[0].params["block_0/router"]
    assert np.abs(one[0].params["block_0/router"] - free).max() > 1e-3


def test_noise_of_sparse_routing_needs_no_dropout():
    config = _config(model__encoder_dropout=0.0, fusion__dropout=0.0)
    apply_method(config, "fuse_moe")
    step, state = _start(config)
    program = make_program(step, "jit", jax.devices()[:1])
    first, _ = program.step(program.place(state), _batch(0))
    path = "block_0/noise_router"  # which learns from the noise alone
    assert np.abs(program.fetch(first).params[path] - state.params[path]).max() > 1e-3


def test_averaging_what_devices_find_would_be_wrong():
    """Each device dividing by its own counts, and a mean over devices: what must not be done, and does differ."""
    step, state = _start(_config(), linear_network())

    def averaged(state, batch, *, axis_name):
        after, metrics = step(state, batch, axis_name=None)
        return jax.tree.map(lambda x: jax.lax.pmean(x.astype(jnp.float32), axis_name), (after, metrics))

    program = make_program(averaged, "pmap", jax.devices()[:4])
    wrong, wrong_metrics = program.step(program.place(state), _batch(0))
    wrong, wrong_metrics = program.step(jax.tree.map(lambda x, y: x.astype(y.dtype), wrong, state), _batch(1))
    one = _train(step, state, "jit", 1)
    for kind, devices in (("jit", 4), ("pmap", 4), ("pmap", 2)):
        others = _train(step, state, kind, devices)
        _assert_same(others, one)
        right = others[1][1]
        assert np.abs(right["lambda"] - program.read(wrong_metrics)["lambda"]).max() > 0.05
        assert abs(right["train/gradient_norm"] - program.read(wrong_metrics)["train/gradient_norm"]) > 0.05


def test_group_losses_are_sums_over_devices_before_they_are_divided():
    """λ after one refresh is that of the whole batch, computed here by group, and not that of means of means."""
    config, network, batch = _config(dro__every=1), linear_network(), _batch(0)
    step, state = _start(config, network)
    logits = np.asarray(batch["labs"] @ state.params["head/kernel"], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    each = -log_p[np.arange(len(GROUPS)), batch["label"]]
    start = np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()

    def refreshed(losses):
        raw = start * np.exp(config.dro.gamma * np.asarray(losses))
        return raw / raw.sum()

    right = refreshed([each[g == GROUPS].mean() for g in range(3)])
    shares = [(each[i : i + 2], GROUPS[i : i + 2]) for i in range(0, 8, 2)]
    local = [[x[g == k].mean() if (k == g).any() else 0.0 for k in range(3)] for x, g in shares]
    wrong = refreshed(np.mean(local, axis=0))
    for kind in KINDS:
        program = make_program(step, kind, jax.devices()[:4])
        got = program.read(program.step(program.place(state), batch)[1])["lambda"]
        np.testing.assert_allclose(got, right, rtol=1e-5)
        assert np.abs(got - wrong).max() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_placing_and_fetching_change_nothing_and_host_arrays_survive_donation(kind):
    program = make_program(
        lambda state, batch, axis_name: (jax.tree.map(lambda x: x + 1, state), batch["x"].sum()),
        kind,
        jax.devices()[:4],
    )
    host = {"a": np.arange(4096, dtype=np.float32), "b": np.int32(3), "c": np.zeros((2, 0), np.float32)}
    kept = {name: np.array(x, copy=True) for name, x in host.items()}
    placed = program.place(host)
    fetched = program.fetch(placed)
    for name in host:
        np.testing.assert_array_equal(fetched[name], kept[name])
        assert fetched[name].shape == np.shape(kept[name])
    batch = {"x": np.ones(8, np.float32)}
    once, _ = program.step(placed, batch)
    twice, _ = program.step(once, batch)
    np.testing.assert_array_equal(program.fetch(twice)["a"], kept["a"] + 2)
    with pytest.raises(RuntimeError, match="deleted"):
        program.fetch(once)
    np.testing.assert_array_equal(host["a"], kept["a"])


@pytest.mark.parametrize(("count", "chosen"), [(0, 4), (1, 1), (2, 2), (4, 4)])
def test_devices_are_the_first_ones(count, chosen):
    assert choose_devices(count, 8) == jax.local_devices()[:chosen]


@pytest.mark.parametrize("count", [5, -1])
def test_device_count_out_of_range_is_refused(count):
    with pytest.raises(UserError, match=f"devices={count}.* 4"):
        choose_devices(count, 8)


@pytest.mark.parametrize(("count", "batch"), [(4, 6), (0, 10), (3, 8)])
def test_batch_that_does_not_divide_is_refused(count, batch):
    with pytest.raises(UserError, match=f"{batch} does not divide among {count or 4} devices"):
        choose_devices(count, batch)


def _image_step():
    """A step that trains a small residual network with batch norms, and its state on the host."""
    config = _config(train__batch_norm="batch", model__image_encoder="resnet_small", train__freeze="nothing")
    config.update({"model": {"encoder_dropout": 0.0}, "fusion": {"dropout": 0.0}})
    inputs = {"labs": INPUTS["labs"], "scan": IMAGE.spec((8, 8, 1))}
    stage = plan_stages(config, 100, inputs)[-1]
    assert stage.statistics
    network = make_network(model_spec(config), inputs, len(COUNTS), 3)

    def make(dro):
        return states.make_optimizer(lambda count: 0.01, weight_decay=0.1, clip=0.0, dro=dro)

    step, optimizer = steps.composed(config, network, CELLS, stage, make, decay=0.9)
    params = random_params(network.shapes)
    return step, host_copy(states.start(params, stage.is_frozen, optimizer, 0, ema=False))


@pytest.mark.slow
def test_batch_norms_see_the_samples_of_all_devices():
    step, state = _image_step()
    pixels = np.random.default_rng(3).integers(0, 256, (len(GROUPS), 8, 8, 1)).astype(np.uint8)
    batch = {**_batch(0), "scan": pixels}
    found = {}
    for kind, devices in (("jit", 1), ("pmap", 4)):
        program = make_program(step, kind, jax.devices()[:devices])
        found[kind] = program.fetch(program.step(program.place(state), batch)[0])
    one, other = found["jit"], found["pmap"]
    moved = [path for path in one.frozen if np.abs(one.frozen[path] - state.frozen[path]).max() > 1e-4]
    assert moved
    for path in one.frozen:
        np.testing.assert_allclose(other.frozen[path], one.frozen[path], rtol=1e-4, atol=1e-5, err_msg=path)
    # Adam makes a full step of the least gradient, so gradients are compared by its first moments.
    first, second = (x.opt_state["adamw"][0].mu for x in (one, other))
    for path in first:
        scale = np.abs(first[path]).max()
        np.testing.assert_allclose(second[path], first[path], rtol=1e-3, atol=1e-4 * scale, err_msg=path)


def test_compiled_programs_are_kept_and_what_was_set_before_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr("remind_jax.runtime.devices.WORTH_KEEPING", 0.0)
    before = jax.config.jax_compilation_cache_dir
    x = jnp.arange(4.0)
    with kept_programs(tmp_path / "compiled"):
        expected = jax.jit(lambda x: jnp.sin(x) @ x)(x)
        (entry,) = {path.name for path in (tmp_path / "compiled").glob("*lambda*-cache")}
        found = jax.jit(lambda x: jnp.sin(x) @ x)(x)  # another function, the same program
        assert {path.name for path in (tmp_path / "compiled").glob("*lambda*-cache")} == {entry}
    assert float(found) == float(expected)
    assert jax.config.jax_compilation_cache_dir == before
    with kept_programs(None):
        assert jax.config.jax_compilation_cache_dir == before


def test_the_users_folder_of_programs_is_private_or_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    with kept_programs(tmp_path / "own"):
        assert users_programs() is None  # JAX keeps them already
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        folder = users_programs()
        assert folder.parent == tmp_path / ".cache" / "remind_jax" / "programs"
        assert folder.parent.stat().st_mode & 0o777 == 0o700
        assert users_programs() == folder
        folder.parent.chmod(0o770)
        assert users_programs() is None
        folder.parent.rmdir()
        folder.parent.write_text("a file")
        assert users_programs() is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_folder_of_programs_that_others_can_reach_is_not_used_and_a_line_says_so(tmp_path, monkeypatch, capsys):
    before = jax.config.jax_compilation_cache_dir
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o775)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    (tmp_path / "own").mkdir(mode=0o700)
    for name, fault in {"open": "others may enter it", "link": "it is a link"}.items():
        with kept_programs(tmp_path / name):
            assert jax.config.jax_compilation_cache_dir == before
        assert f"warning: no compiled programs are kept in {tmp_path / name}: {fault}" in capsys.readouterr().err
    monkeypatch.setattr("remind_jax.runtime.devices.os.getuid", lambda: 12345)
    with kept_programs(tmp_path / "own"):
        assert jax.config.jax_compilation_cache_dir == before
    assert "it is somebody else's" in capsys.readouterr().err
    monkeypatch.undo()
    with kept_programs(tmp_path / "own"):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    assert not capsys.readouterr().err
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.parametrize(("experts", "programs"), [(2, "two"), pytest.param(4, "one", marks=pytest.mark.slow)])
def test_experts_over_several_devices_give_the_numbers_of_one_in_a_part_of_the_memory(experts, programs):
    step, start = _start(_config(fusion__experts=4))
    _assert_same(_train(step, start, "jit", 4, programs, experts), _train(step, start, "jit", 1))
    program = make_program(step, "jit", jax.devices()[:4], programs, experts)
    placed, _ = program.step(program.place(start), _batch(0))
    for tree in (placed.params, placed.ema, placed.opt_state["adamw"][0].mu, placed.opt_state["adamw"][0].nu):
        for path, x in tree.items():
            here = {shard.data.nbytes for shard in x.addressable_shards}
            assert here == {x.nbytes // (experts if "/expert_" in path else 1)}, path


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library decides for itself")
@pytest.mark.parametrize("kept", [True, False])
def test_memory_that_is_kept_is_not_taken_from_the_system_again(kept):
    code = f"""
import resource, numpy as np
from remind_jax.runtime import devices
if {kept}:
    devices.keep_freed_memory()
np.ones(2**24)  # 128 MiB, four times what glibc keeps by itself
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tiny_runs.ROOT)
    assert (int(done.stdout) < 100) == kept, done.stdout
