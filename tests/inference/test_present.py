"""The choice of inputs of a batch: all that are there, as few others as may be, and few shapes."""

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remind_jax import cli
from remind_jax.data import pipeline, samplers
from remind_jax.data.kinds import KINDS
from remind_jax.data.missingness import combination_mask, parse_combinations
from remind_jax.data.outline import OUTLINES
from remind_jax.data.sources.image_twins import FPRM_PUBLISHED
from remind_jax.inference import present
from remind_jax.models.model import SOURCE
from remind_jax.models.network import make_network
from remind_jax.models.spec import model_spec
from tests import tiny_runs
from tests.models.specs import model_of

NAMES = ("labs", "note", "scan")
INPUTS = {
    "labs": KINDS["tabular"].spec((5,)),
    "note": KINDS["text"].spec((16,), 12),
    "scan": KINDS["embedding"].spec((2, 4)),
}


def _store(presence: np.ndarray, encoded: tuple[str, ...] = ()) -> pipeline.Store:
    found = types.SimpleNamespace(presence=presence, encoded=frozenset(encoded))
    return type("Store", (), {"__len__": lambda self: len(presence), **vars(found)})()


def _presence(n: int, rates: tuple[float, ...] = (0.9, 0.2, 0.4), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, len(rates))) < rates


def _all_steps(chooser, size: int, steps: int, order) -> list:
    return [chooser(order(step, size)) for step in range(steps)]


