"""The HTML page of a report: sentences about its metrics, and one template. The page loads nothing from elsewhere."""

import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from remind_jax.data.dataset import SMOKE_RUN
from remind_jax.evaluation import figures
from remind_jax.evaluation.intervals import NARROW
from remind_jax.evaluation.judge import titles_of_classes
from remind_jax.evaluation.metrics import TUNED
from remind_jax.evaluation.names import EXPLAINED, SCALES, airy, breakable, heading, short_names, titled, words
from remind_jax.runtime import texts

if TYPE_CHECKING:
    import jinja2

MIN_PATIENTS = 10  # with fewer held-out patients, a group's metrics are called unreliable (W102)
WIDE = 0.20  # a wider interval of accuracy is pointed out
GAP = 0.05  # a larger difference in accuracy of head and tail is pointed out
MISCALIBRATED = 0.10
SURE = 0.05  # p of a gap between values of an attribute that is pointed out
RARE_CLASS = 20
NAME_WIDTH, LABEL_WIDTH = 44, 23  # characters of a combination in tables and next to lines
BARS = 25  # group bars shown before the others are folded away
_SAID = ("W101", "W102")  # findings that `_unseen` and `_few_patients` replace
_LEADS = {"W109": "Encoders are not pretrained"}  # findings that are not of the data
TEMPLATE, CELL = "report.html.jinja", "cell.html.jinja"
IN_A_CELL, ROWS_OF_A_CELL, NAMES_IN_A_CELL = ("accuracy", "macro_f1", TUNED, "auroc"), 12, 32
SAMPLES = {"held_out": "held-out samples", "tuning": "tuning samples, none were held out", "new rows": "samples"}
"""Words for `split` of a report."""
SMOKE = "This is a smoke run (--quick): it shows that everything works, and its figures mean nothing."
PARTS = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1", "brier": "Brier"}
"""Figures of a label or a horizon."""
HEADLINES = (
    ("overall", "All samples"),
    ("head_pooled", "Common combinations (head)"),
    ("tail_pooled", "Rare combinations (tail)"),
    ("head_mean", "Mean over head combinations"),
    ("tail_mean", "Mean over tail combinations"),
    ("worst_group", "Worst combination"),
)


def templates(*folders: pathlib.Path) -> "jinja2.Environment":
    """Returns the templates of this folder and of others, with the filters that they use."""
    import jinja2

    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    made = jinja2.Environment(loader=jinja2.FileSystemLoader([*folders, pathlib.Path(__file__).parent]), **options)
    made.finalize = lambda value: type(value)(texts.visible(value)) if isinstance(value, str) else value
    made.filters.update(pct=_percent, dec=_decimal, pct_ci=_percent_interval, dec_ci=_decimal_interval)
    made.filters.update(
        words=words,
        airy=airy,
        breakable=breakable,
        heading=heading,
        value=value_text,
    )
    return made


def render(report: Mapping[str, Any], history: Sequence[dict[str, Any]], made: Mapping[str, str] = {}) -> str:
    """Returns the page as one string; the same input gives the same page. `made` says how it was made, by title."""
    return templates().get_template(TEMPLATE).render(context(report, history) | {"made": made})


def cell(report: Mapping[str, Any]) -> str:
    """Returns the figures of each combination and of all samples as a table for a notebook's cell."""
    report = titled(report)
    names, abbreviated = _names(report, NAMES_IN_A_CELL)
    shown = {name: titles(report)[name] for name in leading(report)}
    variables = {"report": report, "names": names, "abbreviated": abbreviated, "titles": shown}
    rows = report["groups"][:ROWS_OF_A_CELL]
    variables |= {"rows": rows, "more": len(report["groups"]) - len(rows), "headlines": HEADLINES[:3]}
    return templates().get_template(CELL).render(variables | {"samples": SAMPLES[report["split"]]})


