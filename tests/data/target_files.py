"""Writes manifest folders with labels of every task."""

import numpy as np
import polars as pl
import yaml

from tests.data.manifest_files import SCHEMA, write_manifest

N, SIGNALS = 60, 150
FORMS = {
    "ordinal": {"column": "died", "classes": ["0", "1"], "ordered": True},
    "multilabel": {"task": "multilabel", "columns": ["sepsis", "aki", "stroke"]},
    "regression": {"task": "regression", "column": "los", "transform": "log1p"},
    "survival": {"task": "survival", "time": "days", "event": "dead", "horizons": [30, 365]},
}


def folder_of(path, task, n=N, **changes):
    """A manifest folder of `n` samples whose label is of a task; `changes` are columns of its table."""
    folder, rng = write_manifest(path, n=n), np.random.default_rng(1)
    holes = rng.uniform(size=(3, n)) < 0.2
    cells = {
        name: [None if hole else int(yes) for hole, yes in zip(holes[j], rng.uniform(size=n) < 0.4, strict=True)]
        for j, name in enumerate(FORMS["multilabel"]["columns"])
    }
    for i in np.flatnonzero(holes.all(axis=0)):
        cells["stroke"][i] = 0
    cells["sepsis"][:4] = cells["aki"][:4] = [1, 0, 1, 0]
    cells["los"] = np.round(rng.gamma(2, 3, n), 2).tolist()
    cells |= {"days": np.round(rng.exponential(200, n) + 0.1, 1).tolist(), "dead": rng.integers(0, 2, n).tolist()}
    table = pl.read_csv(folder / "manifest.csv", infer_schema=False)
    columns = {name: pl.Series(name, values, strict=False) for name, values in (cells | changes).items()}
    table.with_columns(**columns).write_csv(folder / "manifest.csv")
    write_label(folder, FORMS[task])
    return folder


def write_label(folder, label):
    (folder / "schema.yaml").write_text(yaml.safe_dump(SCHEMA | {"label": label}), encoding="utf-8")


def with_signal(path, task):
    """A folder in which sodium, where it is known, tells most of the label."""
    folder = folder_of(path, task, n=SIGNALS)
    table, rng = pl.read_csv(folder / "manifest.csv", infer_schema=False), np.random.default_rng(3)
    sodium = (140 - table["sodium"].cast(pl.Float64).fill_null(140).to_numpy()) / 4
    event, censoring = rng.exponential(200 * np.exp(-1.5 * sodium)), rng.exponential(400, SIGNALS)
    known = {name: rng.uniform(size=SIGNALS) < 0.8 for name in ("sepsis", "aki")} | {"stroke": np.ones(SIGNALS, bool)}
    labels = {
        name: [int(y) if k else None for y, k in zip(sodium > at, known[name], strict=True)]
        for at, name in zip((0.0, 0.5, 1.0), known, strict=True)
    }
    labels |= {"died": (sodium > 0.5).astype(int), "los": np.round(np.exp(1 + sodium), 3)}
    labels |= {"days": np.round(np.minimum(event, censoring) + 0.1, 2), "dead": (event <= censoring).astype(int)}
    table.with_columns(**{k: pl.Series(v, strict=False).cast(pl.String) for k, v in labels.items()}).write_csv(
        folder / "manifest.csv"
    )
    return folder
