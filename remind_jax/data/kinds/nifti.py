"""NIfTI volumes, [x, y, z] in one file (.nii, .nii.gz), as frames [z, y, x]."""

import gzip
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from remind_jax.data import inputs
from remind_jax.data.files import Look
from remind_jax.data.inputs import Unusable
from remind_jax.errors import needs

GZIP = b"\x1f\x8b"
_LENGTH = 540  # of the longer header, NIfTI-2
_MAGIC = {b"n+1\0": 344, b"n+2\0": 4}  # and where it stands
_MOST_AHEAD = 2**26  # bytes of header and extensions before the values


def is_nifti(start: bytes) -> bool:
    """Tells by the first 540 bytes of a file, unpacked, whether it is NIfTI in one file."""
    if start[344:348] == b"ni1\0":
        raise Unusable("it is NIfTI in two files (.hdr and .img): write it as one, .nii")
    return any(start[place : place + 4] == magic for magic, place in _MAGIC.items())


def start_of(path: pathlib.Path) -> bytes:
    """Returns the first bytes of a file, unpacked where it is gzip."""
    with _opened(path) as file:
        return file.read(_LENGTH)


def look(path: pathlib.Path, volume: bool) -> Look:
    """Checks the header of a file; raises Unusable when it cannot be used."""
    header, shape = _header(path, volume)
    offset, size = int(header["vox_offset"]), math.prod(shape) * header.get_data_dtype().itemsize
    if not _packed(path) and path.stat().st_size < offset + size:
        raise Unusable("its data are damaged or cut short")
    distance = float(header.get_zooms()[2]) if len(shape) > 2 else 0.0
    return Look(spacing=distance if math.isfinite(distance) and distance > 0 else None)


def read(path: pathlib.Path, volume: bool) -> Sequence[np.ndarray]:
    """Reads frames [t, h, w], by the header's slope and intercept; raises Unusable when they cannot be used."""
    header, shape = _header(path, volume)
    dtype, offset = header.get_data_dtype(), int(header["vox_offset"])
    with _opened(path) as file:
        file.seek(offset)
        content = file.read(math.prod(shape) * dtype.itemsize)
    frames = _turned(np.frombuffer(content, dtype).reshape(shape, order="F"), header)
    slope, intercept = header.get_slope_inter()
    return frames if slope in (None, 1.0) and not intercept else _Scaled(frames, slope, intercept)


class _Scaled(Sequence):
    """Frames that are scaled when they are asked for."""

    def __init__(self, frames: np.ndarray, slope: float, intercept: float):
        self._frames, self._slope, self._intercept = frames, slope, intercept

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, i: int) -> np.ndarray:
        return self._frames[i].astype(np.float64) * self._slope + self._intercept


def _packed(path: pathlib.Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == GZIP


def _opened(path: pathlib.Path) -> Any:
    return gzip.open(path) if _packed(path) else path.open("rb")


def _header(path: pathlib.Path, volume: bool) -> tuple[Any, tuple[int, ...]]:
    """Reads a header, and returns it and the shape [x, y, z] of the values; nothing after it is read."""
    try:
        import nibabel
    except ImportError:
        raise Unusable(str(needs("nibabel", "images"))) from None
    nibabel.imageglobals.logger.setLevel("CRITICAL")  # it tells of odd headers on stderr
    start = start_of(path)
    kind = nibabel.Nifti1Header if start[344:348] == b"n+1\0" else nibabel.Nifti2Header
    header = kind(start[: kind.template_dtype.itemsize])
    shape = tuple(int(length) for length in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3):
        raise Unusable("it has times or channels next to x, y and z: write each, or their mean, to a file of its own")
    shape = (*shape, 1)[:3]
    if header.get_data_dtype().kind not in "fiu":
        raise Unusable("its array does not hold real numbers")
    inputs.limit(shape[1], shape[0], shape[2], volume)
    if not 0 <= float(header["vox_offset"]) <= _MOST_AHEAD:
        raise Unusable("its header is damaged")
    return header, shape


def _turned(array: np.ndarray, header: Any) -> np.ndarray:
    """Turns [x, y, z] to frames [z, y, x] as DICOM has them, where the header says how the patient lies in it.

    Frames then go to the head, rows to the back and columns to the patient's left.
    """
    from nibabel import orientations as turns

    if header["sform_code"] > 0 or header["qform_code"] > 0:
        here = turns.io_orientation(header.get_best_affine())
        array = turns.apply_orientation(array, turns.ornt_transform(here, turns.axcodes2ornt("LPS")))
    return array.transpose(2, 1, 0)
