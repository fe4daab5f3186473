import csv
import datetime as dt
import gzip
import random
import re

import numpy as np
import polars as pl
import pytest

from remind_jax.data import check, splits
from remind_jax.data.kinds.kind import FitOptions
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.sources import mimic_iv, mimic_iv_cohort, mimic_iv_labs, mimic_iv_tables
from remind_jax.errors import UserError
from tests.data.sources import mimic_files
from tests.data.sources.mimic_files import ANN, BEN, CAI, EVE, NOTES, STAY
from tests.reference import combinations


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The invented patients, without notes."""
    return mimic_files.write(tmp_path_factory.mktemp("mimic"), mimic_files.tables())


@pytest.fixture(scope="module")
def with_notes(tmp_path_factory):
    return mimic_files.write(tmp_path_factory.mktemp("mimic"), mimic_files.tables() | mimic_files.notes())


def cells(manifest, column):
    """A column by patient."""
    ids = manifest.table["subject_id"].cast(pl.Int64).to_list()
    return dict(zip(ids, manifest.table[column].to_list(), strict=True))


def messages(manifest, code):
    return [note.message for note in manifest.notes if note.code == code]


# ---- the demo, against counts by hand and a slow second way ----------------------------------------------------------


def slow_rows(path):
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def time_of(text):
    return dt.datetime.fromisoformat(text) if text else None


def slow_cohort(demo, hours):
    """Stays of `hours` or more with their rows of the three tables, in plain Python."""
    admissions = {row["hadm_id"]: row for row in slow_rows(demo / "hosp/admissions.csv.gz")}
    died_on = {row["subject_id"]: row["dod"] for row in slow_rows(demo / "hosp/patients.csv.gz")}
    cohort = {}
    for stay in slow_rows(demo / "icu/icustays.csv.gz"):
        start, stop = time_of(stay["intime"]), time_of(stay["outtime"])
        if stop - start >= dt.timedelta(hours=hours):
            admission = admissions[stay["hadm_id"]]
            end = start + dt.timedelta(hours=hours)
            cohort[stay["stay_id"]] = (stay, admission, died_on[stay["subject_id"]], start, end)
    return cohort


def test_figures_of_the_demo(demo):
    """Counts by hand: 140 stays; 74 of 48 hours and more, 12 deaths in hospital among them; 117 of 24 and more."""
    manifest = mimic_iv.load(demo)
    assert manifest.title == "MIMIC-IV demo"
    assert manifest.published["notes+labs+icd"] == 0.403
    assert manifest.table.height == 74
    assert manifest.labels.sum() == 12
    assert messages(manifest, "I001")[0].startswith("140 stays in intensive care, 66 shorter than 48 hours")
    assert mimic_iv.load(demo, label="one_year").table.height == 117
    assert mimic_iv.load(demo, label="died_within_48h").table.height == 117
    assert not messages(manifest, "W107")
    assert manifest.schema.split is None


def test_every_stay_of_the_demo_has_codes_and_86_of_140_have_icd_9(demo):
    admissions = mimic_iv_cohort.read(demo, "hosp/admissions")
    stays = mimic_iv_cohort.read(demo, "icu/icustays")
    stays = stays.join(admissions.select("hadm_id", "admittime"), on="hadm_id")
    for versions, expected in (((9,), 86), ((9, 10), 140)):
        assert mimic_iv._codes(demo, stays, admissions, "paper", versions).is_not_null().sum() == expected


@pytest.mark.parametrize(("hours", "median"), [(24, 42.5), (48, 45.5)])
def test_labs_of_the_demo(demo, hours, median):
    """By hand: 139 of the 140 stays have labs in the first day, half of them more than 42 different ones."""
    kinds = {"subject_id": "id", "itemid": "id", "charttime": "time"}
    labs = mimic_iv_tables.find(demo, "hosp/labevents", kinds).read()
    assert labs.height == 107_727
    stays = mimic_iv_cohort.read(demo, "icu/icustays")
    inside = pl.col("charttime").is_between(pl.col("intime"), pl.col("intime") + pl.duration(hours=hours))
    distinct = stays.join(labs, on="subject_id").filter(inside).group_by("stay_id").agg(pl.col("itemid").n_unique())
    assert distinct.height == 139
    assert np.median([*distinct["itemid"].to_list(), 0]) == median


@pytest.mark.parametrize(("label", "hours"), [("ihm48", 48), ("died_within_48h", 24), ("one_year", 24)])
def test_labels_of_the_demo_against_plain_python(demo, label, hours):
    manifest = mimic_iv.load(demo, label=label)
    expected = {}
    for stay_id, (_, admission, died_on, start, _) in slow_cohort(demo, hours).items():
        death = time_of(admission["deathtime"])
        if death is None and died_on:
            death = time_of(died_on) + dt.timedelta(hours=24)
        died = {
            "ihm48": admission["hospital_expire_flag"] == "1",
            "died_within_48h": death is not None and death - start <= dt.timedelta(hours=48),
            "one_year": death is not None and death - start <= dt.timedelta(days=365),
        }
        expected[stay_id] = str(int(died[label]))
    found = dict(manifest.table.select("stay_id", manifest.schema.label).iter_rows())
    assert found == expected
    assert set(expected.values()) == {"0", "1"}
    assert manifest.table["stay_id"].to_list() == sorted(expected)


def test_measurements_of_the_demo_against_plain_python(demo):
    manifest = mimic_iv.load(demo, labs="numeric")
    cohort = slow_cohort(demo, 48)
    by_patient = {}
    for stay_id, (stay, *_) in cohort.items():
        by_patient.setdefault(stay["subject_id"], []).append(stay_id)
    item_of = {str(i): item for item in mimic_iv_labs.ITEMS for i in item.ids}
    values = {}
    for row in slow_rows(demo / "hosp/labevents.csv.gz"):
        for stay_id in by_patient.get(row["subject_id"], ()) if row["itemid"] in item_of else ():
            values.setdefault((stay_id, item_of[row["itemid"]].name), []).append(row)
    for row in slow_rows(demo / "icu/chartevents.csv.gz"):
        if row["itemid"] in item_of and row["stay_id"] in cohort:
            values.setdefault((row["stay_id"], item_of[row["itemid"]].name), []).append(row)
    table = {row["stay_id"]: row for row in manifest.table.iter_rows(named=True)}
    checked = 0
    for stay_id, row in table.items():
        *_, start, end = cohort[stay_id]
        for item in mimic_iv_labs.ITEMS:
            series = []
            for event in values.get((stay_id, item.name), ()):
                if start <= time_of(event["charttime"]) <= end and event["valuenum"]:
                    value = float(event["valuenum"])
                    value = (value - 32) / 1.8 if event["itemid"] == "223761" else value
                    value = value * 100 if event["itemid"] == "223835" and value <= 1 else value
                    if item.low <= value <= item.high:
                        series.append((event["charttime"], value))
            prefix = item.name.replace(" ", "_")
            found = [row[f"{prefix}_{name}"] for name in mimic_iv_labs.STATISTICS]
            if not series:
                assert found == [None] * 4
                continue
            numbers = [value for _, value in series]
            assert found == pytest.approx([np.mean(numbers), min(numbers), max(numbers), max(series)[1]])
            checked += 1
    assert checked > 1500


def test_earlier_codes_of_the_demo_against_plain_python(demo):
    admissions = list(slow_rows(demo / "hosp/admissions.csv.gz"))
    codes = {}
    for row in sorted(slow_rows(demo / "hosp/diagnoses_icd.csv.gz"), key=lambda row: int(row["seq_num"])):
        if row["icd_version"] == "9":
            codes.setdefault(row["hadm_id"], []).append(row["icd_code"])
    found = dict(mimic_iv.load(demo).table.select("stay_id", "icd").iter_rows())
    filled = 0
    for stay_id, (stay, own, *_) in slow_cohort(demo, 48).items():
        earlier = [
            row
            for row in admissions
            if row["subject_id"] == stay["subject_id"] and row["dischtime"] <= own["admittime"] and row is not own
        ]
        earlier.sort(key=lambda row: row["dischtime"], reverse=True)
        expected = list(dict.fromkeys(code for row in earlier for code in codes.get(row["hadm_id"], ())))
        assert found[stay_id] == (" ".join(expected) or None)
        filled += bool(expected)
    assert filled == 26


def test_the_demo_passes_the_checks_and_splits_by_patient(demo):
    manifest = mimic_iv.load(demo)
    split = splits.make_splits(manifest, 0)
    assert not splits.cut_patients(manifest.table["subject_id"].to_numpy(), split)
    assert not [finding for finding in check.find_problems(manifest, split) if finding.fatal]
    assert manifest.digest == mimic_iv.load(demo).digest


# ---- cohort and labels by hand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {ANN: "0", BEN: "1", EVE: "0"}),
        ({"label": "died_within_48h"}, {ANN: "0", BEN: "0", CAI: "1", EVE: "0"}),
        ({"label": "one_year"}, {ANN: "0", BEN: "1", CAI: "1", EVE: "1"}),
        ({"label": "one_year", "hours": 73}, {BEN: "1"}),
    ],
)
def test_labels_by_hand(folder, options, expected):
    if options.get("hours") == 73:
        # Ben dies in the last minute of his 73 hours: he does not outlive the window, and nobody else stays as long.
        with pytest.raises(UserError, match=r"no stay is left .* 1 of them last 73 hours or longer, 0"):
            mimic_iv.load(folder, **options)
        return
    manifest = mimic_iv.load(folder, **options)
    assert cells(manifest, manifest.schema.label) == expected


def test_a_stay_without_any_modality_is_counted_and_left_out(folder):
    """Fay stays for 49 hours and has neither labs nor codes."""
    assert "1 stays without any modality are left out" in messages(mimic_iv.load(folder), "I001")


def test_the_window_can_be_shorter(folder):
    text = cells(mimic_iv.load(folder, hours=2), "labs")[ANN]
    assert text == "sodium 140 mEq/L"
    with pytest.raises(UserError, match=r"data.hours of the label ihm48 must be between 1 and 48"):
        mimic_iv.load(folder, hours=49)


def test_death_outside_counts_from_the_end_of_the_day(tmp_path):
    """Eve's 48 hours end at 10 in the morning of 3 February; a death on that day may have come later."""
    for day, expected in (("2154-02-02", "1"), ("2154-02-03", "0")):
        tables = mimic_files.tables()
        next(row for row in tables["hosp/patients"] if row["subject_id"] == EVE)["dod"] = day
        manifest = mimic_iv.load(mimic_files.write(tmp_path / day, tables), label="died_within_48h")
        assert cells(manifest, "died_within_48h")[EVE] == expected


