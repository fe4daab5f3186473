"""A run whose data have changed is refused by what has changed, or begins anew as if the folder had been empty."""

import json
import os
import pathlib
import shutil
import signal

import numpy as np
import polars as pl
import pytest

from remind_jax import cli, main
from remind_jax.analysis import opening
from remind_jax.data import builder, dataset, memory
from remind_jax.data.memory import Memory
from remind_jax.errors import UserError
from remind_jax.runtime import files
from remind_jax.runtime.signals import Stopped
from remind_jax.training import adaptation, loop
from remind_jax.training.run_folder import DATA, remembered
from tests import tiny_runs
from tests.data.changes import add_patients, change_a_cell, change_a_label
from tests.data.manifest_files import write_manifest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]
CHANGES = {"data__max_tokens": 8, "data__vocabulary": 64, "eval__bootstrap": 20, "train__evaluate_every": 0.5}
LEFT_OUT = {"data__leave_out": "('note+icd',)"}
RNG = np.random.default_rng(0)


def _arguments(folder: pathlib.Path, run: str | pathlib.Path = "run", method: str = "remind", **changes) -> list[str]:
    made = tiny_runs.own_arguments(folder / "data", folder / "cache", method, **CHANGES | changes)
    return [*made, f"--workdir={folder / run}"]


