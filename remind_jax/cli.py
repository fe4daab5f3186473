"""Command lines: configs from files and flags, and one line on stderr with an exit code for a user's mistake."""

import argparse
import difflib
import os
import pathlib
import runpy
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from remind_jax.config import keys, set_value
from remind_jax.errors import UserError, did_you_mean, exit_code, explain
from remind_jax.runtime import signals, texts

XLA_LINES = "TF_CPP_MIN_LOG_LEVEL"  # a variable that XLA reads when it is loaded; 3 lets only fatal errors through
BROKEN_PIPE = signals.CODES[signal.SIGPIPE]
_HERE = pathlib.Path(__file__).resolve().parent
# Of an installed package; in a clone they lie next to the package.
CONFIGS = next(filter(pathlib.Path.is_dir, (_HERE / "configs", _HERE.parent / "configs")), _HERE / "configs")
_OF_CONFIGS = ("--config", "--quick")  # options that describe a config, next to those of its keys
_KEYS = ("--config.", "--noconfig.")  # --noconfig.KEY is --config.KEY=false


def run(command: Callable[[list[str]], None], usage: str | None) -> None:
    """Runs a command with the process's arguments and ends the process on a mistake, or when a signal asks for it."""
    os.environ.setdefault(XLA_LINES, "3")  # what fails is raised as well; the rest is for those who work on XLA
    sys.stdout, sys.stderr = texts.Visible(sys.stdout), texts.Visible(sys.stderr)  # names of others are in messages
    with signals.Signals():
        if code := _code(command, usage):
            sys.exit(code)


def _code(command: Callable[[list[str]], None], usage: str | None) -> int:
    """Runs a command and returns the exit code, with which a further signal ends the process at once."""
    try:
        _run(command, usage)
        sys.stdout.flush()
        code = 0
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        code = BROKEN_PIPE
    except BaseException as error:
        if isinstance(error, (UserError, KeyboardInterrupt)):
            signals.end_with(exit_code(error))  # the line is not to be cut by a second signal
        if (code := explain(error)) is None:
            raise
        sys.unraisablehook = lambda *_: None  # what fails in the background for the same reason has nothing to add
    signals.end_with(code)
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
    return code


def _nobody_reads() -> bool:
    """Tells whether the reader of standard output has closed the pipe, as `head` does."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(command: Callable[[list[str]], None], usage: str | None) -> None:
    if {"--help", "-h"} & set(sys.argv[1:]):
        print((usage or "").strip())
        return
    command(sys.argv[1:])


class Parser(argparse.ArgumentParser):
    """Reads the options of one command; every mistake is a UserError in one line."""

    def __init__(self, usage: str, further: Sequence[str] = ()):
        """`usage` is how to call the command, in one line; `further` are options that it leaves to others."""
        super().__init__(usage=usage, allow_abbrev=False, add_help=False)
        self._least: dict[str, int | float] = {}
        self._further = (*further, *_OF_CONFIGS)

    def add_number(self, name: str, default: int | float, least: int | float) -> None:
        """Adds the option `name` for numbers of the default's type that are not below `least`."""
        self.add_argument(name, dest=name, type=type(default), default=default)
        self._least[name] = least

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Reads arguments of which every one is an option of the command. Raises UserError for anything else."""
        options, rest = self._parse(args, namespace)
        if not rest:
            return options
        if not rest[0].startswith("-"):
            raise UserError(f"unexpected arguments: {' '.join(rest)}; options start with --")
        raise self._unknown(rest[0])

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Reads the command's own options and returns the others: those it leaves to others, and those of a config.

        Raises UserError as `parse_args`.
        """
        options, rest = self._parse(args, namespace)
        for argument in rest[: rest.index("--")] if "--" in rest else rest:
            known = argument.partition("=")[0] in self._further or argument.startswith(_KEYS)
            if argument.startswith("--") and not known:
                raise self._unknown(argument, (*self._further, *(f"--config.{key}" for key in keys())))
        return options, rest

    def _parse(self, args: Sequence[str] | None, namespace: Any) -> tuple[argparse.Namespace, list[str]]:
        options, rest = super().parse_known_args(args, namespace)
        values = vars(options)
        for name, least in self._least.items():
            value = values.pop(name)
            if not value >= least:  # NaN is not
                raise UserError(f"{name}={value} must be at least {least}")
            values[name.lstrip("-").replace("-", "_")] = value
        return options, rest

    def _unknown(self, argument: str, others: Sequence[str] = ()) -> UserError:
        """Makes the error of an unknown option, which names the one that may be meant; `others` are known as well."""
        name, known = argument.partition("=")[0], dict.fromkeys([*self._option_string_actions, *others])
        shown = ", ".join(option for option in known if not option.startswith(_KEYS))
        return UserError(f"unknown option {name}{did_you_mean(name, known)}; options: {shown}")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (usage: {self.usage})")


