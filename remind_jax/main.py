"""Trains a method on a data set, evaluates it on held-out patients and writes a report.

    python -m remind_jax.main --config=configs/nhanes.py[:method=NAME,size=SIZE] [--config.KEY=VALUE …] [--workdir=DIR]

Running the same command again resumes a stopped run. The keys are in configs/common.py.
"""

from remind_jax import cli, cluster
from remind_jax.errors import UserError


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    config, workdir = cli.parse_config(arguments)
    if (place := cluster.here()).processes > 1:
        raise UserError(f"{place.processes} processes were started, and training has one: start one")
    from remind_jax.train import train_and_evaluate

    train_and_evaluate(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__)
