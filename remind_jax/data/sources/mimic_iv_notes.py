"""Notes of MIMIC-IV-Note for each stay: what was written and signed before the window closes, newest first."""

import pathlib
from typing import NamedTuple

import polars as pl

from remind_jax.data.cells import looks_missing
from remind_jax.data.sources import mimic_iv_tables as tables
from remind_jax.errors import UserError

TABLES = ("discharge", "radiology")


class Notes(NamedTuple):
    """The notes of some stays.

    Attributes:
      texts: `stay_id` and `notes`, one row a stay that has any.
      used: how many notes were used, each counted once.
      unlinked: how many of them name no admission, or one that the admissions lack.
    """

    texts: pl.DataFrame
    used: int
    unlinked: int


def read(
    root: pathlib.Path, stays: pl.DataFrame, admissions: pl.Series, *, characters: int, leaky: bool = False
) -> Notes:
    """Returns the notes of each stay, newest first, cut at a number of characters.

    A note counts as known from the later of `charttime` and `storetime`: the time of a discharge summary is the
    midnight that began the day, hours before it was written. A discharge summary is used when it was known before the
    admission of the stay began, so it is of an earlier one; a radiology report when it was known by the end of the
    window. With `leaky`, everything written about the admission itself is used too, whenever it was written. Each table
    is read twice, the first time without keeping any text, so that the memory it takes is that of the notes that are
    used.

    `stays` has `stay_id`, `subject_id`, `hadm_id`, `admittime` and `end`, one row a stay; `admissions` every `hadm_id`.

    Raises UserError: a table cannot be used, or `root`, the folder of MIMIC-IV-Note or its `note`, has neither.
    """
    inside = "note/" if (root / "note").is_dir() else ""
    files = {name: [root / f"{inside}{name}{end}" for end in (".csv.gz", ".csv")] for name in TABLES}
    present = [name for name, paths in files.items() if any(path.is_file() for path in paths)]
    if not present:
        raise UserError(f"the folder of notes has neither {' nor '.join(f'{name}.csv.gz' for name in TABLES)}")
    kinds = {"note_id": "text", "subject_id": "id", "hadm_id": "id", "charttime": "time", "storetime": "time"}
    found = {name: tables.find(root, f"{inside}{name}", {**kinds, "text": "text"}) for name in present}
    picked = pl.concat([_candidates(table, name, stays, leaky) for name, table in found.items()])
    picked = picked.sort("stay_id", "known", "note_id", descending=[False, True, True])
    before = pl.col("length").cum_sum().over("stay_id") - pl.col("length")
    picked = picked.filter(before < characters)
    texts = pl.concat([_texts(table, picked["note_id"].unique()) for table in found.values()])
    whole = picked.join(texts, on="note_id", maintain_order="left").group_by("stay_id", maintain_order=True)
    cells = whole.agg(pl.col("text").str.join("\n").str.slice(0, characters).alias("notes"))
    cells = cells.filter(~looks_missing(cells["notes"]))
    once = picked.unique("note_id")
    unlinked = ~once["hadm_id"].is_in(admissions.implode()).fill_null(False)
    return Notes(cells, once.height, int(unlinked.sum()))


def _plain() -> pl.Expr:
    """The text with every run of white space as one blank; notes are wrapped at 80 characters."""
    return pl.col("text").str.replace_all(r"\s+", " ").str.strip_chars()


def _candidates(table: tables.Table, name: str, stays: pl.DataFrame, leaky: bool) -> pl.DataFrame:
    """The notes that each stay may use: `stay_id`, `note_id`, `hadm_id`, `known`, `length` in characters."""
    windows = stays.lazy().select("stay_id", "subject_id", pl.col("hadm_id").alias("own"), "admittime", "end")
    # Texts are measured and let go before the join gives a patient's notes to each of the stays.
    rows = table.scan().join(windows.select("subject_id"), on="subject_id", how="semi")
    rows = rows.with_columns(_plain().str.len_chars().fill_null(0).alias("length")).drop("text")
    rows = rows.filter(pl.col("length") > 0).join(windows, on="subject_id")
    rows = rows.with_columns(pl.max_horizontal(table.typed("charttime"), table.typed("storetime")).alias("known"))
    own = (pl.col("hadm_id") == pl.col("own")).fill_null(False)
    in_time = pl.col("known") <= pl.col("end")
    if name == "discharge":
        in_time = (pl.col("known") < pl.col("admittime")) & ~own
    rows = rows.filter(in_time.fill_null(False) | (own if leaky else pl.lit(False)))
    return table.collect(rows.select("stay_id", "note_id", "hadm_id", "known", "length"))


def _texts(table: tables.Table, note_ids: pl.Series) -> pl.DataFrame:
    wanted = pl.LazyFrame({"note_id": note_ids})
    return table.collect(table.scan().join(wanted, on="note_id", how="semi").select("note_id", _plain()))
