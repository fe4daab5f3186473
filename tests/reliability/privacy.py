"""Rows about what must not get out: patients' data, and anything at all over the network."""

import contextlib
import io
import pathlib
import random
import shutil
import tempfile

import numpy as np

from remind_jax import check_data
from remind_jax.errors import UserError
from tests import tiny_runs
from tests.data.manifest_files import SCHEMA
from tests.reliability import Tally, row
from tests.reliability.child import Child
from tests.reliability.inputs import COLUMNS, write

_PLACES = ("patient id", "sample id", "note", "file name", "other column")


def _canaries(count: int) -> list[str]:
    """Names that no text has by chance."""
    rng = random.Random(7)
    return ["".join(rng.choice("BCDFGHJKLMNPQRSTVWXZ") + rng.choice("aeiouy") for _ in range(5)) for _ in range(count)]


def _data(folder: pathlib.Path, canaries: list[str]) -> None:
    """Sixty stays of thirty people, with the canaries in turn in each of `_PLACES`, those of notes three times over."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        note = f"patient is {'unwell' if i % 2 else 'well'}, {'fever and cough' if i % 3 else 'no fever'}"
        rows.append(
            [
                f"s{i}",
                f"p{i // 2}",
                str(i % 2),
                note,
                "A10 B20",
                f"{rng.normal(140, 3):.1f}",
                f"{rng.normal(8, 2):.1f}",
                "fm"[i % 2],
                "scans/0.npy",
            ]
        )
    for i, canary in enumerate(canaries):
        place, k = _PLACES[i % len(_PLACES)], i // len(_PLACES)
        if place == "patient id":
            rows[2 * k][1] = rows[2 * k + 1][1] = f"{canary}, born 1950-01-02"
        elif place == "sample id":
            rows[k][0] = f"MRN {canary}"
        elif place == "note":
            rows[3 * k][3] += f" {canary} said {canary}; {canary} was told"
        elif place == "file name":
            rows[k][8] = f"scans/{canary}.npy"
    columns = (*COLUMNS, "comment")
    for i, each in enumerate(rows):
        each.append(canaries[4 + 5 * i] if 4 + 5 * i < len(canaries) else "")
    write(folder, SCHEMA, rows, columns)
    for name in {each[8] for each in rows}:
        np.save(folder / name, rng.normal(size=(3, 4)).astype(np.float32))


def arguments(root: pathlib.Path) -> list[str]:
    """Of a tiny run on the folder `data` below `root`."""
    return tiny_runs.own_arguments(root / "data", root / "cache", eval__bootstrap=20, train__keep=0)


def _found(root: pathlib.Path, canaries: list[str], but: tuple[str, ...]) -> dict[str, str]:
    """Canaries in the names or the bytes of files below `root`, and where."""
    found = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if name.startswith(but) or not path.is_file():
            continue
        content = path.read_bytes() + name.encode()
        for canary in canaries:
            if canary.encode() in content or canary.lower().encode() in content:
                found.setdefault(canary, name)
    return found


@row(
    name="canaries",
    title="names planted in ids, notes, file names and other columns; then train, evaluate, predict, crash, refuse",
    target="none in logs, checkpoints, records, pages, tracebacks",
    unit="names",
    reduced=50,
    full=50,
    broken="a row of the table is printed",
)
def canaries(count: int, broken: bool) -> Tally:
    """Searches all that runs leave but predictions.parquet, which is made of ids, and the prepared data themselves."""
    tally, planted = Tally(), _canaries(count)
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        _data(root / "data", planted)
        codes = {"run": Child(arguments(root), root / "run", broken="talkative" if broken else "").finish()}
        if not broken:
            codes["crash"] = Child(arguments(root), root / "crash", broken="crash").finish()
            predict = [f"--data={root / 'data'}", f"--out={root / 'predicted.csv'}"]
            codes["predict"] = Child(predict, root / "run", command="predict").finish()
            codes["export"] = Child([f"--out={root / 'export'}"], root / "run", command="export").finish()
            _refusals(root, planted)
        logs = "".join(path.read_text(encoding="utf-8")[-300:] for path in root.glob("*.log"))
        expected = {"run": 0, "crash": 1, "predict": 0, "export": 0}
        if any(code != expected[what] for what, code in codes.items()):
            tally.check(False, f"exit codes {codes}: {logs}")
        found = _found(root, planted, ("data/", "cache/", "run/predictions.parquet", "predicted.csv"))
        for i, canary in enumerate(planted):
            tally.check(canary not in found, f"{_PLACES[i % len(_PLACES)]}: in {found.get(canary)}")
    tally.notes.append(
        "predictions.parquet and what predict writes hold ids, prepared data hold everything: not searched"
    )
    tally.notes.append("codes and categories are vocabulary and stay in checkpoints as they are: not planted there")
    return tally


def _refusals(root: pathlib.Path, planted: list[str]) -> None:
    """What check_data says of tables with a name in each column, written down to be searched."""
    said = []
    for column in range(len(COLUMNS)):
        folder = root / "data" / f"bad{column}"
        rows = [[f"s{i}", f"p{i}", str(i % 2), "a note", "A10", "1", "2", "f", "scans/0.npy"] for i in range(12)]
        rows[5][column] = rows[7][column] = f"{planted[column]} {planted[column + 1]}"
        write(folder, SCHEMA, rows)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            try:
                check_data.run([str(folder)])
            except UserError as error:
                print(error)
        said.append(out.getvalue())
        shutil.rmtree(folder)
    (root / "refusals.log").write_text("\n".join(said), encoding="utf-8")


@row(
    name="network",
    title="train, evaluate, predict and export without a network",
    target="passes, 0 attempts",
    unit="all",
    reduced=1,
    full=1,
    broken="loading the data calls a server",
)
def network(count: int, broken: bool) -> Tally:
    """In a network without devices, where the system allows it; what asks Python for one is written down."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        _data(root / "data", [])
        attempts = str(root / "attempts")
        commands = {
            "main": arguments(root),
            "predict": [f"--data={root / 'data'}", f"--out={root / 'predicted.csv'}"],
            "export": [f"--out={root / 'export'}"],
        }
        for command, given in list(commands.items())[: 1 if broken else None]:
            code = Child(
                given, root / "run", command=command, attempts=attempts, broken="network" if broken else ""
            ).finish()
            file = pathlib.Path(attempts)
            tried = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
            file.unlink(missing_ok=True)
            log = (root / "run.log").read_text(encoding="utf-8")[-300:]
            tally.check(
                code == 0 and not tried, f"{command}: exit code {code}, attempts {tried}: {log if code else ''}"
            )
    return tally
