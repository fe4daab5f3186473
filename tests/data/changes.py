"""Ways in which the data of a run change behind its back, and what a run must say of each."""

import pathlib
from collections.abc import Callable

import numpy as np
import polars as pl
import yaml

from tests.data.manifest_files import SCHEMA, edit_cell, edit_table, with_modality, write_schema


def _table(folder: pathlib.Path) -> pl.DataFrame:
    return pl.read_csv(folder / "manifest.csv", infer_schema=False)


def add_patients(folder: pathlib.Path, rng: np.random.Generator, count: int = 3) -> str:
    """Adds patients, as a hospital does that goes on recruiting; each is a copy of another one's row."""
    table = _table(folder)
    more = table[rng.integers(0, len(table), count)].with_columns(
        stay=pl.Series([f"new{i}" for i in range(count)]), patient=pl.Series([f"new{i}" for i in range(count)])
    )
    pl.concat([table, more]).write_csv(folder / "manifest.csv")
    return f"rows added {count}"


def remove_a_patient(folder: pathlib.Path, rng: np.random.Generator) -> str:
    table = _table(folder)
    gone = table["patient"] == table["patient"][int(rng.integers(len(table)))]
    table.filter(~gone).write_csv(folder / "manifest.csv")
    return f"rows removed {gone.sum()}"


def change_a_label(folder: pathlib.Path, rng: np.random.Generator) -> str:
    row = int(rng.integers(len(_table(folder))))
    edit_cell(folder, "died", row, "10"[int(_table(folder)["died"][row])])
    return "labels changed 1"


def change_a_cell(folder: pathlib.Path, rng: np.random.Generator) -> str:
    column, modality = (("sodium", "labs"), ("note", "note"), ("icd", "icd"))[rng.integers(3)]
    there = np.flatnonzero(_table(folder)[column].is_not_null().to_numpy())
    edit_cell(folder, column, int(rng.choice(there)), "111.1")
    return f"cells changed in {modality} 1"


def empty_a_cell(folder: pathlib.Path, rng: np.random.Generator) -> str:
    table = _table(folder)
    there = np.flatnonzero((table["note"].is_not_null() & table["sodium"].is_not_null()).to_numpy())
    edit_cell(folder, "note", int(rng.choice(there)), None)
    return "cells changed in note 1"


def change_a_file(folder: pathlib.Path, rng: np.random.Generator) -> str:
    """Writes other numbers into a file of the same size."""
    path = folder / str(rng.choice(_table(folder)["scan"].drop_nulls().to_list()))
    np.save(path, np.load(path) + np.float32(1))
    return "cells changed in scan 1"


def declare_a_split(folder: pathlib.Path, rng: np.random.Generator) -> str:
    table = _table(folder)
    draw = {
        patient: rng.choice(["train", "tuning", "held_out"])
        for patient in table["patient"].unique(maintain_order=True).to_list()
    }
    edit_table(folder, part=[draw[patient] for patient in table["patient"].to_list()])
    write_schema(folder, split="part")
    return "rows moved between splits"


def turn_classes(folder: pathlib.Path, rng: np.random.Generator) -> str:
    del rng
    write_schema(folder, label={"column": "died", "classes": ["1", "0"]})
    return "classes in another order"


def drop_a_modality(folder: pathlib.Path, rng: np.random.Generator) -> str:
    """Leaves out one that every sample can spare."""
    del rng
    table = _table(folder)
    alone = table.select(pl.all_horizontal(pl.col("note", "sodium", "wbc", "sex", "scan").is_null())).to_series()
    edit_table(folder, note=[note or "x" if only else note for note, only in zip(table["note"], alone, strict=True)])
    write_schema(folder, modalities={name: x for name, x in SCHEMA["modalities"].items() if name != "icd"})
    return "modalities removed: icd"


def add_a_modality(folder: pathlib.Path, rng: np.random.Generator) -> str:
    edit_table(folder, age=[f"{x:.1f}" for x in rng.normal(60, 9, len(_table(folder)))])
    write_schema(folder, **with_modality("people", kind="tabular", columns=["age"]))
    return "modalities added: people"


def recode_a_modality(folder: pathlib.Path, rng: np.random.Generator) -> str:
    del rng
    cells = _table(folder)["icd"]
    edit_table(folder, icd=cells.str.replace_all("A", "B").to_list())
    return f"cells changed in icd {cells.str.contains('A').sum()}"


def turn_rows(folder: pathlib.Path, rng: np.random.Generator) -> str:
    del rng
    _table(folder).reverse().write_csv(folder / "manifest.csv")
    return "rows in another order"


def part_rows_of_a_patient(folder: pathlib.Path, rng: np.random.Generator) -> str:
    """Gives one of a patient's two rows to somebody else."""
    del rng
    edit_cell(folder, "patient", 1, "somebody")
    return "patients changed 1"


def rename_the_data(folder: pathlib.Path, rng: np.random.Generator) -> str:
    del rng
    schema = yaml.safe_load((folder / "schema.yaml").read_text(encoding="utf-8")) | {"name": "other_hospital"}
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema, sort_keys=False), encoding="utf-8")
    return "contents"


CHANGES: dict[str, Callable[[pathlib.Path, np.random.Generator], str]] = {
    each.__name__: each
    for each in (
        *(add_patients, remove_a_patient, change_a_label, change_a_cell, empty_a_cell, change_a_file),
        *(declare_a_split, turn_classes, drop_a_modality, add_a_modality, recode_a_modality, turn_rows),
        *(part_rows_of_a_patient, rename_the_data),
    )
}
