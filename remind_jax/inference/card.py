"""The model card of an exported run: model, use, data, metrics, limits and duties.

Sections follow Mitchell et al. 2019, "Model cards for model reporting" (arXiv 1810.03993).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from remind_jax.evaluation import page
from remind_jax.inference.predictor import Predictor
from remind_jax.runtime import files, records, texts

CREDENTIALED = (
    "The data are under a credentialed data use agreement. Weights and vocabularies made from them may count as "
    "derived data: pass them on only as the agreement allows."
)
DUTIES = {
    "nhanes": "NHANES is in the public domain (US CDC/NCHS); its terms forbid attempts to identify a person.",
    "uci_heart": "UCI heart disease is CC BY 4.0: name Janosi, Steinbrunn, Pfisterer and Detrano (1989).",
    "support2": "SUPPORT2 is CC BY 4.0: name Knaus et al. (1995) and the UCI Machine Learning Repository.",
    "gbsg2": "GBSG2 came with lifelines, which is under the MIT licence: name Schumacher et al. (1994).",
    "synthetic": "The data are made by the program; they bring no duties.",
    "eicu": CREDENTIALED,
    "mimic_iv": CREDENTIALED,
    "embed": CREDENTIALED,
    "fprm": CREDENTIALED,
    "manifest": "The program does not know the terms of these data. Ask their owner whether weights and vocabularies "
    "made from them may be passed on.",
}
"""Duties, by data.source, of those who pass on a model made from the data."""


def render(model: Predictor) -> str:
    """Returns the card of a run as Markdown."""
    sections = (_model(model), _use(model), _data(model), _metrics(model), _limits(model), _duties(model))
    return "\n".join(line for section in sections for line in section)


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heading, ["---"] + ["---:"] * (len(heading) - 1), *rows]
    return ["| " + " | ".join(texts.markdown(cell) for cell in line) + " |" for line in lines] + [""]


def _model(model: Predictor) -> Iterator[str]:
    config, report = model.config, model.report
    environment = records.read(model.path / "environment.json", files.ENVIRONMENT, "start the run again")
    packages = environment.get("packages", {})
    yield f"# {config.method} on {texts.markdown(report['data'])}\n"
    what = texts.markdown(", ".join(model.classes) or model.task.name)
    yield f"Predicts {texts.code(model.schema.label)} ({what}) from any combination of: " + ", ".join(
        f"{texts.markdown(name)} ({spec.kind})" for name, spec in model.preprocessor.inputs.items()
    )
    yield (
        f"\n- Method `{config.method}` ({config.fusion.kind}, {config.objective.kind}), {report['parameters']:,} "
        f"parameters, seed {config.seed}, config {texts.markdown(report['config_digest'])}"
    )
    version = packages.get("remind-jax") or "of unknown version"
    yield texts.markdown(f"- Made with remind-jax {version}, jax {packages.get('jax')}")
    if "weights" in report:
        yield f"- {texts.markdown(page.origin_text(report))}"
    if model.prior_power:
        power = f"{model.prior_power:g}, chosen on tuning rows"
        yield f"- Probabilities are divided by the class prior to the power {power}"
    yield ""


def _use(model: Predictor) -> Iterator[str]:
    yield "## Use\n"
    if page.is_synthetic(model.report["data"]):
        yield "**Made from synthetic data: it says nothing about any patient.**\n"
    yield "For research. It is no medical device, was not validated at another site or a later time by this program,"
    yield "and must not decide about a patient.\n"
    yield "`load.py` and `encode.py` predict from rows of the raw table: `predict(encode(rows))`. `python load.py`"
    yield "checks this folder by the row of `example.json`, which is made up.\n"


def _data(model: Predictor) -> Iterator[str]:
    card, report = model.report.get("card", {}), model.report
    yield "## Data\n"
    if {"splits", "modalities"} <= card.keys():
        rows = [(name, f"{s['n']:,}", f"{s['patients']:,}") for name, s in card["splits"].items()]
        yield from _table(("split, by patient", "samples", "patients"), rows)
        if rows := [(c["name"], f"{100 * c['train_fraction']:.1f} %") for c in card.get("classes", ())]:
            yield from _table(("class", "of training samples"), rows)
        rows = [(m["name"], m["kind"], f"{100 * m['present_fraction']:.1f} %") for m in card["modalities"]]
        yield from _table(("modality", "kind", "present in"), rows)
    else:
        yield f"Trained on {int(model.label_counts.sum()):,} samples; {report['n']:,} held out.\n"


def _metrics(model: Predictor) -> Iterator[str]:
    report = model.report
    yield f"## Figures on {report['n']:,} held-out samples of {report['n_patients']:,} patients\n"
    yield "95 % intervals: bootstrap over patients, exact binomial for small groups. A dash cannot be computed.\n"
    titles = page.titles(report)
    heading = ("samples", "trained on", "n", *titles.values())
    rows = [("all", f"{int(model.groups.train_counts.sum()):,}", report["n"], *_cells(report["overall"], titles))]
    for key, title in (("head_pooled", "common combinations"), ("tail_pooled", "rare combinations")):
        rows.append((title, "", report[key]["n"], *_cells(report[key], titles)))
    for row in report["groups"]:
        mark = ", unseen" if row.get("unseen") else ", rare" if row["tail"] else ""
        rows.append((row["group"] + mark, f"{row['n_train']:,}", row["n"], *_cells(row, titles)))
    yield from _table(heading, rows)


def _cells(values: dict[str, Any], names: Iterable[str]) -> list[str]:
    def cell(name: str) -> str:
        value, bounds = values[name], values.get(f"{name}_ci")
        return "-" if value is None else f"{value:.3f}" + (f" ({bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else "")

    return [cell(name) for name in names]


def _limits(model: Predictor) -> Iterator[str]:
    yield "## Where not to trust it\n"
    for lead, text in page.cautions(model.report):
        yield f"- **{texts.markdown(lead)}.** {texts.markdown(text)}".replace("..", ".")
    yield "- **Other combinations.** For one not in the table the output `seen` is false: what all combinations share"
    yield "  predicts, and nothing here says how well.\n"


def _duties(model: Predictor) -> Iterator[str]:
    yield "## Duties\n"
    yield "- Code: Apache-2.0. Cite REMIND (Wu et al., arXiv 2603.00046) for the method."
    data = model.config.data
    twin = page.is_synthetic(model.report["data"])
    yield f"- Data: {DUTIES['synthetic'] if twin else DUTIES.get(data.source, DUTIES['manifest'])}"
    used = sorted({value for value in model.config.pretrained.to_dict().values() if value})
    if used:
        yield f"- Encoders began as {texts.markdown(', '.join(used))}: the licence of those weights binds these."
    if not twin and any(spec.vocabulary for spec in model.preprocessor.inputs.values()):
        yield (
            "- `preprocessing.json` holds words or codes of training rows, and notes may hold names. Read it before "
            "you pass the folder on."
        )
    yield ""
