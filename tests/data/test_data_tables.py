"""Tables from files: every format gives the same table, and what cannot be read is named in one line."""

import gzip
import importlib
import zipfile

import polars as pl
import pytest

from remind_jax.data import tables
from remind_jax.errors import UserError

TABLE = pl.DataFrame({"id": [1, 2, 3], "x": [0.0, None, 2.5], "word": ["Müller, A", "NA", None], "code": ["0401"] * 3})


def _write(table, path):
    form = tables.format_of(path)
    if form == ".parquet":
        table.write_parquet(path)
    elif form == ".xlsx":
        _workbook(path, [table.columns, *table.rows()])
    elif form == ".xpt":
        pytest.importorskip("pyreadstat").write_xport(table, path, file_format_version=5, table_name="T")
    else:
        text = table.write_csv(separator="\t" if form.startswith(".tsv") else ",").encode()
        path.write_bytes(
            gzip.compress(text[:9], mtime=0) + gzip.compress(text[9:], mtime=0) if form.endswith(".gz") else text
        )
    return path


def _workbook(path, *sheets):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for i, rows in enumerate(sheets):
        sheet = book.active if i == 0 else book.create_sheet()
        for row in rows:
            sheet.append(list(row))
    book.save(path)
    return path


@pytest.mark.parametrize("ending", [*tables.FORMATS, ".CSV", ".Tsv.gz"])
def test_every_format_gives_the_same_table(tmp_path, ending):
    found = tables.read_table(_write(TABLE, tmp_path / f"table{ending}"))
    assert found.columns == TABLE.columns
    assert found["id"].cast(pl.Float64).to_list() == [1.0, 2.0, 3.0]
    assert found["x"].cast(pl.Float64).to_list() == [0.0, None, 2.5]
    assert [word or None for word in found["word"]] == ["Müller, A", "NA", None]
    assert found["code"].to_list() == ["0401"] * 3


def test_a_transport_file_as_sas_writes_it(tmp_path):
    """By hand, after the record layout that SAS has published: hexadecimal floats, and words in Latin-1."""
    stamp = b"01JAN20:00:00:00"

    def header(kind, tail):
        return f"HEADER RECORD*******{kind:<8}HEADER RECORD!!!!!!!{tail:<30}  ".encode()

    def variable(i, number, name, length, position):
        fields = [(1 if number else 2).to_bytes(2), b"\0\0", length.to_bytes(2), i.to_bytes(2)]
        fields += [name.ljust(8), b" " * 40, b" " * 8, bytes(8), b" " * 8, bytes(4), position.to_bytes(4), bytes(52)]
        return b"".join(fields)

    variables = variable(1, True, b"SEQN", 8, 0) + variable(2, True, b"LBX", 8, 8) + variable(3, False, b"TXT", 8, 16)
    one, zero, none = bytes([0x41, 0x10, *[0] * 6]), bytes(8), b".".ljust(8, b"\0")
    rows = one + zero + b"M\xfcller  " + bytes([0x41, 0x20, *[0] * 6]) + none + b" " * 8
    content = (
        header("LIBRARY", "0" * 30) + b"SAS     SAS     SASLIB  9.4     Linux   ".ljust(64) + stamp + stamp.ljust(80)
    )
    content += header("MEMBER", "000000000000000001600000000140") + header("DSCRPTR", "0" * 30)
    content += b"SAS     T       SASDATA 9.4     Linux   ".ljust(64) + stamp + stamp.ljust(80)
    content += header("NAMESTR", f"000000{3:04}{0:020}") + variables.ljust(480) + header("OBS", "0" * 30)
    (tmp_path / "a.xpt").write_bytes(content + rows.ljust(80))
    pytest.importorskip("pyreadstat")
    found = tables.read_table(tmp_path / "a.xpt")
    assert found["SEQN"].to_list() == [1.0, 2.0]
    assert found["LBX"].to_list() == [0.0, None]  # not 5e-79
    assert found["TXT"][0] == "Müller"


