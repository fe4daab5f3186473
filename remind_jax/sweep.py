"""Trains several methods over several seeds and tabulates them, with paired differences to a baseline.

    remind sweep --config=phenomenon --methods=soft_moe,remind --seeds=0,1,42 --workdir=DIR

    --config=NAME, --config.KEY=VALUE, --quick    as in remind train; arena: docs/arena_run.md
    --methods=all        every method and plain model that learns such labels, or the table's
                         variants; arena: those of other papers (docs/arena_methods.md)
    --seeds=0,1,42       of the runs; a seed sets split, initial weights and order
    --baseline=A,B       what differences are drawn to, in turn; soft_moe, else the first method
    --table=4            the paper's ablation (4), sensitivity analysis (16), or that of remind_plus
    --jobs=1             runs at a time, each in a process with its share of GPUs or processor cores
    --share              others, here or on other machines, run the same command in the same folder
    --engine=ray         as many runs at a time as a Ray cluster has room for (docs/scaling.md)
    --address=auto       of the cluster, auto or HOST:PORT, whose machines all share the folder;
                         without it a Ray of this machine is started
    --cpus=1 --gpus=1    of each run; plain models take no GPU; --gpus=0.5 lets two runs share one
    --retries=2          how often a run goes on elsewhere whose machine or process was lost
    --on-changed-data=restart    runs whose data have changed begin anew; else they are refused
    --resamples=2000     bootstrap replicates of the differences
    --search=tpe         search the keys of every network first, out of fold (docs/search.md), in
                         --trials=20 of --space=optim.lr=1e-4..1e-2:log,model.width=32|64
    --plan               only say what the searches would cost

Finished runs are kept and stopped ones go on: the same command continues a sweep. A run that fails
does not stop the others. Processes that share a sweep take runs in turn; the last one to end writes
the tables, which hold runs on the same data only: runs.csv, groups.csv, differences.csv, table.md,
table.tex, index.html and sweep.json (command, time, machine) under DIR, beside a folder a run.
"""

import argparse
import pathlib
from collections.abc import Sequence

from remind_jax import cli
from remind_jax.errors import UserError
from remind_jax.studies import entries

TRIALS = 20


def parse(arguments: Sequence[str]) -> tuple[entries.Setup, pathlib.Path, argparse.Namespace]:
    """Reads what to run, the folder of the sweep, and all options. Raises UserError: something cannot be read."""
    parser = cli.Parser("remind sweep --config=NAME --workdir=DIR …; see --help")
    parser.add_argument("--workdir", default="")
    parser.add_argument("--search", choices=("", "tpe"), default="")
    parser.add_number("--trials", TRIALS, 1)
    parser.add_argument("--space", default="")
    parser.add_argument("--plan", action="store_true")
    entries.add_options(parser)
    values, rest = parser.parse_known_args(arguments)
    if not values.workdir:
        raise UserError("no workdir: give one as --workdir=DIR")
    if not values.search and (values.space or values.plan or values.trials != TRIALS):
        raise UserError("--trials, --space and --plan are of a search: give --search=tpe, too")
    if values.search and values.table:
        raise UserError(f"--table={values.table} sets keys that --search would change: name methods instead")
    return entries.read_setup(values, rest), pathlib.Path(values.workdir), values


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    if given := entries.arena_of(arguments):
        from remind_jax.studies import arena, arena_page

        return arena.main(given, arguments, arena_page.write)
    setup, workdir, values = parse(arguments)
    planned = setup.plan(workdir)
    from remind_jax.studies import runner, search  # which takes seconds; a mistake is told at once

    asked = search.Asked(values.trials, values.space, setup.given.changes)
    if values.plan:
        print(search.plan(runner.learning(planned, setup.options), asked))
    elif values.search:
        search.run(planned, workdir, setup.options, asked, arguments)
    else:
        runner.run(planned, workdir, setup.options, arguments)


if __name__ == "__main__":
    cli.run(main, __doc__)
