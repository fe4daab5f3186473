"""Records of others: what is read, what is refused in one line, and that nothing waits for ever."""

import dataclasses
import os

import pytest

from remind_jax.errors import UserError
from remind_jax.runtime import records

SHAPE = {"n": records.COUNT, "share?": records.SHARE, "names": [str], "kind": ("a", "b"), "more?": {...: (float, None)}}
GOOD = b'{"n": 3, "share": 0.5, "names": ["x"], "kind": "b", "more": {"y": 1, "z": null}, "other": [1]}'


def test_a_record_of_its_shape_is_read(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(GOOD)
    assert records.read(file, SHAPE, "remove it")["names"] == ["x"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "Expecting value"),
        (GOOD[:-1], "delimiter"),
        (b"\xff\xfe", "UTF-8"),
        (b"[]", "it is no mapping"),
        (GOOD.replace(b'"n": 3', b'"m": 3'), "it lacks n"),
        (GOOD.replace(b'"n": 3', b'"n": true'), "n is no whole number"),
        (GOOD.replace(b'"n": 3', b'"n": -1'), "n is no whole number from 0"),
        (GOOD.replace(b'"n": 3', b'"n": 3.0'), "n is no whole number"),
        (GOOD.replace(b'"n": 3', b'"n": ' + b"9" * 30), "immense"),
        (GOOD.replace(b'"n": 3', b'"n": ' + b"9" * 9000), "immense"),
        (GOOD.replace(b"0.5", b"1.5"), "share is no number from 0 to 1"),
        (GOOD.replace(b"0.5", b"NaN"), "not finite"),
        (GOOD.replace(b"0.5", b"1e999"), "not finite"),
        (GOOD.replace(b'["x"]', b'["x", 1]'), r"names\[1\] is no text"),
        (GOOD.replace(b'"b"', b'"c"'), "kind is not 'a'"),
        (GOOD.replace(b'"y": 1', b'"y": "1"'), "more has a key that is no number"),
        (GOOD.replace(b'"n": 3', b'"n": 3, "n": 4'), "twice"),
        (GOOD.replace(b"[1]", b"[" * 100 + b"]" * 100), "deeply"),
        (GOOD.replace(b"[1]", b"[" * 100_000 + b"]" * 100_000), "deeply"),
        (GOOD.replace(b"[1]", b'"\\ud800"'), "a text is none"),
    ],
)
def test_another_is_refused_in_one_line_that_names_the_file_and_the_remedy(tmp_path, content, says):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json is damaged \(.*{says}.*\): remove it$") as caught:
        records.read(file, SHAPE, "remove it")
    assert "\n" not in str(caught.value)


def test_nan_can_be_allowed_and_a_file_can_be_absent(tmp_path):
    assert records.parse(b'{"a": NaN, "b": -Infinity}', finite=False)["b"] == float("-inf")
    assert records.read(tmp_path / "no.json", {}, "", default=7) == 7
    with pytest.raises(UserError, match="is missing: make it"):
        records.read(tmp_path / "no.json", {}, "make it")


def test_a_character_of_two_halves_is_one(tmp_path):
    assert records.parse(b'"\\ud83d\\ude00"') == "\U0001f600"


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "link out", "itself", "nowhere", "huge"])
def test_what_is_no_regular_file_of_its_folder_is_refused_at_once(tmp_path, kind):
    file, folder = tmp_path / "run" / "a.json", tmp_path / "run"
    folder.mkdir()
    (tmp_path / "outside.json").write_bytes(GOOD)
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "huge":
        with file.open("wb") as stream:
            stream.truncate(records.MOST + 1)
    else:
        file.symlink_to(
            {"device": "/dev/zero", "link out": tmp_path / "outside.json", "itself": "a.json", "nowhere": "no"}[kind]
        )
    with pytest.raises(UserError, match=r"a\.json (is|cannot be read)"):
        records.read(file, SHAPE, "remove it")


def test_links_inside_a_folder_and_those_that_a_user_names_are_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "b.json").write_bytes(GOOD)
    (tmp_path / "run" / "a.json").symlink_to("b.json")
    (tmp_path / "named").symlink_to("run")
    assert records.read(tmp_path / "named" / "a.json", SHAPE, "")["n"] == 3
    (tmp_path / "c.json").symlink_to("run/b.json")
    assert records.read(tmp_path / "c.json", SHAPE, "", below=records.ANYWHERE)["n"] == 3


def test_the_shape_of_a_dataclass_follows_its_types():
    @dataclasses.dataclass
    class Inner:
        x: float

    made = dataclasses.make_dataclass(
        "Made", [("a", tuple[int, ...]), ("b", tuple[int, int]), ("c", str | None, None), ("d", tuple[Inner, ...], ())]
    )
    shape = records.of_class(made)
    assert shape == {"a": [int], "b": [int, int], "c?": (str, None), "d?": [{"x": float}]}
    assert records.fault({"a": [], "b": [1, 2], "d": [{"x": 1}]}, shape) == ""
    assert records.fault({"a": [], "b": [1]}, shape) == "b is no list of 2"
    assert records.fault({"a": [], "b": [1, 2], "d": [{"x": "1"}]}, shape) == "d[0].x is no number"
