"""DICOM pictures and volumes: single files, files of several frames, and folders that hold the slices of one series."""

import io
import logging
import os
import pathlib
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from remind_jax.data import inputs
from remind_jax.data.files import Look
from remind_jax.data.inputs import Frame, Unusable
from remind_jax.data.kinds import dicom_codecs as codecs

MAGIC = b"DICM"  # after 128 bytes
_BARE = (b"\x08\x00", b"\x00\x08")  # how data sets begin that have no preamble: group 0008
_DAMAGED = "its data are damaged or cut short"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PADDING = ("PixelPadding", "FloatPixelPadding", "DoubleFloatPixelPadding")
_ALIKE = {  # what all slices of a folder have in common, and what a folder is that mixes it
    ("SeriesInstanceUID",): "several series (SeriesInstanceUID)",
    ("Rows", "Columns"): "slices of several sizes",
    ("PhotometricInterpretation",): "slices of several kinds of colours",
    ("ImageOrientationPatient",): "slices of several directions (ImageOrientationPatient)",
}
_ONE_SERIES = "name a folder that holds one series and nothing else"
_MOST_SLICES = 10_000
_MOST_AHEAD = 2**24  # bytes of a deflated data set before its pixels, and after them
_UNEVEN = 0.1  # share of their distance by which those of slices may differ
_SAME_PLACE = 1e-3  # mm


class _Series(NamedTuple):
    """The slices of a folder in their order, and headers without pixels."""

    paths: list[pathlib.Path]
    headers: list[Any]
    look: Look


def is_dicom(start: bytes) -> bool:
    """Tells by the first 132 bytes of a file whether it is DICOM, or may be a data set without a preamble."""
    return start[128:132] == MAGIC or start[:2] in _BARE


def look(path: pathlib.Path, volume: bool) -> Look:
    """Checks a file or a folder of slices, and decodes the first frame; raises Unusable when it cannot be used."""
    if path.is_dir():
        series = _series(path)
        codecs.decoded(_open(series.paths[0], False), 0)
        return series.look
    data = _open(path, volume)
    codecs.decoded(data, 0)
    return Look(spacing=_spacing(data) if volume else None)


def read(path: pathlib.Path, volume: bool, window: str) -> tuple[int, Frame]:
    """Returns the number of frames, and what gives one of them as uint8 [h, w] or [h, w, 3].

    Slices of a folder are decoded when they are asked for. Raises Unusable: the pixels cannot be used.
    """
    if path.is_dir():
        series = _series(path)
        headers = series.headers
        stored: Any = _Lazy(len(headers), lambda i: codecs.decoded(_open(series.paths[i], False))[0])
    else:
        data = _open(path, volume)
        stored = codecs.decoded(data)
        headers = [data] * len(stored)
    grey = headers[0].PhotometricInterpretation.startswith("MONOCHROME")
    frame = _grey(stored, headers, window) if grey else inputs.stretched(stored, window)[1]
    orientation = headers[0].get("PatientOrientation") or ""
    first = orientation if isinstance(orientation, str) else orientation[0]
    across = -1 if headers[0].get("Modality") == "MG" and first.startswith("P") else 1
    return len(stored), lambda i: frame(i)[:, ::across]


class _Lazy(Sequence):
    """Frames that are made when they are asked for."""

    def __init__(self, count: int, get: Callable[[int], np.ndarray]):
        self._count, self._get = count, get

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> np.ndarray:
        if not 0 <= i < self._count:
            raise IndexError(i)
        return self._get(i)


# ---- headers --------------------------------------------------------------------------------------------------------


def _parse(path: pathlib.Path, pixels: bool) -> Any:
    """Parses a data set, with its pixels still encoded or without them."""
    import pydicom

    # What pydicom says of odd values quotes them, and they may be a patient's.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module="pydicom")
    with path.open("rb") as file:
        if file.read(132)[128:] != MAGIC:
            return _bare(path, pixels)
    syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
    if syntax is None:
        raise Unusable("its DICOM transfer syntax is missing: write it anew, for example with gdcmconv")
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
        return _bare(io.BytesIO(_inflated(path)), pixels)
    return pydicom.dcmread(path, stop_before_pixels=not pixels)


