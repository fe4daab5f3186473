"""Training from Python: `fit` on a frame in memory or a manifest's folder, and what its columns are declared to be."""

import dataclasses
import numbers
import pathlib
import runpy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from remind_jax import cli, methods, tasks
from remind_jax.config import leaves, set_values
from remind_jax.data import dataset, labels, reading, targets
from remind_jax.data.cells import as_string
from remind_jax.data.findings import Finding
from remind_jax.data.importers import plan
from remind_jax.data.importers import table as importer
from remind_jax.data.manifest import Manifest
from remind_jax.errors import UserError
from remind_jax.inference.predictor import Predictor
from remind_jax.training import run


@dataclasses.dataclass(frozen=True)
class Declared:
    """A modality as `fit` is told of it: `kind`, and the entries of schema.yaml that this kind has."""

    kind: str
    entry: Mapping[str, Any]

    def to_entry(self) -> dict[str, Any]:
        """Returns the modality's entry in schema.yaml."""
        return {"kind": self.kind, **self.entry}

    def titled(self, title: str) -> "Declared":
        """Returns the modality with what pages and figures call it."""
        return Declared(self.kind, {**self.entry, "title": title})


def Table(columns: Sequence[str], categorical: Sequence[str] = (), *, missing: Sequence[str | float] = ()) -> Declared:
    """Declares numbers and categories that are one modality, missing where every cell is empty.

    `missing` are words and numbers, such as -999, that stand for empty cells, now and in rows to predict.
    """
    entry = {"columns": list(columns), "categorical": list(categorical), "missing": list(missing)}
    return Declared("tabular", {key: value for key, value in entry.items() if value})


def Text(column: str, *, stored: str = "cell") -> Declared:
    """Declares texts; `stored="file"` says that cells are relative paths of UTF-8 files."""
    return Declared("text", {"column": column, "stored": stored})


def Codes(column: str) -> Declared:
    """Declares codes separated by spaces, such as diagnoses."""
    return Declared("codes", {"column": column})


def Image(column: str, *, channels: int = 3) -> Declared:
    """Declares relative paths of png, jpeg, DICOM or npy images, which are turned into 1 or 3 channels."""
    return Declared("image", {"column": column, "channels": channels})


def Volume(column: str, *, channels: int = 3) -> Declared:
    """Declares relative paths of volumes or videos: npy [t, h, w(, c)] or DICOM of several frames."""
    return Declared("volume", {"column": column, "channels": channels})


def Embedding(column: str) -> Declared:
    """Declares tokens computed before, lists [t, d] in cells or relative paths of npy files."""
    return Declared("embedding", {"column": column})


def Series(column: str, *, steps: int = 64) -> Declared:
    """Declares regular channels with gaps: lists [t, k] in cells, or relative paths of npy files, as `steps` means."""
    return Declared("series", {"column": column, "steps": steps})


def Events(
    table: str, *, key: str, time: str, code: str, until: str, value: str = "", most: int = 256, odd: str = "refuse"
) -> Declared:
    """Declares events of a long table, which `tables={table: frame}` holds: one row an event, several a sample.

    `key`, a column of both tables, says whose an event is; `time`, `code` and `value` are columns of the long one, the
    last for events with numbers. `until` is a column of the samples, the time of the prediction: what is later is left
    out. Times are dates, texts such as 2150-01-31 12:00:00, or hours. The newest `most` events of a sample are used;
    `odd` is what values become that are no numbers: refuse, missing, or limit (200 of >200).
    """
    entry = {"table": table, "key": key, "time": time, "code": code, "value": value, "until": until, "most": most}
    return Declared("events", {name: given for name, given in (entry | {"odd": odd}).items() if given})


Modalities = Mapping[str, Declared | Sequence[str]]


