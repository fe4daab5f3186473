"""GBSG2: recurrence or death of 686 women with node-positive breast cancer, right-censored.

The data of Schumacher et al. 1994 (Journal of Clinical Oncology 12, 2086) arrive with the pip package `lifelines`, of
which the table alone is read. Nothing is missing in it; `data.hide` takes a modality from some.
"""

import polars as pl

from remind_jax.data.files import in_package
from remind_jax.data.manifest import Manifest
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError, needs

TITLE = "GBSG2"
HORIZONS = (365.0, 1095.0, 1825.0)
"""Days at which predictions are judged: one, three and five years."""
VIEWS = {
    "person": Modality("person", "tabular", ("age",), ("menostat",)),
    "tumour": Modality("tumour", "tabular", ("tsize", "pnodes"), ("tgrade",)),
    "receptors": Modality("receptors", "tabular", ("progrec", "estrec")),
    "treatment": Modality("treatment", "tabular", (), ("horTh",)),
}
"""Age in years, size in mm, positive nodes, receptors in fmol/l."""


def load() -> Manifest:
    """Reads everybody, with `time` in days and `cens`, which is 1 for an event; without a split column.

    Raises UserError: lifelines is not installed or lacks the table.
    """
    path = in_package("lifelines", "datasets/gbsg2.csv")
    if path is None:
        raise UserError(f"GBSG2 comes with lifelines 0.30.3: {needs('lifelines', 'survival')}")
    schema = Schema(
        **{"name": "gbsg2", "sample_id": "sample_id", "patient_id": "patient_id", "label": "time", "classes": ()},
        **{"modalities": tuple(VIEWS.values()), "task": "survival", "more_labels": ("cens",), "horizons": HORIZONS},
        title="days to recurrence or death",
    )
    numbers = ["time", "cens", *(column for view in VIEWS.values() for column in view.columns)]
    row = pl.int_range(1, pl.len() + 1).cast(pl.String)
    table = pl.read_csv(path).with_columns(row.alias("sample_id"), row.alias("patient_id"))
    return Manifest(schema, table.with_columns(pl.col(numbers).cast(pl.Float64)), title=TITLE)
