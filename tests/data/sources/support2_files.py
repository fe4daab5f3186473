"""A file in the layout of SUPPORT2 with invented people."""

import csv
import pathlib
import random
from collections.abc import Iterable, Sequence

_COLUMNS = (
    "sno age death sex hospdead slos d.time dzgroup dzclass num.co edu income scoma charges totcst totmcst avtisst "
    "race sps aps surv2m surv6m hday diabetes dementia ca prg2m prg6m dnr dnrday meanbp wblc hrt resp temp pafi alb "
    "bili crea sod ph glucose bun urine adlp adls sfdm2 adlsc"
)
COLUMNS = _COLUMNS.split()
# What tells the outcome, comes after the third day or is an answer of the study's own model.
NO_FEATURES = (
    *("sno", "death", "hospdead", "slos", "d.time", "charges", "totcst", "totmcst", "avtisst", "sps", "aps", "surv2m"),
    *("surv6m", "dnr", "dnrday", "sfdm2", "adlsc", "dzclass"),
)
CANARY = "4711.25"


def person(**cells: str) -> dict[str, str]:
    """A row; what is no feature holds a canary unless it is given."""
    row = dict.fromkeys(COLUMNS, "") | dict.fromkeys(NO_FEATURES, CANARY)
    row |= {"age": " 62.84998", "sex": "male", "dzgroup": "CHF", "ca": "no"}
    return row | {"hospdead": "0", "death": "0", "d.time": "400"} | cells


def many(number: int) -> list[dict[str, str]]:
    """So many people, of whom every third dies; the sick have no interview, others no blood gases."""
    chance, people = random.Random(0), []
    for k in range(number):
        dead = k % 3 == 0
        cells = {
            "hrt": chance.gauss(90 + 20 * dead, 9),
            "adlp" if not dead else "ph": 7.0,
            "edu": chance.choice([9, 12]),
        }
        people.append(person(hospdead=str(int(dead)), **{name: str(value) for name, value in cells.items()}))
    return people


def write(folder: pathlib.Path, rows: Iterable[dict[str, str]], columns: Sequence[str] = COLUMNS) -> pathlib.Path:
    """Writes the file into `folder` and returns that."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "support2.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder
