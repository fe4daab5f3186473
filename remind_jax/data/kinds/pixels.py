"""Images and volumes: 8-bit pixels of one size, from files that `images` decodes or from cells."""

import collections
import concurrent.futures
import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from remind_jax.data import files
from remind_jax.data.findings import Finding
from remind_jax.data.kinds import images
from remind_jax.data.kinds.kind import FitOptions, FittedKind, Kind, Rows, described
from remind_jax.data.schema import InputSpec, Modality, shown
from remind_jax.errors import UserError

_FLAT, _MOST = 8, 95  # levels of 256 that hold this percentage of the pixels of a picture without contrast
_WITHOUT = (
    f"naming a picture without contrast ({_MOST} of 100 pixels lie within {_FLAT} of 256 levels); see whether it is "
    "empty, or choose data.window=percentile or dicom"
)
BLOCKS, FRAMES = 8, 4  # blocks that plain models see of an image in each direction, and of a volume in time


@dataclasses.dataclass(frozen=True)
class FittedPixels(FittedKind):
    """8-bit pixels of an image or a volume, passed on as they are; the model normalises them on the device."""

    shape: tuple[int, ...]
    window: str = "stored"  # one of `images.WINDOWS`

    @property
    def spec(self) -> InputSpec:
        return (IMAGE if len(self.shape) == 3 else VOLUME).spec(self.shape)

    def encode(self, raw: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        values = raw[name]
        if values.shape[1:] != self.shape:
            raise UserError(f"E008 {name}: pixels are {list(values.shape[1:])}, in training {list(self.shape)}")
        return values

    def example(self, modality: Modality) -> dict[str, Any]:
        return {modality.columns[0]: {"ramp": list(self.shape), "dtype": "uint8"}}

    def plain(self, values: np.ndarray) -> np.ndarray:
        """Returns means over a few blocks, [n, p]."""
        return shrink(values)

    def adopt(self, modality: Modality, where: str) -> Modality:
        if modality.shape != self.shape:
            found = f"pixels of {modality.name!r} are {list(modality.shape)}"
            raise UserError(f"{where}: {found}, in the run {list(self.shape)}")
        if (window := _window(modality)) != self.window:
            raise UserError(f"{where}: {modality.name!r} was read by data.window={window}, in the run {self.window}")
        return modality


class Pixels(Kind):
    """8-bit pixels; the subclasses differ in their number of axes."""

    volume = False
    dtype = np.dtype(np.uint8)
    keys = ("column", "channels")
    optional = ("channels",)
    stored = "file"
    paths = True
    forms = images.FORMS
    fitted = FittedPixels

    def parse(self, name: str, entry: Mapping[str, Any], image_size: int, frames: int) -> Modality:
        channels = entry.get("channels", 3)
        if channels not in (1, 3) or isinstance(channels, bool):
            raise UserError(f"modalities.{name}.channels must be 1 or 3, not {shown(channels)}")
        modality = super().parse(name, entry, image_size, frames)
        size = (image_size, image_size, channels)
        return dataclasses.replace(modality, shape=(frames, *size) if self.volume else size)

    def _value_problems(self, modality: Modality, values: pl.Series, where: str) -> list[Finding]:
        if values.dtype == pl.Array(pl.UInt8, modality.shape):
            return []
        text = f"{where}holds {values.dtype}, not 8-bit pixels {list(modality.shape)}; convert the cells"
        return [Finding("E008", text, True)]

    def windowed(self, modality: Modality, window: str) -> Modality:
        # Digests of what is read as ever stay the same.
        options = {} if window == "stored" else {"window": window}
        return dataclasses.replace(modality, options={**modality.options, **options})

    def look(self, path: pathlib.Path, modality: Modality, thorough: bool) -> files.Look:
        try:
            found = images.check(path, volume=self.volume)
            if thorough and not found.remark and _flat(images.read(path, modality.shape, _window(modality))):
                return found._replace(remark=("W110", _WITHOUT))
            return found
        except ValueError as error:
            raise files.Fault("E007", f"naming a file that cannot be used: {error}") from None

    def decode(self, modality: Modality, rows: Rows) -> dict[str, np.ndarray]:
        """Returns pixels, uint8 [n, *shape], zeros where missing."""
        column = rows.cells(modality.columns[0])
        here = np.flatnonzero(column.is_not_null())
        column = column.drop_nulls()
        values = np.zeros((len(rows.places), *modality.shape), np.uint8)
        if modality.stored == "cell":
            if len(here):
                values[here] = column.to_numpy()
            return {modality.name: values}

        window = _window(modality)

        def read(position: int, cell: str) -> None:
            try:
                values[position] = images.read(files.safe_path(rows.root, cell), modality.shape, window)
            except (ValueError, OSError) as error:
                # Messages of the system hold the path, and paths may hold a patient's name.
                reason = error.strerror if isinstance(error, OSError) else str(error)
                where = f"{described(modality.columns[0], modality)}row {rows.places[position] + 1}"
                raise UserError(f"E007 {where} names a file that cannot be used: {reason}; {files.REMEDY}") from None

        with concurrent.futures.ThreadPoolExecutor(files.THREADS) as pool:
            # The first failure of the lowest row is the one that is told.
            collections.deque(pool.map(read, here.tolist(), column.to_list()), maxlen=0)
        return {modality.name: values}

    def fit(self, modality: Modality, rows: Rows, options: FitOptions) -> FittedPixels:
        return FittedPixels(modality.shape, _window(modality))


class Image(Pixels):
    """One picture, [height, width, channels]."""

    name = encoder = "image"
    endings = (".png", ".jpg", ".jpeg", ".dcm", ".tif", ".tiff")


class Volume(Pixels):
    """Several frames, [frames, height, width, channels]."""

    name = encoder = "volume"
    volume = folders = True
    endings = (".nii", ".nii.gz")


def _window(modality: Modality) -> str:
    return modality.options.get("window", "stored")


def _flat(pixels: np.ndarray) -> bool:
    """Tells whether nearly all pixels of a picture lie within a few levels."""
    tail = (100 - _MOST) / 2
    low, high = np.percentile(pixels, (tail, 100 - tail))
    return bool(high - low < _FLAT)


IMAGE, VOLUME = Image(), Volume()


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Averages blocks of 8-bit pixels, [n, (frames,) height, width, channels] -> [n, p] in 0 to 1."""
    xp, values = pixels.__array_namespace__(), pixels.astype(np.float32) / np.float32(255.0)
    limits = (FRAMES, BLOCKS, BLOCKS)[5 - values.ndim :]  # an image has no frames
    for axis, most in enumerate(limits, start=1):
        length = values.shape[axis]
        if length > most:
            starts = (np.arange(1, most) * length // most).tolist()
            values = xp.stack([xp.mean(part, axis=axis) for part in xp.split(values, starts, axis=axis)], axis=axis)
    return values.reshape(values.shape[0], math.prod(values.shape[1:]))
