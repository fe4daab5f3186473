"""Pages of the documentation that are made from the source when it is built: commands, and the keys of the configs.

A command is a module that can be run; its text is its docstring. Keys are those of remind_jax/config/table.py.
mkdocs.yml names this file as a hook.
"""

import ast
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from remind_jax.config import keys
from remind_jax.config.limits import Key, Limit
from remind_jax.config.sources import OF_SOURCES

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIRST = ("remind_jax", "remind_jax.main", "remind_jax.sweep", "remind_jax.check_data")  # others follow by name
_COMMANDS = """# Commands

What every command says of itself; `--help` prints the same. Bad input of any kind is one line on stderr and exit code
2.
"""
_CONFIGURATION = """# Configuration

Every key of a config, as remind_jax/config/table.py declares it. A key is set as `--config.optim.lr=1e-3`, method and
size in the argument string: `--config=configs/nhanes.py:method=soft_moe,size=small`. Defaults are those before a config
file, a method or a size changes them; `config.json` in a run's folder has the final values.
"""


def commands() -> Iterator[tuple[str, str]]:
    """Name and docstring of every module that can be run."""
    found = {}
    for folder in ("remind_jax", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            source = file.read_text(encoding="utf-8")
            if '__name__ == "__main__"' in source:
                name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
                found[name.removesuffix(".__main__")] = ast.get_docstring(ast.parse(source)) or ""
    order = {name: i for i, name in enumerate(FIRST)}
    yield from sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0].split(".")))


def commands_page() -> str:
    """The page of all commands."""
    parts = [_COMMANDS]
    for name, text in commands():
        parts += [f"## {name}\n", _markdown(text) + "\n"]
    return "\n".join(parts)


def _markdown(docstring: str) -> str:
    """A docstring, whose indented blocks are code, as fenced blocks: lists and tables of options stay as they are."""
    lines, out, code = docstring.splitlines(), [], False
    for i, line in enumerate(lines):
        indented = line.startswith("    ")
        ends = not indented and (line.strip() or not any(x.startswith("    ") for x in lines[i + 1 : i + 2]))
        if indented and not code:
            out.append("```text")
        elif code and ends:
            out.append("```")
        code = indented or (code and not ends)
        out.append(line[4:] if indented else line)
    return "\n".join([*out, "```"] if code else out)


def configuration_page() -> str:
    """The page of all keys."""
    parts = [_CONFIGURATION, "## All configs\n", _table(keys())]
    for source, own in OF_SOURCES.items():
        if own:
            parts += [f"## Only `data.source={source}`\n", _table({f"data.{name}": key for name, key in own.items()})]
    return "\n".join(parts)


def _table(found: Mapping[str, Key]) -> str:
    rows = ["| key | default | may be | meaning |", "|---|---|---|---|"]
    rows += [f"| `{path}` | `{key.default!r}` | {_allowed(key)} | {key.meaning} |" for path, key in found.items()]
    return "\n".join(rows) + "\n"


def _allowed(key: Key) -> str:
    """The values that a key may have, in words; nothing where its type says all."""
    if isinstance(key.allowed, Limit):
        return ", or ".join([key.allowed.says, *(f"`{word}`" for word in key.words)])
    return ", ".join(f"`{choice}`" for choice in key.allowed or ())


PAGES = {"commands.md": commands_page, "configuration.md": configuration_page}


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages to those that mkdocs found; called by mkdocs."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        files.append(File.generated(config, name, content=page()))
    return files
