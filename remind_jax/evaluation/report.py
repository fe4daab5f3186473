"""The report of a run: one dictionary, written as JSON, as a table in the terminal and as an HTML page.

The dictionary is a contract; its keys are listed at `build_report`.
"""

import io
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from remind_jax.data import dataset as datasets
from remind_jax.data import splits
from remind_jax.data.dataset import Dataset
from remind_jax.data.groups import Groups
from remind_jax.evaluation import conformal, fairness, intervals, metrics, page
from remind_jax.evaluation.judge import Judge, of_classes
from remind_jax.evaluation.metrics import TUNED
from remind_jax.evaluation.names import short_names
from remind_jax.evaluation.samples import Samples
from remind_jax.runtime import files, texts

if TYPE_CHECKING:
    import rich.console

MIN_WORST = 10  # a group with fewer held-out samples cannot be called the worst
TABLE_WIDTH = 100
TABLE_ROWS = 25
NAME_WIDTH = 26


class Report(Mapping[str, Any]):
    """A report with the keys of `build_report`, which shows itself: a table in a notebook, lines of text elsewhere.

    Without keys it is that of a model for which no rows were kept apart.
    """

    def __init__(self, values: Mapping[str, Any], history: Sequence[Mapping[str, Any]] = ()):
        """Takes what `build_report` returned and, for the curves of the page, the records of metrics.jsonl."""
        self._values, self._history = dict(values), list(history)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        if not self._values:
            return "Report(no rows were kept apart)"
        import rich.console

        console = rich.console.Console(file=io.StringIO(), width=TABLE_WIDTH, highlight=False)
        print_table(self._values, console)
        return console.file.getvalue().strip()

    def _repr_html_(self) -> str:
        return page.cell(self._values) if self._values else "<p>No rows were kept apart, so there are no figures.</p>"

    def save(self, file: str | pathlib.Path) -> None:
        """Writes the whole report as one HTML page, with its curves and cautions."""
        write_html(file, self._values, self._history)


def report_of(
    config: Mapping[str, Any],
    data: Dataset,
    probabilities: np.ndarray,
    *,
    parameters: int,
    count: Callable[[int, int], None] | None = None,
    split: str = "held_out",
    judge: Judge | None = None,
    rows: np.ndarray | None = None,
    **extra: Any,
) -> tuple[dict[str, Any], pl.DataFrame]:
    """Builds the report of a split's rows, by default the held-out ones, from their probabilities [n, c], in order.

    `rows`, int [n], are others of the manifest. `parameters`, `count` and `judge` are as for `build_report`; `extra`
    are further top-level keys, which may replace those that this function adds, and None leaves a key out. Returns the
    report of `build_report` with `split_digest`, `majority_accuracy` of classes, `findings` and `card`; and the table
    of predictions that it was made from.
    """
    rows = data.rows(split) if rows is None else rows
    table = datasets.predictions_table(data.manifest, data.groups, probabilities, rows)
    most = data.class_fractions.argmax() if data.manifest.schema.has_classes else None
    facts = {
        "split_digest": splits.split_digest(data.whole_split),
        "majority_accuracy": None if most is None else float(np.mean(table["label"].to_numpy() == most)),
        "findings": [{"code": finding.code, "message": finding.message} for finding in data.findings],
        "card": datasets.describe(data),
    }
    title = data.manifest.title
    options = {"parameters": parameters, "classes": data.classes, "count": count, "split": split, "judge": judge}
    facts = {key: value for key, value in (facts | extra).items() if value is not None}
    return build_report(config, title, table, data.groups, **options, **facts), table


