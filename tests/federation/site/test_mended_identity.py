"""A patient's identity that is mended in the files: the scans stay the same scans, with the budgets they had."""

import pydicom
import pytest
from harness.site_folders import as_dicom

from sahfl.config import SiteConfig, parse
from sahfl.data.phantom import CohortSpec, write_cohort
from sahfl.errors import BudgetSpent
from sahfl.federation.site.ledger import Ledger
from sahfl.federation.site.site import Site
from sahfl.federation.site.site_check import check_site
from sahfl.payload import Header

HEADER = Header("a" * 64, stage="finetune", method="cp_lora-r2", fold=0, round=1, base="")


@pytest.fixture
def config(tmp_path):
    """A site whose three patients were all exported under one id."""
    write_cohort(tmp_path / "phantoms", CohortSpec("bern", "sah", "standard", 3, seed=1, shape=(40, 48, 8),
                                                   spacing_mm=(5.0, 5.0, 12.0)))  # fmt: skip
    as_dicom(tmp_path / "phantoms", tmp_path / "dicom")
    name_patients(tmp_path / "dicom", lambda number: "ANONYMOUS")
    data = {"source": "folder", "path": str(tmp_path / "dicom")}
    policy = {"budget": {"rounds": 1, "evaluations": 1}}
    site = {"name": "bern", "folder": str(tmp_path / "site"), "data": data, "policy": policy}
    return parse(SiteConfig, site, where="test")


def name_patients(folder, name):
    for number, patient in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in patient.rglob("*.dcm"):
            data = pydicom.dcmread(path)
            data.PatientID, data.PatientName = name(number), f"P^{number}"
            data.save_as(path)


def contents(config):
    check_site(config)
    return {item.content for item in Site(config).known_cases()}


def rules(config):
    return {finding.rule for item in Site(config).known_cases() for finding in item.findings}


def test_mended_ids_new_folder_names_and_a_viewers_files_leave_the_budgets_as_they_are(config, tmp_path):
    used = contents(config)
    assert len(used) == 3
    assert "one_id" in rules(config)
    Ledger(config).reserve("round", HEADER, "0" * 64, used)
    before = Ledger(config).usage()
    name_patients(tmp_path / "dicom", lambda number: f"B-{number}")
    for number, patient in enumerate(sorted((tmp_path / "dicom").iterdir())):
        (patient / "README").write_text("A viewer for these pictures.")
        patient.rename(patient.with_name(f"bern-{number}"))
    assert contents(config) == used
    assert "one_id" not in rules(config)
    assert Ledger(config).usage() == before
    assert set(before) == used
    with pytest.raises(BudgetSpent, match=r"3 of 3 scans were used 1 times"):
        Ledger(config).reserve("round", HEADER, "1" * 64, contents(config))


def test_other_pixels_are_another_scan(config, tmp_path):
    used = contents(config)
    path = next((tmp_path / "dicom").rglob("*.dcm"))
    data = pydicom.dcmread(path)
    data.PixelData = data.PixelData[:-2] + b"\1\0"
    data.save_as(path)
    assert len(contents(config) - used) == 1
