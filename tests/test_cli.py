"""Every mistake at the command line: one line on stderr that names the culprit, exit code 2, no traceback."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from remind_jax import cli, main
from remind_jax.errors import NotFiniteError, UserError
from remind_jax.inference import model_folder
from remind_jax.runtime import signals
from tests import tiny_runs
from tests.data.manifest_files import write_manifest

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
ROOT = tiny_runs.ROOT
MIMIC = f"--config={ROOT}/configs/mimic.py"
MANIFEST = f"--config={ROOT}/configs/manifest.py"


def _run(monkeypatch, capsys, command, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command run in this process as if started from a shell."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    code = 0
    try:
        cli.run(command, "Usage text.")
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize(("given", "found"), [(None, "3"), ("0", "0")])
def test_a_command_keeps_lines_of_xla_back_unless_it_is_told_to_show_them(monkeypatch, capsys, given, found):
    monkeypatch.delenv(cli.XLA_LINES, raising=False)
    if given is not None:
        monkeypatch.setenv(cli.XLA_LINES, given)
    seen = []
    assert _run(monkeypatch, capsys, lambda arguments: seen.append(os.environ[cli.XLA_LINES]))[0] == 0
    assert seen == [found]


def test_training_loads_xla_after_that():
    code = "import sys, remind_jax.main, remind_jax.sweep; print([m for m in sys.modules if m.startswith('jax')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---- The command line itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ("no config", "--config=")),
        (["--workdir=x"], ("no config",)),
        (["--config="], ("no config",)),
        (["--config"], ("no config",)),
        ([f"--config={ROOT}/configs/nhanse.py"], ("nhanse.py", "does not exist", "nhanes.py?")),
        ([f"--config={ROOT}/configs/mine.py"], ("mine.py", "There are", "manifest.py", "mimic.py")),
        ([f"--config={ROOT}/nowhere/zzz.py"], ("zzz.py", "does not exist", "of the package are arena, eicu", "nhanes")),
        (["--config=nowhere/nhanes.py"], ("nowhere/nhanes.py", "does not exist")),
        (["--config=mimc"], ("no config mimc", "did you mean 'mimic'", "embed, events, fprm")),
        (["--config=mimc.py"], ("mimc.py", "does not exist", "of the package are arena, eicu, embed, ")),
        (["--config=nhanes:size=paper", "--quick"], ("--quick is a size of its own",)),
        (["--config=nhanes", "--quick=1"], ("--quick",)),
        ([f"--config={ROOT}/configs"], ("configs", "does not exist")),
        ([f"{MIMIC}:method=remnd"], ("'remnd'", "did you mean 'remind'")),
        ([f"{MIMIC}:size=huge"], ("'huge'", "small, paper")),
        ([f"{MIMIC}:sise=small"], ("'sise'", "did you mean 'size'")),
        ([f"{MIMIC}:remind"], ("'remind'", "method, size")),
        ([MIMIC, "--config.optim.lrr=1e-3"], ("optim.lrr", "did you mean 'lr'", "optim has clip, decay")),
        ([MIMIC, "--config.optin.lr=1e-3"], ("optin.lr", "did you mean 'optim'")),
        ([MIMIC, "--config.sede=1"], ("sede", "did you mean 'seed'", "a config has chosen_among, compilation_cache")),
        ([MIMIC, "--config.optim.lr=fast"], ("config.optim.lr", "fast")),
        ([MIMIC, "--config.train.batch_size=1.5"], ("config.train.batch_size", "1.5")),
        ([MIMIC, "--config.fusion.residual=perhaps"], ("config.fusion.residual", "perhaps")),
        ([MIMIC, "--config.optim.lr="], ("config.optim.lr",)),
        ([MIMIC, "--config.optim=1"], ("optim",)),
        ([MIMIC, "train"], ("unexpected arguments", "train")),
        ([MIMIC, "--", "config.seed=1"], ("unexpected arguments", "config.seed=1")),
        ([MIMIC, "--wrokdir=x"], ("unknown option --wrokdir (did you mean '--workdir'?)",)),
        ([MIMIC, "--optim.lr=1"], ("unknown option --optim.lr (did you mean '--config.optim.lr'?)",)),
        ([MIMIC, "--config.method=group_dro"], ("method", ":method=group_dro")),
        ([MIMIC, "--config.size=paper"], ("size", ":size=paper")),
    ],
)
def test_mistakes_are_named_in_one_line(monkeypatch, capsys, tmp_path, arguments, parts):
    monkeypatch.chdir(tmp_path)
    code, out, err = _run(monkeypatch, capsys, cli.parse_config, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert len(err) < 600
    assert "Traceback" not in err
    for part in parts:
        assert part in err
    assert list(tmp_path.iterdir()) == []


def _parser() -> cli.Parser:
    parser = cli.Parser("python -m it --workdir=RUN")
    parser.add_argument("--workdir", default="")
    parser.add_number("--batch-size", 8, 1)
    parser.add_number("--rate", 0.5, 0.0)
    return parser


def test_options_of_a_command_leave_those_of_the_config():
    given = ["--config=a.py:b=c", "--batch-size", "3", "--config.seed", "7", "--rate=0.25"]
    options, rest = _parser().parse_known_args(given)
    assert vars(options) == {"workdir": "", "batch_size": 3, "rate": 0.25}
    assert rest == ["--config=a.py:b=c", "--config.seed", "7"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--batch-size=0", "--batch-size=0 must be at least 1"),
        ("--rate=nan", "--rate=nan must be at least 0.0"),
        ("--batch-size=1.5", "argument --batch-size: invalid int value: '1.5' (usage: python -m it --workdir=RUN)"),
        ("--work=x", "unknown option --work (did you mean '--workdir'?); options: --workdir, --batch-size, --rate"),
        ("more", "unexpected arguments: more; options start with --"),
        ("--workdir", "argument --workdir: expected one argument"),
    ],
)
def test_options_that_cannot_be_read_are_named(argument, message):
    with pytest.raises(UserError) as error:
        _parser().parse_args([argument])
    assert str(error.value).startswith(message)


def test_commands_about_runs_take_folders_and_options():
    paths, options = cli.parse_runs(
        ["--workdir=a", "--also=b,c", "--n=3", "--rate=0.5", "--split=tuning"],
        strings={"keep-what": "all"},
        integers={"n": (1, 1)},
        floats={"rate": (0.0, 0.0)},
        choices={"split": ("held_out", "tuning")},
    )
    assert paths == [pathlib.Path("a"), pathlib.Path("b"), pathlib.Path("c")]
    assert options == {"keep_what": "all", "n": 3, "rate": 0.5, "split": "tuning"}
    for arguments, message in (
        ([], "no run: give its folder"),
        (["--workdir=a", "--also=./a"], "name a run twice"),
        (["--workdir=a", "--split=all"], "argument --split: invalid choice: 'all'"),
    ):
        with pytest.raises(UserError, match=message):
            cli.parse_runs(arguments, choices={"split": ("held_out", "tuning")})


def test_good_arguments_reach_the_config():
    flags = [
        "--config.optim.lr=1e-3",
        "--config.seed",
        "7",
        "--config.fusion.residual=false",
        "--workdir",
        "some/where",
    ]
    config, workdir = cli.parse_config([f"{MIMIC}:method=soft_moe", *flags, "--config.groups.tail=('icd',)"])
    assert (config.method, config.optim.lr, config.seed, config.fusion.residual) == ("soft_moe", 1e-3, 7, False)
    assert config.groups.tail == ("icd",)
    assert workdir == pathlib.Path("some/where")


def test_default_workdir_tells_runs_apart():
    assert str(cli.parse_config([MIMIC])[1]) == "runs/mimic-remind-seed0"
    other = cli.parse_config([f"{MIMIC}:method=group_dro", "--config.seed=3"])[1]
    assert str(other) == "runs/mimic-group_dro-seed3"


def test_later_configs_in_one_process_start_from_their_own_defaults():
    assert cli.parse_config([MIMIC, "--config.seed=9"])[0].seed == 9
    assert cli.parse_config([MIMIC])[0].seed == 0


def test_a_config_file_may_lie_anywhere(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    text = (ROOT / "configs" / "mimic.py").read_text(encoding="utf-8")
    (tmp_path / "mine" / "ours.py").write_text(
        text.replace("    return config", "    config.seed = 77\n    return config")
    )
    monkeypatch.setattr(sys, "path", [path for path in sys.path if pathlib.Path(path or ".").resolve() != ROOT])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert cli.parse_config(["--config=../mine/ours.py"])[0].seed == 77


@pytest.mark.parametrize("name", ["nhanes", "nhanes.py", "configs/nhanes.py", "./configs/nhanes.py"])
def test_a_config_of_the_package_is_found_from_any_folder(tmp_path, monkeypatch, name):
    (tmp_path / "nhanes").mkdir()  # a folder, such as that of a run, is no config
    monkeypatch.chdir(tmp_path)
    config, workdir = cli.parse_config([f"--config={name}:method=soft_moe", "--config.seed=3"])
    assert (config.data.source, config.method, config.seed) == ("nhanes", "soft_moe", 3)
    assert str(workdir) == "runs/nhanes-soft_moe-seed3"
    assert cli.find_config(name).is_absolute()


def test_a_file_that_is_there_comes_before_the_package(tmp_path, monkeypatch):
    text = (ROOT / "configs" / "nhanes.py").read_text(encoding="utf-8")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "nhanes.py").write_text(
        text.replace("    return config", "    config.seed = 77\n    return config")
    )
    monkeypatch.chdir(tmp_path)
    assert cli.parse_config(["--config=configs/nhanes.py"])[0].seed == 77
    assert cli.parse_config(["--config=nhanes"])[0].seed == 0


def test_configs_of_a_wheel_come_before_those_of_a_clone():
    assert cli.config_names() == sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    assert cli.CONFIGS == ROOT / "configs"  # tests/test_packaging.py looks at a wheel


def test_a_smoke_run_is_a_size_with_a_folder_of_its_own():
    config, workdir = cli.parse_config(["--config=nhanes:method=soft_moe", "--quick", "--config.train.epochs=2.0"])
    assert (config.size, config.method, str(workdir)) == ("quick", "soft_moe", "runs/nhanes-soft_moe-seed0-quick")
    assert config.train.epochs == 2.0  # what is set one by one stays
    same = cli.parse_config(["--config=nhanes:method=soft_moe,size=quick", "--config.train.epochs=2.0"])
    assert (same[0].to_dict(), same[1]) == (config.to_dict(), workdir)
    given = cli.read_config(["--quick", "--config=nhanes"])
    assert (given.of_method("reweigh").size, given.of_method("reweigh").eval.bootstrap) == ("quick", 50)


def test_help_prints_usage(monkeypatch, capsys):
    def fail(arguments):
        raise AssertionError("help must not run the command")

    for flag in ("--help", "-h"):
        assert _run(monkeypatch, capsys, fail, flag, MIMIC) == (0, "Usage text.\n", "")


def test_training_that_is_not_finite_has_a_code_of_its_own(monkeypatch, capsys):
    def command(arguments):
        raise NotFiniteError("not finite at step 3")

    assert _run(monkeypatch, capsys, command) == (17, "", "error: not finite at step 3\n")


def test_a_message_of_many_lines_becomes_one(monkeypatch, capsys):
    def command(arguments):
        raise UserError("first\n  second\tthird")

    assert _run(monkeypatch, capsys, command) == (2, "", "error: first second third\n")


def test_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def command(arguments):
        raise KeyboardInterrupt

    code, _, err = _run(monkeypatch, capsys, command)
    assert code == 130
    assert err.count("\n") == 1
    assert "same command" in err


def test_a_run_that_a_signal_has_ended_exits_with_its_code(monkeypatch, capsys):
    for number, expected in ((signal.SIGTERM, 143), (signal.SIGUSR1, 75)):

        def command(arguments, number=number):
            raise signals.Stopped(number)

        code, _, err = _run(monkeypatch, capsys, command)
        assert code == expected
        assert err == "stopped; run the same command again to go on\n"


_SLOW = """
import time
from remind_jax import cli
def command(arguments):
    print("begun", flush=True)
    time.sleep(60)