@given(
    seed=st.integers(0, 100),
    shards=st.sampled_from([1, 2, 4]),
    parts=st.sampled_from([1, 2]),
    processes=st.sampled_from([1, 2]),
    capacity=st.integers(1, 6),
)
def test_a_block_has_all_inputs_that_are_there_in_as_many_places_as_the_layout_says(
    seed, shards, parts, processes, capacity
):
    rng, size, shards = np.random.default_rng(seed), 48, shards * processes
    presence, positions = rng.random((30, 3)) < 0.35, rng.integers(0, 30, size)
    blocks, each = present.Blocks(shards, parts), size // (shards * parts)
    layouts = np.array([[capacity, each, 1], [min(each, 2 * capacity), each, each]])
    chosen = presence[positions]
    # The block of a sample by its own definition: a device's stretch, whose samples go to the parts in turn.
    block = np.arange(size) // (size // shards) * parts + np.arange(size) % (size // shards) % parts
    most = np.array([max(chosen[block == i, j].sum() for i in range(shards * parts)) for j in range(3)])
    fits = [bool((most <= layout).all()) for layout in layouts]
    for process in range(processes):
        own = slice(process * size // processes, (process + 1) * size // processes)
        rows, columns = present.Chooser(presence, NAMES, layouts, blocks, own)(positions)
        if not any(fits):
            assert (rows, columns) == ({}, {})
            continue
        layout = layouts[fits.index(True)]
        wanted = {name for name, k in zip(NAMES, layout, strict=True) if k < each}
        assert rows.keys() == wanted
        assert columns.keys() == {SOURCE + name for name in wanted}
        mine, of_own = chosen[own], block[own] - block[own].min()
        for j, name in enumerate(NAMES):
            if name not in wanted:
                continue
            assert rows[name].shape == (shards * parts // processes, layout[j])
            for i, places in enumerate(rows[name]):
                here = np.flatnonzero(of_own == i)
                assert set(here[mine[here, j]]) <= set(places) <= set(here)
                assert len(set(places)) == layout[j]
                np.testing.assert_array_equal(here[columns[SOURCE + name][i]], places)


def test_rows_that_pad_a_batch_take_no_place():
    presence = np.array([[True], [False], [True], [True]])
    rows, _ = present.Chooser(presence, ("note",), np.array([[1]]), present.Blocks(), slice(None))(
        np.array([1, 2, -1, -1])
    )
    assert rows["note"].tolist() == [[1]]


# ---- Layouts ---------------------------------------------------------------------------------------------------------


def _cost(layouts: np.ndarray, counts: np.ndarray, size: int, work: np.ndarray) -> float:
    """Mean work of batches, each by the first layout that it fits, batch by batch."""
    total = 0.0
    for count in counts:
        fitting = [layout for layout in layouts if (count <= layout).all()]
        total += 1.0 if not fitting else 1.0 - float((work * (size - fitting[0]) / size).sum())
    return total / len(counts)


@pytest.mark.parametrize("more", [0.02, np.inf])
def test_layouts_save_what_they_say_and_the_last_fits_all(more):
    size, work = 64, np.array([0.0, 0.1, 0.85])
    rng = np.random.default_rng(0)
    counts = rng.binomial(size, (0.9, 0.4, 0.2), (500, 3))
    layouts = present.choose_layouts(counts, size, work, 0.05, more)
    assert len(layouts) == (1 if more == np.inf else 2)
    assert (layouts[:, 0] == size).all()  # no work is spared there
    assert (layouts % (size // 16) == 0).all()
    assert (np.diff(layouts @ work) > 0).all()
    assert (counts <= layouts[-1]).all()
    found = _cost(layouts, counts, size, work)
    # By count the work would be .05 + .1 * .4 + .85 * .2.
    assert 0.05 + 0.04 + 0.17 < found < (0.5 if len(layouts) == 1 else 0.42)


def test_a_second_layout_must_add_what_it_is_worth():
    """By hand: of 64 samples 8 in nearly all batches and 56 in some, of 90 % of the work."""
    size, work = 64, np.array([0.9])

    def layouts(fuller: int, more: float = 0.05) -> list:
        counts = np.array([[8]] * (100 - fuller) + [[56]] * fuller)
        return present.choose_layouts(counts, size, work, 0.05, more).tolist()

    assert layouts(0) == [[8]]
    assert layouts(10) == [[8], [56]]
    assert layouts(10, more=0.61) == [[56]]
    # The smaller one adds .9 * 48 / 64 = .675 for each batch that fits it.
    assert layouts(92) == [[8], [56]]
    assert layouts(93) == [[56]]


@pytest.mark.parametrize(("least", "expected"), [(0.05, 0), (0.0, 1)])
def test_what_saves_too_little_stays_dense(least, expected):
    counts = np.full((10, 1), 4)
    assert len(present.choose_layouts(counts, 8, np.array([0.08]), least, 0.05)) == expected
    assert len(present.choose_layouts(np.full((10, 1), 8), 8, np.array([0.9]), least, 0.05)) == 0


# ---- What is chosen for a network ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    return make_network(model_of(width=8, tokens=2), INPUTS, 3, 2)


def test_operations_are_counted_and_tables_have_none_to_spare_unless_asked(network):
    (auto, total), (every, whole) = (
        present.PresentRows(kind, network, INPUTS).operations for kind in ("auto", "present")
    )
    assert (auto[0], auto[2]) == (0.0, 0.0)
    assert auto[1] == every[1] > 0.5 * total
    # By hand: of two tokens each, maps from 3 numbers of a padded row and from 4, into a width of 8.
    assert every[0] == 2 * 2 * 3 * 8
    assert every[2] == 2 * 2 * 4 * 8
    assert every.sum() < total == whole
    assert not present.PresentRows("dense", network, INPUTS).operations[0].any()


@pytest.mark.parametrize("kind", ["auto", "present"])
def test_training_batches_fit_what_their_order_told(network, kind):
    presence, size = _presence(400), 32
    order = samplers.shuffled(0, len(presence))
    rows = present.PresentRows(kind, network, INPUTS)
    choose = rows.of_training(_store(presence), order, range(10, 60), size, present.Blocks(2), slice(0, 16))
    shapes = {tuple((name, x.shape) for name, x in choose(order(step, size))[0].items()) for step in range(10, 60)}
    assert len(shapes) <= 2
    assert all("note" in dict(one) for one in shapes)
    assert ("labs" in dict(next(iter(shapes)))) <= (kind == "present")
    again = rows.of_training(_store(presence), order, range(10, 60), size, present.Blocks(2), slice(0, 16))
    for step in (10, 59):
        np.testing.assert_equal(again(order(step, size)), choose(order(step, size)))


def test_what_has_been_encoded_and_what_cannot_be_cut_is_left_alone(network):
    presence, order = _presence(400), samplers.shuffled(0, 400)
    rows = present.PresentRows("auto", network, INPUTS)
    whole = (order, range(5), 32, present.Blocks(), slice(None))
    assert rows.of_training(_store(presence), *whole) is not pipeline.all_inputs
    assert rows.of_training(_store(presence, ("note",)), *whole) is pipeline.all_inputs
    uneven = present.Blocks(3, 1)
    assert rows.of_training(_store(presence), order, range(5), 32, uneven, slice(None)) is pipeline.all_inputs
    dense = present.PresentRows("dense", network, INPUTS)
    assert dense.of_training(_store(presence), *whole) is pipeline.all_inputs


@pytest.mark.parametrize("kind", ["auto", "present"])
def test_all_batches_of_an_evaluation_have_one_shape(network, monkeypatch, kind):
    presence = _presence(1_000, (0.9, 0.3, 0.4))
    presence[-1] = True  # the row that pads the last batch
    rows = present.PresentRows(kind, network, INPUTS)
    # Too few rows to be worth a program of their own.
    assert (rows.of_evaluation(_store(presence), 256) is pipeline.all_inputs) == (kind == "auto")
    monkeypatch.setattr(present, "PROGRAM", 1e8)
    choose = rows.of_evaluation(_store(presence), 256)
    assert choose is not pipeline.all_inputs
    positions = [np.where((at := np.arange(i, i + 256)) < 1_000, at, -1) for i in range(0, 1_000, 256)]
    assert len({choose(at)[0]["note"].shape for at in positions}) == 1


def test_a_network_without_trunks_is_not_even_traced():
    tables = dict.fromkeys("ab", INPUTS["labs"])
    rows = present.PresentRows("auto", types.SimpleNamespace(), tables)
    assert rows.operations[0].tolist() == [0.0, 0.0]


@pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
def test_batches_of_fprm_at_the_papers_size_have_less_than_a_third_of_the_work():
    config, _ = cli.parse_config([f"--config={tiny_runs.ROOT / 'configs' / 'fprm.py'}:size=paper"])
    outline, size, steps = OUTLINES["fprm"](config.data), config.train.batch_size, range(2_000)
    network = make_network(model_spec(config), outline.inputs, outline.groups, outline.classes)
    combinations = parse_combinations(FPRM_PUBLISHED, tuple(outline.inputs))
    store = _store(combination_mask(outline.samples, *combinations, np.random.default_rng(0)))
    rows, order = present.PresentRows("auto", network, outline.inputs), samplers.shuffled(0, outline.samples)
    choose = rows.of_training(store, order, steps, size, present.Blocks(), slice(None))
    encoders, total = rows.operations
    work = []
    for step in steps[1_000:]:  # those that capacities were not made from
        places = choose(order(step, size))[0]
        of_encoders = [len(places[name][0]) if name in places else size for name in outline.inputs] @ encoders
        work.append(1 - (encoders.sum() - of_encoders / size) / total)
    # By the samples that have each modality, without capacities, it would be 0.234.
    assert 0.24 < np.mean(work) < 0.33
