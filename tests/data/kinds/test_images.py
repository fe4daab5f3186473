import functools
import pathlib
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from remind_jax.data.kinds import images
from tests.data.image_files import ramp, write_dicom, write_npy_header, write_picture, write_png_header

SIZE = (6, 8)  # of `ramp`, so that reading at this size does not resize
SAMPLES = pathlib.Path(pydicom.__file__).parent / "data" / "test_files"


def grey(path):
    images.check(path)
    return images.read(path, (*SIZE, 1))[..., 0]


def colour(path):
    images.check(path)
    return images.read(path, (*SIZE, 3))


def save(path, array):
    np.save(path, array)
    return path


# ---- what is decoded ------------------------------------------------------------------------------------------------


def test_eight_bits_stay_as_they_are_in_every_lossless_form(tmp_path):
    pixels, rgb = ramp(), ramp(channels=3)
    for path in (write_picture(tmp_path / "g.png", pixels), save(tmp_path / "g.npy", pixels)):
        np.testing.assert_array_equal(grey(path), pixels)
    for path in (
        write_picture(tmp_path / "c.png", rgb),
        save(tmp_path / "c.npy", rgb),
        write_dicom(tmp_path / "c.dcm", rgb),
    ):
        np.testing.assert_array_equal(colour(path), rgb)
    np.testing.assert_array_equal(grey(write_dicom(tmp_path / "g.dcm", pixels)), pixels)
    np.testing.assert_array_equal(grey(save(tmp_path / "one.npy", pixels[..., None])), pixels)


def test_jpeg_is_close(tmp_path):
    rgb = ramp(channels=3)
    read = colour(write_picture(tmp_path / "c.jpg", rgb, quality=100, subsampling=0))
    np.testing.assert_allclose(read.astype(int), rgb.astype(int), atol=4)


def test_channels_are_repeated_or_become_luma(tmp_path):
    pixels = ramp()
    repeated = colour(write_picture(tmp_path / "g.png", pixels))
    np.testing.assert_array_equal(repeated, np.stack([pixels] * 3, axis=-1))
    rgb = np.zeros((*SIZE, 3), np.uint8)
    rgb[..., 0], rgb[..., 1], rgb[..., 2] = 200, 100, 50
    luma = grey(write_picture(tmp_path / "c.png", rgb))
    np.testing.assert_allclose(luma, 0.299 * 200 + 0.587 * 100 + 0.114 * 50, atol=1)


@pytest.mark.parametrize(("bits", "largest"), [(16, 65535), (16, 40000), (14, 16383), (12, 4095), (12, 3000), (8, 200)])
@pytest.mark.parametrize("form", ["png", "npy"])
def test_16_bit_values_are_divided_by_the_range_that_holds_them(tmp_path, form, bits, largest):
    values = (ramp() / 255 * largest).astype(np.uint16)
    values[0, 0], values[5, 7] = 0, largest
    path = tmp_path / f"x.{form}"
    read = grey(write_picture(path, values) if form == "png" else save(path, values))
    np.testing.assert_array_equal(read, np.rint(values / (2**bits - 1) * 255))


def test_16_bit_colour_png_keeps_its_high_bytes(tmp_path):
    # Pillow does not write it: [256, 2] pixels in one row, colour type 2, depth 16.
    import struct
    import zlib

    row = b"\0" + struct.pack(">6H", 65535, 0, 257 * 7, 0, 257 * 100, 65535)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(row)), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    (tmp_path / "x.png").write_bytes(content)
    read = images.read(tmp_path / "x.png", (1, 2, 3))
    assert read.tolist() == [[[255, 0, 7], [0, 100, 255]]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]]), [0, 128, 255]),
        (np.array([[0.25, 0.5, 0.5]], np.float32), [64, 128, 128]),
        (np.array([[0.0, 1.0, 2.0]], np.float16), [0, 128, 255]),
        (np.array([[-1.0, 0.0, 1.0]]), [0, 128, 255]),
        (np.array([[-1000, 0, 1000]], np.int16), [0, 128, 255]),
        (np.array([[2**31, 2**31 + 1, 2**31 + 2]]), [0, 128, 255]),
        (np.array([[False, True, True]]), [0, 255, 255]),
        (np.array([[7.0, 7.0, 7.0]]), [0, 0, 0]),
    ],
)
def test_npy_values_become_bytes(tmp_path, values, expected):
    read = images.read(save(tmp_path / "x.npy", values), (1, 3, 1))
    assert read.dtype == np.uint8
    np.testing.assert_allclose(read.ravel().astype(int), expected, atol=0.5 if values.dtype != bool else 0)