def _bare(source: Any, pixels: bool) -> Any:
    """Parses a data set that does not say how it is written; its first element does."""
    import pydicom
    from pydicom import uid

    data = pydicom.dcmread(source, force=True, stop_before_pixels=not pixels)
    implicit, little = data.original_encoding
    plain = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    data.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else plain
    if "PixelData" in data and data["PixelData"].is_undefined_length:
        raise Unusable(
            "it is compressed DICOM that does not name its transfer syntax: write it anew with its file meta"
        )
    return data


def _inflated(path: pathlib.Path) -> bytes:
    """Inflates a deflated data set, up to the size that its header claims."""
    import pydicom

    meta = pydicom.filereader.read_file_meta_info(path)
    deflated = path.read_bytes()[144 + meta.FileMetaInformationGroupLength :]
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflate.decompress(deflated, _MOST_AHEAD)
    header = _bare(io.BytesIO(content), False)
    inputs.limit(int(header.Rows), int(header.Columns), int(header.get("NumberOfFrames") or 1), True)
    claimed = pydicom.pixels.utils.get_expected_length(header)
    content += inflate.decompress(inflate.unconsumed_tail, max(1, claimed))  # 0 would be no limit
    if inflate.unconsumed_tail:
        raise Unusable("it inflates to more than its header claims")
    return content


def _header(path: pathlib.Path, volume: bool, pixels: bool = True) -> Any:
    """Parses a data set, and checks its size and its colours."""
    data = _parse(path, pixels)
    if not data.get("Rows") or not data.get("Columns"):
        raise Unusable("it is DICOM without pixels")
    inputs.limit(int(data.Rows), int(data.Columns), int(data.get("NumberOfFrames") or 1), volume)
    colours = data.get("PhotometricInterpretation") or ""
    if not colours.startswith(("MONOCHROME", "RGB", "YBR", "PALETTE COLOR")):
        raise Unusable("its DICOM colours are of an unknown kind")
    return data


def _open(path: pathlib.Path, volume: bool) -> Any:
    """Parses a data set, its pixels still encoded, and checks whether they may and can be decoded."""
    import pydicom

    data = _header(path, volume)
    pixels = next((data[name].value for name in _PIXELS if name in data), None)
    if pixels is None:
        raise Unusable("it is DICOM without pixels")
    if data.file_meta.TransferSyntaxUID.is_compressed:
        codecs.check(data, pixels)
    elif len(pixels) < pydicom.pixels.utils.get_expected_length(data):
        raise Unusable(_DAMAGED)
    return data


# ---- folders of slices ----------------------------------------------------------------------------------------------