def fit(
    data: Any,
    label: str | Mapping[str, Any] | None = None,
    *,
    patient: str | None = None,
    sample: str | None = None,
    split: str | None = None,
    modalities: Modalities | None = None,
    attributes: Mapping[str, Any] | None = None,
    method: str | None = None,
    size: str = "small",
    seed: int = 0,
    held_out: float = 0.2,
    tuning: float = 0.1,
    workdir: str | pathlib.Path | None = None,
    progress: bool | None = None,
    on_changed_data: str = "refuse",
    tables: Mapping[str, Any] | None = None,
    search: int = 0,
    space: str = "",
    **keys: Any,
) -> Predictor:
    """Trains a model on rows with missing modalities and reports on patients held out.

    The call installs no signal handlers, sets no environment, and writes nothing without `workdir`. Ctrl-C after the
    first evaluation ends training with the best model so far.

    Args:
      data: a pandas or polars frame, one row a sample, in which an empty cell is missing; or a manifest's folder, or a
        `Manifest`, which say all that `label` to `modalities` say of a frame.
      label: the column of classes, or `{"column": …, "classes": […]}` to set their order, with `"ordered": True` where
        they have one; or the entry `label` of schema.yaml of another task, such as `{"task": "regression", "column":
        …}`, `{"task": "multilabel", "columns": […]}` or `{"task": "survival", "time": …, "event": …, "horizons": […]}`.
        `names` says how pages write classes or several labels, such as `{"0": "survived"}`, and `title` the label.
        Rows without it are left out. A column of more than 20 different numbers, not all of them whole, is taken for
        that of a regression, and ordered categories of pandas for ordered classes, which is told.
      patient: the column of patients, whom no split cuts; without it each row is taken for a patient, which is told.
      sample: the column of unique ids; without it rows are counted from 1.
      split: a column of train, tuning and held_out, where the data bring one.
      modalities: what columns are, by name of the modality: `Table`, `Text`, `Codes`, `Image`, `Volume`, `Embedding`,
        `Series`, `Events`, each with `.titled("…")` where pages should name it otherwise; or a list of columns (shell
        patterns are allowed), whose kind is guessed. Other columns are then not used. None guesses all modalities as
        `remind import` does, and prints them.
      tables: frames of events, by the name that an `Events` among the modalities has for its table.
      attributes: columns by whose values the report gives figures, such as `{"sex": "sex", "age": {"column": "age",
        "bins": [40, 65]}}`. They are inputs only where `modalities` names them, too.
      method: a key of `remind_jax.methods.METHODS` or `ARENA`; None is `remind_blend`, four networks and two plain
        models whose predictions are averaged with weights, or `remind` with `size="paper"`.
      size: `small` trains in minutes on a CPU, `paper` has the published hyper-parameters; `quick` is a smoke run,
        whose figures mean nothing.
      seed: of split, initial weights and order of samples.
      held_out: share of the patients that the report is about. With 0 it is about the tuning rows, and says so.
      tuning: share of the patients by which weights are chosen. With 0 the last weights are taken, of networks alone.
      workdir: the folder of a run, which the same call goes on with after a stop, and which the commands open.
      progress: False prints nothing.
      on_changed_data: a `workdir` whose run was begun on other data is an error by default; with `restart` it begins
        anew, and what was made of the old data is removed.
      search: number of trials that choose keys before the model is trained, by Optuna's TPE and rows that are not held
        out (docs/search.md); the report says so. A `workdir` keeps them in its folder `search`.
      space: what is searched, such as `"optim.lr=1e-4..1e-2:log,model.width=32|64"`, in place of what suits the method.
      **keys: any key of a config (docs/configuration.md): `optim={"lr": 1e-3}` or `**{"optim.lr": 1e-3}`. Paths in
        cells start from the current folder, or from `**{"data.root": "/scans"}`.

    Returns the model, whose `report` shows itself in a notebook. Raises UserError: in one line, what is wrong with the
    data or a setting, and what to do.
    """
    config, verbose = make_config(method, size, seed, held_out, tuning, keys), progress is not False
    if isinstance(data, str | pathlib.Path):
        if pathlib.Path(data).is_file():
            raise UserError(f"{data} is a file: read it into a frame first, or make a folder of it by `remind import`")
        config.data.root = str(data)
        manifest = dataset.read(config)
    else:
        columns = {"patient": patient, "sample": sample, "split": split, "attributes": attributes, "verbose": verbose}
        columns |= {"tables": tables}
        manifest = data if isinstance(data, Manifest) else read_frame(data, label, modalities, config, **columns)
        config.data.digest = manifest.digest
    suit(config, manifest, keys)
    if on_changed_data not in (known := ("refuse", "restart")):
        raise UserError(f"on_changed_data={on_changed_data!r} is unknown; known: {', '.join(known)}")
    if search or space:
        config = _searched(config, manifest, workdir, verbose, on_changed_data, search, space, keys)
    return train(config, manifest, workdir, verbose, on_changed_data).model


