"""Turns rows of the raw table into what the program takes, with numpy and the standard library alone.

    from encode import encode
    from load import load
    predict = load(FOLDER)
    predict(encode([{"age": 71, "sex": "f", "note": None, …}]))["probabilities"]     # or encode("new.csv")

A row is a mapping from columns to values. None, NaN, blanks and words such as NA, None and null are missing cells; a
modality without its columns is missing in all rows. A text, a list of codes or a category is a string or a number. An
embedding is an array or nested lists [t, d], an image [h, w] or [h, w, c], a volume has frames in front; each may be
the path of an .npy file. Events are [[hours, code, value or None], …], none above 0; a series is [t, k] of any t, NaN
or None in gaps. Pixels must have the height and width of the program: nothing is resized here, and PNG, JPEG and DICOM
are not decoded. A pretrained tokenizer needs `pip install tokenizers`.

`python encode.py` and `python load.py` check the folder by the made-up row of example.json; exit code 1 if it differs.
"""

import csv
import functools
import json
import math
import os
import pathlib
import re
import sys
import types
import unicodedata

import numpy as np

from remind_jax.data import inputs

_WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # what Unicode calls white space
_BLANKS, _OUTER = re.compile(f"[{_WHITE}]+"), re.compile(f"^[{_WHITE}]+|[{_WHITE}]+$")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.ASCII | re.IGNORECASE)
_SPACE = "\u2581"  # stands for a blank in pieces of words
_UNKNOWN_COST = 10.0  # of a character in no piece, below the score of the rarest piece
_SHOWN = 4096  # numbers of an input that example.json holds


def encode(rows, folder=None, root=None):
    """Returns the inputs of rows, [n, ...] by modality, and `present`, bool [n, modalities].

    `rows` are mappings from columns to values, or the path of a CSV file; `folder` is that of the program, by default
    this file's; relative paths in cells start from `root`, by default the CSV's folder or the current one.

    Raises ValueError: a column or a cell cannot be used; one line that names it and holds no cell's text.
    """
    if isinstance(rows, (str, os.PathLike)):
        root = pathlib.Path(rows).parent if root is None else root
        rows = read_csv(rows)
    schema, fitted = _opened(pathlib.Path(folder or pathlib.Path(__file__).parent).resolve())
    return encoded(list(rows), schema, fitted, root or ".")


def encoded(rows, schema, fitted, root="."):
    """Does what `encode` does, with the content of schema.json, and what `fitted_of` makes of preprocessing.json."""
    if not rows:
        raise ValueError("there are no rows")
    columns = {name: [_cell(row.get(name)) for row in rows] for name in {key: None for row in rows for key in row}}
    modalities = {each["name"]: each for each in schema["columns"]["modalities"]}
    batch = {x["name"]: np.zeros((len(rows), *x["shape"][1:]), x["dtype"]) for x in schema["inputs"][:-1]}
    present = np.zeros((len(rows), len(batch)), bool)
    for j, (name, entry) in enumerate(fitted.items()):
        wanted = [*modalities[name]["columns"], *modalities[name]["categorical"]]
        absent = [column for column in wanted if column not in columns]
        if len(absent) == len(wanted):
            continue
        if absent:
            needed = ", ".join(wanted)
            raise ValueError(f"column {absent[0]!r} ({name}) is not in the rows; its modality needs {needed}")
        if entry.kind not in KINDS:
            raise ValueError(f"{name!r} is of kind {entry.kind}, which encode.py does not know: leave its columns out")
        modality = types.SimpleNamespace(**modalities[name] | {"root": root, "shape": batch[name].shape[1:]})
        values, present[:, j] = KINDS[entry.kind](entry, modality, columns)
        batch[name][present[:, j]] = values
    if not present.any():
        raise ValueError("no row has any modality")
    return batch | {"present": present}


def read_csv(file):
    """Reads the rows of a UTF-8 CSV file with a header line."""
    with open(file, newline="", encoding="utf-8-sig") as opened:
        reader = csv.DictReader(opened)
        rows = list(reader)
    if any(None in row for row in rows):
        raise ValueError(f"{file}: a row has more cells than the header")
    return rows


