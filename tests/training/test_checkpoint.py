"""Checkpoints: what is saved comes back bit for bit, and copies do not share memory with donated buffers."""

import errno
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from remind_jax.errors import UserError
from remind_jax.objectives.group_dro import group_dro
from remind_jax.runtime.devices import host_copy
from remind_jax.training import checkpoint
from remind_jax.training import optimizer as states
from remind_jax.training.checkpoint import SUMS, Checkpoints

RECORD = {"cursor": {"stage": 1, "best": -0.1, "waited": 2, "ended": False}, "preprocessor": {"labs": {"mean": [1.5]}}}


def _state(seed: int = 0) -> states.TrainState:
    """A train state after a step, with odd values in it."""
    params = {
        "encoders/labs/embed/kernel": jax.random.normal(jax.random.key(seed), (3, 4)),
        "head/bias": jnp.array([-0.0, 1e-42, np.inf, np.nan], jnp.float32),
        "head/scale": jnp.float32(0.1),
    }
    optimizer = states.make_optimizer(
        optax.constant_schedule(0.1), weight_decay=0.1, clip=1.0, dro=group_dro(3, gamma=1.0, every=1)
    )
    state = states.start(params, lambda path: path == "head/bias", optimizer, 7, ema=True)
    gradient = jax.tree.map(jnp.ones_like, state.params)
    sums = {"group_loss_sum": jnp.array([1.0, 0.0, 3.0]), "group_count": jnp.array([2.0, 0.0, 1.0])}
    # Adam of optax raises a float to an integer power, which the strict mode of the tests refuses.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, **sums)
    return host_copy(state._replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state))


def _bits(tree) -> list[tuple]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), x.dtype, x.shape, np.asarray(x).tobytes()) for path, x in leaves]


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints")
    yield opened
    opened.close()


def test_round_trip_is_exact(checkpoints, tmp_path):
    state, best = _state(), {"w": np.arange(5, dtype=np.float32)}
    checkpoints.save(12, {"state": state, "best": best}, RECORD)
    checkpoints.close()
    again = Checkpoints(tmp_path / "checkpoints")
    like = {"state": _state(seed=1), "best": {"w": np.zeros(5, np.float32)}}
    restored = again.arrays(12, like)
    assert again.steps()[-1] == 12
    assert again.record(12) == RECORD
    again.close()
    assert jax.tree.structure(restored["state"]) == jax.tree.structure(state)
    assert isinstance(restored["state"].opt_state["dro"], type(state.opt_state["dro"]))
    assert _bits(restored["state"]) == _bits(state)
    assert _bits(restored["state"]) != _bits(like["state"])
    assert _bits(restored["best"]) == _bits(best)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(restored))


def test_without_a_template_arrays_come_as_dictionaries_with_the_same_bits(checkpoints, tmp_path):
    state, best = _state(), {"w": np.arange(5, dtype=np.float32)}
    checkpoints.save(12, {"state": state, "best": best}, RECORD)
    checkpoints.close()
    found = Checkpoints(tmp_path / "checkpoints").arrays(12)
    assert _bits(found["best"]) == _bits(best)
    for part in ("params", "frozen", "ema"):
        assert type(found["state"][part]) is dict
        assert _bits(found["state"][part]) == _bits(getattr(state, part))
    assert len(_bits(found["state"])) == len(_bits(state))


def test_restored_lambda_and_moments_are_those_of_the_run(checkpoints):
    state = _state()
    checkpoints.save(1, {"state": state}, {})
    dro = checkpoints.arrays(1, {"state": _state(seed=1)})["state"].opt_state["dro"]
    # By hand: last losses 1/2, unknown -> mean of the known 7/4, 3; λ ∝ exp of these from uniform.
    expected = np.exp([0.5, 1.75, 3.0]) / np.exp([0.5, 1.75, 3.0]).sum()
    np.testing.assert_allclose(np.exp(dro.log_weights), expected, rtol=1e-6)


