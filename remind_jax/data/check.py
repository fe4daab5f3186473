"""Everything that can be wrong with a manifest, under the codes E001 to E010 (refuse) and W101 to W107 (warn).

I001 carries counts of what a source read and left out, W107 names options that let the outcome leak into the input,
W108 a modality that no row to predict has, W109 encoders that begin with random weights at the paper's size, W110
pictures without contrast, W111 volumes whose slices are at uneven distances, or at others than those of the rest, W112
columns that tell the label nearly by themselves, W113 numbers that may stand for missing, W114 cells of an attribute
that are no numbers, and W115 attributes that are inputs.
Messages name row, column and remedy. Rows count from 1, the first below the header. No message holds a cell's text, a
sample id or a patient id in clear; W113 alone names numbers.
"""

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import polars as pl

from remind_jax.data import attributes, groups, leaks, numerals, splits, targets
from remind_jax.data.findings import Finding, in_rows, listed
from remind_jax.data.kinds import KINDS
from remind_jax.data.manifest import Manifest
from remind_jax.data.scan import scan_files
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError, did_you_mean

FEW_PATIENTS = 10
INFORMATIVE_AUROC = 0.6
AUDIT_ROWS = 20_000

# New in every process: hashes can be compared within one output and say nothing about a patient outside it.
_SALT = secrets.token_bytes(16)
_NO_ROWS = Finding("E001", "the table has no rows; it needs one a sample below its header", True)


def refuse(findings: Iterable[Finding]) -> None:
    """Raises one UserError naming every fatal finding; does nothing when there is none."""
    fatal = [finding for finding in findings if finding.fatal]
    if fatal:
        raise UserError("; ".join(f"{finding.code} {finding.message}" for finding in fatal))


def anonymous(patient: str) -> str:
    """Returns a patient id as 8 hex digits of a salted sha256; the salt lives as long as the process."""
    return hashlib.sha256(_SALT + str(patient).encode()).hexdigest()[:8]


def find_problems(manifest: Manifest, split: np.ndarray | None = None) -> list[Finding]:
    """Finds what is wrong with a manifest, what is fatal first; warnings that need a sound table are then left out.

    E003, classes absent from train, W101 and W102 go by `split`, int8 [n], positions in `splits.SPLITS` or
    `splits.UNUSED`; by default by the manifest's own split column, if it has one.
    """
    needs_held_out = split is None  # who made a split has seen to that
    findings = find_faults(manifest, split)
    if not manifest.table.height or absent_columns(manifest.schema, manifest.table.columns):
        return findings
    split = splits.given_splits(manifest) if needs_held_out else split
    for modality in manifest.schema.modalities:
        if modality.stored == "file":
            findings += _unread_files(manifest, modality)
    if not any(finding.fatal for finding in findings):
        findings += [*_unseen_groups(manifest, split), *_shared_content(manifest), *_informative(manifest, split)]
        findings += [*_leaks(manifest), *_stand_ins(manifest)]
    return sorted(findings, key=lambda finding: not finding.fatal)


def find_faults(manifest: Manifest, split: np.ndarray | None = None) -> list[Finding]:
    """Finds what training refuses and what reading noted, but looks at no file; `split` is as for `find_problems`."""
    findings = list(manifest.notes)
    if columns := absent_columns(manifest.schema, manifest.table.columns):
        return [*findings, *columns]
    if not manifest.table.height:
        return [*findings, _NO_ROWS]
    given = splits.given_splits(manifest)
    needs_held_out = split is None  # who made a split has seen to that
    split = given if split is None else split
    findings += [*_identity(manifest), *_labels(manifest, split), *_split_column(manifest, given, needs_held_out)]
    findings += [*_patients_cut(manifest, split), *_no_modality(manifest)]
    findings += attributes.problems(manifest.schema, manifest.table)
    for modality in manifest.schema.modalities:
        findings += KINDS[modality.kind].problems(modality, manifest.table)
    return findings


def find_problems_of_new(manifest: Manifest) -> list[Finding]:
    """Finds what is wrong with rows to predict, whose labels may be null; says nothing of combinations and splits."""
    if not manifest.table.height:
        return [_NO_ROWS]
    remedy = "they get the class shares of training" if manifest.presence.any() else ""
    findings = [*manifest.notes, *_identity(manifest), *_no_modality(manifest, remedy)]
    findings += attributes.problems(manifest.schema, manifest.table)
    for modality in manifest.schema.modalities:
        findings += KINDS[modality.kind].problems(modality, manifest.table)
    return sorted(findings, key=lambda finding: not finding.fatal)


