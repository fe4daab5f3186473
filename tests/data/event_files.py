"""Writes manifest folders with a long table of events."""

import datetime
import pathlib

import numpy as np
import polars as pl
import yaml

from tests.data.manifest_files import SCHEMA

START = datetime.datetime(2150, 1, 1)
ROLES = {"key": "stay", "time": "when", "code": "item", "value": "value", "until": "end"}
ENTRY = {"kind": "events", "table": "vitals.csv", **ROLES}
CODES = ("hr", "sbp", "drug")


def tables(n: int = 60, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Samples whose prediction is 24 h after the start, and their events of 36 h; a fifth of the samples has none.

    Label, sodium and, in the last hours, heart rate go together. Drugs have no value.
    """
    rng = np.random.default_rng(seed)
    samples = pl.DataFrame(
        {
            "stay": [f"s{i}" for i in range(n)],
            "patient": [f"p{i}" for i in range(n)],
            "died": [str(i % 2) for i in range(n)],
            "sodium": [round(float(x) - 4 * (i % 2), 1) for i, x in enumerate(rng.normal(140, 3, n))],
            "end": [str(START + datetime.timedelta(hours=24, minutes=i)) for i in range(n)],
        }
    )
    rows = []
    for i in range(n):
        for _ in range(rng.integers(3, 20) if i % 5 else 0):
            when = START + datetime.timedelta(seconds=int(rng.integers(0, 36 * 3600)))
            code = CODES[rng.integers(3)]
            value = None if code == "drug" else round(float(rng.normal(80 + 10 * (i % 2), 5)), 1)
            rows.append((f"s{i}", str(when), code, value))
    schema = {"stay": pl.String, "when": pl.String, "item": pl.String, "value": pl.Float64}
    return samples, pl.DataFrame(rows, schema=schema, orient="row")


def write_folder(folder: pathlib.Path, samples: pl.DataFrame, events: pl.DataFrame, **changes: object) -> pathlib.Path:
    """Writes a manifest folder; `changes` are other keys of the entry of the events, `...` takes one away."""
    folder.mkdir(exist_ok=True)
    samples.write_csv(folder / "manifest.csv")
    events.write_csv(folder / "vitals.csv")
    entry = {key: value for key, value in (ENTRY | changes).items() if value is not ...}
    labs = {"kind": "tabular", "columns": ["sodium"]}
    schema = SCHEMA | {"modalities": {"labs": labs, "vitals": entry}}
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema, sort_keys=False), encoding="utf-8")
    return folder
