"""Manifests from what people have: tables, MONAI datalists, MEDS events, the folder of Flex-MoE.

Each importer gives a table, a schema as it stands in schema.yaml, and what a person should know; `write` makes the
folder of them. Nothing is scaled, imputed or encoded here: a run fits all that on its train rows.
"""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import yaml

from remind_jax.data.check import looks_missing
from remind_jax.data.files import read_table
from remind_jax.data.schema import KINDS
from remind_jax.errors import UserError, did_you_mean
from remind_jax.runtime import files

SPLITS = {
    **{"training": "train", "train": "train", "validation": "tuning", "val": "tuning", "tuning": "tuning"},
    **{"testing": "held_out", "test": "held_out", "held_out": "held_out"},
}
COLUMN_KINDS = ("number", "category", *KINDS[1:], "skip")
FEW_CATEGORIES = 20
_FILES = {".png": "image", ".jpg": "image", ".jpeg": "image", ".dcm": "image", ".npy": "array"}
_CODE = re.compile(r"[A-Z]*\d[A-Z0-9.]*")  # such as I10, E11.9, 401.9
_LEAKS = ("PTCOGBEG", "PTADDX", "PTADBEG")  # of ADNI: when symptoms and the disease itself were first noted


class Imported(NamedTuple):
    """A manifest to be written.

    Attributes:
      table: one row a sample; null is missing.
      schema: the content of schema.yaml.
      notes: what was guessed, left out or should be looked at.
    """

    table: pl.DataFrame
    schema: dict[str, Any]
    notes: list[str]


def write(found: Imported, out: pathlib.Path) -> None:
    """Writes schema.yaml and manifest.csv (manifest.parquet where cells are lists) into a folder.

    Raises:
      UserError: it holds a manifest already or cannot be written.
    """
    names = ("schema.yaml", "manifest.csv", "manifest.parquet")
    if there := [name for name in names if (out / name).exists()]:
        raise UserError(f"{out} holds {there[0]} already: choose another folder with --out=DIR, or delete it")
    nested = any(dtype.is_nested() for dtype in found.table.dtypes)
    with files.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with files.whole_file(out / ("manifest.parquet" if nested else "manifest.csv")) as temporary:
        found.table.write_parquet(temporary) if nested else found.table.write_csv(temporary)
    files.write_text(out / "schema.yaml", yaml.safe_dump(found.schema, sort_keys=False, allow_unicode=True))


def _schema(
    name: str, label: str, classes: Iterable[Any], modalities: Mapping[str, Any], split: str | None
) -> dict[str, Any]:
    if not modalities:
        raise UserError("no column could be taken for a modality: name kinds with --kind=COLUMN=KIND,…")
    schema = {"version": 1, "name": name, "sample_id": "sample_id", "patient_id": "patient_id"}
    schema["label"] = {"column": label, "classes": sorted(map(str, classes))}
    return schema | ({"split": split} if split else {}) | {"modalities": dict(modalities)}


