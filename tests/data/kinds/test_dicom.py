"""DICOM as hospitals store it: what the values mean, and folders of slices."""

import pathlib
import shutil
import tracemalloc

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from remind_jax.data.files import Look
from remind_jax.data.kinds import images
from tests.data.image_files import ramp, write_dicom

FIELD = pathlib.Path(__file__).parents[1] / "field" / "dicom"
SIZE = (6, 8)  # of `ramp`


def grey(path, window="stored", size=SIZE):
    images.check(path)
    return images.read(path, (*size, 1), window)[..., 0]


def stretched(values, low, high):
    return np.clip(np.rint((values.astype(float) - low) * 255 / (high - low)), 0, 255)


def whole(values):
    return stretched(values, values.min(), values.max())


def wide(seed=0):
    """Stored values of 12 bits."""
    return ramp(seed=seed).astype(np.uint16) * 13 + 100


# ---- files from the field -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "window", "expected"),
    [
        ("negative_slope", "stored", {(0, 0): 255, (15, 15): 0}),
        ("negative_slope", "dicom", {(0, 0): 255, (15, 15): 0}),
        ("positive_slope", "stored", {(0, 0): 0, (15, 15): 255}),
        ("padding_range", "stored", {(0, 0): 0, (5, 8): 83, (15, 15): 255}),
        ("float_pixels", "stored", {(0, 0): 0, (5, 8): 88, (15, 15): 255}),
        ("raw_dataset", "stored", {(0, 0): 0, (5, 8): 88, (15, 15): 255}),
        ("overlay_in_high_bits", "stored", {(0, 0): 0, (5, 8): 88, (15, 15): 255}),
        ("signed_padding_implicit", "stored", {(0, 0): 0, (5, 8): 32, (15, 15): 255}),
        ("hot_pixel", "dicom", {(0, 5): 5, (5, 8): 88, (15, 15): 255}),
    ],
)
def test_values_of_files_from_the_field(name, window, expected):
    read = grey(FIELD / f"{name}.dcm", window, (16, 16))
    assert {place: read[place] for place in expected} == expected


def test_breasts_face_one_way_and_one_without_an_orientation_stays():
    left, right, unknown = (
        grey(FIELD / f"mg_{name}.dcm", size=(16, 16)) for name in ("left_A", "left_P", "no_orientation_R")
    )
    np.testing.assert_array_equal(right, left[:, ::-1])
    np.testing.assert_array_equal(unknown, left)


def test_a_window_shows_what_one_hot_pixel_hides():
    stored, window, percentile = (grey(FIELD / "hot_pixel.dcm", w, (16, 16)) for w in images.WINDOWS)
    values = np.arange(256).reshape(16, 16)
    assert (stored.ravel() <= 1).sum() == 255
    np.testing.assert_array_equal(window.ravel()[1:], values.ravel()[1:])
    assert np.abs(percentile.astype(int) - values).ravel()[1:].max() <= 2


def test_a_series_from_the_field_is_one_volume_in_the_order_of_positions():
    found = images.check(FIELD / "series", volume=True)
    assert found == Look(spacing=2.0)
    stack = np.stack([pydicom.dcmread(FIELD / "series" / f"{i}.dcm").pixel_array for i in range(4)])
    np.testing.assert_array_equal(images.read(FIELD / "series", (4, 16, 16, 1))[..., 0], whole(stack))


# ---- what values mean -----------------------------------------------------------------------------------------------


