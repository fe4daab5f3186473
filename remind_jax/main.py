"""Trains a method on a data set, evaluates it on held-out patients and writes a report.

    remind train --config=nhanes --quick
    remind train --config=NAME[:method=NAME,size=SIZE] [--config.KEY=VALUE …] [--workdir=DIR]

    --config=NAME         nhanes, support2, heart, phenomenon, events, mimic, eicu, embed, fprm, and
                          manifest for your own data; of other labels nhanes_grades (ordered),
                          nhanes_conditions (several), nhanes_hba1c (a number), gbsg2 (survival);
                          or a file of yours, such as mine/ours.py
      method=remind       remind, remind_plus, remind_blend (the default of manifest),
                          remind_stack, soft_moe, group_dro, reweigh, fair_batch, fair_mixup,
                          logit_adjust, fuse_moe, flex_moe, remind_no_dro,
                          remind_no_specialization; without a network logistic_regression,
                          gradient_boosting, extra_trees, ridge, cox; others, such as healnet, in
                          docs/arena_methods.md
      size=small          small | paper | quick
    --config.KEY=VALUE    any key, such as --config.optim.lr=1e-3; remind_jax/config/table.py and
                          the documentation explain all
    --quick               size=quick, a smoke run: few steps of a small network show that everything
                          works, and the figures mean nothing
    --workdir=DIR         folder of the run; runs/<config>-<method>-seed<seed> by default, and
                          -quick
    --on-changed-data=restart
                          begins anew in a folder whose data have changed, and removes what was made
                          of the old ones; by default such a run is refused

The same command again goes on with a run that was stopped, and shows the report of one that is
finished. Several processes of a job train together; launch/README.md says how to start them.
`python -m remind_jax.main` is the same command.
"""

from remind_jax import cli
from remind_jax.runtime import processes


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    parser = cli.Parser("remind train --config=NAME …; see --help", ("--workdir",))
    cli.add_on_changed_data(parser)
    options, rest = parser.parse_known_args(arguments)
    config, workdir = cli.parse_config(rest)
    from remind_jax.studies import runner  # which takes seconds; a mistake is told at once

    with processes.joined(processes.here()):
        runner.run_config(config, workdir, on_changed_data=options.on_changed_data)


if __name__ == "__main__":
    cli.run(main, __doc__)