def build_report(
    config: Mapping[str, Any],
    title: str,
    predictions: pl.DataFrame,
    groups: Groups,
    *,
    parameters: int,
    classes: Sequence[str],
    count: Callable[[int, int], None] | None = None,
    split: str = "held_out",
    judge: Judge | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Reports held-out predictions, overall and for each modality combination.

    A set of metrics (M below) of classes is `accuracy, macro_f1, auroc, auprc, ece, brier`, `accuracy_ci, macro_f1_ci,
    auroc_ci, auprc_ci` as `[low, high]`, and `notes`, the reason for each metric that is null or qualified. Where
    tuning rows chose `decision`, factors of probabilities [c] for answers, it has `macro_f1_tuned` with its interval.

    Args:
      config: the run's config as a dictionary; its method, its seed, which seeds the bootstrap too, its digest and
        `eval.bootstrap` are read.
      title: title of the data set; the title of a twin says that it is synthetic.
      predictions: one row a held-out sample, with columns `sample_id`, `patient_id`, `label` (class index),
        `group` (modality names joined with `+` in declared order) and `p_0` … `p_{c-1}` (probabilities); others,
        such as one bool column a modality, are not read, but attributes (`attribute_NAME`) are. Of other tasks as
        `datasets.predictions_table` makes it.
      groups: the combinations seen in training.
      parameters: number of trained scalars.
      classes: names of the classes.
      split: what these samples are: `held_out`, `tuning` where nothing was held out, or `new rows`.
      judge: what the task of the predictions measures, by default that of classes; its M has figures, intervals and
        `notes` in the same form.
      count: called with the number of sets of samples that have their metrics, and the number of all.
      **extra: further top-level keys, merged as they are. `page.context` lists those that the HTML page reads.

    Returns:
      A JSON-clean dictionary, with `task` (`name`, `headline`, `more`, `titles`, `fitted`) unless that is classes, and
      `curves` of survival (`by_risk` and, by horizon, `calibration`, see `survival.Evaluation`) and of numbers
      (`by_prediction`, see `regression.by_prediction`, and what is `typical`, mean or median): `data, method, seed,
      config_digest, split, parameters, n, n_patients, modalities, classes, label_counts` (held-out samples of each
      class), `overall` M, `groups` (each combination of training, most frequent first, then those only seen held out,
      which have `unseen: true`: `group, modalities, train_fraction, tail, n, n_patients, n_train`, M), `head_mean`,
      `tail_mean` (unweighted means over groups; no intervals), `head_pooled`, `tail_pooled` (M of all their samples
      together), `worst_group` (lowest accuracy among the groups with at least 10 held-out samples: `group, n`, M) and
      `calibration` (the reliability curve) and, of classes, `deferral` (`conformal.deferral`). Where the predictions
      have attributes, `attributes`, `attribute_gaps` and `attribute_presence` as `evaluation.fairness` returns them.

    Raises:
      ValueError: `extra` names a key of the contract, or the predictions are not as described.
    """
    judge = judge or of_classes()
    sample = _Sample(predictions, config["seed"], config["eval"]["bootstrap"], judge)
    if count:
        done, total = itertools.count(1), len({*groups.names, *sample.group}) + 3  # and all, head, tail
        sample.on_metrics = lambda: count(next(done), total)
    report = {
        "data": title,
        "method": config["method"],
        "seed": int(config["seed"]),
        "config_digest": files.config_digest(config),
        "split": split,
        "parameters": int(parameters),
        "n": len(sample.labels),
        "n_patients": len(np.unique(sample.patients)),
        "modalities": list(groups.modalities),
        "classes": list(classes),
        "label_counts": [],
        **_by_combination(sample, groups, judge),
        **_of_task(sample, judge),
        **sample.by_attribute(fairness.columns_of(predictions), groups, judge),
    }
    if clash := sorted(report.keys() & extra.keys()):
        raise ValueError(f"extra may not replace {', '.join(clash)}")
    return report | extra


def _by_combination(sample: "_Sample", groups: Groups, judge: Judge) -> dict[str, Any]:
    """Returns the figures of all samples, of each combination, of common and of rare ones, and of the worst."""
    rows = _group_rows(sample, groups)
    tail_names = {row["group"] for row in rows if row["tail"]}
    in_tail = np.array([name in tail_names for name in sample.group], bool)
    return {
        "overall": sample.metrics(np.ones(len(in_tail), bool)),
        "groups": rows,
        "head_mean": _mean([row for row in rows if not row["tail"]], judge),
        "tail_mean": _mean([row for row in rows if row["tail"]], judge),
        "head_pooled": {"n": int((~in_tail).sum()), **sample.metrics(~in_tail)},
        "tail_pooled": {"n": int(in_tail.sum()), **sample.metrics(in_tail)},
        "worst_group": _worst(rows, judge),
    }


def _of_task(sample: "_Sample", judge: Judge) -> dict[str, Any]:
    """Returns what a report has of classes, and what it has of other tasks."""
    found: dict[str, Any] = {"calibration": []}
    if judge.task in ("classes", "ordinal"):
        counts = np.bincount(sample.labels, minlength=sample.probabilities.shape[1]).tolist()
        found = {"label_counts": counts}
        found["calibration"] = metrics.reliability_curve(sample.labels, sample.probabilities)
        found["deferral"] = conformal.deferral(sample.labels, sample.probabilities)
    if judge.decision:
        found["decision"] = list(judge.decision)
    if judge.task != "classes":
        about = {"headline": judge.headline, "more": judge.more, "titles": dict(judge.titles)}
        about |= {"fitted": dict(judge.fitted)} if judge.fitted else {}
        found["task"] = {"name": judge.task, **about}
        found |= {"curves": curves} if (curves := judge.drawn(sample.labels, sample.probabilities)) else {}
    return found


def pooled_metrics(
    predictions: pl.DataFrame,
    rows: np.ndarray,
    seed: int,
    resamples: int = intervals.RESAMPLES,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Returns `n` and M (see `build_report`) of all held-out samples that `rows`, bool [n], selects."""
    return {"n": int(rows.sum()), **_Sample(predictions, seed, resamples, judge).metrics(rows)}


class _Sample:
    """Held-out predictions with their patients [n], which computes metrics with intervals of selected rows."""

    def __init__(self, predictions: pl.DataFrame, seed: int, resamples: int, judge: Judge | None = None) -> None:
        samples = Samples.of(predictions)
        self.labels, self.probabilities, self.group = samples.labels, samples.probabilities, samples.groups
        self.patients = predictions["patient_id"].to_numpy()
        options = {"seed": seed, "resamples": resamples}
        self._options = options
        self._figures = (judge or of_classes()).evaluation(self.labels, self.probabilities, self.patients, **options)
        self.on_metrics: Callable[[], None] = lambda: None  # called after each set of metrics

    def metrics(self, rows: np.ndarray) -> dict[str, Any]:
        """Returns M of the samples that `rows`, bool [n], selects."""
        found = self._figures(rows)
        self.on_metrics()
        return found

    def by_attribute(self, columns: fairness.Columns, groups: Groups, judge: Judge) -> dict[str, Any]:
        """Returns what a report says of attributes; nothing without any."""
        if not columns or not len(self.labels):
            return {}
        there = np.array([[name in group.split("+") for name in groups.modalities] for group in self.group])
        rows = fairness.figures(columns, self._figures, self.group, self.patients)
        return {
            "attributes": rows,
            "attribute_gaps": fairness.gaps(rows, judge.bounded),
            "attribute_presence": fairness.presence(columns, there, groups.modalities, self.patients, **self._options),
        }


def _group_rows(sample: _Sample, groups: Groups) -> list[dict[str, Any]]:
    """Returns a row for each combination: those of training, the most frequent first, then those only held out."""
    seen = list(groups.names)
    trained = sum(int(count) for count in groups.train_counts)
    unseen = sorted(set(sample.group) - set(seen))
    order = sorted(range(len(seen)), key=lambda g: (-int(groups.train_counts[g]), g))
    rows = []
    for name, g in [(seen[g], g) for g in order] + [(name, None) for name in unseen]:
        inside = sample.group == name
        count = 0 if g is None else int(groups.train_counts[g])
        parts = set(name.split("+"))
        rows.append(
            {
                "group": name,
                "modalities": [m for m in groups.modalities if m in parts],
                "train_fraction": count / trained if trained else 0.0,
                "tail": True if g is None else bool(groups.tail[g]),
                "n": int(inside.sum()),
                "n_patients": len(np.unique(sample.patients[inside])),
                "n_train": count,
                **({"unseen": True} if g is None else {}),
                **sample.metrics(inside),
            }
        )
    return rows


def _mean(rows: Sequence[dict[str, Any]], judge: Judge) -> dict[str, Any]:
    """Returns the unweighted mean of each metric over the groups that have it."""
    if not rows:
        return dict.fromkeys(judge.names) | {"notes": dict.fromkeys(judge.names, "no such group")}
    values: dict[str, Any] = dict.fromkeys(judge.names)
    bounds = [f"{name}_ci" for name in judge.bounded]
    notes = dict.fromkeys(bounds, "a mean over groups has no interval here; the pooled figures have")
    for name in judge.titles:
        known = [row[name] for row in rows if row[name] is not None]
        values[name] = float(np.mean(known)) if known else None
        if len(known) < len(rows):
            notes[name] = f"mean over {len(known)} of {len(rows)} groups; the others have no such figure"
    return values | {"notes": notes}


def _worst(rows: Sequence[dict[str, Any]], judge: Judge) -> dict[str, Any]:
    """Returns the group of worst headline with enough samples; of equal ones the group with more samples."""
    ranked = [row for row in rows if row["n"] >= MIN_WORST and row[judge.headline] is not None]
    if not ranked:
        reason = f"no group has {MIN_WORST} held-out samples"
        return {"group": None, "n": 0, **dict.fromkeys(judge.names), "notes": dict.fromkeys(judge.names, reason)}
    sign = 1 if judge.more else -1
    worst = min(ranked, key=lambda row: (sign * row[judge.headline], -row["n"]))
    return {name: worst[name] for name in ("group", "n", *judge.names, "notes")}


def write_json(path: str | pathlib.Path, report: dict[str, Any]) -> None:
    """Writes the report whole or not at all; a NaN in it is a ValueError, since JSON has none."""
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    files.write_text(pathlib.Path(path), text + "\n")


def write_html(
    path: str | pathlib.Path,
    report: Mapping[str, Any],
    history: Sequence[dict[str, Any]],
    made: Mapping[str, str] = {},
) -> None:
    """Writes the self-contained HTML page of a report from `build_report` and the records of metrics.jsonl in order.

    `made` has what the page says of its making, by title.

    Of these `step`, `stage`, `train/loss`, `eval/loss`, `eval/accuracy`, `eval/auroc`, `dro/lambda/<group>` and
    `gate/open_rate` are read.
    """
    files.write_text(pathlib.Path(path), page.render(report, history, made))


def print_table(report: dict[str, Any], console: "rich.console.Console | None" = None) -> None:
    """Prints the metrics of each group and of the whole, at most 100 columns wide, without colours outside a terminal.

    The default console is the standard output.
    """
    import rich.box
    import rich.console
    import rich.table

    if console is None:
        file = texts.raw(sys.stdout)
        console = rich.console.Console(file=file, highlight=False)
        if not console.is_terminal or console.width > TABLE_WIDTH:
            console = rich.console.Console(file=file, width=TABLE_WIDTH, highlight=False)
        console.on_broken_pipe = _reraise
    rows, titles = report["groups"], page.titles(report)
    shown = {name: titles[name] for name in page.leading(report) if name != TUNED}
    lead = next(iter(shown.values()))
    listed = rows if len(rows) <= TABLE_ROWS else rows[: TABLE_ROWS - 1]
    names, abbreviated = short_names((row["modalities"] for row in listed), report["modalities"], NAME_WIDTH)
    legend = [f"{short} = {name}" for name, short in abbreviated.items()]
    table = rich.table.Table(
        title=_plain(f"{report['method']} on {report['data']}: {report['n']} {page.SAMPLES[report['split']]}"),
        caption=_plain("; ".join([f"{plain_title(lead)} with 95 % interval", "tail = rare in training", *legend])),
        box=rich.box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("combination", overflow="fold", min_width=12)
    for heading in ("train", "n train", "n", "", *map(plain_title, shown.values())):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=heading != plain_title(lead))
    for row, name in zip(listed, names, strict=True):
        table.add_row(*_cells(row, name), *_metric_cells(row, shown))
    if rest := rows[len(listed) :]:
        share, n_train, n = (sum(row[key] for row in rest) for key in ("train_fraction", "n_train", "n"))
        table.add_row(f"{len(rest)} more in report.json", f"{share:.1%}", str(n_train), str(n))
    table.add_section()
    table.add_row("all samples", "", "", str(report["n"]), "", *_metric_cells(report["overall"], shown))
    for side in ("head", "tail"):
        pooled = report[f"{side}_pooled"]
        table.add_row(f"{side}, pooled", "", "", str(pooled["n"]), "", *_metric_cells(pooled, shown))
        table.add_row(f"{side}, mean of groups", "", "", "", "", *_metric_cells(report[f"{side}_mean"], shown))
    console.print(table)
    if TUNED in titles:
        everyone, tail = (_metric_cells(report[part], [TUNED])[0] for part in ("overall", "tail_pooled"))
        console.print(f"macro-F1 of answers that tuning rows chose for it: {everyone}, of the tail {tail}")


def _reraise() -> None:
    """Leaves a pipe that nobody reads to the command, where rich would end the process with exit code 1."""
    raise


def _cells(row: dict[str, Any], name: str) -> list[str]:
    """Returns one group's row of the terminal table."""
    mark = "unseen" if row.get("unseen") else "tail" if row["tail"] else ""
    share = f"{row['train_fraction']:.1%}"
    return [_plain(name), share, str(row["n_train"]), str(row["n"]), mark]


def _plain(text: str) -> str:
    import rich.markup

    return rich.markup.escape(texts.visible(text))


def plain_title(title: str) -> str:
    """Returns a title as the heading of a column of the terminal, in ASCII; words begin small, names do not."""
    small = title[0].lower() + title[1:] if title[1:2].islower() and "'" not in title else title
    return small.replace("²", "2")


def _metric_cells(values: dict[str, Any], names: Iterable[str]) -> list[str]:
    """Returns figures, the first with its interval, '-' for null, in ASCII, which every terminal shows."""
    first, *rest = names
    shown, bounds = "-" if values[first] is None else f"{values[first]:.3f}", values[f"{first}_ci"]
    if bounds is not None:
        shown += f" ({bounds[0]:.2f}-{bounds[1]:.2f})"
    return [shown, *("-" if values[k] is None else f"{values[k]:.3f}" for k in rest)]
