"""A row about data in other forms, damaged in all ways that exports are, and imported."""

import contextlib
import csv
import io
import json
import pathlib
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl

from remind_jax import import_data
from remind_jax.data import importers, reading
from remind_jax.data.importers import table as tables
from remind_jax.data.tables import read_table
from tests.reliability import Tally, row
from tests.reliability.records import _as_file, _bytes, _tree, _tried

ROWS = 30
_CELLS = (
    *(
        "",
        " ",
        "NA",
        "nan",
        "-1",
        "1e400",
        "inf",
        "-inf",
        "0x10",
        ">200",
        "1,5",
        "1.234,5",
        "\0",
        "\n",
        '"',
        "\x1b[31m",
    ),
    *("\u202e", "p1", "p1 ", "017", "17.0", "9" * 400, "x" * 5000, "=1+1", "2020-01-01", "a/b.nii", "../x", "Yes", "é"),
)


# ---- Sound data -----------------------------------------------------------------------------------------------------


def _table(folder: pathlib.Path, rng: np.random.Generator) -> list[str]:
    ids = [f"p{i}" for i in range(ROWS)]
    died = [None, None, *(str(i % 2) for i in range(2, ROWS))]
    first = {"stay": ids, "died": died, "age": rng.integers(20, 90, ROWS)}
    pl.DataFrame(first | {"note": [f"the patient is {i % 3}" for i in range(ROWS)]}).write_csv(folder / "stays.csv")
    pl.DataFrame({"stay": ids, "na": rng.normal(140, 3, ROWS)}).write_csv(folder / "labs.csv")
    return [f"--source={folder / 'stays.csv'}", "--label=died", "--sample=stay", f"--join={folder / 'labs.csv'}"]


def _monai(folder: pathlib.Path, rng: np.random.Generator) -> list[str]:
    items = [{"image": f"i{i}.nii.gz", "label": i % 2, "age": int(rng.integers(20, 90))} for i in range(ROWS)]
    items[3] = {"image": "i3.nii.gz"}
    content = {"training": items[:20], "validation": items[20:25], "test": items[25:]}
    (folder / "list.json").write_text(json.dumps(content), encoding="utf-8")
    return ["--from=monai", f"--source={folder / 'list.json'}"]


def _meds(folder: pathlib.Path, rng: np.random.Generator) -> list[str]:
    for part in ("data", "metadata"):
        (folder / part).mkdir()
    subject, n = np.repeat(np.arange(ROWS), 3), 3 * ROWS
    time = pl.datetime_range(pl.datetime(2020, 1, 1), pl.datetime(2020, 3, 30), "1d", eager=True)[:n]
    events = {"subject_id": subject, "time": time, "code": ["LAB//a", "LAB//b", "DX//c"] * ROWS}
    values = [None if i % 3 == 2 else float(rng.normal()) for i in range(n)]
    pl.DataFrame(events | {"numeric_value": pl.Series(values, dtype=pl.Float32)}).write_parquet(
        folder / "data" / "0.parquet"
    )
    labels = {"subject_id": np.arange(ROWS), "boolean_value": [None, *(i % 2 == 0 for i in range(1, ROWS))]}
    when = pl.DataFrame(labels).with_columns(pl.datetime(2021, 1, 1).alias("prediction_time"))
    when.write_parquet(folder / "labels.parquet")
    split = ["train"] * 20 + ["tuning"] * 5 + ["held_out"] * 5
    pl.DataFrame({"subject_id": np.arange(ROWS), "split": split}).write_parquet(
        folder / "metadata" / "subject_splits.parquet"
    )
    return ["--from=meds", f"--source={folder}", f"--labels={folder / 'labels.parquet'}"]


