"""The benchmark command at a tiny size, its arithmetic, and the numbers that it compares before it times them."""

import json
import os
import pathlib
import subprocess
import sys
import weakref
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import cases, run, setups
from remind_jax.errors import UserError
from remind_jax.ops import soft_moe

pytestmark = pytest.mark.slow

KEYS = {
    *("case", "size", "measure", "variant", "library", "platform", "device", "cores", "versions", "commit"),
    *("rounds", "calls", "apart", "median_ms", "q25_ms", "q75_ms", "iqr_ms", "cpu_ms", "system_ms", "page_faults"),
    *("ratios", "cpu_ratios", "analytic_flops", "parameters", "device_peak_bytes", "glibc_tunables", "xla_flags"),
    *("load_before", "load_after", "mfu", "limit_share"),
}
XLA_KEYS = {"xla_flops", "argument_bytes", "output_bytes", "alias_bytes", "temp_bytes"}
TINY = setups.SIZES["tiny"]


@pytest.fixture(autouse=True)
def standard_promotion():
    """As in a run: optax raises floats to integer powers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def records(tmp_path: pathlib.Path, *arguments: str) -> list[dict[str, Any]]:
    out = tmp_path / "results" / "out.jsonl"
    run.main([*arguments, "--size=tiny", "--rounds=1", "--calls=1", "--cores=0", "--torch=no", f"--out={out}"])
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize(
    ("case", "variants", "measures"),
    [
        ("block", ["shared router", "gated group routers"], 2),
        pytest.param("block", ["shared router", "shared router paper_listing"], 2, marks=pytest.mark.slow),
        ("step", ["soft_moe", "remind"], 1),
        pytest.param("step", [*cases.METHODS, "soft_moe in one", "soft_moe in two"], 1, marks=pytest.mark.slow),
        pytest.param("groups", ["6 combinations", "60 combinations"], 3, marks=pytest.mark.slow),
        pytest.param("table17", ["soft_moe"], 3, marks=pytest.mark.slow),
        pytest.param("stage2", ["frozen on the fly", "cached", "encoders alone"], 1, marks=pytest.mark.slow),
        ("encoders", ["jax"], 1),
        pytest.param("input", ["memory", "shards"], 6, marks=pytest.mark.slow),
        pytest.param("present", ["dense", "present"], 4, marks=pytest.mark.slow),
    ],
)
def test_every_case_runs_and_writes_its_records(
    tmp_path: pathlib.Path, case: str, variants: list[str], measures: int
) -> None:
    found = records(tmp_path, f"--case={case}", f"--variants={','.join(variants)}")
    assert [record["variant"] for record in found] == variants * measures
    assert len({record["measure"] for record in found}) == measures
    reference = variants[0]
    for record in found:
        stepped = case not in ("block", "encoders") and record["variant"] != "encoders alone"
        more = {"input": {"samples"}, "present": {"batches", "capacities"}}.get(case)
        more = XLA_KEYS | ({"programs"} if stepped else set()) if more is None else more
        assert record.keys() == KEYS | more
        assert record["median_ms"] > 0
        assert record["parameters"] > 0 or record["samples"] == 640
        if case != "encoders":  # whose reference is PyTorch
            assert record["ratios"][reference] > 0
            assert record["ratios"][reference] == 1.0 or record["variant"] != reference


def test_every_entry_of_every_case_and_size_has_a_name_of_its_own() -> None:
    for case in cases.CASES.values():
        for size in case.sizes:
            names = [(entry.measure, entry.name) for entry in case.entries(setups.SIZES[size], frozenset({"torch"}))]
            assert len(set(names)) == len(names) > 0


def test_variants_that_are_timed_apart_are_dropped_before_the_next_is_built() -> None:
    events: list[str] = []

    class Timed:
        def __init__(self, name: str):
            self.name = name
            events.append(f"build {name}")
            weakref.finalize(self, events.append, f"drop {name}")

        def __call__(self) -> None:
            events.append(f"call {self.name}")

    entries = [cases.Entry("m", n, lambda n=n: cases.Variant(Timed(n), {"name": n})) for n in "ab"]
    options = ["--case=block", "--rounds=1", "--calls=1"]
    samples, facts = run._measure(entries, run.parse([*options, "--apart"]))
    assert events == [f"{what} {n}" for n in "ab" for what in ("build", "call", "call", "call", "drop")]
    assert {key: len(found) for key, found in samples.items()} == {"m: a": 1, "m: b": 1}
    assert facts == {"m: a": {"name": "a"}, "m: b": {"name": "b"}}
    events.clear()
    run._measure(entries, run.parse(options))
    assert events[:2] == ["build a", "build b"]


@pytest.mark.slow
def test_parameters_and_operations_are_those_of_the_built_networks(tmp_path: pathlib.Path) -> None:
    found = {
        (r["measure"], r["variant"]): r
        for r in records(tmp_path, "--case=block", "--variants=shared router,group routers")
    }
    plain, routed = found["forward", "shared router"], found["forward", "group routers"]
    setup = setups.set_up(TINY, routed=True, gate="always")
    assert routed["parameters"] == sum(x.size for x in setup.params.values())
    # One router and one imputed vector for each of three combinations, against a vector for each of three modalities.
    assert routed["parameters"] - plain["parameters"] == TINY.g * TINY.d * TINY.e
    assert found["forward+backward", "shared router"]["analytic_flops"] == 3 * plain["analytic_flops"]


@pytest.mark.slow
def test_frozen_encoders_take_no_backward_operations() -> None:
    build = {entry.measure: entry.build for entry in cases.CASES["table17"].entries(TINY, frozenset())[::2]}
    trained, frozen = (build[stage]().facts["analytic_flops"] for stage in ("all trained", "encoders frozen"))
    setup = setups.set_up(TINY, routed=False, gate="never", kind="image")
    assert trained == 3 * TINY.b * setup.cost.flops
    assert trained - frozen == 2 * TINY.b * (setup.cost.flops - setup.trained.flops) > 0


@pytest.mark.parametrize("form", ["loop", "vectorised"])
@pytest.mark.parametrize("preset", soft_moe.PRESETS)
def test_the_torch_reference_computes_what_jax_computes(form: str, preset: str) -> None:
    pytest.importorskip("torch", reason="the torch references need torch: pip install -e .[torch]")
    from benchmarks import torch_reference

    setup = setups.set_up(TINY, routed=False, gate="never", preset=preset)
    weights = {path: np.asarray(x) for path, x in setup.params.items()}
    batch = torch_reference.to_torch(setup.batch)
    network = torch_reference.Network(weights, form, TINY.h, soft_moe.PRESETS[preset])
    setups.check_parity(setup, network, batch)
    for path, value in weights.items():  # the check puts the weights back
        np.testing.assert_array_equal(network.read(path), value)
    weights["head/bias"] = weights["head/bias"] + np.float32(0.01) * np.arange(setups.CLASSES, dtype=np.float32)
    network.load(weights)
    with pytest.raises(RuntimeError, match="differ in logits"):
        setups.check_parity(setup, network, batch)


@pytest.mark.slow
def test_a_step_from_stored_features_moves_the_weights_as_one_with_frozen_encoders_does() -> None:
    found = []
    for kind in ("image", "features"):
        setup = setups.set_up(TINY, routed=True, gate="gated", kind=kind)
        slopes = jax.grad(lambda p, x, s=setup: setups.mean_loss(s.network, "gated", p, x))(setup.params, setup.batch)
        found.append({path: x for path, x in slopes.items() if not path.startswith("encoders/")})
    for path, slope in found[0].items():
        # Features are rounded to bfloat16.
        np.testing.assert_allclose(found[1][path], slope, atol=0.03 * np.abs(slope).max() + 1e-6, err_msg=path)
    assert any(np.abs(found[1][path] - slope).max() > 0 for path, slope in found[0].items())


def test_the_torch_vit_computes_what_jax_computes() -> None:
    pytest.importorskip("torch", reason="the torch references need torch: pip install -e .[torch]")
    build = {entry.name: entry.build for entry in cases.CASES["encoders"].entries(TINY, frozenset({"torch"}))}
    assert build["torch eager"]().facts["library"] == "torch"  # compared before it is timed


@pytest.mark.slow
def test_a_process_that_starts_is_timed() -> None:
    entries = {entry.name: entry for entry in cases.CASES["startup"].entries(TINY, frozenset())}
    warm = entries["compilation cache"].build()
    assert warm.facts["first_step_ms"] > 0
    (sample,) = run.interleave({"warm": warm.call}, rounds=1, calls=1)["warm"]
    assert sample["cpu_ms"] > 500  # of the process, not of this one


def test_the_batch_has_present_and_missing_modalities() -> None:
    inputs = setups.make_inputs(TINY, "embedding")
    batch = setups.make_batch(TINY, inputs)
    present = batch["present"]
    assert present.any(axis=1).all()
    assert not present.all()
    for i, name in enumerate(inputs):
        assert ((batch[name] != 0).any(axis=(1, 2)) == present[:, i]).all()
    by_group = {int(g): row.tolist() for g, row in zip(batch["group"], present, strict=True)}
    assert all(by_group[int(g)] == row.tolist() for g, row in zip(batch["group"], present, strict=True))


def test_summaries_and_ratios_by_hand() -> None:
    def sample(ms: float) -> dict[str, float]:
        return {"ms": ms, "cpu_ms": ms / 2, "system_ms": 0.0, "page_faults": 4.0}

    found = run.summary([sample(ms) for ms in (5.0, 1.0, 2.0, 4.0, 3.0)])
    assert (found["q25_ms"], found["median_ms"], found["q75_ms"], found["iqr_ms"]) == (2.0, 3.0, 4.0, 2.0)
    assert (found["cpu_ms"], found["page_faults"]) == (1.5, 4.0)
    assert run.summary([sample(7.0)])["median_ms"] == 7.0
    # Within rounds 2, 3 and 1, whose median is not the ratio of the medians (4 / 4).
    assert run.ratio([sample(4), sample(3), sample(9)], [sample(2), sample(1), sample(9)]) == 2.0


def test_the_share_of_a_known_peak() -> None:
    assert run.peak_use(989 * 10**9, 2.0, "NVIDIA H200") == 0.5
    assert run.peak_use(756 * 10**9, 1.0, "NVIDIA H100 PCIe") == 1.0
    assert run.peak_use(989 * 10**9, 1.0, "NVIDIA H100 80GB HBM3") == 1.0
    assert run.peak_use(10**9, 1.0, "AMD EPYC, 1 of 2 cores") is None


def test_a_share_of_the_limit_is_the_least_time_of_all_phases_over_the_measured_one() -> None:
    ms = {"product": [10.0, 20.0], "copy": [5.0, 5.0], "part": [60.0, 100.0]}
    samples = {name: [{"cpu_ms": x} for x in own] for name, own in ms.items()}
    phases = {"product": [{"product": 100.0}], "copy": [{"copy": 50.0}]}
    # First the product decides, 20 and 40 ms, then a copy of twice the limit's, 10 ms: 30 of 60 ms and 50 of 100.
    phases["part"] = [{"product": 200.0, "copy": 50.0}, {"copy": 100.0}]
    assert run.limit_share("part", samples, phases) == 0.5
    assert run.limit_share("product", samples, phases) == 1.0
    assert run.limit_share("part", {"part": samples["part"], "copy": samples["copy"]}, phases) is None
    assert run.limit_share("part", samples, phases | {"part": []}) is None


def test_every_part_of_a_step_has_a_share_of_the_limits_beside_it(tmp_path: pathlib.Path) -> None:
    found = {record["variant"]: record["limit_share"] for record in records(tmp_path, "--case=limits")}
    assert found.pop("large product") == found.pop("copy") == 1.0
    assert len(found) == 5
    assert all(share > 0 for share in found.values())
    file = tmp_path / "results" / "out.jsonl"
    assert "| share of the limit |" in run.readme(f"{run.START}{run.END}", file.parent.parent)


def test_variants_take_turns_in_rotated_order() -> None:
    order: list[str] = []
    samples = run.interleave({name: lambda name=name: order.append(name) for name in "abc"}, rounds=3, calls=1)
    assert order[6:] == list("abcbcacab")  # after two calls of each to warm up
    assert {name: len(found) for name, found in samples.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case=blok"], "case 'blok' is unknown; known: block, step, experts, groups, stage2, "),
        ([], "known: block"),
        (["--case=block", "--rounds=0"], "--rounds=0 must be at least 1"),
        (["--case=block", "--cores=-1"], "--cores=-1"),
        (["--case=block", "--rounds=x"], "invalid int value"),
        (["--case=block", "--what"], "unrecognized arguments: --what"),
        (["--case=block", "--cores=0", "--size=full"], "known: fprm, tiny"),
        (["--case=step", "--size=tiny", "--cores=0", "--variants=remnd"], "known: soft_moe, remind"),
        (["--case=step", "--cores=100000"], "may use"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as error:
        run.main(arguments)
    assert message in str(error.value)


def test_a_file_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "results").write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot write"):
        run.write([{"case": "block"}], tmp_path / "results" / "out.jsonl")


def test_the_command_pins_itself_and_ends_with_2_on_a_mistake(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out.jsonl"

    def command(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.run", *arguments], cwd=run.HERE.parent, capture_output=True, text=True
        )

    wrong = command("--case=nothing")
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot pin processes")
    done = command("--case=step", "--size=tiny", "--rounds=1", "--variants=soft_moe", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["cores"] == 1


def test_the_readme_shows_the_stored_results() -> None:
    text = (run.HERE / "README.md").read_text(encoding="utf-8")
    stored = sorted((run.HERE / "results").glob("*/*.jsonl"))
    assert stored, "no results are stored"
    assert run.readme(text, run.HERE / "results") == text, "run python -m benchmarks.run --readme"
    for file in stored:
        assert f"### {file.parent.name}: {file.stem}" in text


def test_the_readme_follows_the_results(tmp_path: pathlib.Path) -> None:
    (record,) = records(tmp_path, "--case=step", "--variants=soft_moe")
    folder = tmp_path / "cpu-9"
    folder.mkdir()
    assert record["mfu"] is None
    (folder / "step.jsonl").write_text(json.dumps(record | {"median_ms": 1234.5}) + "\n")
    (folder / "gpu.jsonl").write_text(json.dumps(record | {"mfu": 0.417}) + "\n")
    text = run.readme(f"above\n\n{run.START}\nold\n{run.END}\nbelow\n", tmp_path)
    assert text.startswith("above\n")
    assert text.endswith(f"{run.END}\nbelow\n")
    assert "### cpu-9: step" in text
    assert "1,234.50" in text
    assert " MFU |" in text
    assert "| 41.7% |" in text
    assert "GFLOP/CPU s" in text  # where no peak is known
    assert "old" not in text
