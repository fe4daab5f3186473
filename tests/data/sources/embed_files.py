"""Writes folders in the layout of EMBED's public release; pixels are pydicom's real sample images (not mammograms).

Tables have the documented columns that matter and some that do not, with an index column and cells of mixed types, as
the release has them. All ids are made up.
"""

import csv
import pathlib
from collections.abc import Iterable, Sequence

CLINICAL = (
    "",
    "empi_anon",
    "acc_anon",
    "study_date_anon",
    "desc",
    "tissueden",
    "asses",
    "side",
    "numfind",
    "massshape",
    "path_severity",
    "age_at_study",
    "RACE_DESC",
)
METADATA = (
    "",
    "anon_dicom_path",
    "empi_anon",
    "acc_anon",
    "study_date_anon",
    "StudyDescription",
    "SeriesDescription",
    "FinalImageType",
    "ImageLateralityFinal",
    "ViewPosition",
    "spot_mag",
    "num_roi",
    "ROI_coords",
    "BreastImplantPresent",
    "Manufacturer",
)
SERVER = "/mnt/NAS2/mammo/anon_dicom/"
# Ids of 16 digits that a float64 cannot tell apart.
ACC = 9_876_543_210_987_600


def finding(patient: int, exam: int, density: object, **more: object) -> dict[str, object]:
    """A row of the clinical table; `exam` is added to `ACC`."""
    row = {
        "empi_anon": 10_000_000 + patient,
        "acc_anon": ACC + exam,
        "study_date_anon": f"2015-03-{exam % 28 + 1:02d}",
        "desc": "MG Screening Bilateral",
        "tissueden": density,
        "asses": "N",
        "numfind": 1,
        "age_at_study": 61.5,
    }
    return row | more


def image(patient: int, exam: int, kind: str, view: str, side: str = "L", number: int = 0, **more: object) -> dict:
    """A row of the metadata table, for a file of its own."""
    name = f"cohort_{patient % 2 + 1}/{10_000_000 + patient}/1.2.{exam}/1.2.{exam}.1"
    row = {
        "anon_dicom_path": f"{SERVER}{name}/{kind}_{view}_{side}_{number}.dcm",
        "empi_anon": 10_000_000 + patient,
        "acc_anon": ACC + exam,
        "study_date_anon": f"2015-03-{exam % 28 + 1:02d}",
        "StudyDescription": "MG Screening Bilateral",
        "SeriesDescription": f"{side} {view}",
        "FinalImageType": kind,
        "ImageLateralityFinal": side,
        "ViewPosition": view,
        "spot_mag": 0.0,
        "num_roi": 1,
        "ROI_coords": "((10, 20, 30, 40), (1, 2, 3, 4))",
        "BreastImplantPresent": "NO",
        "Manufacturer": "HOLOGIC, Inc.",
    }
    return row | more


def both_views(patient: int, exam: int, kind: str, sides: str = "LR") -> list[dict[str, object]]:
    """CC and MLO of each side."""
    return [image(patient, exam, kind, view, side) for side in sides for view in ("CC", "MLO")]


def release() -> tuple[list[dict], list[dict]]:
    """Findings and files of ten exams of nine patients; four of them are usable (exams 1, 2, 3 and 10).

    What is wrong with the others: 4 is male, 5 has no density, 6 has two, 7 shows implants, 8 has no files, 9 has no
    finding. Exam 3 has a spot view, exam 10 files of other kinds and views.
    """
    findings = [
        finding(1, 1, "2.0", side="L"),
        finding(1, 1, "2.0", side="R", numfind=2, massshape="O"),
        finding(1, 2, 3.0),
        finding(2, 3, 1.0),
        finding(3, 4, 5.0),
        finding(4, 5, ""),
        finding(5, 6, 2.0),
        finding(5, 6, 3.0, numfind=2),
        finding(6, 7, 4.0),
        finding(7, 8, 4.0),
        finding(9, 10, 4.0),
    ]
    files = [
        *both_views(1, 1, "2D"),
        *both_views(1, 2, "2D", "R"),
        *both_views(1, 2, "cview", "R"),
        image(2, 3, "2D", "CC", spot_mag=1.0),
        image(2, 3, "2D", "MLO", study_date_anon="2015-03-05"),
        *both_views(3, 4, "2D", "L"),
        *both_views(4, 5, "2D", "L"),
        *both_views(5, 6, "2D", "L"),
        image(6, 7, "2D", "CC", BreastImplantPresent="YES"),
        *both_views(8, 9, "2D", "L"),
        image(9, 10, "2D", "CC", BreastImplantPresent=""),
        image(9, 10, "cview", "CC", spot_mag=""),
        image(9, 10, "3D", "MLO"),
        image(9, 10, "2D", "ML"),
        image(9, 10, "2D", "", number=7),
    ]
    return findings, files


def write_table(path: pathlib.Path, columns: Sequence[str], rows: Iterable[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({"": i, **row} for i, row in enumerate(rows))


def write_tables(folder: pathlib.Path, findings: Sequence[dict], files: Sequence[dict], ending: str = "") -> None:
    """Writes both tables; `ending` is `_reduced` for the smaller ones of the release."""
    write_table(folder / "tables" / f"EMBED_OpenData_clinical{ending}.csv", CLINICAL, findings)
    write_table(folder / "tables" / f"EMBED_OpenData_metadata{ending}.csv", METADATA, files)


def path_of(folder: pathlib.Path, row: dict[str, object]) -> pathlib.Path:
    """Where the file of a metadata row lies."""
    return folder / "images" / str(row["anon_dicom_path"]).removeprefix(SERVER)


def write_mammogram(path: pathlib.Path, sample: str = "CT_small.dcm", orientation: Sequence[str] = ("A", "R")) -> None:
    """A real image that comes with pydicom, with the tags of a mammogram."""
    import pydicom
    from pydicom.data import get_testdata_file

    data = pydicom.dcmread(get_testdata_file(sample, download=False))
    data.Modality = "MG"
    data.PatientOrientation = list(orientation)
    data.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["/".join(path.parts[-5:])])
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path)


def write_release(folder: pathlib.Path, ending: str = "") -> pathlib.Path:
    """The ten exams of `release` with their files; those of left breasts run to the posterior side."""
    findings, files = release()
    write_tables(folder, findings, files, ending)
    for row in files:
        orientation = ("P", "L") if row["ImageLateralityFinal"] == "L" else ("A", "R")
        sample = "CT_small.dcm" if row["ViewPosition"] == "CC" else "MR_small.dcm"
        write_mammogram(path_of(folder, row), sample, orientation)
    return folder