def _flex_moe(folder: pathlib.Path, rng: np.random.Generator) -> list[str]:
    ids = [f"002_S_{i:04}" for i in range(ROWS)]
    frame = pl.DataFrame({"PTID": ids, "DIAGNOSIS": [i % 3 for i in range(ROWS)]})
    frame.write_csv(folder / "label.csv")
    for part in ("clinical", "biospecimen", "image"):
        (folder / part).mkdir()
    for part in ("clinical", "biospecimen"):
        values = {"id": ids, f"{part}_a": rng.normal(size=ROWS), f"{part}_b": rng.integers(0, 5, ROWS)}
        pl.DataFrame(values).write_csv(folder / part / f"{part}_merged.csv")
    splits = {"training": ids[2:20], "validation": ids[20:25], "testing": ids[25:]}
    (folder / "PTID_splits.json").write_text(json.dumps(splits), encoding="utf-8")
    np.save(folder / "image" / "ADNI_G.npy", rng.normal(size=(5, 4)).astype(np.float32))
    scans = "\n".join(f"{name}_2020-01-0{i + 1}" for i, name in enumerate(ids[:5]))
    (folder / "image" / "ADNI_subj.txt").write_text(scans, encoding="utf-8")
    return ["--from=flex_moe", f"--source={folder}"]


FORMS = {"table": _table, "monai": _monai, "meds": _meds, "flex_moe": _flex_moe}


# ---- What is done to them -------------------------------------------------------------------------------------------


def _cells(rng: random.Random, file: pathlib.Path) -> str:
    """Changes cells, rows and columns of a CSV file."""
    rows = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8"))))
    how = rng.choice(("cells", "cells", "column", "double row", "no row", "no column", "double column", "short row"))
    at, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    if how == "cells":
        for _ in range(rng.randrange(1, 9)):
            rows[rng.randrange(len(rows))][rng.randrange(len(rows[0]))] = rng.choice(_CELLS)
    elif how == "column":
        value = rng.choice(_CELLS)
        for each in rows[1:]:
            each[column] = value
    elif how == "double row":
        rows.insert(at, list(rows[at]))
    elif how == "no row":
        rows = rows[: rng.randrange(len(rows))]
    elif how == "short row":
        rows[at] = rows[at][:column]
    else:
        for each in rows:
            each.insert(column, each[column]) if how == "double column" else each.pop(column)
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    file.write_text(text.getvalue(), encoding="utf-8", errors="surrogatepass")
    return how


def _frame(rng: random.Random, file: pathlib.Path) -> str:
    """Changes types, columns and rows of a parquet file."""
    table = pl.read_parquet(file)
    column = rng.choice(table.columns)
    changes: dict[str, Callable[[], pl.DataFrame]] = {
        "text": lambda: table.with_columns(pl.col(column).cast(pl.String)),
        "float": lambda: table.with_columns(pl.col(column).cast(pl.Float64, strict=False)),
        "null": lambda: table.with_columns(pl.lit(None).alias(column)),
        "some null": lambda: table.with_columns(pl.when(pl.int_range(pl.len()) % 4 > 0).then(pl.col(column))),
        "list": lambda: table.with_columns(pl.col(column).reshape((-1, 1)).arr.to_list()),
        "gone": lambda: table.drop(column),
        "renamed": lambda: table.rename({column: "other"}),
        "date": lambda: table.with_columns(pl.date(2020, 1, 1).alias(column)),
        "infinite": lambda: table.with_columns(pl.lit(float("inf")).alias(column)),
        "NaN": lambda: table.with_columns(pl.lit(float("nan")).alias(column)),
        "immense": lambda: table.with_columns(pl.lit(2**63 - 1).alias(column)),
        "words": lambda: table.with_columns(pl.lit(rng.choice(_CELLS)).alias(column)),
        "category": lambda: table.with_columns(pl.col(column).cast(pl.String).cast(pl.Categorical)),
        "bytes": lambda: table.with_columns(pl.lit(b"\xff\x00").alias(column)),
        "structure": lambda: table.with_columns(pl.struct(a=pl.col(column)).alias(column)),
        "twice": lambda: pl.concat([table, table]),
        "empty": lambda: table.head(0),
        "one row": lambda: table.head(1),
    }
    how = rng.choice(list(changes))
    changes[how]().write_parquet(file)
    return f"{how} of {column}"


