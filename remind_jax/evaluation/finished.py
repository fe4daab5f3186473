"""What a finished run has left in its folder, as others may have changed it: its report and its predictions."""

import functools
import pathlib
import re
from typing import Any

import polars as pl

from remind_jax.data.files import read_parquet
from remind_jax.errors import UserError
from remind_jax.evaluation import binary, intervals, metrics, page
from remind_jax.evaluation.metrics import TUNED
from remind_jax.runtime import records
from remind_jax.runtime.records import COUNT, SHARE, Number

REPORT, PREDICTIONS = "report.json", "predictions.parquet"
_REMEDY = "remove it, and run the same command again"
_NUMBER = Number(float, -1e300, 1e300)
_FIGURE = (_NUMBER, None)
_M = {
    **dict.fromkeys(metrics.METRICS, _FIGURE),
    **{f"{name}_ci": ([_NUMBER] * 2, None) for name in intervals.NAMES},
    f"{TUNED}?": _FIGURE,
    f"{TUNED}_ci?": ([_NUMBER] * 2, None),
    "notes": {...: str},
}
_CHOSEN = {"stage": str, "step": COUNT, "value": _FIGURE}
WEIGHTS = {**_CHOSEN, "selected_by": str, "passed_over": (_CHOSEN, None)}
"""The shape of `chosen` in a model folder, see `page.weights_text`."""
_CARD = {
    "label?": str,
    "splits?": {...: {"n": COUNT, "patients": COUNT}},
    "classes?": [{"name": str, "train_fraction": SHARE}],
    "modalities?": [{"name": str, "kind": str, "present_fraction": SHARE}],
    "combinations?": [{"group": str, "n": COUNT, "fraction": SHARE, "published?": SHARE}],
    "titles?": {"label?": str, "classes?": {...: str}, "modalities?": {...: str}},
}
_GROUP = {
    "group": str,
    "modalities": [str],
    "train_fraction": SHARE,
    "tail": bool,
    **dict.fromkeys(("n", "n_patients", "n_train"), COUNT),
    "unseen?": bool,
    **_M,
}
_BOUNDS = ([_NUMBER] * 2, None)
_CELLS = dict.fromkeys(("tp", "fp", "fn", "tn"), COUNT)
_SHARES = dict.fromkeys(binary.FIGURES, (SHARE, None))
_POINTS = [[_NUMBER] * 2]
_BINARY = {
    **{"threshold": _FIGURE, "prevalence": (SHARE, None), "counts": _CELLS, "outcome?": str},
    **_SHARES,
    **{f"{name}_ci": _BOUNDS for name in binary.FIGURES},
    "at": [{"threshold": _FIGURE, **_CELLS, **_SHARES}],
    **dict.fromkeys(("roc", "pr"), _POINTS),
    "net_benefit": [[_NUMBER] * 3],
    "calibration": [{"n": COUNT, **dict.fromkeys(("predicted", "observed"), SHARE), "ci": _BOUNDS}],
}
_COVERED = {"n": COUNT, "coverage": SHARE, "ci": [SHARE, SHARE], "size": _FIGURE}
_SETS = {
    **{"level": SHARE, "n_calibration": COUNT, "overall": _COVERED},
    "groups": [{"group": str, "n_calibration": COUNT, **_COVERED}],
}
_VALUE = {"attribute": str, "value": (str, None)}
_COUNTED = dict.fromkeys(("n", "n_patients"), COUNT)


