import collections
import csv

import numpy as np
import polars as pl
import pytest

from configs import heart
from remind_jax.data import sources
from remind_jax.data.sources import uci_heart
from remind_jax.errors import UserError

NAMES = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg"),
    *("thalach", "exang", "oldpeak", "slope", "ca", "thal", "num"),
)
# Made-up people, as the original files write them.
PEOPLE = {
    "cleveland": [
        "61.0,1.0,4.0,138.0,244.0,0.0,2.0,141.0,1.0,1.2,2.0,1.0,7.0,3",
        "45.0,0.0,2.0,112.0,0,1.0,0.0,171.0,0.0,0.0,1.0,?,3.0,0",
        "52.0,1.0,1.0,127.0,201.0,0.0,1.0,150.0,0.0,2.4,3.0,0.0,?,0",
        "58.0,0.0,3.0,131.0,260.0,0.0,0.0,155.0,0.0,0.6,1.0,2.0,6.0,1",
    ],
    "hungarian": ["40,1,2,125,?,0,0,165,0,0,?,?,?,0", "49,0,4,0,210,0,1,139,1,1.5,2,-9,-9,1"],
    "switzerland": ["55,1,4,120,0,?,0,118,1,-.7,2,?,7,4"],
    "va": ["63,1,3,?,?,?,?,?,?,?,?,?,?,2"],
}
# How the recoded copy writes what the original writes; `None` is a missing cell.
RECODED = {
    "cp": {"4": "0", "2": "1", "3": "2", "1": "3"},
    "restecg": {"2": "0", "0": "1", "1": "2"},
    "slope": {"3": "0", "2": "1", "1": "2"},
    "ca": {None: "4"},
    "thal": {None: "0", "6": "1", "3": "2", "7": "3"},
    "num": {"0": "1", "1": "0", "2": "0", "3": "0", "4": "0"},
}


def write_originals(folder, people=PEOPLE):
    folder.mkdir(exist_ok=True)
    for site, lines in people.items():
        (folder / f"processed.{site}.data").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def cells_of(line):
    return dict(zip(NAMES, line.split(","), strict=True))