# ---- labs by hand ----------------------------------------------------------------------------------------------------


def test_lab_text_by_hand(folder):
    found = cells(mimic_iv.load(folder), "labs")
    # Two heart rates of one minute: the larger counts as the last. 38 C comes after 98.6 F.
    assert found == {
        ANN: "heart rate 90 bpm; temperature 38 C; inspired oxygen 50 %; sodium 150 mEq/L",
        BEN: "pH 7.25",
        EVE: "platelets 210 K/uL",
    }


def test_lab_numbers_by_hand(folder):
    manifest = mimic_iv.load(folder, labs="numeric")
    labs = manifest.schema.modalities[1]
    assert (labs.kind, len(labs.columns)) == ("tabular", 4 * len(mimic_iv_labs.ITEMS))
    assert [cells(manifest, f"sodium_{name}")[ANN] for name in mimic_iv_labs.STATISTICS] == [140, 130, 150, 150]
    assert cells(manifest, "temperature_min")[ANN] == pytest.approx(37.0)
    assert cells(manifest, "heart_rate_mean") == {ANN: 85.0, BEN: None, EVE: None}
    assert manifest.presence[:, 1].all()


def test_lab_events_by_hand(folder):
    """Ann's first day and a half: hours count from the end of the window, 48 hours after admission to the unit."""
    manifest = mimic_iv.load(folder, labs="events")
    labs = manifest.schema.modalities[1]
    assert (labs.kind, labs.columns, labs.options["until"], labs.options["most"]) == ("events", ("labs",), "end", 512)
    found = {stay: [tuple(e.values()) for e in cell] for stay, cell in cells(manifest, "labs").items()}
    numbers = mimic_iv.load(folder, labs="numeric")
    for stay, events in found.items():
        assert all(-48 <= hours <= 0 for hours, _, _ in events)
        assert events == sorted(events)
        for name in ("heart rate", "sodium", "temperature", "pH", "platelets"):
            own = [value for _, code, value in events if code == name]
            column = name.replace(" ", "_")
            assert cells(numbers, f"{column}_last")[stay] == (max(own[-1:], default=None) if own else None), name
            assert cells(numbers, f"{column}_min")[stay] == min(own, default=None)
    assert sum(map(len, found.values())) == 10
    last = mimic_iv.load(folder, labs="last")
    assert {c.rsplit("_", 1)[1] for c in last.schema.modalities[1].columns} == {"last"}
    assert cells(last, "sodium_last") == cells(numbers, "sodium_last")
    few = mimic_iv.load(folder, labs="events", max_events=1)
    assert {stay: [tuple(e.values()) for e in cell] for stay, cell in cells(few, "labs").items()} == {
        stay: events[-1:] for stay, events in found.items()
    }
    assert any("7 beyond the newest 1 of a stay are left out" in text for text in messages(few, "I001"))