@functools.cache
def _opened(folder):
    """Returns the content of schema.json, and what is fitted of each modality."""
    schema, content = (json.loads((folder / f"{x}.json").read_text("utf-8")) for x in ("schema", "preprocessing"))
    return schema, fitted_of(content)


def fitted_of(preprocessing):
    """Returns by name what the content of preprocessing.json says of each modality."""
    return {entry["name"]: _fields(entry) for entry in preprocessing["modalities"]}


def _fields(entry):
    """Gives the parts of an entry as attributes."""
    encodings = {name: entry.get(name, ()) for name in ("quantiles", "pieces", "waves")}
    columns = {name: [types.SimpleNamespace(**column) for column in each] for name, each in encodings.items()}
    # Made when it is used: a pretrained one needs a package.
    to_ids = functools.cache(functools.partial(_to_ids, entry.get("tokenizer"), entry.get("length"), entry["name"]))
    return types.SimpleNamespace(**entry | columns, to_ids=to_ids)


def _cell(cell):
    """Returns a cell, None if it is missing in any of the ways that tables have, scalars of numpy as Python's."""
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, str):
        return None if _OUTER.sub("", cell).lower() in inputs.MISSING_TOKENS else cell
    is_nan = isinstance(cell, float) and math.isnan(cell)
    return None if is_nan or type(cell).__name__ in ("NAType", "NaTType") else cell  # of pandas


def _present(cells):
    return np.array([cell is not None for cell in cells], bool)


def _strings(cells, where):
    """Returns single values as strings; floats of a column that are all whole are written without a point."""
    for i, cell in enumerate(cells, start=1):
        if not isinstance(cell, (str, bool, int, float, types.NoneType)):
            raise ValueError(f"{where}row {i} holds {type(cell).__name__}; it must be a string or a number")
    known = [cell for cell in cells if cell is not None]
    if any(isinstance(cell, float) for cell in known) and not any(isinstance(cell, str) for cell in known):
        cells = [cell if cell is None else float(cell) for cell in cells]
        if all(math.isinf(cell) or cell == round(cell) for cell in cells if cell is not None):
            return [None if cell is None or abs(cell) >= 2**63 else str(int(cell)) for cell in cells]
    return [cell if cell is None or isinstance(cell, str) else _written(cell) for cell in cells]


