"""Adapts a finished run to modality combinations that it never saw (REMIND section 5, Q4, figure 5).

    remind adapt --workdir=RUN --data=DIR --unfreeze=router,head

    --data=DIR      a manifest folder with the run's modalities and classes, prepared with what the
                    run has fitted; by default those rows of the run's own data that data.leave_out
                    kept from training
    --unfreeze=…    nothing (zero-shot) | all | a list of
                      head            the prediction head
                      router          what the new combinations have for themselves: residual
                                      routers and vectors for what is missing; and the shared router
                                      where a method has no others
                      shared_router   the router of all combinations
                      experts=SHARE   above 0 and up to 1: of each block's experts those that the
                                      new rows use most
    --rows=new      new | all: whether rows of combinations that the run knows train as well
    --steps=300     of training
    --lr=0          highest learning rate, which falls to zero along a cosine; 0 is the run's
    --patience=0    evaluations (20 in all) without improvement before training ends; 0 never
    --out=DIR       RUN/adapted by default; must not exist

A new combination begins with residual routers of zero and the mean of the trained vectors, as the
run treats any combination that it does not know; with fusion.router_rank its modalities have
composed a router for it already, and `router` is refused. What is not named stays as it is, to the
bit. Of the weights before training and at every evaluation those with the lowest loss (the run's,
averaged over rows) on the tuning rows are taken; with fewer than 30 tuning rows those of the last
step. Writes report.json, predictions.parquet, metrics.jsonl, config.json and checkpoints/, when all
is done.
"""

import math
import pathlib
from collections.abc import Sequence

from remind_jax import cli
from remind_jax.errors import UserError
from remind_jax.evaluation import report as reports
from remind_jax.runtime import progress
from remind_jax.training.adaptation import Adapter, adapt, open_single, own_data, prepare, read_folder, summary
from remind_jax.training.unfreezing import ROWS, Choice, parse_unfreeze


def parse(arguments: Sequence[str]) -> tuple[pathlib.Path, str, pathlib.Path, Choice]:
    """Reads run, data (may be empty), folder to write and choice. Raises UserError for anything that cannot be read."""
    (workdir,), options = cli.parse_runs(
        arguments,
        strings={"data": "", "unfreeze": "", "out": ""},
        integers={"steps": (300, 1), "patience": (0, 0)},
        floats={"lr": (0.0, 0.0)},
        choices={"rows": ROWS},
        several=False,
    )
    if not math.isfinite(options["lr"]):
        raise UserError(f"--lr={options['lr']} is no learning rate")
    parts, share = parse_unfreeze(options["unfreeze"])
    choice = Choice(parts, share, options["rows"], options["steps"], options["lr"], options["patience"])
    return workdir, options["data"], pathlib.Path(options["out"] or workdir / "adapted"), choice


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    workdir, folder, out, choice = parse(arguments)
    if out.exists():
        raise UserError(f"{out} exists: choose another folder with --out=DIR, or delete it")
    run = open_single(workdir)
    manifest, whole_split, findings = read_folder(run, pathlib.Path(folder)) if folder else own_data(run)
    adapter = Adapter(run, prepare(run, manifest, whole_split, choice.rows, findings))
    with progress.make(choice.steps, "adapting") as bar:
        bar.say(f"Adapting {run.config.method} ({workdir}) to {len(adapter.new)} combinations of {manifest.title}")
        report = adapt(adapter, choice, out, bar)
    reports.print_table(report)
    print("\n".join(summary(report)))
    print(f"Written: {out}")


if __name__ == "__main__":
    cli.run(main, __doc__)