def _series(folder: pathlib.Path) -> _Series:
    """Reads the headers of a folder's slices and puts them into order; raises Unusable unless they are one series."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith(".") and name.upper() != "DICOMDIR")
    if not names:
        raise Unusable("its folder is empty")
    if len(names) > _MOST_SLICES:
        raise Unusable(f"its folder holds more than {_MOST_SLICES} files: {_ONE_SERIES}")
    try:
        paths = [inputs.safe_path(folder, name) for name in names]
    except ValueError:
        raise Unusable("a link in its folder leads out of it: put the file there") from None
    if any(path.is_dir() or not _begins_as_dicom(path) for path in paths):
        raise Unusable(f"its folder holds what is no DICOM file: {_ONE_SERIES}")
    headers = [_header(path, True, pixels=False) for path in paths]
    if any(int(header.get("NumberOfFrames") or 1) > 1 for header in headers):
        raise Unusable("its folder holds DICOM of several frames: name that file in the cell")
    for keywords, mixed in _ALIKE.items():
        if len({_shown(header, keywords) for header in headers}) > 1:
            raise Unusable(f"its folder mixes {mixed}: {_ONE_SERIES}")
    inputs.limit(int(headers[0].Rows), int(headers[0].Columns), len(headers), True)
    order, told = _order(headers)
    return _Series([paths[i] for i in order], [headers[i] for i in order], told)


def _begins_as_dicom(path: pathlib.Path) -> bool:
    with path.open("rb") as file:
        return is_dicom(file.read(132))


def _shown(header: Any, keywords: tuple[str, ...]) -> str:
    """Returns values of a header as they can be compared; numbers are rounded."""
    values = [header.get(keyword) for keyword in keywords]
    if "ImageOrientationPatient" in keywords and values[0]:
        return str((np.round(np.array(values[0], float), 2) + 0.0).tolist())
    return str(values)


def _order(headers: list[Any]) -> tuple[list[int], Look]:
    """Returns the order of slices along their normal, or by their numbers where positions are not known."""
    if len(headers) == 1:
        return [0], Look(spacing=_spacing(headers[0]))
    if all(header.get("ImagePositionPatient") for header in headers):
        places = np.array([header.ImagePositionPatient for header in headers], float)
        axis = np.eye(3)[np.argmax(np.ptp(places, axis=0))]
        if direction := headers[0].get("ImageOrientationPatient"):
            axis = np.cross(*np.array(direction, float).reshape(2, 3))
        along = places @ axis
        order = np.argsort(along, kind="stable")
        gaps = np.diff(along[order])
        if gaps.min() < _SAME_PLACE:
            raise Unusable("slices of its folder lie at one place, being copies, times or echoes: keep one of each")
        uneven = gaps.max() > (1 + _UNEVEN) * gaps.min()
        remark = "naming a folder of slices at uneven distances: some may be missing" if uneven else ""
        return order.tolist(), Look(spacing=float(np.median(gaps)), remark=("W111", remark) if remark else None)
    numbers = [header.get("InstanceNumber") for header in headers]
    if None in numbers or len(set(numbers)) < len(numbers):
        raise Unusable("slices of its folder have neither ImagePositionPatient nor an InstanceNumber of their own")
    return sorted(range(len(headers)), key=lambda i: int(numbers[i])), Look(spacing=_spacing(headers[0]))


def _spacing(data: Any) -> float | None:
    """Returns the distance of slices that a header names, in mm."""
    item = _macro(data, 0, "PixelMeasuresSequence")
    return abs(float(item.get("SpacingBetweenSlices") or data.get("SpacingBetweenSlices") or 0)) or None


def _macro(data: Any, frame: int, name: str) -> Any:
    """Returns the data set that has the values of a functional group for a frame; without groups the file's own."""
    for groups, i in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        if data.get(groups) and i < len(data[groups].value) and data[groups][i].get(name):
            return data[groups][i][name][0]
    return data


# ---- pixels ---------------------------------------------------------------------------------------------------------


def _grey(stored: Sequence[np.ndarray], headers: list[Any], window: str) -> Frame:
    """Returns what makes a frame out of stored grey values [t, h, w]; padding becomes 0."""
    first = headers[0]
    inverted = first.PhotometricInterpretation == "MONOCHROME1" or first.get("PresentationLUTShape") == "INVERSE"
    rescales = [_rescale(header, i) for i, header in enumerate(headers)]
    limits = _limits(first) if window == "dicom" else None
    looked_up = any(header.get("ModalityLUTSequence") for header in headers)
    as_stored = limits is None and not looked_up and len(set(rescales)) == 1
    # A linear rescale changes nothing under stretching, but for its sign.
    inverted ^= as_stored and rescales[0][0] < 0

    def values(i: int) -> tuple[np.ndarray, np.ndarray | None]:
        raw = stored[i]
        found = raw if as_stored else _measured(raw, headers[i], rescales[i])
        return (limits.apply(found) if limits else found), _real(raw, headers[i])

    if limits:
        bounds = limits.bounds
    elif as_stored and stored[0].dtype == np.uint8:
        bounds = 0.0, 2.0 ** int(first.BitsStored) - 1
    else:
        found = (values(i) for i in range(len(stored)))
        bounds = inputs.extent((frame if here is None else frame[here] for frame, here in found), window)
        if stored[0].dtype.kind == "f":
            bounds = inputs.unit(bounds, window)

    def frame(i: int) -> np.ndarray:
        found, here = values(i)
        scaled = inputs.to_bytes(found, bounds)
        scaled = 255 - scaled if inverted else scaled
        return scaled if here is None else np.where(here, scaled, np.uint8(0))

    return frame