def _written(value):
    """Writes a number as polars does."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and (value == 0 or 1e-5 <= abs(value) < 1e16):
        return np.format_float_positional(value, trim="0")
    return re.sub(r"e([+-])0", r"e\1", repr(value)) if isinstance(value, float) else str(value)


def _number(cell):
    """Returns a cell as a float, NaN if it is missing; None if it is no number."""
    if cell is None:
        return math.nan
    if isinstance(cell, str):
        cell = _OUTER.sub("", cell).lower()
        cell = {"true": "1", "false": "0"}.get(cell, cell)
        return float(cell) if _NUMBER.fullmatch(cell) else None
    return float(cell) if isinstance(cell, (bool, int, float)) else None


def _float_column(cells, where, odd, unit):
    """Returns a numeric column as float32 [n], NaN for a missing cell; `odd` says what cells become that are none."""
    numbers = [_number(cell) for cell in cells] if odd == "refuse" else _odd_numbers(cells, odd == "limit", unit)
    if None in numbers:
        raise ValueError(f"{where}row {numbers.index(None) + 1} is not a number; fix or empty it")
    values = np.array(numbers, np.float64)
    large = np.abs(values) > np.finfo(np.float32).max
    if large.any():
        raise ValueError(f"{where}row {int(np.argmax(large)) + 1} is infinite or beyond float32; empty it")
    return values.astype(np.float32)


def _odd_numbers(cells, limits, unit):
    """Returns cells as floats, NaN where they are none; `limits` takes 200 for >200, 7.5 for 5-10; `unit` may follow.

    Whether commas are decimal marks or stand between thousands is what the other cells of these rows show.
    """
    texts = {i: _OUTER.sub("", cell) for i, cell in enumerate(cells) if isinstance(cell, str)}
    if any(_number(text) is None for text in texts.values()):
        texts = dict(zip(texts, _without_marks(list(texts.values()), unit), strict=True))
    found = [_number(cell) if i not in texts else _number(texts[i]) for i, cell in enumerate(cells)]
    for i, value in enumerate(found if texts else ()):
        if value is None or abs(value) > float(np.finfo(np.float32).max):
            text = texts.get(i, "")
            named = (re.search(inputs.LIMIT, text) or re.search(inputs.RANGE, text)) if limits else None
            found[i] = sum(map(float, named.groups())) / len(named.groups()) if named else math.nan
    return found


def _without_unit(text, unit):
    found = re.search(inputs.UNIT, text)
    there = re.sub(inputs.PLURAL, r"\1", found[2].strip().lower()) if found else ""
    return found[1] if there and there == unit and there not in inputs.NO_UNITS else text


def _emptied(cells, words):
    """Returns cells, None for those that are words or numbers that mean missing."""
    numbers = {_number(word) for word in words} - {None}

    def means_missing(cell):
        return (isinstance(cell, str) and _OUTER.sub("", cell) in words) or _number(cell) in numbers

    return [None if words and means_missing(cell) else cell for cell in cells]


def _without_marks(texts, unit):
    """Returns cells with points for decimals and nothing between thousands or behind."""
    texts = [_without_unit(text, unit) for text in texts]
    if any(re.search(inputs.LONG_MINUS, text) for text in texts):
        texts = [text.replace("−", "-") for text in texts]
    texts = [re.sub(r"['\s]", "", text) if re.search(inputs.GROUPED, text) else text for text in texts]
    commas = [text.strip(inputs.LIMIT_SIGNS) for text in texts if re.search(inputs.WITH_COMMA, text)]
    if not commas:
        return texts
    dots = [text for text in texts if re.search(inputs.WITH_DOT, text)]
    by_point = all(re.search(inputs.POINT, text) for text in commas)
    by_comma = all(re.search(inputs.COMMA, x) for x in commas) and all(re.search(inputs.DOTS, x) for x in dots)
    if by_point and by_comma:
        others = [value for text in texts if (value := _number(text)) is not None]
        by_comma, by_point = False, bool(others) and all(abs(x) < 1000 and x % 1 == 0 for x in others)
    if by_comma:
        return [re.sub(r"([0-9])\.([0-9])", r"\1\2", text).replace(",", ".") for text in texts]
    if by_point:
        return [re.sub("([0-9]),([0-9])", r"\1\2", text) for text in texts]
    return [text.replace(",", "") if re.search(inputs.SURE_POINT, text) else text for text in texts]


def _from_table(fitted, modality, columns):
    where = {column: f"column {column!r} ({modality.name}): " for column in (*fitted.columns, *fitted.categorical)}
    columns = {column: _emptied(columns[column], modality.options.get("missing", ())) for column in where}
    numeric = np.zeros((len(next(iter(columns.values()))), len(fitted.columns)), np.float32)
    for j, column in enumerate(fitted.columns):
        unit = modality.options.get("units", {}).get(column, "")
        numeric[:, j] = _float_column(columns[column], where[column], modality.options.get("odd", "refuse"), unit)
    here, categorical = ~np.isnan(numeric).all(axis=1) & bool(fitted.columns), None
    if fitted.categorical:
        found = [_strings(columns[column], where[column]) for column in fitted.categorical]
        categorical = np.array([[_OUTER.sub("", cell or "") for cell in column] for column in found], object).T
        here |= (categorical != "").any(axis=1)
        categorical = categorical[here]
    return inputs.table(fitted, numeric[here], categorical), here


def _from_codes(fitted, modality, columns):
    cells = _strings(columns[modality.columns[0]], f"column {modality.columns[0]!r} ({modality.name}): ")
    apart = str.maketrans(dict.fromkeys(modality.options.get("between", ""), " "))
    cells = [cell and (cell.translate(apart).strip() or None) for cell in cells]
    return inputs.codes(fitted, [cell for cell in cells if cell is not None]), _present(cells)


def _from_text(fitted, modality, columns):
    if modality.stored == "file":
        texts, here = _from_cells(modality, columns, lambda cell, path: inputs.read_text(path))
    else:
        cells = _strings(columns[modality.columns[0]], f"column {modality.columns[0]!r} ({modality.name}): ")
        texts, here = [cell for cell in cells if cell is not None], _present(cells)
    return inputs.padded([fitted.to_ids()(text) for text in texts], fitted.length), here


def _from_tokens(fitted, modality, columns):
    def read(cell, path):
        return inputs.tokens(inputs.map_array(path) if path else np.asarray(cell), modality.shape)

    found, here = _from_cells(modality, columns, read)
    return np.array(found, np.float32).reshape(-1, *modality.shape), here


def _from_pixels(fitted, modality, columns):
    *length, height, width, channels = modality.shape

    def read(cell, path):
        volume = bool(length)
        array = inputs.map_pixels(path, volume) if path else inputs.checked_pixels(np.asarray(cell), volume)
        if array.shape[volume : 2 + volume] != (height, width):
            size = " x ".join(map(str, array.shape[volume : 2 + volume]))
            raise inputs.Unusable(f"it has {size} pixels, the program takes {height} x {width}: resize it first")
        count, frame = inputs.stretched(array if volume else array[None], fitted.window)
        if not volume:
            return inputs.in_channels(frame(0), channels)
        return inputs.sample(count, lambda i: inputs.in_channels(frame(i), channels), length[0])

    found, here = _from_cells(modality, columns, read)
    return np.array(found, np.uint8).reshape(-1, *modality.shape), here


def _from_events(fitted, modality, columns):
    cells = {column: [cell or None for cell in columns[column]] for column in modality.columns}
    found, here = _from_cells(modality, cells, lambda cell, path: inputs.event_parts(cell))
    return inputs.events(fitted, found), here


def _from_series(fitted, modality, columns):
    def read(cell, path):
        return inputs.series(fitted, [inputs.sound_series(inputs.map_array(path) if path else np.array(cell, float))])

    found, here = _from_cells(modality, columns, read)
    return np.array(found, np.float32).reshape(-1, *modality.shape), here


def _from_cells(modality, columns, read):
    """Reads the arrays or texts of a column: `read` takes a cell and, if it is a string, its path."""
    cells, found = columns[modality.columns[0]], []
    for i, cell in enumerate(cells, start=1):
        if cell is None:
            continue
        where = f"column {modality.columns[0]!r} ({modality.name}): row {i} "
        try:
            found.append(read(cell, inputs.safe_path(modality.root, cell) if isinstance(cell, str) else None))
        except inputs.Unusable as error:
            raise ValueError(f"{where}cannot be used: {error}") from None
        except (ValueError, TypeError, OSError, AttributeError) as error:
            raise ValueError(f"{where}cannot be read ({type(error).__name__}); see the top of encode.py") from None
    return found, _present(cells)


KINDS = {
    "tabular": _from_table,
    "codes": _from_codes,
    "text": _from_text,
    "embedding": _from_tokens,
    "image": _from_pixels,
    "volume": _from_pixels,
    "events": _from_events,
    "series": _from_series,
}


# ---- Words of a text -------------------------------------------------------------------------------------------------


def _to_ids(tokenizer, length, name):
    """Returns a function from a text to its ids, at most `length`, out of the JSON of a `tokenizers.Tokenizer`."""
    if is_own(tokenizer):
        pieces = _Pieces(tokenizer["model"]["vocab"])
        return lambda text: [*pieces.ids(text, length - 1), inputs.EOS]
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError(f"{name!r} has a pretrained tokenizer, which needs: pip install tokenizers") from None
    made = Tokenizer.from_str(json.dumps(tokenizer))
    made.encode_special_tokens = True  # "</s>" written in a note is ordinary text
    made.no_padding()
    made.enable_truncation(length)
    return lambda text: made.encode(text).ids


def is_own(tokenizer):
    """Tells whether a tokenizer is one that training made, which is read without any package."""
    steps = (tokenizer.get("normalizer") or {}).get("normalizers", [])
    spelled = [{"type": "Replace", "pattern": {"String": x}, "content": f"< {x[1:]}"} for x in inputs.SPECIAL]
    blanks = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    before = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always", "split": True}
    return steps == [{"type": "NFKC"}, blanks, *spelled, strip] and tokenizer.get("pre_tokenizer") == before


class _Pieces:
    """The most probable pieces of words, each with a score: a Unigram model (Kudo 2018, arXiv 1804.10959)."""

    def __init__(self, vocabulary):
        self._pieces = {piece: (i, score) for i, (piece, score) in enumerate(vocabulary)}
        self._longest = max(map(len, self._pieces))
        self._unknown = inputs.UNK, min(score for _, score in vocabulary) - _UNKNOWN_COST

    def ids(self, text, most):
        """Returns the first ids of a text."""
        text = _BLANKS.sub(" ", unicodedata.normalize("NFKC", text))
        for word in inputs.SPECIAL:
            text = text.replace(word, f"< {word[1:]}")
        text = _OUTER.sub("", text).replace(" ", _SPACE)
        text = text if not text or text.startswith(_SPACE) else _SPACE + text
        found = []
        for word in re.findall(f"{_SPACE}[^{_SPACE}]*", text):
            if len(found) >= most:
                break
            found += self._of_word(word)
        return found[:most]

    def _of_word(self, word):
        """Returns the ids of the best way to cut a word; unknown characters in a row are one."""
        best = [(0.0, 0, None)] + [None] * len(word)  # by end: score, start and id of the last piece
        unknown = self._unknown
        for start in range(len(word)):
            score = best[start][0]
            for stop in range(start + 1, min(len(word), start + self._longest) + 1):
                i, own = self._pieces.get(word[start:stop], unknown if stop == start + 1 else (None, 0.0))
                if i is not None and (best[stop] is None or score + own > best[stop][0]):
                    best[stop] = score + own, start, i
        found, stop = [], len(word)
        while stop:
            _, start, i = best[stop]
            if not (i == inputs.UNK and found and found[-1] == inputs.UNK):
                found.append(i)
            stop = start
        return found[::-1]


# ---- The worked row --------------------------------------------------------------------------------------------------


def worked(folder):
    """Returns the contents of example.json."""
    return json.loads((pathlib.Path(folder) / "example.json").read_text(encoding="utf-8"))


def row_of(cells):
    """Returns the row of example.json, where `{"ramp": shape, "dtype": name}` stands for an array."""
    return {name: _ramp(**cell) if isinstance(cell, dict) else cell for name, cell in cells.items()}


def _ramp(ramp, dtype):
    values = np.arange(math.prod(ramp)) % 256
    return (values if dtype == "uint8" else values / 256).reshape(ramp).astype(dtype)


def shown(batch):
    """Returns what example.json holds of inputs: shape, type, the first numbers and the sum of all."""
    return {
        name: {
            "shape": list(x.shape),
            "dtype": x.dtype.name,
            "first": x.reshape(-1)[:_SHOWN].tolist(),
            "sum": float(x.sum(dtype=np.float64)),
        }
        for name, x in batch.items()
    }


def differences(found, expected):
    """Lists the inputs that are not those of example.json."""
    return [name for name in expected if name not in found or not _alike(found[name], expected[name])]


def _alike(one, two):
    same = one["shape"] == two["shape"] and one["dtype"] == two["dtype"]
    return same and all(np.allclose(one[key], two[key], rtol=1e-5, atol=1e-5) for key in ("first", "sum"))


def check(folder):
    """Encodes the worked row of a folder; returns its inputs, and the names of those that differ."""
    example = worked(folder)
    if not example:
        raise ValueError("example.json is empty: no modality is of a kind that encode.py knows")
    batch = encode([row_of(example["row"])], folder)
    return batch, differences(shown(batch), example["inputs"])


if __name__ == "__main__":
    _, wrong = check(pathlib.Path(__file__).parent)
    print(f"differs: {', '.join(wrong)}" if wrong else "ok: inputs of example.json")
    sys.exit(bool(wrong))
