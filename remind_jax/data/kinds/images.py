"""Images (png, jpeg, dicom, npy) and volumes (npy, multi-frame dicom) from files, as 8-bit pixels of a given size.

The first bytes of a file decide what it is, not its name. Its header is looked at before anything is decoded: a file
that claims more pixels than the limits below is refused. npy files are never unpickled; they hold [h, w] or [h, w, c],
with t in front for a volume, where c is 1 or 3.

Values become bytes so:
  - 8-bit values stay as they are, and bool becomes 0 and 255.
  - Integers from 0 up to 16 bits are divided by the largest value of the smallest of 8, 10, 12, 14 and 16 bits that
    holds the file's largest: cameras often write 12 bits into a 16-bit file, which would be all but black otherwise.
  - Other integers are stretched from the file's smallest to its largest value.
  - Floats must be finite; those in [0, 1] are multiplied by 255, others are stretched as above.
  - DICOM of more than 8 bits is stretched over its stored values without padding, whatever window it names: a linear
    rescale changes nothing under that. MONOCHROME1 is inverted. Mammograms (modality MG) whose rows run to the
    patient's posterior side (PatientOrientation begins with P) are flipped, so that all breasts face the same way.

Alpha is laid over black, palettes are looked up, and jpeg is turned as its EXIF says, as image viewers do. One channel
is repeated to three, three become one by luma (ITU-R 601). Images are resized without regard to their aspect:
bilinear, with antialiasing where they shrink. Time is interpolated linearly between the two nearest of a file's T
frames, at positions (i + 1/2) T / t - 1/2 kept inside.
"""

import contextlib
import logging
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from remind_jax.data import inputs
from remind_jax.data.inputs import Frame, Unusable

_DEFLATED = "1.2.840.10008.1.2.1.99"
_DAMAGED = "its data are damaged or cut short"
_CODECS = "pip install pylibjpeg pylibjpeg-openjpeg pyjpegls python-gdcm (the extra images of remind-jax)"


def check(path: pathlib.Path, *, volume: bool = False) -> None:
    """Looks at the header of a file of an image or a volume.

    Raises:
      ValueError: it must not or cannot be decoded; says why in a few words.
      OSError: it cannot be read.
    """
    with _reasons():
        kind = _kind(path, volume=volume)
        if kind == "npy":
            inputs.map_pixels(path, volume)
        elif kind == "dicom":
            _open_dicom(path, volume=volume)
        else:
            _open_picture(path, kind).close()


def read(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
    """Decodes a file of an image, to `shape` (height, width, channels), or of a volume, with frames in front: uint8.

    Raises:
      ValueError, OSError: as for `check`.
    """
    volume = len(shape) == 4
    with _reasons():
        kind = _kind(path, volume=volume)
        if kind in ("png", "jpeg"):
            return _resize(_read_picture(path, kind), shape)
        if kind == "npy":
            array = inputs.map_pixels(path, volume)
            count, frame = inputs.stretched(array if volume else array[None])
        else:
            count, frame = _read_dicom(path, volume=volume)
        if not volume:
            return _resize(_picture(frame(0)), shape)
        return inputs.sample(count, lambda i: _resize(_picture(frame(i)), shape[1:]), shape[0])


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Turns what decoders raise into one ValueError; troubles of the system and of memory stay what they are."""
    try:
        yield
    except (Unusable, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise Unusable(_DAMAGED) from None
    except Exception:  # decoders of damaged files have no common error
        raise Unusable(_DAMAGED) from None


def _kind(path: pathlib.Path, *, volume: bool) -> str:
    """Names a file's form by its first bytes: npy or dicom, or png or jpeg for an image."""
    with path.open("rb") as file:
        start = file.read(132)
    forms = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"\x93NUMPY": "npy"}
    form = next((form for magic, form in forms.items() if start.startswith(magic)), None)
    if start[128:] == b"DICM" and form is None:
        form = "dicom"
    if form is None:
        raise Unusable("it is not png, jpeg, dicom or npy")
    if volume and form not in ("npy", "dicom"):
        raise Unusable("a volume is npy or multi-frame dicom")
    return form


def _open_picture(path: pathlib.Path, kind: str) -> Any:
    """Opens a picture lazily, and checks its size."""
    from PIL import JpegImagePlugin, PngImagePlugin

    warnings.filterwarnings("ignore", module="PIL")  # of damaged EXIF, which does no harm
    # Not Image.open, which warns of large images on stderr instead of refusing them.
    plugin = PngImagePlugin.PngImageFile if kind == "png" else JpegImagePlugin.JpegImageFile
    picture = plugin(path)
    try:
        inputs.limit(picture.height, picture.width, 1, False)
    except Unusable:
        picture.close()
        raise
    return picture


