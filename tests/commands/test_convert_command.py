"""sahfl convert: what people annotate is what sahfl works on, and what it writes is a source of its own."""

import json

import nibabel
import numpy as np
import pytest
from harness.dicom_files import CANARIES, write_series

from sahfl.data.ct import read_scan
from sahfl.data.manifest import Case
from sahfl.data.sources.recognised import read_cases

TILTED = np.array([[-0.5, 0, 0, 10], [0, -0.7, 0, 12], [0, -0.2, 5, -7], [0, 0, 0, 1.0]])
SHAPE = (12, 10, 5)


def image(number):
    return (np.arange(np.prod(SHAPE)).reshape(SHAPE) * 2 - 1000 + number).astype(np.int16)


def mask():
    found = np.zeros(SHAPE, np.uint8)
    found[3:6, 2:5, 1:3] = 1
    return found


@pytest.fixture
def patients(tmp_path):
    """Two patients with DICOM series on a tilted gantry; the first has a mask."""
    for number in (1, 2):
        write_series(tmp_path / "site" / f"patient-{number}", image(number), TILTED)
    nibabel.save(nibabel.Nifti1Image(mask(), TILTED), tmp_path / "site" / "patient-1" / "mask.nii.gz")
    return tmp_path / "site"


def test_a_folder_of_patients_becomes_nifti_with_a_datalist_that_reads_alike(sahfl, patients, tmp_path):
    code, out, err = sahfl("convert", patients, tmp_path / "out")
    assert (code, out) == (0, f"{tmp_path / 'out' / 'datalist.json'}\n")
    assert "2 of 2 scans written, 1 of them without a mask" in err
    names = {"scans-0000.nii.gz", "scans-0000_mask.nii.gz", "scans-0001.nii.gz", "datalist.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    was = read_scan(Case("bern-0000", patients / "patient-1", patients / "patient-1", "p"))
    (first, second) = read_cases(tmp_path / "out", "bern", tmp_path)
    now = read_scan(first)
    assert np.array_equal(now.image, was.image)
    assert np.array_equal(now.label, was.label)
    assert np.allclose(now.affine, was.affine, atol=1e-5)
    assert now.volume_ml == pytest.approx(was.volume_ml, rel=1e-6)
    nibabel.save(nibabel.Nifti1Image(now.label.astype(np.uint8), now.affine), second.label)  # as err says
    assert read_scan(second).label.sum() == now.label.sum()
    listed = json.loads((tmp_path / "out" / "datalist.json").read_text())["training"]
    assert [entry["from"] for entry in listed] == ["patient-1", "patient-2"]
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert not [word for word in CANARIES if word.encode() in written or word in out + err]


def test_what_it_writes_can_be_proposed_as_a_study(sahfl, patients, tmp_path):
    _, out, err = sahfl("convert", patients, tmp_path / "out")
    (line,) = [line for line in err.splitlines() if line.startswith("next: sahfl init")]
    assert line == f"next: sahfl init study.yaml --site NAME={out.strip()}"
    code, _, err = sahfl("init", "site.yaml", "--site-file", "--site", f"bern={out.strip()}")
    assert code == 0, err


ONE = {
    "folder": lambda site: site / "patient-1",
    "file": lambda site: next((site / "patient-1").glob("*.dcm")),
}


@pytest.mark.parametrize("of", ONE.values(), ids=ONE.keys())
def test_one_series_is_written_with_its_values_in_hu(sahfl, patients, tmp_path, of):
    code, _, err = sahfl("convert", of(patients), tmp_path / "out")
    assert code == 0, err
    made = nibabel.load(tmp_path / "out" / "scans-0000.nii.gz")
    assert made.get_data_dtype() == np.int16
    assert np.array_equal(np.asarray(made.dataobj)[::-1, ::-1], image(1))


def test_a_scan_that_cannot_be_read_is_named_and_the_others_are_written(sahfl, patients, tmp_path):
    next((patients / "patient-2").glob("*-002.dcm")).unlink()
    code, _, err = sahfl("convert", patients, tmp_path / "out")
    assert code == 0
    assert "warning: left out: case scans-0001: 1 slice(s) of" in err
    assert "1 of 2 scans written, 0 of them without a mask" in err


def test_nothing_is_written_over(sahfl, patients, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    code, _, err = sahfl("convert", patients, tmp_path / "out")
    assert (code, err) == (2, f"error: {tmp_path / 'out'}: is there already; name another folder, or empty it\n")


def test_no_scan_at_all_is_an_error(sahfl, tmp_path):
    assert sahfl("convert", tmp_path / "no", tmp_path / "out")[2].startswith(
        f"error: {tmp_path / 'no'}: got nothing (no such"
    )
    (tmp_path / "scan.nii").write_bytes(b"no scan")
    code, _, err = sahfl("convert", tmp_path / "scan.nii", tmp_path / "out")
    assert code == 2
    assert "none of 1 scan(s) can be read; the first: case scans-0000: the image file is not readable" in err