def test_alpha_lies_over_black_and_palettes_are_looked_up(tmp_path):
    rgb = ramp(channels=3)
    alpha = np.linspace(0, 255, 48).reshape(SIZE).astype(np.uint8)
    over_black = rgb * (alpha[..., None] / 255)
    read = colour(write_picture(tmp_path / "a.png", np.dstack([rgb, alpha])))
    np.testing.assert_allclose(read, over_black, atol=1)
    read = grey(write_picture(tmp_path / "ga.png", np.dstack([rgb[..., 0], alpha])))
    np.testing.assert_allclose(read, over_black[..., 0], atol=1)
    few = rgb // 64 * 64
    np.testing.assert_array_equal(colour(write_picture(tmp_path / "p.png", few, "P")), colour_of_palette(few))
    clear = write_picture(tmp_path / "t.png", np.full(SIZE, 9, np.uint8), "P", transparency=9)
    assert not colour(clear).any()
    mask = ramp() > 80
    np.testing.assert_array_equal(grey(write_picture(tmp_path / "1.png", mask)), mask * 255)


def colour_of_palette(rgb):
    return np.asarray(Image.fromarray(rgb).convert("P").convert("RGB"))


def test_cmyk_jpeg_is_converted(tmp_path):
    rgb = np.full((*SIZE, 3), (200, 120, 40), np.uint8)
    read = colour(write_picture(tmp_path / "k.jpg", rgb, "CMYK", quality=100))
    np.testing.assert_allclose(read.astype(int), rgb.astype(int), atol=3)


def test_jpeg_is_turned_as_its_exif_says_and_broken_exif_is_passed_over(tmp_path):
    pixels = ramp()
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right side, the first column the top
    path = write_picture(tmp_path / "x.jpg", pixels, quality=100, exif=exif)
    read = images.read(path, (8, 6, 1))[..., 0]
    np.testing.assert_allclose(read.astype(int), np.rot90(pixels, -1).astype(int), atol=3)
    path = write_picture(tmp_path / "y.jpg", pixels, quality=100, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_allclose(grey(path).astype(int), pixels.astype(int), atol=3)


def test_the_first_bytes_decide_not_the_name(tmp_path):
    rgb = ramp(channels=3)
    png = write_picture(tmp_path / "x.png", rgb)
    np.testing.assert_array_equal(colour(png.rename(tmp_path / "x.dcm")), rgb)


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_shrinking_averages_and_growing_interpolates(tmp_path):
    checks = np.indices((16, 16)).sum(0) % 2 * 255
    path = save(tmp_path / "x.npy", checks.astype(np.uint8))
    assert np.ptp(images.read(path, (2, 2, 1)).astype(int)) <= 2, "without antialiasing it is 0 or 255"
    assert abs(images.read(path, (2, 2, 1)).mean() - 127.5) < 4
    wide = images.read(save(tmp_path / "y.npy", np.array([[0, 200]], np.uint8)), (1, 4, 1)).ravel()
    np.testing.assert_allclose(wide, [0, 50, 150, 200], atol=1)


def test_aspect_is_not_kept_and_axes_are_not_swapped(tmp_path):
    pixels = np.zeros((10, 40), np.uint8)
    pixels[:5] = 200
    read = images.read(save(tmp_path / "x.npy", pixels), (4, 6, 3))
    assert read.shape == (4, 6, 3)
    assert (read[:2] > 150).all()
    assert (read[2:] < 50).all()


@pytest.mark.parametrize(
    ("count", "length", "expected"),
    [
        (4, 4, [0, 60, 120, 180]),
        (4, 2, [30, 150]),  # at frames 0.5 and 2.5
        (2, 4, [0, 15, 45, 60]),  # at frames -0.25 (kept inside), 0.25, 0.75, 1.25 (kept inside)
        (1, 3, [0, 0, 0]),
        (4, 1, [90]),
        (3, 4, [0, 38, 82, 120]),  # at 0.625 it is 37.5, at 1.375 it is 82.5; halves go to the even neighbour
    ],
)
def test_time_is_interpolated_between_the_two_nearest_frames(tmp_path, count, length, expected):
    frames = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None] * 60, (count, 3, 2))
    path = save(tmp_path / "v.npy", frames)
    images.check(path, volume=True)
    read = images.read(path, (length, 3, 2, 1))
    assert read.shape == (length, 3, 2, 1)
    np.testing.assert_array_equal(read, np.broadcast_to(np.reshape(expected, (-1, 1, 1, 1)), read.shape))


