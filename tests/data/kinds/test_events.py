"""Events: what of a long table becomes input, by a slow reference; what is later is never read; what is refused."""

import datetime
import json

import numpy as np
import polars as pl
import pytest

from remind_jax import check_data
from remind_jax.data import builder, check, reading
from remind_jax.data.kinds.events import FittedEvents
from remind_jax.data.kinds.kind import FitOptions
from remind_jax.data.kinds.long_table import CELLS, FIELDS
from remind_jax.data.manifest import decode
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.schema import Modality
from remind_jax.errors import UserError
from tests.data import fitting
from tests.data.event_files import START, tables, write_folder

TRAIN = np.arange(40)


def read(tmp_path, samples=None, events=None, **changes):
    own = tables()
    folder = write_folder(
        tmp_path / "data", own[0] if samples is None else samples, own[1] if events is None else events, **changes
    )
    return reading.read_manifest(folder)


def encoded(manifest, rows=TRAIN):
    preprocessor = Preprocessor.fit(manifest, rows, FitOptions(16, 100))
    return preprocessor.fitted["vitals"], preprocessor.encode(decode(manifest, np.arange(manifest.table.height)))


def parts(values):
    """Ids, values and times of what is encoded."""
    return values[..., 0], values.view(np.float32)[..., 1], values.view(np.float32)[..., 2]


def note(manifest):
    (found,) = [each.message for each in manifest.notes if each.message.startswith("vitals: ")]
    return found


def slowly(samples, events, most=256):
    """The cells by the definition: a loop over all events for each sample."""
    found = []
    for sample in samples.iter_rows(named=True):
        end, own = datetime.datetime.fromisoformat(sample["end"]), []
        for event in events.iter_rows(named=True):
            hours = (datetime.datetime.fromisoformat(event["when"]) - end).total_seconds() / 3600
            if event["stay"] == sample["stay"] and hours <= 0:
                own.append((hours, event["item"], event["value"]))
        own.sort(key=lambda e: (e[0], e[1], -np.inf if e[2] is None else e[2]))
        found.append(own[-most:] or None)
    return found


def cells(manifest):
    return [
        None if cell is None else [(e["hours"], e["code"], e["value"]) for e in cell]
        for cell in manifest.table["vitals"].to_list()
    ]


# ---- What is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [256, 3])
def test_cells_are_those_of_a_loop_over_all_events(tmp_path, most):
    samples, events = tables()
    manifest = read(tmp_path, most=most)
    expected = slowly(samples, events, most)
    for found, own in zip(cells(manifest), expected, strict=True):
        assert (found is None) == (own is None)
        assert [e[1:] for e in found or ()] == [e[1:] for e in own or ()]
        np.testing.assert_allclose([e[0] for e in found or ()], [e[0] for e in own or ()], atol=1e-9)
    np.testing.assert_array_equal(manifest.presence[:, 1], [own is not None for own in expected])
    assert manifest.presence[:, 1].mean() == 0.8


def test_what_is_left_out_is_told_with_counts(tmp_path):
    (samples, events), rest = tables(), "2 without a time, 1 without a key, 2 of no sample"
    later = sum(
        datetime.datetime.fromisoformat(e["when"]) > datetime.datetime.fromisoformat(samples["end"][int(e["stay"][1:])])
        for e in events.iter_rows(named=True)
    )
    own = slowly(samples, events)
    more = pl.DataFrame({"stay": ["s1", None, "x", "x"], "when": [None, str(START), str(START), None]})
    more = more.with_columns(item=pl.lit("hr"), value=pl.lit(1.0))
    found = note(read(tmp_path, events=pl.concat([events, more]), most=5))
    over = [len(cell) - 5 for cell in own if cell and len(cell) > 5]
    assert later > 20
    assert over
    assert found == (
        f"vitals: 48 of 60 samples have events, {events.height + 4} in the table; left out: {later} after end, {rest}, "
        f"{sum(over)} of {len(over)} samples with more than the newest 5"
    )


def test_the_order_of_rows_changes_nothing(tmp_path):
    _, events = tables()
    turned = events.sample(fraction=1.0, shuffle=True, seed=3)
    assert not turned.equals(events)
    assert read(tmp_path).digest == read(tmp_path, events=turned).digest


def _is_later(samples, events):
    ends = dict(samples.select("stay", pl.col("end").str.to_datetime()).iter_rows())
    return pl.Series([w > ends[s] for s, w in events.select("stay", pl.col("when").str.to_datetime()).iter_rows()])