def write_csv(folder, rows, header=("site", *NAMES)):
    folder.mkdir(exist_ok=True)
    with (folder / "heart.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def recoded(cells):
    """The cells of a person in the other coding."""
    plain = {name: None if cell in ("?", "-9") else cell.removesuffix(".0") for name, cell in cells.items()}
    return {name: RECODED.get(name, {}).get(cell, cell) for name, cell in plain.items()}


def rows_of_csv(recode=()):
    """Rows of the merged file, its hospitals mixed, empty cells for missing ones."""
    rows = {}
    for site, lines in PEOPLE.items():
        for i, line in enumerate(lines):
            cells = cells_of(line)
            emptied = {name: None if cell in ("?", "-9") else cell for name, cell in cells.items()}
            rows[i, site] = {"site": site} | (recoded(cells) if site in recode else emptied)
    return [rows[key] for key in sorted(rows)]


# ---- made-up people --------------------------------------------------------------------------------------------------


def test_cells_and_repairs_by_hand(tmp_path):
    manifest = uci_heart.load(write_originals(tmp_path / "four"))
    table = manifest.table
    names = ["cleveland-1", "cleveland-2", "cleveland-3", "cleveland-4"]
    assert table["sample_id"].to_list() == [*names, "hungarian-1", "hungarian-2", "switzerland-1", "va-1"]
    assert table["patient_id"].to_list() == table["sample_id"].to_list()
    assert table["trestbps"].to_list() == [138, 112, 127, 131, 125, None, 120, None]
    assert table["chol"].to_list() == [244, None, 201, 260, None, 210, None, None]
    assert table["oldpeak"].to_list() == [1.2, 0, 2.4, 0.6, 0, 1.5, -0.7, None]
    assert table["ca"].to_list() == [1, None, 0, 2, None, None, None, None]
    angina = ["asymptomatic", "atypical angina", "typical angina", "non-anginal pain"]
    assert table["cp"].to_list()[:4] == angina
    assert table["slope"].to_list()[:4] == ["flat", "upsloping", "downsloping", "upsloping"]
    assert table["restecg"].to_list()[:3] == ["left ventricular hypertrophy", "normal", "ST-T abnormality"]
    assert table["thal"].to_list()[:4] == ["reversible defect", "normal", None, "fixed defect"]
    assert manifest.labels.tolist() == [1, 0, 0, 1, 0, 1, 1, 1]
    present = ["".join("01"[int(has)] for has in row) for row in manifest.presence]
    expected = ["111111", "111101", "111110", "111111", "111100", "111100", "110101", "100000"]
    assert present == expected


def test_columns_hold_their_types_and_no_hospital(tmp_path):
    manifest = uci_heart.load(write_originals(tmp_path / "four"))
    views = {view.name: (*view.columns, *view.categorical) for view in manifest.schema.modalities}
    assert {name: set(columns) for name, columns in views.items()} == {
        "history": {"age", "sex", "cp"},
        "resting": {"trestbps", "restecg"},
        "blood": {"chol", "fbs"},
        "exercise": {"thalach", "exang", "oldpeak", "slope"},
        "fluoroscopy": {"ca"},
        "thallium": {"thal"},
    }
    strings = {"sample_id", "patient_id", "cp", "restecg", "slope", "thal", "num"}
    for name, kind in manifest.table.schema.items():
        assert kind == (pl.String if name in strings else pl.Float64), name
    assert {column for view in manifest.schema.modalities for column in view.categorical} < strings
    assert "site" not in manifest.table.columns
    assert (manifest.title, dict(manifest.published)) == ("UCI heart disease", {})


@pytest.mark.parametrize("recode", [(), ("cleveland",)], ids=["merged", "merged, Cleveland recoded"])
def test_both_layouts_give_the_same_manifest(tmp_path, recode):
    four = uci_heart.load(write_originals(tmp_path / "four"))
    rows = rows_of_csv(recode)
    assert [row["site"] for row in rows[:4]] == ["cleveland", "hungarian", "switzerland", "va"]
    merged = uci_heart.load(write_csv(tmp_path / "one", rows, header=("num", *NAMES[:5], "site", *NAMES[5:-1])))
    assert merged.table.equals(four.table, null_equal=True)
    assert merged.digest == four.digest


def test_a_recoded_hospital_is_translated_in_either_layout_and_alone(tmp_path):
    """Hungary stays as it is: the rules are not applied to hospitals in the original's coding."""
    four = uci_heart.load(write_originals(tmp_path / "four"))
    lines = [",".join(cell or "?" for cell in recoded(cells_of(line)).values()) for line in PEOPLE["cleveland"]]
    assert lines[0] == "61,1,0,138,244,0,0,141,1,1.2,1,1,3,0"
    other = uci_heart.load(write_originals(tmp_path / "other", PEOPLE | {"cleveland": lines}))
    assert other.digest == four.digest


def test_the_four_files_are_taken_where_both_are_there(tmp_path):
    folder = write_originals(tmp_path / "both")
    write_csv(folder, rows_of_csv()[:1])
    assert uci_heart.load(folder).table.height == 8


def test_source_and_config_name_the_folder(tmp_path):
    config = heart.get_config()
    assert (config.data.source, config.data.root, config.model.imputation) == ("uci_heart", "", "modality+group")
    with pytest.raises(UserError, match=r"data set 45.*10\.24432/C52P4X.*--config\.data\.root=DIR"):
        sources.load(config.data, config.seed)
    config.data.root = str(write_originals(tmp_path / "four"))
    assert sources.load(config.data, config.seed).table.height == 8


# ---- malformed -------------------------------------------------------------------------------------------------------


def refused(folder):
    with pytest.raises(UserError) as error:
        uci_heart.load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_folders_and_files(tmp_path):
    assert "does not exist" in refused(tmp_path / "nowhere")
    assert "holds neither" in refused(tmp_path)
    folder = write_originals(tmp_path / "four")
    (folder / "processed.va.data").unlink()
    assert "processed.va.data is not in the data folder" in refused(folder)
    (folder / "processed.va.data").write_text("", encoding="utf-8")
    assert "processed.va.data has no rows" in refused(folder)
    several = write_csv(tmp_path / "several", rows_of_csv())
    (several / "more.csv").write_text("site\n", encoding="utf-8")
    assert "holds neither" in refused(several)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("40,1,2,125,?,0,0,165,high,0,?,?,?,0", "column 'exang': not a number"),
        ("40,1,2,125,nan,0,0,165,0,0,?,?,?,0", "column 'chol': not a number"),
        ("40,1,5,125,?,0,0,165,0,0,?,?,?,0", "column 'cp': none of the hospital's codes 1, 2, 3, 4"),
        ("40,1,2,125,?,0,0,165,0,0,?,?,?,5", "column 'num': none of the hospital's codes 0, 1, 2, 3, 4"),
        ("40,1,2,125,?,0,0,165,0,0,?,?,?,?", "column 'num': no label"),
        ("40,1,2,125,?,0,0,165,0,0,?,?,?", "has 13 cells instead of 14"),
    ],
)
def test_a_bad_cell_is_named_by_file_row_and_column(tmp_path, line, message):
    people = PEOPLE | {"hungarian": [PEOPLE["hungarian"][0], line]}
    text = refused(write_originals(tmp_path / "four", people))
    assert text.startswith("processed.hungarian.data row 2")
    assert message in text
    assert "high" not in text