def test_volumes_have_one_range_for_all_frames_and_may_have_colours(tmp_path):
    frames = np.stack([np.full((2, 2), value, np.float32) for value in (-1.0, 0.0, 3.0)])
    read = images.read(save(tmp_path / "v.npy", frames), (3, 2, 2, 1))
    assert read[:, 0, 0, 0].tolist() == [0, 64, 255]
    rgb = np.stack([ramp(channels=3, seed=i) for i in range(3)])
    path = save(tmp_path / "c.npy", rgb)
    np.testing.assert_array_equal(images.read(path, (3, *SIZE, 3)), rgb)
    one = images.read(save(tmp_path / "g.npy", rgb[..., :1]), (3, *SIZE, 3))
    np.testing.assert_array_equal(one, np.repeat(rgb[..., :1], 3, axis=-1))


# ---- dicom ----------------------------------------------------------------------------------------------------------


def stretched(values, low, high):
    return np.rint((values.astype(float) - low) * 255 / (high - low))


def test_16_bit_dicom_is_stretched_over_its_stored_values(tmp_path):
    values = ramp().astype(np.uint16) * 13 + 100
    expected = stretched(values, values.min(), values.max())
    np.testing.assert_array_equal(grey(write_dicom(tmp_path / "a.dcm", values)), expected)
    window = write_dicom(tmp_path / "b.dcm", values, WindowCenter=500, WindowWidth=10, RescaleSlope=2)
    np.testing.assert_array_equal(grey(window), expected)