@pytest.mark.parametrize("change", ["values", "codes", "nonsense", "gone", "more"])
def test_nothing_later_than_the_prediction_is_ever_read(tmp_path, change):
    samples, events = tables()
    later, text = _is_later(samples, events), events.with_columns(pl.col("value").cast(pl.String))
    others = {
        "values": text.with_columns(value=pl.when(later).then(pl.lit("1e30")).otherwise("value")),
        "codes": text.with_columns(item=pl.when(later).then(pl.lit("canary")).otherwise("item")),
        "nonsense": text.with_columns(
            value=pl.when(later).then(pl.lit("high")).otherwise("value"),
            item=pl.when(later).then(None).otherwise("item"),
        ),
        "gone": text.filter(~later),
        "more": pl.concat([text, *[text.filter(later)] * 9]),
    }
    before, after = read(tmp_path), read(tmp_path, events=others[change])
    assert before.digest == after.digest
    (fitted, one), (again, other) = encoded(before), encoded(after)
    assert fitted == again
    np.testing.assert_array_equal(one["vitals"], other["vitals"])
    last = text.with_row_index().filter(~later)["index"][-1]
    touched = text.with_columns(value=pl.when(pl.int_range(pl.len()) == last).then(pl.lit("7")).otherwise("value"))
    assert read(tmp_path, events=touched).digest != before.digest


def test_an_event_at_the_time_of_the_prediction_is_read(tmp_path):
    samples, _ = tables(4)
    end = datetime.datetime.fromisoformat(samples["end"][0])
    times = [str(end), str(end + datetime.timedelta(microseconds=1)), str(end - datetime.timedelta(hours=2))]
    events = pl.DataFrame({"stay": ["s0"] * 3, "when": times, "item": ["a", "b", "c"], "value": [1.0, 2.0, 3.0]})
    assert cells(read(tmp_path, samples, events))[0] == [(-2.0, "c", 3.0), (0.0, "a", 1.0)]


@pytest.mark.parametrize("form", ["numbers", "times", "dates", "categories", "floats", "texts"])
def test_types_of_keys_and_times_are_of_no_account(tmp_path, form):
    """The same events as text of CSV, and in the types that frames have."""
    samples, events = tables()
    expected = read(tmp_path)
    hour = (pl.col(c).str.to_datetime() for c in ("end", "when"))
    number, plain = pl.col("stay").str.slice(1).cast(pl.Int64), pl.col("stay").str.slice(1)
    changed = {
        "numbers": lambda f, c: f.with_columns(((next(hour) - START).dt.total_microseconds() / 3.6e9).alias(c)),
        "times": lambda f, c: f.with_columns(next(hour).dt.cast_time_unit("ns").alias(c)),
        "dates": lambda f, c: f.with_columns(next(hour).dt.replace_time_zone("Europe/Berlin").alias(c)),
        "categories": lambda f, c: f.with_columns(pl.col("stay").cast(pl.Categorical)),
        "floats": lambda f, c: f.with_columns(stay=number.cast(pl.Float64) if c == "when" else plain),
        "texts": lambda f, c: f.with_columns(pl.col(c).str.replace(" ", "T")),
    }[form]
    samples, events = changed(samples, "end"), changed(events, "when")
    schema = reading.read_schema(tmp_path / "data" / "schema.yaml", 1, 1)
    found = reading.read_new(samples, schema, image_size=1, frames=1, given={"vitals": events})
    for one, other in zip(cells(found), cells(expected), strict=True):
        assert [e[1:] for e in one or ()] == [e[1:] for e in other or ()]
        np.testing.assert_allclose([e[0] for e in one or ()], [e[0] for e in other or ()], atol=1e-7)


def test_a_table_in_parquet_is_read_alike_whatever_else_it_has(tmp_path):
    samples, events = tables()
    expected = read(tmp_path)
    events.with_columns(other=pl.lit([["x"]])).select(pl.all().reverse()).write_parquet(tmp_path / "data" / "v.parquet")
    found = read(tmp_path, samples, events, table="v.parquet")
    assert found.table.equals(expected.table)


def test_several_samples_of_a_patient_each_have_what_came_before_their_own_time(tmp_path):
    samples, _ = tables(4)
    hours = [2.0, 5.0, 9.0, 9.0]
    samples = samples.with_columns(patient=pl.Series(["p", "p", "q", "q"]), end=pl.Series(hours))
    events = pl.DataFrame({"patient": ["p"] * 3, "when": [1.0, 4.0, 6.0], "item": ["a"] * 3, "value": [1.0, 2.0, 3.0]})
    found = cells(read(tmp_path, samples, events, key="patient"))
    assert found == [[(-1.0, "a", 1.0)], [(-4.0, "a", 1.0), (-1.0, "a", 2.0)], None, None]


# ---- What is refused -------------------------------------------------------------------------------------------------


def _with(column, row, value):
    def change(samples, events):
        table = events if column in events.columns and column != "stay" else samples
        cells = table[column].cast(pl.String).to_list()
        cells[row] = value
        changed = table.with_columns(pl.Series(column, cells))
        return (samples, changed) if table is events else (changed, events)

    return change


