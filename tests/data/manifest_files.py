"""Writes small manifest folders for tests."""

import pathlib

import numpy as np
import polars as pl
import yaml

from tests.data.image_files import ramp, write_dicom, write_picture

SCHEMA = {
    "version": 1,
    "name": "small_hospital",
    "sample_id": "stay",
    "patient_id": "patient",
    "label": {"column": "died", "classes": ["0", "1"]},
    "modalities": {
        "note": {"kind": "text", "column": "note"},
        "icd": {"kind": "codes", "column": "icd"},
        "labs": {"kind": "tabular", "columns": ["sodium", "wbc"], "categorical": ["sex"]},
        "scan": {"kind": "embedding", "column": "scan", "stored": "file"},
    },
}
IMAGE_SCHEMA = SCHEMA | {
    "name": "small_clinic",
    "modalities": {
        "fundus": {"kind": "image", "column": "fundus"},
        "mammo": {"kind": "image", "column": "mammo", "channels": 1},
        "flow": {"kind": "volume", "column": "flow", "channels": 1},
        "labs": {"kind": "tabular", "columns": ["sodium"]},
    },
}
_WORDS = ("stable", "fever", "cough", "renal", "failure", "chronic", "acute", "pain", "denies", "admitted")


def write_scans(folder: pathlib.Path, labels: np.ndarray) -> list[str]:
    """Writes an array a label, [2, 3] around it, and returns the files' names."""
    folder.mkdir()
    rng, names = np.random.default_rng(0), [f"{i}.npy" for i in range(len(labels))]
    for name, label in zip(names, labels, strict=True):
        np.save(folder / name, rng.normal(label, 1, (2, 3)).astype(np.float32))
    return names


def write_manifest(folder: pathlib.Path, n: int = 60, seed: int = 0, *, parquet: bool = False) -> pathlib.Path:
    """Writes a valid manifest folder (text, codes, tabular, embedding files [3, 4]) of `n` samples and returns it.

    Every other patient has two samples. A modality is missing with probability 0.3 in each sample, never all of them;
    labels come half and half and do not depend on what is missing.
    """
    rng = np.random.default_rng(seed)
    folder = pathlib.Path(folder)
    (folder / "scans").mkdir(parents=True, exist_ok=True)
    present = rng.random((n, 4)) > 0.3
    empty = ~present.any(axis=1)
    present[empty, rng.integers(0, 4, empty.sum())] = True
    rows = [_row(folder, i, rng, present[i]) for i in range(n)]
    table = pl.DataFrame(rows, infer_schema_length=None)
    if parquet:
        table.write_parquet(folder / "manifest.parquet")
    else:
        table.write_csv(folder / "manifest.csv")
    (folder / "schema.yaml").write_text(yaml.safe_dump(SCHEMA, sort_keys=False), encoding="utf-8")
    return folder


def _row(folder: pathlib.Path, i: int, rng: np.random.Generator, present: np.ndarray) -> dict[str, object]:
    label = i % 2
    sodium, wbc = rng.normal(140 - 4 * label, 3), rng.normal(8 + 2 * label, 2)
    words = [f"case {i}:", "shock" if label else "well", *rng.choice(_WORDS, 12)]
    codes = rng.choice([f"{c}{d}" for c in "AEIN" for d in range(10, 20)], rng.integers(1, 8))
    if present[3]:
        np.save(folder / "scans" / f"{i}.npy", rng.normal(label, 1, (3, 4)).astype(np.float32))
    return {
        "stay": f"s{i}",
        "patient": f"p{2 * i // 3}",
        "died": str(label),
        "note": " ".join(words) if present[0] else None,
        "icd": " ".join(codes) if present[1] else None,
        "sodium": round(sodium, 1) if present[2] else None,
        "wbc": round(wbc, 2) if present[2] and rng.random() > 0.2 else None,
        "sex": ("f", "m")[int(rng.integers(2))] if present[2] else None,
        "scan": f"scans/{i}.npy" if present[3] else None,
    }


def write_image_manifest(folder: pathlib.Path, n: int = 24, seed: int = 0) -> pathlib.Path:
    """Writes a valid manifest folder with image and volume files of `n` patients and returns it.

    fundus is jpeg and png in turn, mammo DICOM, flow npy [5, 6, 8]; each is missing with probability 0.3. Everybody has
    sodium. No two files are alike.
    """
    rng = np.random.default_rng(seed)
    folder = pathlib.Path(folder)
    for name in ("fundus", "mammo", "flow"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        present = rng.random(3) > 0.3
        names = (f"fundus/{i}.{('jpg', 'png')[i % 2]}", f"mammo/{i}.dcm", f"flow/{i}.npy")
        if present[0]:
            write_picture(folder / names[0], ramp(60, 80, channels=3, seed=i))
        if present[1]:
            write_dicom(folder / names[1], ramp(seed=i).astype(np.uint16) * 16, Modality="MG", InstanceNumber=i)
        if present[2]:
            np.save(folder / names[2], np.stack([ramp(seed=i + 100 * t) for t in range(5)]))
        cells = [name if here else None for name, here in zip(names, present, strict=True)]
        rows.append([f"s{i}", f"p{i}", str(i % 2), *cells, round(rng.normal(140, 3), 1)])
    columns = ("stay", "patient", "died", "fundus", "mammo", "flow", "sodium")
    pl.DataFrame(rows, schema=columns, orient="row", infer_schema_length=None).write_csv(folder / "manifest.csv")
    (folder / "schema.yaml").write_text(yaml.safe_dump(IMAGE_SCHEMA, sort_keys=False), encoding="utf-8")
    return folder


def edit_table(folder, **columns):
    """Replaces columns of the folder's CSV."""
    table = pl.read_csv(folder / "manifest.csv", infer_schema=False)
    table.with_columns(**{name: pl.Series(values) for name, values in columns.items()}).write_csv(
        folder / "manifest.csv"
    )


def edit_cell(folder, column, row, value):
    """Replaces one cell of the folder's CSV."""
    values = pl.read_csv(folder / "manifest.csv", infer_schema=False)[column].to_list()
    values[row] = value
    edit_table(folder, **{column: values})


def write_schema(folder, **changes):
    """Writes `SCHEMA` with other entries."""
    (folder / "schema.yaml").write_text(yaml.safe_dump(SCHEMA | changes), encoding="utf-8")


def with_modality(name, **entry):
    """The modalities of `SCHEMA` and one more, or another of the same name."""
    return {"modalities": SCHEMA["modalities"] | {name: entry}}


def swap(values, **cells):
    """A copy of a list with some positions replaced: `_3="x"` replaces position 3."""
    values = list(values)
    for position, value in cells.items():
        values[int(position[1:])] = value
    return values