@pytest.mark.parametrize(("keep", "left"), [(1, [30]), (2, [20, 30]), (0, [10, 20, 30])])
def test_latest_of_several_and_how_many_stay(tmp_path, keep, left):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep)
    for step in (10, 20, 30):
        checkpoints.save(step, {"x": np.full(3, step, np.float32)}, {"step": step})
    checkpoints.close()
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == left
    again = Checkpoints(tmp_path / "checkpoints", keep)
    assert again.steps()[-1] == 30
    for step in left:
        assert again.record(step) == {"step": step}
        assert again.arrays(step, {"x": np.zeros(3, np.float32)})["x"].tolist() == [step] * 3
    again.close()


def test_empty_folder_has_no_latest(checkpoints):
    assert checkpoints.steps() == []


def test_unfinished_save_of_a_killed_run_is_not_taken_for_a_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(10, {"x": np.zeros(3, np.float32)}, {})
    checkpoints.close()
    # What orbax leaves behind when it is killed while it writes: a folder that was never renamed.
    (tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp").mkdir()
    again = Checkpoints(tmp_path / "checkpoints")
    assert again.steps()[-1] == 10
    again.save(20, {"x": np.ones(3, np.float32)}, {})
    again.close()
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 20


def test_host_copy_outlives_donation():
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2.0 + 1.0, tree), donate_argnums=0)
    tree = {"a": jnp.arange(1000, dtype=jnp.float32), "b": jnp.ones((3, 3))}
    copied = host_copy(tree)
    values = [x.copy() for x in jax.tree.leaves(copied)]
    donated = jax.tree.leaves(tree)
    for _ in range(3):
        tree = step(tree)
    jax.block_until_ready(tree)
    assert all(x.is_deleted() for x in donated)
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(copied), values, strict=True))
    assert all(x.flags.owndata and x.flags.writeable for x in jax.tree.leaves(copied))


def test_host_copy_of_host_arrays_is_a_copy():
    source = np.zeros(4, np.float32)
    copied = host_copy({"a": source})["a"]
    source[0] = 1.0
    assert copied[0] == 0.0


# ---- Damage ---------------------------------------------------------------------------------------------------------