def _stop(arguments: list[str], monkeypatch, step: int = 4) -> None:
    """Stops the run at a step, as a scheduler does."""
    take = loop.Trainer._take

    def stopping(trainer, recorder, at, *rest, **options):
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)
        take(trainer, recorder, at, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_take", stopping)
        with pytest.raises(Stopped):
            main.main(arguments)


def _copied(source: pathlib.Path, folder: pathlib.Path, run: str = "run", data: pathlib.Path | None = None):
    """A copy of data, cache and a run on them, which says that it was always there, or on those of another folder."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    file = folder / run / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["data"] |= {name: str((data or folder) / place) for name, place in (("root", "data"), ("cache", "cache"))}
    file.write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory, quick_compilation):
    folder = tmp_path_factory.mktemp("stopped")
    write_manifest(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        _stop(_arguments(folder), patch)
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """The folder of data, a run on them that was stopped, and its cache."""
    return _copied(stopped_once, tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick_compilation):
    """A finished run, and one of a plain model."""
    folder = tmp_path_factory.mktemp("finished")
    write_manifest(folder / "data")
    for method in ("remind", "logistic_regression"):
        main.main(_arguments(folder, method, method, **LEFT_OUT))
    return folder


@pytest.fixture(scope="module")
def alone(finished, tmp_path_factory):
    """Those data with another label, and a run that has seen no others."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(finished / "data", folder / "data")
    change_a_label(folder / "data", RNG)
    main.main(_arguments(folder, "alone", **LEFT_OUT))
    return folder


def _digests(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.parent.name != ".owner"
    }


def _same(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether two runs have the same records, times apart, report and predictions, bit for bit."""

    def records(run):
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [{key: x for key, x in json.loads(line).items() if key != "time/step_ms"} for line in lines]

    tables = [pl.read_parquet(run / "predictions.parquet") for run in (one, other)]
    same_report = (one / "report.json").read_bytes() == (other / "report.json").read_bytes()
    return records(one) == records(other) and same_report and tables[0].equals(tables[1])


def test_the_first_record_has_the_digests_and_the_file_beside_it_is_private(finished):
    for method in ("remind", "logistic_regression"):
        first = json.loads((finished / method / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
        assert list(first) == ["step", "stage", *(f"data/{name}" for name in ("manifest", "split", "groups", "kinds"))]
        assert first["step"] == 0
        report = json.loads((finished / method / "report.json").read_text(encoding="utf-8"))
        assert remembered(finished / method)["split"] == report["split_digest"]
        assert (finished / method / DATA).stat().st_mode & 0o777 == 0o600


def test_three_patients_added_after_a_stop_are_not_trained_on_in_silence(stopped, monkeypatch, capsys):
    """As it was measured: the run went on, and 11 of 17 patients that it said were held out had been trained on."""
    before = _digests(stopped / "run")
    add_patients(stopped / "data", RNG)
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["train", *_arguments(stopped)])
    with pytest.raises(SystemExit) as ended:
        cli.run(main.main, None)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1
    assert error.startswith(f"error: the data have changed since the run in {stopped / 'run'} began: rows added 3, ")
    assert "rows moved between splits" in error
    assert "choose another workdir" in error
    assert "--on-changed-data=restart" in error
    after = _digests(stopped / "run")
    environment = str(stopped / "run" / "environment.json")
    assert {**before, environment: b""} == {**after, environment: b""}
    assert not (stopped / "run" / "report.json").exists()


def test_a_restart_is_the_run_of_the_new_data_alone(stopped):
    old = remembered(stopped / "run")["manifest"][:16]
    assert list((stopped / "cache").glob(f"{old}-*-{builder._VERSION}"))
    change_a_label(stopped / "data", RNG)
    main.main([*_arguments(stopped), "--on-changed-data=restart"])
    assert list((stopped / "cache").glob(f"{old}*/")) == []
    main.main(_arguments(stopped, "alone"))
    assert _same(stopped / "run", stopped / "alone")
    # The data stay as they are: the flag does no more harm.
    before = _digests(stopped / "run")
    main.main([*_arguments(stopped), "--on-changed-data=restart"])
    assert {**before, str(stopped / "run" / "environment.json"): b""} == {
        **_digests(stopped / "run"),
        str(stopped / "run" / "environment.json"): b"",
    }


@pytest.mark.parametrize("at", ["report.json", "model", "checkpoints", DATA, "metrics.jsonl"])
def test_a_restart_that_is_killed_leaves_no_mixture(finished, alone, at, tmp_path, monkeypatch):
    """Wherever it is broken off, the folder is still that of the old data, or empty."""
    _copied(finished, tmp_path, "remind", data=alone)
    arguments = _arguments(alone, tmp_path / "remind", **LEFT_OUT)

    class Killed(BaseException):
        pass

    def killing(original):
        def remove(path, *rest, **options):
            if pathlib.Path(path).name == at:
                raise Killed
            return original(path, *rest, **options)

        return remove

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killing(shutil.rmtree))
        patch.setattr(pathlib.Path, "unlink", killing(pathlib.Path.unlink))
        patch.setattr(files, "write_bytes", killing(files.write_bytes))
        with pytest.raises(Killed):
            main.main([*arguments, "--on-changed-data=restart"])
    with pytest.raises(UserError, match=r"have changed since .* labels changed 1|have changed since .* contents"):
        main.main(arguments)
    assert (tmp_path / "remind" / "report.json").exists() is (at == "report.json")
    main.main([*arguments, "--on-changed-data=restart"])
    assert _same(tmp_path / "remind", alone / "alone")


@pytest.mark.parametrize("method", ["remind", "logistic_regression"])
def test_a_finished_run_on_other_data_is_not_shown_as_theirs(finished, method, tmp_path, capsys, monkeypatch):
    arguments = _arguments(finished, method, method, **LEFT_OUT)
    main.main(arguments)
    with monkeypatch.context() as patch:
        # As long as the files look as they did, no row is read.
        patch.setattr("remind_jax.data.dataset.read", lambda config: pytest.fail("the data were read"))
        main.main(arguments)
    assert "is a finished run" in capsys.readouterr().out
    table = (finished / "data" / "manifest.csv").read_bytes()
    change_a_cell(finished / "data", RNG)
    try:
        with pytest.raises(UserError, match=r"have changed since the run in .* cells changed in \w+ 1"):
            main.main(arguments)
    finally:
        (finished / "data" / "manifest.csv").write_bytes(table)
    # Written anew with what was there, they are looked at once.
    main.main(arguments)
    assert "is a finished run" in capsys.readouterr().out
    stamp = memory.stamp(*memory.places(cli.parse_config(arguments)[0].data))
    assert memory.kept_stamp(finished / method / DATA) == stamp


def test_a_finished_run_whose_data_are_gone_is_shown(finished, tmp_path, capsys):
    shutil.rmtree(_copied(finished, tmp_path, "remind") / "data")
    main.main(_arguments(tmp_path, "remind", **LEFT_OUT))
    assert "is a finished run" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [True, False])
def test_analyses_and_adaptation_refuse_changed_data_in_the_same_words(finished, tmp_path, kept):
    """Also of a run that keeps its digests only, and of one of older versions, which has those of its report."""
    run = tmp_path / "run"
    shutil.copytree(finished / "remind", run)
    table = (finished / "data" / "manifest.csv").read_bytes()
    assert opening.open_run(run).data.manifest.table.height == 60
    add_patients(finished / "data", RNG)
    if not kept:
        (run / DATA).unlink()
        (run / "metrics.jsonl").write_text("")
    told = "rows added 3, " if kept else "split, fitted preprocessing"
    try:
        with pytest.raises(UserError, match=f"the data have changed since the run in {run} was trained: {told}"):
            opening.open_run(run)
        with pytest.raises(UserError, match=f"the data have changed since the run in {run} was trained: {told}"):
            adaptation.own_data(adaptation.open_single(run))
    finally:
        (finished / "data" / "manifest.csv").write_bytes(table)


def test_a_run_of_an_older_version_goes_on_and_remembers(stopped, capsys):
    records = (stopped / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (stopped / "run" / "metrics.jsonl").write_text("".join(f"{line}\n" for line in records[1:]))
    (stopped / "run" / DATA).unlink()
    main.main(_arguments(stopped))
    assert "does not tell which data it began with" in capsys.readouterr().out
    assert (stopped / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0] == records[0]
    assert Memory.read(stopped / "run" / DATA).digests == remembered(stopped / "run")


def test_what_others_use_stays_in_the_cache(stopped, monkeypatch):
    """Another run reads the rows of the old data while this one begins anew."""
    digest = remembered(stopped / "run")["manifest"]
    folder = next((stopped / "cache").glob(f"{digest[:16]}-*-{builder._VERSION}"))
    kept = stopped / "cache" / builder.features_name(digest, "1" * 64) / "train"
    kept.mkdir(parents=True)
    (kept.parent / "train.lock").touch()
    with (stopped / "cache" / f"{folder.name}.lock").open("a") as file:
        assert files.try_lock(file.fileno(), shared=True)
        builder.forget(stopped / "cache", digest)
        assert folder.is_dir()
        assert not kept.parent.exists()
    builder.forget(stopped / "cache", digest)
    assert not folder.exists()


def test_rows_that_are_read_are_in_use(stopped):
    fitted = dataset.fit(cli.parse_config(_arguments(stopped))[0])
    columns = builder.prepare(fitted.manifest, fitted.preprocessor, stopped / "cache")
    builder.forget(stopped / "cache", fitted.manifest.digest)
    assert {column.folder.is_dir() for column in columns.values()} == {True}