def absent_columns(schema: Schema, columns: Sequence[str]) -> list[Finding]:
    """Finds columns that the schema names and the table lacks (E001)."""
    named, there = list(schema.columns()), set(columns)
    absent = [(owner, column) for owner, column in named if column not in there]
    used = {column for _, column in named}
    free = [column for column in columns if column not in used]
    if len(absent) == len(named):
        # Names are not listed: without a header line they are the first patient's cells.
        text = "the table has none of the schema's columns; does it begin with a header line, with commas between?"
        return [Finding("E001", text, True)]
    findings = []
    for owner, column in absent:
        hint = did_you_mean(column, free) or f"; columns are {listed(list(columns), 20)}"
        text = f"column {column!r} ({owner}) is not in the table{hint}; fix the header or schema.yaml"
        findings.append(Finding("E001", text, True))
    return findings


def _identity(manifest: Manifest) -> Iterator[Finding]:
    schema, table = manifest.schema, manifest.table
    for column in dict.fromkeys((schema.sample_id, schema.patient_id)):
        empty = table[column].is_null()
        if empty.any():
            yield Finding("E001", f"column {column!r}: {in_rows(empty)} empty; every row needs an id", True)
    double = table[schema.sample_id].is_duplicated() & table[schema.sample_id].is_not_null()
    if double.any():
        text = f"column {schema.sample_id!r}: {in_rows(double)} with an id that another row has; make ids unique"
        yield Finding("E002", text, True)


def _labels(manifest: Manifest, split: np.ndarray | None) -> Iterator[Finding]:
    schema = manifest.schema
    if not schema.has_classes:
        if any(note.fatal and note.code == "E005" for note in manifest.notes):
            return  # cells that are no numbers, which are empty now
        found = list(targets.problems(schema, manifest.table))
        yield from found
        if not found:
            train = manifest.labels if split is None else manifest.labels[split == splits.TRAIN]
            yield from targets.problems_of_train(schema, train, "in the table" if split is None else "in train")
        return
    label = manifest.table[schema.label]
    where, empty = f"column {schema.label!r}:", label.is_null()
    if empty.any():
        yield Finding("E005", f"{where} {in_rows(empty)} without a label; fill them or drop the rows", True)
    outside = ~label.is_in(list(schema.classes)) & ~empty
    if outside.any():
        text = f"{where} {in_rows(outside)} outside the declared classes {listed(schema.classes)}"
        yield Finding("E005", f"{text}; fix the cells or the schema", True)
    train = label if split is None else label.filter(pl.Series(split == splits.TRAIN))
    absent = [name for name in schema.classes if name not in set(train.to_list())]
    if absent and not empty.any() and not outside.any():
        where = "in the table" if split is None else "in train"
        yield Finding("E005", f"no row {where} has class {listed(absent)}; add rows or drop the class", True)


def _split_column(manifest: Manifest, given: np.ndarray | None, needs_held_out: bool) -> Iterator[Finding]:
    column = manifest.schema.split
    if given is None:
        return
    if (given < 0).any():
        text = f"column {column!r}: {in_rows(given < 0)} not train, tuning or held_out; fill them or leave `split` out"
        yield Finding("E001", text, True)
    elif needs_held_out and splits.HELD_OUT not in given:
        yield Finding("E001", f"column {column!r} names no held_out rows; mark some or leave `split` out", True)
    elif splits.TUNING not in given:
        text = f"column {column!r} names no tuning rows; tuning is carved out of train, by patient"
        yield Finding("W105", text, False)


def _patients_cut(manifest: Manifest, split: np.ndarray | None) -> Iterator[Finding]:
    if split is None:
        return
    used = split != splits.UNUSED
    cut = splits.cut_patients(manifest.table[manifest.schema.patient_id].to_numpy()[used], split[used])
    if cut:
        who = listed([anonymous(patient) for patient in cut])
        text = f"{len(cut)} patients have rows in two splits (hashed ids {who}); give all rows of a patient one split"
        yield Finding("E003", text, True)


def _no_modality(manifest: Manifest, remedy: str = "") -> Iterator[Finding]:
    """Finds rows without any modality, which are to be dropped unless there is another remedy."""
    empty = np.flatnonzero(~manifest.presence.any(axis=1)) + 1
    if len(empty):
        some = "1 row has" if len(empty) == 1 else f"{len(empty)} rows have"
        yield Finding("E004", f"{some} no modality at all (rows {listed(empty)}); {remedy or 'drop them'}", not remedy)


