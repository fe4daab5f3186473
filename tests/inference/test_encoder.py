"""encode.py gives bit for bit what the package makes of the same rows, for every kind, or refuses what it refuses."""

import dataclasses
import functools
import json
import sys
import types

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import given

from remind_jax.data import numerals
from remind_jax.data.kinds import KINDS
from remind_jax.data.kinds.images import WINDOWS
from remind_jax.data.kinds.numbers import NUMBERS
from remind_jax.data.kinds.text import FittedText, train_unigram
from remind_jax.data.manifest import decode
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError
from remind_jax.inference import encoder, new_rows, program
from tests.data import fitting

LABS = Modality("labs", "tabular", ("a", "b"), ("sex",))
ICD, NOTE = Modality("icd", "codes", ("icd",)), Modality("note", "text", ("note",))
EMB = Modality("emb", "embedding", ("emb",), stored="cell")
GREY = Modality("grey", "image", ("grey",), stored="file", shape=(6, 8, 1))
COLOUR = Modality("colour", "image", ("colour",), stored="file", shape=(6, 8, 3))
CLIP = Modality("clip", "volume", ("clip",), stored="file", shape=(4, 6, 8, 1))
MISSING = st.sampled_from([None, "", " ", "NA", " n/a ", "None", "null\t", "NaN", "#N/A"])


def fitted(modalities, numbers="standard", n=60, **columns):
    """Schema and preprocessor of a table of n rows with holes and two categories, codes, notes and tokens [2, 3]."""
    rng = np.random.default_rng(0)
    cells = {
        "a": [None if i % 7 == 0 else float(x) for i, x in enumerate(rng.normal(5, 3, n))],
        "b": np.round(rng.lognormal(size=n), 1),
        "sex": [None if i % 5 == 0 else ("f", "m", "1", "2.5", "true", "0.00001", "1e-7")[i % 7] for i in range(n)],
        "icd": [f"I{i % 9} E{i % 4} 401 {i}" for i in range(n)],
        "note": fitting.texts(n),
        "emb": pl.Series(rng.normal(size=(n, 2, 3)).astype(np.float32)),
        **{name: pl.Series([None] * n, dtype=pl.String) for name in ("grey", "colour", "clip")},
    }
    used = {column: cells[column] for modality in modalities for column in modality.all_columns}
    manifest = fitting.table_manifest(used, *modalities)
    return manifest.schema, fitting.fit(manifest, max_tokens=9, vocabulary=50, numbers=numbers, bins=4)


def contents(schema: Schema, preprocessor: Preprocessor):
    """What schema.json says of inputs, and what encode.py makes of preprocessing.json."""
    shapes = program.inputs(types.SimpleNamespace(preprocessor=preprocessor), "b")
    listed = [{"name": name, "shape": list(x.shape), "dtype": x.dtype.name} for name, x in shapes.items()]
    written = json.dumps({"columns": schema.to_dict(), "inputs": listed}), json.dumps(preprocessor.to_dict())
    return json.loads(written[0]), encoder.fitted_of(json.loads(written[1]))


def by_package(data, schema, preprocessor):
    """Inputs of a frame or a file as `Predictor.read` and the preprocessing make them."""
    manifest = new_rows.read(data, schema, preprocessor, image_size=8, frames=4, bad_files="refuse")
    batch = preprocessor.encode(decode(manifest, np.arange(manifest.table.height), labels=False))
    return {name: x for name, x in batch.items() if name != "row"}


def frame_of(rows):
    names = {name: None for row in rows for name in row}
    return pl.DataFrame([pl.Series(name, [row.get(name) for row in rows], strict=False) for name in names])


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, x in expected.items():
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape)
        np.testing.assert_array_equal(found[name], x, err_msg=name)


def assert_alike(rows, schema, preprocessor, data=None):
    """Both encode alike, or both refuse; `data` are the rows as the package takes them."""
    found = functools.partial(encoder.encoded, rows, *contents(schema, preprocessor))
    try:
        expected = by_package(frame_of(rows) if data is None else data, schema, preprocessor)
    except UserError:
        with pytest.raises(ValueError):  # noqa: PT011, many
            found()
        return
    assert_equal(found(), expected)


def column_of(*kinds):
    """Columns of six cells: of strings, or of one of the types that tables have."""
    return st.one_of(
        *(st.lists(st.one_of(kind, MISSING if kind in WORDS else st.none()), min_size=6, max_size=6) for kind in kinds)
    )