def add_on_changed_data(parser: Parser) -> None:
    """Adds the option that says what becomes of a run whose data have changed since it began."""
    parser.add_argument("--on-changed-data", choices=("refuse", "restart"), default="refuse")


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
    """Reads `--config=NAME[:ARGUMENT]`, `--config.KEY=VALUE`, `--quick`, `--workdir=DIR`; returns config and workdir.

    The workdir is `runs/<config>-<method>-seed<seed>` by default, of a smoke run with `-quick` at its end. Raises
    UserError for anything that cannot be read.
    """
    given = read_config(arguments)
    config, end = given.config, "-quick" if given.config.size == "quick" else ""
    default = f"runs/{given.file.stem}-{config.method}-seed{config.seed}{end}"
    return config, pathlib.Path(given.workdir or default)


def read_config(arguments: Sequence[str]) -> GivenConfig:
    """Reads a config as `parse_config` does, with the same errors, and remembers how it was described."""
    from absl import flags
    from ml_collections import config_flags

    parser = Parser("--config=NAME[:method=NAME,size=SIZE] [--config.KEY=VALUE …] …; see --help")
    parser.add_argument("--config", nargs="?", const="", default="")
    parser.add_argument("--workdir", default="")
    parser.add_argument("--quick", action="store_true")
    options, rest = parser.parse_known_args(arguments)
    file, argument = _file_and_argument(options.config, options.quick)
    for key in ("method", "size"):
        given = [x for x in rest if x == f"--config.{key}" or x.startswith(f"--config.{key}=")]
        if given:  # alone it would relabel the run and set none of the keys that it stands for
            value = given[0].partition("=")[2] or key.upper()
            raise UserError(f"config.{key} is set in the argument of the file: --config={file}:{key}={value}")
    described, values = f"--config={file}:{argument}", flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "config file", lock_config=True, flag_values=values, sys_argv=["remind_jax", described, *rest]
    )
    try:
        left = values(["remind_jax", described, *rest])[1:]
    except UserError:
        raise
    except (flags.Error, AttributeError, ImportError, KeyError, NameError, SyntaxError, TypeError, ValueError) as error:
        raise UserError(_unknown_key(described, rest) or _one_line(error)) from error
    if left:
        raise UserError(f"unexpected arguments: {' '.join(left)}; options start with --")
    return GivenConfig(file, values.config, config_flags.get_override_values(values["config"]), options.workdir)


def _file_and_argument(value: str, quick: bool) -> tuple[pathlib.Path, str]:
    """Splits what `--config` is set to into its file and the argument of the file, that of a smoke run if `quick`."""
    if not value:
        raise UserError(f"no config: give one as --config=nhanes; there are {', '.join(config_names())}")
    name, _, argument = value.partition(":")
    file = find_config(name)
    if quick and "size=" in argument:
        raise UserError(f"--quick is a size of its own: leave size out of --config={value}")
    return file, ",".join(filter(None, (argument, "size=quick" if quick else "")))


def _unknown_key(described: str, rest: Sequence[str]) -> str:
    """Names the first key among the arguments that the config does not have, and those it has; nothing if all are."""
    given = [argument.removeprefix("--config.").partition("=")[0] for argument in rest if "--config." in argument]
    if not given:
        return ""
    # Without the keys the file can be read.
    config = parse_config([described])[0]
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


def config_names() -> list[str]:
    """Names the configs that come with the package, such as nhanes."""
    return sorted(file.stem for file in CONFIGS.glob("*.py") if file.stem != "__init__")


def find_config(name: str) -> pathlib.Path:
    """Finds a config by its path or, where no file is, by name: `nhanes` and `configs/nhanes.py` are of the package.

    Raises UserError: it is not there, and what is there instead.
    """
    file = pathlib.Path(name)
    try:
        if file.is_file():
            return file
    except (OSError, ValueError) as error:  # no name that a file could have
        raise UserError(f"config file cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    known = config_names()
    if file.parent.as_posix() in (".", "configs") and file.suffix in ("", ".py") and file.stem in known:
        return CONFIGS / f"{file.stem}.py"
    if file.suffix == "" and len(file.parts) == 1:
        raise UserError(f"there is no config {name}{did_you_mean(name, known)}; give a file or {', '.join(known)}")
    there = sorted(p.name for p in file.parent.glob("*.py") if p.name != "__init__.py")
    near = difflib.get_close_matches(file.name, there, n=1)
    hint = f", did you mean {file.parent / near[0]}?" if near else ""
    hint += f" There are {', '.join(there)}" if there else f"; those of the package are {', '.join(known)}"
    raise UserError(f"config file {file} does not exist{hint}")


def _one_line(error: Exception) -> str:
    """Returns the message of an error on one line."""
    cause: BaseException = error
    while cause.args and isinstance(cause.args[0], BaseException):
        cause = cause.args[0]
    # The text of a KeyError is a quoted repr; its argument is what was meant.
    message = " ".join(str(cause.args[0] if cause.args else cause).split())
    return f"unknown config key {message}" if isinstance(error, (AttributeError, KeyError)) else message