def test_what_is_left_out_is_counted(folder):
    """Ann: potassium without a number; creatinine in umol/L; glucose 999999 and a heart rate of 0."""
    text = "10 labs and vital signs are used, 1 without a number, 1 in another unit, 2 implausible are left out"
    assert text in messages(mimic_iv.load(folder), "I001")


def test_items_are_sound():
    items = mimic_iv_labs.ITEMS
    ids = [i for item in items for i in item.ids]
    assert len(set(ids)) == len(ids)
    assert len({item.name for item in items}) == len(items)
    assert all(item.low < item.high for item in items)
    assert all(unit == unit.lower() for item in items for unit in item.units)


# ---- codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {ANN: "0389 25000", BEN: None, EVE: None}),
        ({"icd_versions": (10,)}, {ANN: None, BEN: None, EVE: "I509"}),
        ({"icd_versions": (9, 10)}, {ANN: "0389 25000", BEN: None, EVE: "10-I509"}),
        ({"codes": "paper"}, {ANN: "99592", BEN: "78552", EVE: None}),
    ],
)
def test_codes_by_hand(folder, options, expected):
    manifest = mimic_iv.load(folder, **options)
    assert cells(manifest, "icd") == expected
    assert len(messages(manifest, "W107")) == ("codes" in options)