def test_monochrome1_is_inverted(tmp_path):
    values = ramp().astype(np.uint16) * 13
    path = write_dicom(tmp_path / "a.dcm", values, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(grey(path), 255 - stretched(values, values.min(), values.max()))
    path = write_dicom(tmp_path / "b.dcm", ramp(), PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(grey(path), 255 - ramp())


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_dark_and_does_not_stretch(tmp_path, photometric):
    values = ramp().astype(np.uint16) + 1000
    values[:2] = 60000
    path = write_dicom(tmp_path / "a.dcm", values, PixelPaddingValue=60000, PhotometricInterpretation=photometric)
    read = grey(path)
    assert not read[:2].any()
    inside = stretched(values[2:], values[2:].min(), values[2:].max())
    np.testing.assert_array_equal(read[2:], 255 - inside if photometric == "MONOCHROME1" else inside)
    values[:] = 60000
    assert not grey(write_dicom(tmp_path / "b.dcm", values, PixelPaddingValue=60000)).any()


@pytest.mark.parametrize(
    ("modality", "orientation", "flipped"),
    [
        ("MG", ["P", "L"], True),
        ("MG", ["PL", "F"], True),
        ("MG", ["A", "R"], False),
        ("CR", ["P", "L"], False),
        ("MG", "P", True),
        ("MG", "", False),
        ("MG", None, False),
    ],
)
def test_mammograms_that_run_to_the_posterior_side_are_flipped(tmp_path, modality, orientation, flipped):
    pixels = ramp()
    path = write_dicom(tmp_path / "a.dcm", pixels, Modality=modality, PatientOrientation=orientation)
    np.testing.assert_array_equal(grey(path), pixels[:, ::-1] if flipped else pixels)


def test_dicom_of_fewer_than_8_bits_fills_the_range(tmp_path):
    values = ramp() // 16
    path = write_dicom(tmp_path / "a.dcm", values, BitsStored=4, HighBit=3)
    np.testing.assert_array_equal(grey(path), values * 17)


def test_multi_frame_dicom_is_a_volume_and_no_image(tmp_path):
    frames = np.stack([ramp(seed=i) for i in range(3)])
    path = write_dicom(tmp_path / "a.dcm", frames, NumberOfFrames=3)
    images.check(path, volume=True)
    np.testing.assert_array_equal(images.read(path, (3, *SIZE, 1))[..., 0], frames)
    for use in (images.check, lambda path: images.read(path, (4, 4, 1))):
        with pytest.raises(ValueError, match="several frames"):
            use(path)


def test_real_samples_of_pydicom():
    read = images.read(SAMPLES / "MR_small.dcm", (64, 64, 1))[..., 0]
    values = pydicom.dcmread(SAMPLES / "MR_small.dcm").pixel_array
    np.testing.assert_allclose(read, stretched(values, values.min(), values.max()), atol=1)
    for name in ("MR_small_RLE", "MR_small_jp2klossless", "MR_small_bigendian", "MR_small_padded"):
        np.testing.assert_array_equal(images.read(SAMPLES / f"{name}.dcm", (64, 64, 1))[..., 0], read)
    palette = images.read(SAMPLES / "examples_palette.dcm", (32, 32, 3))
    assert (palette[..., 0] != palette[..., 1]).any()
    padded = images.read(SAMPLES / "CT_small.dcm", (128, 128, 1))[..., 0]
    values = pydicom.dcmread(SAMPLES / "CT_small.dcm").pixel_array
    np.testing.assert_allclose(padded, stretched(values, values.min(), values.max()), atol=1)


# ---- what is refused ------------------------------------------------------------------------------------------------


def cut(path, share=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def test_huge_headers_are_refused_before_decoding(tmp_path):
    huge = [
        write_png_header(tmp_path / "x.png", 100_000, 100_000),
        write_dicom(tmp_path / "x.dcm", ramp(), Rows=60_000, Columns=60_000),
    ]
    write_npy_header(tmp_path / "x.npy", (10**5, 10**5), content=bytes(64))
    huge.append(write_png_header(tmp_path / "y.png", 10_001, 10_000))
    assert huge[0].stat().st_size < 100
    for path in huge:
        for use in (images.check, lambda path: images.read(path, (4, 4, 3))):
            with pytest.raises(ValueError, match="claims more than 100 million pixels"):
                use(path)
    with pytest.raises(ValueError, match="not a whole npy"):
        images.check(tmp_path / "x.npy")
    frames = write_dicom(tmp_path / "v.dcm", np.zeros((2, 4, 4), np.uint8), NumberOfFrames=10**9)
    with pytest.raises(ValueError, match="claims more than 300 million voxels"):
        images.check(frames, volume=True)


def test_a_sparse_npy_of_the_claimed_length_is_refused_by_its_size(tmp_path):
    write_npy_header(tmp_path / "x.npy", (10**5, 10**5))
    with (tmp_path / "x.npy").open("r+b") as file:
        file.truncate(10**10 + 1000)
    with pytest.raises(ValueError, match="claims more than 100 million pixels"):
        images.check(tmp_path / "x.npy")


def test_cut_files_are_never_half_decoded(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    paths = [
        write_picture(tmp_path / "a.png", rgb),
        write_picture(tmp_path / "a.jpg", rgb),
        save(tmp_path / "a.npy", rgb),
        write_dicom(tmp_path / "a.dcm", rgb),
    ]
    for path in paths:
        images.read(path, (4, 4, 3))
        with pytest.raises(ValueError, match=r"damaged or cut short|not a whole npy"):
            images.read(cut(path), (4, 4, 3))
    for path in (paths[2], paths[3]):
        with pytest.raises(ValueError, match=r"damaged or cut short|not a whole npy"):
            images.check(path)


def test_a_png_with_a_wrong_byte_is_never_decoded_to_something_else(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(noise).resize((70, 60)))
    path = write_picture(tmp_path / "a.png", pixels)
    content = path.read_bytes()
    refused = 0
    for place in range(41, len(content) - 12, 40):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            np.testing.assert_array_equal(images.read(path, pixels.shape), pixels)
        except ValueError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_text("name,age\nJane Doe,40\n"), "not png, jpeg, dicom, tiff, nifti or npy"),
        (lambda path: path.write_bytes(b""), "not png, jpeg, dicom, tiff, nifti or npy"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "damaged"),
        (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0"), "damaged"),
        (lambda path: path.write_bytes(bytes(128) + b"DICM"), "transfer syntax"),
        (lambda path: path.write_bytes(bytes(128) + b"DICM\xff\xff\xff\xff\xff"), "damaged|transfer syntax"),
        (lambda path: write_dicom(path, None), "DICOM without pixels"),
        (lambda path: write_dicom(path, ramp(), Rows=0), "DICOM without pixels"),
        (lambda path: save_object(path), "pickled objects"),
        (lambda path: save(path, np.ones(4)), r"\[h, w\]"),
        (lambda path: save(path, np.ones((4, 4, 2))), r"\[h, w\]"),
        (lambda path: save(path, np.ones((2, 4, 4, 3))), r"\[h, w\]"),
        (lambda path: save(path, np.full((4, 4), 1j)), "real numbers"),
        (lambda path: save(path, np.full((4, 4), "a")), "real numbers"),
        (lambda path: save(path, np.ones((0, 4))), "no pixels|not a whole npy"),
        (lambda path: write_npy_header(path, (4, 4), "|O", b"cos\nsystem\n(S'exit'\ntR."), "pickled objects"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x08\x00{'a': ((" + b" " * 64), "not a whole npy"),
    ],
)
def test_bad_images_are_refused_with_a_reason(tmp_path, write, reason):
    path = tmp_path / "x.npy"
    write(path)
    for use in (images.check, lambda path: images.read(path, (4, 4, 3))):
        with pytest.raises(ValueError, match=reason) as caught:
            use(path)
        assert "Jane" not in str(caught.value)
        assert str(path) not in str(caught.value)


def save_object(path):
    np.save(path, np.array([[{}]], object), allow_pickle=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_no_numbers_are_refused(tmp_path, bad):
    values = np.ones((2, 3, 4))
    values[1, 2, 3] = bad
    with pytest.raises(ValueError, match="NaN, infinite or immense"):
        images.read(save(tmp_path / "v.npy", values), (2, 3, 4, 1))
    with pytest.raises(ValueError, match="NaN, infinite or immense"):
        images.read(save(tmp_path / "i.npy", values[1]), (3, 4, 1))


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4, 2), (2, 3, 4, 4, 3), (0, 4, 4)])
def test_volumes_of_another_rank_are_refused(tmp_path, shape):
    with pytest.raises(ValueError, match=r"\[t, h, w\]|no pixels|not a whole npy"):
        images.check(save(tmp_path / "v.npy", np.ones(shape)), volume=True)


def test_a_picture_is_no_volume(tmp_path):
    path = write_picture(tmp_path / "x.png", ramp())
    for use in (functools.partial(images.check, volume=True), lambda path: images.read(path, (2, 4, 4, 3))):
        with pytest.raises(ValueError, match="a volume is npy, dicom of several frames, a folder"):
            use(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("reportsi", "without pixels"),
        ("rtplan", "without pixels"),
        ("MR_truncated", "cut short"),
        ("meta_missing_tsyntax", "transfer syntax"),
        ("no_meta", "not png, jpeg, dicom, tiff, nifti or npy"),
        ("ExplVR_LitEndNoMeta", "without pixels"),
    ],
)
def test_samples_of_pydicom_that_cannot_be_used(name, reason):
    with pytest.raises(ValueError, match=reason):
        images.read(SAMPLES / f"{name}.dcm", (8, 8, 1))


def test_a_file_that_is_not_there_stays_an_error_of_the_system(tmp_path):
    for use in (images.check, functools.partial(images.check, volume=True), lambda path: images.read(path, (4, 4, 1))):
        with pytest.raises(FileNotFoundError):
            use(tmp_path / "gone.png")


@given(data=st.data(), form=st.sampled_from(["png", "jpg", "npy", "dcm"]))
def test_damage_gives_an_array_or_a_reason(tmp_path_factory, data, form):
    folder = tmp_path_factory.getbasetemp()
    path = folder / f"damaged.{form}"
    pixels = ramp(channels=3)
    if form == "npy":
        save(path, pixels)
    elif form == "dcm":
        write_dicom(path, pixels)
    else:
        write_picture(path, pixels)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        read = images.read(path, (3, 2, 3))
    except ValueError as error:
        read, reason = None, str(error)
    if read is None:
        assert reason.startswith("it")
    else:
        assert read.shape == (3, 2, 3)
        assert read.dtype == np.uint8


def test_decoders_are_imported_when_they_are_needed_and_odd_values_are_not_printed(tmp_path):
    write_dicom(tmp_path / "a.dcm", ramp(), PatientName="Doe^Jane", PatientAge="forty")
    code = f"""
import logging, pathlib, sys
from remind_jax.data.kinds import images
logging.basicConfig(level=logging.INFO)
early = [name for name in ("PIL", "pydicom") if name in sys.modules]
for path in ({str(tmp_path / "a.dcm")!r}, {str(SAMPLES / "MR_small_padded.dcm")!r}):
    images.read(pathlib.Path(path), (4, 4, 1))
print(early)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