def _is_usual(path: pathlib.Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 2**30


def _damage(rng: random.Random, folder: pathlib.Path) -> str:
    """Changes one or two files of a folder."""
    said = []
    for _ in range(rng.randrange(1, 3)):
        files = sorted(path for path in folder.rglob("*") if _is_usual(path))
        if not files:
            break
        file, kind = rng.choice(files), rng.random()
        if kind < 0.08:
            how = _as_file(rng, file)
        elif kind < 0.7 and file.suffix in (".csv", ".parquet", ".json") and file.stat().st_size:
            try:
                if file.suffix == ".json":
                    how, content = _tree(rng, file.read_bytes())
                    file.write_bytes(content)
                else:
                    how = (_cells if file.suffix == ".csv" else _frame)(rng, file)
            except Exception:  # of a file that is damaged already
                how = "nothing"
        elif content := file.read_bytes():
            how, new = _bytes(rng, content)
            file.write_bytes(new)
        else:
            how = "empty already"
        said.append(f"{file.name}: {how}")
    return "; ".join(said)


# ---- What comes of it -----------------------------------------------------------------------------------------------


def _rows_in(form: str, folder: pathlib.Path) -> int:
    """Counts the samples that the data have, by themselves."""
    if form == "monai":
        content = json.loads((folder / "list.json").read_text(encoding="utf-8"))
        return sum(len(content.get(section, [])) for section in tables.SPLITS)
    if form == "meds":
        return pl.read_parquet(folder / "labels.parquet").height
    return read_table(folder / ("stays.csv" if form == "table" else "label.csv")).height


def told(notes: list[str]) -> int:
    """Adds up the rows that notes leave out."""
    found = (re.match(r"([\d,]+) (?:rows?|items?|labels?|subjects?) .*left out", note) for note in notes)
    return sum(int(each[1].replace(",", "")) for each in found if each)


def _import(form: str, folder: pathlib.Path, out: pathlib.Path, arguments: list[str]) -> None:
    """Imports a folder and reads the manifest again; an AssertionError where rows are lost."""
    kept: list[tables.Imported] = []
    read = importers.read

    def remembered(options: Any) -> tables.Imported:
        kept.append(read(options))
        return kept[-1]

    importers.read = remembered
    try:
        import_data.main([*arguments, f"--out={out}"])
    finally:
        importers.read = read
    used, left = kept[0].table.height, told(kept[0].notes)
    there = _rows_in(form, folder)
    assert there == used + left, f"{there} rows, {used} used and {left} told: {kept[0].notes}"
    schema = reading.read_schema(out / "schema.yaml", 8, 2)
    written = read_table(next(out.glob("manifest.*")))
    assert written.height == used, f"{written.height} of {used} rows are written"
    absent = {column for _, column in schema.columns()} - set(written.columns)
    assert not absent, f"columns {absent} are not among {written.columns}"


@row(
    name="importers",
    title="tables, MONAI lists, MEDS cohorts, Flex-MoE folders, damaged in cells, types, bytes and files, imported",
    target="a manifest or one line, 0 tracebacks; rows in = rows used + rows told",
    unit="damaged folders",
    reduced=40,
    full=2_000,
    broken="rows that are left out are not told",
)
def damaged_imports(count: int, broken: bool) -> Tally:
    """Each form in turn, damaged as a seed says."""
    tally, rng = Tally(), random.Random(4)
    imported = 0
    with tempfile.TemporaryDirectory() as root:
        for number in range(count):
            form = list(FORMS)[number % len(FORMS)]
            folder, out = pathlib.Path(root) / "data", pathlib.Path(root) / "out"
            for each in (folder, out):
                shutil.rmtree(each, ignore_errors=True)
            folder.mkdir()
            out = folder if form in ("monai", "table") else out
            arguments = FORMS[form](folder, np.random.default_rng(0))
            what = _damage(rng, folder)

            def run(_: pathlib.Path, __: Any, form=form, folder=folder, out=out, arguments=arguments) -> None:
                nonlocal imported
                _import(form, folder, out, arguments)
                imported += 1

            with _silent_notes() if broken else contextlib.nullcontext():
                wrong = _tried(run, folder, None)
            tally.check(not wrong, f"{form}: {what}: {wrong}")
    tally.notes.append(f"{imported} of {count} folders were imported all the same, the others refused in one line")
    return tally


@contextlib.contextmanager
def _silent_notes() -> Iterator[None]:
    from_table = tables.from_table

    def silent(*arguments: Any, **options: Any) -> tables.Imported:
        return from_table(*arguments, **options)._replace(notes=[])

    places = [tables, importers.monai, importers.flex_moe]
    for place in places:
        place.from_table = silent
    try:
        yield
    finally:
        for place in places:
            place.from_table = from_table
