"""From raw values of modalities to what models receive, and what files of arrays, pixels and texts may be.

With numpy and the standard library alone: kinds of modalities encode by these functions, and an exported model has a
copy of this file, next to the one that reads rows.
"""

import os
import pathlib
import re
import statistics
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

MISSING_TOKENS = ("", "na", "n/a", "#n/a", "<na>", "nan", "none", "null")
_PLAIN = r"([+-]?[0-9]+(?:\.[0-9]+)?)"
LIMIT, RANGE = rf"^[<>≤≥~]=?\s*{_PLAIN}$", rf"^{_PLAIN}\s*(?:-|–|to)\s*{_PLAIN}$"
GROUPED = r"^[+-]?[0-9]{1,3}(['\s][0-9]{3})+([.,][0-9]+)?$"  # 1 234 567
POINT = r"^[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+(\.[0-9]+)?$"  # 1,234.5
SURE_POINT = r"^[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+\.[0-9]+$"
COMMA = r"^[+-]?([0-9]+|[1-9][0-9]{0,2}(\.[0-9]{3})+),[0-9]+$"  # 1.234,5 and 65,5
DOTS = r"^[+-]?[1-9][0-9]{0,2}(\.[0-9]{3})+$"  # 1.234.567
WITH_COMMA, WITH_DOT = r"^[<>≤≥~=\s]*[+-]?[0-9.]*,[0-9.,]*$", r"^[+-]?[0-9.]*\.[0-9.]*$"
LIMIT_SIGNS = "<>≤≥~= "
LONG_MINUS = r"^[<>≤≥~=\s]*−[0-9]"
UNIT = r"^([<>≤≥~=\s]*[+−-]?[0-9][0-9.,'\s]*?)\s*([%‰]|°[CFcf]?|\s[A-Za-z]|[A-Za-zµμ/][A-Za-zµμ/%²³]{1,9})$"
PLURAL, NO_UNITS = r"^([a-z]{2,})s$", ("st", "nd", "rd", "th")  # days are day; 1st is a word
PAD, EOS, UNK = 0, 1, 2  # as in T5
SPECIAL = ("<pad>", "</s>", "<unk>")
EVENT_IDS = 2
"""Ids that no code has: 0 pads, 1 is a code that was not fitted."""
NUMBER_SHARE = 0.5
"""Share of a column's variance that its number keeps next to intervals or waves."""
MAX_TEXT = 2**26  # bytes
MAX_NUMBERS = 100_000_000  # of an embedding
MAX_PIXELS = 100_000_000  # of an image
MAX_VOXELS = 300_000_000  # of a volume: frames x height x width
# Python 3.11 refuses sound headers (SystemError) where threads read them as literals at once.
_HEADERS = threading.Lock()
_BITS = (8, 10, 12, 14, 16)
_TAILS = (0.5, 99.5)  # percentiles
_DRAWN = 2**16  # values of a frame that percentiles are taken of

Frame = Callable[[int], np.ndarray]


class Unusable(ValueError):
    """A reason in a few words, made for the user."""


def table(fitted: Any, numeric: np.ndarray, categorical: np.ndarray | None) -> np.ndarray:
    """Encodes a table as float32 [n, p']: numbers, indicators, one-hot categories, their indicators, more of numbers.

    `numeric` [n, p] has NaN for an empty cell, for which the median is filled in; `categorical` [n, q] of str has "",
    and is None without such columns. `fitted` has the fields of `FittedTable`.
    """
    holes = np.isnan(numeric)
    values = numeric.astype(np.float64)
    parts = [_numbers(fitted, np.where(holes, np.asarray(fitted.median), values))]
    parts.append(holes[:, list(fitted.numeric_holes)])
    if categorical is not None:
        for j, known in enumerate(fitted.categories):
            parts.append(categorical[:, j, None] == np.array(known, object)[None, :])
        parts.append(categorical[:, list(fitted.categorical_holes)] == "")
    parts += [beside(column, values[:, j]) for j, column in enumerate(fitted.pieces or fitted.waves)]
    return np.concatenate([part.astype(np.float32) for part in parts], axis=1)