def _arrays(step: int) -> dict:
    return {"x": np.full(300, step, np.float32)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """A folder with checkpoints of steps 10 and 20."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder, keep=2)
    for step in (10, 20):
        checkpoints.save(step, _arrays(step), {"step": step})
    checkpoints.close()
    return folder


@pytest.fixture
def two(saved, tmp_path) -> pathlib.Path:
    """A copy of it to damage."""
    return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def _files(saved: pathlib.Path) -> list[str]:
    return sorted(path.relative_to(saved / "20").as_posix() for path in (saved / "20").rglob("*") if path.is_file())


def _flip(file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def _cut(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def test_digests_are_those_that_sha256sum_reads(saved):
    done = subprocess.run(["sha256sum", "-c", "--strict", SUMS], cwd=saved / "20", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    listed = {line.rpartition(": ")[0] for line in done.stdout.splitlines()}
    assert listed == set(_files(saved)) - {SUMS, "_CHECKPOINT_METADATA", "commit_success.txt"}


@pytest.mark.parametrize("damage", [_flip, _cut, pathlib.Path.unlink])
def test_any_damaged_file_is_named_and_the_checkpoint_before_it_is_taken(saved, tmp_path, damage):
    """Of every file, one at a time; of orbax's two marks, which restoring never reads, only that they are there."""
    for name in _files(saved):
        if damage is not pathlib.Path.unlink and name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
            continue
        folder = pathlib.Path(shutil.copytree(saved, tmp_path / name.replace("/", "_")))
        damage(folder / "20" / name)
        said = []
        checkpoints = Checkpoints(folder, keep=2, say=said.append)
        with pytest.raises(UserError, match=r"step 20 .* is damaged"):
            checkpoints.record(20)
        with pytest.raises(UserError, match=r"step 20 .* is damaged"):
            checkpoints.arrays(20, _arrays(0))
        assert checkpoints.newest_whole() == 10
        assert len(said) == 1
        assert "step 20 is damaged" in said[0]
        assert name in said[0]
        assert checkpoints.steps() == [10]
        assert checkpoints.arrays(10, _arrays(0))["x"].tolist() == [10] * 300
        checkpoints.save(20, _arrays(21), {"step": 21})  # that step can be taken again
        assert checkpoints.record(20) == {"step": 21}
        checkpoints.close()


def test_an_added_file_is_damage(two):
    (two / "20" / "arrays" / "d" / "more").write_bytes(b"x")
    with pytest.raises(UserError, match=f"arrays/d/more is not in {SUMS}"):
        Checkpoints(two).arrays(20, _arrays(0))


def test_a_file_in_place_of_a_checkpoint_is_damage(two):
    shutil.rmtree(two / "20")
    (two / "20").write_text("x")
    checkpoints = Checkpoints(two, say=lambda text: None)
    assert checkpoints.newest_whole() == 10


def test_when_all_are_damaged_none_is_taken(two):
    for step in ("10", "20"):
        _flip(two / step / "record" / "metadata")
    said = []
    checkpoints = Checkpoints(two, say=said.append)
    assert checkpoints.newest_whole() is None
    assert len(said) == 2
    assert sorted(path.name for path in two.iterdir()) == ["damaged-10", "damaged-20"]


def test_a_checkpoint_without_digests_counts_as_damaged(two):
    (two / "20" / SUMS).unlink()
    said = []
    checkpoints = Checkpoints(two, say=said.append)
    with pytest.raises(UserError, match=f"step 20 .* is damaged: {SUMS} is missing"):
        checkpoints.record(20)
    assert checkpoints.newest_whole() == 10
    assert said == [f"the checkpoint of step 20 is damaged ({SUMS} is missing); set aside as damaged-20"]


def test_other_arrays_are_refused_in_one_line(two):
    with pytest.raises(UserError, match="does not fit this program"):
        Checkpoints(two).arrays(20, {"y": np.zeros(3, np.float32)})


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot open checkpoints"):
        Checkpoints(tmp_path / "file" / "checkpoints")


# ---- Saves that fail ------------------------------------------------------------------------------------------------


def _failing(monkeypatch, errors: list[Exception]) -> None:
    """Lets the next saves fail in the background, just before they are committed."""
    sums = checkpoint._sums

    def fail(folder: pathlib.Path) -> str:
        if errors and "tmp" in folder.name:
            raise errors.pop()
        return sums(folder)

    monkeypatch.setattr(checkpoint, "_sums", fail)


def test_a_save_that_fails_in_the_background_is_tried_again(tmp_path, monkeypatch):
    _failing(monkeypatch, [OSError(errno.EIO, "Input/output error")])
    said = []
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=0, say=said.append)
    for step in (10, 20):
        checkpoints.save(step, _arrays(step), {"step": step})
    checkpoints.close()
    assert said == ["the checkpoint of step 10 could not be saved (Input/output error); trying once more"]
    again = Checkpoints(tmp_path / "checkpoints", keep=0)
    assert again.steps() == [10, 20]
    assert again.arrays(10, _arrays(0))["x"].tolist() == [10] * 300
    again.close()


def test_a_save_that_fails_twice_is_one_line_and_leaves_the_step_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints", say=lambda text: None)
    checkpoints.save(10, _arrays(10), {"step": 10})
    assert checkpoints.steps() == [10]
    _failing(monkeypatch, [OSError(errno.ENOSPC, "No space left on device") for _ in range(2)])
    checkpoints.save(20, _arrays(20), {"step": 20})
    with pytest.raises(UserError, match=r"cannot save the checkpoint of step 20 .*No space left on device") as caught:
        checkpoints.close()
    assert "\n" not in str(caught.value)
    # The step is forgotten, what is there stays, and later saves work.
    assert checkpoints.steps() == [10]
    checkpoints.save(30, _arrays(30), {"step": 30})
    assert checkpoints.steps() == [30]
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["30"]


def test_checkpoints_that_a_link_leads_elsewhere_are_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="checkpoints is a link"):
        Checkpoints(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "10").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="10 is a link"):
        Checkpoints(tmp_path / "checkpoints")
    assert not any((tmp_path / "elsewhere").iterdir())