def test_codes_can_be_read_as_text(folder):
    """The paper treats each modality as text (7.4.2): the same cells, of a kind that a pretrained T5 serves."""
    for options in ({}, {"codes": "paper"}):
        as_codes, as_text = (mimic_iv.load(folder, icd=icd, **options) for icd in ("codes", "text"))
        assert cells(as_text, "icd") == cells(as_codes, "icd")
        kinds = [[modality.kind for modality in manifest.schema.modalities] for manifest in (as_codes, as_text)]
        assert kinds == [["text", "text", "codes"], ["text", "text", "text"]]
        np.testing.assert_array_equal(as_text.presence, as_codes.presence)


def test_codes_of_the_demo_as_text(demo):
    manifest = mimic_iv.load(demo, icd="text", codes="paper", icd_versions=(9, 10))
    split = splits.make_splits(manifest, 0)
    assert not [finding for finding in check.find_problems(manifest, split) if finding.fatal]
    fitted = Preprocessor.fit(manifest, np.flatnonzero(split == splits.TRAIN), FitOptions(32, 200))
    assert fitted.inputs["icd"].kind == "text"
    listed = manifest.table["icd"].drop_nulls().str.split(" ").explode().value_counts(sort=True)
    tokenizer = fitted.fitted["icd"].tokenizer
    for code in listed["icd"][:5]:  # what many stays have is written in pieces of its own
        assert "".join(tokenizer.encode(code).tokens) == f"▁{code}</s>"


def test_leaky_options_are_named_as_leaks(with_notes):
    manifest = mimic_iv.load(with_notes, codes="paper", notes="paper")
    texts = messages(manifest, "W107")
    assert ["data.notes=paper" in text or "data.codes=paper" in text for text in texts] == [True, True]
    assert all("leaks" in text for text in texts)
    assert not any(note.fatal for note in manifest.notes)


# ---- notes -----------------------------------------------------------------------------------------------------------


def plain(*keys):
    return "\n".join(" ".join(NOTES[key].split()) for key in keys)


def test_notes_are_those_known_by_the_end_of_the_window(with_notes):
    manifest = mimic_iv.load(with_notes)
    assert cells(manifest, "notes") == {
        ANN: plain("report", "earlier summary", "report of long ago"),
        BEN: plain("report"),
        EVE: None,
    }
    text = "4 notes are used, 2 of them name no known admission and go by patient and time"
    assert text in messages(manifest, "I001")