@given(
    slope=st.sampled_from([-3.5, -1, 0, 0.25, 2]),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    shape=st.sampled_from([None, "IDENTITY", "INVERSE"]),
)
def test_what_is_bright(tmp_path_factory, slope, photometric, shape):
    tags = {"RescaleSlope": slope, "RescaleIntercept": 7, "PhotometricInterpretation": photometric}
    tags |= {"PresentationLUTShape": shape} if shape else {}
    path = write_dicom(tmp_path_factory.getbasetemp() / "bright.dcm", wide(), **tags)
    inverse = photometric == "MONOCHROME1" or shape == "INVERSE"
    up = (slope >= 0) != inverse
    np.testing.assert_array_equal(grey(path), whole(wide()) if up else 255 - whole(wide()))


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize(("value", "limit"), [(-2000, None), (-2000, -1900), (-1900, -2000)])
@pytest.mark.parametrize("unsigned", [False, True])
def test_padding_of_signed_values_may_be_written_without_a_sign(tmp_path, bits, value, limit, unsigned):
    values = ramp().astype(np.int16) - 50
    values[:2], values[2, 0] = -2000, -1950
    path = write_dicom(tmp_path / "a.dcm", values, PixelRepresentation=1, BitsStored=bits, HighBit=bits - 1)
    data = pydicom.dcmread(path)
    vr, wrap = ("US", 2**16) if unsigned else ("SS", 0)
    data.add_new("PixelPaddingValue", vr, value + wrap)
    if limit is not None:
        data.add_new("PixelPaddingRangeLimit", vr, limit + wrap)
    data.save_as(path)
    padded = (values == -2000) | ((values == -1950) & (limit is not None))
    real = values[~padded]
    expected = np.where(padded, 0, stretched(values, real.min(), real.max()))
    np.testing.assert_array_equal(grey(path), expected)


def test_floats_are_stretched_without_their_padding(tmp_path):
    def write(values, **tags):
        path = write_dicom(tmp_path / "f.dcm", values, **tags)
        data = pydicom.dcmread(path)
        data.FloatPixelData = data.PixelData
        del data.PixelData, data.BitsStored, data.HighBit, data.PixelRepresentation
        data.save_as(path)
        return path

    values = ramp().astype(np.float32) * 3 - 100
    np.testing.assert_array_equal(grey(write(values)), whole(values))
    share = ramp().astype(np.float32) / 255
    np.testing.assert_array_equal(grey(write(share)), ramp())
    values[:2] = -9999
    read = grey(write(values, FloatPixelPaddingValue=-9999.0))
    assert not read[:2].any()
    np.testing.assert_array_equal(read[2:], whole(values[2:]))
    values[3, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        grey(write(values))


@pytest.mark.parametrize(
    ("function", "low", "high"), [(None, 850, 949), ("LINEAR", 850, 949), ("LINEAR_EXACT", 850, 950)]
)
def test_a_window_is_of_rescaled_values(tmp_path, function, low, high):
    # LINEAR goes from c - 0.5 - (w - 1) / 2 to c - 0.5 + (w - 1) / 2.
    tags = {"RescaleSlope": 2, "RescaleIntercept": -400, "WindowCenter": [900, 1], "WindowWidth": [100, 2]}
    tags |= {"VOILUTFunction": function} if function else {}
    path = write_dicom(tmp_path / "a.dcm", wide(), **tags)
    np.testing.assert_array_equal(grey(path, "dicom"), stretched(wide() * 2.0 - 400, low, high))


def test_a_sigmoid_window_a_table_and_no_window(tmp_path):
    path = write_dicom(tmp_path / "s.dcm", wide(), WindowCenter=900, WindowWidth=100, VOILUTFunction="SIGMOID")
    np.testing.assert_array_equal(grey(path, "dicom"), np.rint(255 / (1 + np.exp(-4 * (wide() - 900.0) / 100))))
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 900, 8], [10, 20, 200, 250]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    path = write_dicom(tmp_path / "t.dcm", wide(), VOILUTSequence=Sequence([table]))
    np.testing.assert_array_equal(
        grey(path, "dicom"), np.array([10, 20, 200, 250])[np.clip(wide().astype(int) - 900, 0, 3)]
    )
    path = write_dicom(tmp_path / "n.dcm", wide())
    np.testing.assert_array_equal(grey(path, "dicom"), grey(path))


