"""Compressed DICOM: what is decoded, by what, and what to do about the rest."""

import pathlib
import struct
import types

import numpy as np
import pydicom
import pytest
from pydicom import encaps, uid

from remind_jax.data.kinds import dicom_codecs, images
from tests.data.image_files import ramp, write_dicom

SIZE = (32, 40)
SAMPLES = pathlib.Path(pydicom.__file__).parent / "data" / "test_files"
LOSSLESS = ("JPEGLossless", "JPEGLosslessSV1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless")
NEEDS = {"JPEGLossless": "gdcm", "JPEGLosslessSV1": "gdcm", "JPEGLSLossless": "_CharLS", "JPEG2000Lossless": "openjpeg"}


def wide(seed=0):
    noise = np.random.default_rng(seed).integers(0, 9, SIZE)
    return (ramp(*SIZE, seed=seed).astype(int) * 13 + noise).astype(np.uint16)


def compress(path, syntax):
    """Compresses a file in place by another library than that which decodes it here, where there is one."""
    gdcm = pytest.importorskip("gdcm")
    pytest.importorskip(NEEDS.get(syntax, "gdcm"))
    forms = {"JPEGLossless": "JPEGLosslessProcess14", "JPEGLosslessSV1": "JPEGLosslessProcess14_1"}
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, forms.get(syntax, syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == getattr(uid, syntax)
    return path


def twelve_bits(path, values, **tags):
    return write_dicom(path, values, BitsStored=12, HighBit=11, **tags)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_forms_give_the_numbers_of_the_plain_file(tmp_path, syntax):
    plain = twelve_bits(tmp_path / "a.dcm", wide())
    packed = compress(twelve_bits(tmp_path / "b.dcm", wide()), syntax)
    images.check(packed)
    for window in images.WINDOWS:
        read = [images.read(path, (*SIZE, 1), window) for path in (plain, packed)]
        np.testing.assert_array_equal(*read)
    assert len(np.unique(read[0])) > 100


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_volumes_and_colours(tmp_path, syntax):
    frames = np.stack([wide(i) for i in range(3)])
    plain = twelve_bits(tmp_path / "a.dcm", frames, NumberOfFrames=3)
    packed = compress(twelve_bits(tmp_path / "b.dcm", frames, NumberOfFrames=3), syntax)
    read = [images.read(path, (3, *SIZE, 1)) for path in (plain, packed)]
    np.testing.assert_array_equal(*read)
    rgb = ramp(*SIZE, channels=3)
    packed = compress(write_dicom(tmp_path / "c.dcm", rgb), syntax)
    np.testing.assert_array_equal(images.read(packed, (*SIZE, 3)), rgb)


def test_jpeg_2000_of_colours_that_are_transformed(tmp_path):
    pytest.importorskip("openjpeg")
    data = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", ramp(*SIZE, channels=3)))
    data.compress(uid.JPEG2000Lossless, encoding_plugin="pylibjpeg")
    data.PhotometricInterpretation = "YBR_RCT"
    data.save_as(tmp_path / "b.dcm")
    np.testing.assert_array_equal(images.read(tmp_path / "b.dcm", (*SIZE, 3)), ramp(*SIZE, channels=3))


def test_jpeg_of_12_bits_and_a_slice_in_a_folder(tmp_path):
    pytest.importorskip("gdcm")
    path = SAMPLES / "JPGExtended.dcm"
    images.check(path)
    data = pydicom.dcmread(path)
    values = dicom_codecs.decoded(data)[0]
    assert (values[420, 140], values[230, 120]) == (244, 95)  # as other decoders have it
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "1").write_bytes(path.read_bytes())
    one = images.read(path, (16, 16, 1))
    np.testing.assert_array_equal(images.read(tmp_path / "ct", (1, 16, 16, 1))[0], one)


@pytest.mark.parametrize(
    ("syntax", "packages"),
    [
        ("JPEGLosslessSV1", "python-gdcm"),
        ("JPEGLossless", "python-gdcm"),
        ("JPEGExtended12Bit", "python-gdcm"),
        ("JPEGLSLossless", "pyjpegls"),
        ("JPEGLSNearLossless", "pyjpegls"),
        ("HTJ2K", "pylibjpeg pylibjpeg-openjpeg"),
        ("HTJ2KLossless", "pylibjpeg pylibjpeg-openjpeg"),
    ],
)
def test_a_form_without_a_decoder_is_refused_with_what_to_install(tmp_path, monkeypatch, syntax, packages):
    path = renamed(twelve_bits(tmp_path / "a.dcm", wide()), getattr(uid, syntax))
    monkeypatch.setattr("pydicom.pixels.get_decoder", lambda syntax: types.SimpleNamespace(available_plugins=()))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"\(.*\) cannot be decoded here: pip install {packages} \(part of") as caught:
        images.check(path)
    assert "\n" not in str(caught.value)


def renamed(path, syntax, frame=b"\xff\xd8\xff\xd9"):
    """Says of a file that its pixels are of another transfer syntax, with `frame` in their place."""
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encaps.encapsulate([frame])
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    return path


@pytest.mark.parametrize("syntax", ["MPEG2MPML", "HEVCMP51", "JPEG2000MC"])
def test_films_are_refused_with_a_remedy(tmp_path, syntax):
    path = renamed(twelve_bits(tmp_path / "a.dcm", wide()), getattr(uid, syntax))
    with pytest.raises(ValueError, match="cannot be decoded here: write it anew without compression"):
        images.check(path)


def frame_of(path):
    data = pydicom.dcmread(path)
    return next(encaps.generate_frames(data.PixelData, number_of_frames=1))


@pytest.mark.parametrize("syntax", ["JPEGLosslessSV1", "JPEGLSLossless", "JPEG2000Lossless"])
def test_streams_that_claim_another_size_are_refused_before_they_are_decoded(tmp_path, monkeypatch, syntax):
    path = compress(twelve_bits(tmp_path / "a.dcm", wide()), syntax)
    frame = bytearray(frame_of(path))
    if syntax == "JPEG2000Lossless":
        place = frame.index(b"\xff\x4f\xff\x51") + 8
        frame[place : place + 8] = struct.pack(">2I", 40_000, 40_000)
    else:
        place = frame.index(b"\xff\xf7" if "LS" in syntax else b"\xff\xc3") + 5
        frame[place : place + 4] = struct.pack(">2H", 60_000, 60_000)
    monkeypatch.setattr(dicom_codecs, "decoded", None)
    with pytest.raises(ValueError, match="not of the size that its header names"):
        images.check(renamed(path, getattr(uid, syntax), bytes(frame)))


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_damaged_streams_end_no_process_and_the_header_check_promises_what_is_kept(tmp_path, syntax):
    path = compress(twelve_bits(tmp_path / "a.dcm", wide()), syntax)
    images.check(path)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    start = content.index(b"\xe0\x7f\x10\x00") + 20
    refused = 0
    for _ in range(6 if NEEDS.get(syntax) == "gdcm" else 60):
        damaged = bytearray(content)
        for place in rng.integers(start, len(content), size=4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            images.check(path)
        except ValueError:
            refused += 1
        else:
            images.read(path, (8, 8, 1))
    assert refused
