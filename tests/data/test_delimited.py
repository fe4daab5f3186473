"""Delimited text of all countries gives one table, and what cannot be read for certain is refused."""

import gzip

import polars as pl
import pytest

from remind_jax.data import tables
from remind_jax.errors import UserError

ROWS = [["stay", "ort", "x"], ["1", "München, A", "65.5"], ["2", "Genève; B", "1.5"], ["3", "", "a|b"]]


def _text(separator, eol="\n"):
    cells = [[f'"{cell}"' if set(cell) & set(",;|\t") else cell for cell in row] for row in ROWS]
    return eol.join(separator.join(row) for row in cells) + eol


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("name", ["a.csv", "a.TSV", "a.CSV.gz"])
@pytest.mark.parametrize("eol", ["\n", "\r\n"])
def test_one_table_in_many_forms(tmp_path, separator, encoding, name, eol):
    content = _text(separator, eol).encode(encoding)
    path, said = tmp_path / name, []
    path.write_bytes(gzip.compress(content, mtime=0) if name.endswith("gz") else content)
    found = tables.read_table(path, say=said.append)
    assert [found.columns, *([cell or "" for cell in row] for row in found.rows())] == ROWS
    usual = "\t" if "TSV" in name else ","
    assert any(" separate its cells" in line for line in said) == (separator != usual)
    assert any(line.startswith(f"{name} is read as ") for line in said) == (not encoding.startswith("utf-8"))


@pytest.mark.parametrize("sign", [";", ",", "\t", "^"])
def test_the_first_line_of_excel_names_the_separator(tmp_path, sign):
    (tmp_path / "a.csv").write_bytes(f"sep={sign}\r\na{sign}b\r\n1{sign}2\r\n".encode())
    assert tables.read_table(tmp_path / "a.csv").to_dict(as_series=False) == {"a": ["1"], "b": ["2"]}


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        (b"a,b\r1,2\r3,4\r", {"a": ["1", "3"], "b": ["2", "4"]}),  # of old Macintosh programs
        (b'a,b\n"x;y;z",2\n"p;q;r",3\n', {"a": ["x;y;z", "p;q;r"], "b": ["2", "3"]}),
        (b"a;b\n1,5;2,5\n3,5;4,5\n", {"a": ["1,5", "3,5"], "b": ["2,5", "4,5"]}),
        (b"a,b,,\n1,2,,\n", {"a": ["1"], "b": ["2"]}),  # empty columns of a spreadsheet
        (b",a,\n0,1,x\n", {"Unnamed: 0": ["0"], "a": ["1"], "Unnamed: 2": ["x"]}),
        (b"a\n1\n2\n", {"a": ["1", "2"]}),
        (b"a;b;c\n1;2;3\n4;5\n", {"a": ["1", "4"], "b": ["2", "5"], "c": ["3", None]}),
    ],
)
def test_what_files_look_like(tmp_path, content, columns):
    (tmp_path / "a.csv").write_bytes(content)
    assert tables.read_table(tmp_path / "a.csv").to_dict(as_series=False) == columns


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("姓名,b\n张伟,2\n李娜,3\n".encode("gb18030"), "save it as UTF-8"),
        ("имя,b\nАнна,2\n".encode("cp1251"), "save it as UTF-8"),
        (b"\xff\xfea\x00,\x00b", "begins as utf-16|header|NoData|ComputeError"),
        (b"a;b;b\n1;2;3\n", "two columns named 'b'"),
        (b"a;b\n1;2;3\n", "whose rows fit the header"),
    ],
)
def test_what_is_not_certain_is_refused(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        tables.read_table(tmp_path / "a.csv")


def test_quotes_in_the_names_of_columns_stay_as_they_are(tmp_path):
    table = pl.DataFrame({'sign "+" of a': [1], "b": [2]})
    table.write_csv(tmp_path / "a.csv")
    assert tables.read_table(tmp_path / "a.csv").columns == table.columns


def test_formulas_in_a_table_for_spreadsheets_can_be_taken_back_and_numbers_stay(tmp_path):
    table = pl.DataFrame({"id": ["=1+1", "-5", "'=x", "@a"], "=name": ["a", None, "", "-1.5"], "n": [1, -2, 3, 4]})
    assert tables.write_table(table, tmp_path / "a.csv")
    found = tables.read_table(tmp_path / "a.csv")
    assert found.columns == ["id", "'=name", "n"]
    assert found["id"].to_list() == ["'=1+1", "-5", "''=x", "'@a"]
    assert found["id"].str.replace("^'([=+@'-])", "$1").to_list() == table["id"].to_list()
    assert not tables.write_table(table.select("n"), tmp_path / "b.csv")
    assert not tables.write_table(table, tmp_path / "a.parquet")


def test_rows_with_too_few_cells_are_told(tmp_path):
    said, rows = [], ["a;b;c", "1;2;3", "4;5", "", ";;", '6;"7;8"', "9"]
    (tmp_path / "a.csv").write_text("\n".join(rows), encoding="utf-8")
    found = tables.read_table(tmp_path / "a.csv", say=said.append)
    assert found["c"].drop_nulls().to_list() == ["3"]
    assert said[-1] == "a.csv: 2 rows have fewer cells than the header; the lacking ones are read as empty"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,4,5\n", r"row 2 has 3 cells, the header 2: quote cells"),
        ("Export of 2020\nHospital\na,b,c\n1,2,3\n", r"row 2 has 3 cells, the header 1: .*nothing above the header"),
    ],
)
def test_the_row_that_does_not_fit_is_named(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        tables.read_table(tmp_path / "a.csv")