NUMERALS = st.one_of(
    st.floats(-1e30, 1e30).map(repr),
    st.sampled_from(["+1", "-.5", " 5. ", "1E+05", "00012", "1_0", "x", "inf", "TRUE", " false "]),
)
ODD_NUMBERS = st.one_of(
    st.sampled_from(
        [">200", "< 0.1", "≥3", "~=4", "5-10", "5 – 10", "-2 to 4", "___", "pending", "1e39", "inf", ">1e3"]
    ),
    st.sampled_from(
        ["65,5", "<0,1", "1.234,5", "1,234", "1,234.5", "12,345,678", "1 234", "1'234,5", "1\u202f234", "1.5"]
    ),
    st.sampled_from(["5 mg", "6mg", ">7 MG", "8 g", "9 mgs", "−1.5", "<−2 mg", "-999", " -999.0", "?", "3rd"]),
    st.integers(0, 2000).map(str),
)
CATEGORIES = st.sampled_from(["f", " m ", "unknown", "1", "2.5", "ß", "\u2003f"])
CODES = st.sampled_from(["I1 E2", "  401\tI3 ", "Z9", "I1 " * 30, "3", "I1\x1cE2"])
TEXTS = st.one_of(
    st.lists(st.sampled_from([*fitting.WORDS, "Fieber", "</s>", "ﬁ", "½", "▁a"]), max_size=9).map(" ".join), st.text()
)
FLOATS = st.one_of(st.floats(-1e30, 1e30), st.integers(-9, 9).map(float), st.sampled_from([1e-7, 1e-5, 2.5, -0.0]))
SMALL = st.integers(-(2**40), 2**40)
WORDS = (NUMERALS, ODD_NUMBERS, CATEGORIES, CODES, TEXTS)
TOKENS = st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=2, max_size=2)
SCHEMAS = {numbers: fitted([LABS, ICD, NOTE, EMB], numbers) for numbers in NUMBERS}
ODD_SCHEMAS = {
    rule: fitted(
        [dataclasses.replace(LABS, options={"odd": rule, "units": {"a": "mg"}, "missing": ["-999", "?", "f"]})]
    )
    for rule in numerals.ODD
    if rule != "refuse"
}


@pytest.mark.slow
@pytest.mark.parametrize("numbers", NUMBERS)
@given(st.data())
def test_random_rows_are_encoded_alike(numbers, data):
    columns = {
        "emb": data.draw(st.lists(st.one_of(st.none(), TOKENS), min_size=6, max_size=6)),
        "icd": data.draw(column_of(CODES, SMALL, FLOATS)),
        "note": data.draw(column_of(TEXTS, SMALL)),
        "sex": data.draw(column_of(CATEGORIES, FLOATS, SMALL, st.booleans())),
        "b": data.draw(column_of(NUMERALS, FLOATS, SMALL, st.booleans())),
        "a": data.draw(column_of(NUMERALS, FLOATS, SMALL)),
        "other": [1] * 6,
    }
    left = data.draw(st.sets(st.sampled_from(["icd", "note", "emb"]), max_size=3))
    rows = [{name: cells[i] for name, cells in columns.items() if name not in left} for i in range(6)]
    assert_alike(rows, *SCHEMAS[numbers])


@pytest.mark.parametrize("rule", [pytest.param("missing", marks=pytest.mark.slow), "limit"])
@given(st.data())
def test_cells_that_are_no_numbers_are_encoded_by_the_rule_of_the_schema(rule, data):
    schema, preprocessor = ODD_SCHEMAS[rule]
    cells = [data.draw(column_of(ODD_NUMBERS, FLOATS)) for _ in "ab"]
    rows = [{"a": a, "b": b, "sex": sex} for a, b, sex in zip(*cells, "mf" * 3, strict=True)]
    assert_alike(rows, schema, preprocessor)


def test_limits_are_read_as_the_rule_of_the_schema_says():
    rows = [{"a": ">200", "b": "5-10", "sex": "f"}, {"a": "200", "b": "7.5", "sex": "f"}, {"sex": "f"}]
    found = {rule: encoder.encoded(rows, *contents(*ODD_SCHEMAS[rule]))["labs"] for rule in ODD_SCHEMAS}
    np.testing.assert_array_equal(found["limit"][0], found["limit"][1])
    np.testing.assert_array_equal(found["missing"][0], found["missing"][2])
    assert (found["missing"][0] != found["missing"][1]).any()


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cn", "Co"])), min_size=1, max_size=4))
def test_any_text_has_the_ids_of_the_tokenizer(texts):
    schema, preprocessor = SCHEMAS["standard"]
    rows = [{"note": text, "icd": "I1"} for text in texts]
    assert_alike(rows, schema, preprocessor)


