"""Manifests as people and attackers get them wrong: by hand, each with its verdict, and a hypothesis strategy."""

import copy
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from hypothesis import strategies as st

from tests.data.manifest_files import SCHEMA

R, L, E = "refused", "loaded", ""


@dataclasses.dataclass(frozen=True)
class Case:
    """A malformed manifest: what is done to a sound one, what must come of it, and what must be said."""

    name: str
    change: Callable[[pathlib.Path, dict, list[list[str]]], object]
    expected: str = R
    says: str = ""


def build(case: Case, folder: pathlib.Path, rows: list[list[str]], write: Callable[..., None]) -> int | None:
    """Writes the folder of a case; its number of rows, None where the change decides."""
    schema = copy.deepcopy(SCHEMA)
    write(folder, schema, rows)
    changed = case.change(folder, schema, rows)
    if changed == "rewrite":
        write(folder, schema, rows)
        return len(rows)
    return None


def laughs(depth: int) -> str:
    """A sound schema but for its name, whose aliases unfold to nine to the power of `depth` words."""
    lines = ["version: 1", "sample_id: stay", "patient_id: patient", "label: {column: died, classes: ['0', '1']}"]
    lines += ["modalities: {note: {kind: text, column: note}}", "name:", "- &a0 lol"]
    return "\n".join([*lines, *(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth))])


def _schema(path: str, value: Any) -> Callable[..., str]:
    """Sets an entry of the schema, or takes it away where the value is `...`."""

    def change(folder: pathlib.Path, schema: dict, rows: list) -> str:
        *parts, last = path.split(".")
        place = schema
        for part in parts:
            place = place[part]
        if value is ...:
            del place[last]
        else:
            place[last] = value
        return "rewrite"

    return change


def _yaml(content: str | bytes) -> Callable[..., None]:
    return lambda folder, schema, rows: (folder / "schema.yaml").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def _cell(column: int, value: str, row: int = 3) -> Callable[..., str]:
    def change(folder: pathlib.Path, schema: dict, rows: list) -> str:
        rows[row][column] = value
        return "rewrite"

    return change


def _column(column: int, value: str) -> Callable[..., str]:
    def change(folder: pathlib.Path, schema: dict, rows: list) -> str:
        for row in rows:
            row[column] = value
        return "rewrite"

    return change


def _csv(edit: Callable[[bytes], bytes]) -> Callable[..., None]:
    return lambda folder, schema, rows: (folder / "manifest.csv").write_bytes(
        edit((folder / "manifest.csv").read_bytes())
    )


def _file(content: bytes) -> Callable[..., None]:
    return lambda folder, schema, rows: (folder / "scans" / "0.npy").write_bytes(content)


def _array(array: Any) -> Callable[..., None]:
    return lambda folder, schema, rows: np.save(folder / "scans" / "0.npy", array, allow_pickle=True)


def _nested(cells: list) -> Callable[..., None]:
    """Embeddings in the cells of a parquet file."""

    def change(folder: pathlib.Path, schema: dict, rows: list) -> None:
        text = (folder / "schema.yaml").read_text(encoding="utf-8")
        (folder / "schema.yaml").write_text(text.replace("    stored: file\n", ""), encoding="utf-8")
        _parquet(scan=pl.Series(cells))(folder, schema, rows)

    return change


def _parquet(**columns: Any) -> Callable[..., None]:
    """The table as parquet, with other columns in it."""

    def change(folder: pathlib.Path, schema: dict, rows: list) -> None:
        table = pl.read_csv(folder / "manifest.csv", infer_schema=False)
        (folder / "manifest.csv").unlink()
        table.with_columns(**columns).write_parquet(folder / "manifest.parquet")

    return change


def _as_parquet(edit: Callable[[bytes], bytes]) -> Callable[..., None]:
    """The table as parquet, its bytes changed."""

    def change(folder: pathlib.Path, schema: dict, rows: list) -> None:
        _parquet()(folder, schema, rows)
        file = folder / "manifest.parquet"
        file.write_bytes(edit(file.read_bytes()))

    return change


