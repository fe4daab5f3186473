"""Files of others, read as data: regular, inside their folder, no larger than expected, and of a declared shape.

A shape is `str`, `int`, `float` (which takes integers), `bool`, `None` or `object`, which is anything; a word or a
whole number, which is itself; a `Number`; a tuple of alternatives; a list: of one shape for any number of entries, of
several for just as many; or a dictionary of shapes by key, in which "key?" may be absent and `...` is the shape of all
other keys. `of_class` makes the shape of a dataclass.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import stat
import types
import typing
from collections.abc import Iterator
from typing import Any, BinaryIO

from remind_jax.errors import UserError

MOST = 2**28  # bytes of a record
_DEEPEST = 64
_LARGEST = 2**63  # what whole numbers in records stay below
_REQUIRED = object()
_KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false", None: "null"}
_SURROGATE = re.compile("[\ud800-\udfff]")
ANYWHERE = pathlib.Path("/")  # for `below`: links are followed wherever they lead


@dataclasses.dataclass(frozen=True)
class Number:
    """The shape of a number, `int` or `float`, from `low` to `high`."""

    kind: type
    low: float
    high: float = _LARGEST


COUNT = Number(int, 0)
SHARE = Number(float, 0, 1)


@contextlib.contextmanager
def opened(file: pathlib.Path, below: pathlib.Path | None = None, flags: int = os.O_RDONLY) -> Iterator[BinaryIO]:
    """Opens a regular file that lies below a folder, by default its own, and that no link leads out of.

    Raises FileNotFoundError: it is not there. UserError: it is something else, or cannot be read.
    """
    base, real = os.path.realpath(below or file.parent), os.path.realpath(file)
    if os.path.commonpath([base, real]) != base:
        raise UserError(f"{file} is a link that leads out of its folder: put the file itself there")
    try:
        # A pipe without a writer would be waited for for ever.
        descriptor = os.open(real, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        if file.is_symlink():
            raise UserError(f"{file} is a link that leads nowhere: remove it") from None
        raise
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{file} is no regular file: remove it")
        with open(descriptor, "r+b" if flags & os.O_RDWR else "rb", closefd=False) as stream:
            yield stream
    finally:
        os.close(descriptor)


def content(file: pathlib.Path, below: pathlib.Path | None = None, most: int = MOST) -> bytes:
    """Returns what a file holds; opens it, and raises, as `opened`, and UserError where it is larger than `most`."""
    with opened(file, below) as stream:
        if (size := os.fstat(stream.fileno()).st_size) > most:
            raise UserError(f"{file} is larger than the {most >> 20:,} MiB that such a file may have")
        try:
            return stream.read(size)
        except (OSError, MemoryError) as error:
            raise UserError(f"{file} cannot be read: {getattr(error, 'strerror', '') or 'no memory'}") from None


def read(
    file: pathlib.Path,
    shape: Any,
    remedy: str,
    *,
    below: pathlib.Path | None = None,
    most: int = MOST,
    default: Any = _REQUIRED,
    finite: bool = True,
) -> Any:
    """Reads a JSON file of a shape; returns `default`, where there is one, for a file that is not there.

    Raises UserError: it is not there, is none as `opened` and `parse` say, or of another shape; ends in `remedy`.
    """
    try:
        found = content(file, below, most)
    except FileNotFoundError:
        if default is not _REQUIRED:
            return default
        raise UserError(f"{file} is missing: {remedy}") from None
    return of_shape(found, shape, f"{file}", remedy, finite)


def of_shape(found: bytes, shape: Any, what: str, remedy: str, finite: bool = True) -> Any:
    """Returns JSON of a shape; raises UserError as `read`, which begins with `what` the bytes are."""
    try:
        value = parse(found, finite)
    except ValueError as error:
        raise UserError(f"{what} is damaged ({error}): {remedy}") from None
    if why := fault(value, shape):
        raise UserError(f"{what} is damaged ({why}): {remedy}")
    return value


def parse(found: bytes, finite: bool = True) -> Any:
    """Returns what JSON says; NaN and infinity are allowed unless numbers are to be `finite`.

    Raises ValueError: it is no JSON in UTF-8, has a key twice or numbers that are none, or is nested too deeply.
    """

    def number(text: str) -> float:
        value = float(text)
        if finite and not abs(value) < float("inf"):
            raise ValueError("a number is not finite")
        return value

    try:
        value = json.loads(
            found.decode(), object_pairs_hook=_once, parse_int=_whole, parse_float=number, parse_constant=number
        )
    except UnicodeDecodeError:
        raise ValueError("it is no UTF-8") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_tree(value, _DEEPEST)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _whole(text: str) -> int:
    if len(text) > 20 or abs(value := int(text)) >= _LARGEST:
        raise ValueError("a whole number is immense")
    return value


def _check_tree(value: Any, left: int) -> None:
    """Refuses (ValueError) what later code would fall over: deep nesting, and text that no file could hold."""
    if not left:
        raise ValueError("it is nested too deeply")
    if isinstance(value, str) and not value.isascii() and _SURROGATE.search(value):
        raise ValueError("a text is none")
    if isinstance(value, dict):
        for key in value:
            _check_tree(key, left)
        value = list(value.values())
    for each in value if isinstance(value, list) else ():
        _check_tree(each, left - 1)


def of_class(made: type) -> dict[str, Any]:
    """Returns the shape that JSON of a dataclass has, by the types of its fields; those with defaults may be absent."""
    hints = typing.get_type_hints(made)
    # Both are the mark of what is missing where there is no default.
    names = {each.name: "?" * (each.default is not each.default_factory) for each in dataclasses.fields(made)}
    return {name + mark: _of_hint(hints[name]) for name, mark in names.items()}


def _of_hint(hint: Any) -> Any:
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return tuple(map(_of_hint, arguments))
    origin = typing.get_origin(hint)
    if origin is tuple:
        return [_of_hint(each) for each in arguments if each is not ...]
    if origin is not None:
        return {}
    return None if hint is types.NoneType else of_class(hint) if dataclasses.is_dataclass(hint) else hint


def fault(value: Any, shape: Any, where: str = "") -> str:
    """Says in a few words where a value first differs from a shape, "" where it does not; shows none of it."""
    place = where or "it"
    if isinstance(shape, tuple):
        faults = [fault(value, one, where) for one in shape]
        return "" if "" in faults else faults[0]
    if isinstance(shape, dict):
        return _fault_of_mapping(value, shape, where)
    if isinstance(shape, list):
        if not isinstance(value, list) or (len(shape) > 1 and len(value) != len(shape)):
            return f"{place} is no list" + f" of {len(shape)}" * (len(shape) > 1)
        shapes = shape if len(shape) > 1 else shape * len(value)
        parts = (fault(each, one, f"{where}[{i}]") for i, (each, one) in enumerate(zip(value, shapes, strict=True)))
        return next(filter(None, parts), "")
    if isinstance(shape, Number):
        inside = not fault(value, shape.kind) and shape.low <= value <= shape.high
        return "" if inside else f"{place} is no {_KINDS[shape.kind]} from {shape.low} to {shape.high}"
    if isinstance(shape, str | int):
        return "" if value == shape and type(value) is type(shape) else f"{place} is not {shape!r}"
    kinds = {float: (float, int), None: (type(None),), object: (type(value),)}.get(shape, (shape,))
    return "" if type(value) in kinds else f"{place} is no {_KINDS[shape]}"


def _fault_of_mapping(value: Any, shape: dict[Any, Any], where: str) -> str:
    if not isinstance(value, dict):
        return f"{where or 'it'} is no mapping"
    for key, one in shape.items():
        name = "" if key is ... else key.removesuffix("?")
        if key is ...:
            others = value.keys() - {str(k).removesuffix("?") for k in shape}
            why = next(filter(None, (fault(value[k], one, f"{where} has a key that") for k in sorted(others))), "")
        elif name not in value:
            why = "" if key.endswith("?") else f"{where or 'it'} lacks {name}"
        else:
            why = fault(value[name], one, f"{where}.{name}".lstrip("."))
        if why:
            return why
    return ""