def test_columns_stand_in_any_order_and_a_modality_may_be_absent():
    schema, preprocessor = SCHEMAS["standard"]
    row = {"sex": "f", "b": 2.0, "icd": "I1", "a": None}
    found = encoder.encoded([row, {"icd": "E2"}], *contents(schema, preprocessor))
    assert found["present"].tolist() == [[True, True, False, False], [False, True, False, False]]
    turned = encoder.encoded([dict(reversed(row.items())), {"icd": "E2"}], *contents(schema, preprocessor))
    assert_equal(turned, found)
    assert not found["note"].any()
    assert not found["labs"][1].any()
    assert found["labs"][0].any()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1.0, "icd": "I1"}], r"column 'b' \(labs\) is not in the rows; its modality needs a, b, sex"),
        ([{"a": "high", "b": 1, "sex": "f"}], r"column 'a' \(labs\): row 1 is not a number"),
        ([{"a": 1, "b": 1, "sex": "f"}, {"b": np.inf}], r"column 'b' \(labs\): row 2 is infinite or beyond float32"),
        ([{"a": 1, "b": "-inf", "sex": "f"}], "infinite"),
        ([{"a": 1, "b": 1, "sex": ["f"]}], "row 1 holds list; it must be a string or a number"),
        ([{"icd": "NA"}, {"icd": ""}], "no row has any modality"),
        ([{"emb": [[1.0, 2.0]]}], r"'emb' \(emb\): row 1 cannot be used: it is \[1, 2\], the program takes \[2, 3\]"),
        ([{"emb": [[1, 2, 3], [4, 5, np.nan]]}], "NaN or infinite"),
        ([{"emb": "../x.npy"}], r"row 1 cannot be read \(ValueError\)"),
        ([], "there are no rows"),
    ],
)
def test_what_cannot_be_encoded_is_refused_in_one_line(rows, message):
    with pytest.raises(ValueError, match=message) as caught:
        encoder.encoded(rows, *contents(*SCHEMAS["standard"]))
    assert "\n" not in str(caught.value)


def test_scalars_of_numpy_and_the_missing_of_pandas_are_cells():
    pandas_na = type("NAType", (), {})()
    rows = [{"a": np.float32(0.1), "b": pandas_na, "sex": np.str_("f")}, {"a": np.int64(3), "b": np.nan, "sex": None}]
    plain = [{"a": float(np.float32(0.1)), "b": None, "sex": "f"}, {"a": 3, "b": None, "sex": None}]
    found = encoder.encoded(rows, *contents(*SCHEMAS["standard"]))
    assert_equal(found, encoder.encoded(plain, *contents(*SCHEMAS["standard"])))


# ---- Files -----------------------------------------------------------------------------------------------------------


PIXELS = fitted([GREY, COLOUR, CLIP, EMB])