def _searched(
    config: Any,
    manifest: Manifest,
    workdir: str | pathlib.Path | None,
    verbose: bool,
    on_changed_data: str,
    trials: int,
    space: str,
    keys: Mapping[str, Any],
) -> Any:
    """Returns the config with the keys that a search has chosen, see `fit`."""
    from remind_jax.studies import search  # which takes a moment

    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise UserError(f"search={trials!r} must be a number of trials, such as 20")

    def train_fold(config: Any, folder: pathlib.Path | None) -> search.Predictions:
        model, data = run.fit(config, manifest, folder, verbose=False, breakable=False)
        found = model.predict_store(data.stores["tuning"])
        return search.Predictions(model.task, found.labels, found.probabilities)

    folder = None if workdir is None else pathlib.Path(workdir) / "search"
    asked = search.Asked(trials, space, dict(leaves(keys)))
    found = search.find(config, manifest, asked, train_fold, folder, verbose, on_changed_data)
    if found is None:
        raise UserError(f"other processes have trials of {folder} under way: call again when they have ended")
    return found[0]


def suit(config: Any, manifest: Manifest, keys: Mapping[str, Any]) -> None:
    """Sets what suits the task of the rows, but for the keys that are given."""
    given = dict(leaves(keys))
    suits = tasks.TASKS[manifest.schema.task].suits(config, manifest)
    set_values(config, {key: value for key, value in suits.items() if key not in given})


def train(
    config: Any, manifest: Manifest, workdir: str | pathlib.Path | None, verbose: bool, on_changed_data: str = "refuse"
) -> run.Fit:
    """Trains on rows in memory, see `fit`. Raises UserError as it does."""
    return run.fit(config, manifest, None if workdir is None else pathlib.Path(workdir), verbose, on_changed_data)


def read_folder(
    folder: str | pathlib.Path, *, image_size: int = 32, frames: int = 8, window: str = "stored"
) -> Manifest:
    """Reads a manifest's folder as input to `fit`; pictures become bytes as the keys of section `data` say.

    Raises UserError: the folder cannot be used, in one line with the codes of `remind check`.
    """
    return reading.read_manifest(folder, image_size=image_size, frames=frames, window=window)


def make_config(
    method: str | None, size: str, seed: int, held_out: float, tuning: float, keys: Mapping[str, Any]
) -> Any:
    """Makes the config of own data, with the keys that `fit` is given. Raises UserError as it does."""
    chosen = methods.parse_arg(f"size={size}" + (f",method={method}" if method else ""), methods.OWN)
    if method in methods.PLAIN:
        raise UserError(f"method={method!r} has no network: take it from scikit-learn, or give it to `remind train`")
    config = runpy.run_path(str(cli.CONFIGS / "manifest.py"))["get_config"](
        ",".join(f"{key}={value}" for key, value in chosen.items())
    )
    for name, share in {"held_out": held_out, "tuning": tuning}.items():
        if not isinstance(share, numbers.Real) or not 0 <= share < 1:
            raise UserError(f"{name}={share!r} must be a share of the patients, at least 0 and below 1")
    config.data.cache, config.data.fractions = dataset.UNPREPARED, (1.0 - held_out - tuning, tuning, held_out)
    if not tuning:
        config.train.select = "last"
    if not isinstance(keys, Mapping):
        raise UserError("keys must be a mapping such as {'optim.lr': 1e-3}")
    set_values(config, {"seed": seed, **keys})
    return config


def read_frame(
    data: Any,
    label: str | Mapping[str, Any] | None,
    modalities: Modalities | None,
    config: Any,
    *,
    patient: str | None = None,
    sample: str | None = None,
    split: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    verbose: bool = True,
    tables: Mapping[str, Any] | None = None,
) -> Manifest:
    """Makes a manifest of a frame as `remind import` would; arguments as for `fit`, which raises the same errors.

    The config then tells that rows came from memory: paths of new ones, too, start from its `data.root`.
    """
    frame = reading.as_polars(data)
    label, plain = _with_order(data, label), label
    column, classes, entry = _label(label)
    many = _is_many_numbers(frame, column) if column == label else 0
    entry = {"task": "regression", "column": column} if many else entry
    given = {"patient": patient, "sample": sample, "split": split}
    roles = {role: "" if name is None else str(name) for role, name in given.items()} | {"label": entry or column}
    told = {"modalities": _entries(modalities), "rest": modalities is None, "classes": classes or ()}
    long = {key: reading.as_polars(each) for key, each in (tables or {}).items()}
    found = importer.from_table(frame, name="table", **told, **roles, long=long, attributes=attributes)
    found.schema["name"] = "frame"
    if entry is None and isinstance(label, Mapping):
        found.schema["label"] |= _more_of(label)
    if many:
        told = f"label {column!r} has {many} different numbers: taken for a value (task regression)"
        found.notes.append(f"{told}; label={{'column': …, 'classes': […]}} makes them classes")
    if label is not plain:
        found.notes.append(f"label {column!r} has ordered categories: taken for ordered classes (task ordinal)")
    if verbose:
        for line in plan.plan_lines(found) if modalities is None else plan.notes(found):
            print(line)
    options = {key: config.data[key] for key in ("image_size", "frames", "bad_files", "window")}
    manifest = reading.of_frame(found.schema, found.table, config.data.root, **options)
    notes = (*(Finding("I001", note, False) for note in found.notes), *manifest.notes)
    told = {"title": "data frame", "notes": notes, "label_type": _type_of(reading.values_of(data, column))}
    manifest = dataclasses.replace(manifest, **told)
    config.data.digest = manifest.digest
    return manifest