def test_two_codings_in_one_hospital_are_refused(tmp_path):
    lines = PEOPLE["cleveland"]
    lines = [*lines[:1], ",".join(cell or "?" for cell in recoded(cells_of(lines[1])).values())]
    text = refused(write_originals(tmp_path / "four", PEOPLE | {"cleveland": lines}))
    assert text.startswith("processed.cleveland.data row 1")
    assert "codes 0, 1, 2, 3" in text


def test_a_bad_merged_file_is_refused(tmp_path):
    rows = rows_of_csv()
    without = [name for name in ("site", *NAMES) if name != "thal"]
    assert "heart.csv has no column 'thal'" in refused(write_csv(tmp_path / "a", rows, header=without))
    assert "heart.csv has no column 'site'" in refused(write_csv(tmp_path / "b", rows, header=NAMES))
    twice = ("site", *NAMES, "age")
    assert "more than one column 'age'" in refused(write_csv(tmp_path / "c", rows, header=twice))
    wrong = [rows[0], rows[1] | {"site": "budapest"}]
    text = refused(write_csv(tmp_path / "d", wrong))
    assert "heart.csv row 2, column 'site'" in text
    assert "budapest" not in text
    assert "row 2, column 'age': not a number" in refused(write_csv(tmp_path / "e", [rows[0], rows[1] | {"age": "x"}]))
    assert "no rows below its header" in refused(write_csv(tmp_path / "f", []))


# ---- the real people -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(shared_data):
    folder = shared_data / "uci_heart"
    if not folder.is_dir():
        pytest.skip(f"the UCI heart data are not at {folder}")
    return folder


@pytest.fixture(scope="module")
def real(folder):
    return uci_heart.load(folder)


def combinations(present):
    return dict(collections.Counter("".join("01"[int(has)] for has in row) for row in np.asarray(present)))


def test_combinations_of_the_real_people(folder, real):
    with next(folder.glob("*.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    views = [(*view.columns, *view.categorical) for view in real.schema.modalities]
    as_written = combinations([[any(row[column] for column in view) for view in views] for row in rows])
    rest = {"111100": 375, "111000": 52, "110100": 49, "110101": 26, "110110": 5, "111001": 2}
    assert as_written == rest | {"111111": 305, "111101": 103, "111110": 3}
    # Five people of the recoded Cleveland file with unknown vessels (4) and two with unknown thallium (0).
    assert combinations(real.presence) == rest | {"111111": 298, "111101": 108, "111110": 5}


def test_labels_of_the_real_people(real):
    site = real.table["sample_id"].str.split("-").list.first()
    found = collections.Counter(zip(site, real.labels.tolist(), strict=True))
    assert {name: (found[name, 0], found[name, 1]) for name in uci_heart.SITES} == {
        # The original has 164 and 139: the recoded copy holds one healthy person twice and one ill person not at all.
        "cleveland": (165, 138),
        "hungarian": (188, 106),
        "switzerland": (8, 115),
        "va": (51, 149),
    }


def test_angina_under_strain_goes_with_disease_in_every_hospital(real):
    """Else a hospital's label is the wrong way round."""
    site = real.table["sample_id"].str.split("-").list.first().to_numpy()
    angina = real.table["exang"].to_numpy()
    for name in uci_heart.SITES:
        ill, well = (np.nanmean(angina[(site == name) & (real.labels == label)]) for label in (1, 0))
        assert ill - well > 0.2, name
