"""Films of MIMIC-CXR-JPG beside stays of MIMIC-IV, of invented patients."""

import datetime as dt

import numpy as np
import polars as pl
import pytest

from remind_jax.config import base
from remind_jax.data import check, sources
from remind_jax.data.manifest import decode
from remind_jax.data.sources import mimic_iv
from remind_jax.errors import UserError
from tests.data.image_files import write_picture
from tests.data.sources import mimic_files
from tests.data.sources.mimic_files import ANN, BEN, EVE, START

METADATA = (
    *("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns"),
    *("StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning"),
)


def film(name, patient, hours, view="AP"):
    """A row of the metadata: time is a number without zeros in front, as in the release."""
    at = START[patient] + dt.timedelta(hours=hours)
    time = float(f"{at:%H%M%S}") + 0.25
    ids = {"dicom_id": name, "subject_id": patient, "study_id": 50_000_000 + patient % 10}
    return ids | {"ViewPosition": view, "StudyDate": f"{at:%Y%m%d}", "StudyTime": time}


FILMS = (
    film("early", ANN, 1),
    film("newest", ANN, 40),
    film("lateral", ANN, 41, "LATERAL"),
    film("after", ANN, 49),
    film("before", BEN, -3),
    film("other", EVE, 10, "PA"),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """MIMIC-IV, and the films; of `after` and `before` there are no files, so that nobody can look at them."""
    root, images = tmp_path_factory.mktemp("mimic"), tmp_path_factory.mktemp("cxr")
    mimic_files.write(root, mimic_files.tables())
    mimic_files.write(images, {"mimic-cxr-2.0.0-metadata": list(FILMS)}, {"mimic-cxr-2.0.0-metadata": METADATA})
    for shade, row in enumerate(FILMS):
        if row["dicom_id"] not in ("after", "before"):
            path = images / f"files/p10/p{row['subject_id']}/s{row['study_id']}/{row['dicom_id']}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_picture(path, np.full((20, 30), 40 * shade, np.uint8))
    return root, images


def paths(manifest):
    ids = manifest.table["subject_id"].cast(pl.Int64).to_list()
    return dict(zip(ids, manifest.table["film"].to_list(), strict=True))


def test_the_newest_frontal_film_of_the_window(folders):
    root, images = folders
    manifest = mimic_iv.load(root, images_root=images, image_size=8)
    assert paths(manifest) == {
        **{ANN: f"files/p10/p{ANN}/s50000001/newest.jpg", BEN: None},
        EVE: f"files/p10/p{EVE}/s50000005/other.jpg",
    }
    assert not [finding for finding in check.find_problems(manifest) if finding.fatal]
    assert "2 of 4 stays have a frontal film in the window, of 3 the newest" in [n.message for n in manifest.notes]
    assert decode(manifest, np.array([0]))["film"].mean() == pytest.approx(40, abs=2)
    assert (manifest.root, manifest.published) == (images, {})
    shorter = mimic_iv.load(root, images_root=images, hours=39)
    assert paths(shorter)[ANN].endswith("early.jpg")


def test_other_modalities_stay_as_they_are(folders):
    root, images = folders
    plain, more = mimic_iv.load(root), mimic_iv.load(root, images_root=images)
    assert more.table.drop("film").equals(plain.table)
    assert more.schema.modalities[:3] == plain.schema.modalities


def test_masks_take_films_too(folders):
    root, images = folders
    config = base("mimic_iv")
    config.data.update(root=str(root), images_root=str(images), missing="bernoulli", drop=0.9, image_size=8)
    manifest = sources.load(config.data, seed=0)
    assert manifest.presence.any(axis=1).all()
    assert manifest.presence.sum() < mimic_iv.load(root, images_root=images).presence.sum()


def test_what_is_not_there_is_named(folders, tmp_path):
    root, _ = folders
    with pytest.raises(UserError, match=r"folder of images .* does not exist"):
        mimic_iv.load(root, images_root=tmp_path / "absent")
    with pytest.raises(UserError, match=r"mimic-cxr-2\.0\.0-metadata\.csv\.gz is not in the folder.*MIMIC-CXR-JPG"):
        mimic_iv.load(root, images_root=tmp_path)
    rows = [*FILMS, film("lost", ANN, 47)]
    other = mimic_files.write(tmp_path, {"mimic-cxr-2.0.0-metadata": rows}, {"mimic-cxr-2.0.0-metadata": METADATA})
    with pytest.raises(UserError, match="E007"):
        mimic_iv.load(root, images_root=other)
