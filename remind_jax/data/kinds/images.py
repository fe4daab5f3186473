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
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

MAX_PIXELS = 100_000_000  # of an image
MAX_VOXELS = 300_000_000  # of a volume: frames x height x width
_BITS = (8, 10, 12, 14, 16)
_DEFLATED = "1.2.840.10008.1.2.1.99"
_DAMAGED = "its data are damaged or cut short"
_CODECS = "pip install pylibjpeg pylibjpeg-openjpeg pyjpegls python-gdcm (the extra images of remind-jax)"

Frame = Callable[[int], np.ndarray]


class _Unusable(ValueError):
    """A reason in a few words, made for the user."""


def check(path: pathlib.Path, *, volume: bool = False) -> None:
    """Looks at the header of a file of an image or a volume.

    Raises:
      ValueError: it must not or cannot be decoded; says why in a few words.
      OSError: it cannot be read.
    """
    with _reasons():
        kind = _kind(path, volume=volume)
        if kind == "npy":
            _map_array(path, volume=volume)
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
            array = _map_array(path, volume=volume)
            count, frame = _stretched(array if volume else array[None])
        else:
            count, frame = _read_dicom(path, volume=volume)
        return _sample(count, frame, shape) if volume else _resize(_picture(frame(0)), shape)


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Turns what decoders raise into one ValueError; troubles of the system and of memory stay what they are."""
    try:
        yield
    except (_Unusable, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise _Unusable(_DAMAGED) from None
    except Exception:  # decoders of damaged files have no common error
        raise _Unusable(_DAMAGED) from None


def _kind(path: pathlib.Path, *, volume: bool) -> str:
    """Names a file's form by its first bytes: npy or dicom, or png or jpeg for an image."""
    with path.open("rb") as file:
        start = file.read(132)
    forms = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"\x93NUMPY": "npy"}
    form = next((form for magic, form in forms.items() if start.startswith(magic)), None)
    if start[128:] == b"DICM" and form is None:
        form = "dicom"
    if form is None:
        raise _Unusable("it is not png, jpeg, dicom or npy")
    if volume and form not in ("npy", "dicom"):
        raise _Unusable("a volume is npy or multi-frame dicom")
    return form


def _limit(height: int, width: int, frames: int, *, volume: bool) -> None:
    if min(height, width, frames) < 1:
        raise _Unusable("it has no pixels")
    if height * width > MAX_PIXELS or height * width * frames > MAX_VOXELS:
        limit = f"{MAX_VOXELS // 10**6} million voxels" if volume else f"{MAX_PIXELS // 10**6} million pixels"
        raise _Unusable(f"its header claims more than {limit}")