def _unread_files(manifest: Manifest, modality: Modality) -> list[Finding]:
    """Scans the files of a manifest made in memory; reading a folder has scanned its own."""
    cells = manifest.table[modality.columns[0]]
    unread = cells.set(cells.is_in(list(manifest.files)).fill_null(True), None)
    if unread.is_null().all() or any(note.fatal for note in manifest.notes):
        return []
    if manifest.root is None:
        return [Finding("E007", f"column {cells.name!r} ({modality.name}) names files, but in no folder", True)]
    return scan_files(manifest.root, modality, unread).findings


def _unseen_groups(manifest: Manifest, split: np.ndarray | None) -> Iterator[Finding]:
    """Finds held-out combinations that are not in train (W101) and those with few held-out patients (W102)."""
    if split is None:
        return
    names = [modality.name for modality in manifest.schema.modalities]
    masks, _, index = groups.count_combinations(manifest.presence)
    patients = manifest.table[manifest.schema.patient_id].to_numpy()
    held_out = split == splits.HELD_OUT
    in_train = set(index[split == splits.TRAIN].tolist())
    unseen = sorted(set(index[held_out].tolist()) - in_train)
    if unseen:
        rows = int(np.isin(index[held_out], unseen).sum())
        which = listed([groups.group_name(masks[i], names) for i in unseen])
        text = f"{len(unseen)} combinations in held_out ({rows} rows) are never seen in train: {which}; reported apart"
        yield Finding("W101", text, False)
    reached = in_train | set(unseen)
    few = [i for i in sorted(reached) if len(set(patients[held_out & (index == i)].tolist())) < FEW_PATIENTS]
    if few:
        which = listed([groups.group_name(masks[i], names) for i in few])
        text = f"{len(few)} of {len(reached)} combinations have under {FEW_PATIENTS} held-out patients: {which}"
        yield Finding("W102", f"{text}; read their figures with the intervals", False)


def _shared_content(manifest: Manifest) -> Iterator[Finding]:
    """Finds the same file, image, embedding or long text under two patients (W103)."""
    patients = manifest.table[manifest.schema.patient_id]
    for modality in manifest.schema.modalities:
        content = KINDS[modality.kind].content(modality, manifest.table, manifest.files)
        if content is None:
            continue
        table = pl.DataFrame({"content": content, "patient": patients}).drop_nulls("content")
        owners = table.group_by("content").agg(pl.col("patient").unique())
        shared = owners.filter(pl.col("patient").list.len() > 1)
        if shared.height:
            who = listed(sorted({anonymous(patient) for patient in shared["patient"].explode().to_list()}))
            text = f"{modality.name}: {shared.height} contents occur under more than one patient (hashed ids {who})"
            yield Finding("W103", f"{text}; look for copied rows or two ids of one person", False)


def _informative(manifest: Manifest, split: np.ndarray | None) -> Iterator[Finding]:
    """Finds that which modalities are present tells the label (W104)."""
    use = np.ones(manifest.table.height, bool) if split is None else np.isin(split, (splits.TRAIN, splits.TUNING))
    rows = np.flatnonzero(use)
    rows = rows[:: -(-len(rows) // AUDIT_ROWS) or 1]
    patients = manifest.table[manifest.schema.patient_id].to_numpy()[rows]
    auroc = groups.mask_auroc(manifest.presence[rows], manifest.strata[rows], patients)
    if auroc is not None and auroc > INFORMATIVE_AUROC:
        text = (
            f"which modalities are present predicts the label (cross-validated AUROC {auroc:.2f}); missingness is "
            "informative and may be a shortcut that another hospital does not share; read figures by combination"
        )
        yield Finding("W104", text, False)


def _leaks(manifest: Manifest) -> Iterator[Finding]:
    """Finds columns of tables, and modalities or pairs of them that are there, that tell the label (W112)."""
    schema = manifest.schema
    tabular = {m.name: list(m.all_columns) if m.kind == "tabular" else [] for m in schema.modalities}
    for text in leaks.lines(manifest.table, tabular, manifest.presence, manifest.strata, schema.label):
        yield Finding("W112", text, False)


def _stand_ins(manifest: Manifest) -> Iterator[Finding]:
    """Finds numbers in tables that may stand for missing, such as -999 (W113)."""
    names = [c for m in manifest.schema.modalities if m.kind == "tabular" for c in m.columns]
    for text in numerals.stand_in_lines(manifest.table, names):
        yield Finding("W113", text, False)