def test_no_note_of_the_outcome_gets_in_unless_asked(with_notes):
    hidden = ("own summary", "own summary at midnight", "report signed late", "report of later", "report of nobody")
    everything = " ".join(mimic_iv.load(with_notes).table["notes"].drop_nulls())
    assert not [key for key in hidden if plain(key) in everything]
    leaky = mimic_iv.load(with_notes, notes="paper")
    everything = " ".join(leaky.table["notes"].drop_nulls())
    assert [key for key in hidden if plain(key) not in everything] == ["report of nobody"]
    assert cells(leaky, "notes")[EVE] == plain("own summary at midnight")


def test_notes_are_cut_newest_first(with_notes):
    whole = cells(mimic_iv.load(with_notes), "notes")[ANN]
    for most in (1, 40, len(plain("report")) + 5, 10_000):
        assert cells(mimic_iv.load(with_notes, note_characters=most), "notes")[ANN] == whole[:most]


def test_notes_in_a_folder_of_their_own(folder, tmp_path, with_notes):
    mimic_files.write(tmp_path, mimic_files.notes())
    expected = mimic_iv.load(with_notes).digest
    assert mimic_iv.load(folder, notes_root=tmp_path).digest == expected
    assert mimic_iv.load(folder, notes_root=tmp_path / "note").digest == expected
    assert mimic_iv.load(folder).digest != expected


def test_one_table_of_notes_is_enough(folder, tmp_path):
    only = {"note/radiology": mimic_files.notes()["note/radiology"]}
    manifest = mimic_iv.load(folder, notes_root=mimic_files.write(tmp_path, only))
    assert cells(manifest, "notes")[ANN] == plain("report", "report of long ago")


def test_without_notes_all_cells_are_empty_and_that_is_said(folder):
    manifest = mimic_iv.load(folder)
    assert manifest.table["notes"].dtype == pl.String
    assert not manifest.presence[:, 0].any()
    assert any("data.notes_root" in text for text in messages(manifest, "I001"))


# ---- layout ----------------------------------------------------------------------------------------------------------


def test_order_of_rows_and_columns_and_packing_do_not_matter(tmp_path, with_notes):
    expected = mimic_iv.load(with_notes, labs="numeric").digest
    tables, columns = mimic_files.tables() | mimic_files.notes(), {}
    chance = random.Random(0)
    for name, rows in tables.items():
        chance.shuffle(rows)
        names = [*mimic_files.COLUMNS[name].split(), "column_of_a_later_version"]
        chance.shuffle(names)
        columns[name] = names
    other = mimic_files.write(tmp_path, tables, columns, packed=False)
    assert mimic_iv.load(other, labs="numeric").digest == expected


def test_columns_that_are_not_read_may_be_absent(tmp_path, folder):
    """Version 3 dropped some, and reduced copies have few."""
    keep = {column for kinds in (mimic_iv_cohort.TABLES | mimic_iv_labs.TABLES).values() for column in kinds}
    columns = {name: [c for c in text.split() if c in keep] for name, text in mimic_files.COLUMNS.items()}
    rows = {
        name: [{c: v for c, v in row.items() if c in keep} for row in table]
        for name, table in mimic_files.tables().items()
    }
    assert mimic_iv.load(mimic_files.write(tmp_path, rows, columns)).digest == mimic_iv.load(folder).digest


@pytest.mark.parametrize(
    ("file", "text", "title"),
    [
        ("CHANGELOG.txt", "# Changes\n\n## [3.1] - new\n## [3.0]\n", "MIMIC-IV 3.1"),
        ("README.txt", "This is MIMIC-IV v2.2, licence 1.5.0", "MIMIC-IV 2.2"),
        ("LICENSE.txt", "PhysioNet Credentialed Health Data License Version 1.5.0", "MIMIC-IV"),
        ("demo_subject_id.csv", "subject_id\n", "MIMIC-IV demo"),
    ],
)
def test_title_names_the_version_where_it_can_be_told(tmp_path, file, text, title):
    root = mimic_files.write(tmp_path / "somewhere", mimic_files.tables())
    (root / file).write_text(text)
    assert mimic_iv.load(root).title == title
    assert mimic_iv.load(root.rename(tmp_path / "2.2")).title in (title, title.replace("IV", "IV 2.2"))


# ---- missing at random -----------------------------------------------------------------------------------------------


