"""Stacks: trained, resumed, loaded without scikit-learn, exported, analysed, for every task; and what refuses them."""

import contextlib
import io
import json
import subprocess
import sys
import threading

import numpy as np
import polars as pl
import pytest

import remind_jax
from remind_jax import adapt, cli, export, main, plan
from remind_jax.analysis import gradient_consistency, next_modality, specialization, what_if
from remind_jax.config import validate
from remind_jax.data import dataset as datasets
from remind_jax.data import reading, splits
from remind_jax.errors import UserError
from remind_jax.inference import loader, model_folder, plain
from remind_jax.methods import METHODS, in_stack
from remind_jax.runtime import progress
from remind_jax.tasks import isotonic
from remind_jax.training import cost, plain_models, run, stack
from tests import tiny_runs
from tests.data.manifest_files import write_manifest
from tests.data.target_files import FORMS, folder_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]
NAMES = ("remind", "remind_plus", "logistic_regression", "gradient_boosting", "extra_trees")
CHANGES = {"data__folds": 2, "eval__bootstrap": 10, "data__max_tokens": 6, "data__vocabulary": 48}
CHANGES |= {"data__fractions": "(0.6, 0.2, 0.2)", "train__epochs": 1.0, "train__joint_epochs": 0.5}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(plain_models, "TREES", 8)
    monkeypatch.setattr(plain_models, "FOREST", 6)


def _arguments(folder, cache, names=NAMES, **changes):
    return tiny_runs.own_arguments(folder, cache, "remind_stack", stack=",".join(names), **CHANGES | changes)


