"""What is printed of an import: every column in few lines, and no cell of a patient."""

import polars as pl

from remind_jax.data.importers.plan import plan_lines
from remind_jax.data.importers.table import from_table

N = 60


def _frame(**more):
    columns = {"stay": [f"s{i}" for i in range(N)], "person": [i // 2 for i in range(N)]}
    columns |= {"died": [None if i < 3 else i % 3 for i in range(N)], "sex": ["Jane", "Jane", "Joe", None] * (N // 4)}
    return pl.DataFrame(columns | more)


def test_every_column_is_accounted_for():
    notes = [f"Jane is number {i}" if i < 30 else None for i in range(N)]
    scans = [f"{i}.npy" for i in range(N)]
    admitted = ["2020-01-01"] * N
    part = ["train", "train", "test"] * (N // 3)
    frame = _frame(age=[i * 7 % 23 for i in range(N)], note=notes, scan=scans, admitted=admitted, part=part)
    told = {"scans": ["scan"]}
    found = from_table(frame, name="icu", label="died", sample="stay", patient="person", split="part", modalities=told)
    assert plan_lines(found) == [
        "samples: 57 by stay, of 29 patients by person",
        "label: died, 3 classes: 0 (19), 1 (19), 2 (19)",
        "split: part, train (38), held_out (19)",
        "modalities:",
        "  scans  embedding, paths (column scan); in all samples",
        "  icu    1 number (age), 1 category (sex: 2 values); in all samples",
        "  note   text; in 27 samples",
        "columns:",
        "  embedding (cells end like its files): scan",
        "  number (every cell is a number): age",
        "  category (few different values): sex",
        "  text (words in most cells): note",
        "note: 3 rows without a label are left out",
        "note: 1 column left out (a time): admitted",
    ]


def test_many_columns_take_few_lines():
    wide = {f"x{i}": [j * 7 % 23 for j in range(N)] for i in range(500)} | {
        f"c{i}": ["Jane", "Joe"] * (N // 2) for i in range(300)
    }
    texts = {f"t{i}": [f"Jane number {i} {j}" for j in range(N)] for i in range(100)}
    times = {f"d{i}": ["2020-01-01"] * N for i in range(100)}
    lines = plan_lines(from_table(_frame(**wide, **texts, **times), name="icu", label="died"))
    assert len(lines) <= 40
    assert max(map(len, lines)) < 240
    text = "\n".join(lines)
    assert "Jane" not in text
    assert "501 numbers (person, x0, x1, x2, x3 and 496 more), 301 categories (sex: 2 values, c0: 2 values, c1:" in text
    assert "  and 81 more: 81 text" in text
    assert "100 columns left out (a time): d0, d1" in text