cli.run(command, "")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_any_command_in_one_line(number):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", _SLOW], env=environment, **streams) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.stderr.readline() == "stopped; run the same command again to go on\n"
        process.send_signal(number)  # while the process winds up
        assert process.wait(60) == signals.CODES[number]
        assert process.stderr.read() == ""


_LATE = """
from remind_jax import cli
from remind_jax.errors import UserError
class Writer:
    def __del__(self):
        raise RuntimeError("Event loop is closed")
def command(arguments):
    global writer
    writer = Writer()
    {end}
cli.run(command, "")
"""


@pytest.mark.parametrize(("end", "shown"), [("raise UserError('no room')", False), ("pass", True)])
def test_what_fails_behind_an_error_that_was_told_adds_nothing(end, shown):
    """As writes of a checkpoint do that come to their end after a full disk has ended the run."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _LATE.replace("{end}", end)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert ("Event loop is closed" in done.stderr) == shown
    assert shown or done.stderr == "error: no room\n"


# A broken pipe that is not standard output is a defect as well.
@pytest.mark.parametrize("defect", [ZeroDivisionError, BrokenPipeError])
def test_defects_of_the_program_keep_their_traceback(monkeypatch, defect):
    def command(arguments):
        raise defect

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(defect):
        cli.run(command, "")


# ---- What the main command finds later -------------------------------------------------------------------------------


def _tiny(tmp_path: pathlib.Path, **changes) -> list[str]:
    return [*tiny_runs.arguments(tmp_path / "cache", **changes), f"--workdir={tmp_path / 'run'}"]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"seed": -1}, ("seed=-1", "at least 0")),
        ({"train__batch_size": 0}, ("train.batch_size=0", "at least 1")),
        ({"optim__lr": 0.0}, ("optim.lr=0.0", "above 0")),
        ({"fusion__dropout": 1.0}, ("fusion.dropout=1.0",)),
        ({"fusion__preset": "oficial"}, ("fusion.preset='oficial'", "did you mean 'official'")),
        ({"fusion__gate_metric": "entropie"}, ("fusion.gate_metric", "did you mean 'entropy'")),
        ({"parallel": "pmapp"}, ("parallel='pmapp'", "did you mean 'pmap'")),
        ({"data__source": "nhane"}, ("data.source='nhane'", "did you mean 'nhanes'")),
        ({"model__width": 9}, ("model.width=9", "fusion.heads=2")),
        ({"devices": 99}, ("devices=99",)),
        ({"devices": 4, "train__batch_size": 6}, ("batch_size 6", "4 devices")),
        ({"groups__tail": "('ffdm',)"}, ("'ffdm' is not a modality", "did you mean")),
        ({"data__fractions": "(0.5,0.5)", "data__shift": 1.5}, ("shift", "1.5")),
    ],
)
def test_bad_values_are_refused_by_name(tmp_path, changes, parts):
    with pytest.raises(UserError) as error:
        main.main(_tiny(tmp_path, **changes))
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("parent", ["file", "/proc/self"])
def test_unwritable_workdir_is_named(tmp_path, parent):
    (tmp_path / "file").write_text("")  # below a file nobody can make a folder, root included
    workdir = os.path.join(tmp_path, parent, "run")
    with pytest.raises(UserError, match="cannot write to workdir") as error:
        main.main([*tiny_runs.arguments(tmp_path / "cache"), f"--workdir={workdir}"])
    assert workdir in str(error.value)


def test_unwritable_cache_is_named(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="cache") as error:
        main.main(_tiny(tmp_path))
    assert str(tmp_path / "cache") in str(error.value)


def test_a_misspelt_run_is_named_with_those_beside_it(tmp_path):
    (tmp_path / "nhanes-remind").mkdir()
    (tmp_path / "nhanes-remind" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"did you mean '.*/nhanes-remind'\?\); runs there: "):
        model_folder.read_config(tmp_path / "nhanes-remnd")
    (tmp_path / "nhanes-remind" / "report.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json: data\.source='' is unknown; known: "):
        model_folder.read_config(tmp_path / "nhanes-remind")


def _manifest_command(tmp_path: pathlib.Path, root: str | pathlib.Path) -> list[str]:
    return [MANIFEST, f"--config.data.root={root}", f"--config.data.cache={tmp_path}/c", f"--workdir={tmp_path}/run"]


def test_no_data_folder_is_explained(tmp_path):
    with pytest.raises(UserError, match=r"data\.root is empty.*--config\.data\.root=DIR"):
        main.main(_manifest_command(tmp_path, ""))


def test_missing_data_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="not exist") as error:
        main.main(_manifest_command(tmp_path, tmp_path / "gone"))
    assert "gone" in str(error.value)


def test_folder_without_a_schema_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"schema\.yaml"):
        main.main(_manifest_command(tmp_path, tmp_path / "empty"))


def test_a_mistake_about_the_data_does_not_spoil_the_workdir(tmp_path):
    """The mended command must not be refused because the first, which trained nothing, left its config behind."""
    with pytest.raises(UserError, match=r"data\.root is empty"):
        main.main(_manifest_command(tmp_path, ""))
    with pytest.raises(UserError) as error:
        main.main(_manifest_command(tmp_path, tmp_path / "gone"))
    assert "another config" not in str(error.value)


# ---- As a shell sees it ----------------------------------------------------------------------------------------------


def _shell(*arguments: str, cwd: pathlib.Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "remind_jax.main", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def _assert_one_line(done: subprocess.CompletedProcess, *parts: str) -> None:
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr


def test_misspelt_key_in_a_shell(tmp_path):
    done = _shell(MIMIC, "--config.optim.lrr=1", cwd=tmp_path)
    _assert_one_line(done, "lrr", "'lr'")
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_bad_manifest_in_a_shell_shows_no_patient(tmp_path):
    folder = write_manifest(tmp_path / "data", n=30)
    table = (folder / "manifest.csv").read_text().splitlines()
    table.append(table[1])  # the id of a stay twice
    (folder / "manifest.csv").write_text("\n".join(table) + "\n")
    done = _shell(*_manifest_command(tmp_path, folder), cwd=tmp_path)
    _assert_one_line(done, "E002", "stay")
    for cell in ("s0", "p0", "case 0"):
        assert cell not in done.stderr.replace("'", " ").split()
        assert cell not in done.stdout.split()


_READERLESS = """
import sys
from remind_jax import cli
cli.run(lambda arguments: print("x" * 10**6), "usage " * 10**6)
"""


@pytest.mark.parametrize("arguments", ["", "--help"])
def test_a_reader_that_leaves_ends_a_command_in_silence(arguments):
    """As `| head -3` does."""
    script = f"{sys.executable} -c '{_READERLESS}' {arguments} | head -c 3; echo -n ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout[3:] == str(cli.BROKEN_PIPE)


def test_help_in_a_shell(tmp_path):
    done = _shell("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "\n    remind train --config=nhanes --quick\n" in done.stdout
    assert done.stderr == ""


def test_names_of_others_do_nothing_to_a_terminal(monkeypatch, capsys):
    def command(arguments):
        print("Training \x1b]0;title\x07 on \u202edata")
        raise UserError(f"unknown column {arguments[0]}")

    monkeypatch.setattr(sys, "argv", ["remind", "\x1b[31m\udc80"])
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # put back what `run` wraps
    with pytest.raises(SystemExit) as caught:
        cli.run(command, None)
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == "Training \\x1b]0;title\\x07 on \\u202edata\n"
    assert shown.err == "error: unknown column \\x1b[31m\\udc80\n"


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no device that is full")
def test_an_output_that_is_full_is_one_line():
    code = "from remind_jax import cli; cli.run(lambda arguments: print('x'), None)"
    with open("/dev/full", "w") as full:
        environment, streams = {**os.environ, "PYTHONPATH": str(ROOT)}, {"stdout": full, "stderr": subprocess.PIPE}
        done = subprocess.run([sys.executable, "-c", code], env=environment, **streams, text=True, check=False)
    expected = "error: No space left on device: make space, and run the same command again\n"
    assert (done.returncode, done.stderr) == (2, expected)
