"""Pages of the documentation that are made from the source when it is built: commands, and the keys of the configs.

A command is a module that can be run; its text is its docstring. A key is an assignment in a config file; its text is
the comment beside it. mkdocs.yml names this file as a hook.
"""

import ast
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIRST = ("remind_jax.main", "remind_jax.sweep", "remind_jax.check_data")  # others follow by name
_COMMANDS = """# Commands

What every command says of itself; `--help` prints the same. Bad input of any kind is one line on stderr and exit code
2.
"""
_CONFIGURATION = """# Configuration

Every key of the config files. A key is set as `--config.optim.lr=1e-3`, method and size in the argument string:
`--config=configs/nhanes.py:method=soft_moe,size=small`. Values are those before a config file, a method or a size
changes them; `config.json` in a run's folder has the final ones.
"""


class Key(NamedTuple):
    """A key of a config: its path, its value as written, and the comment beside it."""

    path: str
    value: str
    text: str


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


def keys(file: pathlib.Path) -> Iterator[Key]:
    """The keys that a config file sets one by one and explains, each where it comes first."""
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines()
    sections, seen = {"c": "", "config": ""}, set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign):
            continue
        target = node.targets[0]
        path = _path(target, sections)
        if path is None:
            continue
        if len(node.targets) == 2 and isinstance(node.targets[1], ast.Name):
            sections[node.targets[1].id] = f"{path}."
            continue
        _, mark, text = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().partition("#")
        if mark and path not in seen:
            seen.add(path)
            yield Key(path, ast.get_source_segment(source, node.value), text.strip())


def _path(target: ast.expr, sections: dict[str, str]) -> str | None:
    """The path of a key that is assigned to; None for anything else."""
    names = []
    while isinstance(target, ast.Attribute):
        names.append(target.attr)
        target = target.value
    if not names or not isinstance(target, ast.Name) or target.id not in sections:
        return None
    return sections[target.id] + ".".join(reversed(names))


def configuration_page() -> str:
    """The page of all keys."""
    common = ROOT / "configs" / "common.py"
    parts = [_CONFIGURATION, "## All configs\n", _table(list(keys(common)))]
    for file in sorted(common.parent.glob("*.py")):
        own = [] if file == common else list(keys(file))
        if own:
            parts += [f"## Only configs/{file.name}\n", _table(own)]
    return "\n".join(parts)


def _table(found: list[Key]) -> str:
    rows = ["| key | value | meaning |", "|---|---|---|"]
    rows += [f"| `{key.path}` | `{key.value}` | {re.sub(r'[|]', '&#124;', key.text)} |" for key in found]
    return "\n".join(rows) + "\n"


PAGES = {"commands.md": commands_page, "configuration.md": configuration_page}


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages to those that mkdocs found; called by mkdocs."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        files.append(File.generated(config, name, content=page()))
    return files