def _no_file(name: str) -> Callable[..., None]:
    return lambda folder, schema, rows: (folder / name).unlink()


def _modality(**entry: Any) -> Callable[..., str]:
    return _schema("modalities.extra", entry)


def _both(folder: pathlib.Path, schema: dict, rows: list) -> None:
    pl.read_csv(folder / "manifest.csv", infer_schema=False).write_parquet(folder / "manifest.parquet")


STAY, PATIENT, DIED, NOTE, ICD, SODIUM, WBC, SEX, SCAN = range(9)
_NASTY = (None, True, 1.5, [], {}, "", " ", "\n", [[]], 10**30)
CASES = (
    Case("nothing wrong", lambda *all: "rewrite", L),
    # ---- the schema as a file
    *(
        Case(f"schema.yaml: {name}", _yaml(content))
        for name, content in {
            "empty": "",
            "a word": "hello",
            "a list": "[1, 2]",
            "null": "null",
            "a number": "7",
            "a tab": "\tversion: 1",
            "two colons": "a: b: c",
            "open bracket": "[",
            "open quote": 'name: "x',
            "unknown tag": "!foo {}",
            "tag of Python": "!!python/object/apply:os.system ['touch CANARY']",
            "new tag of Python": "!!python/object/new:type {}",
            "bad timestamp": "version: !!timestamp x",
            "bad int": "version: !!int ''",
            "bad bool": "version: !!bool x",
            "bad float": "version: !!float x",
            "bad binary": "version: !!binary a",
            "set": "!!set {a, b}",
            "alias of itself": "&a [*a]",
            "alias of itself as a mapping": "&a {version: *a}",
            "alias of nothing": "version: *a",
            "laughs": laughs(12),
            "key that is a list": "? [1]\n: 2",
            "key that is a mapping": "? {a: 1}\n: 2",
            "merge of a word": "<<: x",
            "value sign": "version: =",
            "5,000 digits": f"version: {'9' * 5000}",
            "5,000 hexadecimal digits": f"version: 0x{'f' * 5000}",
            "sexagesimal": f"version: 1:{':59' * 3000}",
            "deep list": "[" * 3000,
            "deep mapping": "{a: " * 3000,
            "deep block": "".join(f"{' ' * i}a:\n" for i in range(1500)),
            "NUL": b"version: 1\0",
            "UTF-16": "version: 1".encode("utf-16"),
            "Latin-1": "name: Gr\u00f6\u00dfe".encode("latin-1"),
            "two documents": "version: 1\n---\nversion: 1",
            "control characters": b"name: \x07\x1b[31m",
            "64 KiB of commas": "[" + "," * 65536 + "]",
            "date as version": "version: 2001-01-01",
            "bad date": "version: 2001-99-99",
        }.items()
    ),
    Case("schema.yaml is missing", _no_file("schema.yaml"), says="schema.yaml"),
    # ---- entries of the schema
    *(
        Case(f"no {key}", _schema(key, ...), says=key.split(".")[-1])
        for key in (
            "version",
            "name",
            "sample_id",
            "patient_id",
            "label",
            "modalities",
            "label.column",
            "label.classes",
            "modalities.note.kind",
            "modalities.note.column",
        )
    ),
    *(Case(f"version {value!r}", _schema("version", value), says="version") for value in (0, 2, "1", True, None, 1.5)),
    *(Case(f"name {value!r}"[:40], _schema("name", value), says="name") for value in _NASTY),
    *(Case(f"label {value!r}"[:40], _schema("label", value), says="label") for value in (None, "died", [], {}, 3)),
    *(
        Case(f"classes {value!r}"[:40], _schema("label.classes", value), says="classes")
        for value in (None, "01", [], ["0"], ["0", "0"], [True, False], [0.5, 1], ["", "1"], [["0"], ["1"]], {"0": 1})
    ),
    *(
        Case(f"modalities {value!r}"[:40], _schema("modalities", value), says="modalities")
        for value in (None, [], {}, "x", {"a": None}, {"a": []})
    ),
    *(
        Case(
            f"modality name {name!r}"[:50],
            _schema("modalities", {name: {"kind": "text", "column": "note"}}),
            says="name",
        )
        for name in ("", " ", "a b", "a/b", "present", "label", "weight", "\u00e4", "a+b", "../a")
    ),
    *(
        Case(f"kind {kind!r}", _modality(kind=kind, column="note"), says="kind")
        for kind in ("", "txt", None, 3, [], {}, "Text")
    ),
    Case("unknown key", _schema("colour", "red"), says="colour"),
    Case("unknown key of a modality", _modality(kind="text", column="note2", size=3), says="size"),
    Case("column twice", _modality(kind="text", column="note"), says="twice"),
    Case("column of an id", _modality(kind="text", column="stay"), says="twice"),
    Case("absent column", _modality(kind="text", column="notes"), says="E001"),
    Case("table without columns", _modality(kind="tabular"), says="columns"),
    Case("columns as a word", _modality(kind="tabular", columns="sodium"), says="columns"),
    Case("stored elsewhere", _modality(kind="text", column="x", stored="cloud"), says="stored"),
    Case("two channels", _modality(kind="image", column="x", channels=2), says="channels"),
    Case("true channels", _modality(kind="image", column="x", channels=True), says="channels"),
    Case("channels as a list", _modality(kind="image", column="x", channels=[3]), says="channels"),
    Case("absent split", _schema("split", "fold"), says="E001"),
    Case("split by the label", _schema("split", "died"), says="twice"),
    Case("class that nobody has", _schema("label.classes", ["0", "1", "2"]), says="E005"),
    # ---- cells
    Case("double id", _cell(STAY, "s1"), says="E002"),
    *(Case(f"id {value!r}", _cell(STAY, value), says="E001") for value in ("", " ")),
    Case("no patient", _cell(PATIENT, ""), says="E001"),
    *(Case(f"label {value!r}", _cell(DIED, value), says="E005") for value in ("", "2", "yes", "0.0", "NaN", "\u0661")),
    *(
        Case(f"number {value!r}", _cell(SODIUM, value), says="E00[89]")
        for value in ("high", "1,5", "inf", "-inf", "1e400", "0x10", "<5", "1e39")
    ),
    *(Case(f"number {value!r}", _cell(SODIUM, value), L) for value in ("NA", "nan", " 5 ", "1e3", "None", "")),
    *(
        Case(f"path {value!r}"[:40], _cell(SCAN, value), says="E00[67]")
        for value in ("nope.npy", "scans", "../x.npy", "/etc/passwd", "scans/0.npy ", "http://x/y.npy", "a" * 5000)
    ),
    Case("path -999", _cell(SCAN, "-999"), says="E009"),
    Case(
        "row without any modality",
        lambda f, s, rows: rows.__setitem__(3, [*rows[3][:3], *[""] * 6]) or "rewrite",
        says="E004",
    ),
    Case("every sodium empty", _column(SODIUM, ""), L),
    Case("one class only", _column(DIED, "0"), says="E005"),
    Case("one patient only", _column(PATIENT, "p"), says="E001:? no patient is held out"),
    Case("text of one MB", _cell(NOTE, "word " * 200_000), L),
    Case("text with a line break, quotes and commas", _cell(NOTE, 'a "b", c\nd'), L),
    Case("text with NUL", _cell(NOTE, "a\0b"), L),
    Case("text that looks like markup", _cell(NOTE, "<script>alert(1)</script></s><pad>"), L),
    Case("text that looks like a formula", _cell(NOTE, '=HYPERLINK("http://x","y")'), L),
    # ---- the table as a file
    Case("no table", _no_file("manifest.csv"), says="manifest.csv"),
    Case("two tables", _both, says="both"),
    *(
        Case(f"manifest.csv: {name}", _csv(edit))
        for name, edit in {
            "empty": lambda b: b"",
            "header only": lambda b: b.split(b"\n")[0] + b"\n",
            "blank lines": lambda b: b"\n\n\n",
            "semicolons": lambda b: b.replace(b",", b";"),
            "tabs": lambda b: b.replace(b",", b"\t"),
            "UTF-16": lambda b: b.decode().encode("utf-16"),
            "Latin-1": lambda b: b.replace(b"note of", b"n\xf6te of"),
            "no header": lambda b: b.split(b"\n", 1)[1],
            "double column": lambda b: b.replace(b"wbc", b"sodium", 1),
            "a longer row": lambda b: b.replace(b"7.5,f", b"7.5,f,1,2,3", 1),
            "open quote": lambda b: b.replace(b"note of", b'"note of', 1),
            "binary": lambda b: bytes(range(256)) * 40,
            "gzip": lambda b: __import__("gzip").compress(b),
            "zlib": lambda b: __import__("zlib").compress(b),
            "zip": lambda b: b"PK\x03\x04" + b,
            "parquet": lambda b: b"PAR1" + b + b"PAR1",
            "NUL in the header": lambda b: b"\0" + b,
            "a million commas": lambda b: b"," * 1_000_000,
        }.items()
    ),
    Case("manifest.csv: carriage returns", _csv(lambda b: b.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")), L),
    Case("manifest.csv: a byte order mark", _csv(lambda b: b"\xef\xbb\xbf" + b), L),
    Case("manifest.csv: no last line break", _csv(lambda b: b.rstrip()), L),
    Case("manifest.parquet: cut", _as_parquet(lambda b: b[:-9]), says="parquet"),
    Case("manifest.parquet: empty", _as_parquet(lambda b: b""), says="parquet"),
    Case("manifest.parquet: zeros", _as_parquet(lambda b: bytes(len(b))), says="parquet"),
    Case("manifest.parquet: CSV inside", _as_parquet(lambda b: b"stay,patient\n1,2\n"), says="parquet"),
    *(
        Case(f"manifest.parquet: {name}", _parquet(**columns), expected, says)
        for name, columns, expected, says in (
            ("sound", {}, L, ""),
            ("label as a list", {"died": pl.lit([0])}, R, "died"),
            ("label as bytes", {"died": pl.lit(b"0")}, R, "died"),
            ("label as an integer", {"died": pl.col("died").cast(pl.Int64)}, L, ""),
            ("label as a number", {"died": pl.col("died").cast(pl.Float64)}, L, ""),
            ("id as a number with holes", {"stay": pl.Series([*range(11), None], dtype=pl.Float64)}, R, "E001"),
            ("id as a date", {"stay": pl.date(2020, 1, 1)}, R, "E002"),
            ("number as a list", {"sodium": pl.lit([1.0])}, R, "sodium"),
            ("number as a date", {"sodium": pl.date(2020, 1, 1)}, R, "E009"),
            ("number as true", {"sodium": pl.lit(True)}, L, ""),
            ("number as NaN", {"sodium": pl.lit(float("nan"))}, L, ""),
            ("number as infinity", {"sodium": pl.lit(float("inf"))}, R, "E008"),
            ("text as a number", {"note": pl.lit(3.5)}, L, ""),
            ("text as a structure", {"note": pl.struct(a=pl.lit(1))}, R, "note"),
            ("text as null", {"note": pl.lit(None)}, L, ""),
            ("category as a category", {"sex": pl.col("sex").cast(pl.Categorical)}, L, ""),
            ("embedding as lists in place of files", {"scan": pl.Series([[[1.0, 2.0]]] * 12)}, R, "scan"),
        )
    ),
    Case("cells: embeddings", _nested([[[1.0, 2.0], [3.0, 4.0]]] * 12), L),
    Case("cells: ragged embeddings", _nested([[[1.0], [1.0, 2.0]]] * 12), says="E008"),
    Case("cells: flat embeddings", _nested([[1.0, 2.0]] * 12), says="E008"),
    Case("cells: embeddings with NaN", _nested([[[1.0, float("nan")]]] * 12), says="E008"),
    Case("cells: embeddings with nulls", _nested([[[1.0, None]]] * 12), says="E008"),
    Case("cells: embeddings without tokens", _nested([[]] * 12), says="E008"),
    # ---- files
    Case("embedding: empty file", _file(b""), says="E007"),
    Case("embedding: text", _file(b"hello"), says="E007"),
    Case("embedding: cut", _file(b"\x93NUMPY\x01\0"), says="E007"),
    Case(
        "embedding: claims more than it holds",
        _file(b"\x93NUMPY\x01\0\x46\0{'descr': '<f4', 'fortran_order': False, 'shape': (99, 99), }       \n"),
        says="E007",
    ),
    Case(
        "embedding: header that is code",
        _file(b"\x93NUMPY\x01\0\x20\0__import__('os').system('true')\n\n"),
        says="E007",
    ),
    Case("embedding: one axis", _array(np.ones(3)), says="E008"),
    Case("embedding: complex", _array(np.ones((3, 4), complex)), says="E008"),
    Case("embedding: words", _array(np.array([["a"]])), says="E008"),
    Case("embedding: objects", _array(np.array([[None]], object)), says="E007"),
    Case("embedding: NaN", _array(np.full((3, 4), np.nan)), says="E008"),
    Case("embedding: beyond float32", _array(np.full((3, 4), 1e300)), says="E008"),
    Case("embedding: no tokens", _array(np.ones((0, 4))), says="E008"),
    Case("embedding: structured", _array(np.zeros((3, 4), [("a", "f4")])), says="E008"),
)


# ---- Generated ------------------------------------------------------------------------------------------------------

_CELLS = st.one_of(
    st.sampled_from(
        (
            "",
            " ",
            "NA",
            "nan",
            "-1",
            "1e400",
            "inf",
            "0",
            "1",
            "x",
            "\0",
            "\n",
            '"',
            "'",
            ",",
            "\u202e",
            "\ud83d\ude00",
            "-999",
            "scans/0.npy",
            "../x",
            "p0",
            "s0",
            "train",
            "0.5",
            "A" * 300,
        )
    ),
    st.text(max_size=12),
)
_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(("text", "codes", "tabular", "image", "file", "cell", "note", "stay")),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


def _paths(schema: Any, prefix: tuple = ()) -> list[tuple]:
    found = [prefix] if prefix else []
    items = schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    for key, value in items:
        found += _paths(value, (*prefix, key))
    return found


@st.composite
def manifests(draw: Callable, rows: list[list[str]]) -> tuple:
    """A schema, its rows, and changes to bytes of the files: up to three entries, six cells, and sometimes a file."""
    schema, rows = copy.deepcopy(SCHEMA), [list(row) for row in rows]
    for _ in range(draw(st.integers(0, 3)) if draw(st.booleans()) else 0):
        *parts, last = draw(st.sampled_from(_paths(schema)))
        place = schema
        for part in parts:
            place = place[part]
        if draw(st.booleans()) and isinstance(place, dict):
            del place[last]
        else:
            place[last] = draw(_VALUES)
    for _ in range(draw(st.integers(0, 6))):
        rows[draw(st.integers(0, len(rows) - 1))][draw(st.integers(0, 8))] = draw(_CELLS)
    if draw(st.integers(0, 3)) == 0:
        rows = rows[: draw(st.integers(0, len(rows)))]
    damage = []
    if draw(st.integers(0, 4)) == 0:
        name = draw(st.sampled_from(("schema.yaml", "manifest.csv", "scans/0.npy")))
        place, content, cut = draw(st.floats(0, 1)), draw(st.binary(max_size=6)), draw(st.integers(0, 6))
        damage.append((name, lambda b: b[: int(place * len(b))] + content + b[int(place * len(b)) + cut :]))
    return schema, rows, damage
