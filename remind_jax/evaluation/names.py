"""Names as pages show them: of classes, modalities and combinations in tables and plots, and what figures mean."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from remind_jax.evaluation.metrics import TUNED

if TYPE_CHECKING:
    import markupsafe

EXPLAINED = {
    "accuracy": "Share of samples whose most probable class is the true one.",
    "macro_f1": "F1 averaged over the classes that occur in the labels or the answers.",
    TUNED: "Macro-F1 of answers for which probabilities are divided by a power of the classes' shares, "
    "which tuning rows chose. eval.adjust_prior=macro_f1 makes all predictions that way.",
    "auroc": "Chance that a case has the higher probability of two; of several classes each against the rest.",
    "auprc": "Average precision, to be read next to how frequent a class is; of several classes averaged like AUROC.",
    "ece": "Expected calibration error: mean difference between confidence and accuracy over 15 bins; 0 is best.",
    "brier": "Half the mean squared distance between probabilities and what was; 0 is best. It counts calibration and "
    "discrimination.",
    "qwk": "Quadratic weighted kappa: 1 where every class is right, 0 where chance does as well; far misses cost most.",
    "mae": "Mean absolute error, in the unit of what is predicted; of ordered classes in classes.",
    "rmse": "Root of the mean squared error, in the unit of what is predicted; large misses count most.",
    "r2": "Share of the variance that is predicted; 0 is what the mean of these samples gives, below is worse.",
    "spearman": "Correlation of the ranks of predictions and values.",
    "coverage": "Share of values inside their predicted intervals.",
    "auroc_macro": "Mean over labels of the chance that a case has a higher probability than others; 0.5 is chance.",
    "auprc_macro": "Mean over labels of the average precision, to be read next to how frequent a label is.",
    "f1_macro": "Mean over labels of F1 at the threshold of each.",
    "c_uno": "Share of pairs of patients whose order of events is predicted, weighted so that censoring has no say.",
    "c_index": "Share of pairs of patients whose order of events is predicted, among those whose order is known.",
    "ibs": "Mean over time of the squared distance between predicted survival and what was; 0 is best.",
}
"""What figures mean."""
SCALES = {
    "auroc_macro": "mean of the labels; 0.5 is chance, 1 is perfect",
    "c_uno": "0.5 is chance, 1 is perfect",
    "qwk": "0 is chance, 1 is perfect",
    "mae": "mean absolute error, in the unit of the label",
}
"""How to read the leading figure of a task."""
_BARE = re.compile(r"[-+]?\d+(\.\d+)?|yes|no|true|false", re.IGNORECASE)
"""Classes that say nothing without their column."""


Rename = Callable[[str], str]


def titled(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a report with classes, labels and modalities as pages show them; keys of combinations stay."""
    modality, label, class_of = of_modalities(report), _of_labels(report), _of_classes(report)
    shown = {**report, "modalities": list(map(modality, report["modalities"]))}
    shown["groups"] = [{**row, "modalities": list(map(modality, row["modalities"]))} for row in report["groups"]]
    shown["classes"] = list(map(class_of, report.get("classes", ())))
    for key in ("overall", "sets"):
        if labels := (report.get(key) or {}).get("labels"):
            shown[key] = {**report[key], "labels": {label(name): row for name, row in labels.items()}}
    if "binary" in report:
        shown["binary"] = {**report["binary"], "outcome": class_of(report["binary"]["outcome"])}
    if "attribute_presence" in report:
        shown["attribute_presence"] = _renamed(report["attribute_presence"], "modality", modality)
    return shown | ({"card": _titled_card(report["card"], modality, label, class_of)} if "card" in report else {})


def _titled_card(card: Mapping[str, Any], modality: Rename, label: Rename, class_of: Rename) -> dict[str, Any]:
    """Returns a data card as `titled` does a report."""
    shown = dict(card)
    if "label" in card:
        shown["label"] = card.get("titles", {}).get("label") or ", ".join(map(label, card["label"].split(", ")))
    columns = {"classes": ("name", class_of), "modalities": ("name", modality)}
    columns["combinations"] = ("group", lambda group: "+".join(map(modality, group.split("+"))))
    return shown | {key: _renamed(card[key], *how) for key, how in columns.items() if key in card}


def _renamed(rows: Iterable[Mapping[str, Any]], key: str, rename: Rename) -> list[dict[str, Any]]:
    return [{**row, key: rename(row[key])} for row in rows]


def of_modalities(report: Mapping[str, Any]) -> Rename:
    """Returns what gives a modality's title for its name."""
    return _renaming(report, "modalities")


def _of_labels(report: Mapping[str, Any]) -> Rename:
    return _renaming(report, "classes")


def _of_classes(report: Mapping[str, Any]) -> Rename:
    """Returns what names a class; one such as 0 or yes says of what, unless it has a title."""
    label, column = _of_labels(report), report.get("card", {}).get("label")
    return lambda name: (
        f"{column} = {name}" if column and label(name) == name and _BARE.fullmatch(name) else label(name)
    )


def _renaming(report: Mapping[str, Any], kind: str) -> Rename:
    titles = report.get("card", {}).get("titles", {}).get(kind, {})
    return lambda name: titles.get(name, name)


def short_names(
    names: Iterable[Sequence[str]], declared: Sequence[str], width: int
) -> tuple[list[str], dict[str, str]]:
    """Names combinations, given by their modalities, in at most `width` characters each.

    The first form that fits is used: the joined names, `all 7`, `all but x+y`, the same abbreviated, or cut off.
    `declared` has all modalities in declared order. Returns the names, and the abbreviation of each abbreviated
    modality.
    """
    short = _abbreviations(declared)
    out, used = [], {}
    for present in names:
        missing = [m for m in declared if m not in present]
        but = "all but " if missing and len(missing) < len(present) else ""
        listed = missing if but else present
        full, name = "+".join(present) or "none", but + "+".join(listed)
        if len(full) <= width:
            name = full
        elif not missing:
            name = f"all {len(declared)}"
        elif len(name) > width:
            name = but + "+".join(short.get(m, m) for m in listed)
            used |= {m: short[m] for m in listed if m in short}
        out.append(name if len(name) <= width else f"{name[: width - 2]}..")
    return out, {m: used[m] for m in declared if m in used}


def _abbreviations(declared: Sequence[str]) -> dict[str, str]:
    """Returns the shortest beginning of each modality, of at least three characters, that no other modality has."""
    short = {}
    for name in declared:
        others = [m for m in declared if m != name]
        lengths = (k for k in range(3, len(name) + 1) if not any(m.startswith(name[:k]) for m in others))
        short[name] = name[: next(lengths, len(name))]
    return {name: abbreviation for name, abbreviation in short.items() if abbreviation != name}


def words(name: str) -> str:
    """Shows a name of classes, labels or modalities: underscores between letters are spaces; files keep the name."""
    return re.sub(r"(?<=[^\W_])_+(?=[^\W_])", " ", name)


def airy(name: str) -> str:
    """Returns a combination with spaces at which lines may break."""
    return words(name).replace("+", " + ")


def heading(name: str) -> str:
    """Returns the name of a data set as a heading; upper case is kept."""
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


def breakable(name: str) -> "markupsafe.Markup":
    """Returns a method's name as HTML that may be broken after an underscore."""
    import markupsafe

    return markupsafe.escape(name).replace("_", markupsafe.Markup("_<wbr>"))