def _name(text: str) -> str:
    """A modality's name out of a text; the words that batches keep for themselves get a tail."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_") or "table"
    return f"{name}_" if name in ("present", "group", "label", "row", "weight") else name


def read_frame(path: pathlib.Path) -> pl.DataFrame:
    """A CSV or parquet file; words for "missing" are null.

    Raises:
      UserError: it is neither, or cannot be read.
    """
    if not path.is_file() or path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{path} is not a .csv or .parquet file")
    try:
        table = read_table(path)
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    strings = [name for name, dtype in table.schema.items() if dtype == pl.String]
    return table.with_columns(table[name].set(looks_missing(table[name]), None) for name in strings)


# ---- Tables ---------------------------------------------------------------------------------------------------------


def from_table(
    table: pl.DataFrame,
    *,
    name: str,
    label: str,
    sample: str = "",
    patient: str = "",
    split: str = "",
    joined: Mapping[str, pl.DataFrame] | None = None,
    kinds: Mapping[str, str] | None = None,
    prefix: str = "",
) -> Imported:
    """One row a sample, and tables that are joined to it by the sample's or the patient's id.

    The numbers and categories of a table become one modality, named as the table; each column of texts, codes or paths
    becomes one of its own. A sample that a joined table has no row for lacks its modalities.

    Args:
      table: the samples.
      name: of the data set and of the table's own modality.
      label: its column of classes; rows without one are left out.
      sample: its column of unique ids; empty counts rows.
      patient: its column of patients; empty takes every row for a patient, and says so.
      split: its column of splits; empty leaves splitting to each run.
      joined: further tables by name, at most one row an id.
      kinds: kinds of columns, of `COLUMN_KINDS`, where the guess is wrong.
      prefix: of paths in cells, from the manifest's folder to the folder that the paths start from.

    Raises:
      UserError: a column is not there, ids are not unique, or no modality is found.
    """
    kinds, notes = dict(kinds or {}), []
    for role, column in (("--label", label), ("--sample", sample), ("--patient", patient), ("--split", split)):
        if (column or role == "--label") and column not in table.columns:
            raise UserError(f"{role}={column} is no column{did_you_mean(column, table.columns)}")
    table = table.filter(pl.col(label).is_not_null())
    ids = {"sample_id": _ids(table, sample), "patient_id": _ids(table, patient or sample)}
    if not patient:
        notes.append("no --patient: each row counts as a patient, and rows of one person may be in train and held out")
    columns = {**ids, label: _as_text(table[label])}
    if split:
        columns[split] = _as_text(table[split]).str.to_lowercase().replace(SPLITS)
    own = table.drop({label, sample, patient, split} - {""})
    parts = {name: own, **{key: _matched(table, sample, patient, key, t) for key, t in (joined or {}).items()}}
    modalities: dict[str, Any] = {}
    for part, frame in parts.items():
        frame = frame.rename({c: f"{part}_{c}" for c in frame.columns if c in columns})
        found, said = _modalities(part, frame, kinds, prefix)
        modalities |= {_name(key if key not in modalities else f"{part}_{key}"): entry for key, entry in found.items()}
        columns |= {c: frame[c] for c in frame.columns}
        notes += said
    if unknown := set(kinds) - set(columns):
        column = sorted(unknown)[0]
        raise UserError(f"--kind names {column!r}, which is no column{did_you_mean(column, columns)}")
    out, used = pl.DataFrame(columns), {c for entry in modalities.values() for c in _columns(entry)}
    paths = path_columns(out, modalities)
    out = out.with_columns(pl.concat_str(pl.lit(prefix), pl.col(c)).alias(c) for c in paths)
    out = out.select([*ids, label, *([split] if split else []), *(c for c in out.columns if c in used)])
    out, said = _without_empty(out, used)
    schema = _schema(name, label, out[label].unique(), modalities, split)
    return Imported(out, schema, notes + said)


def path_columns(table: pl.DataFrame, modalities: Mapping[str, Any]) -> list[str]:
    """The columns of a table whose cells are paths."""
    kinds = {entry["column"]: entry["kind"] for entry in modalities.values() if "column" in entry}
    return [c for c, k in kinds.items() if k in ("image", "volume", "embedding") and table[c].dtype == pl.String]


def _columns(entry: Mapping[str, Any]) -> list[str]:
    return [entry["column"]] if "column" in entry else [*entry.get("columns", ()), *entry.get("categorical", ())]


def _without_empty(table: pl.DataFrame, used: Iterable[str]) -> tuple[pl.DataFrame, list[str]]:
    """Rows that have a modality, and how many had none."""
    kept = table.filter(pl.any_horizontal(pl.col(sorted(used)).is_not_null()))
    lost = table.height - kept.height
    return kept, [f"{lost} rows without any modality are left out"] if lost else []


def _ids(table: pl.DataFrame, column: str) -> pl.Series:
    return _as_text(table[column]) if column else pl.Series("ids", [str(i + 1) for i in range(table.height)])


def _as_text(column: pl.Series) -> pl.Series:
    if column.dtype.is_float() and (column.drop_nulls().round() == column.drop_nulls()).all():
        column = column.cast(pl.Int64)  # whole numbers with holes come out of pandas as floats
    return column.cast(pl.String).str.strip_chars()


def _matched(samples: pl.DataFrame, sample: str, patient: str, name: str, table: pl.DataFrame) -> pl.DataFrame:
    """The rows of a joined table in the order of the samples, null where it has none."""
    key = next((c for c in (sample, patient) if c and c in table.columns), None)
    if key is None:
        wanted = " or ".join(filter(None, (sample, patient))) or "an id (name it with --sample or --patient)"
        raise UserError(f"the table {name!r} has no column {wanted} to join it by")
    table = table.with_columns(_as_text(table[key]))
    if table[key].is_duplicated().any():
        raise UserError(f"the table {name!r} has several rows of one {key}: keep one, or make them columns")
    rest = table.drop([c for c in (sample, patient) if c not in ("", key)], strict=False)
    return samples.select(_as_text(samples[key])).join(rest, on=key, how="left", maintain_order="left").drop(key)


def _modalities(
    part: str, table: pl.DataFrame, kinds: Mapping[str, str], prefix: str
) -> tuple[dict[str, Any], list[str]]:
    """The modalities of a table's columns, and what was left out."""
    numbers, categories, alone, notes = [], [], {}, []
    for column in table.columns:
        kind = kinds.get(column) or guess_kind(table[column])
        if kind == "number":
            numbers.append(column)
        elif kind == "category":
            categories.append(column)
        elif kind in KINDS:
            alone[_name(column)] = {"kind": kind, "column": column}
        else:
            notes.append(f"column {column!r} is left out ({kind}); to keep it give --kind={column}=KIND")
    lists = {"columns": numbers, "categorical": categories}
    whole = {part: {"kind": "tabular"} | {key: names for key, names in lists.items() if names}}
    return (whole if numbers or categories else {}) | alone, notes