def test_bernoulli_drops_among_what_is_there():
    n = 30_000
    kinds = np.arange(n) % 3
    here = np.array([[True, True, True], [True, False, True], [False, True, False]])[kinds]
    columns = {"notes": ("notes",), "labs": ("a", "b"), "icd": ("icd",)}
    series = {name: [None if not h else "x" for h in here[:, j]] for name, j in (("notes", 0), ("a", 1), ("icd", 2))}
    table = pl.DataFrame(series | {"b": series["a"], "row": np.arange(n)})
    masked = mimic_iv._mask(table, columns, 0.266, 5)
    assert masked["row"].equals(table["row"])
    assert masked["a"].is_null().equals(masked["b"].is_null(), check_names=False)
    left = mimic_iv._presence(masked, columns)
    assert not (left & ~here).any()
    assert left.any(axis=1).all()
    assert (left[kinds == 2] == here[kinds == 2]).all()
    patterns = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]], bool)
    for kind, masks in ((0, patterns), (1, np.array([[1, 0, 1], [1, 0, 0], [0, 0, 1]], bool))):
        expected = combinations.bernoulli_frequencies(masks[:, here[kind]], 0.266)
        drawn = combinations.group_frequencies(left[kinds == kind], masks)
        assert (np.abs(drawn - expected) < 4 * np.sqrt(expected * (1 - expected) / 10_000)).all()


def test_bernoulli_is_fixed_by_its_seed(with_notes):
    natural = mimic_iv.load(with_notes).presence
    assert (mimic_iv.load(with_notes, missing="bernoulli", drop=0.0).presence == natural).all()
    one, same, other = (mimic_iv.load(with_notes, missing="bernoulli", drop=0.6, seed=s).presence for s in (1, 1, 2))
    assert (one == same).all()
    assert one.sum() < natural.sum()
    assert (one != other).any()


# ---- what is refused -------------------------------------------------------------------------------------------------


def damaged(tmp_path, damage):
    """The invented folder after `damage(tables, columns)`, with notes."""
    tables = mimic_files.tables() | mimic_files.notes()
    columns = {name: text.split() for name, text in mimic_files.COLUMNS.items()}
    damage(tables, columns)
    return mimic_files.write(tmp_path, tables, columns)


def drop_column(name, column):
    def damage(tables, columns):
        columns[name].remove(column)
        for row in tables[name]:
            row.pop(column, None)

    return damage


def put(name, column, value):
    def damage(tables, columns):
        tables[name][0][column] = value

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t, c: t.pop("hosp/labevents"), r"hosp/labevents\.csv\.gz is not in the folder"),
        (lambda t, c: t.pop("icu/icustays"), r"icu/icustays\.csv\.gz is not in the folder"),
        (drop_column("hosp/labevents", "itemid"), r"hosp/labevents\.csv\.gz has no column 'itemid'"),
        (drop_column("icu/icustays", "intime"), r"icu/icustays\.csv\.gz has no column 'intime'"),
        (drop_column("note/radiology", "storetime"), r"note/radiology\.csv\.gz has no column 'storetime'"),
        (put("hosp/admissions", "hadm_id", "A-17"), r"admissions.*'hadm_id' has 1 cells that are not whole numbers"),
        (put("icu/icustays", "intime", "yesterday"), r"icustays.*'intime' has 1 cells that are not times"),
        (put("hosp/patients", "dod", "2150"), r"patients.*'dod' has 1 cells that are not dates"),
        (put("hosp/labevents", "valuenum", "high"), r"labevents.*'valuenum' has 1 cells that are not numbers"),
        (put("hosp/labevents", "charttime", "noon"), r"labevents.*'charttime' has 1 cells that are not times"),
        (put("icu/chartevents", "stay_id", "x"), r"chartevents.*'stay_id' has 1 cells that are not whole numbers"),
        (put("note/discharge", "hadm_id", "x"), r"discharge.*'hadm_id' has 1 cells that are not whole numbers"),
        (put("note/discharge", "charttime", "x"), r"discharge.*'charttime' has 1 cells that are not times"),
        (put("hosp/admissions", "hospital_expire_flag", 2), r"'hospital_expire_flag' has cells that are not 0 or 1"),
        (put("icu/icustays", "stay_id", None), r"icustays: column 'stay_id' has 1 cells that are empty"),
        (
            lambda t, c: t["icu/icustays"].append(t["icu/icustays"][0]),
            r"'stay_id' has 2 cells that are used by another",
        ),
        (lambda t, c: t["hosp/patients"].clear(), r"no stay is left for the label ihm48: of 6 stays 0 have admission"),
    ],
)
def test_damage_is_named_in_one_line_without_ids(tmp_path, damage, message):
    root = damaged(tmp_path, damage)
    with pytest.raises(UserError, match=message) as error:
        mimic_iv.load(root)
    text = str(error.value)
    assert "\n" not in text
    assert not re.search(r"\d{8}|A-17|yesterday|noon", text)