def _train(arguments, workdir):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main.main([*arguments, f"--workdir={workdir}"])
    return printed.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A stack of networks and plain models on text, codes, numbers and embeddings: its arguments and its folder."""
    folder = tmp_path_factory.mktemp("stack")
    arguments = _arguments(write_manifest(folder / "data", n=150), folder / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_models, "TREES", 8)
        patch.setattr(plain_models, "FOREST", 6)
        _train(arguments, folder / "run")
    return arguments, folder / "run"


def _predictions(run):
    return pl.read_parquet(run / "predictions.parquet").select(pl.col("^p_[0-9]+$")).to_numpy()


def test_isotonic_curves_are_of_the_mean_and_not_of_each_member(tmp_path):
    data, names = write_manifest(tmp_path / "data", n=120), ("remind", "logistic_regression")
    for how in ("none", "isotonic"):
        _train(_arguments(data, tmp_path / "cache", names, eval__recalibrate=how), tmp_path / how)
    single, calibrated = (remind_jax.load(tmp_path / how) for how in ("none", "isotonic"))
    before = single.predict_proba(data)
    expected = isotonic.along(calibrated.task.curves, before)
    expected /= expected.sum(axis=1, keepdims=True)
    assert np.abs(expected - before).max() > 1e-3
    np.testing.assert_allclose(calibrated.predict_proba(data), expected, atol=1e-5)


# ---- Training --------------------------------------------------------------------------------------------------------


def test_a_report_tells_the_weights_of_all_members(trained):
    report = json.loads((trained[1] / "report.json").read_text(encoding="utf-8"))
    told = report["stack"]
    assert [each["name"] for each in told["members"]] == list(NAMES)
    for key in ("weight", "selected"):
        assert sum(each[key] for each in told["members"]) == pytest.approx(1.0)
    assert (report["method"], told["folds"], report["split"]) == ("remind_stack", 2, "held_out")
    sizes = {name: each["n"] for name, each in report["card"]["splits"].items()}
    assert told["rows"] == sizes["train"] == 150 - report["n"]
    assert sizes["tuning"] == 0


def test_predictions_are_the_weighted_mean_of_all_members(trained):
    arguments, folder = trained
    model, config = model_folder.open_model(folder), cli.parse_config(arguments)[0]
    data = datasets.load_dataset(config)
    store, expected = data.stores["held_out"], 0.0
    rows = plain.seen(data.preprocessor, store.take(np.arange(len(store))))
    for member in model.members:
        if member.config is None:
            arrays = [
                {p.split("/", 2)[2]: x for p, x in model.params.items() if p.startswith(f"{member.name}/{k}/")}
                for k in range(2)
            ]
            each = [np.asarray(plain.predict(member.name, one, rows, model.task)) for one in arrays]
        else:
            own = [model_folder.open_model(folder / "members" / f"{member.name}-{k}") for k in range(2)]
            each = [one.predict_store(store).probabilities for one in own]
            assert np.abs(each[0] - each[1]).max() > 1e-3
        expected += member.weight * np.mean(each, axis=0)
    np.testing.assert_allclose(_predictions(folder), expected, atol=1e-5)


def test_each_member_is_judged_by_rows_that_it_was_not_trained_on(trained):
    _, folder = trained
    seen = []
    for k in range(2):
        own = model_folder.open_model(folder / "members" / f"remind-{k}")
        data = datasets.load_dataset(own.config)
        assert len(data.stores["held_out"]) == 0
        seen.append(data.rows("tuning"))
        assert not set(data.rows("train")) & set(data.rows("tuning"))
    whole = datasets.load_dataset(model_folder.read_config(folder))
    assert sorted(np.concatenate(seen)) == whole.rows("train").tolist()
    assert not set(whole.rows("held_out")) & set(whole.rows("train"))


def test_after_a_kill_what_is_finished_is_kept_and_the_result_is_the_same(trained, tmp_path, monkeypatch):
    arguments, folder = trained

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(plain_models.MODELS, "gradient_boosting", killed)
        with pytest.raises(KeyboardInterrupt):
            _train(arguments, tmp_path / "run")
    members = tmp_path / "run" / "members"
    kept = [members / f"remind-{k}" / "report.json" for k in range(2)] + [members / "logistic_regression.safetensors"]
    before = [file.stat().st_mtime_ns for file in kept]
    assert not (members / "gradient_boosting.safetensors").exists()
    with monkeypatch.context() as patch:
        patch.setitem(plain_models.MODELS, "logistic_regression", killed)  # which must not be fitted again
        _train(arguments, tmp_path / "run")
    assert [file.stat().st_mtime_ns for file in kept] == before
    np.testing.assert_array_equal(_predictions(tmp_path / "run"), _predictions(folder))
    assert "is a finished run" in _train(arguments, tmp_path / "run")


def test_plain_models_are_fitted_while_networks_train(tmp_path, monkeypatch):
    names = ("remind", "logistic_regression")
    config = cli.parse_config(_arguments(write_manifest(tmp_path / "data", n=60), tmp_path / "cache", names))[0]
    fits = threading.Event()

    def fit(*arguments):
        fits.set()
        raise UserError("it has begun")

    def train(*arguments):
        assert fits.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setitem(plain_models.MODELS, "logistic_regression", fit)
    with pytest.raises(KeyboardInterrupt):
        stack.build(config, datasets.load_dataset(config), None, train, progress.Silent())


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=pytest.mark.slow if task in ("ordinal", "multilabel") else ()) for task in FORMS]
)
def test_every_task_has_a_stack(tmp_path, task):
    root = folder_of(tmp_path / "data", task, n=120)
    names = ("soft_moe", "logistic_regression", "ridge", "gradient_boosting", "extra_trees")
    config = cli.parse_config(_arguments(root, tmp_path / "cache", names, train__select="loss"))[0]
    manifest = reading.read_manifest(root)
    model = run.fit(config, manifest, None, verbose=False).model
    learn = [name for name in names if name == "soft_moe" or task in plain_models.TASKS_OF[name]]
    assert [member.name for member in model.members] == learn
    assert model.report["task"]["name"] == task
    found = model.predictions(manifest)
    assert found.shape == (120, len(model.task.names))
    model.save(tmp_path / "saved")
    np.testing.assert_array_equal(remind_jax.load(tmp_path / "saved").predictions(manifest), found)
    if task == "survival":
        assert (np.diff(found, axis=1) <= 1e-6).all()
    if task == "regression":
        assert {"lower", "upper"} <= set(model.table(manifest).columns)  # by the rows of all folds


def test_without_held_out_rows_the_report_is_of_unseen_rows_of_all_folds(tmp_path):
    manifest = reading.read_manifest(write_manifest(tmp_path / "data", n=100))
    keys = {key.replace("__", "."): value for key, value in (tiny_runs.TINY | CHANGES).items()}
    keys = {key: value for key, value in keys.items() if key not in ("data.fractions", *_OF_PHENOMENON)}
    options = {"stack": "logistic_regression,extra_trees", "eval.adjust_prior": "macro_f1"}
    model = remind_jax.fit(manifest, method="remind_stack", held_out=0, tuning=0.1, progress=False, **keys | options)
    assert (model.report["split"], model.report["n"]) == ("tuning", 100)
    assert "prior_adjustment" in model.report


_OF_PHENOMENON = ("data.train", "data.tuning", "data.held_out_per_group")

# ---- What is made of it ----------------------------------------------------------------------------------------------

_CHILD = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("sklearn", "joblib", "lifelines"):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Absent())
import numpy as np, remind_jax
model = remind_jax.load(sys.argv[1])
np.save(sys.argv[3], model.predict_proba(remind_jax.read_folder(sys.argv[2])))
try:
    import sklearn
except ImportError:
    print("without scikit-learn")
"""