def _arrays(rng, dtype):
    """An image of three channels, one of one, a clip of seven frames, and tokens."""
    shapes = {"grey": (6, 8, 3), "colour": (6, 8), "clip": (7, 6, 8, 1), "emb": (2, 3)}
    high = {"uint8": 256, "bool": 2}.get(dtype, 4000)
    return {name: rng.integers(0, high, shape).astype(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64", "bool"])
def test_files_of_arrays_are_read_alike(tmp_path, dtype, window):
    schema, preprocessor = fitted([KINDS[each.kind].windowed(each, window) for each in (GREY, COLOUR, CLIP, EMB)])
    arrays = _arrays(np.random.default_rng(1), dtype)
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    lines = ["emb,grey,clip,colour", "emb.npy,grey.npy,clip.npy,colour.npy", ",grey.npy,NA,"]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    expected = by_package(tmp_path / "rows.csv", schema, preprocessor)
    rows = encoder.read_csv(tmp_path / "rows.csv")
    assert_equal(encoder.encoded(rows, *contents(schema, preprocessor), tmp_path), expected)
    here = encoder.encoded([arrays, {"grey": arrays["grey"].tolist()}], *contents(schema, preprocessor))
    if dtype != "bool" and (dtype, window) != ("uint8", "percentile"):  # lists make integers of more bits of them
        assert_equal(here, expected)
    assert expected["clip"][0].std() > 0


def test_pixels_of_another_size_and_pictures_are_refused(tmp_path):
    found = functools.partial(encoder.encoded, schema=contents(*PIXELS)[0], fitted=contents(*PIXELS)[1], root=tmp_path)
    with pytest.raises(ValueError, match="it has 5 x 8 pixels, the program takes 6 x 8: resize it first"):
        found([{"grey": np.zeros((5, 8), np.uint8)}])
    with pytest.raises(ValueError, match=r"its array is not \[t, h, w\]"):
        found([{"clip": np.zeros((6, 8), np.uint8)}])
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match="it is not a whole npy file"):
        found([{"grey": "a.png"}])


def test_a_csv_is_read_as_the_package_reads_it(tmp_path):
    schema, preprocessor = SCHEMAS["piecewise"]
    lines = [
        "icd,sex,other,b,a,note",
        "I1 Z9,f,x,NA,1.5,\"acute, 'renal'\nfailure\"",
        ',"m ",,3, 2,',
        "0401,,,,,stable",
    ]
    (tmp_path / "rows.csv").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert_alike(encoder.read_csv(tmp_path / "rows.csv"), schema, preprocessor, tmp_path / "rows.csv")
    (tmp_path / "rows.csv").write_text("icd,a\nI1,2,3\n", encoding="utf-8")
    with pytest.raises(ValueError, match="more cells than the header"):
        encoder.read_csv(tmp_path / "rows.csv")


def test_texts_in_files_are_read_alike(tmp_path):
    note = Modality("note", "text", ("note",), stored="file")
    schema, preprocessor = SCHEMAS["standard"]
    schema = schema_with(schema, note)
    (tmp_path / "a.txt").write_bytes("\ufeffacute renal\r\nfailure".encode())
    (tmp_path / "rows.csv").write_text("note,icd\na.txt,\n,I1\n", encoding="utf-8")
    expected = by_package(tmp_path / "rows.csv", schema, preprocessor)
    found = encoder.encoded(encoder.read_csv(tmp_path / "rows.csv"), *contents(schema, preprocessor), tmp_path)
    assert_equal(found, expected)


def schema_with(schema, modality):
    others = tuple(modality if each.name == modality.name else each for each in schema.modalities)
    return dataclasses.replace(schema, modalities=others)


# ---- Tokenizers of others --------------------------------------------------------------------------------------------


def _word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "acute": 1, "renal": 2, "<unk>": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_a_pretrained_tokenizer_is_used_where_its_package_is_and_named_where_not(monkeypatch):
    schema, _ = fitted([NOTE])
    preprocessor = Preprocessor({"note": FittedText(_word_tokenizer(), 4)})
    rows = [{"note": "renal acute heart acute acute"}, {"note": "acute"}]
    assert_alike(rows, schema, preprocessor)
    assert encoder.encoded(rows, *contents(schema, preprocessor))["note"].tolist() == [[2, 1, 3, 1], [1, 0, 0, 0]]
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match="'note' has a pretrained tokenizer, which needs: pip install tokenizers"):
        encoder.encoded(rows, *contents(schema, preprocessor))


def test_a_tokenizer_of_training_is_known_by_its_parts():
    own = json.loads(train_unigram(fitting.texts(), 50).to_str())
    assert encoder.is_own(own)
    assert not encoder.is_own(own | {"normalizer": None})
    assert not encoder.is_own(json.loads(_word_tokenizer().to_str()))


# ---- The worked row --------------------------------------------------------------------------------------------------


def test_the_made_up_row_has_every_kind_and_is_no_row_of_the_data():
    schema, preprocessor = fitted([LABS, ICD, NOTE, EMB, GREY, COLOUR, CLIP])
    cells = {}
    for modality in schema.modalities:
        cells |= preprocessor.fitted[modality.name].example(modality)
    assert json.loads(json.dumps(cells)) == cells
    batch = encoder.encoded([encoder.row_of(cells)], *contents(schema, preprocessor))
    assert batch["present"].all()
    (labs,) = [each for each in contents(schema, preprocessor)[1].values() if each.kind == "tabular"]
    assert (cells["a"], cells["sex"]) == (labs.median[0], labs.categories[0][0])
    assert (batch["icd"][0, :3] > 2).all()
    pieces = {piece for piece, _ in preprocessor.to_dict()["modalities"][2]["tokenizer"]["model"]["vocab"]}
    assert len(cells["note"].split()) > 2
    assert {f"\u2581{word}" for word in cells["note"].split()} <= pieces
    assert all(len(np.unique(batch[name])) > 5 for name in ("emb", "grey", "colour", "clip"))
    expected = encoder.shown(batch)
    assert encoder.differences(encoder.shown(batch), json.loads(json.dumps(expected))) == []
    batch["labs"][0, 0] += 0.01
    assert encoder.differences(encoder.shown(batch), expected) == ["labs"]


def test_a_kind_that_encode_does_not_know_is_refused_unless_it_is_absent():
    schema, found = contents(*SCHEMAS["standard"])
    found["icd"].kind = "toy"
    with pytest.raises(
        ValueError, match=r"'icd' is of kind toy, which encode\.py does not know: leave its columns out"
    ):
        encoder.encoded([{"icd": "I1", "note": "acute"}], schema, found)
    assert encoder.encoded([{"note": "acute"}], schema, found)["present"].tolist() == [[False, False, True, False]]