def titles(report: Mapping[str, Any]) -> dict[str, str]:
    """Returns the titles of a report's figures by name."""
    return report["task"]["titles"] if "task" in report else titles_of_classes("decision" in report)


def _told(report: Mapping[str, Any]) -> dict[str, str]:
    """Returns the titles of the figures that some samples have, of all where there are none."""
    rows, every = (report["overall"], *report["groups"]), titles(report)
    return {name: title for name, title in every.items() if any(row.get(name) is not None for row in rows)} or every


def parts(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tables of figures by label or by horizon: `by`, `titles` and `rows` by name; empty without any."""
    for key, by, name in (("labels", "label", "{}"), ("horizons", "horizon", "by {}")):
        if rows := report["overall"].get(key):
            there = {figure: title for figure, title in PARTS.items() if figure in next(iter(rows.values()))}
            return {"by": by, "titles": there, "rows": {name.format(row): found for row, found in rows.items()}}
    return {}


def leading(report: Mapping[str, Any]) -> list[str]:
    """Returns the figures that stand where there is no room for all, three, and the tuned one of classes."""
    there = list(titles(report))
    return there[:3] if "task" in report else [name for name in IN_A_CELL if name in there]


def _lead(report: Mapping[str, Any]) -> str:
    """Returns the figure in which values of attributes are compared: of an outcome no share of the right answers."""
    return "auroc" if "binary" in report else leading(report)[0]


def context(report: dict[str, Any], history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the variables of the template.

    Args:
      report: from `build_report`. These further keys are read where they are present:
        `card`: the data card, `{splits: {train: {n, patients}, tuning: …, held_out: …}, classes: [{name,
          train_fraction}], modalities: [{name, kind, present_fraction}], combinations: [{group, n, fraction,
          published}], label}`; the combinations are shown where the paper published their shares;
        `classes`: names of the classes in order, instead of the card's;
        `findings`: findings of the data check, `[{code, message}]` or plain strings; codes that begin with I count
          rows read and are no warning;
        `gate`: `{stuck, why}`, see `inference.gate.summary`;
        `weights`: the reported weights, see `weights_text`.
      history: the records of metrics.jsonl.
    """
    import markupsafe

    report = titled(report)
    names, abbreviated = _names(report, NAME_WIDTH)
    labels, abbreviated_labels = _names(report, LABEL_WIDTH)
    tail = {row["group"] for row in report["groups"] if row["tail"]}
    drawings = {
        "losses": figures.losses(history),
        "tuning": figures.tuning(history),
        "lambdas": figures.lambdas(
            history, tail, lambda name: texts.one_line(words(labels.get(name, name[:LABEL_WIDTH])))
        ),
        "gate": figures.gate(history),
        "reliability": figures.reliability(report["calibration"]),
        "deferral": figures.deferral(report.get("deferral", ())),
        **figures.of_binary(report.get("binary", {})),
        **figures.of_survival(report.get("curves", {})),
        "by_prediction": figures.of_values(report.get("curves", {})),
    }
    most = max((row["n_train"] for row in report["groups"]), default=0)
    without = [side for side in ("head", "tail") if not report[f"{side}_pooled"]["n"]]
    return {
        "report": report,
        "synthetic": is_synthetic(report["data"]),
        "smoke": SMOKE if is_smoke_run(report["data"]) else "",
        "card": report.get("card", {}),
        "read": [one["message"] for one in _coded(report) if one["code"].startswith("I")],
        "published": [row for row in report.get("card", {}).get("combinations", ()) if "published" in row],
        "names": names,
        "abbreviated": abbreviated,
        "abbreviated_labels": abbreviated_labels,
        "bars_shown": BARS,
        # Square roots keep a group of 3 visible next to one of 3,000.
        "bar": lambda n: round(100 * math.sqrt(n / most), 2) if most else 0,
        "titles": _told(report),
        **({"task": report["task"]["name"]} if "task" in report else {}),
        "parts": parts(report),
        "attributes": _attributes(report),
        "sets": _sets(report),
        "explained": {title: EXPLAINED[name] for name, title in titles(report).items() if name in EXPLAINED},
        "lead": _lead(report),
        "weights": origin_text(report),
        "headlines": [(label, report[key]) for key, label in HEADLINES if key.partition("_")[0] not in without],
        "scale": SCALES.get(_lead(report), "all samples"),
        "majority": _majority(report),
        "cautions": cautions(report),
        "gate": _gate_text(report.get("gate") or {}),
        "figures": {name: markupsafe.Markup(svg) for name, svg in drawings.items() if svg},
    }


def _sets(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of the table of sets: all samples and each combination, or all samples of each label."""
    sets = report.get("sets") or {}
    if "labels" in sets:
        return [{"name": k, "n_calibration": x["n_calibration"], **x["overall"]} for k, x in sets["labels"].items()]
    whole = [{"name": "All", "n_calibration": sets["n_calibration"], **sets["overall"]}] if sets else []
    return [*whole, *({"name": row["group"], **row} for row in sets.get("groups", ()))]


def _attributes(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of attributes with the gap in the leading figure, and the share of each modality."""
    lead = _lead(report)

    def of(key: str, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [one for one in report.get(key, ()) if all(one[k] == row[k] for k in ("attribute", "value"))]

    return [
        {
            **row,
            "gap": next((one for one in of("attribute_gaps", row) if one["figure"] == lead), None),
            "presence": {one["modality"]: one for one in of("attribute_presence", row)},
        }
        for row in report.get("attributes", ())
    ]


def _served_worse(report: dict[str, Any]) -> tuple[str, str] | None:
    """Points at gaps in the leading figure that chance does not explain."""
    more = report["task"]["more"] if "task" in report else True
    lead, worse = _lead(report), []
    for row in _attributes(report):
        gap = row["gap"]
        if gap and gap["p_holm"] is not None and gap["p_holm"] < SURE and (gap["difference"] < 0) == more:
            worse.append(
                f"{row['attribute']} {value_text(row['value'])} ({gap['difference']:+.3f} against {gap['against']})"
            )
    if not worse:
        return None
    return "Served worse", f"{titles(report)[lead]} by attribute, beyond chance (p < {SURE}, Holm): {', '.join(worse)}."


def value_text(value: str | None) -> str:
    """Names a value of an attribute."""
    return "not recorded" if value is None else value


def weights_text(weights: Mapping[str, Any]) -> str:
    """Says in a sentence which weights a run reports, given as `chosen` in a model folder's `model.json`.

    These are their `stage` and `step`, `selected_by` (a tuning metric or `last`), its `value`, and `passed_over`:
    stage, step and value of better weights that an earlier stage had; None where there were none.
    """
    by, passed = weights["selected_by"], weights["passed_over"]
    how = "the last ones" if by == "last" else f"chosen by tuning {by} ({weights['value']:.4f})"
    text = f"Weights of step {weights['step']}, stage {weights['stage']}: {how}."
    if passed is None:
        return text
    return (
        f"{text} Stage {passed['stage']} had better ones at step {passed['step']} ({passed['value']:.4f}), from which "
        "later stages went on: train.keep_better_stage=true keeps the best of all stages."
    )


def origin_text(report: Mapping[str, Any]) -> str:
    """Says in a sentence which weights a report is of, and of a stack which members; empty if it does not say."""
    if "stack" not in report:
        return weights_text(report["weights"]) if "weights" in report else ""
    stack = report["stack"]
    members = ", ".join(f"{words(each['name'])} ({each['weight']:.2f})" for each in stack["members"])
    if not stack["rows"]:
        return f"The mean of {members}."
    rows = "tuning rows" if stack["folds"] == 1 else f"rows of {stack['folds']} folds, each unseen in training,"
    return f"The weighted mean of {members}; {stack['rows']:,} {rows} chose the weights by loss ({stack['loss']:.4f})."


def is_synthetic(data: str) -> bool:
    """Returns whether a data set's title names a twin or other synthetic data."""
    return "synthetic" in data.lower() or data.lower().startswith("twin")


def is_smoke_run(data: str) -> bool:
    """Returns whether a data set's title says that a smoke run used it."""
    return SMOKE_RUN in data


def cautions(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns reasons in the report not to trust the model, each as a short lead and a sentence."""
    checks = (_baseline, _unseen, _few_patients, _wide, _narrow, _gap, _calibration, _rare_classes)
    if "accuracy" not in report["overall"]:
        checks = (_unseen, _few_patients, _narrow)
    found = [caution for check in checks if (caution := check(report))]
    if is_synthetic(report["data"]):
        text = "No real patient is in these data. The figures show that the program works, not that the model does."
        found.insert(0, ("Synthetic data", text))
    if report["split"] == "tuning":
        text = "The figures are those of the tuning rows, which also chose the weights: on new patients expect worse."
        found.insert(0, ("No rows were held out", text))
    if is_smoke_run(report["data"]):
        found.insert(0, ("Smoke run", SMOKE))
    if report.get("weights", {}).get("passed_over"):
        found.append(("Better weights were passed over", weights_text(report["weights"])))
    found += [caution for caution in (_served_worse(report), _gate(report)) if caution]
    for finding in _coded(report):
        if not finding["code"].startswith(("I", *_SAID)):  # counts of rows read are no warning
            lead = _LEADS.get(finding["code"]) or f"Data check {finding['code']}".strip()
            found.append((lead, _sentence(finding["message"])))
    return found


def _sentence(text: str) -> str:
    """Begins a message with a capital, unless it begins with a name."""
    return text if re.match(r"\S+:", text) else text[:1].upper() + text[1:]


def _coded(report: dict[str, Any]) -> list[dict[str, str]]:
    """Returns the findings of the data check; plain strings have an empty code."""
    found = report.get("findings", ())
    return [one if isinstance(one, dict) else {"code": "", "message": str(one)} for one in found]


def _majority(report: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the name and the held-out share of the most frequent class."""
    counts = report["label_counts"]
    if not sum(counts):
        return None
    most = int(np.argmax(counts))
    return {"name": _class_name(report, most), "fraction": counts[most] / sum(counts)}


def _class_name(report: dict[str, Any], k: int) -> str:
    names = report.get("classes") or [c["name"] for c in report.get("card", {}).get("classes", ())]
    return str(names[k]) if k < len(names) else f"class {k}"


def _names(report: dict[str, Any], width: int) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the short name of each group, and the abbreviations used."""
    rows = report["groups"]
    names, used = short_names((row["modalities"] for row in rows), report["modalities"], width)
    return {row["group"]: name for row, name in zip(rows, names, strict=True)}, used


def _list_groups(report: dict[str, Any], rows: Sequence[dict[str, Any]], most: int = 5) -> str:
    names, _ = short_names((row["modalities"] for row in rows[:most]), report["modalities"], NAME_WIDTH)
    rest = len(rows) - len(names)
    return ", ".join(map(airy, names)) + (f" and {rest} more" if rest else "")


def _baseline(report: dict[str, Any]) -> tuple[str, str] | None:
    majority, overall = _majority(report), report["overall"]
    if majority is None or overall["accuracy_ci"] is None or overall["accuracy_ci"][0] > majority["fraction"]:
        return None
    return (
        "Accuracy not clearly better than a constant answer",
        f"Always answering “{majority['name']}” is right in {_percent(majority['fraction'])} of the held-out samples; "
        f"the model is right in {_percent(overall['accuracy'])} ({_percent_interval(overall['accuracy_ci'])}).",
    )


def _unseen(report: dict[str, Any]) -> tuple[str, str] | None:
    rows = [row for row in report["groups"] if row.get("unseen")]
    if not rows:
        return None
    return (
        "Combinations never seen in training",
        f"{_count(sum(row['n'] for row in rows), 'held-out sample')} with {_count(len(rows), 'such combination')} "
        f"({_list_groups(report, rows)}). The model falls back on what all combinations share.",
    )


def _few_patients(report: dict[str, Any]) -> tuple[str, str] | None:
    rows = [row for row in report["groups"] if row["n_patients"] < MIN_PATIENTS]
    if not rows:
        return None
    return (
        f"Fewer than {MIN_PATIENTS} held-out patients",
        f"{len(rows)} of {len(report['groups'])} combinations: {_list_groups(report, rows)}. "
        "Their figures say next to nothing; do not rank them.",
    )


def _wide(report: dict[str, Any]) -> tuple[str, str] | None:
    rows = [row for row in report["groups"] if row["n_patients"] >= MIN_PATIENTS and row["accuracy_ci"]]
    rows = [row for row in rows if np.ptp(row["accuracy_ci"]) > WIDE]
    if not rows:
        return None
    listed = f"{_count(len(rows), 'further combination')}: {_list_groups(report, rows)}"
    lead = f"Accuracy known to no better than {WIDE * 100:.0f} points"
    return lead, f"The 95 % interval is wider than that in {listed}."


def _narrow(report: dict[str, Any]) -> tuple[str, str] | None:
    sets = [report["overall"], *report["groups"]]
    marked = sum(any(NARROW in note for note in row["notes"].values()) for row in sets)
    text = f"In {marked} of {len(sets)} sets of samples; their cells say why."
    return (f"Intervals that are {NARROW}", text) if marked else None


def _gap(report: dict[str, Any]) -> tuple[str, str] | None:
    head, tail = report["head_pooled"]["accuracy"], report["tail_pooled"]["accuracy"]
    if head is None or tail is None or head - tail <= GAP:
        return None
    text = f"{_percent(tail)} correct on rare combinations against {_percent(head)} on common ones."
    return "Weaker on rare combinations", text


def _calibration(report: dict[str, Any]) -> tuple[str, str] | None:
    overall, curve = report["overall"], report["calibration"]
    if overall["ece"] is None or overall["ece"] <= MISCALIBRATED:
        return None
    confidence = sum(b["n"] * b["confidence"] for b in curve) / sum(b["n"] for b in curve)
    return (
        "Do not read its probabilities as risks",
        f"It is on average {_percent(confidence)} sure and {_percent(overall['accuracy'])} right; "
        f"confidence and accuracy differ by {overall['ece'] * 100:.0f} points on average over the confidence bins.",
    )


def _rare_classes(report: dict[str, Any]) -> tuple[str, str] | None:
    rare = [(k, n) for k, n in enumerate(report["label_counts"]) if n < RARE_CLASS]
    if not rare:
        return None
    listed = ", ".join(f"“{_class_name(report, k)}” ({n})" for k, n in rare)
    return "Few held-out cases of a class", f"{listed}. Macro-F1, AUROC and AUPRC rest on these few."


def _gate(report: dict[str, Any]) -> tuple[str, str] | None:
    gate = report.get("gate") or {}
    if not gate.get("stuck"):
        return None
    effect = "on every sample" if gate["stuck"] == "open" else "on no sample: the model is a plain soft MoE"
    return f"Gate {gate['stuck']} throughout", f"The combination's own router was used {effect}. {gate['why']}"


def _gate_text(gate: Mapping[str, Any]) -> str:
    """Says in words how often the gate let the combination's own router act on the reported rows."""
    rate, rule = gate.get("open_rate"), gate.get("rule", "gated")
    if rate is None or rule != "gated":
        return {"always": "No gate: it was always open.", "never": "It was always closed."}.get(rule, "")
    if gate.get("stuck"):
        return f"Once group routers act it was {'always' if gate['stuck'] == 'open' else 'never'} open."
    return f"It was open for {_percent(rate)} of the held-out rows."


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent_interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def _decimal_interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"