def _attributes(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the shape of the figures by attribute, each a set of `figures`."""
    return [_VALUE | _COUNTED | {"by_group": [{"group": str} | _COUNTED | figures]} | figures]


SHAPE = {
    **dict.fromkeys(("data", "method", "config_digest"), str),
    "seed": int,
    "split": tuple(page.SAMPLES),
    **dict.fromkeys(("parameters", "n", "n_patients"), COUNT),
    "modalities": [str],
    "classes": [str],
    "label_counts": [COUNT],
    **dict.fromkeys(("overall", "head_mean", "tail_mean"), _M),
    **{key: {"n": COUNT, **_M} for key in ("head_pooled", "tail_pooled")},
    "groups": [_GROUP],
    "worst_group": {"group": (str, None), "n": COUNT, **_M},
    "calibration": [{"n": Number(int, 1), **dict.fromkeys(("low", "high", "confidence", "accuracy"), SHARE)}],
    "card?": _CARD,
    "findings?": [({"code": str, "message": str}, str)],
    "gate?": {"stuck?": (str, None), "why?": str, "open_rate?": _FIGURE},
    "weights?": WEIGHTS,
    "split_digest?": str,
    "majority_accuracy?": _FIGURE,
    "decision?": [Number(float, 0, 1)],
    "binary?": _BINARY,
    "sets?": (_SETS, {"level": SHARE, "labels": {...: _SETS}}),
    "deferral?": [{"share": SHARE, "n": COUNT, "accuracy": SHARE}],
    "attributes?": _attributes(_M),
    "attribute_gaps?": [
        _VALUE
        | {"against": (str, None), "figure": str, "difference": _FIGURE, "ci": _BOUNDS, "note?": str}
        | dict.fromkeys(("p", "p_holm"), (SHARE, None))
    ],
    "stack?": {
        **{"folds": COUNT, "rows": COUNT, "loss": _FIGURE},
        "members": [{"name": str, "weight": SHARE, "selected": SHARE, "loss": _FIGURE}],
    },
    "attribute_presence?": [_VALUE | {"modality": str, "share": SHARE, "ci": _BOUNDS}],
}
"""The shape of a report, see `report.build_report`."""


FIGURES = {
    "notes": {...: str},
    **{key: {...: {...: object}} for key in ("labels?", "horizons?")},
    ...: (*_FIGURE, [_NUMBER] * 2),
}
"""The shape of a set of figures of any task."""
_POSITIVE = Number(float, 0, 1e300)
_BIN = {"n": COUNT, **dict.fromkeys(("predicted", "observed"), _NUMBER), "middle": [_NUMBER] * 2}
_TASK = {"name": str, "headline": str, "more": bool, "titles": {...: str}, "fitted": {"task": str, ...: object}}


def shape_of(task: bool) -> dict[str, Any]:
    """Returns the shape of a report, that of a `task` other than classes or of these."""
    if not task:
        return SHAPE
    of_group = {key: one for key, one in _GROUP.items() if key not in _M} | FIGURES
    return SHAPE | {
        "task": _TASK,
        "curves?": (
            {
                "by_risk": [{**dict.fromkeys(("n", "events"), COUNT), "times": [_POSITIVE], "survival": [SHARE]}],
                "calibration": {...: [{"n": COUNT, "predicted": SHARE, "observed": (SHARE, None)}]},
            },
            {"by_prediction": [_BIN], "typical": str},
        ),
        **dict.fromkeys(("overall", "head_mean", "tail_mean"), FIGURES),
        **{key: {"n": COUNT, **FIGURES} for key in ("head_pooled", "tail_pooled")},
        "groups": [of_group],
        "attributes?": _attributes(FIGURES),
        "worst_group": {"group": (str, None), "n": COUNT, **FIGURES},
    }


def is_there(folder: pathlib.Path) -> bool:
    """Tells whether a folder holds a report that was written to its end; a power cut may leave an empty or cut one."""
    try:
        facts = (folder / REPORT).stat()
    except OSError:
        return False
    return _is_whole(folder / REPORT, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(1 << 16)  # sweeps ask for each of their runs again and again
def _is_whole(file: pathlib.Path, size: int, changed: int) -> bool:
    del size, changed
    found = records.content(file).rstrip(b"\0 \r\n\t")
    try:
        records.parse(found)
    except ValueError as error:
        return found.endswith(b"}") and getattr(error, "pos", -1) < len(found.decode(errors="replace"))
    return True


def read_report(folder: pathlib.Path, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Reads the report of a folder that has one; `more` are further keys and their shapes.

    Raises UserError: it is damaged, or was written by another version.
    """
    task = "task" in records.read(folder / REPORT, {}, _REMEDY)
    report = records.read(folder / REPORT, shape_of(task) | (more or {}), _REMEDY)
    names = set(report["modalities"])
    sized = (report["label_counts"], report.get("decision"))
    if any(each and len(each) != len(report["classes"]) for each in sized) or any(
        row["modalities"] != [name for name in report["modalities"] if name in row["modalities"]]
        or not names.issuperset(row["modalities"])
        for row in report["groups"]
    ):
        raise UserError(f"{folder / REPORT} is damaged (classes or modalities do not fit): {_REMEDY}")
    if len({row["group"] for row in report["groups"]}) < len(report["groups"]):
        raise UserError(f"{folder / REPORT} is damaged (a combination stands there twice): {_REMEDY}")
    return report


def read_predictions(folder: pathlib.Path, count: int, task: bool = False) -> pl.DataFrame:
    """Reads the predictions of a finished run, `count` a sample: of so many classes, or of a `task` other than these.

    Raises UserError: they are damaged or not there.
    """
    file = folder / PREDICTIONS
    if not file.exists():
        raise UserError(f"{folder} holds no finished run: {file.name} is missing")
    try:
        table = read_parquet(file, below=folder)
    except ValueError as error:
        raise UserError(f"{file} cannot be read ({error}): {_REMEDY}") from None
    names = [f"p_{k}" for k in range(count)]
    labels = [name for name in table.columns if re.fullmatch("label_[0-9]+", name)] if task else []
    labels = [f"label_{j}" for j in range(len(labels))] or ["label"]
    there = sum(name.startswith("p_") and name[2:].isdigit() for name in table.columns)
    if there != count or not {"sample_id", "patient_id", *labels, "group", *names} <= set(table.columns):
        raise UserError(f"{folder} holds a damaged run: {file.name} lacks columns")
    known = table.select("sample_id", "patient_id", "group", *labels, *names)
    sound = all(known[name].dtype == pl.String or known[name].dtype.is_integer() for name in known.columns[:2])
    sound &= known["group"].dtype == pl.String and not any(map(bool, known.null_count().row(0)))
    sound &= all(known[name].dtype.is_float() and known[name].is_finite().all() for name in names)
    if task:
        sound &= all(known[name].dtype.is_numeric() for name in labels)
        sound &= all(known[name].is_finite().all() for name in labels if known[name].dtype.is_float())
    else:
        sound &= known["label"].dtype.is_integer() and known["label"].is_between(0, count - 1).all()
        sound &= all(known[name].is_between(0.0, 1.0).all() for name in names)
    if not sound:
        raise UserError(f"{folder} holds a damaged run: {file.name} holds no labels, combinations or probabilities")
    return table
