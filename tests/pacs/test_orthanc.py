"""Fetching from a real archive, and the annotation loop back to it."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from harness import orthanc
from harness.dicom_files import CANARIES, uid, write_segmentation, write_series
from harness.finished_run import phantom_hu, write_run
from harness.tiny_study import TINY, changed

from sahfl.data.ct import read_scan
from sahfl.data.dicom import read_patients, read_series
from sahfl.pacs import fetch as fetching
from sahfl.pacs.archive import Archive
from sahfl.pacs.login import Login

pytestmark = pytest.mark.skipif(bool(orthanc.missing()), reason=orthanc.missing() or "it is installed")
IMAGE, LABEL, AFFINE = phantom_hu()
STUDY, OTHER = uid("study A"), uid("study B")


def of_study(study, accession, n=0, **changes):
    def change(data, index):
        data.StudyInstanceUID, data.AccessionNumber, data.FrameOfReferenceUID = study, accession, uid(study, "frame")
        data.StudyDate, data.StudyTime, data.StudyID, data.SeriesDescription = "20240131", "101500", "4711", "Head 5mm"
        data.ContrastBolusAgent, data.InstitutionName, data.ConvolutionKernel = "Muster-Agent", "Hans-Klinik", "H30s"
        data.add_new(0x00091001, "LO", "Muster^Hans private")
        for name, value in changes.items():
            setattr(data, name, value)

    return change


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orthanc")
    with orthanc.running(folder / "server") as client:
        write_series(folder / "A", IMAGE, AFFINE, change=of_study(STUDY, "ACC-1"), series="a")
        screen = of_study(STUDY, "ACC-1", SeriesDescription="Dose screen")
        write_series(folder / "dose", IMAGE[:, :, :1], AFFINE, change=screen, series="dose")
        write_series(folder / "mr", IMAGE, AFFINE, change=of_study(STUDY, "ACC-1", Modality="MR"), series="mr")
        write_series(folder / "B", IMAGE[:, 1:], AFFINE, change=of_study(OTHER, "ACC-2"), series="b")
        orthanc.upload(client, folder)
        yield client


@pytest.fixture
def site(tmp_path, archive, sahfl):
    """The folder of a hospital, and what calls a command with the address and the login of the archive."""
    login = tmp_path / "login"
    login.write_text(f"{orthanc.USER}:{orthanc.PASSWORD}\n")
    login.chmod(0o600)
    rows = [["study", "accession", "pseudonym"], [STUDY, "", "P001"], ["", "ACC-2", "P002"]]
    (tmp_path / "studies.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    address = str(archive.base_url).rstrip("/") + "/dicom-web"

    def call(*arguments):
        return sahfl(*arguments, "--archive", address, "--login", login)

    return tmp_path, call


def fetch(site, *options):
    folder, call = site
    return call("fetch", folder / "studies.csv", "--to", folder / "scans", *options)


def files(folder):
    return sorted(path for path in folder.rglob("*.dcm"))


def test_listed_studies_are_fetched_under_their_pseudonyms(site):
    code, out, err = fetch(site)
    assert code == 0, err
    assert out == "2 studies: 2 fetched (0 by an earlier call)\n"
    folder = site[0] / "scans"
    assert sorted(path.name for path in folder.iterdir()) == ["P001", "P002"]
    assert len(files(folder / "P001")) == IMAGE.shape[2]  # neither the dose screen nor the MR
    series = read_series(folder / "P001")
    np.testing.assert_array_equal(np.asarray(series.image.dataobj), IMAGE)
    np.testing.assert_allclose(series.image.affine, AFFINE, atol=1e-4)
    first, *_ = (pydicom.dcmread(path) for path in files(folder / "P001"))
    assert (first.PatientID, str(first.PatientName), first.PatientIdentityRemoved) == ("P001", "P001", "YES")
    assert first.StudyInstanceUID != STUDY
    assert (first.ContrastBolusAgent, first.ConvolutionKernel) == ("CONTRAST", "H30s")


def test_nothing_of_the_patient_is_in_the_folder_or_in_what_is_printed(site):
    _, out, err = fetch(site)
    known = [*CANARIES, "ACC-1", "4711", "20240131", STUDY, OTHER, uid("a"), uid("a", 3), uid(STUDY, "frame")]
    known += ["Klinik", orthanc.PASSWORD]
    written = b"".join(path.read_bytes() for path in files(site[0] / "scans")).decode("latin-1") + out + err
    written += "".join(str(path) for path in (site[0] / "scans").rglob("*"))
    assert not [text for text in known if text in written]


def test_the_mapping_says_who_is_who_to_its_owner_alone(site):
    fetch(site)
    mapping = site[0] / "scans-mapping"
    assert mapping.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in mapping.iterdir()} == {0o600}
    rows = list(csv.DictReader((mapping / "mapping.csv").read_text().splitlines()))
    assert [(row["pseudonym"], row["study"], row["state"], row["images"]) for row in rows] == [
        ("P001", STUDY, "fetched", "10"),
        ("P002", OTHER, "fetched", "10"),
    ]
    uids = json.loads((mapping / "P001.json").read_text())["uids"]
    image = pydicom.dcmread(files(site[0] / "scans" / "P001")[0])
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        assert uids[image[name].value] != image[name].value
    assert uids[image.FrameOfReferenceUID] == uid(STUDY, "frame")


def test_a_second_call_fetches_only_what_is_new(site, monkeypatch):
    fetch(site)
    before = {path: path.stat().st_mtime_ns for path in files(site[0] / "scans")}
    monkeypatch.setattr(Archive, "retrieve", None)
    code, out, _ = fetch(site)
    assert (code, out) == (0, "2 studies: 2 fetched (2 by an earlier call)\n")
    assert {path: path.stat().st_mtime_ns for path in files(site[0] / "scans")} == before


def test_an_interrupted_call_goes_on_image_by_image_and_knows_all_uids(site, monkeypatch):
    real, asked = Archive.retrieve, []

    def failing(self, *uids):
        asked.append(uids)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return real(self, *uids)

    monkeypatch.setattr(Archive, "retrieve", failing)
    fetch(site)
    assert not (site[0] / "scans" / "P001").exists()
    code, _, err = fetch(site)
    assert code == 0, err
    assert len(asked) == 4 + 1 + 6 + 1 + 10  # four, the interrupted one, the rest, one for its UIDs, the other study
    assert len(files(site[0] / "scans" / "P001")) == 10
    uids = json.loads((site[0] / "scans-mapping" / "P001.json").read_text())["uids"]
    assert {STUDY, uid("a"), uid(STUDY, "frame"), *(uid("a", index) for index in range(10))} == set(uids.values())


def test_a_study_that_the_archive_lacks_is_refused_by_its_pseudonym_and_ends_nothing(site):
    rows = "study,accession,pseudonym\n1.2.3,,P000\n,ACC-9,P009\n,ACC-2,P002\n"
    (site[0] / "studies.csv").write_text(rows)
    code, out, err = fetch(site)
    assert code == 3
    assert "3 studies: 1 fetched" in out
    assert "refused: P000: the archive has 0 studies with this StudyInstanceUID, expected one" in err
    assert "refused: P009: the archive has 0 studies with this AccessionNumber, expected one" in err
    assert "ACC-9" not in out + err


def test_a_wrong_password_is_an_error_without_the_password(site):
    (site[0] / "login").write_text("sahfl:wrong-password\n")
    code, out, err = fetch(site)
    assert code == 3
    assert "refused: P001: the archive answered HTTP 401; check the login" in err
    assert "wrong-password" not in out + err


def test_a_description_chooses_series(site):
    code, _, err = fetch(site, "--description", "thin")
    assert code == 3
    assert "refused: P001: the study has 2 CT series, none with this description" in err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    write_run(folder, changed(TINY, finetune__methods=[{"method": "cp_lora", "rank": 2}]), folds=1)
    return folder


def test_a_segmentation_goes_to_the_archive_and_a_corrected_one_comes_back_as_annotation(site, archive, run, sahfl):
    folder, call = site
    fetch(site)
    options = ("--fold", "0", "--threshold", "0.02", "--dicom-seg", "--out", folder / "results")
    code, _, err = sahfl("predict", run, folder / "scans", *options)
    assert code == 0, err
    code, out, err = call("push", folder / "results", "--scans", folder / "scans")
    assert (code, out) == (0, "2 segmentations stored, 0 stored by an earlier call\n"), err
    assert call("push", folder / "results", "--scans", folder / "scans")[1].startswith("0 segmentations stored, 2")

    stored = [pydicom.dcmread(io.BytesIO(content)) for content in orthanc.datasets(archive, "SEG")]
    ours = next(item for item in stored if item.StudyInstanceUID == STUDY)
    assert (ours.PatientID, str(ours.PatientName), ours.StudyID) == ("4711-0815", "Muster^Hans", "4711")
    assert (ours.FrameOfReferenceUID, ours.AccessionNumber) == (uid(STUDY, "frame"), "ACC-1")
    (referenced,) = ours.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == uid("a")
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == {
        uid("a", index) for index in range(10)
    }

    code, out, _ = fetch(site, "--annotations")
    assert "0 with an annotation" in out  # what this program segmented is no annotation
    corrected = folder / "corrected" / "seg.dcm"
    corrected.parent.mkdir()
    original = folder / "original"
    slices = write_series(original, IMAGE, AFFINE, change=of_study(STUDY, "ACC-1"), series="a")
    write_segmentation(corrected, slices, LABEL)
    orthanc.upload(archive, corrected.parent)
    code, out, err = fetch(site, "--annotations")
    assert code == 0, err
    assert "1 with an annotation" in out
    annotation = Path(folder / "scans" / "P001" / fetching.ANNOTATION)
    assert not [text for text in (*CANARIES, STUDY, uid("a", 1)) if text.encode() in annotation.read_bytes()]
    case = read_patients(folder / "scans", "site")[0]
    np.testing.assert_array_equal(read_scan(case).label.sum(), LABEL.sum())


def test_a_login_never_shows(site, archive):
    login = Login(user=orthanc.USER, password=orthanc.PASSWORD)
    assert orthanc.PASSWORD not in repr(login)
