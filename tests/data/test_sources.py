"""A site's path is recognised by what is there, and every kind of source gives the same cases."""

import json
import re

import nibabel
import numpy as np
import pytest
from harness.dicom_files import write_series

from sahfl.config import SiteConfig, Study, load_study
from sahfl.data.sources.folders import SiteScansFolder
from sahfl.data.sources.recognised import read_cases, recognise
from sahfl.errors import ConfigError, DataError
from sahfl.events import listening
from sahfl.federation.site.site import Site
from sahfl.simulation.simulate import site_configs

AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])

STUDY = """
name: several
data:
  source: folder
  sites: {graz: scans/list.json, bern: scans/raw, linz: scans/dicom}
pretrain: {sites: [graz], rounds: 1, local: {steps: 2}}
finetune: {sites: [bern, linz], rounds: 1, local: {steps: 2}, methods: [{method: zero_shot}]}
"""


def head(patient):
    """Air, bone, brain: HU of (columns, rows, slices); every patient's brain and blood are different."""
    image = np.full((20, 24, 6), -1000, np.int16)
    image[2:18, 2:20] = 900
    image[3:17, 3:19] = 30 + patient
    label = np.zeros(image.shape, np.uint8)
    label[5:9, 6:8, 2 : 4 + patient % 2] = 1
    return image, label


def as_nifti(folder, patient, image_name, label_name):
    for voxels, name in zip(head(patient), (image_name, label_name), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), folder / name)


@pytest.fixture
def scans(tmp_path):
    """The same three patients as a datalist, as an nnU-Net raw folder and as DICOM series."""
    folder = tmp_path / "scans"
    entries = []
    for patient in range(3):
        as_nifti(folder, patient, f"{patient}.nii.gz", f"{patient}-mask.nii.gz")
        entries.append({"image": f"{patient}.nii.gz", "label": f"{patient}-mask.nii.gz", "patient": f"p{patient}"})
        as_nifti(folder / "raw", patient, f"imagesTr/p{patient}_0000.nii.gz", f"labelsTr/p{patient}.nii.gz")
        image, label = head(patient)
        write_series(folder / "dicom" / f"p{patient}", image, AFFINE)
        nibabel.save(nibabel.Nifti1Image(label, AFFINE), folder / "dicom" / f"p{patient}" / "mask.nii.gz")
    (folder / "list.json").write_text(json.dumps({"sites": {"graz": entries}}))
    (folder / "monai.json").write_text(json.dumps({"training": entries}))
    settings = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "blood": 1}, "numTraining": 3}
    (folder / "raw" / "dataset.json").write_text(json.dumps(settings | {"file_ending": ".nii.gz"}))
    return folder


PATHS = {"list.json": "datalist", "monai.json": "datalist", "raw": "nnU-Net", "dicom": "DICOM"}


@pytest.mark.parametrize(("name", "source"), PATHS.items(), ids=PATHS.keys())
def test_a_path_is_recognised_and_a_site_prepares_its_cases_alike(scans, tmp_path, name, source):
    assert recognise(scans / name, "graz") == source
    assert [case.id for case in read_cases(scans / name, "graz", tmp_path)] == ["graz-0000", "graz-0001", "graz-0002"]
    site = Site(SiteConfig(name="graz", folder=tmp_path / "work", data=SiteScansFolder(path=scans / name)))
    seen = []
    site.prepare(lambda done, total: seen.append((done, total)))
    described = site.describe(n_folds=3, seed=1)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (described.source, described.n_volumes, described.n_positive) == (source, 3, 3)
    assert described.n_patients == 3  # the headers of the series all have one patient id, which is no person's
    assert described.volume_ml == pytest.approx((2 * 4 * 2 * 2 + 4 * 2 * 3) * 0.02, abs=0.05)
    assert [round(item.volume_ml, 3) for item in site.cases()] == [0.32, 0.48, 0.32]


REPEATS = {"p0": "P7_1", "p1": "P7_2", "p2": "P8"}


def test_a_run_warns_of_likely_repeat_scans_of_an_nnunet_folder_without_their_names(scans, tmp_path):
    for old, new in REPEATS.items():
        for part, tail in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
            (scans / "raw" / part / f"{old}{tail}").rename(scans / "raw" / part / f"{new}{tail}")
    site = Site(SiteConfig(name="graz", folder=tmp_path / "work", data=SiteScansFolder(path=scans / "raw")))
    seen = []
    with listening(seen.append):
        site.prepare(lambda done, total: None)
    (event,) = seen
    assert event.text.startswith("site graz: by their names, 2 cases look like repeat scans of 1 patient(s)")
    assert "P7" not in event.text
    described = site.describe(n_folds=3, seed=1)
    assert (described.n_patients, described.findings["repeat_scan"]) == (3, 2)
    (scans / "raw" / "patients.json").write_text(json.dumps({"P7_1": "P7", "P7_2": "P7", "P8": "P8"}))
    with listening(seen.append):
        site.prepare(lambda done, total: None)
    assert seen == [event]
    assert site.describe(n_folds=3, seed=1).n_patients == 2


