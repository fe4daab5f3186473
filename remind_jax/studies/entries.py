"""The runs of a sweep: methods times seeds, each with its config and its folder, and the options that choose them."""

import argparse
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from remind_jax import cli, methods
from remind_jax.config import set_value
from remind_jax.errors import UserError
from remind_jax.evaluation import finished

RESAMPLES = 2_000  # bootstrap replicates of differences
_STRINGS = {"methods": "all", "seeds": "0,1,42", "baseline": "", "table": ""}
OPTIONS = (*(f"--{name}" for name in _STRINGS), "--share", "--jobs", "--resamples", "--on-changed-data")
"""Those of `add_options`."""


class Entry(NamedTuple):
    """One run of a sweep: its method as tables call it (a method, a plain model or a variant), seed, config, whose
    method may be another one, and folder.
    """

    method: str
    seed: int
    config: Any
    folder: pathlib.Path

    @property
    def name(self) -> str:
        """The run's name in messages."""
        return f"{self.method} seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether the run has its report."""
        return finished.is_there(self.folder)

    @property
    def log(self) -> pathlib.Path:
        """The file that takes the output of a run in a process of its own."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def report(self) -> dict[str, Any]:
        """Reads the report of a finished run."""
        return finished.read_report(self.folder)


class Options(NamedTuple):
    """How a sweep is run and tabulated.

    Attributes:
      baselines: methods that differences are drawn to, each in turn.
      resamples: bootstrap replicates of the differences.
      jobs: runs at a time, each in a process of its own where there are several.
      share: whether other processes run the same sweep in the same folder.
      on_changed_data: what becomes of runs whose data have changed since: `refuse` or `restart`.
    """

    baselines: Sequence[str]
    resamples: int = RESAMPLES
    jobs: int = 1
    share: bool = False
    on_changed_data: str = "refuse"


class Setup(NamedTuple):
    """What a command line asks to be run: a config, methods, plain models or variants, seeds, options."""

    given: cli.GivenConfig
    variants: Sequence[methods.Variant]
    seeds: Sequence[int]
    options: Options

    def plan(self, workdir: pathlib.Path, changes: Mapping[str, Any] | None = None) -> list[Entry]:
        """Plans all runs, seed by seed, and makes every config, so that a mistake costs nothing.

        The runs' folders lie in `workdir`. `changes` are keys of the config with values, over what the command line
        says; a variant may change them again.
        """
        entries = []
        for seed in self.seeds:
            for variant in self.variants:
                config = self.given.of_method(variant.method)
                for key, value in {**(changes or {}), "seed": seed}.items():
                    set_value(config, key, value)
                variant.apply(config)
                entries.append(Entry(variant.name, seed, config, workdir / f"{variant.name}-seed{seed}"))
        return entries


def add_options(parser: cli.Parser) -> None:
    """Adds the options that `read_setup` reads."""
    for name, default in _STRINGS.items():
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--share", action="store_true")
    parser.add_number("--jobs", 1, 1)
    parser.add_number("--resamples", RESAMPLES, 1)
    cli.add_on_changed_data(parser)


def read_setup(values: argparse.Namespace, rest: Sequence[str]) -> Setup:
    """Reads the options of `add_options`, and the rest, which describes the config; a mistake is a UserError."""
    try:
        seeds = [int(seed) for seed in values.seeds.split(",")]
    except ValueError as error:
        raise UserError(f"cannot read the command line: {error}") from error
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds={values.seeds} names a seed twice")
    given = cli.read_config(rest)
    variants = methods.choose(values.methods, values.table)
    names = [variant.name for variant in variants]
    default = "soft_moe" if "soft_moe" in names else names[0]
    baselines = list(dict.fromkeys(filter(None, values.baseline.split(",")))) or [default]
    for baseline in baselines:
        if baseline not in names:
            raise UserError(f"baseline={baseline} is not among the methods: {', '.join(names)}")
    if values.share and values.jobs > 1:
        raise UserError(f"--share with --jobs={values.jobs}: start the same command {values.jobs} times instead")
    options = Options(baselines, values.resamples, values.jobs, values.share, values.on_changed_data)
    return Setup(given, variants, seeds, options)
