"""Completion: what may follow, and that shells offer it."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from remind_jax import completion
from remind_jax.errors import UserError
from tests import tiny_runs


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tr", ["train"]),
        ("comp", ["compare", "completion"]),
        ("analyse sp", ["specialization"]),
        ("train --w", ["--workdir="]),
        ("train --qu", ["--quick"]),
        ("train --config", ["--config.", "--config="]),
        ("check DIR --j", ["--json"]),
        ("analyse unseen_combinations --le", ["--leave_out="]),
        ("train --config=ph", ["--config=phenomenon"]),
        ("train --config=nhanes:", ["--config=nhanes:method=", "--config=nhanes:size="]),
        ("train --config=nhanes:method=soft", ["--config=nhanes:method=soft_moe"]),
        ("train --config=nhanes:method=remind,s", ["--config=nhanes:method=remind,size="]),
        ("train --config=nhanes:size=q", ["--config=nhanes:size=quick"]),
        ("train --config=nhanes --config.optim.l", ["--config.optim.lr="]),
        ("train --config.fusion.residual=", ["--config.fusion.residual=false", "--config.fusion.residual=true"]),
        ("train --config.parallel=p", ["--config.parallel=pmap"]),
        ("train --config.optim.lr=", []),
        ("sweep --methods=remind,soft", ["--methods=remind,soft_moe"]),
        ("sweep --table=1", ["--table=16"]),
        ("train --workdir=", []),
    ],
)
def test_what_may_follow(line, expected):
    assert completion.candidates(line.split(" ")) == expected


def test_all_that_may_begin():
    assert {"train", "analyse", "--help", "--version"} < set(completion.candidates([""]))
    with pytest.raises(UserError, match="no command"):
        completion.candidates(["trian", "--w"])


def test_an_unknown_shell_is_named():
    with pytest.raises(UserError, match=r"unknown shell 'bsh' \(did you mean 'bash'\?\); known: bash, zsh, fish"):
        completion.main(["bsh"])


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    """A search path that begins with a `remind` that runs this checkout."""
    script = tmp_path / "bin" / "remind"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nPYTHONPATH={tiny_runs.ROOT} exec {sys.executable} -m remind_jax "$@"\n')
    script.chmod(0o755)
    return f"{script.parent}:{os.environ['PATH']}"


def _shell(name: str, script: str, path: str, cwd: pathlib.Path) -> list[str]:
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    environment = {**os.environ, "PATH": path, "HOME": str(cwd)}
    command = [name, "-c", script]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


LINES = ["remind tr", "remind train --config=ph", "remind train --config=nhanes:method=soft", "remind analyse wh"]

# As bash calls it: with the line up to the cursor, and for the word that it has cut at = and :.
_BASH = """
source <(remind completion bash)
[[ $(complete -p remind) == *"-F _remind remind" ]] || exit 1
for line in "{}"; do
    COMP_LINE="$line and more" COMP_POINT=${{#line}} COMPREPLY=()
    _remind remind
    echo "${{COMPREPLY[*]}}"
done
"""


def test_bash_offers_them(path, tmp_path):
    found = _shell(
        "bash", _BASH.format('" "'.join([*LINES, "remind trian --w", "remind train --workdir=/"])), path, tmp_path
    )
    assert found == ["train", "phenomenon", "soft_moe", "what_if", "", ""]


def test_fish_offers_them(path, tmp_path):
    script = "remind completion fish | source; " + "".join(f"complete -C '{line}';" for line in LINES)
    expected = ["train", "--config=phenomenon", "--config=nhanes:method=soft_moe", "what_if"]
    assert _shell("fish", script, path, tmp_path / "bin") == expected


def test_zsh_offers_them(path, tmp_path):
    """`compadd` is what shows them; here it prints."""
    script = """
        compdef() { }
        source <(remind completion zsh)
        compadd() { print -- "${@[4,-1]}" }
        for line in "$@"; do words=(${=line}); CURRENT=$#words; _remind; done
    """
    script = script.replace('"$@"; do words', " ".join(f"'{line}'" for line in LINES) + "; do words")
    expected = ["train", "--config=phenomenon", "--config=nhanes:method=soft_moe", "what_if"]
    assert _shell("zsh", script, path, tmp_path) == expected
