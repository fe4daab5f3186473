import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax.inference import model_folder
from remind_jax.training import flat
from remind_jax.training.loop import Trainer
from remind_jax.training.run import train_and_evaluate
from tests import tiny_runs
from tests.training.runs import assert_same_arrays, checkpoint

pytestmark = pytest.mark.slow

SHAPES = {
    "head/kernel": (3, 2),
    "head/bias": (2,),
    "norm/scale": (),
    "block_0/router": (3, 4, 1),
    "block_0/expert_in": (300, 300),
    "block_0/group_router": (2, 3, 4),
}


def _params(*lead: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=(*lead, *shape)).astype(np.float32) for path, shape in SHAPES.items()}


LAYOUT = flat.flat_of({path: jnp.zeros(shape) for path, shape in SHAPES.items()}, lambda path: "group" in path)


def test_small_parameters_lie_in_two_vectors_and_large_ones_by_themselves() -> None:
    packed = LAYOUT.pack(_params())
    sizes = {path: x.shape for path, x in packed.items()}
    assert sizes == {
        "small/weight": (6 + 12,),
        "small/bias": (2 + 1,),
        "block_0/expert_in": (300, 300),
        "block_0/group_router": (2, 3, 4),
    }


def test_the_order_of_parameters_is_that_of_the_layout() -> None:
    """Else a program would be another one in another process, and kept ones would not be found."""
    shapes = {f"layer{i}/{end}": jnp.zeros(2) for i in range(9) for end in ("kernel", "bias")}
    layout = flat.flat_of(shapes)
    order = [path for places in layout.vectors.values() for path, _ in places]
    assert list(layout.unpack(layout.pack({path: np.ones(2) for path in shapes}))) == order


@pytest.mark.parametrize("lead", [(), (5,)], ids=["alone", "ensemble"])
def test_packing_is_undone_to_the_bit_on_the_host_and_in_a_program(lead) -> None:
    tree = {"moments": (_params(*lead), {"other": np.arange(3)}), "count": np.int32(4)}
    there_and_back = LAYOUT.unpack(LAYOUT.pack(tree))
    in_a_program = jax.jit(lambda tree: LAYOUT.unpack(LAYOUT.pack(tree)))(tree)
    for found in (there_and_back, in_a_program):
        assert jax.tree.structure(found) == jax.tree.structure(tree)
        jax.tree.map(np.testing.assert_array_equal, found, tree)


def test_the_gradient_of_parameters_in_a_vector_is_the_vector_of_their_gradients() -> None:
    params = _params()

    def loss(params):
        return sum(jnp.sum(jnp.sin((1 + i) * x)) for i, x in enumerate(params[path] for path in SHAPES))

    found = jax.grad(lambda packed: loss(LAYOUT.unpack(packed)))(LAYOUT.pack(params))
    expected = LAYOUT.pack({path: np.asarray(x) for path, x in jax.grad(loss)(params).items()})
    assert found.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, found, expected)


RUNS = {
    "two stages": ("remind", {}),
    "an ensemble": ("remind_plus", {"ensemble": 2, "ensemble_plain": 0}),
    "tables by rows": ("remind", {"optim__group_rows": "batch"}),
    "decay of all, half precision": ("soft_moe", {"optim__decay": "all", "precision": "bfloat16"}),
}


@pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
@pytest.mark.usefixtures("quick_compilation", "no_page")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_numbers_of_one_by_path(name, tmp_path, monkeypatch) -> None:
    """Weights, moments and averages, by path in both; only the order of sums differs, in the norm that clips."""
    method, changes = RUNS[name]
    steps = {"train__epochs": 0.5, "train__joint_epochs": 0.25, "optim__clip": 0.1, "optim__weight_decay": 0.3}
    config = tiny_runs.config(tmp_path, method, eval__bootstrap=20, **steps, **changes)
    made = []
    flats = Trainer._flat
    monkeypatch.setattr(Trainer, "_flat", lambda *given, **spare: made.append(flats(*given, **spare)) or made[-1])
    train_and_evaluate(config, tmp_path / "vectors", verbose=False)
    monkeypatch.setattr(Trainer, "_flat", lambda *given, **spare: flat.BY_PATH)
    train_and_evaluate(config, tmp_path / "paths", verbose=False)
    assert all(len(one.vectors) == 2 for one in made)
    one, other = (checkpoint(tmp_path / folder) for folder in ("vectors", "paths"))
    assert_same_arrays(one, other, 1e-2 if "half" in name else 2e-5)
    assert model_folder.open_model(tmp_path / "vectors").params.keys() == one["best"].keys()
