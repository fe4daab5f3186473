"""UCI heart disease: 920 people of four hospitals, where the hospital decides which examinations are missing.

Janosi, Steinbrunn, Pfisterer and Detrano 1989, https://doi.org/10.24432/C52P4X, CC BY 4.0; a folder on disk. The task
is whether angiography found a narrowed artery (`num` above 0); grades beyond that are not comparable between copies.
The hospital is no feature, but the missing views tell much of it.

Copies of the Cleveland file go round that number chest pain, ECG, slope and thallium anew, write unknown vessels as 4
and unknown thallium as 0, and have the label the other way round: 1 is a person *without* disease. Compared person by
person with the original, all 303 rows of such a copy follow the rules of `_RECODED` (one person stands there twice and
one not at all). It is recognised by codes that the original does not have, and translated back.
"""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import polars as pl

from remind_jax.data.manifest import Manifest
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError, did_you_mean

CLASSES = ("no disease", "disease")
TITLE = "UCI heart disease"
SITES = ("cleveland", "hungarian", "switzerland", "va")
"""The hospitals, in the order of the rows."""

# view -> (numeric columns, categorical columns)
VIEWS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "history": (("age", "sex"), ("cp",)),
    "resting": (("trestbps",), ("restecg",)),
    "blood": (("chol", "fbs"), ()),
    "exercise": (("thalach", "exang", "oldpeak"), ("slope",)),
    "fluoroscopy": (("ca",), ()),
    "thallium": ((), ("thal",)),
}
COLUMNS = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg"),
    *("thalach", "exang", "oldpeak", "slope", "ca", "thal", "num"),
)
"""The columns of the original files, in their order."""

_Cell = float | str | None
_MISSING = -9.0
_ZERO_IS_MISSING = ("trestbps", "chol")
_YES_NO: Mapping[float, _Cell] = {0: 0.0, 1: 1.0}
# What each code stands for; the columns not named here are measurements.
_ORIGINAL: dict[str, Mapping[float, _Cell]] = {
    "sex": _YES_NO,
    "cp": {1: "typical angina", 2: "atypical angina", 3: "non-anginal pain", 4: "asymptomatic"},
    "fbs": _YES_NO,
    "restecg": {0: "normal", 1: "ST-T abnormality", 2: "left ventricular hypertrophy"},
    "exang": _YES_NO,
    "slope": {1: "upsloping", 2: "flat", 3: "downsloping"},
    "ca": {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0},
    "thal": {3: "normal", 6: "fixed defect", 7: "reversible defect"},
    "num": {0: CLASSES[0]} | dict.fromkeys((1, 2, 3, 4), CLASSES[1]),
}
_RECODED: dict[str, Mapping[float, _Cell]] = _ORIGINAL | {
    "cp": {3: "typical angina", 1: "atypical angina", 2: "non-anginal pain", 0: "asymptomatic"},
    "restecg": {1: "normal", 2: "ST-T abnormality", 0: "left ventricular hypertrophy"},
    "slope": {2: "upsloping", 1: "flat", 0: "downsloping"},
    "ca": {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0, 4: None},
    "thal": {2: "normal", 1: "fixed defect", 3: "reversible defect", 0: None},
    "num": {1: CLASSES[0], 0: CLASSES[1]},
}
# Codes that only the recoded copy has.
_MARKS = {"cp": (0,), "thal": (0, 1, 2)}


@dataclasses.dataclass(frozen=True)
class _Person:
    """One row: where it stands, for messages, and its numbers by column; None where missing."""

    file: str
    row: int
    numbers: Mapping[str, float | None]


def load(root: str | pathlib.Path) -> Manifest:
    """Reads everybody in the folder, each group of examinations a tabular modality.

    Numeric cells are in the files' units: years, mmHg (trestbps), mg/dl (chol; fbs says whether the fasting sugar is
    above 120), beats a minute (thalach), mm of ST depression (oldpeak), vessels (ca); sex is 1 for men. `?`, -9 and an
    empty cell are missing, as is a blood pressure or a cholesterol of 0, which nobody alive has. `root` holds
    `processed.{cleveland,hungarian,switzerland,va}.data` as UCI gives them out (no header), or one CSV of all people
    (header; the same column names and `site`, the hospital); the four files are taken where both are there.

    Returns a manifest with one row a person in the order of `SITES`, without a split column; ids are the hospital and
    the person's row among its people, counted from 1. Raises UserError: there is no such folder or file, a column is
    missing, or a cell is not what its column holds.
    """
    if not str(root):
        raise UserError(
            "data.root is empty: download Heart Disease (data set 45) from the UCI Machine Learning Repository, "
            "https://doi.org/10.24432/C52P4X, unpack it and pass the folder with --config.data.root=DIR"
        )
    folder = pathlib.Path(root)
    if not folder.is_dir():
        raise UserError(f"data folder {str(root)!r} does not exist or is not a folder")
    if any(_original(folder, site).exists() for site in SITES):
        people = {site: list(_read_original(_original(folder, site))) for site in SITES}
    else:
        people = _read_merged(_only_csv(folder))
    rows = [row for site in SITES for row in _rows(site, people[site])]
    numeric = [column for columns, _ in VIEWS.values() for column in columns]
    types = {column: pl.Float64 if column in numeric else pl.String for column in rows[0]}
    schema = Schema(
        name="uci_heart",
        sample_id="sample_id",
        patient_id="patient_id",
        label="num",
        title="heart disease",
        classes=CLASSES,
        modalities=tuple(Modality(name, "tabular", *columns) for name, columns in VIEWS.items()),
    )
    return Manifest(schema=schema, table=pl.DataFrame(rows, schema=types), title=TITLE)


