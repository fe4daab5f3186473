"""Trains several methods over several seeds and tabulates them, with paired differences to a baseline.

    remind sweep --config=phenomenon --methods=soft_moe,remind --seeds=0,1,42 --workdir=DIR

    --config=NAME, --config.KEY=VALUE, --quick    as in remind train, of every run
    --methods=all        every method and plain model of remind_jax/methods.py, or the table's
                         variants
    --seeds=0,1,42       of the runs; a seed sets split, initial weights and order
    --baseline=A,B       what differences are drawn to, each in turn; soft_moe where it is run, else
                         the first method
    --table=4            the paper's ablation (4), its sensitivity analysis (16) or that of
                         remind_plus, not all methods
    --jobs=1             runs at a time, each in a process with its share of GPUs or processor cores
    --share              other processes, here or on other machines, run the same command in the
                         same folder
    --engine=ray         as many runs at a time as a Ray cluster has room for, not processes of this
                         machine (local); pip install ray
    --address=auto       of the cluster, auto or HOST:PORT, on one of its machines, which all share
                         the folder; without it a Ray of this machine is started
    --cpus=1 --gpus=1    of each run; plain models take no GPU; --gpus=0.5 lets two runs share one
    --retries=2          how often a run goes on elsewhere whose machine or process was lost
    --on-changed-data=restart    runs whose data have changed begin anew; else they are refused
    --resamples=2000     bootstrap replicates of the differences

Finished runs are kept and stopped ones go on: the same command continues a sweep. A run that fails
does not stop the others. Processes that share a sweep take runs in turn, and those of a process
that was killed; the last one to end writes the tables, which hold runs on the same data only.

Writes runs.csv, groups.csv, differences.csv, table.md, table.tex, index.html and sweep.json (the
command, the time that it took and the machine) under DIR, and a folder a run.
"""

import pathlib
from collections.abc import Sequence

from remind_jax import cli
from remind_jax.errors import UserError
from remind_jax.studies import entries


def parse(arguments: Sequence[str]) -> tuple[entries.Setup, pathlib.Path]:
    """Reads what to run, and the folder of the sweep. Raises UserError for anything that cannot be read."""
    parser = cli.Parser("remind sweep --config=NAME --workdir=DIR …; see --help")
    parser.add_argument("--workdir", default="")
    entries.add_options(parser)
    values, rest = parser.parse_known_args(arguments)
    if not values.workdir:
        raise UserError("no workdir: give one as --workdir=DIR")
    return entries.read_setup(values, rest), pathlib.Path(values.workdir)


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    setup, workdir = parse(arguments)
    from remind_jax.studies import runner  # which takes seconds; a mistake is told at once

    runner.run(setup.plan(workdir), workdir, setup.options, arguments)


if __name__ == "__main__":
    cli.run(main, __doc__)
