"""NIfTI volumes: axes, slopes, headers that lie."""

import gzip

import numpy as np
import pytest

from remind_jax.data.kinds import images

nib = pytest.importorskip("nibabel")

# Voxels lie along the patient's right, back and head, 2, 3 and 5 mm apart.
RPS = np.diag([2.0, -3.0, 5.0, 1.0])


def values(dtype=np.int16):
    return np.random.default_rng(0).integers(-900, 900, (4, 5, 3)).astype(dtype)


def write(path, array, affine=RPS, kind=nib.Nifti1Image):
    nib.save(kind(array, affine), path)
    return path


def forge(path, place, *numbers):
    """Writes numpy scalars over the header of NIfTI-1."""
    packed = path.suffix == ".gz"
    content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    new = b"".join(number.tobytes() for number in numbers)
    content[place : place + len(new)] = new
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


def read(path, shape=(3, 5, 4)):
    """Checks and reads a volume at its own size, which does not resize."""
    images.check(path, volume=True)
    return images.read(path, (*shape, 1))[..., 0]


def whole(array):
    low, high = float(array.min()), float(array.max())
    return np.rint((array - low) * 255 / (high - low))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_frames_go_to_the_head_rows_to_the_back_and_columns_to_the_left(tmp_path, name, kind):
    # x of the file grows to the right: columns are turned. y grows to the back, z to the head: they stay.
    path = write(tmp_path / name, values(), kind=kind)
    np.testing.assert_allclose(read(path), whole(values())[::-1].transpose(2, 1, 0), atol=1)
    assert images.check(path, volume=True).spacing == 5.0


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_one_scan_is_one_volume_however_it_is_stored(tmp_path, axes, flips):
    expected = read(write(tmp_path / "a.nii", values()))
    image = nib.Nifti1Image(values(), RPS)
    turn = np.array([[axis, -1 if axis in flips else 1] for axis in axes])
    stored = image.as_reoriented(turn)
    assert stored.shape != image.shape or flips or axes == (0, 1, 2)
    nib.save(stored, tmp_path / "b.nii")
    np.testing.assert_array_equal(read(tmp_path / "b.nii"), expected)


def test_without_an_orientation_axes_stay_as_they_are_stored(tmp_path):
    path = write(tmp_path / "a.nii", values(), affine=None)
    assert nib.load(path).header["qform_code"] == nib.load(path).header["sform_code"] == 0
    np.testing.assert_allclose(read(path), whole(values()).transpose(2, 1, 0), atol=1)


def test_a_dicom_series_and_its_nifti_are_one_volume(tmp_path):
    from tests.data.image_files import write_dicom

    stack = values(np.uint16).transpose(2, 1, 0) + 1000
    (tmp_path / "ct").mkdir()
    for i, frame in enumerate(stack):
        place = {"ImagePositionPatient": [0, 0, 5.0 * i], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        write_dicom(tmp_path / "ct" / f"{i}.dcm", frame, **place)
    # DICOM's x and y grow to the left and to the back, NIfTI's to the right and to the front.
    path = write(tmp_path / "ct.nii", stack.transpose(2, 1, 0).astype(np.float32), np.diag([-2.0, -3.0, 5.0, 1.0]))
    np.testing.assert_array_equal(read(path), read(tmp_path / "ct"))


def test_slope_and_intercept_are_applied(tmp_path):
    path = forge(write(tmp_path / "a.nii", values()), 112, np.float32(-2), np.float32(7))
    np.testing.assert_allclose(read(path), 255 - read(write(tmp_path / "b.nii", values())), atol=1)
    share = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    path = forge(write(tmp_path / "c.nii", share), 112, np.float32(0.01), np.float32(0))
    expected = share[::-1].transpose(2, 1, 0) * 2.55  # of [0, 1], not stretched
    np.testing.assert_allclose(read(path), expected, atol=0.51)


def test_one_slice_is_an_image_and_a_last_axis_of_one_is_none(tmp_path):
    path = write(tmp_path / "a.nii", values()[..., :1])
    images.check(path)
    assert images.read(path, (5, 4, 3)).shape == (5, 4, 3)
    with pytest.raises(ValueError, match="several frames"):
        images.check(write(tmp_path / "b.nii", values()))
    np.testing.assert_array_equal(read(write(tmp_path / "c.nii", values()[..., None])), read(tmp_path / "b.nii"))


@pytest.mark.parametrize("shape", [(4, 5, 3, 2), (4, 5, 3, 1, 3)])
def test_times_and_channels_are_refused_with_a_remedy(tmp_path, shape):
    with pytest.raises(ValueError, match="times or channels next to x, y and z: write each"):
        read(write(tmp_path / "a.nii", np.zeros(shape, np.int16)))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_headers_that_claim_too_much_are_refused_before_anything_is_read(tmp_path, monkeypatch, name):
    path = forge(write(tmp_path / name, values()), 40, np.array([3, 3000, 3000, 3000], np.int16))
    open_gzip = gzip.open

    def first_bytes(path):
        file = open_gzip(path)
        monkeypatch.setattr(file, "seek", None)
        return file

    monkeypatch.setattr(gzip, "open", first_bytes)
    for use in (lambda: images.check(path, volume=True), lambda: read(path)):
        with pytest.raises(ValueError, match="claims more than 300 million voxels"):
            use()


@pytest.mark.parametrize("offset", [-1e9, 1e12, np.inf, np.nan])
def test_values_that_begin_nowhere_are_refused(tmp_path, offset):
    path = forge(write(tmp_path / "a.nii", values()), 108, np.float32(offset))
    with pytest.raises(ValueError, match="damaged"):
        read(path)


def test_cut_files_complex_numbers_pairs_and_other_gzip_are_refused(tmp_path):
    path = write(tmp_path / "a.nii", values())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="cut short"):
        images.check(path, volume=True)
    packed = write(tmp_path / "a.nii.gz", values())
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(ValueError, match="cut short"):
        read(packed)
    with pytest.raises(ValueError, match="real numbers"):
        read(write(tmp_path / "c.nii", values().astype(np.complex64)))
    nib.save(nib.Nifti1Pair(values(), RPS), tmp_path / "p.hdr")
    with pytest.raises(ValueError, match=r"two files.*write it as one"):
        read(tmp_path / "p.hdr")
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"Jane Doe" * 100))
    with pytest.raises(ValueError, match=r"it is not png.*nifti"):
        read(tmp_path / "x.gz")
    with pytest.raises(ValueError, match="NaN"):
        read(write(tmp_path / "n.nii", np.full((4, 5, 3), np.nan, np.float32)))


def test_without_nibabel_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    path = write(tmp_path / "a.nii", values())
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(ValueError, match=r"nibabel is not installed: pip install nibabel \(part of the extra images"):
        images.check(path, volume=True)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_damage_gives_a_volume_or_a_reason(tmp_path, capfd, name):
    content = write(tmp_path / "a.nii", values()).read_bytes()
    rng, reasons, path = np.random.default_rng(0), [], tmp_path / f"b{name[1:]}"
    for _ in range(200):
        damaged = bytearray(content[: rng.integers(340, len(content) + 200)])
        for place in rng.integers(0, min(352, len(damaged)), 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(gzip.compress(damaged) if name.endswith("gz") else damaged)
        try:
            images.check(path, volume=True)
            assert images.read(path, (2, 4, 4, 1)).shape == (2, 4, 4, 1)
        except ValueError as error:
            reasons.append(str(error))
    assert 20 < len(reasons) < 200
    assert all(reason.startswith("it") for reason in reasons)
    assert capfd.readouterr() == ("", "")
