"""Writes small image and volume files for tests."""

import pathlib
import struct
import zlib

import numpy as np
from PIL import Image


def ramp(height: int = 6, width: int = 8, channels: int = 0, seed: int = 0) -> np.ndarray:
    """Smooth uint8 pixels [h, w] or [h, w, c] that no flip, turn or change of channels leaves as they are."""
    rng = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None, :]
    parts = [rows * rng.uniform(60, 120) + columns * rng.uniform(10, 50) + rng.uniform(0, 80) for _ in range(3)]
    pixels = np.rint(np.stack(parts, axis=-1)).astype(np.uint8)
    return pixels[..., :channels] if channels else pixels[..., 0]


def write_picture(path: pathlib.Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> pathlib.Path:
    """Writes uint8 [h, w] or [h, w, c], or uint16 [h, w], as the png or jpeg that the name says; `mode` converts."""
    picture = Image.fromarray(pixels)
    picture = picture.convert(mode) if mode else picture
    picture.save(path, "PNG" if path.suffix == ".png" else "JPEG", **options)
    return path


def write_png_header(path: pathlib.Path, width: int, height: int) -> pathlib.Path:
    """A png of about 80 bytes whose header claims any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


def write_npy_header(path: pathlib.Path, shape: tuple[int, ...], descr: str = "|u1", content: bytes = b"") -> None:
    """An npy file whose header claims any shape."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        file.write(content)


def write_dicom(path: pathlib.Path, values: np.ndarray | None, **tags: object) -> pathlib.Path:
    """Writes DICOM with the stored values uint8 or uint16, [h, w], [h, w, 3] or with `NumberOfFrames` [t, h, w].

    Args:
      path: of the file.
      values: the pixels; None leaves them out.
      tags: keywords of DICOM elements, which replace the defaults.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    data.Modality = "OT"
    if values is not None:
        frames = values.reshape(-1, *values.shape[-2:]) if "NumberOfFrames" in tags else values[None]
        data.SamplesPerPixel = frames.shape[3] if frames.ndim == 4 else 1
        data.PhotometricInterpretation = "RGB" if data.SamplesPerPixel == 3 else "MONOCHROME2"
        data.Rows, data.Columns = frames.shape[1:3]
        data.BitsAllocated = data.BitsStored = values.dtype.itemsize * 8
        data.HighBit, data.PixelRepresentation = data.BitsStored - 1, 0
        if data.SamplesPerPixel == 3:
            data.PlanarConfiguration = 0
        data.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes()
        data["PixelData"].VR = "OW" if values.dtype.itemsize > 1 else "OB"
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    data.save_as(path, enforce_file_format=True)
    return path
