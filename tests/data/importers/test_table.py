"""Tables as people have them, turned into folders that pass the checks."""

import datetime

import numpy as np
import polars as pl
import pytest
import yaml

from remind_jax import check_data, import_data
from remind_jax.data import check, reading, splits
from remind_jax.data.importers import table
from remind_jax.errors import UserError


def _imported(*arguments):
    import_data.main([str(argument) for argument in arguments])


def _schema(folder):
    return yaml.safe_load((folder / "schema.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def raw(tmp_path):
    """Raw tables of 60 stays of 30 patients; labs of every second stay, notes of every third, one number, one scan."""
    n, rng = 60, np.random.default_rng(0)
    stays = [f"s{i}" for i in range(n)]
    table = {"stay": stays, "person": [i // 2 for i in range(n)], "died": [i % 2 for i in range(n)]}
    table |= {"age": rng.integers(20, 90, n).tolist(), "sex": ["mf"[i // 2 % 2] for i in range(n)]}
    table |= {"admitted": ["2020-01-02"] * n, "scan": [f"scans/{i}.npy" if i < 3 else None for i in range(n)]}
    pl.DataFrame(table).write_csv(tmp_path / "stays.csv")
    labs = pl.DataFrame({"stay": stays[::2], "na": rng.normal(140, 3, 30), "k": ["NA"] + ["4.1"] * 29})
    labs.write_csv(tmp_path / "labs.csv")
    words = [f"patient number {i} is stable, no fever, on oxygen" for i in range(20)]
    notes = {"stay": stays[::3], "note": words, "icd": ["I10 E11.9" if i % 2 else "J18.9" for i in range(20)]}
    pl.DataFrame(notes).write_csv(tmp_path / "notes.csv")
    (tmp_path / "scans").mkdir()
    for i in range(3):
        np.save(tmp_path / "scans" / f"{i}.npy", np.full((2, 3), i, np.float32))
    return tmp_path


def _arguments(raw, **changes):
    options = {"from": "table", "source": raw / "stays.csv", "out": raw, "label": "died", "sample": "stay"}
    options |= {"patient": "person", "join": f"{raw / 'labs.csv'},{raw / 'notes.csv'}"}
    return [f"--{key}={value}" for key, value in (options | changes).items()]


def test_raw_tables_become_a_manifest(raw, capsys):
    _imported(*_arguments(raw))
    assert _schema(raw) == {
        "version": 1,
        "name": raw.name,
        "sample_id": "stay",
        "patient_id": "person",
        "label": {"column": "died", "classes": ["0", "1"]},
        "modalities": {
            "stays": {"kind": "tabular", "columns": ["age"], "categorical": ["sex"]},
            "scan": {"kind": "embedding", "column": "scan"},
            "labs": {"kind": "tabular", "columns": ["na", "k"]},
            "note": {"kind": "text", "column": "note"},
            "icd": {"kind": "codes", "column": "icd"},
        },
    }
    found = reading.read_manifest(raw)
    expected = np.ones((60, 5), bool)
    expected[:, 1] = np.arange(60) < 3
    expected[:, 2] = np.arange(60) % 2 == 0
    expected[:, 3:] = (np.arange(60) % 3 == 0)[:, None]
    np.testing.assert_array_equal(found.presence, expected)
    assert found.table["person"].n_unique() == 30
    assert found.table["k"].null_count() == 31  # NA of a stay with labs, and the stays without
    shown = capsys.readouterr().out
    assert "1 column left out (a time): admitted" in shown
    assert check_data.run([str(raw)]) == 0


def test_kinds_can_be_told_and_columns_skipped(raw):
    _imported(*_arguments(raw, kind="age=category,scan=skip,note=skip"))
    modalities = _schema(raw)["modalities"]
    assert modalities["stays"] == {"kind": "tabular", "categorical": ["age", "sex"]}
    assert set(modalities) == {"stays", "labs", "icd"}


def test_paths_start_from_the_manifest(raw):
    above = raw.parent
    _imported(*_arguments(raw, out=above, join=""))
    assert reading.read_manifest(above).table["scan"][1] == f"{raw.name}/scans/1.npy"
    (above / "manifest.csv").unlink()
    (above / "schema.yaml").unlink()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "dead"}, r"label=dead is no column \(did you mean 'died'\?\)"),
        ({"label": ""}, "no label"),
        ({"sample": "", "patient": ""}, "no column an id"),
        ({"kind": "age=image_"}, "did you mean 'image'"),
        ({"kind": "aeg=number"}, "did you mean 'age'"),
        ({"kind": "age"}, "NAME=VALUE"),
        ({"from": "tabel"}, "did you mean 'table'"),
        ({"source": "nowhere.csv"}, "does not exist"),
        ({"out": "other"}, "must lie below the folder of --out"),
        ({"split": "died"}, "'died' cannot be label, split or id at once"),
        ({"modality": "x=agge"}, r"modality 'x': no column matches 'agge' \(did you mean 'age'\?\)"),
        ({"modality": "x=a*+s*"}, "several kinds.*age \\(number\\)"),
    ],
)
def test_mistakes_are_named(raw, changes, message, monkeypatch):
    monkeypatch.chdir(raw)
    with pytest.raises(UserError, match=message):
        _imported(*_arguments(raw, **changes))
    assert not (raw / "schema.yaml").exists()


def test_several_rows_of_one_id_and_a_second_manifest_are_refused(raw):
    pl.concat([pl.read_csv(raw / "labs.csv")] * 2).write_csv(raw / "labs.csv")
    with pytest.raises(UserError, match="several rows of one stay"):
        _imported(*_arguments(raw))
    _imported(*_arguments(raw, join=""))
    with pytest.raises(UserError, match=r"holds schema\.yaml already"):
        _imported(*_arguments(raw, join=""))


def _frame(n=40):
    """Stays with two groups of labs, a class, and things that look like ids of others."""
    rng = np.random.default_rng(1)
    columns = {"patientunitstayid": range(n), "uniquepid": [i // 2 for i in range(n)], "y": [i % 2 for i in range(n)]}
    columns |= {f"aps_{k}": rng.normal(size=n) for k in "abc"} | {
        "lab_na": rng.normal(size=n),
        "age": [i * 7 % 23 for i in range(n)],
    }
    return pl.DataFrame(columns | {"lab_word": ["low", "high"] * (n // 2), "note": [f"in bed {i}" for i in range(n)]})


def test_ids_keep_the_names_that_the_user_has(tmp_path):
    found = table.from_table(_frame(), name="icu", label="y", sample="patientunitstayid", patient="uniquepid")
    assert (found.schema["sample_id"], found.schema["patient_id"]) == ("patientunitstayid", "uniquepid")
    table.write(found, tmp_path)
    read = reading.read_manifest(tmp_path)
    assert read.table["patientunitstayid"].to_list() == [str(i) for i in range(40)]
    assert read.table["uniquepid"].n_unique() == 20


def test_without_ids_rows_are_counted_and_each_is_a_patient(tmp_path):
    frame = _frame().rename({"uniquepid": "sample_id"}).drop("patientunitstayid")
    found = table.from_table(frame, name="icu", label="y")
    assert found.schema["sample_id"] == found.schema["patient_id"] == "sample_id_"  # the user's own is a column
    assert "sample_id" not in found.schema["modalities"]["icu"]["columns"]
    assert any("(ids that no option names): sample_id; naming its kind keeps" in note for note in found.notes)
    assert any("each row counts as one" in note for note in found.notes)
    table.write(found, tmp_path)
    manifest = reading.read_manifest(tmp_path)
    assert manifest.table["sample_id_"].to_list() == [str(i + 1) for i in range(40)]
    split = splits.make_splits(manifest, 0)
    assert set(split.tolist()) == {0, 1, 2}
    assert not [finding for finding in check.find_problems(manifest, split) if finding.fatal]


def test_a_wide_table_is_split_by_patterns(tmp_path):
    _frame().write_csv(tmp_path / "icu.csv")
    options = {"from": "table", "source": tmp_path / "icu.csv", "out": tmp_path, "label": "y"}
    options |= {"sample": "patientunitstayid", "patient": "uniquepid"}
    _imported(*(f"--{k}={v}" for k, v in options.items()), "--modality=labs=lab_*+age,aps=aps_*")
    modalities = _schema(tmp_path)["modalities"]
    assert modalities == {
        "labs": {"kind": "tabular", "columns": ["lab_na", "age"], "categorical": ["lab_word"]},
        "aps": {"kind": "tabular", "columns": ["aps_a", "aps_b", "aps_c"]},
        "note": {"kind": "text", "column": "note"},
    }
    assert list(modalities) == ["labs", "aps", "note"]
    assert reading.read_manifest(tmp_path).presence.all()


def test_the_rest_gets_a_name_of_its_own_or_is_left_out():
    options = {"name": "icu", "label": "y", "sample": "patientunitstayid", "patient": "uniquepid"}
    told = {"icu": ["aps_*"], "text": {"kind": "text", "column": "note"}}
    found = table.from_table(_frame(), **options, modalities=told)
    assert list(found.schema["modalities"]) == ["icu", "text", "icu_rest"]
    assert found.schema["modalities"]["icu_rest"]["columns"] == ["lab_na", "age"]
    found = table.from_table(_frame(), **options, modalities=told, rest=False)
    assert list(found.schema["modalities"]) == ["icu", "text"]
    assert "3 columns left out (no modality names them): lab_na, age, lab_word" in found.notes
    assert not {"age", "lab_na", "lab_word"} & set(found.table.columns)


def test_joined_tables_keep_columns_apart_and_bring_no_outcome():
    frame = _frame().select("patientunitstayid", "y", "age", joined_age="lab_na")
    joined = frame.select("patientunitstayid", "y", age=-pl.col("age"))
    found = table.from_table(frame, name="icu", label="y", sample="patientunitstayid", joined={"joined": joined})
    assert found.schema["modalities"] == {
        "icu": {"kind": "tabular", "columns": ["age", "joined_age"]},
        "joined": {"kind": "tabular", "columns": ["joined_age_"]},
    }
    assert "joined: column 'y' is left out, which the first table has" in found.notes
    assert found.table["joined_age_"].to_list() == (-frame["age"]).to_list()


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 2, 1, 2], ["1", "2", "10"]),
        (["10", "2", "-1.5", "2"], ["-1.5", "2", "10"]),
        ([True, False, True, True], ["false", "true"]),
        (["b", "10", "2", "a"], ["10", "2", "a", "b"]),
        ([1.0, 0.0, 1.0, 10.0], ["0", "1", "10"]),
    ],
)
def test_classes_stand_in_the_order_of_their_values(labels, classes):
    frame = pl.DataFrame({"y": labels, "x": [1.0, 2.0, 3.0, 4.0]})
    assert table.from_table(frame, name="n", label="y").schema["label"]["classes"] == classes


def test_what_is_missing_in_memory_is_missing_as_in_a_file(tmp_path):
    frame = pl.DataFrame(
        {
            "y": ["a", "b", "NA", "b", "b"],
            "x": [1.0, float("nan"), 3.0, float("nan"), 5.0],
            "flag": [True, None, False, None, False],
            "group": pl.Series(["u", "n/a", "u", "", "v"], dtype=pl.Categorical),
        }
    )
    found = table.from_table(frame, name="n", label="y")
    assert "1 rows without a label are left out" in found.notes
    assert "2 rows without any modality are left out" in found.notes
    assert found.schema["modalities"]["n"] == {"kind": "tabular", "columns": ["x", "flag"], "categorical": ["group"]}
    table.write(found, tmp_path)
    read = reading.read_manifest(tmp_path)
    assert read.table["group"].to_list() == ["u", "v"]
    assert read.table["flag"].to_list() == [1.0, 0.0]


def _labelled(labels):
    frame = pl.DataFrame({"age": [float(i % 17) for i in range(len(labels))], "y": labels}, strict=False)
    return table.from_table(frame, name="t", label="y")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["0", "0.0", "1", "1.0"], ["0", "1"]),
        (["Yes", "yes", "NO", "no "], ["NO", "Yes"]),
        (["True", "1", "0", "false"], ["0", "1"]),
        (["01", "1", "1.0", "02"], ["01", "02", "1"]),  # 01 is a code
    ],
)
def test_spellings_of_one_class_are_one_class_and_told(labels, classes):
    found = _labelled(labels)
    assert sorted(found.schema["label"]["classes"]) == classes
    assert len(found.table) == 4
    assert any("forms of one value are one class" in note for note in found.notes)


def test_few_fractions_are_classes():
    assert len(_labelled([0.5, 1.0] * 20).schema["label"]["classes"]) == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([i / 7 for i in range(60)], "60 different values: this is a number"),
        (list(range(60)), "60 different values: this is a number"),
        ([1, 1, 1], "one class"),
        ([None, None, float("nan")], "no label in any row"),
        ([0.0, 1.0, float("inf")], r"1 cell \(row 3\) infinite"),
        ([datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)], "times"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message):
    with pytest.raises(UserError, match=message):
        _labelled(labels)


