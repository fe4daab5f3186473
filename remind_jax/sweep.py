"""Trains several methods over several seeds and tabulates them, with paired differences to the first method.

    python -m remind_jax.sweep --config=configs/phenomenon.py --methods=soft_moe,remind --seeds=0,1,42 --workdir=DIR

`--methods=all` is every method of configs/common.py. Finished runs are kept: the same command goes on where it stopped.
Writes runs.csv (one row a run) and table.md under DIR.
"""

import csv
import os
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from remind_jax import cli
from remind_jax.errors import UserError

# Figures of a run, with what they are; all in percent.
FIGURES = {
    "overall": "accuracy of the combinations weighted by their train frequency",
    "worst": "lowest accuracy of a combination with at least 10 held-out samples",
    "tail": "mean accuracy of the tail combinations",
    "tail_f1": "mean macro-F1 of the tail combinations",
    "auroc": "AUROC of all held-out samples",
    "tail_auroc": "AUROC of the tail's samples together",
}


class Difference(NamedTuple):
    """Paired difference to the baseline over seeds: mean, sample standard deviation, p of a paired t-test, wins."""

    mean: float
    sd: float | None
    p: float | None
    wins: int
    n: int


def run_figures(report: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of one run in percent, from its report; None where the report has none."""
    groups = [row for row in report["groups"] if row["accuracy"] is not None and row["train_fraction"] > 0]
    covered = sum(row["train_fraction"] for row in groups)
    values = {
        "overall": sum(row["train_fraction"] * row["accuracy"] for row in groups) / covered if covered else None,
        "worst": report["worst_group"]["accuracy"],
        "tail": report["tail_mean"]["accuracy"],
        "tail_f1": report["tail_mean"]["macro_f1"],
        "auroc": report["overall"]["auroc"],
        "tail_auroc": report["tail_pooled"]["auroc"],
    }
    return {name: None if value is None else 100.0 * value for name, value in values.items()}


def mean_and_sd(values: Iterable[float | None]) -> tuple[float, float | None] | None:
    """Mean and sample standard deviation (ddof 1) of the values that are there; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def paired_difference(values: Sequence[float | None], baseline: Sequence[float | None]) -> Difference | None:
    """Difference of a method to the baseline over the seeds that both have; p is uncorrected."""
    pairs = [(v, b) for v, b in zip(values, baseline, strict=True) if v is not None and b is not None]
    if not pairs:
        return None
    differences = [v - b for v, b in pairs]
    mean, wins = statistics.fmean(differences), sum(d > 0 for d in differences)
    if len(pairs) < 2:
        return Difference(mean, None, None, wins, len(pairs))
    from scipy import stats

    sd = statistics.stdev(differences)
    p = float(stats.ttest_rel(*zip(*pairs, strict=True)).pvalue) if sd > 0 else None
    return Difference(mean, sd, p, wins, len(pairs))


def _pick(rows: Sequence[Mapping[str, Any]], method: str, seeds: Sequence[int], name: str) -> list[float | None]:
    found = {row["seed"]: row[name] for row in rows if row["method"] == method}
    return [found.get(seed) for seed in seeds]


def table(rows: Sequence[Mapping[str, Any]], methods: Sequence[str], seeds: Sequence[int]) -> str:
    """Markdown: mean ± sample standard deviation of each figure, and paired differences to the first method.

    Args:
      rows: one a run, with `method`, `seed` and the names of `FIGURES`.
      methods: in the order of the table; the first is the baseline.
      seeds: of the sweep.
    """
    names = list(FIGURES)
    lines = [f"| method | runs | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for method in methods:
        cells = [_cell(mean_and_sd(_pick(rows, method, seeds, name))) for name in names]
        lines.append(f"| {method} | {sum(row['method'] == method for row in rows)} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Difference to `{methods[0]}` (p of a paired t-test over seeds, uncorrected; seeds with a gain):",
        "",
    ]
    lines += [f"| method | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for method in methods[1:]:
        cells = []
        for name in names:
            values = (_pick(rows, chosen, seeds, name) for chosen in (method, methods[0]))
            cells.append(_difference_cell(paired_difference(*values)))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += ["", *(f"- {name}: {meaning}, in percent" for name, meaning in FIGURES.items())]
    return "\n".join(lines) + "\n"


def _cell(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return "-"
    return f"{value[0]:.1f}" if value[1] is None else f"{value[0]:.1f} ± {value[1]:.1f}"


def _difference_cell(value: Difference | None) -> str:
    if value is None:
        return "-"
    p = "-" if value.p is None else "<.001" if value.p < 0.001 else f"{value.p:.3f}"
    return f"{value.mean:+.1f} (p {p}; {value.wins}/{value.n})"


def _parse(arguments: Sequence[str]) -> tuple[list[str], list[str], list[int], pathlib.Path]:
    """Splits the command line into arguments of single runs, methods, seeds and workdir."""
    values = flags.FlagValues()
    flags.DEFINE_string("methods", "all", "methods, separated by commas", flag_values=values)
    flags.DEFINE_string("seeds", "0,1,42", "seeds, separated by commas", flag_values=values)
    flags.DEFINE_string("workdir", "", "folder of the sweep", flag_values=values)
    try:
        rest = values(["remind_jax", *arguments], known_only=True)[1:]
        seeds = [int(seed) for seed in values.seeds.split(",")]
    except (flags.Error, ValueError) as error:
        raise UserError(f"cannot read the command line: {error}") from error
    if not values.workdir:
        raise UserError("no workdir: give one as --workdir=DIR")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds={values.seeds} names a seed twice")
    file = cli.config_file(rest)
    known = cli.load_module(file, "common").METHODS
    methods = known if values.methods == "all" else values.methods.split(",")
    return rest, list(dict.fromkeys(methods)), seeds, pathlib.Path(values.workdir)


def _with_method(arguments: Sequence[str], method: str) -> list[str]:
    """The arguments of a run with the method put into the config's argument string."""
    result = list(arguments)
    for i, argument in enumerate(result):
        if argument.startswith("--config="):
            path, _, given = argument.partition(":")
            kept = [part for part in given.split(",") if part and not part.startswith("method=")]
            result[i] = f"{path}:{','.join([*kept, f'method={method}'])}"
    return result


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    rest, methods, seeds, workdir = _parse(arguments)
    runs = [(seed, method) for seed in seeds for method in methods]
    # Every command line is read before the first run starts, so that a mistake costs nothing.
    configs = {
        (seed, method): cli.parse_config([*_with_method(rest, method), f"--config.seed={seed}"])[0]
        for seed, method in runs
    }
    from remind_jax import progress
    from remind_jax.train import train_and_evaluate

    rows, failed = [], []
    with progress.make(len(runs), "runs") as bar:
        for done, (seed, method) in enumerate(runs):
            bar.advance(done, f"{method} seed {seed}")
            try:
                report = train_and_evaluate(configs[seed, method], workdir / f"{method}-seed{seed}", verbose=False)
            except (UserError, RuntimeError, FloatingPointError) as error:
                failed.append(f"{method} seed {seed}: {error}")
                bar.say(f"failed: {failed[-1]}")
                continue
            rows.append({"method": method, "seed": seed, **run_figures(report)})
            bar.say(f"{method:<26} seed {seed:<4} " + _summary(rows[-1]))
    if not rows:
        raise UserError(f"no run finished; the first failure was {failed[0]}")
    _write(workdir, rows, table(rows, methods, seeds))
    print(table(rows, methods, seeds))
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}")


def _summary(row: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {row[name]:.1f}" for name in FIGURES if row[name] is not None)


def _write(workdir: pathlib.Path, rows: Sequence[Mapping[str, Any]], text: str) -> None:
    temporary = workdir / "runs.csv.tmp"
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["method", "seed", *FIGURES])
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, workdir / "runs.csv")
    (workdir / "table.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    cli.run(main, __doc__)