@pytest.mark.parametrize(
    ("change", "entry", "says"),
    [
        (
            None,
            {"until": ...},
            "modalities.vitals lacks the key 'until'; events of a table need table, key, time, code",
        ),
        (None, {"until": "ende"}, r"E001 column 'ende' \(modality vitals\) is not in the table of samples \(did you"),
        (None, {"code": "itemid"}, r"E001 column 'itemid' \(modality vitals\) is not in vitals.csv"),
        (None, {"key": "patient"}, r"E001 column 'patient' \(modality vitals\) is not in vitals.csv"),
        (None, {"table": "labs.csv"}, "E007 modalities.vitals.table: labs.csv is not there"),
        (None, {"table": "../vitals.csv"}, "E006 modalities.vitals.table must be a file below the folder"),
        (None, {"most": 0}, "most must be a whole number of at least 1, not 0"),
        (None, {"most": True}, "most must be a whole number"),
        (None, {"odd": "ignore"}, "odd must be missing, limit, refuse, not 'ignore'"),
        (None, {"untli": "end"}, r"unknown key 'untli' in modalities.vitals \(did you mean 'until'\?\)"),
        (_with("value", 2, "high"), {}, r"E009 column 'value' \(vitals\): 1 cell \(row 3\) not a number; fix or empty"),
        (_with("value", 2, "inf"), {}, r"E009 column 'value' \(vitals\): 1 cell \(row 3\) infinite or beyond float32"),
        (_with("item", 2, " "), {}, r"E009 column 'item' \(vitals\): 1 cell \(row 3\) empty; each event needs a code"),
        (
            _with("when", 2, "noon"),
            {},
            r"E009 column 'when' \(vitals\): 1 cell \(row 3\) no times; write hours or 2150",
        ),
        (_with("end", 1, None), {}, r"E009 column 'end' \(vitals\): 1 cell \(row 2\) empty; each row with events"),
        (lambda s, e: (s.with_columns(end=pl.lit(24.0)), e), {}, "'end' holds numbers of hours, 'when' times"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line_with_rows(tmp_path, change, entry, says):
    samples, events = change(*tables()) if change else tables()
    rows = [i for i in range(events.height) if events["stay"][i] == "s1"]
    assert 2 in rows  # an event of the first sample that has some, which
    assert datetime.datetime.fromisoformat(tables()[1]["when"][2]).day == 1  # is before its prediction
    with pytest.raises(UserError, match=says) as error:
        read(tmp_path, samples, events, **entry)
    assert "\n" not in str(error.value)


def test_a_folder_of_wrong_events_ends_the_check_with_its_line(tmp_path, capsys):
    folder = write_folder(tmp_path / "data", *_with("value", 2, "high")(*tables()))
    with pytest.raises(SystemExit) as end:
        check_data.main([str(folder)])
    assert end.value.code == 2
    assert "column 'value' (vitals): 1 cell (row 3) not a number; fix or empty them" in capsys.readouterr().out


def test_values_that_are_no_numbers_may_be_missing_or_limits(tmp_path):
    samples, events = _with("value", 2, ">200")(*tables())
    place = slowly(*tables())[1]
    value = tables()[1]["value"][2]
    assert sum(v == value for _, _, v in place) == 1
    for odd, number in (("missing", None), ("limit", 200.0)):
        found = cells(read(tmp_path, samples, events, odd=odd))[1]
        assert [e[2] for e in found] == [number if v == value else v for _, _, v in place]


def _in_memory(*lists):
    column = pl.Series(
        "vitals",
        [None if own is None else [dict(zip(FIELDS, e, strict=True)) for e in own] for own in lists],
        dtype=CELLS,
    )
    return fitting.table_manifest({"vitals": column}, Modality("vitals", "events", ("vitals",)))


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ((0.5, "a", 1.0), "1 cell (row 2) with events after the prediction, or without a time"),
        ((None, "a", 1.0), "with events after the prediction, or without a time"),
        ((np.nan, "a", 1.0), "with events after the prediction, or without a time"),
        ((-1.0, None, 1.0), "1 cell (row 2) with events without a code"),
        ((-1.0, "a", np.nan), "1 cell (row 2) with values that are NaN, infinite or beyond float32"),
        ((-1.0, "a", 1e300), "with values that are NaN, infinite or beyond float32"),
    ],
)
def test_cells_made_in_memory_are_checked(event, says):
    fine = [(-1.0, "a", None)]
    assert not [f for f in check.find_problems(_in_memory(fine, fine, fine, None)) if f.code == "E008"]
    found = check.find_problems(_in_memory(fine, [*fine, event], fine, None))
    assert any(says in f.message and f.fatal for f in found)


# ---- What a model receives -------------------------------------------------------------------------------------------


def test_events_are_ids_values_by_code_and_times_in_order():
    manifest = _in_memory(
        [(-4.0, "hr", 10.0), (-2.0, "sbp", 5.0), (-1.0, "drug", None)],
        [(0.0, "hr", 20.0), (-8.0, "hr", 30.0)],
        None,
        [(-1.0, "new", 3.0), (-2.0, "hr", 40.0)],
    )
    fitted, batch = encoded(manifest, np.arange(2))
    assert (fitted.length, fitted.codes) == (32, ("hr", "drug", "sbp"))
    assert fitted.mean == (20.0, 0.0, 5.0)
    assert fitted.std == (pytest.approx(np.std([10, 20, 30])), 0.0, 0.0)
    assert fitted.span == pytest.approx(np.quantile([0, 1, 2, 4, 8], 0.9))
    ids, values, times = (part[:, :3] for part in parts(batch["vitals"]))
    assert not batch["vitals"][:, 3:].any()
    assert ids.tolist() == [[2, 4, 3], [2, 2, 0], [0, 0, 0], [2, 1, 0]]
    one = 10 / np.std([10, 20, 30])
    np.testing.assert_allclose(values, [[-one, 0, np.nan], [one, 0, 0], [0, 0, 0], [2 * one, np.nan, 0]], rtol=1e-6)
    expected = np.array([[-4, -2, -1], [-8, 0, 0], [0, 0, 0], [-2, -1, 0]]) / fitted.span
    np.testing.assert_allclose(times, expected, rtol=1e-6)
    assert batch["present"][:, 0].tolist() == [True, True, False, True]
    assert not batch["vitals"][2].any()


def test_the_newest_are_kept_of_more_events_than_a_training_row_has():
    long = [(-float(i), "a", float(i)) for i in range(40)]
    manifest = _in_memory(long[:2], long[:30], long, None)
    fitted, batch = encoded(manifest, np.arange(2))
    assert fitted.length == 32
    (told,) = Preprocessor({"vitals": fitted}).losses(manifest)
    assert told.message == (
        "vitals: 1 cell (row 3) with more than 32 events, the most that the model takes; their 8 oldest are left out"
    )
    assert not Preprocessor({"vitals": fitted}).losses(_in_memory(long[:2], long[:32], None, None))
    np.testing.assert_allclose(parts(batch["vitals"])[2][2] * fitted.span, np.arange(-31, 1), rtol=1e-6)


def test_what_is_fitted_is_fitted_on_train_rows_alone(tmp_path):
    samples, events = tables()
    other = pl.col("stay").str.slice(1).cast(pl.Int64) >= 40
    changed = events.with_columns(
        value=pl.when(other).then(999.0).otherwise("value"), item=pl.when(other).then(pl.lit("x")).otherwise("item")
    )
    one, _ = encoded(read(tmp_path))
    assert one == encoded(read(tmp_path, samples, changed))[0]
    assert one != encoded(read(tmp_path, samples, changed), np.arange(60))[0]


def test_prepared_rows_are_those_that_are_decoded(tmp_path):
    manifest = read(tmp_path)
    preprocessor = Preprocessor.fit(manifest, TRAIN, FitOptions(16, 100))
    column = builder.prepare(manifest, preprocessor, tmp_path / "cache")["vitals"]
    rows = np.array([59, 3, 0, 3])
    np.testing.assert_array_equal(column.read(rows), preprocessor.readers(manifest)["vitals"](rows))
    assert column.read(rows)[0].any()


def test_plain_models_see_last_values_and_counts(tmp_path):
    manifest = read(tmp_path)
    fitted, batch = encoded(manifest, np.arange(60))
    seen = fitted.plain(batch["vitals"])
    assert seen.shape == (60, 6)
    for row, own in zip(seen, slowly(*tables()), strict=True):
        for j, code in enumerate(fitted.codes):
            values = [value for _, name, value in own or () if name == code]
            assert row[3 + j] == len(values)
            known = [value for value in values if value is not None]
            expected = (known[-1] - fitted.mean[j]) / fitted.std[j] if known else np.nan
            np.testing.assert_allclose(row[j], expected, rtol=1e-4, atol=1e-5)


def test_what_is_fitted_is_written_and_read(tmp_path):
    fitted, _ = encoded(read(tmp_path))
    content = json.loads(json.dumps(fitted.to_dict()))
    assert FittedEvents.from_dict(content) == fitted
    for wrong in ({"codes": ["a"]}, {"span": 0.0}, {"length": 0}, {"mean": None}):
        with pytest.raises(ValueError, match=r"codes|no list"):
            FittedEvents.from_dict(content | wrong)