def _rescale(data: Any, frame: int) -> tuple[float, float]:
    """Returns slope and intercept of a frame; a slope of 0 is none."""
    item = _macro(data, frame, "PixelValueTransformationSequence")
    return float(item.get("RescaleSlope") or 1), float(item.get("RescaleIntercept") or 0)


def _measured(raw: np.ndarray, data: Any, rescale: tuple[float, float]) -> np.ndarray:
    """Turns stored values into those that were measured, by a table or by slope and intercept."""
    if table := data.get("ModalityLUTSequence"):
        return _looked_up(raw, table[0], data)
    return raw.astype(np.float64) * rescale[0] + rescale[1]


def _real(raw: np.ndarray, data: Any) -> np.ndarray | None:
    """Tells which stored values [h, w] are no padding; None where there is no padding."""
    name = next((name for name in _PADDING if data.get(f"{name}Value") is not None), None)
    if name is None:
        return None
    value = data.get(f"{name}Value")
    ends = [_as_stored(end, raw, data) for end in (value, data.get(f"{name}RangeLimit", value))]
    return (raw < min(ends)) | (raw > max(ends))


def _as_stored(value: Any, raw: np.ndarray, data: Any) -> Any:
    """Returns a padding value as pixels hold it: files write those of signed pixels without a sign, and vice versa."""
    if raw.dtype.kind == "f":
        return float(value)
    if raw.dtype.kind == "i":
        half = 2 ** (int(data.BitsStored) - 1)
        return (int(value) + half) % (2 * half) - half
    return int(value) % 2 ** int(data.BitsAllocated)


class _Limits(NamedTuple):
    """What a file's window makes of measured values: their bounds, after a function has been applied."""

    bounds: tuple[float, float]
    apply: Callable[[np.ndarray], np.ndarray]


def _limits(data: Any) -> _Limits | None:
    """Returns the first window of a file, else its table of values of interest; None where it has neither."""
    item = _macro(data, 0, "FrameVOILUTSequence")
    centre, width = (np.ravel(item.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre[0] is not None and width[0] is not None and float(width[0]) > 0:
        middle, whole, form = float(centre[0]), float(width[0]), item.get("VOILUTFunction") or "LINEAR"
        if form == "SIGMOID":
            return _Limits((0.0, 1.0), lambda x: 1 / (1 + np.exp(-4 * (x - middle) / whole)))
        if form == "LINEAR":
            middle, whole = middle - 0.5, max(whole - 1, 1e-6)
        return _Limits((middle - whole / 2, middle + whole / 2), lambda x: x)
    if table := item.get("VOILUTSequence"):
        most = 2.0 ** int(table[0].LUTDescriptor[2]) - 1
        return _Limits((0.0, most), lambda x: _looked_up(x, table[0], data))
    return None


def _looked_up(values: np.ndarray, table: Any, data: Any) -> np.ndarray:
    """Looks values up in a table of DICOM as float64; pydicom's own functions wrap where its entries have 8 bits."""
    count, first, _ = table.LUTDescriptor
    entries = table.LUTData
    if isinstance(entries, bytes):
        entries = np.frombuffer(entries, "<u2" if data.original_encoding[1] else ">u2")[: count or 2**16]
    return np.array(entries, np.float64)[np.clip(np.rint(values).astype(np.int64) - first, 0, len(entries) - 1)]
