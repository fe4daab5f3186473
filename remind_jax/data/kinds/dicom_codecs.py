"""Decoding of DICOM's pixels, by what is installed, and what to install for a transfer syntax that is not decoded."""

import importlib.util
import struct
import subprocess
import sys
from typing import Any

import numpy as np

from remind_jax.data.inputs import Unusable

_UNDECODED = "its DICOM pixels are damaged or in a form that cannot be decoded here"
_PART_2 = ("1.2.840.10008.1.2.4.92", "1.2.840.10008.1.2.4.93")  # of JPEG 2000, which nothing decodes
_SIZES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)  # markers of frames
# Writes how colours lie, a line, and the pixels.
_GDCM = """
import sys, gdcm
reader = gdcm.ImageReader()
reader.SetFileName(sys.argv[1])
if not reader.Read():
    sys.exit(1)
image = reader.GetImage()
pixels = image.GetBuffer().encode("utf-8", "surrogateescape")
sys.stdout.buffer.write(b"%d\\n" % image.GetPlanarConfiguration() + pixels)
"""


def check(data: Any, pixels: bytes) -> None:
    """Checks, before anything is decoded, whether compressed pixels may and can be; raises Unusable if not."""
    from pydicom import encaps, uid

    syntax = data.file_meta.TransferSyntaxUID
    if not _plugins(data) and not _by_gdcm(data):
        raise Unusable(f"its DICOM compression ({syntax.name}) cannot be decoded here: {_remedy(syntax)}")
    if syntax != uid.RLELossless:
        frames = encaps.generate_frames(pixels, number_of_frames=int(data.get("NumberOfFrames") or 1))
        if any(_size(frame) != (data.Rows, data.Columns) for frame in frames):
            raise Unusable("its DICOM pixels are not of the size that its header names")


def decoded(data: Any, index: int | None = None) -> np.ndarray:
    """Decodes all frames or one, [t, h, w] of stored grey values or [t, h, w, 3] of colours."""
    from pydicom.pixels import apply_color_lut, pixel_array

    compressed = data.file_meta.TransferSyntaxUID.is_compressed
    if compressed and not (plugins := _plugins(data)):
        compressed = not _expand(data)
    values = None
    for plugin in plugins if compressed else [""]:
        try:
            values = pixel_array(data, index=index, decoding_plugin=plugin)
            break
        except MemoryError:
            raise
        except Exception:  # decoders of damaged files have no common error
            continue
    if values is None:
        raise Unusable(_UNDECODED)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, data)
    last = [] if data.PhotometricInterpretation.startswith("MONOCHROME") else [3]
    return values.reshape(-1, int(data.Rows), int(data.Columns), *last)


def _expand(data: Any) -> bool:
    """Puts into a data set its pixels as gdcm decodes them, in a process of its own, which damaged ones may end."""
    from pydicom import uid

    done = subprocess.run([sys.executable, "-P", "-c", _GDCM, data.filename], capture_output=True, check=False)
    # It fills up what is damaged, and tells so.
    if done.returncode or b"orrupt" in done.stderr or b"remature" in done.stderr:
        raise Unusable(_UNDECODED)
    planes, _, pixels = done.stdout.partition(b"\n")
    data.PixelData, data.PlanarConfiguration = pixels, int(planes)
    data["PixelData"].is_undefined_length = False
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return True


def _size(frame: bytes) -> tuple[int, int]:
    """Returns height and width that a JPEG, JPEG-LS or JPEG 2000 stream claims, for which decoders take memory."""
    if not frame.startswith(b"\xff\xd8"):
        width, height, left, top = struct.unpack_from(">4I", frame, frame.index(b"\xff\x4f\xff\x51") + 8)
        return height - top, width - left
    place = 2
    while frame[place + 1] not in _SIZES:
        fill = frame[place + 1] == 0xFF
        place += 1 if fill else 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    height, width = struct.unpack_from(">2H", frame, place + 5)
    return height, width


def _plugins(data: Any) -> list[str]:
    """Lists what pydicom can decode a data set by, in a fixed order; gdcm has a process of its own."""
    from pydicom import uid
    from pydicom.pixels import get_decoder

    syntax = data.file_meta.TransferSyntaxUID
    if syntax == uid.JPEGExtended12Bit and int(data.BitsStored) > 8:
        return []
    try:
        there = get_decoder(syntax).available_plugins
    except NotImplementedError:
        return []
    return [name for name in ("pydicom", "pillow", "pylibjpeg", "pyjpegls") if name in there]


def _by_gdcm(data: Any) -> bool:
    """Tells whether a data set is of a form that gdcm alone decodes, and gdcm is there."""
    from pydicom import uid

    forms = (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
    return data.file_meta.TransferSyntaxUID in forms and importlib.util.find_spec("gdcm") is not None


def _remedy(syntax: Any) -> str:
    """Says what to do about a transfer syntax that nothing here decodes."""
    from pydicom import uid

    if syntax in uid.JPEGLSTransferSyntaxes:
        packages = "pyjpegls"
    elif syntax in uid.JPEG2000TransferSyntaxes and syntax not in _PART_2:
        packages = "pylibjpeg pylibjpeg-openjpeg"
    elif syntax in uid.JPEGTransferSyntaxes:
        packages = "python-gdcm"
    else:
        return "write it anew without compression"
    return f"pip install {packages} (part of the extra images of remind-jax)"
