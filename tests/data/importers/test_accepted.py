"""What import writes, check accepts; and every row is used or told. Over tables made by chance."""

import contextlib
import io
import pathlib
import random
import re
import tempfile

import polars as pl
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from remind_jax import check_data, import_data
from remind_jax.errors import UserError

N = 40
_CELLS = {
    "numbers": lambda r, i: f"{r.gauss(100, 20):.1f}",
    "limits": lambda r, i: r.choice([">200", "<0.1", "5-10", "___", "1,234.5", "pending", "7", "8.5", "9", "10"]),
    "commas": lambda r, i: f"{r.randrange(90)},{r.randrange(10)}",
    "unclear": lambda r, i: f"{r.randrange(1, 9)},{r.randrange(100, 999)}",
    "immense": lambda r, i: r.choice(["1e400", "inf", "-inf", "3", "NaN"]),
    "words": lambda r, i: r.choice(["mild", "Severe", "None", "NA", "", " ", "né"]),
    "codes": lambda r, i: r.choice(["E11.9;I10", "e11.9", "401.9 V45.1", "I10, J18.9"]),
    "dates": lambda r, i: r.choice(["01.02.2020", "2020-01-02", "3/4/2020 10:00"]),
    "ids": lambda r, i: f"{30000 + i}",
    "counts": lambda r, i: str(i),
    "notes": lambda r, i: " ".join(r.choices(["no", "fever", 'said "ow"', "a;b", "x,y", "line\nbreak", "胸痛"], k=6)),
    "chinese": lambda r, i: f"患者主诉胸痛三天伴呼吸困难{r.randrange(99)}",
    "paths": lambda r, i: f"scans of 2020/p {i}.png",
    "constant": lambda r, i: "1",
    "nothing": lambda r, i: "",
    "mixed": lambda r, i: r.choice(["1", "x y", "E11", "2020-01-01", "", "None", ">5", "é;ü"]),
}
_LABELS = {
    "plain": lambda r, i: str(i % 2),
    "forms": lambda r, i: r.choice([["0", "0.0"], ["1", "1.0"]][i % 2]),
    "yes": lambda r, i: r.choice([["no", "No", "0"], ["Yes", "true", "1"]][i % 2]),
    "none": lambda r, i: ["None", "Mild", "Severe"][i % 3],
    "holes": lambda r, i: r.choice([str(i % 2), "", "NaN", "NA"]),
    "one": lambda r, i: "1",
    "number": lambda r, i: f"{r.gauss(5, 2):.3f}",
    "text": lambda r, i: "the patient went home " + "and slept well " * (i % 7),
    "rare": lambda r, i: "abcdefg"[min(i, 6)],
}
_SEPARATORS, _ENCODINGS = ",;\t|", ("utf-8", "utf-8-sig", "utf-16", "cp1252")


def _table(seed, kinds, label):
    r = random.Random(seed)
    columns = {"stay": [f"{20000 + i}" for i in range(N)], "patient": [str(i // 2) for i in range(N)]}
    columns["died"] = [_LABELS[label](r, i) for i in range(N)]
    for j, kind in enumerate(kinds):
        columns[f"{kind}{j}"] = [None if r.random() < 0.1 else _CELLS[kind](r, i) for i in range(N)]
    return pl.DataFrame({name: pl.Series(cells, dtype=pl.String) for name, cells in columns.items()})


def _written(table, folder, separator, encoding):
    text = table.write_csv(separator=separator)
    with contextlib.suppress(UnicodeEncodeError):
        (folder / "raw.csv").write_bytes(text.encode(encoding))
        return
    (folder / "raw.csv").write_bytes(text.encode())


def _run(command, *arguments):
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        code = command(list(arguments))
    return code, shown.getvalue()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.lists(st.sampled_from(sorted(_CELLS)), min_size=1, max_size=5),
    st.sampled_from(sorted(_LABELS)),
    st.sampled_from(_SEPARATORS),
    st.sampled_from(_ENCODINGS),
)
def test_check_accepts_what_import_writes(seed, kinds, label, separator, encoding):
    table = _table(seed, kinds, label)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        _written(table, folder, separator, encoding)
        options = [f"--source={folder / 'raw.csv'}", f"--out={folder}", "--label=died", "--sample=stay"]
        refused = ""
        try:
            _, shown = _run(import_data.main, *options, "--patient=patient")
        except UserError as error:
            refused = str(error)
        assert "\n" not in refused
        assert "went home" not in refused
        assert (folder / "schema.yaml").exists() == (not refused)
        if refused:
            return
        schema = yaml.safe_load((folder / "schema.yaml").read_text(encoding="utf-8"))
        used = pl.read_csv(folder / "manifest.csv", infer_schema=False)
        told = sum(int(n) for n in re.findall(r"note: (\d+) rows without (?:a label|any modality) are left out", shown))
        assert used.height + told == N
        columns = {c for entry in schema["modalities"].values() for key in entry for c in _names(entry, key)}
        unused = set(table.columns) - columns - {"stay", "patient", "died"}
        assert all(column in shown for column in unused)
        assert "went home" not in shown
        if not any(entry["kind"] == "image" for entry in schema["modalities"].values()):  # whose files are not there
            code, found = _run(check_data.run, str(folder))
            assert code == 0, found


def _names(entry, key):
    return [entry[key]] if key == "column" else entry[key] if key in ("columns", "categorical") else []
