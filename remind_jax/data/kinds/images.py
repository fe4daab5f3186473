"""Images and volumes from files, as 8-bit pixels of a given size: png, jpeg, dicom, npy, tiff, NIfTI, DICOM folders.

The first bytes of a file decide what it is, not its name. Its header is looked at before anything is decoded: a file
that claims more pixels than the limits of `inputs` is refused. npy files are never unpickled; they hold [h, w] or
[h, w, c], with t in front for a volume, where c is 1 or 3.

Values become bytes so:
  - 8-bit values stay as they are, and bool becomes 0 and 255.
  - Integers from 0 up to 16 bits are divided by the largest value of the smallest of 8, 10, 12, 14 and 16 bits that
    holds the file's largest: cameras often write 12 bits into a 16-bit file, which would be all but black otherwise.
  - Other integers are stretched from the file's smallest to its largest value.
  - Floats must be finite; those in [0, 1] are multiplied by 255, others are stretched as above.
  - DICOM of more than 8 bits is stretched over its stored values without padding (PixelPaddingValue, up to its
    RangeLimit), whatever window it names: a linear rescale changes nothing under that but by its sign, and a table
    (ModalityLUTSequence) or slopes that differ between slices come first. DICOM of floats is as floats above.
  - `window="percentile"` stretches all of these but 8 bits from the 0.5th to the 99.5th percentile of a file's values.
    `window="dicom"` stretches grey DICOM by the first window it names (WindowCenter, else VOILUTSequence) and the rest
    as `stored`, the default, does.

DICOM is inverted once where it is MONOCHROME1 or its PresentationLUTShape is INVERSE, and once where the slope is
negative; padding is 0 in any case. Mammograms (modality MG) whose rows run to the patient's posterior side
(PatientOrientation begins with P) are flipped, so that all breasts face the same way.

A volume is several frames in one file or a folder of DICOM slices of one series. They are ordered by their positions
along the normal of the slices (ImagePositionPatient), else by InstanceNumber. Files whose names begin with a dot, and
DICOMDIR, are passed over; anything else in the folder is refused. NIfTI [x, y, z] becomes frames [z, y, x], turned as
its header says to how DICOM has an axial series: frames go to the head, rows to the back, columns to the patient's
left; where it says nothing the axes stay as they are stored. Pages of a TIFF are frames in their order.

Alpha is laid over black, palettes are looked up, and jpeg is turned as its EXIF says, as image viewers do. One channel
is repeated to three, three become one by luma (ITU-R 601). Images are resized without regard to their aspect:
bilinear, with antialiasing where they shrink. Time is interpolated linearly between the two nearest of a file's T
frames, at positions (i + 1/2) T / t - 1/2 kept inside.
"""

import contextlib
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from remind_jax.data import inputs
from remind_jax.data.files import Look
from remind_jax.data.inputs import Frame, Unusable
from remind_jax.data.kinds import dicom, nifti, tiff

WINDOWS = ("stored", "dicom", "percentile")
FORMS = "png, jpeg, dicom, tiff, nifti or npy"
_DAMAGED = "its data are damaged or cut short"


def check(path: pathlib.Path, *, volume: bool = False) -> Look:
    """Looks at the header of a file of an image or a volume, and tells how far its slices are apart.

    Of compressed DICOM and TIFF the first frame is decoded, as their headers do not tell whether that is possible.

    Raises:
      ValueError: it must not or cannot be decoded; says why in a few words.
      OSError: it cannot be read.
    """
    with _reasons():
        kind = _kind(path, volume=volume)
        if kind in ("dicom", "nifti", "tiff"):
            return {"dicom": dicom, "nifti": nifti, "tiff": tiff}[kind].look(path, volume)
        if kind == "npy":
            inputs.map_pixels(path, volume)
        else:
            _open_picture(path, kind).close()
        return Look()


def read(path: pathlib.Path, shape: tuple[int, ...], window: str = "stored") -> np.ndarray:
    """Decodes a file of an image, to `shape` (height, width, channels), or of a volume, with frames in front: uint8.

    `window` is one of `WINDOWS`.

    Raises:
      ValueError, OSError: as for `check`.
    """
    volume = len(shape) == 4
    with _reasons():
        kind = _kind(path, volume=volume)
        if kind in ("png", "jpeg"):
            return _resize(_read_picture(path, kind, window), shape)
        count, frame = _frames(path, kind, volume, window)
        if not volume:
            return _resize(_picture(frame(0)), shape)
        return inputs.sample(count, lambda i: _resize(_picture(frame(i)), shape[1:]), shape[0])


def _frames(path: pathlib.Path, kind: str, volume: bool, window: str) -> tuple[int, Frame]:
    """Returns how many frames a file or a folder has, and what gives one of them in bytes."""
    if kind == "dicom":
        return dicom.read(path, volume, window)
    if kind == "nifti":
        return inputs.stretched(nifti.read(path, volume), window)
    if kind == "npy":
        array = inputs.map_pixels(path, volume)
        return inputs.stretched(array if volume else array[None], window)
    pages = tiff.read(path, volume)
    if pages.values is None:
        return pages.count, lambda i: np.asarray(_read_page(path, i))
    count, frame = inputs.stretched(pages.values, window)
    return count, lambda i: 255 - frame(i) if pages.inverted else frame(i)


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
    """Names a file's form by its first bytes; a folder is dicom."""
    if path.is_dir():
        return "dicom"
    with path.open("rb") as file:
        start = file.read(540)
    forms = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"\x93NUMPY": "npy"}
    form = next((form for magic, form in forms.items() if start.startswith(magic)), None)
    if form is None and nifti.is_nifti(nifti.start_of(path) if start.startswith(nifti.GZIP) else start):
        form = "nifti"
    if form is None and dicom.is_dicom(start):  # its preamble may begin as a TIFF
        form = "dicom"
    if form is None and start.startswith(tiff.MAGIC):
        form = "tiff"
    if form is None:
        raise Unusable(f"it is not {FORMS}")
    if volume and form in ("png", "jpeg"):
        raise Unusable("a volume is npy, dicom of several frames, a folder of DICOM slices, tiff or nifti")
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


def _read_picture(path: pathlib.Path, kind: str, window: str) -> Any:
    """Decodes a png or a jpeg, mode L or RGB."""
    from PIL import ImageOps

    if kind == "png":
        with _open_picture(path, kind) as picture:
            picture.verify()  # decoding does not look at the check sums
    with _open_picture(path, kind) as picture:
        picture.load()
        if picture.mode.startswith("I"):  # 16-bit grey
            _, frame = inputs.stretched(np.asarray(picture)[None], window)
            return _picture(frame(0))
        if kind == "jpeg":
            with contextlib.suppress(Exception):  # what EXIF says is a courtesy, and it is often damaged
                ImageOps.exif_transpose(picture, in_place=True)
        return _plain(picture)


def _read_page(path: pathlib.Path, page: int) -> Any:
    """Decodes a page of an 8-bit TIFF, whose size was checked, mode L or RGB."""
    from PIL import TiffImagePlugin

    with TiffImagePlugin.TiffImageFile(path) as picture:
        picture.seek(page)
        inputs.limit(picture.height, picture.width, 1, False)  # Pillow may read another of two tags
        picture.load()
        return _plain(picture)


def _plain(picture: Any) -> Any:
    """Converts a picture of 8 bits to mode L or RGB, what is transparent over black."""
    from PIL import Image

    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        black.alpha_composite(picture.convert("RGBA"))
        return black.convert("RGB")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


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
