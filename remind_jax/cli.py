"""Command lines: configs from files and flags, and one line on stderr with an exit code for a user's mistake."""

import argparse
import difflib
import os
import pathlib
import runpy
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from remind_jax.config import set_value
from remind_jax.errors import UserError, did_you_mean, explain

XLA_LINES = "TF_CPP_MIN_LOG_LEVEL"  # a variable that XLA reads when it is loaded; 3 lets only fatal errors through
BROKEN_PIPE = 141  # what a shell reports of a program that SIGPIPE ended


def run(command: Callable[[list[str]], None], usage: str | None) -> None:
    """Runs a command with the process's arguments and ends the process on a mistake."""
    os.environ.setdefault(XLA_LINES, "3")  # what fails is raised as well; the rest is for those who work on XLA
    try:
        _run(command, usage)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
        sys.exit(BROKEN_PIPE)


def _nobody_reads() -> bool:
    """Tells whether the reader of standard output has closed the pipe, as `head` does."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(command: Callable[[list[str]], None], usage: str | None) -> None:
    if {"--help", "-h"} & set(sys.argv[1:]):
        print((usage or "").strip())
        return
    try:
        command(sys.argv[1:])
    except (UserError, KeyboardInterrupt) as error:
        sys.exit(explain(error))


class Parser(argparse.ArgumentParser):
    """Reads the options of one command; every mistake is a UserError in one line."""

    def __init__(self, usage: str):
        """`usage` is how to call the command, in one line."""
        super().__init__(usage=usage, allow_abbrev=False, add_help=False)
        self._least: dict[str, int | float] = {}

    def add_number(self, name: str, default: int | float, least: int | float) -> None:
        """Adds the option `name` for numbers of the default's type that are not below `least`."""
        self.add_argument(name, dest=name, type=type(default), default=default)
        self._least[name] = least

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Reads arguments of which every one is an option of the command. Raises UserError for anything else."""
        options, rest = self.parse_known_args(args, namespace)
        if not rest:
            return options
        if not rest[0].startswith("-"):
            raise UserError(f"unexpected arguments: {' '.join(rest)}; options start with --")
        name, known = rest[0].partition("=")[0], list(self._option_string_actions)
        self.error(f"unknown option {name}{did_you_mean(name, known)}; options: {', '.join(known)}")

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Reads the command's own options and returns the others. Raises UserError as `parse_args`."""
        options, rest = super().parse_known_args(args, namespace)
        values = vars(options)
        for name, least in self._least.items():
            value = values.pop(name)
            if not value >= least:  # NaN is not
                raise UserError(f"{name}={value} must be at least {least}")
            values[name.lstrip("-").replace("-", "_")] = value
        return options, rest

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (usage: {self.usage})")


def parse_runs(
    arguments: Sequence[str],
    *,
    strings: Mapping[str, str] | None = None,
    integers: Mapping[str, tuple[int, int]] | None = None,
    floats: Mapping[str, tuple[float, float]] | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
    several: bool = True,
) -> tuple[list[pathlib.Path], dict[str, Any]]:
    """Reads the command line of a command about finished runs; returns their folders, and the options by name with `_`.

    `strings` are options with their defaults, `integers` and `floats` have a default and a least value, `choices` their
    values, the default first; `several` allows further runs as `--also`. Raises UserError for anything that cannot be
    read.
    """
    parser = Parser(f"--workdir=RUN{' [--also=RUN,…]' if several else ''} …; see --help")
    parser.add_argument("--workdir", default="")
    if several:
        parser.add_argument("--also", default="")
    for name, default in (strings or {}).items():
        parser.add_argument(f"--{name}", default=default)
    for name, (default, least) in {**(integers or {}), **(floats or {})}.items():
        parser.add_number(f"--{name}", default, least)
    for name, allowed in (choices or {}).items():
        parser.add_argument(f"--{name}", choices=allowed, default=allowed[0])
    options = vars(parser.parse_args(arguments))
    if not (first := options.pop("workdir")):
        raise UserError("no run: give its folder as --workdir=RUN")
    paths = [pathlib.Path(path) for path in (first, *filter(None, options.pop("also", "").split(",")))]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("--workdir and --also name a run twice")
    return paths, options


