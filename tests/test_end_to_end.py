"""The main command from a folder of a user's own to the report, and every method on a small world."""

import contextlib
import io
import json
import math
import pathlib

import polars as pl
import pytest
import yaml

from remind_jax import main
from remind_jax.config.rules import STACKS
from remind_jax.data.reading import read_manifest
from remind_jax.data.splits import make_splits
from remind_jax.evaluation import page
from remind_jax.methods import METHODS
from tests import tiny_runs
from tests.data.manifest_files import SCHEMA, write_manifest
from tests.data.sources import eicu_files, support2_files

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]

# Strings that stand for what must not leave the data: in notes, as the ids of stays and patients.
NOTE, STAY, PATIENT = "zebrafinch7731", "stayid4812x", "patientid9055x"
CONTRACT = {
    *("data", "method", "seed", "config_digest", "split", "parameters", "n", "overall", "groups"),
    *("head_mean", "tail_mean", "worst_group"),
}
METRICS = {"accuracy", "macro_f1", "auroc", "auprc", "ece", "brier"}
INTERVALS = {"accuracy_ci", "macro_f1_ci", "auroc_ci", "auprc_ci"}


def _own_data(folder: pathlib.Path) -> pathlib.Path:
    """Text, codes and tabular data of 90 stays, with canaries."""
    write_manifest(folder, n=90)
    table = pl.read_csv(folder / "manifest.csv", infer_schema=False).drop("scan")
    has_nothing = pl.all_horizontal(pl.col("note", "icd", "sodium", "wbc", "sex").is_null())
    table = table.with_columns(
        (pl.lit(NOTE + " ") + pl.col("note")).alias("note"),
        (STAY + pl.col("stay")).alias("stay"),
        (PATIENT + pl.col("patient")).alias("patient"),
        # Stays that had a scan only.
        pl.when(has_nothing).then(pl.lit("140.5")).otherwise(pl.col("sodium")).alias("sodium"),
    )
    table.write_csv(folder / "manifest.csv")
    modalities = {name: spec for name, spec in SCHEMA["modalities"].items() if name != "scan"}
    (folder / "schema.yaml").write_text(yaml.safe_dump(SCHEMA | {"modalities": modalities}, sort_keys=False))
    return folder


