"""The runs of a sweep: methods times seeds, each with its config and its folder, and the options that choose them."""

import argparse
import pathlib
import runpy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from remind_jax import cli, methods
from remind_jax.config import set_value
from remind_jax.errors import UserError
from remind_jax.evaluation import finished
from remind_jax.runtime import cluster

RESAMPLES = 2_000  # bootstrap replicates of differences
_STRINGS = {"methods": "all", "seeds": "0,1,42", "baseline": "", "table": "", "address": ""}
_NUMBERS = {"jobs": (1, 1), "resamples": (RESAMPLES, 1), "cpus": (1.0, 0.01), "gpus": (-1.0, -1.0), "retries": (2, 0)}
OPTIONS = (*(f"--{name}" for name in (*_STRINGS, *_NUMBERS)), "--share", "--engine", "--on-changed-data")
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
      whole: whether those methods of which the labels' task is none are left out, since the sweep is of all there are.
      ray: how runs are given to a cluster of Ray; None runs them here.
    """

    baselines: Sequence[str]
    resamples: int = RESAMPLES
    jobs: int = 1
    share: bool = False
    on_changed_data: str = "refuse"
    whole: bool = False
    ray: cluster.Given | None = None


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


def arena_of(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Returns the content of the config file that a command line names if it is that of an arena, see `arena`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?", default="")
    name = (parser.parse_known_args(list(arguments))[0].config or "").partition(":")[0]
    try:
        found = runpy.run_path(str(cli.find_config(name)))
    except Exception:  # whatever is wrong with it is said where the config is read
        return None
    return found if {"SETS", "PROTOCOLS", "METHODS", "SECONDS"} <= found.keys() else None


def add_options(parser: cli.Parser) -> None:
    """Adds the options that `read_setup` reads."""
    for name, default in _STRINGS.items():
        parser.add_argument(f"--{name}", default=default)
    for name, (default, least) in _NUMBERS.items():
        parser.add_number(f"--{name}", default, least)
    parser.add_argument("--share", action="store_true")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
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
    whole = values.methods == "all" and not values.table
    how = (values.resamples, values.jobs, values.share, values.on_changed_data, whole, _cluster(values))
    options = Options(baselines, *how)
    return Setup(given, variants, seeds, options)


def _cluster(values: argparse.Namespace) -> cluster.Given | None:
    """Reads how runs are given to a cluster, None where the engine is this machine."""
    gpus = values.gpus if values.gpus >= 0 else None
    given = cluster.Given(values.address, values.cpus, gpus, values.retries)
    if values.engine == "local":
        if given != cluster.Given():
            raise UserError(
                "--address, --cpus, --gpus and --retries are of --engine=ray; here --jobs shares the machine"
            )
        return None
    if values.share or values.jobs > 1:
        raise UserError("--engine=ray gives runs to a cluster by itself: leave out --share and --jobs")
    cluster.check(given)
    return given