def test_a_named_column_that_cannot_be_used_is_refused():
    frame = pl.DataFrame(
        {"y": [0, 1] * 50, "k": [f"w{i}-{'x' * (i % 9)}" for i in range(100)], "na": range(100), "e": [None] * 100}
    )
    with pytest.raises(UserError, match="column 'k' cannot be used"):
        table.from_table(frame, name="t", label="y", modalities={"labs": ["na", "k"]})
    for columns in (["na", "e"], ["na", "k*"]):  # one that is empty, and what only a pattern matches, are told
        found = table.from_table(frame, name="t", label="y", modalities={"labs": columns}, rest=False)
        assert any("left out" in note for note in found.notes)


def test_bounds_among_numbers_are_missing_and_told():
    frame = pl.DataFrame(
        {"y": [0, 1] * 50, "hr": [">200", *(str(60 + i % 5) for i in range(99))], "na": [i % 17 for i in range(100)]}
    )
    found = table.from_table(frame, name="t", label="y")
    assert found.schema["modalities"] == {"t": {"kind": "tabular", "columns": ["hr", "na"], "odd": "missing"}}
    assert found.table["hr"].null_count() == 1
    assert any("hr: 99 of 100 cells are numbers, row 1 is not (limit)" in note for note in found.notes)


def test_words_for_missing_are_declared_and_kept_for_rows_to_predict(tmp_path, capsys):
    n = 60
    rows = {"stay": range(n), "died": [("0", "1", "?")[i % 3] for i in range(n)]}
    rows |= {"hr": [str(60 + i) if i % 5 else "-999.0" for i in range(n)], "sex": ["mfu"[i // 3 % 3] for i in range(n)]}
    rows |= {"spo2": [f"{80 + i % 20} %" for i in range(n)]}
    pl.DataFrame(rows).write_csv(tmp_path / "stays.csv")
    options = {"source": tmp_path / "stays.csv", "label": "died", "sample": "stay"}
    _imported(*(f"--{key}={value}" for key, value in options.items()), f"--out={tmp_path / 'as_it_is'}")
    told = capsys.readouterr().out
    assert "hr (12 cells -999): far from all other numbers" in told
    assert "? is a class; --missing=?" in told
    assert "the unit % in numbers of spo2" in told
    check_data.main([str(tmp_path / "as_it_is")])
    assert "W113" in capsys.readouterr().out
    out = tmp_path / "declared"
    _imported(*(f"--{key}={value}" for key, value in options.items()), f"--out={out}", "--missing=-999,?,u")
    assert "far from" not in capsys.readouterr().out
    entry = _schema(out)["modalities"]["stays"]
    assert (entry["missing"], entry["odd"], entry["units"]) == (["-999", "?", "u"], "missing", {"spo2": "%"})
    assert _schema(out)["label"]["classes"] == ["0", "1"]
    table = pl.read_csv(out / "manifest.csv")
    assert table.height == 40
    assert table["hr"].null_count() == sum(i % 5 == 0 and i % 3 < 2 for i in range(n))
    assert set(table["sex"].drop_nulls()) == {"m", "f"}
    schema = reading.read_manifest(out).schema
    new = pl.DataFrame({"hr": ["-999", "70"], "spo2": ["91%", "92 mmHg"], "sex": ["u", "m"]})
    manifest = reading.read_new(new, schema, image_size=8, frames=2, bad_files="refuse")
    assert manifest.table.select("hr", "spo2", "sex").rows() == [(None, 91.0, None), (70.0, None, "m")]
    assert any("1 cell (row 2) not a number" in note.message for note in manifest.notes)


def test_what_is_imported_is_its_owners_alone_and_whole_or_not_there(tmp_path, monkeypatch):
    _frame().write_csv(tmp_path / "icu.csv")
    arguments = [
        "--from=table",
        f"--source={tmp_path / 'icu.csv'}",
        "--label=y",
        "--sample=patientunitstayid",
        "--patient=uniquepid",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(table.yaml, "safe_dump", lambda *rest, **options: "\ud800")  # fails after the manifest
        with pytest.raises(UnicodeEncodeError):
            import_data.main([*arguments, f"--out={tmp_path / 'out'}"])
    assert [path.name for path in tmp_path.iterdir()] == ["icu.csv"]
    (tmp_path / "out").mkdir(mode=0o755)
    for name in ("out", "new"):
        import_data.main([*arguments, f"--out={tmp_path / name}"])
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / name).iterdir()}
        assert modes == {"manifest.csv": 0o600, "schema.yaml": 0o600}
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("out", "new")] == [0o755, 0o700]


def test_units_are_numbers_where_other_cells_are_refused(tmp_path):
    rows = {"died": [i % 2 for i in range(40)], "spo2": [f"{80 + i % 20}%" for i in range(40)]}
    pl.DataFrame(rows).write_csv(tmp_path / "a.csv")
    options = {"source": tmp_path / "a.csv", "out": tmp_path / "out", "label": "died", "odd-numbers": "refuse"}
    _imported(*(f"--{key}={value}" for key, value in options.items()))
    assert _schema(tmp_path / "out")["modalities"]["a"] == {"kind": "tabular", "columns": ["spo2"]}
    assert pl.read_csv(tmp_path / "out" / "manifest.csv")["spo2"].to_list() == [80 + i % 20 for i in range(40)]


LOW_HIGH = ["low", "high"]


@pytest.mark.parametrize(
    ("task", "arguments", "entry"),
    [
        ("regression", ["--label=los", "--transform=log1p"], {"column": "los", "transform": "log1p"}),
        ("multilabel", ["--label=sepsis,aki"], {"columns": ["sepsis", "aki"]}),
        (
            "survival",
            ["--label=days,dead", "--horizons=30,60.5"],
            {"time": "days", "event": "dead", "horizons": [30, 60.5]},
        ),
        (
            "ordinal",
            ["--label=grade", "--classes=low,high"],
            {"column": "grade", "classes": ["low", "high"], "ordered": True},
        ),
    ],
)
def test_labels_of_every_task(tmp_path, task, arguments, entry):
    n = 40
    frame = pl.DataFrame({"age": [50.0 + i % 17 for i in range(n)], "los": [i / 7 for i in range(n)]})
    frame = frame.with_columns(sepsis=pl.int_range(n) % 2, aki=pl.int_range(n) % 3 % 2, days=pl.int_range(n) + 1.0)
    frame = frame.with_columns(dead=pl.col("sepsis"), grade=pl.Series(LOW_HIGH * (n // 2)))
    used = {name for value in entry.values() for name in (value if isinstance(value, list) else [value])}
    frame = frame.select("age", *(name for name in frame.columns if name in used))
    frame.write_csv(tmp_path / "ward.csv")
    _imported(f"--source={tmp_path / 'ward.csv'}", f"--out={tmp_path / 'out'}", f"--task={task}", *arguments)
    schema = yaml.safe_load((tmp_path / "out" / "schema.yaml").read_text())
    assert schema["label"] == entry | ({} if task == "ordinal" else {"task": task})
    assert check_data.main([str(tmp_path / "out")]) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--task=survival", "--label=days"], "needs two columns, of the time and of the event"),
        (["--task=survival", "--label=days,dead", "--horizons=soon"], "--horizons=soon must be times such as"),
        (["--task=multilabel", "--label=dead"], "needs at least two different columns"),
        (["--task=regression", "--label=day"], "did you mean 'days'"),
    ],
)
def test_labels_that_a_task_cannot_have_are_refused(tmp_path, arguments, says):
    pl.DataFrame({"age": [1.5, 2.5], "days": [1.0, 2.5], "dead": [0, 1]}).write_csv(tmp_path / "ward.csv")
    with pytest.raises(UserError, match=says):
        _imported(f"--source={tmp_path / 'ward.csv'}", f"--out={tmp_path / 'out'}", *arguments)
