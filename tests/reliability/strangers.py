"""A row about users whom the machine does not know: a uid without an entry in passwd, and no HOME."""

import os
import pathlib
import subprocess
import sys
import tempfile

from tests import tiny_runs
from tests.data.manifest_files import write_manifest
from tests.reliability import Tally, row

_NOBODY = ("unshare", "--user", "--map-user=54321", "--map-group=54321", "--")  # files stay those of the caller
# What the broken variant takes away stands before the command.
_SCRIPT = """
import pathlib, sys
from remind_jax import __main__
from remind_jax.runtime import files
{broken}
sys.argv[0] = "remind"
__main__.main()
"""
_BROKEN = "files.expanded = lambda path: pathlib.Path(path).expanduser()"


def possible() -> bool:
    """Tells whether this machine lets a process take a uid that nobody has."""
    try:
        return not subprocess.run([*_NOBODY, "true"], capture_output=True, check=False).returncode
    except OSError:
        return False


@row(
    name="strangers",
    title="doctor, train, predict and export by a uid without an entry in passwd and without HOME",
    target="exit code 0, and nothing written but where it was asked for and in a private temporary folder",
    unit="commands",
    reduced=4,
    full=4,
    broken="the home folder is asked for as if everybody had one",
)
def strangers(count: int, broken: bool) -> Tally:
    """The commands in turn, each in a process whose uid is nobody's, in a user namespace of its own."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as root:
        place = pathlib.Path(root)
        for name in ("here", "tmp", "out"):
            (place / name).mkdir()
        # No cache is named: the default one lies in the home folder.
        data = write_manifest(place / "data")
        given = tiny_runs.own_arguments(data, place, data__max_tokens=8, data__vocabulary=64, eval__bootstrap=20)
        arguments = [x for x in given if not x.startswith("--config.data.cache")]
        run = place / "out" / "run"
        commands = {
            "doctor": [],
            "train": [*arguments, f"--workdir={run}"],
            "predict": [f"--workdir={run}", f"--data={data}", f"--out={place / 'out' / 'p.csv'}"],
            "export": [f"--workdir={run}", f"--out={place / 'out' / 'model'}"],
        }
        for name, options in list(commands.items())[:count]:
            done = _run([name, *options], place, broken)
            tally.check(done.returncode == 0, f"{name}: exit code {done.returncode}: {done.stderr[-300:]}")
        left = sorted(path.name for path in (place / "tmp").iterdir())
        wrong = [*(place / "here").iterdir(), *(x for x in left if not x.startswith("remind_jax-"))]
        tally.check(not wrong, f"left behind: {', '.join(map(str, wrong))}")
    return tally


def _run(arguments: list[str], place: pathlib.Path, broken: bool) -> subprocess.CompletedProcess:
    script = _SCRIPT.format(broken=_BROKEN if broken else "")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tiny_runs.ROOT), "TMPDIR": str(place / "tmp")}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*_NOBODY, sys.executable, "-c", script, *arguments],
        env=environment,
        cwd=place / "here",
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
