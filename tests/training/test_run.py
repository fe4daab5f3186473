"""What a run says of the weights that it reports."""

import importlib
import json
import pathlib

import pytest

import remind_jax
from remind_jax import cli
from remind_jax.data import dataset as datasets
from remind_jax.data.outline import OUTLINES
from remind_jax.evaluation import page
from remind_jax.training import cost
from remind_jax.training.run import random_encoders, train_and_evaluate
from tests import tiny_runs
from tests.data.manifest_files import write_manifest

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]
STAGES = ("joint", "specialize")


def _run(folder: pathlib.Path, **changes) -> tuple[dict, dict]:
    """The weights that a report names, and of each stage the lowest tuning loss with its step."""
    changes = {"eval__bootstrap": 20, "optim__schedule": "constant", "train__evaluate_every": 0.5} | changes
    report = train_and_evaluate(tiny_runs.config(folder / "cache", "remind", **changes), folder / "run", verbose=False)
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    seen = [record for line in lines if "eval/loss" in (record := json.loads(line))]
    by_stage = {name: [(one["eval/loss"], one["step"]) for one in seen if one["stage"] == name] for name in STAGES}
    return report["weights"], {name: min(found) for name, found in by_stage.items()}


@pytest.mark.slow
@pytest.mark.parametrize("lr", [1e-3, 0.3])
def test_the_report_names_its_weights_and_better_ones_that_were_passed_over(tmp_path, lr):
    weights, best = _run(tmp_path, optim__lr=lr)
    assert (weights["value"], weights["step"]) == best["specialize"]
    assert (weights["stage"], weights["selected_by"]) == ("specialize", "loss")
    joint = {"stage": "joint", "step": best["joint"][1], "value": best["joint"][0]}
    assert weights["earlier"] == [joint]
    worse = best["joint"][0] < best["specialize"][0]
    assert worse is (lr == 0.3)  # so that both cases are seen
    assert weights["passed_over"] == (joint if worse else None)
    assert remind_jax.load(tmp_path / "run").chosen == weights
    text = page.weights_text(weights)
    assert f"step {weights['step']}, stage specialize" in text
    assert ("train.keep_better_stage=true" in text) is worse
    assert text.replace("'", "&#39;") in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_the_best_of_both_stages_can_be_kept(tmp_path):
    weights, best = _run(tmp_path, optim__lr=0.3, train__keep_better_stage=True)
    assert (weights["value"], weights["step"]) == min(best.values())
    assert weights["passed_over"] is None


def test_the_last_weights_are_no_choice(tmp_path):
    weights, _ = _run(tmp_path, train__select="last")
    assert (weights["stage"], weights["value"], weights["passed_over"]) == ("specialize", None, None)
    assert page.weights_text(weights).endswith("the last ones.")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embed", "c_view_cc, c_view_mlo, 2d_cc, 2d_mlo (set pretrained.image)"),
        ("mimic", "notes, labs, icd (set pretrained.text)"),
        ("fprm", "fundus, oxygen (set pretrained.image); flow (set pretrained.volume)"),
    ],
)
def test_encoders_that_the_paper_pretrains_are_named_with_the_key_that_is_empty(name, expected):
    make = importlib.import_module(f"configs.{name}").get_config
    config = make("size=paper")
    inputs = OUTLINES[config.data.source](config.data).inputs
    (finding,) = random_encoders(config, inputs)
    assert finding.message.endswith(f"published ones: {expected}")
    assert (finding.code, finding.fatal) == ("W109", False)
    config.pretrained.update(text="t5-base", image="vit", volume="r3d")
    assert random_encoders(config, inputs) == []
    assert random_encoders(make(), inputs) == []


def test_encoders_that_have_no_published_weights_are_not_named():
    config = importlib.import_module("configs.mimic").get_config("size=paper")
    config.data.icd = "codes"  # whose ids are those of a fitted list
    inputs = OUTLINES["mimic_iv"](config.data).inputs
    assert "icd" not in random_encoders(config, inputs)[0].message
    labs = {"tabular": OUTLINES["fprm"](importlib.import_module("configs.fprm").get_config().data).inputs["tabular"]}
    assert random_encoders(config, labs) == []


@pytest.mark.slow
def test_texts_of_few_samples_are_bags_where_nobody_says_otherwise_and_the_report_tells(tmp_path):
    root, changes = write_manifest(tmp_path / "data"), {"train__epochs": 1.0, "train__joint_epochs": 0.5}

    def make(**more):
        changes_ = changes | {"data__max_tokens": 6, "eval__bootstrap": 20} | more
        return cli.parse_config(tiny_runs.own_arguments(root, tmp_path / "cache", **changes_))[0]

    config = make()
    report = train_and_evaluate(config, tmp_path / "run", verbose=False)
    model = remind_jax.load(tmp_path / "run")
    assert (config.model.text_encoder, model.config.model.text_encoder) == ("auto", "bag")
    told = [finding["message"] for finding in report["findings"] if "text_encoder" in finding["message"]]
    assert len(told) == 1
    assert told[0].startswith("model.text_encoder=auto is bag with 60 samples, of note, icd")
    plans = {name: cost.make_plan(make(model__text_encoder=name)).parameters for name in ("auto", "bag", "t5")}
    assert plans["auto"] == plans["bag"] != plans["t5"]
    assert datasets.with_text_encoder(config, datasets.FEW_TEXTS).model.text_encoder == "t5"
    assert datasets.with_text_encoder(config, datasets.FEW_TEXTS - 1).model.text_encoder == "bag"
    config.pretrained.text = "somewhere"
    assert datasets.with_text_encoder(config, 60).model.text_encoder == "t5"
    assert cli.parse_config([f"--config={tiny_runs.ROOT}/configs/manifest.py:size=paper"])[0].model.text_encoder == "t5"
