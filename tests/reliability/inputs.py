"""Rows about what people write by hand: manifests, configs and command lines."""

import contextlib
import csv
import importlib
import io
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import hypothesis
import numpy as np
import yaml
from hypothesis import strategies as st

from remind_jax import check_data, cli
from remind_jax.config import validate
from remind_jax.data import check, reading, splits, targets
from remind_jax.data.manifest import decode
from remind_jax.errors import UserError
from tests.reliability import Tally, malformed, row
from tests.tiny_runs import ROOT

COLUMNS = ("stay", "patient", "died", "note", "icd", "sodium", "wbc", "sex", "scan")


def base_rows() -> list[list[str]]:
    """Twelve sound rows of `SCHEMA`, as cells of a CSV."""
    return [
        [
            f"s{i}",
            f"p{i // 2}",
            str(i % 2),
            f"note of stay {i}",
            "A10 B20",
            f"{130 + i}",
            "7.5",
            "fm"[i % 2],
            "scans/0.npy",
        ]
        for i in range(12)
    ]


def write(folder: pathlib.Path, schema: object, rows: list[list[str]], columns: tuple[str, ...] = COLUMNS) -> None:
    """A manifest folder with an embedding file."""
    (folder / "scans").mkdir(parents=True, exist_ok=True)
    np.save(folder / "scans" / "0.npy", np.ones((3, 4), np.float32))
    text = schema if isinstance(schema, str) else yaml.safe_dump(schema, sort_keys=False)
    (folder / "schema.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        csv.writer(file).writerows([columns, *rows])


def load(folder: pathlib.Path, rows: int | None) -> tuple[str, str]:
    """What the program makes of a manifest folder.

    Args:
      folder: of the manifest.
      rows: how many it has; None when that is not known.

    Returns:
      `refused` with the codes, `loaded`, or `wrong`; and why it is wrong.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = check_data.run([str(folder)])
        if code == 2 or "error E" in out.getvalue():
            lines = [line for line in out.getvalue().splitlines() if line.startswith("error ")]
            coded = code == 2 and lines and all(re.match(r"error [EW]\d{3}: ", line) for line in lines)
            return (
                ("refused", " ".join(lines)) if coded else ("wrong", f"refused without a code: {out.getvalue()[:300]}")
            )
        manifest = reading.read_manifest(folder)
        split = splits.make_splits(manifest, 0)
        check.refuse(check.find_problems(manifest, split))
        raw = decode(manifest, np.arange(manifest.table.height))
    except UserError as error:
        text = str(error)
        return ("wrong", f"not one line: {text[:300]}") if "\n" in text or not text else ("refused", text)
    except BaseException as error:  # panics of Rust are no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return "wrong", f"{type(error).__name__}: {str(error)[:300]}"
    used = sum(int((split == i).sum()) for i in range(len(splits.SPLITS)))
    if not used == manifest.table.height == len(raw["label"]) or (rows is not None and used != rows):
        return "wrong", f"{rows} rows, {manifest.table.height} read, {used} used"
    return "loaded", ""


# ---- Manifests ------------------------------------------------------------------------------------------------------


@row(
    name="manifests",
    title="malformed manifests, by hand and generated",
    target="a coded error of one line or a right load, rows in = rows used + rows reported; 0 tracebacks",
    unit="generated manifests",
    reduced=60,
    full=10_000,
    broken="what stands in the schema is taken as it is",
)
def malformed_manifests(count: int, broken: bool) -> Tally:
    """Those of tests/reliability/malformed.py, each with what must come of it, and mutations drawn by hypothesis."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as root, _trusting(broken):
        folder = pathlib.Path(root) / "data"
        cases = malformed.CASES if count >= 60 else malformed.CASES[::16]
        for case in cases:
            shutil.rmtree(folder, ignore_errors=True)
            number = malformed.build(case, folder, base_rows(), write)
            verdict, why = load(folder, number)
            tally.check(
                verdict == case.expected and re.search(case.says, why) is not None, f"{case.name}: {verdict} {why}"
            )
        tally.notes.append(f"{len(cases)} by hand, each with the verdict that it must get")
        seen = {"refused": 0, "loaded": 0, "wrong": 0}

        @hypothesis.settings(
            max_examples=count,
            database=None,
            derandomize=True,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(malformed.manifests(base_rows()))
        def generated(drawn: tuple) -> None:
            shutil.rmtree(folder, ignore_errors=True)
            schema, rows, damage = drawn
            write(folder, schema, rows)
            for name, change in damage:
                file = folder / name
                file.write_bytes(change(file.read_bytes()))
            verdict, why = load(folder, None if damage else len(rows))
            seen[verdict] += 1
            tally.check(verdict != "wrong", f"schema {str(schema)[:200]}, rows {str(rows)[:200]}, {damage}: {why}")

        generated()
    tally.notes.append(f"generated: {seen['refused']} refused, {seen['loaded']} loaded")
    return tally


@contextlib.contextmanager
def _trusting(broken: bool) -> Iterator[None]:
    """Takes the checks of the schema away."""
    parse = reading.mapping
    if broken:
        reading.mapping = targets.mapping = lambda value, *rest: value
    try:
        yield
    finally:
        reading.mapping = targets.mapping = parse


# ---- Configs and command lines --------------------------------------------------------------------------------------

CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py") if path.name != "__init__.py")
COMMANDS = {
    "predict": ("data", "out", "batch-size", "bad-files"),
    "adapt": ("data", "unfreeze", "steps", "out"),
    "export": ("out",),
    "compare": ("out",),
    "sweep": ("methods", "seeds", "jobs", "table", "config"),
    "plan": ("config", "config.seed"),
    "import_data": ("out", "label", "kind", "classes", "match", "odd-numbers"),
    "analysis.gradient_consistency": ("also", "samples"),
    "analysis.specialization": ("also", "split"),
    "analysis.uncertainty": ("split",),
    "analysis.what_if": ("split",),
}
NASTY = (
    *(
        "",
        " ",
        "0",
        "-1",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "None",
        "True",
        "1.5",
        "9" * 400,
        "0x10",
        "1_000",
        "()",
        "(1,",
        "[",
        "{}",
    ),
    *(
        "'",
        '"',
        "\\",
        "\0",
        "\n",
        "ä",
        "\ud83d\ude00",
        "a" * 5000,
        "../..",
        "/",
        "~",
        "--",
        "-",
        "=",
        "%s%n",
        "${HOME}",
        "`id`",
    ),
    *(
        "__import__('os').system('touch CANARY')",
        "$(touch CANARY)",
        "; touch CANARY",
        "remind",
        "(0.7,0.1,0.2)",
        "('a',)",
    ),
)


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@row(
    name="configs",
    title="malformed configs and command lines",
    target="one line and exit code 2, or accepted; no code in them run; 0 tracebacks",
    unit="command lines",
    reduced=60,
    full=5_000,
    broken="what the readers of flags raise is let through",
)
def configs(count: int, broken: bool) -> Tally:
    """Two thirds for `main` (parsed and validated), the rest for the other commands, which find no run to work on."""
    tally = Tally()
    known = sorted(_keys(cli.parse_config([f"--config={ROOT / 'configs' / 'phenomenon.py'}"])[0]))
    text = st.one_of(st.sampled_from(NASTY), st.text(max_size=20))
    sound = st.sampled_from(CONFIGS).map(lambda name: str(ROOT / "configs" / name))
    file = st.integers(0, 9).flatmap(
        lambda n: sound if n else st.one_of(st.sampled_from(("nope.py", "/", "setup.cfg")), text)
    )
    odd = st.one_of(
        st.sampled_from((":method=remind", ":size=paper", ":method", ":a=b", ":,,", "::")), text.map(":{}".format)
    )
    argument = st.integers(0, 4).flatmap(lambda n: st.just("") if n else odd)
    key = st.one_of(
        st.sampled_from(known),
        st.sampled_from(known).map(lambda k: k[:-1]),
        st.sampled_from(("", "data", "optim.lr.x")),
        text,
    )
    change = st.tuples(key, text).map(lambda pair: f"--config.{pair[0]}={pair[1]}")
    main = st.tuples(file, argument, st.lists(st.one_of(change, text), max_size=3)).map(
        lambda drawn: ("main", [f"--config={drawn[0]}{drawn[1]}", *drawn[2]])
    )
    other = st.sampled_from(sorted(COMMANDS)).flatmap(
        lambda name: st.lists(
            st.one_of(
                st.tuples(st.sampled_from(COMMANDS[name]), text).map(lambda pair: f"--{pair[0]}={pair[1]}"), text
            ),
            max_size=3,
        ).map(lambda rest: (name, ["--workdir=no such run", *rest]))
    )
    seen = {"accepted": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as root, contextlib.chdir(root), _letting_through(broken):

        @hypothesis.settings(
            max_examples=count,
            database=None,
            derandomize=True,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(st.one_of(main, main, other))
        def generated(drawn: tuple[str, list[str]]) -> None:
            verdict, why = _command(*drawn)
            ran = pathlib.Path(root, "CANARY").exists()
            tally.check(verdict != "wrong" and not ran, f"{drawn}: {why}{' ran code' if ran else ''}")
            seen[verdict] = seen.get(verdict, 0) + 1

        generated()
    tally.notes.append(
        f"{seen['accepted']} accepted, {seen['refused']} refused; `main` is parsed and validated, not run"
    )
    return tally


def _command(name: str, arguments: list[str]) -> tuple[str, str]:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if name == "main":
                validate(cli.parse_config(arguments)[0])
                return "accepted", ""
            importlib.import_module(f"remind_jax.{name}").main(arguments)
            return "accepted", ""
    except UserError as error:
        line = " ".join(str(error).split())  # as cli.run prints it
        return ("refused", line) if line else ("wrong", "nothing said")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "wrong", f"{type(error).__name__}: {str(error)[:300]}"


@contextlib.contextmanager
def _letting_through(broken: bool) -> Iterator[None]:
    before = cli.UserError
    if broken:
        cli.UserError = RuntimeError
    try:
        yield
    finally:
        cli.UserError = before
