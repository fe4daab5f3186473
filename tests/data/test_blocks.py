"""Tables on the disk are those in memory: of text read in pieces of any size, import writes the same bytes."""

import csv
import gzip
import io
import tempfile

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings

from remind_jax import import_data
from remind_jax.data import blocks, delimited, tables
from remind_jax.errors import UserError

CELLS = st.one_of(
    st.integers(-99, 9999).map(str),
    st.sampled_from(
        ["", "NA", ">200", "5-10", "65,5", "Zoë", 'said "no"', "two\nlines", "x;y", "a\r\nb", " ", "2020-01-02"]
    ),
)


def _text(rows, separator=",", eol="\n"):
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator=eol).writerows(rows)
    return out.getvalue()


def _read(content, size):
    source, said = delimited.Source(lambda: io.BytesIO(content)), []
    parts = list(delimited.blocks(source, ",", "a.csv", said.append, size))
    return pl.concat(parts), said, len(parts)


@settings(deadline=None)
@given(
    st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=12),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1252"]),
    st.sampled_from([",", ";"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", "\n", "sep=;\r\n"]),
    st.integers(1, 90),
    st.booleans(),
)
def test_text_in_pieces_of_any_size_is_the_same_table(rows, encoding, separator, eol, before, size, ended):
    separator = ";" if before.startswith("sep") else separator
    text = _text([["stay", "ort", "note\nof"], ["é1", "ü", "x"], *rows], separator, eol)
    content = (before + (text if ended else text.removesuffix(eol))).encode(encoding)
    try:
        whole = _read(content, 0)
    except (ValueError, pl.exceptions.PolarsError) as error:
        with pytest.raises(type(error)):
            _read(content, size)
        return
    found = _read(content, size)
    assert found[0].equals(whole[0])
    assert found[1] == whole[1]


def test_a_long_text_is_read_in_pieces_and_a_row_of_any_length_is_whole():
    rows = [["id", "note"], *([str(i), "line\n" * 50] for i in range(40))]
    found, _, count = _read(_text(rows).encode(), 300)
    assert count > 30
    assert found["note"].to_list() == ["line\n" * 50] * 40


def _table(rng, n=60):
    cells = {
        "stay": [f"s{i:03d}" for i in range(n)],
        "patient": [f"p{i // 2:03d}" for i in range(n)],
        "died": ["yes" if x else "No" for x in rng.integers(0, 2, n)],
        "hr": [str(x) for x in rng.integers(40, 120, n)],
        "glucose": [">200" if x > 180 else "___" if x < 50 else str(x) for x in rng.integers(40, 190, n)],
        "weight": [f"{x:.1f}".replace(".", ",") for x in rng.normal(70, 9, n)],
        "sex": list(rng.choice(["f", "m", "NA", ""], n)),
        "note": [f"patient sleeps {word}\nand eats" for word in rng.choice(["well", "ill", "long"], n)],
        "seen": [f"2020-01-{d:02d}" for d in rng.integers(1, 28, n)],
        "": [str(i) for i in range(n)],
        "discharge_day": [str(x) for x in rng.integers(1, 9, n)],
    }
    cells["died"][5] = ""
    for column in ("hr", "glucose", "weight", "sex", "note", "seen", "discharge_day"):
        cells[column][7] = ""  # a row without any modality
    return [list(cells), *zip(*cells.values(), strict=True)]


def _imported(folder, name, capsys, *options):
    command = [f"--source={folder / name}", f"--out={folder / 'out'}", "--name=icu", "--label=died", *options]
    try:
        import_data.main(command)
    except UserError as error:
        return str(error)
    files = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    for path in (folder / "out").iterdir():
        path.unlink()
    return files, capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("odd", ["missing", "limit", "refuse"])
@pytest.mark.parametrize("name", ["icu.csv", "icu.csv.gz"])
@pytest.mark.parametrize("joined", [False, True])
def test_import_writes_and_says_the_same_of_a_table_on_the_disk(tmp_path, monkeypatch, capsys, odd, name, joined):
    rng = np.random.default_rng(3)
    content = _text(_table(rng), ";").encode()
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith("gz") else content)
    options = ["--sample=stay", "--patient=patient", f"--odd-numbers={odd}", "--modality=vitals=hr+glucose"]
    if joined:
        stays = rng.permutation(60)[:50]
        labs = [
            ["stay", "k", "hr"],
            *([f"s{i:03d}", f"{x:.2f}", "7"] for i, x in zip(stays, rng.normal(4, 1, 50), strict=True)),
        ]
        (tmp_path / "labs.csv").write_text(_text([*labs, ["s999", "NA", "8"]]), encoding="utf-8")
        options.append(f"--join={tmp_path / 'labs.csv'}")
    kept = []
    monkeypatch.setattr(
        blocks.Room, "keep", lambda self, cells, keep=blocks.Room.keep: kept.append(1) or keep(self, cells)
    )
    expected = _imported(tmp_path, name, capsys, *options)
    assert not kept
    assert isinstance(expected, str) == (odd == "refuse")
    for size in (1, 100, 700, 2500):
        monkeypatch.setattr(tables, "STREAMED", size)
        assert _imported(tmp_path, name, capsys, *options) == expected
    assert kept


def test_of_a_table_on_the_disk_one_column_is_in_memory():
    frames = [pl.DataFrame({"a": [str(i), None], "b": ["x" * 40, "y"]}) for i in range(3)]
    table = blocks.Columns.of_blocks(frames)
    assert table.bounds.tolist() == [0, 2, 4, 6]
    assert pl.concat(table.blocks()).equals(pl.concat(frames))
    numbers = table.changed(lambda column: column.cast(pl.Float64), ["a"])
    assert numbers["a"].to_list() == [0, None, 1, None, 2, None]
    some = numbers.filter(numbers["a"].is_not_null().to_numpy())
    assert [block.rows() for block in some.blocks()] == [[(float(i), "x" * 40)] for i in range(3)]
    holes = some.take(pl.Series([2, None, 0]), np.array([0, 1, 3]))
    assert pl.concat(holes.blocks())["a"].to_list() == [2, None, 0]
    assert not any(isinstance(part, pl.Series) for part in holes._parts.values())


def test_a_full_disk_is_said_in_a_line(tmp_path, monkeypatch):
    (tmp_path / "icu.csv").write_text(_text(_table(np.random.default_rng(0))), encoding="utf-8")
    monkeypatch.setattr(tables, "STREAMED", 100)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"cannot write .*gone: No such file"):
        tables.read_columns(tmp_path / "icu.csv")


def test_what_is_packed_claims_no_more_than_it_may(tmp_path, monkeypatch):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 10_000))
    monkeypatch.setattr(tables, "MOST_STREAMED", 20_000)
    with pytest.raises(UserError, match="unpacks to more than"):
        tables.read_columns(tmp_path / "a.csv.gz")