def _open_picture(path: pathlib.Path, kind: str) -> Any:
    """Opens a picture lazily, and checks its size."""
    from PIL import JpegImagePlugin, PngImagePlugin

    warnings.filterwarnings("ignore", module="PIL")  # of damaged EXIF, which does no harm
    # Not Image.open, which warns of large images on stderr instead of refusing them.
    plugin = PngImagePlugin.PngImageFile if kind == "png" else JpegImagePlugin.JpegImageFile
    picture = plugin(path)
    try:
        _limit(picture.height, picture.width, 1, volume=False)
    except _Unusable:
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
            _, frame = _stretched(np.asarray(picture)[None])
            return _picture(frame(0))
        if kind == "jpeg":
            with contextlib.suppress(Exception):  # what EXIF says is a courtesy, and it is often damaged
                ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
            black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
            black.alpha_composite(picture.convert("RGBA"))
            return black.convert("RGB")
        return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def _map_array(path: pathlib.Path, *, volume: bool) -> np.ndarray:
    """Maps the array [h, w(, c)] or [t, h, w(, c)] and checks its shape and type; mapping checks the length."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception:  # numpy parses the header as Python and lets all of the parser's errors through
        raise _Unusable("it is not a whole npy file without pickled objects") from None
    rank = 3 if volume else 2
    if array.ndim not in (rank, rank + 1) or (array.ndim == rank + 1 and array.shape[-1] not in (1, 3)):
        axes = "[t, h, w]" if volume else "[h, w]"
        raise _Unusable(f"its array is not {axes}, nor that with 1 or 3 channels last")
    if array.dtype.kind not in "fiub":
        raise _Unusable("its array does not hold real numbers")
    frames, height, width = array.shape[:3] if volume else (1, *array.shape[:2])
    _limit(height, width, frames, volume=volume)
    return array


def _stretched(frames: np.ndarray) -> tuple[int, Frame]:
    """Returns how many frames there are [t, h, w(, c)], and what makes bytes of one, by the bounds of all."""
    bounds = _bounds(frames)
    return len(frames), lambda i: _bytes(frames[i], bounds)


def _bounds(frames: np.ndarray) -> tuple[float, float]:
    """Returns the values that become 0 and 255, from all frames of a file; see the top of this page."""
    kind = frames[0].dtype
    if kind == np.uint8 or kind == np.bool_:
        return 0.0, (255.0 if kind == np.uint8 else 1.0)
    with np.errstate(invalid="ignore"):
        low = float(np.min([frame.min() for frame in frames]))
        high = float(np.max([frame.max() for frame in frames]))
    if not high - low < float(np.finfo(np.float32).max):  # NaN fails too
        raise _Unusable("it holds NaN, infinite or immense values")
    if kind.kind == "f":
        return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    if low >= 0 and high < 2 ** _BITS[-1]:
        return 0.0, float(next(2**bits - 1 for bits in _BITS if high < 2**bits))
    return low, high


def _bytes(values: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Stretches values so that `bounds` become 0 and 255; values of equal bounds become 0."""
    low, high = bounds
    if values.dtype == np.uint8 and bounds == (0.0, 255.0):
        return np.asarray(values)
    scale = 255.0 / (high - low) if high > low else 0.0
    wide = np.result_type(values.dtype, np.float32)
    scaled = (values.astype(wide) - wide.type(low)) * wide.type(scale)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


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
        raise _Unusable("its DICOM transfer syntax is missing or deflated")
    data = pydicom.dcmread(path)
    if "PixelData" not in data or not data.get("Rows") or not data.get("Columns"):
        raise _Unusable("it is DICOM without pixels")
    frames = int(data.get("NumberOfFrames") or 1)
    _limit(int(data.Rows), int(data.Columns), frames, volume=volume)
    if frames > 1 and not volume:
        raise _Unusable("it is DICOM of several frames, which only a volume may be")
    if not syntax.is_compressed:
        if len(data.PixelData) < pydicom.pixels.utils.get_expected_length(data):
            raise _Unusable(_DAMAGED)
        return data
    try:
        decodable = get_decoder(syntax).is_available
    except NotImplementedError:
        decodable = False
    if not decodable:
        raise _Unusable(f"its DICOM compression ({syntax.name}) cannot be decoded here: {_CODECS}")
    return data


def _read_dicom(path: pathlib.Path, *, volume: bool) -> tuple[int, Frame]:
    """Returns the number of frames, and what gives one of them as uint8 [h, w] or [h, w, 3]."""
    from pydicom.pixels import apply_color_lut

    data = _open_dicom(path, volume=volume)
    colours = data.get("PhotometricInterpretation", "")
    try:
        values = data.pixel_array
    except Exception:  # decoders of damaged files have no common error
        raise _Unusable("its DICOM pixels are damaged or in a form that cannot be decoded here") from None
    if colours == "PALETTE COLOR":
        values = apply_color_lut(values, data)
    elif not colours.startswith(("MONOCHROME", "RGB", "YBR")):
        raise _Unusable("its DICOM colours are of an unknown kind")
    grey = colours.startswith("MONOCHROME")
    values = values.reshape(-1, int(data.Rows), int(data.Columns), *([] if grey else [3]))
    orientation = data.get("PatientOrientation") or ""
    first = orientation if isinstance(orientation, str) else orientation[0]
    across = -1 if data.get("Modality") == "MG" and first.startswith("P") else 1
    frame = _grey_frame(values, data) if grey else _stretched(values)[1]
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
        scaled = _bytes(values[i], bounds)
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


def _sample(count: int, frame: Frame, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolates frames at evenly spaced times out of `count`, uint8 [frames, height, width, channels]."""
    length, *size = shape
    position = np.clip((np.arange(length) + 0.5) * count / length - 0.5, 0, count - 1)
    below = np.floor(position).astype(int)
    above = np.minimum(below + 1, count - 1)
    wanted = sorted({*below.tolist(), *above.tolist()})
    resized = {i: _resize(_picture(frame(i)), tuple(size)).astype(np.float32) for i in wanted}
    share = (position - below).astype(np.float32)
    mixed = [(1 - w) * resized[i] + w * resized[j] for i, j, w in zip(below, above, share, strict=True)]
    return np.rint(np.stack(mixed)).astype(np.uint8)
