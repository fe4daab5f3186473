"""The run folder: what survives a kill, and when a folder is refused."""

import contextlib
import json
import os
import pathlib
import string

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remind_jax.errors import UserError
from remind_jax.runtime import files
from remind_jax.runtime.files import config_digest
from remind_jax.training import run_folder
from remind_jax.training.run_folder import RunFolder

CONFIG = {"seed": 0, "optim": {"lr": 0.1, "clip": 1.0}, "data": {"fractions": (0.7, 0.1, 0.2)}}
REPORT = {"split": "held_out"}


@pytest.fixture
def folder(tmp_path):
    opened = RunFolder(tmp_path / "deep" / "run", CONFIG)
    yield opened
    opened.close()


def _lines(folder: RunFolder) -> list[str]:
    return (folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def test_new_folder_holds_config_environment_and_no_records(folder):
    assert json.loads((folder.path / "config.json").read_text()) == CONFIG | {"data": {"fractions": [0.7, 0.1, 0.2]}}
    environment = json.loads((folder.path / "environment.json").read_text())
    assert environment.keys() >= {"python", "packages", "devices", "commit"}
    assert environment["packages"]["jax"]
    assert environment["devices"] == ["cpu:cpu"] * 4
    assert folder.history() == []
    assert folder.report() is None


def test_records_are_on_disk_as_soon_as_they_are_logged(folder):
    folder.log({"step": 1, "stage": "joint", "train/loss": 0.1 + 0.2})
    folder.log({"step": 2, "stage": "joint", "eval/auroc": None})
    assert [json.loads(line) for line in _lines(folder)] == folder.history()
    assert folder.history()[0]["train/loss"] == 0.1 + 0.2  # all digits
    assert folder.history()[1]["eval/auroc"] is None


def test_rewind_forgets_later_records_and_a_torn_last_line(folder):
    for step in (10, 10, 20, 30):
        folder.log({"step": step, "stage": "joint"})
    folder.close()
    with open(folder.path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 15, "stage": "jo')
    again = RunFolder(folder.path, CONFIG)
    again.rewind(20)
    again.log({"step": 21, "stage": "specialize"})
    again.close()
    assert [record["step"] for record in again.history()] == [10, 10, 20, 21]
    assert again.history()[-1]["stage"] == "specialize"


def test_a_torn_last_line_is_no_record_of_a_folder_that_is_opened_again(folder):
    folder.log({"step": 10})
    folder.close()
    with open(folder.path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 15, "stage": "jo')
    again = RunFolder(folder.path, CONFIG)
    assert again.history() == [{"step": 10}]
    again.log({"step": 11})
    assert again.history() == [{"step": 10}, {"step": 11}]
    again.close()


def test_a_folder_has_one_owner_at_a_time_and_is_its_owners_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.reports, "write_html", lambda file, *rest: files.write_text(file, "page"))
    before = os.umask(0)
    try:
        with run_folder.opened(tmp_path / "run", CONFIG) as folder:
            (folder.path / "report.json.tmp-0123").touch()
            with pytest.raises(UserError, match=f"run is in use by process {os.getpid()} on "):
                run_folder.opened(tmp_path / "run", CONFIG).__enter__()
            folder.finish(REPORT, pl.DataFrame({"p": [0.5]}))
        assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "run" / "predictions.parquet").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    with run_folder.opened(tmp_path / "run", CONFIG) as again:
        assert json.loads((again.path / "report.json").read_text(encoding="utf-8")) == REPORT
        assert not list(again.path.glob("*.tmp-*"))  # what a killed one left


def test_links_in_a_run_folder_lead_nowhere_and_the_folder_may_be_one(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.reports, "write_html", lambda file, *rest: files.write_text(file, "page"))
    names = ("report.json", "report.html", "predictions.parquet", "config.json", "environment.json")
    (tmp_path / "bigger disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "bigger disk")
    for name in names:
        (tmp_path / name).write_text("{}")
        (tmp_path / "run" / name).symlink_to(tmp_path / name)
    with run_folder.opened(tmp_path / "run", CONFIG) as folder:
        folder.log({"step": 1})
        folder.finish(REPORT, pl.DataFrame({"p": [0.5]}))
    assert {(tmp_path / name).read_text() for name in names} == {"{}"}
    assert not any((tmp_path / "bigger disk" / name).is_symlink() for name in names)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "report.json")
    with pytest.raises(UserError, match=r"metrics\.jsonl is a link"):
        run_folder.opened(tmp_path / "run", CONFIG).__enter__()
    assert (tmp_path / "report.json").read_text() == "{}"


def test_rewind_to_the_start_forgets_everything(folder):
    folder.log({"step": 1, "stage": "joint"})
    folder.rewind(0)
    assert folder.history() == []


def test_same_config_reopens_with_keys_in_any_order(folder):
    reordered = {"data": {"fractions": [0.7, 0.1, 0.2]}, "optim": {"clip": 1.0, "lr": 0.1}, "seed": 0}
    folder.log({"step": 1, "stage": "joint"})
    again = RunFolder(folder.path, reordered)
    again.close()
    assert again.history() == [{"step": 1, "stage": "joint"}]


@pytest.mark.parametrize(
    ("now", "named"),
    [
        (CONFIG | {"seed": 1}, "seed (0 there, 1 now)"),
        (CONFIG | {"optim": {"lr": 0.2, "clip": 1.0}}, "optim.lr (0.1 there, 0.2 now)"),
        (CONFIG | {"optim": {"lr": 0.1}}, "optim.clip (1.0 there, None now)"),
        (CONFIG | {"parallel": "pmap"}, "parallel (None there, 'pmap' now)"),
        (CONFIG | {"data": {"fractions": (0.6, 0.2, 0.2)}}, "data.fractions"),
    ],
)
def test_another_config_is_refused_by_its_keys_and_changes_nothing(folder, now, named):
    before = (folder.path / "config.json").read_bytes()
    folder.log({"step": 1, "stage": "joint"})
    with pytest.raises(UserError) as refusal:
        RunFolder(folder.path, now)
    message = str(refusal.value)
    assert named in message
    assert str(folder.path) in message
    assert "\n" not in message
    unchanged = {"seed", "optim.lr", "optim.clip", "data.fractions"} - {named.split(" ")[0]}
    assert not [key for key in unchanged if f"{key} (" in message]
    assert (folder.path / "config.json").read_bytes() == before
    assert folder.history() == [{"step": 1, "stage": "joint"}]


def test_many_differences_are_counted(tmp_path):
    folder = RunFolder(tmp_path, {f"k{i}": 0 for i in range(12)})
    folder.log({"step": 1, "stage": "joint"})
    folder.close()
    with pytest.raises(UserError, match="and 4 more"):
        RunFolder(tmp_path, {f"k{i}": 1 for i in range(12)})


def test_a_run_that_never_began_is_no_obstacle(folder):
    """The first command failed before it trained, on its data say; the mended one may use the same folder."""
    folder.close()
    RunFolder(folder.path, CONFIG | {"seed": 1}).close()
    assert json.loads((folder.path / "config.json").read_text())["seed"] == 1


def test_damaged_config_is_refused(tmp_path):
    folder = RunFolder(tmp_path, CONFIG)
    folder.log({"step": 1, "stage": "joint"})
    folder.close()
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(UserError, match=r"config\.json is damaged .*: choose another workdir"):
        RunFolder(tmp_path, CONFIG)


# Root may write anywhere, so these folders cannot exist for anyone: below a file, and below a kernel file system.
@pytest.mark.parametrize("parent", ["file", "/proc/self"])
def test_unwritable_folder_is_named(tmp_path, parent):
    (tmp_path / "file").write_text("")
    path = pathlib.Path(os.path.join(tmp_path, parent)) / "run"
    with pytest.raises(UserError, match="cannot write to workdir") as refusal:
        RunFolder(path, CONFIG)
    assert str(path) in str(refusal.value)


def test_keys_that_decide_no_figure_may_change_and_old_ones_may_be_gone(folder):
    folder.log({"step": 1, "stage": "joint"})
    config = json.loads((folder.path / "config.json").read_text())
    (folder.path / "config.json").write_text(json.dumps(config | {"train": {"tensorboard": True}}))
    RunFolder(folder.path, CONFIG | {"train": {"track": "tensorboard"}}).close()
    with pytest.raises(UserError, match=r"train\.epochs"):
        RunFolder(folder.path, CONFIG | {"train": {"track": "", "epochs": 2.0}})


def test_a_key_that_is_newer_than_the_folder_has_had_its_default(folder):
    folder.log({"step": 1, "stage": "joint"})
    RunFolder(folder.path, CONFIG | {"data": {**CONFIG["data"], "split": "stratified", "leave_out": ()}}).close()
    with pytest.raises(UserError, match=r"data\.split \(None there, 'hash' now\)"):
        RunFolder(folder.path, CONFIG | {"data": {**CONFIG["data"], "split": "hash"}})


_VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(string.printable, max_size=4)
_CONFIGS = st.dictionaries(st.sampled_from("abcdef"), _VALUES | st.dictionaries(st.sampled_from("xyz"), _VALUES))


def _reversed(tree):
    return {key: _reversed(tree[key]) for key in reversed(tree)} if isinstance(tree, dict) else tree


@given(_CONFIGS)
def test_digest_does_not_depend_on_key_order(config):
    assert config_digest(config) == config_digest(_reversed(config))


@given(_CONFIGS, _CONFIGS)
def test_digest_tells_configs_apart(first, second):
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (config_digest(first) == config_digest(second)) == same


def test_digest_is_short_hex_and_fixed():
    # printf '{"a": 1}' | sha256sum
    assert config_digest({"a": 1}) == "f9d86028c6e0d64e"


@pytest.mark.parametrize("content", [b"", b"{", b'{"data": "x",', b"\0" * 100])
def test_an_empty_or_cut_report_is_a_run_that_goes_on(tmp_path, content):
    with contextlib.closing(RunFolder(tmp_path, {"seed": 0})) as folder:
        (tmp_path / "report.json").write_bytes(content)
        assert folder.report() is None
        (tmp_path / "report.json").write_bytes(b"{}")
        with pytest.raises(UserError, match=r"report\.json is damaged \(it lacks data\): remove it"):
            folder.report()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"x", "Expecting value"),
        (b"[]", "no mapping"),
        (b'{"step": -1}', "step"),
        (b'{"step": 1, "a": []}', "a key that"),
    ],
)
def test_a_line_that_is_no_record_is_named_and_one_cut_at_the_end_is_passed_over(tmp_path, line, says):
    with contextlib.closing(RunFolder(tmp_path, {"seed": 0})) as folder:
        folder.log({"step": 1, "stage": "joint", "train/loss": float("nan")})
        folder.log({"step": 2, "stage": "joint"})
        file = tmp_path / "metrics.jsonl"
        whole = file.read_bytes()
        file.write_bytes(whole + b'{"step": 3, "sta')
        assert [record["step"] for record in folder.history()] == [1, 2]
        file.write_bytes(line + b"\n" + whole)
        with pytest.raises(UserError, match=rf"line 1 of .*metrics\.jsonl is no record \(.*{says}"):
            folder.history()