@pytest.mark.parametrize("table", ["hosp/admissions", "hosp/labevents", "icu/chartevents", "note/radiology"])
@pytest.mark.parametrize("keep", [0.6, 12])
def test_truncated_gzip_is_named(tmp_path, table, keep):
    root = mimic_files.write(tmp_path, mimic_files.tables() | mimic_files.notes())
    path = root / f"{table}.csv.gz"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if keep < 1 else keep])
    with pytest.raises(UserError, match=rf"{table}\.csv\.gz is cut off"):
        mimic_iv.load(root)


def test_cut_off_in_the_middle_of_a_large_table(tmp_path, demo):
    """The header can still be read there, and the rows before the end."""
    for name in ("hosp", "icu"):
        (tmp_path / name).mkdir()
        for path in (demo / name).iterdir():
            (tmp_path / name / path.name).symlink_to(path)
    path = tmp_path / "hosp/labevents.csv.gz"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"hosp/labevents\.csv\.gz is cut off or damaged"):
        mimic_iv.load(tmp_path)


def test_a_file_that_only_has_the_name_of_gzip(tmp_path):
    root = mimic_files.write(tmp_path, mimic_files.tables())
    path = root / "hosp/labevents.csv.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    with pytest.raises(UserError, match="not a gzip file"):
        mimic_iv.load(root)


def test_rows_that_do_not_fit_the_header(tmp_path):
    root = mimic_files.write(tmp_path, mimic_files.tables(), packed=False)
    path = root / "hosp/diagnoses_icd.csv"
    path.write_bytes(path.read_bytes() + b"1,2,3,4,5,6,7\n")
    with pytest.raises(UserError, match=r"hosp/diagnoses_icd\.csv cannot be read as UTF-8 CSV"):
        mimic_iv.load(root)


def test_folders_that_are_not_mimic(tmp_path, folder):
    with pytest.raises(UserError, match="does not exist"):
        mimic_iv.load(tmp_path / "absent")
    with pytest.raises(UserError, match="needs the folders hosp and icu"):
        mimic_iv.load(tmp_path)
    with pytest.raises(UserError, match=r"folder of notes .* does not exist"):
        mimic_iv.load(folder, notes_root=tmp_path / "absent")
    with pytest.raises(UserError, match=r"neither discharge\.csv\.gz nor radiology\.csv\.gz"):
        mimic_iv.load(folder, notes_root=tmp_path)


def test_a_stay_of_an_unknown_admission_is_counted(tmp_path):
    root = damaged(tmp_path, lambda t, c: t["hosp/admissions"].pop(0))  # Ann's
    manifest = mimic_iv.load(root)
    assert set(cells(manifest, "died_in_hospital")) == {BEN, EVE}
    assert "1 without admission or patient in their tables" in messages(manifest, "I001")[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "ihm"}, r"data.label is 'ihm' \(did you mean 'ihm48'\?\)"),
        ({"labs": "numbers"}, "data.labs"),
        ({"codes": "leaky"}, "known: earlier, paper"),
        ({"icd": "txt"}, r"data.icd is 'txt' \(did you mean 'text'\?\); known: codes, text"),
        ({"notes": "all"}, "data.notes"),
        ({"missing": "published"}, "known: natural, bernoulli"),
        ({"icd_versions": ()}, "data.icd_versions"),
        ({"icd_versions": (9, 11)}, "data.icd_versions"),
        ({"note_characters": 0}, "note_characters"),
        ({"hours": -1}, "data.hours"),
        ({"missing": "bernoulli", "drop": 1.0}, "drop probability"),
    ],
)
def test_unknown_options_are_refused(folder, options, message):
    with pytest.raises(UserError, match=message):
        mimic_iv.load(folder, **options)


def test_stay_ids_are_those_of_the_file(folder):
    manifest = mimic_iv.load(folder)
    assert cells(manifest, "stay_id") == {p: str(STAY[p]) for p in (ANN, BEN, EVE)}
