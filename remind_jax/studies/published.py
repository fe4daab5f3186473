"""The figures of the paper (arXiv 2603.00046, Tables 1 to 4 and 7 to 16), for tables that set them next to ours.

They are in published.csv, in percent, mean and standard deviation over three seeds (Tables 4 and 16 have no deviation),
by the combinations' names in the paper. Table 16's "# experts 32, 64" are a quarter and a half of the 128 of the main
experiments.
"""

import csv
import functools
import pathlib
from collections.abc import Collection
from typing import NamedTuple

# In the order M1, M2, … of section 7.4, under the names that the sources of this package give them.
MODALITIES = {
    "EMBED": ("c_view_cc", "c_view_mlo", "2d_cc", "2d_mlo"),
    "MIMIC-IV": ("notes", "labs", "icd"),
    "FPRM": ("fundus", "flow", "oxygen", "tabular"),
}
# The text calls FPRM's fourth combination M1+M3+M4, the check marks of Tables 7 and 10 M1+M2+M4.
_ALSO_CALLED = {("FPRM", "M1+M2+M4"): "M1+M3+M4"}
_FILE = pathlib.Path(__file__).with_name("published.csv")


class Figure(NamedTuple):
    """A published figure in percent; `sd` is None where the paper gives none. `table` is its number there."""

    mean: float
    sd: float | None
    table: int


class Published(NamedTuple):
    """What the paper says of a data set, a key of `MODALITIES`; nothing of a `twin`, a synthetic stand-in."""

    dataset: str
    twin: bool

    def figure(self, method: str, modalities: Collection[str] | None, metric: str) -> Figure | None:
        """Returns `accuracy` or `macro_f1` of a method or variant for a combination, for all samples with None, if
        known.
        """
        names = MODALITIES[self.dataset]
        if modalities is None:
            combination = "all"
        elif set(modalities) <= set(names):
            combination = "+".join(f"M{i}" for i, name in enumerate(names, start=1) if name in modalities)
        else:
            return None
        combination = _ALSO_CALLED.get((self.dataset, combination), combination)
        return _figures().get((self.dataset, metric, combination, method))


def published(data: str) -> Published | None:
    """Returns the paper's figures for a data set by the title that reports give it; None for other data."""
    twin = data.lower().startswith("twin of ")
    title = data.lower().removeprefix("twin of ")
    dataset = next((name for name in MODALITIES if title.startswith(name.lower())), None)
    return None if dataset is None else Published(dataset, twin)


@functools.cache
def _figures() -> dict[tuple[str, str, str, str], Figure]:
    """Reads the table (data set, metric, combination, method) -> figure."""
    with open(_FILE, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (row["dataset"], row["metric"], row["combination"], row["method"]): Figure(
            float(row["mean"]), float(row["sd"]) if row["sd"] else None, int(row["table"])
        )
        for row in rows
    }