def _read_picture(path: pathlib.Path, kind: str) -> Any:
    """Decodes a picture, mode L or RGB."""
    from PIL import Image, ImageOps

    if kind == "png":
        with _open_picture(path, kind) as picture:
            picture.verify()  # decoding does not look at the check sums
    with _open_picture(path, kind) as picture:
        picture.load()
        if picture.mode.startswith("I"):  # 16-bit grey
            _, frame = inputs.stretched(np.asarray(picture)[None])
            return _picture(frame(0))
        if kind == "jpeg":
            with contextlib.suppress(Exception):  # what EXIF says is a courtesy, and it is often damaged
                ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
            black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
            black.alpha_composite(picture.convert("RGBA"))
            return black.convert("RGB")
        return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def _open_dicom(path: pathlib.Path, *, volume: bool) -> Any:
    """Parses a data set, its pixels still encoded, and checks whether they may and can be decoded."""
    import pydicom
    from pydicom.pixels import get_decoder

    # What pydicom says of odd values quotes them, and they may be a patient's.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module="pydicom")
    meta = pydicom.filereader.read_file_meta_info(path)
    syntax = meta.get("TransferSyntaxUID")
    if syntax is None or syntax == _DEFLATED:
        raise Unusable("its DICOM transfer syntax is missing or deflated")
    data = pydicom.dcmread(path)
    if "PixelData" not in data or not data.get("Rows") or not data.get("Columns"):
        raise Unusable("it is DICOM without pixels")
    frames = int(data.get("NumberOfFrames") or 1)
    inputs.limit(int(data.Rows), int(data.Columns), frames, volume)
    if frames > 1 and not volume:
        raise Unusable("it is DICOM of several frames, which only a volume may be")
    if not syntax.is_compressed:
        if len(data.PixelData) < pydicom.pixels.utils.get_expected_length(data):
            raise Unusable(_DAMAGED)
        return data
    try:
        decodable = get_decoder(syntax).is_available
    except NotImplementedError:
        decodable = False
    if not decodable:
        raise Unusable(f"its DICOM compression ({syntax.name}) cannot be decoded here: {_CODECS}")
    return data


def _read_dicom(path: pathlib.Path, *, volume: bool) -> tuple[int, Frame]:
    """Returns the number of frames, and what gives one of them as uint8 [h, w] or [h, w, 3]."""
    from pydicom.pixels import apply_color_lut

    data = _open_dicom(path, volume=volume)
    colours = data.get("PhotometricInterpretation", "")
    try:
        values = data.pixel_array
    except Exception:  # decoders of damaged files have no common error
        raise Unusable("its DICOM pixels are damaged or in a form that cannot be decoded here") from None
    if colours == "PALETTE COLOR":
        values = apply_color_lut(values, data)
    elif not colours.startswith(("MONOCHROME", "RGB", "YBR")):
        raise Unusable("its DICOM colours are of an unknown kind")
    grey = colours.startswith("MONOCHROME")
    values = values.reshape(-1, int(data.Rows), int(data.Columns), *([] if grey else [3]))
    orientation = data.get("PatientOrientation") or ""
    first = orientation if isinstance(orientation, str) else orientation[0]
    across = -1 if data.get("Modality") == "MG" and first.startswith("P") else 1
    frame = _grey_frame(values, data) if grey else inputs.stretched(values)[1]
    return len(values), lambda i: frame(i)[:, ::across]


def _grey_frame(values: np.ndarray, data: Any) -> Frame:
    """Returns what makes a frame out of stored grey values [t, h, w]; padding becomes 0."""
    padding, inverted = data.get("PixelPaddingValue"), data.PhotometricInterpretation == "MONOCHROME1"
    real = [np.True_ if padding is None else values[i] != padding for i in range(len(values))]
    if values.dtype == np.uint8:
        bounds = 0.0, 2.0 ** int(data.BitsStored) - 1
    else:
        low, high = values.min(), values.max()
        least = min(frame.min(where=here, initial=high) for frame, here in zip(values, real, strict=True))
        most = max(frame.max(where=here, initial=low) for frame, here in zip(values, real, strict=True))
        bounds = float(least), float(most)

    def frame(i: int) -> np.ndarray:
        scaled = inputs.to_bytes(values[i], bounds)
        return np.where(real[i], 255 - scaled if inverted else scaled, np.uint8(0))

    return frame


def _picture(values: np.ndarray) -> Any:
    """Makes a picture in mode L or RGB of uint8 [h, w], [h, w, 1] or [h, w, 3]."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2:] == (1,) else values))


def _resize(picture: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Resizes a picture in mode L or RGB to uint8 [height, width, channels]."""
    from PIL import Image

    height, width, channels = shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).reshape(shape)
