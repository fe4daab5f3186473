"""TIFF pictures, and volumes of several pages."""

import contextlib
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from remind_jax.data import inputs
from remind_jax.data.files import Look
from remind_jax.data.inputs import Unusable
from remind_jax.errors import needs

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLAIN, _DEFLATED = ("NONE", "PACKBITS", "LZW"), ("DEFLATE", "ADOBE_DEFLATE")
_COLOURS = ("MINISBLACK", "MINISWHITE", "RGB")  # of more than 8 bits


class Pages(NamedTuple):
    """The pages of a file: how many, and their values unless they are of 8 bits, which Pillow decodes."""

    count: int
    values: np.ndarray | None  # [t, h, w] or [t, h, w, 3]
    inverted: bool  # whether the least value is white


def look(path: pathlib.Path, volume: bool) -> Look:
    """Checks the header of a file, and decodes its first page unless it is of 8 bits; raises Unusable."""
    with _pages(path, volume) as pages:
        if not _is_8_bit(pages[0]):
            _values(pages[0])
    return Look()


def read(path: pathlib.Path, volume: bool) -> Pages:
    """Reads the pages of a file; raises Unusable when they cannot be used."""
    with _pages(path, volume) as pages:
        if _is_8_bit(pages[0]):
            return Pages(len(pages), None, False)
        inverted = pages[0].photometric.name == "MINISWHITE"
        return Pages(len(pages), np.stack([_values(page) for page in pages]), inverted)


@contextlib.contextmanager
def _pages(path: pathlib.Path, volume: bool) -> Iterator[list[Any]]:
    """Opens a file, and checks the number, the sizes and the forms of its pages."""
    try:
        import tifffile
    except ImportError:
        raise Unusable(str(needs("tifffile", "images"))) from None
    tifffile.logger().setLevel("CRITICAL")  # it tells of odd tags on stderr
    with path.open("rb") as stream, tifffile.TiffFile(stream) as file:
        pages = list(file.pages)
        first = pages[0]
        inputs.limit(first.imagelength, first.imagewidth, len(pages), volume)
        if len({(page.shape, page.dtype, page.photometric) for page in pages}) > 1:
            raise Unusable("its pages are of several sizes or forms: write those of one form to a file of its own")
        if (first.imagedepth or 1) > 1 or _interleaved(file):
            raise Unusable("its pages are channels or times next to slices: write each to a file of its own")
        yield pages


def _interleaved(file: Any) -> bool:
    """Tells whether a file of ImageJ has more than one axis next to height and width."""
    told = file.imagej_metadata or {}
    return sum(int(told.get(axis, 1)) > 1 for axis in ("channels", "slices", "frames")) > 1


def _is_8_bit(page: Any) -> bool:
    return page.dtype in (np.uint8, np.bool_)


def _values(page: Any) -> np.ndarray:
    """Decodes a page of more than 8 bits, [h, w] or [h, w, 3]."""
    if page.photometric.name not in _COLOURS or page.dtype is None or page.dtype.kind not in "fiu":
        raise Unusable("its TIFF form is not one that is decoded: write it as grey or RGB")
    if page.compression.name not in (*_PLAIN, *_DEFLATED):
        what = f"its TIFF compression ({page.compression.name}) of more than 8 bits is not decoded"
        raise Unusable(f"{what}: write it with deflate or without")
    if page.compression.name in _DEFLATED:
        _check_inflated(page)
    if "Orientation" in page.tags and page.tags["Orientation"].value != 1:
        raise Unusable("its TIFF is stored turned (Orientation): write it upright")
    try:
        values = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        what = "its TIFF compression (LZW) of more than 8 bits needs imagecodecs"
        raise Unusable(f"{what}: pip install imagecodecs, or write it with deflate") from None
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 3):
        raise Unusable("its TIFF has channels other than grey or RGB: write it so")
    return values


def _check_inflated(page: Any) -> None:
    """Refuses (Unusable) a page of which a part inflates to more than it claims, which tifffile does not limit."""
    most = 2 * page.nbytes + 2**20  # tiles may hang over the edge
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        page.parent.filehandle.seek(offset)
        inflate = zlib.decompressobj()
        inflate.decompress(page.parent.filehandle.read(size), most)
        if inflate.unconsumed_tail:
            raise Unusable("its data inflate to more than its header claims")