WRONG = {
    "nothing": (
        "no",
        r"site bern: .*no: got nothing \(no such file or folder\), expected a datalist.*; correct the path$",
    ),
    "empty-folder": ("empty", "site bern: .*empty: got a folder, expected a datalist .*, an nnU-Net raw folder"),
    "images-alone": (
        "raw/imagesTr",
        r"got a folder of 3 volume\(s\), none with a mask .*; it is a part of an nnU-Net raw .* above$",
    ),
    "a-scan": ("0.nii.gz", "0.nii.gz: got a file, expected"),
    "other-sites": ("list.json", r"has no site 'bern' \(it has: graz\)"),
    "no-datalist": ("raw/dataset.json", r"raw/dataset.json: has no site 'bern' \(it has: no 'sites' mapping\)"),
}


@pytest.mark.parametrize(("name", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_path_without_scans_is_refused_naming_what_was_found(scans, name, message):
    (scans / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        recognise(scans / name, "bern")


NO_DATALIST = {"folder": "dicom", "nnU-Net": "raw", "table": "list.csv"}


@pytest.mark.parametrize("name", NO_DATALIST.values(), ids=NO_DATALIST.keys())
def test_a_datalist_that_is_something_else_names_the_source_that_reads_it(scans, sahfl, tmp_path, name):
    (scans / "list.csv").write_text("image,label,patient\n0.nii.gz,0-mask.nii.gz,p0\n")
    file = tmp_path / "site.yaml"
    file.write_text(f"name: graz\nfolder: work\ndata: {{source: datalist, path: {scans / name}}}\n")
    code, _, err = sahfl("check", file)
    assert code == 2
    assert re.search(r"line 3, data.path: datalist .* is a (folder|.csv file), expected a JSON file", err)
    assert err.strip().endswith("write source: folder")
    file.write_text(file.read_text().replace("source: datalist", "source: folder"))
    _, _, err = sahfl("check", file)
    assert "graz: " in err
    assert "expected a" not in err


# --- the study file -------------------------------------------------------------------------------------------------


def study_of(folder, text=STUDY):
    (folder / "study.yaml").write_text(text)
    return load_study(folder / "study.yaml")


def test_each_site_of_a_study_gets_its_own_path_relative_to_the_study_file(scans, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    sites = site_configs(study_of(tmp_path), tmp_path / "run")
    assert [(site.name, site.data) for site in sites] == [
        ("graz", SiteScansFolder(path=scans / "list.json")),
        ("bern", SiteScansFolder(path=scans / "raw")),
        ("linz", SiteScansFolder(path=scans / "dicom")),
    ]


def test_all_paths_without_scans_are_named_before_anything_starts(scans, tmp_path):
    study = study_of(tmp_path, STUDY.replace("scans/raw", "raw").replace("scans/dicom", "scans/0.nii.gz"))
    with pytest.raises(
        DataError, match=r"(?s)site bern: .*got nothing \(no such file or folder\), .*\n.*site linz: .*got a file, "
    ):
        site_configs(study, tmp_path / "run")


def test_the_fingerprint_depends_on_the_sites_and_not_on_their_paths(scans, tmp_path):
    here, there = study_of(tmp_path), study_of(tmp_path, STUDY.replace("scans/", "/data/"))
    assert here.data != there.data
    assert here.fingerprint() == there.fingerprint()
    assert Study.model_validate_json(here.model_dump_json()) == here
    more = study_of(tmp_path, STUDY.replace("{graz:", "{oslo: x, graz:"))
    assert more.fingerprint() != here.fingerprint()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bern: scans/raw", "bern: scans/../scans/dicom", "each site needs scans of .* one path for bern, linz"),
        ("linz: scans/dicom", "oslo: scans/dicom", r"e.sites.1: unknown site linz; data.sites has bern, graz, oslo"),
        ("bern: scans/raw", "bern: 7", "data.sites.bern: expected text, got 7"),
        ("{graz: scans/list.json, bern: scans/raw, linz: scans/dicom}", "{}", "data.sites: expected at least 1 entry"),
        ("source: folder", "source: folders", "data.source: expected .*, got 'folders'; did you mean folder"),
        ("source: folder", "source: dicom", "data.source: expected .*, got 'dicom'; did you mean folder. It reco"),
        ("source: folder", "source: nnU-Net", "got 'nnU-Net'; did you mean folder"),
        ("source: folder", "source: csv-file", "got 'csv-file'; did you mean folder"),
    ],
)  # fmt: skip
def test_a_wrong_data_section_is_named(tmp_path, old, new, message):
    assert STUDY.count(old) == 1
    with pytest.raises(ConfigError, match="(?s)study.yaml: 1 problem.*" + message):
        study_of(tmp_path, STUDY.replace(old, new))
