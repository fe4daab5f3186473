"""The stored results of programs for a GPU: that they hold for the steps of today, and how they are counted."""

import dataclasses
import json
import pathlib
from typing import Any

import chex
import jax
import numpy as np
import pytest

from benchmarks import gpu_programs, hlo, setups
from remind_jax.errors import UserError

SMALL = "24 modalities"


@pytest.mark.slow
@pytest.mark.parametrize("name", gpu_programs.CASES)
def test_the_stored_results_hold_for_the_steps_of_today(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, given = gpu_programs.stored()["versions"]["jax"], gpu_programs.versions()["jax"]
    if wanted != given:
        pytest.skip(f"the results hold for jax {wanted}, which .ci/run checks; here is {given}")
    monkeypatch.setattr(gpu_programs, "CASES", {name: gpu_programs.CASES[name]})
    assert gpu_programs.changed() == [], "renew them: python -m benchmarks.gpu_programs"


@pytest.fixture
def one_stored(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of one program, as if they had been compiled from the step of today."""
    monkeypatch.setattr(gpu_programs, "CASES", {SMALL: gpu_programs.CASES[SMALL]})
    monkeypatch.setattr(gpu_programs, "METHODS", ("soft_moe",))
    digest = gpu_programs.digest(gpu_programs.program(gpu_programs.CASES[SMALL], "soft_moe"))
    file = tmp_path / "programs.json"
    records = [{"program": SMALL, "method": "soft_moe", "digest": digest}]
    file.write_text(json.dumps({"versions": gpu_programs.versions(), "records": records}))
    monkeypatch.setattr(gpu_programs, "RESULTS", file)


@pytest.mark.usefixtures("one_stored")
def test_another_step_is_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_programs.main(["--check"])
    monkeypatch.setattr(setups, "WEIGHT_DECAY", 0.2)
    with pytest.raises(UserError, match=r"steps have changed: 24 modalities, soft_moe; renew with python -m "):
        gpu_programs.main(["--check"])


@pytest.mark.usefixtures("one_stored")
def test_results_of_another_jax_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_programs, "versions", lambda: {"jax": "0.0.1"})
    with pytest.raises(UserError, match=r"the results hold for jax \d.*, and 0\.0\.1 is installed"):
        gpu_programs.main(["--check"])


@pytest.mark.usefixtures("one_stored")
def test_only_what_has_changed_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(gpu_programs, "installed", gpu_programs.versions)
    monkeypatch.setattr(gpu_programs, "record", lambda name, method: made.append(name) or {"program": name})
    monkeypatch.setattr(gpu_programs, "write", lambda records: made.append(f"{len(records)} written"))
    gpu_programs.main([])
    assert made == []
    gpu_programs.main(["--all"])
    assert made == [SMALL, "1 written"]
    monkeypatch.setattr(setups, "WEIGHT_DECAY", 0.2)
    gpu_programs.main([])
    assert made[2:] == [SMALL, "1 written"]


def test_the_version_to_check_with_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    gpu_programs.main(["--jax"])
    assert capsys.readouterr().out.strip() == gpu_programs.stored()["versions"]["jax"]


def test_every_program_has_a_record_and_the_readme_shows_them() -> None:
    found = gpu_programs.stored()
    names = [(x["program"], x["method"]) for x in found["records"]]
    assert names == [(name, method) for name in gpu_programs.CASES for method in gpu_programs.METHODS]
    text = (gpu_programs.HERE / "README.md").read_text(encoding="utf-8")
    assert gpu_programs.readme(text, found) == text


def test_groups_take_two_percent_of_a_step_at_most_by_the_roofline() -> None:
    ms = {(x["program"], x["method"]): x["ms"]["all"] for x in gpu_programs.stored()["records"]}
    for name in gpu_programs.CASES:
        if name.startswith("table17"):
            assert ms[name, "remind"] <= 1.02 * ms[name, "soft_moe"], name


def test_batches_have_the_shapes_that_are_timed() -> None:
    for kind in ("embedding", "image", "features"):
        tiny = dataclasses.replace(setups.SIZES["tiny"], t=17)
        outline = setups.outline(tiny, routed=True, kind=kind)
        params = outline.network.shapes
        found = gpu_programs.batch_shapes(outline, params, tiny.b, kind == "features")
        timed = setups.set_up(tiny, gate="gated", routed=True, kind=kind).batch
        chex.assert_trees_all_equal_shapes_and_dtypes(found, timed)


def kernel(runs: int, moved: int, *products: hlo.Product, **others: Any) -> hlo.Kernel:
    given = {"name": "k", "opcode": "fusion", "arrays": [], "moves": frozenset()} | others
    return hlo.Kernel(products=list(products), bytes=moved, runs=runs, **given)


def test_the_roofline_by_hand() -> None:
    large = hlo.Product("large", "bf16", 790 * 10**9)  # a millisecond
    wide = hlo.Product("wide", "f32", 790 * 10**9)  # two
    found = gpu_programs.roofline([kernel(2, 4_300, large), kernel(1, 10, wide), kernel(100, 43 * 10**6)])
    assert found == {"products": 4.0, "launches": 0.309, "memory": 1.0, "all": 5.309}


def test_contents_by_hand() -> None:
    one, same = hlo.Product("a x b -> c", "bf16", 5), hlo.Product("a x b -> c", "bf16", 5)
    assert gpu_programs.products([kernel(2, 0, one), kernel(3, 0, same)]) == {"a x b -> c": [2, 5, 25]}
    weight, layers = (1024, 2048), (12, 1024, 1024)
    moved = [
        kernel(1, 7, arrays=[hlo.Array("bf16", weight)], moves=frozenset({"convert"})),
        kernel(12, 3, arrays=[hlo.Array("f32", (1024 * 1024,))], moves=frozenset({"copy"})),
        kernel(1, 9, arrays=[hlo.Array("f32", weight)]),  # computes
        kernel(1, 9, arrays=[hlo.Array("f32", (5,))], moves=frozenset({"copy"})),
    ]
    assert gpu_programs.copies(moved, [weight, layers, (5,)]) == {
        "cast bf16[1024,2048]": [1, 7],
        "copy f32[1048576]": [12, 36],
    }
    shared = kernel(2, 0, opcode="all-reduce-start", arrays=[hlo.Array("bf16", (4,)), hlo.Array("bf16", (3,))])
    assert gpu_programs.collectives([shared, moved[0]]) == {"all-reduce bf16": [2, 28]}


def test_no_weight_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a weight was made")

    monkeypatch.setattr(setups, "initial_weights", refuse)
    given = gpu_programs.program(gpu_programs.CASES["table17, stored features"], "remind", count=8)
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(given.state.params)) > 6e8
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves((given.state, given.batch)))
    assert {x.shape[0] for x in given.batch.values()} == {8 * 32}