def test_a_workbook_keeps_types_and_reads_the_first_sheet(tmp_path):
    rows = [
        ["n", "mixed", None, 2020],
        [1, 5, None, True],
        [2.5, "<1", None, False],
        ["#N/A", None, None, None],
        [None] * 4,
    ]
    said = []
    found = tables.read_table(_workbook(tmp_path / "a.xlsx", rows, [["z"], [1]]), say=said.append)
    assert found.to_dict(as_series=False) == {"n": [1.0, 2.5], "mixed": ["5", "<1"], "2020": [True, False]}
    assert said == ["a.xlsx: the first of 2 sheets is read, 'Sheet'"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["a", None], [1, 2]], "column 2 has no name; the first row must name each"),
        ([["a", "a"], [1, 2]], "column 2 has the name of another"),
        ([], "its first sheet is empty"),
    ],
)
def test_headers_of_workbooks_that_are_none(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        tables.read_table(_workbook(tmp_path / "a.xlsx", rows))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"a,b\n1,2\n", r"must be a file that ends in \.csv, "),
        ("none.csv", None, "must be a file"),
        ("a.csv", gzip.compress(b"a,b\n1,2\n", mtime=0), "it is compressed; name it .csv.gz"),
        ("a.csv.gz", gzip.compress(gzip.compress(b"a,b\n1,2\n", mtime=0), mtime=0), "it is compressed"),
        ("a.csv.gz", b"a,b\n1,2\n", "BadGzipFile"),
        ("a.csv.gz", gzip.compress(b"a,b\nJane,2\n", mtime=0)[:-9], "EOFError"),
        ("a.csv", b"a,b\n1,\xff\n", "save it as UTF-8"),
        ("a.tsv", b"a\tb\n1\t2\t3\n", "text with tabs whose rows fit the header"),
        ("a.csv", b"a,a\n1,2\n", "two columns named 'a'"),
        ("a.csv", b'a,"b\n1,2\n', "header"),
        ("a.xlsx", b"PK\x03\x04 Jane", "it is damaged, an old .xls, or protected by a password"),
        ("a.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "protected by a password"),
        ("a.xpt", b"Jane" * 100, "a SAS transport file"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    if path.suffix in (".xlsx", ".xpt"):
        pytest.importorskip({".xlsx": "openpyxl", ".xpt": "pyreadstat"}[path.suffix])
    with pytest.raises(UserError, match=message) as caught:
        tables.read_table(path)
    assert "\n" not in str(caught.value)
    assert "Jane" not in str(caught.value)


@pytest.mark.parametrize("ending", [".csv.gz", ".xlsx"])
def test_packed_files_are_unpacked_up_to_a_bound(tmp_path, ending, monkeypatch):
    path = _write(pl.DataFrame({"x": ["abc"] * 30_000}), tmp_path / f"a{ending}")
    assert tables.read_table(path).height == 30_000
    monkeypatch.setattr(tables, "MOST_UNPACKED", 2**16)
    with pytest.raises(UserError, match="unpacks to more than"):
        tables.read_table(path)


def test_a_workbook_that_lies_about_its_size_is_refused(tmp_path):
    """Its sheet claims a few bytes; no more than those are unpacked."""
    path = _write(pl.DataFrame({"x": ["abc"] * 30_000}), tmp_path / "a.xlsx")
    with zipfile.ZipFile(path) as file:
        size = file.getinfo("xl/worksheets/sheet1.xml").file_size
    content = path.read_bytes()
    assert content.count(size.to_bytes(4, "little")) >= 1
    path.write_bytes(content.replace(size.to_bytes(4, "little"), (900).to_bytes(4, "little")))
    with pytest.raises(UserError, match="damaged"):
        tables.read_table(path)


@pytest.mark.parametrize(("ending", "package"), [(".xlsx", "openpyxl"), (".xpt", "pyreadstat")])
def test_a_package_that_is_not_installed_is_named_with_its_command(tmp_path, ending, package, monkeypatch):
    def without(name, *rest):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    (tmp_path / f"a{ending}").write_bytes(b"")
    with pytest.raises(UserError, match=f"{package} is not installed: pip install {package}"):
        tables.read_table(tmp_path / f"a{ending}")
