"""Names that others have given, made neutral for what shows them: terminals, Markdown, LaTeX, spreadsheets, pages."""

import pathlib
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

# Control characters but for line breaks and tabs; marks that turn the direction of text; halves of characters.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_MARKDOWN = re.compile(r"[\\`*\[\]<>|#]|(?<![^\W_])_|_(?![^\W_])|(?<=:)//|(?i:(?<=www)\.)")
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}
FORMULA, NUMBER = r"^'*[=+\-@\t\r]", r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
"""What a cell of a formula, in the eyes of a spreadsheet, begins with; and numbers, which begin so and are none."""
TOLD = "cells that a spreadsheet would take for formulas have ' in front of them, which is not part of them"


def visible(text: str) -> str:
    """Writes out the characters that do something to a terminal or to the order of a text, such as \\x1b."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: object) -> str:
    """Returns a text as `visible`, without line breaks."""
    return visible(" ".join(str(text).split("\n")))


def markdown(text: object) -> str:
    """Writes a text for Markdown, in which it is no link, no code, no HTML and no cell of its own."""
    return _MARKDOWN.sub(lambda found: "".join(f"\\{sign}" for sign in found[0]), one_line(text))


def code(text: object) -> str:
    """Writes a text as code for Markdown."""
    return f"`{one_line(text).replace('`', chr(39))}`"


def latex(text: object) -> str:
    """Writes a text for LaTeX, in which it is no command."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def cell(value: Any) -> Any:
    """Returns a value for a CSV file, texts as `visible`; those that spreadsheets take for formulas with ' before."""
    if not isinstance(value, str):
        return value
    value = visible(value)
    is_formula = re.match(FORMULA, value) and not re.match(NUMBER, value)
    return f"'{value}" if is_formula else value


class Visible:
    """A stream to which texts are written as `visible` shows them."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for text in lines:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def raw(stream: TextIO) -> TextIO:
    """Returns what is behind a `Visible` stream, for those who write colours and bars of their own."""
    return stream.stream if isinstance(stream, Visible) else stream


def command_line(program: str, arguments: Sequence[str]) -> str:
    """Writes a command for a shell, without paths of the machine.

    The workdir is DIR, a config file its folder and name, any other absolute path PATH.
    """
    shown = []
    flag = ""
    for argument in arguments:
        if argument.startswith("-"):
            name, equals, value = argument.partition("=")
            flag = name.lstrip("-")
            shown.append(f"{name}={_public(flag, value)}" if equals else name)
        else:  # the value of the flag before it
            shown.append(_public(flag, argument))
    return f"{program} {shlex.join(shown)}".rstrip()


def _public(flag: str, value: str) -> str:
    if flag == "workdir":
        return "DIR"
    if flag == "roots":  # of the sets of an arena
        return ",".join(f"{pair.partition('=')[0]}=PATH" for pair in value.split(","))
    path, colon, rest = value.partition(":")
    if not path.startswith(("/", "~")):
        return value
    if flag == "config":
        return "/".join(pathlib.PurePath(path).parts[-2:]) + colon + rest
    return "PATH"
