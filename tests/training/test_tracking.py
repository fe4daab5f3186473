"""What trackers hold of a run, that they fail alone, and that nothing leaves this machine."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import polars as pl
import pytest

from remind_jax.config import base, complete, validate
from remind_jax.errors import UserError
from remind_jax.training.run_folder import RunFolder
from remind_jax.training.trackers import TRACKERS, Trackers
from remind_jax.training.trackers.tracker import Run
from tests.data.manifest_files import write_manifest
from tests.training import tracked

pytestmark = pytest.mark.slow

CONFIG = {"seed": 3, "data": {"source": "manifest", "root": "/data/St. Mary"}, "optim": {"lr": 0.1}}
ALL = ",".join(TRACKERS)
# Strings that stand for what must not leave a run's folder: words of notes, ids of stays and patients.
CANARIES = "zebrafinch7731", "stayid4812x", "patientid9055x"


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """MLflow's, with its tables, which take seconds to make, and no runs."""
    folder = tmp_path_factory.mktemp("database")
    tracked.mlflow_client(folder)
    return folder / "mlflow.db"


@pytest.fixture
def runs(tmp_path, database):
    """A folder for runs with an empty database."""
    (tmp_path / "runs").mkdir()
    shutil.copy(database, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder and home; there and in the environment nothing may be left."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    before = _environment()
    yield
    assert _environment() == before
    assert [*(tmp_path / "work").iterdir()] == []


def _environment() -> dict[str, str]:
    """Without what pytest keeps there, and the address of the service that outlives an offline run."""
    return {key: x for key, x in os.environ.items() if not key.startswith(("PYTEST", "WANDB_SERVICE", "_RJEM_MALLOC"))}


def _close(folder: RunFolder) -> pathlib.Path:
    folder.close()
    return folder.path


def _named(tracker: str, scalars: list[tuple[str, int, float]]) -> list[tuple[str, int, float]]:
    """As that tracker writes names; without an order within a step."""
    return sorted((name.replace("+", ":") if tracker == "mlflow" else name, *rest) for name, *rest in scalars)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_the_numbers_of_the_records_are_there(runs, tracker):
    folder = RunFolder(runs / "one", CONFIG, tracker)
    folder.log({"step": 4, "stage": "joint", "train/loss": 0.5, "dro/lambda/labs+icd": 0.25})
    folder.log({"step": 4, "stage": "joint", "eval/auroc": 0.75, "eval/note": "ü"})
    folder.log({"step": 8, "stage": "joint", "eval/auroc": None, "train/loss": 2})
    run = _close(folder)
    expected = [("dro/lambda/labs+icd", 4, 0.25), ("eval/auroc", 4, 0.75), ("train/loss", 4, 0.5), ("train/loss", 8, 2)]
    assert sorted(tracked.READERS[tracker](run)) == _named(tracker, expected)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_trackers_follow_a_run_that_goes_back(runs, tracker):
    """It was started without them, went on with them from an earlier step, and holds no step twice."""
    run = runs / "one"
    folder = RunFolder(run, CONFIG)
    for step in (1, 2, 3):
        folder.log({"step": step, "loss": float(step)})
    folder.close()
    ids = set()
    for _ in range(2):
        folder = RunFolder(run, CONFIG | {"train": {"track": tracker}}, tracker)
        folder.rewind(2)
        folder.log({"step": 3, "loss": 0.25})
        folder.rewind(2)  # as after steps that were not finite
        folder.log({"step": 3, "loss": 0.5})
        folder.close()
        ids |= {(run / "tracking.json").read_text()} if tracker != "tensorboard" else {""}
    assert tracked.READERS[tracker](run) == [("loss", 1, 1.0), ("loss", 2, 2.0), ("loss", 3, 0.5)]
    assert len(ids) == 1
    if tracker == "mlflow":
        assert len(tracked.mlflow_runs(run.parent)) == 1


def _report(**more):
    part = {"n": 9, "accuracy": 0.5, "auroc": None, "auroc_ci": [0.1, 0.9], "notes": {"auroc": "one class"}}
    parts = ("overall", "head_mean", "tail_mean", "head_pooled", "tail_pooled", "worst_group")
    return {"split": "held_out", **dict.fromkeys(parts, part), **more}


def test_a_run_in_mlflow_has_the_run_s_name_settings_state_and_figures(runs):
    trackers = Trackers(["mlflow"], Run(runs / "remind-seed0", CONFIG))
    (runs / "remind-seed0").mkdir(parents=True)
    trackers.add({"step": 7, "stage": "specialize", "loss": 1.0})
    (run,) = tracked.mlflow_runs(runs).values()
    assert (run.info.run_name, run.info.status, run.experiment) == ("remind-seed0", "RUNNING", "manifest-St.-Mary")
    assert run.data.params == {
        "seed": "3",
        "data.source": "manifest",
        "data.root": "/data/St. Mary",
        "optim.lr": "0.1",
    }
    assert run.data.tags["stage"] == "specialize"
    trackers.finish({"held_out/overall/auroc": 0.875})
    trackers.close()
    (run,) = tracked.mlflow_runs(runs).values()
    assert (run.info.status, run.data.metrics["held_out/overall/auroc"]) == ("FINISHED", 0.875)


def test_a_run_that_stops_is_killed_in_mlflow_and_runs_again_when_it_goes_on(runs):
    states = []
    for _ in range(2):
        folder = RunFolder(runs / "one", CONFIG, "mlflow")
        folder.rewind(0)
        states.append(tracked.mlflow_runs(runs)["one"].info.status)
        folder.close()
        states.append(tracked.mlflow_runs(runs)["one"].info.status)
    assert states == ["RUNNING", "KILLED", "RUNNING", "KILLED"]


def test_an_offline_run_has_the_run_s_name_and_settings_and_nothing_of_the_machine(runs):
    folder = RunFolder(runs / "remind-seed0", CONFIG, "wandb")
    hooks = sys.exit, sys.excepthook
    folder.log({"step": 7, "stage": "specialize", "loss": 1.0})
    run = _close(folder)
    assert (sys.exit, sys.excepthook) == hooks
    (about,) = [record.run for record in tracked.wandb_records(run) if record.HasField("run")]
    assert (about.display_name, about.run_group, about.project) == ("remind-seed0", "runs", "manifest-St.-Mary")
    config = {item.key: json.loads(item.value_json) for item in about.config.update}
    assert config | {"_wandb": 0} == CONFIG | {"_wandb": 0}
    assert (about.host, about.git.remote_url) == ("", "")
    assert json.loads((run / "tracking.json").read_text()) == {"wandb": about.run_id}
    held = [path for path in (run / "wandb").rglob("*") if path.is_file()]
    assert {path.suffix for path in held} == {".wandb", ".log"}


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_finished_run_ends_with_the_figures_of_its_report(runs, tracker, monkeypatch):
    monkeypatch.setattr("remind_jax.evaluation.report.write_html", lambda *rest: None)
    folder = RunFolder(runs / "one", CONFIG, tracker)
    folder.log({"step": 5, "stage": "joint", "loss": 1.0})
    worst = {"group": "labs", "n": 4, "accuracy": 0.25}
    folder.finish(_report(worst_group=worst), pl.DataFrame({"patient": [CANARIES[2]]}))
    run = _close(folder)
    found = {name: (step, value) for name, step, value in tracked.READERS[tracker](run)}
    parts = ("overall", "head_mean", "tail_mean", "head_pooled", "tail_pooled")
    expected = {f"held_out/{part}/{name}": (5, x) for part in parts for name, x in (("n", 9), ("accuracy", 0.5))}
    expected |= {"held_out/worst_group/n": (5, 4), "held_out/worst_group/accuracy": (5, 0.25), "loss": (5, 1.0)}
    assert found == expected
    assert (run / "report.json").exists()


def test_names_that_mlflow_does_not_allow_stay_apart(runs):
    """Combinations of many modalities have long names that differ only at their ends."""
    long = "dro/lambda/" + "+".join(f"modality_{i}" for i in range(40))
    folder = RunFolder(runs / "one", CONFIG, "mlflow")
    folder.log({"step": 1, f"{long}+a": 0.25, f"{long}+b": 0.75})
    found = tracked.mlflow(_close(folder))
    assert sorted(value for _, _, value in found) == [0.25, 0.75]
    assert len({name for name, _, _ in found}) == 2


def test_more_figures_than_mlflow_takes_at_once(runs):
    keys = {f"key{i}": i for i in range(250)}
    folder = RunFolder(runs / "one", CONFIG | {"optim": keys | {"long": "x" * 9_000}}, "mlflow")
    folder.log({"step": 1, **{f"lambda/{i}": float(i) for i in range(2_500)}})
    assert len(tracked.mlflow(_close(folder))) == 2_500
    assert len(tracked.mlflow_runs(runs)["one"].data.params) == 254


def test_a_run_whose_folder_was_moved_away_from_the_database_begins_anew(tmp_path, runs, database):
    folder = RunFolder(runs / "one", CONFIG, "mlflow")
    folder.log({"step": 1, "loss": 1.0})
    folder.close()
    (tmp_path / "moved").mkdir()
    shutil.copy(database, tmp_path / "moved")
    (runs / "one").rename(tmp_path / "moved" / "one")
    folder = RunFolder(tmp_path / "moved" / "one", CONFIG, "mlflow")
    folder.rewind(1)
    assert tracked.mlflow(_close(folder)) == [("loss", 1, 1.0)]


def test_several_runs_share_the_database_of_their_folder(runs):
    for name in ("one", "two"):
        folder = RunFolder(runs / name, CONFIG, "mlflow")
        folder.log({"step": 1, "loss": 1.0 if name == "one" else 2.0})
        folder.close()
    folder = RunFolder(runs / "one", CONFIG, "mlflow")
    folder.rewind(0)
    folder.close()
    assert tracked.mlflow(runs / "one") == []
    assert tracked.mlflow(runs / "two") == [("loss", 1, 2.0)]
    assert {run.experiment for run in tracked.mlflow_runs(runs).values()} == {"manifest-St.-Mary"}


@pytest.mark.slow
def test_runs_that_begin_at_once_make_one_database(tmp_path):
    runs = [tmp_path / "runs" / name for name in ("one", "two", "three")]
    root = pathlib.Path(__file__).resolve().parents[2]
    work = [sys.executable, "-m", "tests.training.cut_off", "--", str(tmp_path / "seen"), "record", "mlflow"]
    started = [subprocess.Popen([*work, str(run)], env=os.environ | {"PYTHONPATH": str(root)}) for run in runs]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert [tracked.mlflow(run) for run in runs] == 3 * [[("loss", 1, 0.5)]]


# ---- What goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tracker", "package"), [("tensorboard", "tensorboardX"), ("mlflow", "alembic"), ("wandb", "wandb")]
)
def test_a_package_that_is_missing_is_told_before_anything_is_made(tmp_path, monkeypatch, tracker, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{package} is not installed: pip install {package}") as refusal:
        RunFolder(tmp_path / "run", CONFIG, tracker)
    assert f"train.track={tracker}" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(runs, monkeypatch, capfd, tracker):
    def full(self, record):
        raise OSError("no space left\non device")

    monkeypatch.setattr(TRACKERS[tracker], "add", full)
    folder = RunFolder(runs / "one", CONFIG, ALL)
    for step in (1, 2):
        folder.log({"step": step, "loss": 0.5})
    folder.rewind(1)
    run = _close(folder)
    said = [line for line in capfd.readouterr().err.splitlines() if "note:" in line]
    assert said == [f"note: {tracker} has failed and follows this run no more: no space left on device"]
    assert folder.history() == [{"step": 1, "loss": 0.5}]
    for other in TRACKERS.keys() - {tracker}:
        assert tracked.READERS[other](run) == [("loss", 1, 0.5)]


def test_a_damaged_database_does_not_end_a_run(tmp_path, capfd):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_text("this is no database " * 1_000)
    folder = RunFolder(tmp_path / "runs" / "one", CONFIG, "mlflow")
    folder.log({"step": 1, "loss": 0.5})
    folder.close()
    assert folder.history() == [{"step": 1, "loss": 0.5}]
    assert capfd.readouterr().err.count("note: mlflow has failed") == 1


def test_processes_that_leave_the_folder_to_another_one_track_nothing(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "one", CONFIG, ALL, writes=False)
    folder.log({"step": 1, "loss": 0.5})
    folder.rewind(0)
    folder.close()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("track", ["mlflow,", "mlfow", "wandb wandb", "wandb,wandb"])
def test_a_tracker_that_there_is_not_is_refused(track):
    config = base("uci_heart")
    config.train.track = track
    with pytest.raises(UserError, match=r"train\.track=.* must be empty, or some of tensorboard, mlflow and wandb"):
        validate(config)


@pytest.mark.parametrize("track", ["", *TRACKERS, ALL])
def test_every_tracker_may_be_named_alone_and_with_the_others(track):
    config = base("uci_heart")
    config.train.track = track
    validate(config)


def test_configs_with_the_older_key_are_read():
    config = complete({"data": {"source": "uci_heart"}, "train": {"tensorboard": True, "epochs": 3.0}})
    assert (config.train.epochs, config.train.track) == (3.0, "")


# ---- The network -----------------------------------------------------------------------------------------------------


def _watched(folder: pathlib.Path, *work: str) -> dict:
    """What a process asks a network for at some work, see `cut_off`; its user would have everything sent somewhere."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CI", "PYTEST", "GITHUB"))}
    environment |= {"WANDB_MODE": "online", "WANDB_API_KEY": 40 * "a", "MLFLOW_TRACKING_URI": "http://192.0.2.1:5000"}
    root = pathlib.Path(__file__).resolve().parents[2]
    environment |= {"PYTHONPATH": str(root), "MPLCONFIGDIR": str(folder), "TQDM_DISABLE": "1"}
    file = folder / "seen.json"
    command = [sys.executable, "-m", "tests.training.cut_off", str(file), *work]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    seen = json.loads(file.read_text())
    assert seen["code"] == 0, seen["printed"][-2_000:]
    return seen


@pytest.mark.parametrize("tracker", ["", *TRACKERS])
def test_a_tracker_asks_for_no_network(tmp_path, runs, tracker):
    run = runs / "one"
    seen = _watched(tmp_path, "record", tracker, str(run))
    assert (seen["asked"], seen["packets"] or []) == ([], [])
    assert [*(tmp_path / "home").iterdir()] == []
    if tracker:
        assert tracked.READERS[tracker](run) == [("loss", 1, 0.5)]


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_a_tracker_left_as_it_comes_is_caught(tmp_path, runs, tracker):
    seen = _watched(tmp_path, "record", tracker, str(runs / "one"), "loud")
    assert seen["asked"] + (seen["packets"] or [])


def test_packets_of_other_processes_are_seen(tmp_path):
    seen = _watched(tmp_path, "call", "192.0.2.1")
    if seen["packets"] is None:
        pytest.skip("this system does not allow a network of one's own; only what Python asks for is seen here")
    assert seen == {"asked": [], "packets": ["192.0.2.1:80"], "printed": "", "code": 0}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Sweeps over a network and a plain model on notes with canaries: without a tracker, then with each."""
    folder = tmp_path_factory.mktemp("swept")
    table = pl.read_csv(write_manifest(folder / "data", n=90) / "manifest.csv", infer_schema=False)
    places = zip(("note", "stay", "patient"), CANARIES, strict=True)
    table = table.with_columns(pl.col(name).str.replace("^", f"{canary} ") for name, canary in places)
    table.write_csv(folder / "data" / "manifest.csv")
    return folder, _watched(folder, "sweep", str(folder), str(folder / "data"))


@pytest.mark.slow
def test_training_asks_for_no_network_with_or_without_trackers(swept):
    assert (swept[1]["asked"], swept[1]["packets"] or []) == ([], [])


@pytest.mark.slow
def test_a_tracker_is_imported_when_it_is_asked_for(swept):
    lines = [line for line in swept[1]["printed"].splitlines() if line.startswith("imported by")]
    assert lines == [
        "imported by :",
        "imported by tensorboard: tensorboardX",
        "imported by mlflow: tensorboardX mlflow",
        "imported by wandb: tensorboardX mlflow wandb",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS)
def test_each_run_of_a_sweep_is_tracked_to_its_report(swept, tracker):
    for name in ("soft_moe-seed0", "logistic_regression-seed0"):
        run = swept[0] / tracker / name
        report, found = json.loads((run / "report.json").read_text()), tracked.READERS[tracker](run)
        figures = {key: value for key, _, value in found}
        for part in ("overall", "head_mean", "tail_mean"):
            assert figures[f"held_out/{part}/accuracy"] == pytest.approx(report[part]["accuracy"], rel=1e-6)
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [(record["step"], record["train/loss"]) for record in records if "train/loss" in record]
        tracked_losses = [(step, value) for key, step, value in found if key == "train/loss"]
        assert tracked_losses == [(step, pytest.approx(value, rel=1e-6)) for step, value in losses]
        assert bool(losses) is (name == "soft_moe-seed0")


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_those_of_one_experiment(swept):
    runs = tracked.mlflow_runs(swept[0] / "mlflow")
    assert runs.keys() == {"soft_moe-seed0", "logistic_regression-seed0"}
    assert {(run.experiment, run.info.status) for run in runs.values()} == {("manifest-data", "FINISHED")}


@pytest.mark.slow
def test_trackers_hold_nothing_of_patients(swept):
    stores = [swept[0] / "mlflow" / "mlflow.db"]
    stores += [path for kind in ("wandb", "tensorboard") for path in (swept[0] / kind).glob(f"*/{kind}/**/*")]
    contents = [path.read_bytes() for path in stores if path.is_file()]
    assert len(contents) >= 1 + 2 * 4 + 2
    assert not [canary for canary in CANARIES for content in contents if canary.encode() in content]
    held = (swept[0] / "mlflow" / "soft_moe-seed0" / "predictions.parquet").read_bytes()
    assert CANARIES[1].encode() in held  # which is what must stay in the run's folder
