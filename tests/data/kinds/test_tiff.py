"""TIFF pictures and volumes."""

import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from remind_jax.data.kinds import images
from tests.data.image_files import ramp

tifffile = pytest.importorskip("tifffile")
SIZE = (6, 8)  # of `ramp`


def write(path, values, **options):
    tifffile.imwrite(path, values, **options)
    return path


def image(path, channels=1):
    images.check(path)
    return images.read(path, (*SIZE, channels))[..., 0 if channels == 1 else slice(None)]


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate"])
def test_8_bits_stay_as_they_are_in_every_lossless_form(tmp_path, compression):
    rgb = ramp(channels=3)
    Image.fromarray(rgb).save(tmp_path / "c.tif", compression=compression)
    Image.fromarray(rgb[..., 0]).save(tmp_path / "g.tiff", compression=compression)
    np.testing.assert_array_equal(image(tmp_path / "c.tif", 3), rgb)
    np.testing.assert_array_equal(image(tmp_path / "g.tiff"), rgb[..., 0])


def test_alpha_palettes_planes_and_white_as_zero(tmp_path):
    rgb = ramp(channels=3)
    alpha = np.linspace(0, 255, 48).reshape(SIZE).astype(np.uint8)
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "a.tif")
    np.testing.assert_allclose(image(tmp_path / "a.tif", 3), rgb * (alpha[..., None] / 255), atol=1)
    few = Image.fromarray(rgb // 64 * 64).convert("P")
    few.save(tmp_path / "p.tif")
    np.testing.assert_array_equal(image(tmp_path / "p.tif", 3), np.asarray(few.convert("RGB")))
    planes = write(tmp_path / "s.tif", rgb.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(image(planes, 3), rgb)
    np.testing.assert_array_equal(
        image(write(tmp_path / "w.tif", rgb[..., 0], photometric="miniswhite")), 255 - rgb[..., 0]
    )
    Image.fromarray(ramp() > 80).save(tmp_path / "1.tif")
    np.testing.assert_array_equal(image(tmp_path / "1.tif"), (ramp() > 80) * 255)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_more_bits_become_bytes_as_in_other_files(tmp_path, bigtiff, byteorder):
    options = {"bigtiff": bigtiff, "byteorder": byteorder}
    values = ramp().astype(np.uint16) * 13 + 5
    np.save(tmp_path / "a.npy", values)
    for compression in (None, "zlib"):
        path = write(tmp_path / "a.tif", values, compression=compression, **options)
        for window in images.WINDOWS:
            read = [images.read(each, (*SIZE, 1), window) for each in (path, tmp_path / "a.npy")]
            np.testing.assert_array_equal(*read)
    white = image(write(tmp_path / "w.tif", values, photometric="miniswhite", **options))
    np.testing.assert_array_equal(white, 255 - image(path))
    rgb = ramp(channels=3).astype(np.uint16) * 257
    np.testing.assert_array_equal(image(write(tmp_path / "c.tif", rgb, **options), 3), ramp(channels=3))
    for dtype in (np.float32, np.float64):
        path = write(tmp_path / "f.tif", ramp().astype(dtype) / 255, **options)
        np.testing.assert_array_equal(image(path), ramp())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_pages_are_frames_in_their_order_with_one_range(tmp_path, dtype):
    frames = np.stack([ramp(seed=i) for i in range(3)]).astype(dtype)
    path = write(tmp_path / "v.tif", frames, photometric="minisblack")
    np.save(tmp_path / "v.npy", frames)
    images.check(path, volume=True)
    read = [images.read(each, (3, *SIZE, 1)) for each in (path, tmp_path / "v.npy")]
    np.testing.assert_array_equal(*read)
    with pytest.raises(ValueError, match="several frames, which only a volume may have"):
        images.check(path)


def test_pages_of_several_sizes_stacks_of_channels_and_turned_pages_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "p.tif") as file:
        file.write(ramp(), photometric="minisblack")
        file.write(ramp(3, 4), photometric="minisblack")
    with pytest.raises(ValueError, match="several sizes or forms"):
        images.check(tmp_path / "p.tif", volume=True)
    stack = np.zeros((2, 3, *SIZE), np.uint16)
    write(tmp_path / "i.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(ValueError, match="channels or times next to slices"):
        images.check(tmp_path / "i.tif", volume=True)
    write(tmp_path / "o.tif", ramp().astype(np.uint16), extratags=[(274, "H", 1, 3, True)])
    with pytest.raises(ValueError, match="stored turned"):
        images.check(tmp_path / "o.tif")
    write(
        tmp_path / "z.tif",
        ramp().astype(np.uint16)[..., None].repeat(5, 2),
        photometric="minisblack",
        planarconfig="contig",
    )
    with pytest.raises(ValueError, match="channels other than grey or RGB"):
        images.check(tmp_path / "z.tif")
    write(tmp_path / "x.tif", ramp().astype(np.complex64))
    with pytest.raises(ValueError, match="form is not one that is decoded"):
        images.check(tmp_path / "x.tif")


def test_a_compression_of_16_bits_without_a_decoder_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    Image.fromarray(ramp().astype(np.uint16)).save(tmp_path / "a.tif", compression="tiff_lzw")
    with pytest.raises(ValueError, match=r"compression \(LZW\).*pip install imagecodecs, or write it with deflate"):
        images.check(tmp_path / "a.tif")


def test_huge_pages_are_refused_before_they_are_decoded(tmp_path):
    path = write(tmp_path / "a.tif", np.zeros((2, 2), np.uint16))
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        for name in ("ImageWidth", "ImageLength"):
            tag = file.pages[0].tags[name]
            content[tag.valueoffset : tag.valueoffset + 4] = (60_000).to_bytes(4, "little")
    path.write_bytes(content)
    for use in (images.check, lambda path: images.read(path, (4, 4, 1))):
        with pytest.raises(ValueError, match="claims more than 100 million pixels"):
            use(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_damage_gives_an_array_or_a_reason(tmp_path, dtype):
    noise = np.random.default_rng(0).integers(0, 255, (3, 20, 20)).astype(dtype)
    content = write(tmp_path / "a.tif", noise, photometric="minisblack", compression="zlib").read_bytes()
    rng, reasons = np.random.default_rng(1), []
    for _ in range(150):
        damaged = bytearray(content[: rng.integers(8, len(content) + 400)])
        for place in rng.integers(0, len(damaged), 3):
            damaged[place] = rng.integers(256)
        (tmp_path / "b.tif").write_bytes(damaged)
        try:
            assert images.read(tmp_path / "b.tif", (2, 4, 4, 1)).shape == (2, 4, 4, 1)
        except ValueError as error:
            reasons.append(str(error))
    assert len(reasons) > 20
    assert all(reason.startswith("it") for reason in reasons)


def test_without_tifffile_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", ramp())
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=r"tifffile is not installed: pip install tifffile \(part of the extra images"):
        images.check(path)


def test_parts_that_inflate_to_more_than_they_claim_are_refused(tmp_path):
    path = write(tmp_path / "a.tif", np.zeros((4, 4), np.uint16), compression="zlib")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        offset, size = (file.pages[0].tags[name].valueoffset for name in ("StripOffsets", "StripByteCounts"))
    swollen = zlib.compress(bytes(50_000_000))
    content[offset : offset + 4] = len(content).to_bytes(4, "little")
    content[size : size + 4] = len(swollen).to_bytes(4, "little")
    path.write_bytes(content + swollen)
    tracemalloc.start()
    with pytest.raises(ValueError, match="inflate to more than its header claims"):
        images.check(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_compression_that_nothing_limits_is_refused(tmp_path):
    path = write(tmp_path / "a.tif", ramp().astype(np.uint16), compression="lzma")
    with pytest.raises(ValueError, match=r"compression \(LZMA\).*write it with deflate or without"):
        images.check(path)