class _Done:
    """A finished run: its folder, what it printed, its files."""

    def __init__(self, arguments: list[str], workdir: pathlib.Path):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            main.main([*arguments, f"--workdir={workdir}"])
        self.folder, self.printed = workdir, printed.getvalue()
        self.report = json.loads(self.text("report.json"))
        self.records = [json.loads(line) for line in self.text("metrics.jsonl").splitlines()]
        self.predictions = pl.read_parquet(workdir / "predictions.parquet")

    def text(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """REMIND on a user's own folder through configs/manifest.py."""
    folder = tmp_path_factory.mktemp("own")
    changes = {
        "data.root": _own_data(folder / "data"),
        "data.cache": folder / "cache",
        "data.max_tokens": 8,
        "data.vocabulary": 64,
        "model.width": 8,
        "model.tokens": 1,
        "fusion.heads": 2,
        "fusion.experts": 2,
        "fusion.hidden": 8,
        "train.batch_size": 16,
        "train.epochs": 2.0,
        "train.joint_epochs": 1.0,
        "train.log_every": 2,
        "train.track": "tensorboard",
        "eval.bootstrap": 50,
        "devices": 1,
    }
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    return _Done([f"--config={tiny_runs.ROOT}/configs/manifest.py:method=remind", *flags], folder / "run")


@pytest.mark.slow
def test_random_encoders_at_the_paper_s_size_are_told(own, tmp_path):
    """In the log, in report.json, and on the page; the small size is our own and tells nothing."""
    small = {"model.text_size": "small", "train.epochs": 0.4, "train.joint_epochs": 0.2}
    small |= {"data.root": own.folder.parent / "data", "data.cache": own.folder.parent / "cache"}
    small |= {"data.max_tokens": 8, "data.vocabulary": 64, "model.width": 8, "model.tokens": 1, "fusion.heads": 2}
    small |= {"fusion.experts": 2, "fusion.hidden": 8, "eval.bootstrap": 20, "devices": 1}
    flags = [f"--config.{key}={value}" for key, value in small.items()]
    done = _Done([f"--config={tiny_runs.ROOT}/configs/manifest.py:size=paper", *flags], tmp_path / "run")
    (finding,) = [found for found in done.report["findings"] if found["code"] == "W109"]
    assert finding["message"].endswith("published ones: note (set pretrained.text)")
    assert finding["message"] in done.printed
    assert "Encoders are not pretrained" in done.text("report.html")
    assert "W109" not in {found["code"] for found in own.report["findings"]}
    assert "smoke run" not in own.printed + own.text("report.html") + done.printed


OTHERS = sorted({path.stem for path in (tiny_runs.ROOT / "configs").glob("*.py")} - {"manifest", "arena"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest", *OTHERS])
def test_a_smoke_run_goes_all_the_way_and_says_what_it_is(name, tmp_path, request):
    roots = {"manifest": lambda: _own_data(tmp_path / "data"), "heart": lambda: request.getfixturevalue("shared_data")}
    roots["support2"] = lambda: support2_files.write(tmp_path / "data", support2_files.many(90))
    roots["eicu"] = lambda: eicu_files.write(tmp_path / "data", eicu_files.many(80))
    root = roots[name]() if name in roots else ""
    flags = [f"--config.data.root={root / 'uci_heart' if name == 'heart' else root}", "--config.devices=1"]
    done = _Done([f"--config={name}", "--quick", f"--config.data.cache={tmp_path / 'cache'}", *flags], tmp_path / "run")
    assert " (smoke run)" in done.report["data"]
    # The networks of a blend have records of their own.
    stages = {"stack"} if name == "manifest" else {"joint", "specialize"}
    assert {record["stage"] for record in done.records} == stages
    assert done.printed.count("(smoke run)") >= 2
    assert page.SMOKE in done.printed
    banner, *others = done.text("report.html").split(page.SMOKE)
    assert len(others) == 2  # a banner, and a caution
    assert "<h1>" not in banner


def test_folder_holds_what_the_design_says(own):
    names = {path.name for path in own.folder.iterdir()}
    expected = {"config.json", "environment.json", "metrics.jsonl", "checkpoints", "report.json", "report.html"}
    assert names == expected | {"predictions.parquet", "model", "tensorboard", "data.npz", ".owner"}
    assert len(list((own.folder / "tensorboard").iterdir())) == 1
    assert [path.name for path in (own.folder / "checkpoints").iterdir() if path.name.isdigit()]
    config = json.loads(own.text("config.json"))
    assert (config["method"], config["data"]["source"], config["train"]["batch_size"]) == ("remind", "manifest", 16)
    assert json.loads(own.text("environment.json"))["packages"]["jax"]


def _assert_figures(figures: dict) -> None:
    """Every figure is there; one that is null has its reason."""
    assert figures.keys() >= METRICS | INTERVALS
    for name in METRICS | INTERVALS:
        if figures[name] is None:
            assert figures["notes"][name]
        elif name in METRICS:
            assert 0 <= figures[name] <= 1
        else:
            low, high = figures[name]
            assert 0 <= low <= high <= 1


def test_report_has_the_contract_s_keys(own):
    report = own.report
    assert report.keys() >= CONTRACT
    assert (report["method"], report["seed"], report["split"]) == ("remind", 0, "held_out")
    assert "small_hospital" in report["data"]
    assert len(report["config_digest"]) == 16
    assert report["parameters"] > 1000
    for figures in (report["overall"], report["head_mean"], report["tail_mean"], report["worst_group"]):
        _assert_figures(figures)
    for row in report["groups"]:
        _assert_figures(row)
        assert row["group"] == "+".join(row["modalities"])
        assert row.keys() >= {"train_fraction", "tail", "n", "n_patients", "n_train"}
    assert sum(row["n"] for row in report["groups"]) == report["n"]
    assert sum(row["train_fraction"] for row in report["groups"]) == pytest.approx(1.0)
    assert len({row["group"] for row in report["groups"]}) == len(report["groups"]) >= 4


def test_predictions_are_the_held_out_rows(own):
    manifest = read_manifest(own.folder.parent / "data")
    split = make_splits(manifest, 0)
    held_out = manifest.table.filter(pl.Series(split == 2))
    assert own.predictions["sample_id"].to_list() == held_out["stay"].to_list()
    assert own.predictions["label"].to_list() == manifest.labels[split == 2].tolist()
    assert own.report["n"] == len(held_out) > 10
    total = own.predictions["p_0"] + own.predictions["p_1"]
    assert (total - 1).abs().max() < 1e-5
    right = (own.predictions["p_1"] > own.predictions["p_0"]).cast(int) == own.predictions["label"]
    assert own.report["overall"]["accuracy"] == pytest.approx(right.mean())
    assert set(own.predictions["group"]) <= {row["group"] for row in own.report["groups"]}


def test_metrics_have_the_contract_s_keys(own):
    groups = {row["group"] for row in own.report["groups"] if not row.get("unseen")}
    steps = [record for record in own.records if "train/loss" in record]
    evaluations = [record for record in own.records if "eval/loss" in record]
    assert len(steps) + len(evaluations) == len(own.records) - 1
    assert {"data/manifest", "data/split", "data/groups", "data/kinds"} <= own.records[0].keys()
    assert {record["stage"] for record in own.records} == {"joint", "specialize"}
    for record in steps:
        assert {key.removeprefix("dro/lambda/") for key in record if key.startswith("dro/lambda/")} == groups
        assert record.keys() >= {"step", "gate/open_rate", "time/step_ms"}
        assert record["time/step_ms"] > 0
    for record in evaluations:
        assert record.keys() >= {"step", "eval/accuracy", "eval/macro_f1", "eval/auroc"}
    assert [record["step"] for record in own.records] == sorted(record["step"] for record in own.records)
    assert all(math.isfinite(value) for record in steps for value in record.values() if isinstance(value, float))


def test_page_needs_nothing_from_elsewhere(own):
    page = own.text("report.html")
    assert len(page) > 5000
    assert "small_hospital" in page
    for mark in ("http://", "https://", "<script src", "<link", "@import"):
        assert mark not in page
    assert page.count("url(") == page.count("url(#")  # parts of the page itself


def test_no_patient_leaves_the_data(own):
    raw = (own.folder.parent / "data" / "manifest.csv").read_text(encoding="utf-8")
    for canary in (NOTE, STAY, PATIENT):
        assert raw.count(canary) > 20
        assert canary not in own.printed
        for name in ("report.html", "report.json", "metrics.jsonl", "config.json", "environment.json"):
            assert canary not in own.text(name), name


def test_table_is_printed(own):
    for part in ("small_hospital", "all samples", "accuracy", "note+icd+labs", "report.html"):
        assert part in own.printed


# ---- Methods ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


# Beside `remind` in two stages: balanced batches with group weights, sparse experts. The rest is slow.
QUICK = ("group_dro", "flex_moe")


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in METHODS
        if name not in ("remind", *STACKS)
    ],
)
def test_every_method_runs(cache, tmp_path, method):
    changes = {"train__epochs": 1.0, "train__joint_epochs": 0.5, "eval__bootstrap": 20, "data__tuning": 24}
    done = _Done(tiny_runs.arguments(cache, method, **changes), tmp_path / "run")
    assert done.report["method"] == method
    assert "synthetic" in done.report["data"]
    assert done.report["n"] == 6 * 12
    assert len(done.predictions) == 6 * 12
    stages = {record["stage"] for record in done.records}
    routed = method in ("remind_no_dro", "remind_plus")
    assert stages == ({"joint", "specialize"} if routed else {"joint"})
    lambdas = [[v for k, v in record.items() if "lambda" in k] for record in done.records if "train/loss" in record]
    moved = max(abs(a - b) for a, b in zip(lambdas[0], lambdas[-1], strict=True)) > 1e-6
    assert moved == (method in ("group_dro", "remind_no_specialization", "remind_plus"))
    assert ("gate" in done.report) == routed
    unseen = [row["group"] for row in done.report["groups"] if row.get("unseen")]
    assert unseen  # 96 samples do not have the two rarest of the six combinations
    assert all(row["n"] == 12 for row in done.report["groups"])


@pytest.mark.slow
def test_real_people_for_half_an_epoch(cache, tmp_path):
    changes = {"train.epochs": 0.5, "train.joint_epochs": 0.25, "data.cache": cache, "eval.bootstrap": 20, "devices": 1}
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    done = _Done([f"--config={tiny_runs.ROOT}/configs/nhanes.py", *flags], tmp_path / "run")
    assert done.report["n"] > 500
    assert "synthetic" not in done.report["data"]
    assert len(done.report["modalities"]) == 7
    assert done.report["label_counts"][0] + sum(done.report["label_counts"][1:]) == done.report["n"]
