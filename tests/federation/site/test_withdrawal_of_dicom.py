"""A withdrawn patient whose scans are DICOM series: found by the id that the files have, and kept out for good."""

import json
import shutil

import pydicom
import pytest
from harness.site_folders import as_dicom

from sahfl.config import SiteConfig, parse
from sahfl.data.phantom import CohortSpec, write_cohort
from sahfl.errors import ConfigError
from sahfl.federation.site.audit import AuditLog, read_lines
from sahfl.federation.site.ledger import Ledger
from sahfl.federation.site.site import Site
from sahfl.federation.site.site_check import check_site
from sahfl.federation.site.withdrawal import withdraw
from sahfl.federation.site.withdrawn import FILE
from sahfl.payload import Header

HEADER = Header("a" * 64, stage="finetune", method="cp_lora-r2", fold=0, round=1, base="")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    write_cohort(folder / "phantoms", CohortSpec("bern", "sah", "standard", 3, seed=1, shape=(40, 48, 8),
                                                 spacing_mm=(5.0, 5.0, 12.0)))  # fmt: skip
    as_dicom(folder / "phantoms", folder / "dicom")
    return folder / "dicom"


@pytest.fixture
def config(exported, tmp_path):
    """A site after a check of its data, and a round with all scans."""
    data = {"source": "folder", "path": str(shutil.copytree(exported, tmp_path / "dicom"))}
    config = parse(SiteConfig, {"name": "bern", "folder": str(tmp_path / "site"), "data": data}, where="test")
    check_site(config)
    Ledger(config).reserve("round", HEADER, "0" * 64, [item.content for item in Site(config).known_cases()])
    return config


def of(config, number):
    return Site(config).known_cases()[number]


@pytest.mark.parametrize("by", ["patient id", "case"])
def test_a_patient_of_dicom_series_is_withdrawn_by_its_id_or_a_case_and_nothing_of_it_is_left(config, by):
    first, *others = Site(config).known_cases()
    name = str(pydicom.dcmread(first.case.files()[0], specific_tags=["PatientID"]).PatientID)
    assert name == "4711-0815-0"
    done = withdraw(config, name if by == "patient id" else first.case.id)
    assert (done.n_scans, done.studies) == (1, ("a" * 64,))
    assert done.files == (first.case.image,)  # the whole folder, and not its slices one by one
    assert [item.case for item in Site(config).known_cases()] == [item.case for item in others]
    (line,) = [line for line in read_lines(AuditLog(config.folder).path) if line["event"] == "withdrawn"]
    kept = (config.folder / FILE).read_text() + json.dumps(line)
    assert not [word for word in (name, first.case.patient, first.case.id) if word in kept]
    left = [path for path in config.folder.rglob("*") if path.is_file() and path.name not in ("ledger.jsonl", FILE)]
    words = (first.content, first.voxels, first.case.patient)
    assert not [path for path in left if any(word in path.name or word.encode() in path.read_bytes() for word in words)]


def anew(folder, change):
    """Another export of a patient: other files, another folder."""
    (folder.parent / "another-export").mkdir()
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        change(data)
        data.save_as(folder.parent / "another-export" / f"x{path.name}")
    shutil.rmtree(folder)


ANEW = {
    "the-same-id": lambda data: setattr(data, "StudyDate", "20260101"),
    "another-id": lambda data: setattr(data, "PatientID", "ANON"),
}


@pytest.mark.parametrize("change", ANEW.values(), ids=ANEW.keys())
def test_another_export_of_a_withdrawn_patient_stays_out(config, change):
    first, *others = Site(config).known_cases()
    withdraw(config, first.case.id)
    anew(first.case.image, change)
    verdict = check_site(config)
    assert not [text for text in verdict.warnings if "another-export" in text]
    assert {item.content for item in Site(config).known_cases()} == {item.content for item in others}


def test_a_folder_whose_files_have_no_patient_id_is_withdrawn_by_its_name(config):
    folder = of(config, 1).case.image
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.PatientID = ""
        data.save_as(path)
    check_site(config)
    done = withdraw(config, folder.name)
    assert done.files == (folder,)
    assert folder not in {item.case.image for item in Site(config).known_cases()}


def test_a_second_call_finishes_and_another_name_is_refused(config):
    first = of(config, 0)
    withdraw(config, "4711-0815-0")
    assert withdraw(config, "4711-0815-0").n_scans == 1  # the scans are still in the site's data
    shutil.rmtree(first.case.image)
    with pytest.raises(ConfigError, match="have no patient or case of this name"):
        withdraw(config, "4711-0815-0")
    with pytest.raises(ConfigError, match="have no patient or case of this name"):
        withdraw(config, "4711-0815-9")