def test_a_stack_is_loaded_and_predicts_where_there_is_no_scikit_learn(trained, tmp_path):
    _, folder = trained
    data = str(folder.parent / "data")
    command = [sys.executable, "-c", _CHILD, str(folder), data, str(tmp_path / "found.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "without scikit-learn", done.stderr
    model = remind_jax.load(folder)
    expected = model.predict_proba(remind_jax.read_folder(data))
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-6)
    assert np.ptp(expected[:, 1]) > 0.05


def test_an_exported_stack_predicts_the_same(trained, tmp_path):
    _, folder = trained
    with contextlib.redirect_stdout(io.StringIO()):
        export.main([f"--workdir={folder}", f"--out={tmp_path / 'out'}"])
    code = "import load, sys; print(load.check(__import__('pathlib').Path('.')))"
    options = {"capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "out", **options)
    assert done.stdout.strip() == "[]", done.stderr
    model = remind_jax.load(folder)
    store = datasets.load_dataset(model.config).stores["held_out"]
    batch = store.take(np.arange(len(store)))
    found = loader.load(tmp_path / "out")({name: batch[name] for name in (*model.preprocessor.inputs, "present")})
    np.testing.assert_allclose(found["probabilities"], _predictions(folder), atol=1e-5)


def test_analyses_take_the_stack_or_one_of_its_networks(trained, capsys):
    _, folder = trained
    what_if.main([f"--workdir={folder}", "--samples=0-3"])
    table = pl.read_csv(folder / "analysis" / "what_if.csv")
    assert table.height == 4
    one = folder / "members" / "remind-0"
    gradient_consistency.main([f"--workdir={one}", "--split=train", "--n=4", "--n_whole=8", "--draws=1"])
    assert (one / "analysis" / "gradient_consistency.csv").exists()
    assert "Written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "more"),
    [
        (adapt.main, ["--data=nowhere", "--unfreeze=head"]),
        (gradient_consistency.main, []),
        (specialization.main, []),
        (next_modality.main, []),
    ],
)
def test_what_needs_one_network_refuses_a_stack_in_one_line(trained, command, more):
    with pytest.raises(UserError, match="is a stack: name the run of one of its networks") as error:
        command([f"--workdir={trained[1]}", *more])
    assert "\n" not in str(error.value)


# ---- Before it -------------------------------------------------------------------------------------------------------


def test_a_plan_counts_the_networks_of_all_folds(tmp_path, capsys):
    arguments = tiny_runs.arguments(
        tmp_path, "remind_stack", data__folds=3, stack="remind,remind_plus,ridge,extra_trees"
    )
    config = cli.parse_config(arguments)[0]
    plan.main(arguments)
    told = capsys.readouterr().out
    (one,) = [line.split() for line in told.splitlines() if line.startswith("remind ")]
    assert (one[1], one[4]) == ("3", "3.0")
    found = cost.plan_stack(config)
    assert found.plain == ["extra_trees"]
    assert found.networks["remind_plus"].train_flops > 1.5 * found.one.train_flops  # two networks


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stack": "remnd"}, "unknown method 'remnd'.*did you mean 'remind'"),
        ({"stack": "ridge"}, "names nothing that learns labels of task classes"),
        ({"stack": "remind_stack"}, "unknown method 'remind_stack'"),
        ({"data.folds": 0}, "needs data.folds of at least 1"),
        ({"task.predicts": "gaussian"}, "set task.predicts=mean"),
        ({"fusion.gate_granularity": "batch"}, "sample or token"),
    ],
)
def test_settings_that_make_no_stack_are_refused(tmp_path, changes, says):
    config = cli.parse_config(tiny_runs.arguments(tmp_path, "remind_stack"))[0]
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value

    def check():
        validate(config)
        stack.candidates(config, "classes")

    with pytest.raises(UserError, match=says):
        check()


def test_default_candidates_are_there_for_every_task(tmp_path):
    config = cli.parse_config(tiny_runs.arguments(tmp_path, "remind_stack"))[0]
    for task in ("classes", *FORMS):
        names = stack.candidates(config, task)
        assert len([name for name in names if name in METHODS]) == 2
        assert len([name for name in names if name not in METHODS]) == 2


def test_networks_read_text_as_bags_unless_there_are_published_weights(tmp_path):
    config = cli.parse_config(tiny_runs.arguments(tmp_path, "remind_stack"))[0]
    assert in_stack(config, "flex_moe", 0).model.text_encoder == "bag"
    config.pretrained.text = "t5-small"
    assert in_stack(config, "flex_moe", 0).model.text_encoder == "t5"


def test_folds_of_a_data_set_are_those_of_the_members(tmp_path):
    config = cli.parse_config(_arguments(write_manifest(tmp_path / "data", n=60), tmp_path / "cache"))[0]
    whole = datasets.fit(config)
    fold = stack.fold_of(whole, config, 1)
    config.method, config.data.fold = "remind", 1
    again = datasets.fit(config)
    np.testing.assert_array_equal(fold.whole_split, again.whole_split)
    assert fold.preprocessor.to_dict() == again.preprocessor.to_dict()
    assert (fold.split == splits.TUNING).any()