def guess_kind(column: pl.Series) -> str:
    """One of `COLUMN_KINDS`, or why the column is none of them."""
    cells = column.drop_nulls()
    if not len(cells):
        return "empty"
    if column.dtype.is_numeric() or column.dtype == pl.Boolean:
        return "number"
    if column.dtype.is_nested():
        return "embedding"
    if column.dtype.is_temporal():
        return "a time"
    cells = cells.cast(pl.String).str.strip_chars()
    suffixes = set(cells.str.extract(r"(\.[A-Za-z]+)$", 1).str.to_lowercase().unique().to_list())
    if None not in suffixes and suffixes <= _FILES.keys() and not cells.str.contains(" ").any():
        kinds = {_FILES[suffix] for suffix in suffixes}
        return "image" if kinds == {"image"} else "embedding" if kinds == {"array"} else "files of several kinds"
    if cells.cast(pl.Float64, strict=False).is_not_null().all() and not cells.str.contains(r"^0\d").any():
        return "number"
    if cells.str.contains(r"^\d{4}-\d\d-\d\d([T ]|$)").all():
        return "a time"
    if all(_CODE.fullmatch(word) for cell in cells.unique().head(200) for word in cell.split()):
        return "codes"
    if cells.n_unique() <= min(FEW_CATEGORIES, max(2, len(cells) // 5)):
        return "category"
    return "text" if cells.str.contains(r"\s").mean() > 0.5 else "many different words"


# ---- MONAI ----------------------------------------------------------------------------------------------------------


def from_monai(
    content: Mapping[str, Any], *, name: str, patient: str = "", label: str = "label", prefix: str = ""
) -> Imported:
    """A datalist as MONAI reads it: lists of mappings under `training`, `validation` and `test`.

    Values that are paths become a modality a key, numbers and words together one that is called `table`; a key that an
    item lacks is missing. A list of paths becomes a modality a path, `image_0`, `image_1`, ….

    Args:
      content: the file's JSON.
      name: of the data set.
      patient: key of the patient.
      label: key of the class.
      prefix: as for `from_table`.

    Raises:
      UserError: there are no labelled items, or they are labelled by masks.
    """
    rows: list[dict[str, Any]] = []
    unlabelled = 0
    for section, split in SPLITS.items():
        for item in content.get(section, ()):
            if not isinstance(item, dict) or item.get(label) is None:
                unlabelled += 1
                continue
            rows.append(_flat_item(item) | {"split": split})
    if not rows:
        raise UserError(f"no item under training, validation or test has the key {label!r}")
    if any(isinstance(row.get(label), str) and re.search(r"\.\w{2,4}(\.gz)?$", row[label]) for row in rows):
        raise UserError(f"{label!r} holds files: the datalist is of a segmentation, not of a classification")
    table = pl.DataFrame(rows, infer_schema_length=None, strict=False).drop("fold", strict=False)
    if any(str(value).endswith((".nii", ".nii.gz")) for row in rows for value in row.values()):
        raise UserError(
            "the datalist names NIfTI files, which are not read: write each as .npy [t, h, w], "
            "np.save(file, nibabel.load(path).get_fdata().transpose(2, 0, 1)), and change the endings"
        )
    one = set(table["split"].unique()) == {"train"}
    table = table.drop("split") if one else table
    paths = {c: "volume" for c in table.columns if table[c].dtype == pl.String and _all_arrays(table[c])}
    found = from_table(
        table, name="table", label=label, patient=patient, split="" if one else "split", kinds=paths, prefix=prefix
    )
    notes = [f"{unlabelled} items without {label!r} are left out"] if unlabelled else []
    notes += [f"{c!r} is taken for a volume [t, h, w(, c)]; for tokens [t, d] say kind: embedding" for c in paths]
    return Imported(found.table, found.schema | {"name": name}, notes + found.notes)


def _flat_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of values under keys of their own; paths without a leading ./"""
    flat: dict[str, Any] = {}
    for key, value in item.items():
        values = {f"{key}_{i}": one for i, one in enumerate(value)} if isinstance(value, list) else {key: value}
        flat |= {k: v.removeprefix("./") if isinstance(v, str) else v for k, v in values.items()}
    return flat


def _all_arrays(column: pl.Series) -> bool:
    return column.drop_nulls().str.ends_with(".npy").all() and column.is_not_null().any()


# ---- MEDS -----------------------------------------------------------------------------------------------------------


def from_meds(
    events: pl.LazyFrame,
    labels: pl.DataFrame,
    *,
    name: str,
    splits: pl.DataFrame | None = None,
    modalities: Mapping[str, Sequence[str]] | None = None,
    columns: int = 64,
) -> Imported:
    """Events and labels of the Medical Event Data Standard 0.3 and 0.4.

    A sample is a label: subject and prediction time. It has the events at or before that time and those without a time.
    The codes that begin with one of a modality's prefixes become up to three modalities: `<name>_values` (the last
    number of each of the most frequent codes), `<name>_codes` (codes without a number, newest first, each once) and
    `<name>_text` (texts, newest first).

    Args:
      events: `subject_id`, `time`, `code`, `numeric_value` and, where there is one, `text_value`.
      labels: `subject_id`, `prediction_time`, and `boolean_value`, `integer_value` or `categorical_value`.
      name: of the data set.
      splits: `subject_id` and `split`.
      modalities: prefixes of codes by name; one modality `events` of all codes by default.
      columns: most columns of a table of values, the codes that most train subjects have.

    Raises:
      UserError: a column is not there, or no sample has an event.
    """
    need = [c for c in ("subject_id", "time", "code", "numeric_value") if c not in events.collect_schema().names()]
    value = next((v for v in ("boolean_value", "integer_value", "categorical_value") if v in labels.columns), None)
    need += [c for c in ("subject_id", "prediction_time") if c not in labels.columns]
    if need or value is None:
        lacking = ", ".join(need) or "boolean_value, integer_value or categorical_value"
        raise UserError(f"these are no MEDS events with labels: {lacking} is not there")
    samples = labels.drop_nulls(["subject_id", value]).sort("subject_id", "prediction_time").with_row_index("row")
    table = samples.select(
        pl.format("{}_{}", "subject_id", pl.int_range(pl.len()).over("subject_id")).alias("sample_id"),
        pl.col("subject_id").cast(pl.String).alias("patient_id"),
        pl.col(value).cast(pl.String).alias("label"),
    )
    if splits is not None:
        named = splits.select("subject_id", pl.col("split").replace(SPLITS))
        table = table.with_columns(samples.join(named, on="subject_id", how="left", maintain_order="left")["split"])
        samples = samples.with_columns(table["split"])
    known = samples.select("row", "subject_id", "prediction_time", *(["split"] if splits is not None else []))
    seen = events.join(known.lazy(), on="subject_id").filter(
        pl.col("time").is_null() | (pl.col("time") <= pl.col("prediction_time"))
    )
    seen = seen.sort("time", nulls_last=False, maintain_order=True).collect()
    schema: dict[str, Any] = {}
    for part, prefixes in (modalities or {"events": ("",)}).items():
        inside = seen.filter(pl.any_horizontal(pl.col("code").str.starts_with(prefix) for prefix in prefixes))
        for wide, entries in (_values(part, inside, columns), _words(part, inside)):
            table = table.with_row_index("row").join(wide, on="row", how="left", maintain_order="left").drop("row")
            schema |= entries
    used = [c for entry in schema.values() for c in _columns(entry)]
    if not used:
        raise UserError("no sample has an event at or before its prediction time: check subject_id, times and prefixes")
    table, notes = _without_empty(table, used)
    notes.append("events at the prediction time itself are input: make sure that none of them is the outcome")
    split = "split" if splits is not None else None
    return Imported(table, _schema(name, "label", table["label"].unique(), schema, split), notes)


def _values(part: str, events: pl.DataFrame, columns: int) -> tuple[pl.DataFrame, dict[str, Any]]:
    """A row a sample with the last number of each frequent code, and the modality."""
    numbers = events.drop_nulls("numeric_value")
    fitted = numbers.filter(pl.col("split") == "train") if "split" in numbers.columns else numbers
    subjects = fitted.group_by("code").agg(pl.col("subject_id").n_unique().alias("n"))
    codes = subjects.sort("n", "code", descending=[True, False])["code"].head(columns).to_list()
    if not codes:
        return pl.DataFrame({"row": pl.Series([], dtype=pl.UInt32)}), {}
    last = numbers.filter(pl.col("code").is_in(codes)).group_by("row", "code", maintain_order=True).last()
    wide = last.pivot("code", index="row", values="numeric_value").select("row", *codes)
    names = {code: f"{part}:{code}" for code in codes}
    entry = {"kind": "tabular", "columns": list(names.values())}
    return wide.rename(names), {f"{part}_values": entry}


def _words(part: str, events: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Any]]:
    """A row a sample with codes and texts, newest first, and the modalities."""
    newest = events.reverse()
    text = pl.col("text_value") if "text_value" in events.columns else pl.lit(None, pl.String)
    found = newest.group_by("row", maintain_order=True).agg(
        pl.col("code")
        .filter(pl.col("numeric_value").is_null() & text.is_null())
        .str.replace_all(r"\s+", "_")
        .unique(maintain_order=True)
        .str.join(" ")
        .replace("", None)
        .alias(f"{part}_codes"),
        text.drop_nulls().str.join("\n").replace("", None).alias(f"{part}_text"),
    )
    kinds = {f"{part}_codes": "codes", f"{part}_text": "text"}
    kept = {c: kind for c, kind in kinds.items() if found[c].is_not_null().any()}
    return found.select("row", *kept), {c: {"kind": kind, "column": c} for c, kind in kept.items()}


# ---- Flex-MoE -------------------------------------------------------------------------------------------------------


def from_flex_moe(folder: pathlib.Path, out: pathlib.Path, *, name: str) -> Imported:
    """The folder that Flex-MoE's loader reads for ADNI.

    `label.csv` (PTID, DIAGNOSIS), `PTID_splits.json` (training, validation, testing), `clinical/clinical_merged.csv`
    and `biospecimen/biospecimen_merged.csv` (ids in the first column), `genomic/genomic_merged.csv`, and
    `image/ADNI_G.npy` with `image/ADNI_subj.txt`, a line a scan that begins with the id and ends in the date. What is
    not there is no modality. Unlike there, nothing is scaled or filled in before the split.

    Args:
      folder: that holds label.csv.
      out: the manifest's folder; the newest scan of each subject is written below it, tokens [1, voxels].
      name: of the data set.

    Raises:
      UserError: it is not such a folder.
    """
    file = folder / "label.csv"
    if not file.is_file():
        pickled = list(folder.glob("*.pt"))
        why = "its .pt files are pickles, which are not read" if pickled else "label.csv is missing"
        raise UserError(f"{folder} is not Flex-MoE's folder of ADNI: {why}")
    labels = read_frame(file)
    if absent := {"PTID", "DIAGNOSIS"} - set(labels.columns):
        raise UserError(f"{file} has no column {sorted(absent)[0]}")
    labels, notes, joined = labels.select("PTID", "DIAGNOSIS"), [], {}
    for part in ("clinical", "biospecimen", "genomic"):
        path = folder / part / f"{part}_merged.csv"
        if path.is_file():
            frame = read_frame(path)
            frame = frame.rename({frame.columns[0]: "PTID"})
            joined[part] = frame.select("PTID", *(c for c in frame.columns[1:] if not c.startswith(_LEAKS)))
        else:
            notes.append(f"{part}/{path.name} is not there: no modality {part}")
    if (folder / "genomic" / "genomic_merged.h5ad").is_file() and "genomic" not in joined:
        notes.append("genomic_merged.h5ad is not read: save scanpy.read_h5ad(file).to_df() as genomic_merged.csv")
    if (folder / "image" / "ADNI_G.npy").is_file():
        joined["image"] = _flex_moe_scans(folder / "image", out)
    splits = folder / "PTID_splits.json"
    if splits.is_file():
        parts = json.loads(splits.read_text(encoding="utf-8"))
        dealt = {ptid: SPLITS[part] for part, ids in parts.items() if part in SPLITS for ptid in ids}
        labels = labels.with_columns(pl.col("PTID").replace_strict(dealt, default=None).alias("split"))
        notes.append(f"{labels['split'].null_count()} subjects are in no split and left out")
        labels = labels.drop_nulls("split")
    split = "split" if splits.is_file() else ""
    kinds = {"scan": "embedding"} if "image" in joined else {}
    found = from_table(
        labels, name=name, label="DIAGNOSIS", sample="PTID", patient="PTID", split=split, joined=joined, kinds=kinds
    )
    return found._replace(notes=notes + found.notes)


def _flex_moe_scans(folder: pathlib.Path, out: pathlib.Path) -> pl.DataFrame:
    """Writes the newest scan of each subject as its own file; PTID and path."""
    scans = np.load(folder / "ADNI_G.npy", mmap_mode="r", allow_pickle=False)
    lines = (folder / "ADNI_subj.txt").read_text(encoding="utf-8").split()
    if len(lines) != len(scans):
        raise UserError(f"ADNI_subj.txt has {len(lines)} lines, ADNI_G.npy {len(scans)} scans")
    newest: dict[str, tuple[str, int]] = {}
    for i, line in enumerate(lines):
        parts = line.split("_")
        ptid, date = "_".join(parts[:3]), parts[-1]
        newest[ptid] = max(newest.get(ptid, ("", -1)), (date, i))
    (out / "scans").mkdir(parents=True, exist_ok=True)
    for _, i in newest.values():
        np.save(out / "scans" / f"{i}.npy", np.asarray(scans[i], np.float32).reshape(1, -1))
    return pl.DataFrame({"PTID": list(newest), "scan": [f"scans/{i}.npy" for _, i in newest.values()]})