def _original(folder: pathlib.Path, site: str) -> pathlib.Path:
    return folder / f"processed.{site}.data"


def _only_csv(folder: pathlib.Path) -> pathlib.Path:
    paths = sorted(folder.glob("*.csv"))
    if len(paths) != 1:
        raise UserError(
            f"data folder {str(folder)!r} holds neither processed.{{{','.join(SITES)}}}.data nor one CSV of all people"
        )
    return paths[0]


def _lines(path: pathlib.Path) -> Iterator[list[str]]:
    try:
        # What is no UTF-8 is no number either, and is refused as such.
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            yield from (line for line in csv.reader(file) if line)
    except (OSError, csv.Error) as error:
        raise UserError(f"{path.name} cannot be read ({type(error).__name__})") from None


def _read_original(path: pathlib.Path) -> Iterator[_Person]:
    if not path.is_file():
        raise UserError(f"{path.name} is not in the data folder; all four hospitals' files are needed")
    row = 0
    for row, cells in enumerate(_lines(path), start=1):
        yield _person(path.name, row, COLUMNS, cells)
    if not row:
        raise UserError(f"{path.name} has no rows")


def _read_merged(path: pathlib.Path) -> dict[str, list[_Person]]:
    lines = _lines(path)
    header = [name.strip() for name in next(lines, [])]
    for column in ("site", *COLUMNS):
        if header.count(column) != 1:
            how = "no" if column not in header else "more than one"
            raise UserError(f"{path.name} has {how} column {column!r}{did_you_mean(column, header)}")
    people: dict[str, list[_Person]] = {site: [] for site in SITES}
    for row, cells in enumerate(lines, start=1):
        person = _person(path.name, row, header, cells)
        site = cells[header.index("site")].strip()
        if site not in people:
            raise UserError(f"{path.name} row {row}, column 'site': none of {', '.join(SITES)}")
        people[site].append(person)
    if not any(people.values()):
        raise UserError(f"{path.name} has no rows below its header")
    return people


def _person(file: str, row: int, header: Sequence[str], cells: Sequence[str]) -> _Person:
    if len(cells) != len(header):
        raise UserError(f"{file} row {row} has {len(cells)} cells instead of {len(header)}")
    by_name = dict(zip(header, cells, strict=True))
    return _Person(file, row, {column: _number(by_name[column], file, row, column) for column in COLUMNS})


def _number(cell: str, file: str, row: int, column: str) -> float | None:
    cell = cell.strip()
    if cell in ("", "?"):
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{file} row {row}, column {column!r}: not a number; a missing cell is empty, ? or -9")
    missing = value == _MISSING or (value == 0 and column in _ZERO_IS_MISSING)
    return None if missing else value


def _rows(site: str, people: Sequence[_Person]) -> Iterator[dict[str, _Cell]]:
    recoded = any(person.numbers[column] in codes for person in people for column, codes in _MARKS.items())
    codes = _RECODED if recoded else _ORIGINAL
    for number, person in enumerate(people, start=1):
        name = f"{site}-{number}"
        yield {"sample_id": name, "patient_id": name} | _decoded(person, codes)


def _decoded(person: _Person, codes: Mapping[str, Mapping[float, _Cell]]) -> dict[str, _Cell]:
    cells: dict[str, _Cell] = {}
    for column, value in person.numbers.items():
        where = f"{person.file} row {person.row}, column {column!r}"
        if value is None or column not in codes:
            cells[column] = value
        elif value in codes[column]:
            cells[column] = codes[column][value]
        else:
            known = ", ".join(map(str, sorted(codes[column])))
            raise UserError(f"{where}: none of the hospital's codes {known}")
        if column == "num" and cells[column] is None:
            raise UserError(f"{where}: no label; leave the person out")
    return cells