class GivenConfig(NamedTuple):
    """A config as a command line describes it: the file that makes it, the config, the keys that were set one by one
    with their values, and the workdir, empty without one.
    """

    file: pathlib.Path
    config: Any
    changes: Mapping[str, Any]
    workdir: str

    def of_method(self, method: str) -> Any:
        """Makes the config that would have been described with another method."""
        config = runpy.run_path(str(self.file))["get_config"](f"method={method},size={self.config.size}")
        for key, value in self.changes.items():
            set_value(config, key, value)
        return config


def parse_config(arguments: Sequence[str]) -> tuple[Any, pathlib.Path]:
    """Reads `--config=FILE[:ARGUMENT]`, `--config.KEY=VALUE` and `--workdir=DIR`; returns the config and the workdir.

    The workdir is `runs/<config>-<method>-seed<seed>` by default. Raises UserError for anything that cannot be read.
    """
    given = read_config(arguments)
    default = f"runs/{given.file.stem}-{given.config.method}-seed{given.config.seed}"
    return given.config, pathlib.Path(given.workdir or default)


def read_config(arguments: Sequence[str]) -> GivenConfig:
    """Reads a config as `parse_config` does, with the same errors, and remembers how it was described."""
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "config file", lock_config=True, flag_values=values, sys_argv=["remind_jax", *arguments]
    )
    flags.DEFINE_string("workdir", "", "folder of the run", flag_values=values)
    file = config_file(arguments)
    for key in ("method", "size"):
        given = [x for x in arguments if x == f"--config.{key}" or x.startswith(f"--config.{key}=")]
        if given:  # alone it would relabel the run and set none of the keys that it stands for
            value = given[0].partition("=")[2] or key.upper()
            raise UserError(f"config.{key} is set in the argument of the file: --config={file}:{key}={value}")
    try:
        rest = values(["remind_jax", *arguments])[1:]
    except UserError:
        raise
    except (flags.Error, AttributeError, ImportError, KeyError, NameError, SyntaxError, TypeError, ValueError) as error:
        raise UserError(_unknown_key(arguments) or _one_line(error)) from error
    if rest:
        raise UserError(f"unexpected arguments: {' '.join(rest)}; options start with --")
    return GivenConfig(file, values.config, config_flags.get_override_values(values["config"]), values.workdir)


def _unknown_key(arguments: Sequence[str]) -> str:
    """Names the first key among the arguments that the config does not have, and those it has; nothing if all are."""
    given = [argument.removeprefix("--config.").partition("=")[0] for argument in arguments if "--config." in argument]
    if not given:
        return ""
    # Without the keys the file can be read.
    config = parse_config([f"--config={_config_value(arguments)}"])[0]
    for key in given:
        section, path = config, ""
        for name in key.split("."):
            if not hasattr(section, "keys"):
                break
            if name not in section:
                known, where = sorted(section.keys()), path.rstrip(".") or "a config"
                return f"unknown config key {key}{did_you_mean(name, known)}; {where} has {', '.join(known)}"
            section, path = section[name], f"{path}{name}."
    return ""


def config_file(arguments: Sequence[str]) -> pathlib.Path:
    """Finds the config file among the arguments and checks that it exists before it is imported."""
    value = _config_value(arguments)
    if not value:
        raise UserError("no config: give one as --config=configs/nhanes.py")
    file = pathlib.Path(value.partition(":")[0])
    try:
        is_there = file.is_file()
    except (OSError, ValueError) as error:  # no name that a file could have
        raise UserError(f"config file cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    if not is_there:
        there = sorted(p.name for p in file.parent.glob("*.py") if p.name != "__init__.py")
        near = difflib.get_close_matches(file.name, there, n=1)
        hint = f", did you mean {file.parent / near[0]}?" if near else ""
        hint += f" There are {', '.join(there)}" if there else " Start the command in a clone of the repository"
        raise UserError(f"config file {file} does not exist{hint}")
    return file


def _config_value(arguments: Sequence[str]) -> str:
    """Returns what `--config` is set to; empty without it."""
    value = ""
    for i, argument in enumerate(arguments):
        if argument.startswith("--config="):
            value = argument.removeprefix("--config=")
        elif argument == "--config" and i + 1 < len(arguments):
            value = arguments[i + 1]
    return value


def _one_line(error: Exception) -> str:
    """Returns the message of an error on one line."""
    cause: BaseException = error
    while cause.args and isinstance(cause.args[0], BaseException):
        cause = cause.args[0]
    # The text of a KeyError is a quoted repr; its argument is what was meant.
    message = " ".join(str(cause.args[0] if cause.args else cause).split())
    return f"unknown config key {message}" if isinstance(error, (AttributeError, KeyError)) else message
