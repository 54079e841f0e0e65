"""Contrast agent and kernel, as a DICOM header names them."""

import gzip

import nibabel
import numpy as np
import pytest
from harness.dicom_files import CANARIES, write_series
from harness.one_case import check_case
from test_checks import blood, head

from sahfl.data.dicom.protocol import is_sharp, judge_protocol, names_agent
from sahfl.data.manifest import Case

AFFINE = np.diag([-1.0, -1.0, 5.0, 1.0])


def found(folder, **header):
    """Rules and texts of a series with these elements in its header."""

    def change(data, index):
        for name, value in header.items():
            setattr(data, name, value)

    write_series(folder / "ct", head().astype(np.int16), AFFINE, change=change)
    nibabel.save(nibabel.Nifti1Image(blood(), AFFINE), folder / "ct" / "mask.nii.gz")
    checked = check_case(Case("bern-a", folder / "ct", folder / "ct", "p"))
    assert checked.usable
    return {finding.rule: finding.text for finding in checked.findings}


def test_a_header_without_a_word_about_it_has_no_finding(tmp_path):
    assert found(tmp_path) == {}


def test_a_named_contrast_agent_is_a_warning_that_does_not_quote_it(tmp_path):
    texts = found(tmp_path, ContrastBolusAgent="Ultravist 300 for Muster^Hans")
    assert texts == {"contrast_agent": "case bern-a: the header names a contrast agent"}


def test_a_kernel_for_bone_is_a_warning_that_does_not_quote_it(tmp_path):
    texts = found(tmp_path, ConvolutionKernel=["Hr68h", "3"])
    assert texts == {"sharp_kernel": "case bern-a: the header names a kernel for bone or lung"}


def test_a_native_scan_with_a_brain_kernel_has_no_finding(tmp_path):
    assert found(tmp_path, ContrastBolusAgent="NONE", ConvolutionKernel="H30s") == {}


def test_the_localizer_of_the_study_is_not_asked(tmp_path):
    def localizer(data, index):
        data.ImageType, data.ConvolutionKernel, data.ContrastBolusAgent = ["LOCALIZER"], "BONE", "Ultravist"

    write_series(tmp_path / "ct", head().astype(np.int16)[:, :, :1], AFFINE, change=localizer, series="a-scout")
    assert found(tmp_path, ConvolutionKernel="SOFT") == {}


@pytest.mark.parametrize("agent", ["Ultravist 370", "ISOVUE", "CONTRAST", "IV", "Omnipaque, 100 mL", "YES"])
def test_an_agent_is_recognised(agent):
    assert names_agent(agent)


@pytest.mark.parametrize(
    "agent", ["", " ", "NONE", "None given", "no", "w/o", "Without contrast", "N/A", "0", "-", "?"]
)
def test_what_people_write_where_there_was_none_is_no_agent(agent):
    assert not names_agent(agent)


SHARP = [
    "H60s",
    "H70h",
    "J70h",
    "Hr68h",
    "B80f",
    "U90u",
    "BONE",
    "BONEPLUS",
    "BONE+",
    "EDGE",
    "FC30",
    "FC81",
    "H_SHARP_C",
]
SOFT = [
    "",
    "H20s",
    "H30s",
    "J40s",
    "Hr40f",
    "Hc38h",
    "B30f",
    "SOFT",
    "STANDARD",
    "STND/+",
    "FC21",
    "FC68",
    "UB",
    "B",
    "?",
]


@pytest.mark.parametrize("kernel", SHARP)
def test_a_kernel_for_bone_or_lung_is_recognised(kernel):
    assert is_sharp(kernel)


@pytest.mark.parametrize("kernel", SOFT)
def test_a_kernel_for_soft_tissue_or_an_unknown_one_is_not_suspected(kernel):
    assert not is_sharp(kernel)


def test_real_slices_have_no_finding_about_their_protocol(realct):
    paths = sorted((realct / "rsna_dicom").glob("*.dcm"))
    assert len(paths) == 4
    for path in paths:
        assert list(judge_protocol(path)) == []


def test_the_texts_hold_nothing_of_the_patient(tmp_path):
    texts = repr(found(tmp_path, ContrastBolusAgent="Muster^Hans", ConvolutionKernel="BONE"))
    assert not [word for word in CANARIES if word in texts]


def test_the_header_of_a_nifti_annotation_beside_a_series_is_searched_for_names(tmp_path):
    assert found(tmp_path) == {}
    path = tmp_path / "ct" / "mask.nii.gz"
    label = nibabel.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
    label.header["descrip"] = b"Muster^Hans"
    nibabel.save(label, path)
    (finding,) = check_case(Case("bern-a", tmp_path / "ct", tmp_path / "ct", "p")).findings
    assert finding.text == "case bern-a: descrip of the label file looks like a name or a date"
