"""Completes `remind` in a shell: commands, options, configs, methods, keys, values, analyses.

    remind completion bash    prints lines for ~/.bashrc; try: source <(remind completion bash)
    remind completion zsh     … for ~/.zshrc, below compinit
    remind completion fish    … for ~/.config/fish/completions/remind.fish

They call `remind` itself and so fit every later version.
"""

import re
from collections.abc import Sequence

from remind_jax import __main__ as console
from remind_jax import cli, methods
from remind_jax.config import keys
from remind_jax.config.table import Limit
from remind_jax.errors import UserError, did_you_mean

# Bash has cut what was typed at = and : and wants the last piece alone.
SCRIPTS = {
    "bash": """_remind() {
    local typed=${COMP_LINE:0:COMP_POINT}; local word=${typed##* }
    mapfile -t COMPREPLY < <("$1" completion "--line=$typed" 2>/dev/null)
    COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*[=:]}"}"}")
    [[ ${COMPREPLY[0]} != *[=:.] ]] || compopt -o nospace 2>/dev/null
}
complete -o default -F _remind remind""",
    "zsh": """_remind() {
    local -a found=(${(f)"$($words[1] completion "--line=${(j: :)words[1,CURRENT]}" 2>/dev/null)"})
    if (( $#found )); then compadd -S '' -- $found; else compset -P '*='; _files; fi
}
compdef _remind remind""",
    "fish": """complete -c remind -a '(remind completion "--line="(commandline -cp) 2>/dev/null)'""",
}


def candidates(words: Sequence[str]) -> list[str]:
    """Returns what the last of the words after `remind` may become; nothing for a file or a free value."""
    *before, word = words
    if len(before) <= (two := before[:1] == ["analyse"]):
        names = [name.removeprefix("analyse ") for name in console.commands() if name.startswith("analyse ") == two]
        found = names if two else [*names, "analyse", "--help", "--version"]
    elif "=" in word:
        found = _values(word)
    else:
        text = console.text_of(console.find(before)[0])
        options = dict(sorted(re.findall(r"(--[a-z][\w-]*)(=?)", text)))
        found = [option + sign for option, sign in options.items()]
        if "--config" in options:
            found += [f"--config.{key}=" for key in keys()] if word.startswith("--config.") else ["--config."]
    return sorted(each for each in found if each.startswith(word))


def _values(word: str) -> list[str]:
    """Returns what may stand where an option such as `--config=nhanes:method=` ends, each with what is there."""
    option, head = word.partition("=")[0], word[: max(map(word.rfind, "=:,")) + 1]
    names = (*methods.METHODS, *methods.PLAIN)
    known = {"--methods": ("all", *names), "--table": methods.TABLES, "method": names, "size": methods.SIZES}
    known |= {"--config": cli.config_names() if head.endswith("=") else ("method=", "size=")}
    for path, key in keys().items():
        known[f"--config.{path}"] = ("false", "true") if isinstance(key.default, bool) else key.allowed
    found = known.get(re.split("[:,]", head[:-1])[-1] if head.endswith("=") else option)
    return [] if isinstance(found, Limit | None) else [head + name for name in found]


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    parser = cli.Parser("remind completion bash|zsh|fish")
    parser.add_argument("shell", nargs="?", default="")
    parser.add_argument("--line")
    options = parser.parse_args(arguments)
    if options.line is not None:
        return print("\n".join(candidates(options.line.lstrip().split(" ")[1:])))
    if (shell := options.shell) not in SCRIPTS:
        raise UserError(f"unknown shell {shell!r}{did_you_mean(shell, SCRIPTS)}; known: {', '.join(SCRIPTS)}")
    print(SCRIPTS[shell])


if __name__ == "__main__":
    cli.run(main, __doc__)
