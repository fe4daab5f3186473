"""Names as pages show them: of classes, modalities and combinations in tables and plots, and what figures mean."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import markupsafe

EXPLAINED = {
    "accuracy": "Share of samples whose most probable class is the true one.",
    "macro_f1": "F1 averaged over the classes that occur in the labels or the answers.",
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


def titled(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a report with classes, labels and modalities as pages show them; keys of combinations stay."""
    card = dict(report.get("card", {}))
    given = card.get("titles", {})
    modality, name = of_modalities(report), _renaming(given.get("classes", {}))
    column, shown = card.get("label"), {**report, "modalities": list(map(modality, report["modalities"]))}

    def named_class(raw: str) -> str:
        return f"{column} = {raw}" if column and name(raw) == raw and _BARE.fullmatch(raw) else name(raw)

    if "classes" in report:
        shown["classes"] = list(map(named_class, report["classes"]))
    if "binary" in report:
        shown["binary"] = {**report["binary"], "outcome": named_class(report["binary"]["outcome"])}
    for key in ("overall", "sets"):
        if labels := (report.get(key) or {}).get("labels"):
            shown[key] = {**report[key], "labels": {name(label): row for label, row in labels.items()}}
    shown["groups"] = [{**row, "modalities": list(map(modality, row["modalities"]))} for row in report["groups"]]
    if "attribute_presence" in report:
        rows = report["attribute_presence"]
        shown["attribute_presence"] = [{**row, "modality": modality(row["modality"])} for row in rows]
    for key, named in (("classes", named_class), ("modalities", modality)):
        if key in card:
            card[key] = [{**row, "name": named(row["name"])} for row in card[key]]
    if "label" in card:
        card["label"] = given.get("label") or ", ".join(map(name, column.split(", ")))
    if "combinations" in card:
        rows = card["combinations"]
        card["combinations"] = [{**row, "group": "+".join(map(modality, row["group"].split("+")))} for row in rows]
    return shown | ({"card": card} if card else {})


def of_modalities(report: Mapping[str, Any]) -> Callable[[str], str]:
    """Returns what gives a modality's title for its name."""
    return _renaming(report.get("card", {}).get("titles", {}).get("modalities", {}))


def _renaming(titles: Mapping[str, str]) -> Callable[[str], str]:
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