def test_a_table_of_measured_values_comes_first(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [4, 0, 16], [9000, 4000, 1000, 0], "US"
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    path = write_dicom(tmp_path / "a.dcm", (ramp() % 4).astype(np.uint16), ModalityLUTSequence=Sequence([table]))
    np.testing.assert_array_equal(grey(path), stretched(np.array([9000, 4000, 1000, 0])[ramp() % 4], 0, 9000))


def test_8_bits_stay_as_they_are_under_percentiles_and_take_a_window(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", ramp(), WindowCenter=118, WindowWidth=86)
    for window in ("stored", "percentile"):
        np.testing.assert_array_equal(grey(path, window), ramp())
    np.testing.assert_array_equal(grey(path, "dicom"), stretched(ramp(), 75, 160))


def test_slopes_of_frames_are_applied_where_they_differ(tmp_path):
    frames = np.stack([wide(), wide(1)])
    groups = []
    for slope in (1.0, 3.0):
        item, group = Dataset(), Dataset()
        item.RescaleSlope, item.RescaleIntercept = slope, 5
        group.PixelValueTransformationSequence = Sequence([item])
        groups.append(group)
    path = write_dicom(tmp_path / "a.dcm", frames, NumberOfFrames=2, PerFrameFunctionalGroupsSequence=Sequence(groups))
    measured = frames * np.array([1.0, 3.0])[:, None, None] + 5
    np.testing.assert_array_equal(images.read(path, (2, *SIZE, 1))[..., 0], whole(measured))


def test_percentiles_leave_out_tails_and_keep_rare_masks(tmp_path):
    values = np.arange(1000, 2000, dtype=np.uint16).reshape(20, 50)
    path = write_dicom(tmp_path / "a.dcm", values)
    low, high = 1000 + 0.005 * 999, 1000 + 0.995 * 999
    np.testing.assert_array_equal(grey(path, "percentile", (20, 50)), stretched(values, low, high))
    values[:], values[3, 3] = 7, 9
    mask = grey(write_dicom(tmp_path / "b.dcm", values), "percentile", (20, 50))
    assert (mask[3, 3], mask.astype(int).sum()) == (255, 255)


# ---- how data sets are written --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_a_data_set_without_a_preamble_is_read(tmp_path, implicit, little):
    data = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", wide() if little else wide().byteswap()))
    if not little:
        data["PixelData"].VR = "OW"
    del data.file_meta
    data.preamble = None
    pydicom.dcmwrite(tmp_path / "bare", data, implicit_vr=implicit, little_endian=little)
    assert (tmp_path / "bare").read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(grey(tmp_path / "bare"), whole(wide()))


def test_a_deflated_data_set_is_read_and_one_that_swells_is_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", wide())
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(path)
    np.testing.assert_array_equal(grey(path), whole(wide()))
    data.add_new(0xFFFCFFFC, "OB", bytes(10**8))
    data.save_as(path)
    assert path.stat().st_size < 10**6
    tracemalloc.start()
    with pytest.raises(ValueError, match="inflates to more than its header claims"):
        images.check(path)
    assert tracemalloc.get_traced_memory()[1] < 8 * 10**7
    tracemalloc.stop()


@pytest.mark.parametrize("content", [b"\x08\x00", b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100", b"\x08\x00" + bytes(400)])
def test_what_only_begins_like_a_data_set_is_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=r"^it.*(without pixels|damaged)"):
        images.check(tmp_path / "a")


# ---- folders --------------------------------------------------------------------------------------------------------


def write_series(folder, count=5, normal=(0, 0, 1), shuffle=True, step=2.5, **tags):
    """Writes slices whose files and numbers say nothing of their order; returns their values in the order of places."""
    folder.mkdir()
    slices = [wide(seed=i) for i in range(count)]
    row = np.array([0.0, 1.0, 0.0]) if normal[0] else np.array([1.0, 0.0, 0.0])
    direction = [*row, *np.cross(normal, row)]
    for i, values in enumerate(slices):
        place = i * 3 % count if shuffle else i
        own = {"ImagePositionPatient": [float(x) * step * i + 1 for x in normal], "ImageOrientationPatient": direction}
        own |= {"InstanceNumber": count - i, "SeriesInstanceUID": "1.2.3"}
        write_dicom(folder / f"{place}.dcm", values, **{k: v for k, v in (own | tags).items() if v is not None})
    return np.stack(slices)


def volume(folder, count=5):
    found = images.check(folder, volume=True)
    return found, images.read(folder, (count, *SIZE, 1))[..., 0]


@pytest.mark.parametrize("normal", [(0, 0, 1), (1, 0, 0), (0, 0.6, 0.8)])
@pytest.mark.parametrize("oriented", [True, False])
def test_slices_lie_in_the_order_of_their_positions_whatever_their_names(tmp_path, normal, oriented):
    tags = {} if oriented else {"ImageOrientationPatient": None}
    values = write_series(tmp_path / "ct", normal=normal, **tags)
    found, read = volume(tmp_path / "ct")
    np.testing.assert_array_equal(read, whole(values))
    assert found.spacing == pytest.approx(2.5 if oriented or normal[2] == 1 or normal[0] == 1 else 2.5 * 0.8)
    assert found.remark is None


def test_a_normal_that_points_down_turns_the_order(tmp_path):
    values = write_series(tmp_path / "ct", normal=(0, 0, -1))
    np.testing.assert_array_equal(volume(tmp_path / "ct")[1], whole(values))


def test_numbers_order_slices_without_positions(tmp_path):
    values = write_series(tmp_path / "us", ImagePositionPatient=None)
    np.testing.assert_array_equal(volume(tmp_path / "us")[1], whole(values)[::-1])


def test_a_slice_that_is_missing_is_told(tmp_path):
    write_series(tmp_path / "ct", shuffle=False)
    (tmp_path / "ct" / "2.dcm").unlink()
    found, _ = volume(tmp_path / "ct", 4)
    assert found.remark[0] == "W111"
    assert "uneven" in found.remark[1]


def test_slopes_of_slices_are_applied_where_they_differ_and_their_sign_where_not(tmp_path):
    values = write_series(tmp_path / "pet")
    for i, path in enumerate(
        sorted((tmp_path / "pet").iterdir(), key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2])
    ):
        data = pydicom.dcmread(path)
        data.RescaleSlope, data.RescaleIntercept = i + 1, 0
        data.save_as(path)
    np.testing.assert_array_equal(volume(tmp_path / "pet")[1], whole(values * np.arange(1, 6.0)[:, None, None]))
    values = write_series(tmp_path / "down", RescaleSlope=-1, RescaleIntercept=0)
    np.testing.assert_array_equal(volume(tmp_path / "down")[1], 255 - whole(values))


def test_few_frames_of_a_long_series_are_sampled_with_the_range_of_all(tmp_path):
    values = write_series(tmp_path / "ct", count=7)
    np.testing.assert_array_equal(volume(tmp_path / "ct", 1)[1], whole(values)[3:4])


def test_what_lies_about_in_folders_is_passed_over(tmp_path):
    values = write_series(tmp_path / "ct")
    (tmp_path / "ct" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "ct" / "DICOMDIR").write_bytes(b"x")
    np.testing.assert_array_equal(volume(tmp_path / "ct")[1], whole(values))


def spoil(folder, **tags):
    path = folder / "3.dcm"
    data = pydicom.dcmread(path)
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    data.save_as(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: spoil(folder, SeriesInstanceUID="1.2.4"), "mixes several series"),
        (lambda folder: write_dicom(folder / "3.dcm", ramp(7, 8).astype(np.uint16)), "mixes"),
        (lambda folder: spoil(folder, Rows=8, Columns=6), "several sizes"),
        (lambda folder: spoil(folder, PhotometricInterpretation="MONOCHROME1"), "kinds of colours"),
        (lambda folder: spoil(folder, ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), "several directions"),
        (lambda folder: shutil.copy(folder / "3.dcm", folder / "copy.dcm"), "at one place"),
        (
            lambda folder: [spoil(folder, ImagePositionPatient=None, InstanceNumber=1)],
            "neither ImagePosition|InstanceNumber",
        ),
        (lambda folder: (folder / "notes.txt").write_text("Doe"), "no DICOM file"),
        (lambda folder: (folder / "series2").mkdir(), "no DICOM file"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "folder is empty"),
        (lambda folder: (folder / "x.dcm").symlink_to(FIELD / "hot_pixel.dcm"), "link in its folder leads out"),
        (lambda folder: spoil(folder, NumberOfFrames=2), "several frames"),
        (lambda folder: (folder / "0.dcm").write_bytes((folder / "0.dcm").read_bytes()[:-20]), "cut short"),
    ],
)
def test_folders_that_are_no_series_are_refused_by_name(tmp_path, change, reason):
    write_series(tmp_path / "ct")
    change(tmp_path / "ct")
    with pytest.raises(ValueError, match=reason):
        volume(tmp_path / "ct")
