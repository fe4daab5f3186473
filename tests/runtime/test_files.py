import pytest

from remind_jax.runtime import files


def test_a_file_is_replaced_whole_and_nothing_else_stays(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("old and longer")
    files.write_text(file, "é\n")
    assert file.read_bytes() == "é\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(file, "lone surrogate \ud800")
    assert file.read_text() == "old"
