"""The command `remind`: what it starts, what it answers to mistakes, and that its help texts cost nothing."""

import os
import re
import subprocess
import sys
import tomllib

import pytest

from remind_jax import __main__ as console
from remind_jax.errors import UserError
from tests import tiny_runs

COMMANDS = console.commands()
MOST_LINES, MOST_COLUMNS = 40, 100


def _remind(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command run in this process as if started from a shell."""
    monkeypatch.setattr(sys, "argv", ["remind", *arguments])
    code = 0
    try:
        console.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_every_command_of_the_design_is_there():
    names = {"train", "sweep", "predict", "export", "adapt", "compare", "plan", "check", "import", "doctor"}
    assert names < set(COMMANDS)
    assert {"analyse what_if", "analyse specialization"} < set(COMMANDS)
    assert [name for name in COMMANDS if name.startswith("analyse ")] == [
        f"analyse {path.stem}"
        for path in sorted((tiny_runs.ROOT / "remind_jax" / "analysis").glob("*.py"))
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    ]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_a_help_text_is_one_screen_with_an_example(monkeypatch, capsys, name):
    code, out, err = _remind(monkeypatch, capsys, *name.split(), "--help")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert 4 < len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= MOST_COLUMNS
    assert re.search(rf"^    remind {name or 'train'} ", out, re.MULTILINE)


def test_the_help_text_names_every_command(monkeypatch, capsys):
    out = _remind(monkeypatch, capsys)[1]
    assert {word for name in COMMANDS for word in name.split()} <= set(re.findall(r"\w+", out))
    assert _remind(monkeypatch, capsys, "trian", "--help") == (0, out, "")


@pytest.mark.parametrize(
    ("arguments", "module", "rest"),
    [
        (["train", "--config=x"], "main", ["--config=x"]),
        (["check", "DIR"], "check_data", ["DIR"]),
        (["import", "--from=table"], "import_data", ["--from=table"]),
        (["sweep"], "sweep", []),
        (["analyse", "next-modality", "--seed=1"], "analysis.next_modality", ["--seed=1"]),
        (["analyse", "next_modality"], "analysis.next_modality", []),
    ],
)
def test_commands_are_modules(arguments, module, rest):
    assert console.find(arguments) == (module, rest)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["trian"], ("'trian' (did you mean 'train'?)", "known: train, check, ")),
        (["chekc"], ("did you mean 'check'?",)),
        (["analyse", "what-iff"], ("did you mean 'analyse what_if'?",)),
        (["analyse"], ("name an analysis: analyse attribute_gaps", "analyse what_if")),
        (["--verison"], ("'--verison' (did you mean '--version'?)",)),
        (["plan", "--confg=nhanes"], ("unknown option --confg (did you mean '--config'?)",)),
        (["plan", "--config=nhanse"], ("there is no config nhanse (did you mean 'nhanes'?)",)),
        (["sweep", "--config=nhanes", "--sedes=0"], ("--sedes (did you mean '--seeds'?)",)),
        (["analyse", "unseen-combinations", "--metods=all"], ("--metods (did you mean '--methods'?)",)),
        (["train", "--config=nhanes", "--optim.lr=1"], ("--optim.lr (did you mean '--config.optim.lr'?)",)),
        (["train", "--config=nhanes", "--quik"], ("--quik (did you mean '--quick'?)",)),
        (["predict", "--workdri=x"], ("--workdri (did you mean '--workdir'?)",)),
    ],
)
def test_a_misspelt_word_is_answered_with_the_right_one(monkeypatch, capsys, arguments, parts):
    code, out, err = _remind(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("check", ["nowhere"]),
        pytest.param("analyse what_if", ["--workdir=nowhere"], marks=pytest.mark.slow),
    ],
)
def test_a_command_ends_as_its_module_does(tmp_path, name, arguments):
    def end(*start: str) -> tuple[int, str, str]:
        environment = {**os.environ, "PYTHONPATH": str(tiny_runs.ROOT)}
        command = [sys.executable, "-m", *start, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout, done.stderr

    ended = end("remind_jax", *name.split())
    assert ended == end(f"remind_jax.{COMMANDS[name]}")
    assert ended[0] == 2
    assert "nowhere" in ended[2]


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    monkeypatch.setattr(console.importlib.metadata, "version", {"remind-jax": "9.8.7"}.get)
    assert _remind(monkeypatch, capsys, "--version") == (0, "remind_jax 9.8.7\n", "")


def test_the_script_is_this_command():
    project = tomllib.loads((tiny_runs.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"remind": f"{console.__name__}:{console.main.__name__}"}


def test_a_command_that_is_not_there_is_no_module():
    for arguments in ([""], ["cli"], ["analyse", "opening"], ["analyse", ""]):
        with pytest.raises(UserError, match="no command"):
            console.find(arguments)


# The time of a help text is that of its imports.
HEAVY = ("jax", "numpy", "polars", "pyarrow", "ml_collections", "absl", "sklearn", "rich", "jinja2", "flax", "yaml")
_IMPORTS = """
import sys
{code}
print(sorted({heavy} & {{name.partition(".")[0] for name in sys.modules}}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "code",
    [
        "import remind_jax",
        "from remind_jax.__main__ import main; main()",
        "sys.argv[1:] = ['train', '--help']; from remind_jax.__main__ import main; main()",
        "sys.argv[1:] = ['analyse', 'what_if', '--help']; from remind_jax.__main__ import main; main()",
        "from remind_jax import completion; completion.main(['--line=remind train --config='])",
    ],
)
def test_help_and_completion_import_nothing_heavy(code):
    command = [sys.executable, "-c", _IMPORTS.format(code=code, heavy=set(HEAVY))]
    environment = {**os.environ, "PYTHONPATH": str(tiny_runs.ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "[]\n"
