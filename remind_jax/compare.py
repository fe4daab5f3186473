"""Finished runs side by side: figures of every combination, paired differences, calibration.

    remind compare RUN1 RUN2 … --out=DIR [--baseline=NAME] [--resamples=2000]

    RUN          folder of a finished or adapted run; runs that differ in their seed alone count as
                 one method
    --out=DIR    for index.html, table.md, table.tex, runs.csv, groups.csv, differences.csv and
                 calibration.csv; attributes.csv, where runs have attributes
    --resamples  of the bootstrap, 2000 by default
    --baseline   what differences are to, as the table calls it; the method of the first run by
                 default

A method is called by its name, and by the name of its folder as well where two would be called
alike. Differences are drawn for the same held-out samples under the same seed; their intervals are
those of a bootstrap over patients.
"""

import pathlib

from remind_jax import cli
from remind_jax.errors import UserError, did_you_mean
from remind_jax.studies import page, results
from remind_jax.studies.comparison import RESAMPLES


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    parser = cli.Parser("remind compare RUN1 RUN2 … --out=DIR [--baseline=NAME]")
    parser.add_argument("runs", nargs="*", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--baseline", default="")
    parser.add_number("--resamples", RESAMPLES, 1)
    options = parser.parse_args(arguments)
    if options.out is None:
        raise UserError("nowhere to write: give a folder as --out=DIR")
    outcomes = results.read_outcomes(options.runs)
    methods = list(dict.fromkeys(outcome.method for outcome in outcomes))
    baseline = options.baseline or methods[0]
    if baseline not in methods:
        hint = did_you_mean(baseline, methods)
        raise UserError(f"--baseline={baseline} is no method of these runs{hint}; they are {', '.join(methods)}")
    page.tabulate(options.out, outcomes, methods, [baseline], resamples=options.resamples)


if __name__ == "__main__":
    cli.run(main, __doc__)
