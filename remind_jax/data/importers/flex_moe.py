"""Flex-MoE's folder of ADNI."""

import functools
import pathlib
from collections.abc import Callable

import numpy as np
import polars as pl

from remind_jax.data.importers.table import SPLITS, Imported, from_table
from remind_jax.data.tables import read_table
from remind_jax.errors import UserError
from remind_jax.runtime import records

_LEAKS = ("PTCOGBEG", "PTADDX", "PTADBEG")  # of ADNI: when symptoms and the disease itself were first noted


def from_flex_moe(folder: pathlib.Path, *, name: str) -> Imported:
    """Makes a manifest of the folder that Flex-MoE's loader reads for ADNI.

    `label.csv` (PTID, DIAGNOSIS), `PTID_splits.json` (training, validation, testing), `clinical/clinical_merged.csv`
    and `biospecimen/biospecimen_merged.csv` (ids in the first column), `genomic/genomic_merged.csv`, and
    `image/ADNI_G.npy` with `image/ADNI_subj.txt`, a line a scan that begins with the id and ends in the date. What is
    not there is no modality. Unlike there, nothing is scaled or filled in before the split. The newest scan of each
    subject becomes a file of the manifest's folder, as tokens [1, voxels]. Raises UserError: it is not such a folder.
    """
    file = folder / "label.csv"
    if not file.is_file():
        pickled = list(folder.glob("*.pt"))
        why = "its .pt files are pickles, which are not read" if pickled else "label.csv is missing"
        raise UserError(f"{folder} is not Flex-MoE's folder of ADNI: {why}")
    labels = read_table(file)
    if absent := {"PTID", "DIAGNOSIS"} - set(labels.columns):
        raise UserError(f"{file} has no column {sorted(absent)[0]}")
    labels, notes, joined, scans = labels.select("PTID", "DIAGNOSIS"), [], {}, {}
    for part in ("clinical", "biospecimen", "genomic"):
        path = folder / part / f"{part}_merged.csv"
        if path.is_file():
            frame = read_table(path)
            if "PTID" in frame.columns[1:]:
                raise UserError(f"{path}: ids stand in the first column, and another one is called PTID")
            frame = frame.rename({frame.columns[0]: "PTID"})
            joined[part] = frame.select("PTID", *(c for c in frame.columns[1:] if not c.startswith(_LEAKS)))
        else:
            notes.append(f"{part}/{path.name} is not there: no modality {part}")
    if (folder / "genomic" / "genomic_merged.h5ad").is_file() and "genomic" not in joined:
        notes.append("genomic_merged.h5ad is not read: save scanpy.read_h5ad(file).to_df() as genomic_merged.csv")
    if (folder / "image" / "ADNI_G.npy").is_file():
        joined["image"], scans = _flex_moe_scans(folder / "image")
    splits = folder / "PTID_splits.json"
    if splits.is_file():
        parts = _read_splits(splits)
        given = {ptid: SPLITS[part] for part, ids in parts.items() if part in SPLITS for ptid in ids}
        labels = labels.with_columns(pl.col("PTID").replace_strict(given, default=None).alias("split"))
        notes.append(f"{labels['split'].null_count()} subjects are in no split and left out")
        labels = labels.drop_nulls("split")
    split = "split" if splits.is_file() else ""
    kinds = {"scan": "embedding"} if "image" in joined else {}
    columns = {"label": "DIAGNOSIS", "sample": "PTID", "patient": "PTID", "split": split}
    found = from_table(labels, name=name, joined=joined, kinds=kinds, **columns)
    return found._replace(notes=notes + found.notes, arrays=scans)


def _read_splits(path: pathlib.Path) -> dict[str, list[str]]:
    """Reads the ids of each split; raises UserError when the file holds something else."""
    parts = records.read(path, {...: [str]}, "it maps training, validation and testing to lists of ids")
    named = [ptid for part, ids in parts.items() if part in SPLITS for ptid in set(ids)]
    if double := len(named) - len(set(named)):
        raise UserError(f"{path}: {double} ids stand in several splits: leave them in one")
    if not named:
        raise UserError(f"{path} names no id under training, validation or testing")
    return parts


def _flex_moe_scans(folder: pathlib.Path) -> tuple[pl.DataFrame, dict[str, Callable[[], np.ndarray]]]:
    """Returns PTID and path of the newest scan of each subject, and what reads the scan by its path."""
    try:
        scans = np.load(folder / "ADNI_G.npy", mmap_mode="r", allow_pickle=False)
        lines = records.content(folder / "ADNI_subj.txt").decode().split()
    except UserError:
        raise
    except Exception as error:  # numpy parses the header as Python and lets all of the parser's errors through
        raise UserError(f"{folder}: ADNI_G.npy or ADNI_subj.txt cannot be read ({type(error).__name__})") from None
    if scans.dtype.kind not in "fiub" or not scans.ndim:
        raise UserError(f"{folder}/ADNI_G.npy holds no scans of real numbers")
    if len(lines) != len(scans):
        raise UserError(f"ADNI_subj.txt has {len(lines)} lines, ADNI_G.npy {len(scans)} scans")
    newest: dict[str, tuple[str, int]] = {}
    for i, line in enumerate(lines):
        parts = line.split("_")
        ptid, date = "_".join(parts[:3]), parts[-1]
        newest[ptid] = max(newest.get(ptid, ("", -1)), (date, i))
    paths = {f"scans/{i}.npy": functools.partial(_scan, scans, i) for _, i in newest.values()}
    return pl.DataFrame({"PTID": list(newest), "scan": list(paths)}), paths


def _scan(scans: np.ndarray, i: int) -> np.ndarray:
    return np.asarray(scans[i], np.float32).reshape(1, -1)