def _numbers(fitted: Any, filled: np.ndarray) -> np.ndarray:
    """Encodes each numeric column as one feature, float64 [n, p] -> [n, p]."""
    if fitted.quantiles:
        return np.stack([normal_quantile(column, filled[:, j]) for j, column in enumerate(fitted.quantiles)], axis=1)
    std = np.asarray(fitted.std)
    scaled = np.where(std > 0, (filled - np.asarray(fitted.mean)) / np.where(std > 0, std, 1.0), 0.0)
    if extras := fitted.pieces or fitted.waves:
        scaled *= np.array([np.sqrt(NUMBER_SHARE) if column.mean else 1.0 for column in extras])
    return scaled


def normal_quantile(column: Any, values: np.ndarray) -> np.ndarray:
    """Returns standard normal quantiles of values without NaN, float64 [n] -> [n]; 0 for a column without knots."""
    if not column.knots:
        return np.zeros_like(values)
    # The mid ranks of the smallest and the largest value are inside (0, 1), and interpolation stays between them.
    ranks = np.interp(values, column.knots, column.ranks)
    return np.array([statistics.NormalDist().inv_cdf(rank) for rank in ranks.tolist()], np.float64)


def beside(column: Any, values: np.ndarray) -> np.ndarray:
    """Returns the features next to a number, float64 [n] -> [n, features]; zeros where it is NaN."""
    if not column.mean:
        return np.zeros((len(values), 0))
    if hasattr(column, "edges"):
        raw = fractions(values, np.asarray(column.edges))
    else:
        raw = waves(values, column.centre, column.width, len(column.mean) // 2)
    return np.where(np.isnan(values)[:, None], 0.0, (raw - np.asarray(column.mean)) * column.scale)


def fractions(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns how much of each interval lies below each value, 0 to 1, [n] and [k + 1] -> [n, k]; NaN for NaN."""
    intervals = np.arange(len(edges) - 1)
    position = np.interp(values, edges, np.arange(len(edges)))
    return np.clip(position[:, None] - intervals, 0.0, 1.0)


def waves(values: np.ndarray, centre: float, width: float, count: int) -> np.ndarray:
    """Returns sines, then cosines, of 1 to `count` waves, [n] -> [n, 2 count]; NaN for NaN."""
    phase = 2 * np.pi * np.clip((values - centre) / width, -0.5, 0.5)[:, None] * np.arange(1, count + 1)
    return np.concatenate([np.sin(phase), np.cos(phase)], axis=1)


def padded(ids: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Makes an array of lists of ids, int32 [n, length], with `PAD` behind them."""
    found = np.full((len(ids), length), PAD, np.int32)
    for row, own in zip(found, ids, strict=True):
        row[: len(own)] = own
    return found


def codes(fitted: Any, cells: Sequence[str]) -> np.ndarray:
    """Returns the first codes of each cell, eos, pad, int32 [n, t]; `fitted` has the fields of `FittedCodes`."""
    position = {code: i for i, code in enumerate(fitted.codes, start=len(SPECIAL))}
    split = (cell.split()[: fitted.length - 1] for cell in cells)
    return padded([[*(position.get(code, UNK) for code in cell), EOS] for cell in split], fitted.length)


def events(fitted: Any, cells: Sequence[Sequence[Sequence[Any]]]) -> np.ndarray:
    """Returns the newest events of each cell in the order of time, zeros behind them, int32 [n, t, 3].

    A cell is hours, none above 0, codes, and values, None where there is none, of equal length and in any order.
    Of each event there are the id of its code, the bits of its standardised value, NaN where it has none, and those of
    its time, both float32. `fitted` has the fields of `FittedEvents`; a code that it lacks has id 1 and no value.
    """
    place = {code: i for i, code in enumerate(fitted.codes, start=EVENT_IDS)}
    mean, std = np.array([0.0] * EVENT_IDS + list(fitted.mean)), np.array([0.0] * EVENT_IDS + list(fitted.std))
    found = np.zeros((len(cells), fitted.length, 3), np.int32)
    for row, (hours, codes, values) in zip(found, cells, strict=True):
        ids = np.array([place.get(code, EVENT_IDS - 1) for code in codes], np.int32)
        numbers, times = np.array(values, np.float64), np.array(hours, np.float64)
        order = np.lexsort((numbers, ids, times))[-fitted.length :]
        ids, numbers, times = ids[order], numbers[order], times[order]
        spread = std[ids]
        scaled = np.where(spread > 0, (numbers - mean[ids]) / np.where(spread > 0, spread, 1.0), 0.0 * numbers)
        scaled[ids < EVENT_IDS] = np.nan
        row[: len(ids), 0] = ids
        row[: len(ids), 1] = scaled.astype(np.float32).view(np.int32)
        row[: len(ids), 2] = (times / fitted.span).astype(np.float32).view(np.int32)
    return found


def series(fitted: Any, cells: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the means of the stretches of each series, then the shares that were measured, float32 [n, steps * 2 k].

    A cell is [t, k] of any t, NaN in gaps; stretch by stretch there are the k means, 0 where nothing was measured, and
    the k shares. `fitted` has the fields of `FittedSeries`. Raises Unusable: a cell has other channels.
    """
    mean, std, steps = np.array(fitted.mean), np.array(fitted.std), fitted.steps
    found = np.zeros((len(cells), steps, 2 * len(mean)), np.float32)
    for row, cell in zip(found, cells, strict=True):
        if cell.shape[1] != len(mean):
            raise Unusable(f"it has {cell.shape[1]} channels, in training {len(mean)}")
        here, place = ~np.isnan(cell), np.arange(len(cell)) * steps // len(cell)
        scaled = np.where(here & (std > 0), (cell - mean) / np.where(std > 0, std, 1.0), 0.0)
        sums, counts, lengths = (
            np.zeros((steps, len(mean))),
            np.zeros((steps, len(mean))),
            np.bincount(place, minlength=steps),
        )
        np.add.at(sums, place, scaled)
        np.add.at(counts, place, here)
        row[:, : len(mean)] = sums / np.maximum(counts, 1)
        row[:, len(mean) :] = counts / np.maximum(lengths, 1)[:, None]
    return found.reshape(len(cells), steps * 2 * len(mean))


def event_parts(cell: Sequence[Any]) -> tuple[list[float], list[str], list[float | None]]:
    """Returns hours, codes and values of events, [hours, code, value] each or mappings of these.

    Raises Unusable: a time is none or after the prediction, or a value is none that can be computed with.
    """
    parts = [[e["hours"], e["code"], e["value"]] if isinstance(e, dict) else e for e in cell]
    hours, codes, values = (list(part) for part in zip(*parts, strict=True))
    if not all(float(hour) <= 0 for hour in hours) or any(code is None for code in codes):
        raise Unusable("an event has no code, or no time up to the prediction")
    numbers = np.array(values, np.float64)
    if (np.abs(numbers[[value is not None for value in values]]) <= np.finfo(np.float32).max).all():
        return [float(hour) for hour in hours], [str(code) for code in codes], values
    raise Unusable("a value is NaN, infinite or beyond float32")


def in_channels(values: np.ndarray, channels: int) -> np.ndarray:
    """Returns uint8 [h, w] or [h, w, c] with 1 or 3 channels; one is made by the integer weights that Pillow uses."""
    values = values if values.ndim == 3 else values[..., None]
    if values.shape[2] == channels:
        return values
    if channels == 3:
        return np.repeat(values, 3, axis=2)
    wide = values.astype(np.uint32)
    return ((wide @ np.array([19595, 38470, 7471], np.uint32) + 0x8000) >> 16).astype(np.uint8)[..., None]


def read_text(path: pathlib.Path) -> str:
    """Reads a UTF-8 text file; raises ValueError when it is none, is blank or longer than `MAX_TEXT`."""
    if path.stat().st_size > MAX_TEXT:
        raise ValueError("large")
    text = path.read_bytes().decode("utf-8-sig")
    if not text.strip():
        raise ValueError("blank")
    return text


def read_array(path: pathlib.Path) -> np.ndarray:
    """Reads an embedding file, npy [t, d] of real numbers, as float32; never unpickles.

    Raises ValueError: the file is empty or of another form; a header that claims too much is refused before memory is
    taken.
    """
    array = map_array(path)
    if not is_tokens(array):
        raise ValueError("shape")
    return as_float(array)


def map_array(path: pathlib.Path) -> np.ndarray:
    """Maps the array of an npy file of up to `MAX_NUMBERS`; raises ValueError if it is none."""
    try:
        array = _mapped(path)
    except Exception as error:  # numpy parses the header as Python and lets all of the parser's errors through
        raise ValueError("not npy") from error
    if array.size > MAX_NUMBERS:
        raise ValueError("large")
    return array


def _mapped(path: pathlib.Path) -> np.ndarray:
    with _HEADERS:
        return np.lib.format.open_memmap(path, mode="r")


def is_tokens(array: np.ndarray) -> bool:
    """Tells whether an array is [t, d] of real numbers."""
    return bool(array.ndim == 2 and array.size and array.dtype.kind in "fiub")


def tokens(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Returns an array as float32 [t, d] of a shape; raises Unusable: it is another, or not of finite numbers."""
    if not is_tokens(array):
        raise Unusable("it is not [t, d] of real numbers")
    if not np.isfinite(array := as_float(array)).all():
        raise Unusable("it holds NaN or infinite values")
    if list(array.shape) != list(shape):
        raise Unusable(f"it is {list(array.shape)}, the program takes {list(shape)}")
    return array


def sound_series(array: np.ndarray) -> np.ndarray:
    """Returns an array as float32 [t, k]; raises Unusable: it is none, has infinite values, or nothing but gaps."""
    if not is_tokens(array):
        raise Unusable("it is not [t, k] of real numbers; reshape it")
    if np.isinf(array := as_float(array)).any() or np.isnan(array).all():
        raise Unusable("it has infinite values, or nothing but gaps; fix or empty it")
    return array


def as_float(array: np.ndarray) -> np.ndarray:
    """Returns an array as float32; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float32)


def map_pixels(path: pathlib.Path, volume: bool) -> np.ndarray:
    """Maps the pixels of an npy file, [h, w(, c)] or [t, h, w(, c)], and checks their shape, number and type."""
    try:
        array = _mapped(path)
    except OSError:
        raise
    except Exception:  # numpy parses the header as Python and lets all of the parser's errors through
        raise Unusable("it is not a whole npy file without pickled objects") from None
    return checked_pixels(array, volume)


def checked_pixels(array: np.ndarray, volume: bool) -> np.ndarray:
    """Returns pixels that have a shape, a number and a type that can be used; raises Unusable for others."""
    rank = 3 if volume else 2
    if array.ndim not in (rank, rank + 1) or (array.ndim == rank + 1 and array.shape[-1] not in (1, 3)):
        axes = "[t, h, w]" if volume else "[h, w]"
        raise Unusable(f"its array is not {axes}, nor that with 1 or 3 channels last")
    if array.dtype.kind not in "fiub":
        raise Unusable("its array does not hold real numbers")
    frames, height, width = array.shape[:3] if volume else (1, *array.shape[:2])
    limit(height, width, frames, volume)
    return array


def limit(height: int, width: int, frames: int, volume: bool) -> None:
    """Refuses (Unusable) pictures without pixels and immense ones."""
    if min(height, width, frames) < 1:
        raise Unusable("it has no pixels")
    if frames > 1 and not volume:
        raise Unusable("it has several frames, which only a volume may have (kind: volume)")
    if height * width > MAX_PIXELS or height * width * frames > MAX_VOXELS:
        most = f"{MAX_VOXELS // 10**6} million voxels" if volume else f"{MAX_PIXELS // 10**6} million pixels"
        raise Unusable(f"its header claims more than {most}")


def stretched(frames: Sequence[np.ndarray] | np.ndarray, window: str = "stored") -> tuple[int, Frame]:
    """Returns how many frames there are [t, h, w(, c)], and what makes bytes of one, by the bounds of all."""
    bounds = _bounds(frames, window)
    return len(frames), lambda i: to_bytes(frames[i], bounds)


def _bounds(frames: Sequence[np.ndarray] | np.ndarray, window: str) -> tuple[float, float]:
    """Returns the values that become 0 and 255, from all frames of a file; `kinds.images` has the rules."""
    kind = frames[0].dtype
    if kind == np.uint8 or kind == np.bool_:
        return 0.0, (255.0 if kind == np.uint8 else 1.0)
    low, high = extent(frames, window)
    if kind.kind == "f":
        return unit((low, high), window)
    if window != "percentile" and low >= 0 and high < 2 ** _BITS[-1]:
        return 0.0, float(next(2**bits - 1 for bits in _BITS if high < 2**bits))
    return low, high


def unit(bounds: tuple[float, float], window: str) -> tuple[float, float]:
    """Returns the bounds of floats: 0 and 1 for those between them, unless percentiles are asked for."""
    return (0.0, 1.0) if window != "percentile" and bounds[0] >= 0 and bounds[1] <= 1 else bounds


def extent(arrays: Iterable[np.ndarray], window: str) -> tuple[float, float]:
    """Returns the least and the greatest of the values of arrays, or their percentiles where `window` says so.

    Percentiles are those of values drawn from each array, the same at every call; where they are equal, as in a mask
    that is all but empty, least and greatest stand. Raises Unusable: a value is not finite.
    """
    ends: list[tuple[float, float]] = []
    drawn: list[np.ndarray] = []
    draw = np.random.default_rng(0)
    for array in arrays:
        if not array.size:
            continue
        with np.errstate(invalid="ignore"):
            ends.append((float(array.min()), float(array.max())))
        if window == "percentile":
            some = array.ravel()
            drawn.append(some if some.size <= _DRAWN else some[draw.integers(some.size, size=_DRAWN)])
    low, high = (np.min(ends), np.max(ends)) if ends else (0.0, 0.0)
    if not high - low < float(np.finfo(np.float32).max):  # NaN fails too
        raise Unusable("it holds NaN, infinite or immense values")
    if drawn:
        tails = np.percentile(np.concatenate(drawn).astype(np.float64), _TAILS)
        low, high = tails if tails[0] < tails[1] else (low, high)
    return float(low), float(high)


def to_bytes(values: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Stretches values so that `bounds` become 0 and 255; values of equal bounds become 0."""
    low, high = bounds
    if values.dtype == np.uint8 and bounds == (0.0, 255.0):
        return np.asarray(values)
    scale = 255.0 / (high - low) if high > low else 0.0
    wide = np.result_type(values.dtype, np.float32)
    scaled = (values.astype(wide) - wide.type(low)) * wide.type(scale)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def sample(count: int, frame: Frame, length: int) -> np.ndarray:
    """Interpolates frames at `length` evenly spaced times out of `count`; `frame` is i -> uint8 [h, w, c]."""
    position = np.clip((np.arange(length) + 0.5) * count / length - 0.5, 0, count - 1)
    below = np.floor(position).astype(int)
    above = np.minimum(below + 1, count - 1)
    found = {i: frame(i).astype(np.float32) for i in sorted({*below.tolist(), *above.tolist()})}
    share = (position - below).astype(np.float32)
    mixed = [(1 - w) * found[i] + w * found[j] for i, j, w in zip(below, above, share, strict=True)]
    return np.rint(np.stack(mixed)).astype(np.uint8)


def safe_path(root: str | os.PathLike[str], cell: str) -> pathlib.Path:
    """Returns the real path of the file a cell names, which lies below `root`.

    Raises ValueError: the path is absolute, a URL, holds `..`, a backslash or NUL, or a link leads out of `root`.
    """
    if "\0" in cell or "\\" in cell or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|[A-Za-z]:", cell):
        raise ValueError("not a plain relative path")
    if cell.startswith(("/", "~")) or ".." in cell.split("/"):
        raise ValueError("not below the folder")
    base = os.path.realpath(root)
    real = os.path.realpath(os.path.join(base, cell))
    if os.path.commonpath([base, real]) != base:
        raise ValueError("a link leads out of the folder")
    return pathlib.Path(real)