def _with_order(data: Any, label: str | Mapping[str, Any] | None) -> str | Mapping[str, Any] | None:
    """Returns a label that pandas holds as ordered categories as the entry that says so, any other as it is."""
    column = data[label] if hasattr(data, "iloc") and isinstance(label, str) and label in data else None
    if not getattr(getattr(column, "dtype", None), "ordered", False):
        return label
    return {"column": label, "classes": column.cat.remove_unused_categories().cat.categories.tolist(), "ordered": True}


def _is_many_numbers(frame: pl.DataFrame, column: str) -> int:
    """Returns how many different numbers a label has that can only be a value: many, not all of them whole; else 0."""
    if column not in frame.columns or not frame[column].dtype.is_float():
        return 0
    known = frame[column].fill_nan(None).drop_nulls().unique()
    return len(known) if len(known) > labels.MOST_NUMBERS and (known != known.round()).any() else 0


def _entries(modalities: Modalities | None) -> dict[str, Any] | None:
    """Returns what `importers.table.from_table` takes. Raises UserError: modalities are described otherwise."""
    if modalities is None:
        return None
    if not isinstance(modalities, Mapping):
        raise UserError("modalities must be a mapping such as {'labs': ['na', 'k'], 'note': rj.Text('note')}")
    return {name: _entry(name, given) for name, given in modalities.items()}


def _entry(name: str, given: Declared | Sequence[str]) -> dict[str, Any] | list[str]:
    if isinstance(given, Declared):
        return given.to_entry()
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        kinds = "Table, Text, Codes, Image, Volume, Embedding, Series, Events"
        raise UserError(f"modality {name!r} must be a list of columns or one of {kinds}, such as rj.Text('note')")
    return [str(column) for column in given]


def _label(label: str | Mapping[str, Any] | None) -> tuple[str, list[str] | None, dict[str, Any] | None]:
    """Returns the column of the label; its classes in order, None where the data tell them; the entry of another task.

    Raises UserError: it is no label.
    """
    if label is None:
        raise UserError("a frame needs label=COLUMN, the column of classes")
    if not isinstance(label, Mapping):
        return str(label), None, None
    if label.get("task", "classes") not in ("classes", "ordinal"):
        entry = {key: list(value) if isinstance(value, tuple) else value for key, value in label.items()}
        return targets.of_entry(entry).label, None, entry
    if unknown := sorted(set(label) - set(known := ("column", "classes", "ordered", "task", "names", "title"))):
        raise UserError(f"label has the unknown key {unknown[0]!r}; keys are {', '.join(known)}, or a task's own")
    classes = label.get("classes")
    if isinstance(classes, str) or not isinstance(classes, Iterable | None):
        raise UserError("label['classes'] must be a list")
    return str(label.get("column", "")), None if classes is None else list(map(_class_name, classes)), None


def _more_of(label: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what an entry `label` of schema.yaml says next to column and classes, of a label with classes."""
    more = {key: label[key] for key in ("names", "title") if key in label}
    if isinstance(names := more.get("names"), Mapping):
        more["names"] = {_class_name(name): text for name, text in names.items()}
    return more | ({"ordered": True} if label.get("ordered") or label.get("task") == "ordinal" else {})


def _class_name(value: Any) -> str:
    """Writes a class as the manifest has it."""
    return as_string(pl.Series([value])).item()


def _type_of(labels: pl.Series) -> str:
    """Names the type of the user's labels, a key of `inference.predictor.LABEL_TYPES`."""
    if labels.dtype.is_integer():
        return "integer"
    if labels.dtype.is_float() or labels.dtype.is_decimal():
        return "number"
    return "boolean" if labels.dtype == pl.Boolean else "text"
