"""What docs/scaling.md says: its tables are those of the stored results and of the estimate, whose parts add up."""

import json

import pytest

from benchmarks import data_scale, scaling
from remind_jax import cli
from remind_jax.training.cost import make_plan
from tests import tiny_runs

PAGE = (tiny_runs.ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def _records(name: str) -> list[dict]:
    lines = (tiny_runs.ROOT / "docs" / "results" / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


RECORDS = _records("scaling.jsonl")


def test_the_page_shows_the_stored_results():
    assert scaling.measured_table(RECORDS) in PAGE
    assert [(record["processes"], record["devices"]) for record in RECORDS] == list(scaling.LAYOUTS)
    assert len({(record["jax"], record["python"], record["date"]) for record in RECORDS}) == 1


def test_the_page_shows_the_road_of_a_million_rows():
    records = _records("data_scale.jsonl")
    assert data_scale.table(records) in PAGE
    assert data_scale.table(_records("many_modalities.jsonl")) in PAGE
    assert {record["rows"] for record in records} == {1_000_000}
    for record in records:
        parts = [mib for name, mib in record["mib"].items() if name.startswith("batches")]
        assert not parts or max(parts) - min(parts) < 100  # flat, after some 1,000 batches


def test_processes_find_the_same_numbers():
    assert max(record["loss_and_lambda_apart"] for record in RECORDS) < 1e-3
    assert max(record["tuning_loss_apart"] for record in RECORDS) < 1e-3


def test_the_page_shows_the_estimate():
    for work, batch, counts in (
        (scaling.JOINT, 32, scaling.COUNTS),
        (scaling.JOINT, 4, (8, 64)),
        (scaling.SPECIALIZE, 32, scaling.COUNTS),
    ):
        assert scaling.paper_table(work, batch, counts) in PAGE


def test_an_estimate_by_hand():
    found = scaling.cost(scaling.JOINT, scaling.FAST, 8, 32, by_expert=False)
    assert found.compute == pytest.approx(14.159e12 / 395e12)
    assert found.optimizer == pytest.approx(38 * 950.1e6 / 4.3e12)
    assert found.volume == pytest.approx(2 * 7 / 8 * 4 * 950.1e6)
    assert found.exchange == pytest.approx(found.volume / 450e9)
    one = scaling.cost(scaling.JOINT, scaling.FAST, 1, 32, by_expert=False)
    assert (one.exchange, one.volume) == (0, 0)
    assert found.efficiency(one, overlap=False) == pytest.approx(0.0442 / 0.0590, abs=0.01)
    assert found.efficiency(one, overlap=True) == pytest.approx(1.0)


def test_experts_that_are_shared_out_send_slots_instead_of_gradients():
    work, batch = scaling.JOINT, 32
    for gpus in (8, 64):
        by_data, by_expert = (scaling.cost(work, scaling.FAST, gpus, batch, x) for x in (False, True))
        rest = scaling.cost(work._replace(experts=0.0, slots=0.0), scaling.FAST, gpus, batch, by_expert=False)
        slots = 4 * batch * 128 * 768 * 2 * (gpus - 1) / gpus
        assert by_expert.volume == pytest.approx(rest.volume + slots)
        assert by_data.volume > by_expert.volume
        assert by_expert.optimizer < by_data.optimizer
    # Beyond 128 GPUs there are copies of experts, whose gradients are summed again.
    more = scaling.cost(work, scaling.FAST, 512, batch, by_expert=True)
    assert more.optimizer == pytest.approx(38 * (work.rest + work.experts / 128) / 4.3e12)
    assert more.volume > scaling.cost(work._replace(experts=0.0), scaling.FAST, 512, batch, by_expert=True).volume


def test_a_slow_network_and_small_batches_cost():
    def efficiency(machine, batch):
        one = scaling.cost(scaling.JOINT, scaling.FAST, 1, batch, by_expert=False)
        return scaling.cost(scaling.JOINT, machine, 64, batch, by_expert=False).efficiency(one, overlap=True)

    assert efficiency(scaling.FAST, 32) > 2 * efficiency(scaling.FAST, 4)
    assert efficiency(scaling.FAST, 32) > 5 * efficiency(scaling.SLOW, 32)


@pytest.mark.slow
def test_a_small_road_can_be_measured(tmp_path, capsys):
    shape = ["--modalities=6", "--numbers=2", "--combinations=9", "--train=6"]
    data_scale.main([*shape, "--rows=2000", "--steps=20", "--processes=2", f"--out={tmp_path / 'out.jsonl'}"])
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["part"] for record in records] == ["prepare", "shards", "memory", "train"]
    assert all(record["train_rows"] == 1400 for record in records[:3])
    assert len({record["combinations"] for record in records}) == 1
    assert records[0]["shards"] == 6  # one block of rows a modality
    assert "prepare 6 shards | 2," in data_scale.table(records)
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
def test_the_model_is_that_of_the_plan():
    plan = make_plan(cli.parse_config([f"--config={tiny_runs.ROOT / 'configs' / 'embed.py'}:size=paper"])[0])
    assert plan.parameters["block_0/experts"] == scaling.JOINT.experts
    for work, stage in zip((scaling.JOINT, scaling.SPECIALIZE), plan.stages, strict=True):
        assert work.experts + work.rest == pytest.approx(stage.trained, rel=1e-3)
        assert work.flops * 32 == pytest.approx(stage.step_flops, rel=1e-3)
