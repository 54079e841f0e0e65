"""``sahfl init``: from folders of scans to a settings file that runs as it is."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from harness.site_folders import as_dicom, as_nnunet

from sahfl.config import load_consortium, load_site, load_study
from sahfl.data.phantom import CohortSpec, write_cohort
from sahfl.data.survey import ScanSize, SiteSurvey, survey
from sahfl.errors import DataError
from sahfl.federation.server.plan import Speed
from sahfl.proposal import propose, study_text


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two hospitals' scans: an nnU-Net raw folder and DICOM series."""
    folder = tmp_path_factory.mktemp("scans")
    for site in ("bern", "graz"):
        spec = CohortSpec(site, "sah", "standard", 3, seed=1, shape=(40, 48, 8), spacing_mm=(5.0, 5.0, 12.0))
        write_cohort(folder / "phantoms" / site, spec)
    as_nnunet(folder / "phantoms" / "bern", folder / "bern")
    as_dicom(folder / "phantoms" / "graz", folder / "graz")
    return folder


def test_the_study_that_it_writes_loads_names_the_scans_and_is_not_written_over(sahfl, scans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("--site", f"bern={scans / 'bern'}", "--site", f"graz={scans / 'graz'}")
    code, out, err = sahfl("init", tmp_path / "first-try.yaml", *arguments)
    assert (code, out) == (0, f"{tmp_path / 'first-try.yaml'}\n"), err
    assert "3 scans" in (tmp_path / "first-try.yaml").read_text()
    assert f"next: sahfl study {tmp_path / 'first-try.yaml'}" in err
    study = load_study(tmp_path / "first-try.yaml")
    assert (study.name, study.finetune.sites, study.finetune.folds) == ("first-try", ("bern", "graz"), 2)
    assert study.data.sites == {"bern": scans / "bern", "graz": scans / "graz"}
    assert study.views.size == (96, 112, 48)
    assert [method.id for method in study.finetune.methods] == [
        *("zero_shot", "cp_lora-r8", "cp_lora-r8-repeat2", "full", "full-repeat2")
    ]
    before = (tmp_path / "first-try.yaml").read_text()
    code, _, err = sahfl("init", tmp_path / "first-try.yaml", *arguments)
    assert code == 2
    assert "is there already; name another file, or delete it" in err
    assert (tmp_path / "first-try.yaml").read_text() == before


def test_the_written_study_passes_the_check_with_its_scans_and_its_base(sahfl, scans, tmp_path):
    code, _, err = sahfl("init", tmp_path / "a.yaml", "--site", f"bern={scans / 'bern'}")
    assert code == 0, err
    code, out, err = sahfl("check", tmp_path / "a.yaml")
    assert code == 0, err
    assert yaml.safe_load(out)["finetune"]["sites"] == ["bern"]


def test_init_and_the_plan_print_the_same_work_and_time(sahfl, scans, tmp_path, monkeypatch):
    monkeypatch.setattr("sahfl.federation.server.plan.measure_speed", lambda study: Speed(train_s=1e-5, segment_s=2e-6))
    sites = ("--site", f"bern={scans / 'bern'}", "--site", f"graz={scans / 'graz'}")
    _, _, err = sahfl("init", tmp_path / "a.yaml", *sites)
    code, out, _ = sahfl("study", tmp_path / "a.yaml", "--plan")
    assert code == 0
    last = out.splitlines()[-1]
    assert re.fullmatch(r"10 cells; \d+ min of work, so about \d+ min on \d+ core\(s\), a rough guess from .*", last)
    assert last in err.splitlines()


def test_a_path_below_the_files_folder_is_relative_so_that_both_can_move(sahfl, scans):
    code, _, err = sahfl("init", scans / "inside.yaml", "--site", f"bern={scans / 'bern'}")
    assert code == 0, err
    assert '"bern": "bern" #' in (scans / "inside.yaml").read_text()


@pytest.mark.parametrize("name", ["a\u0085b", "a\u2028b", "a\x7fb", "a: #'\"", "\U0001f600 \u00e9"])
def test_a_folder_of_any_name_is_found_again(tmp_path, name):
    (tmp_path / "study.yaml").write_text(
        study_text(propose("s", [replace(found("b"), path=tmp_path / name)]), tmp_path)
    )
    assert load_study(tmp_path / "study.yaml").data.sites == {"b": tmp_path / name}


def test_a_site_file_and_a_consortium_file_load(sahfl, scans, tmp_path):
    code, _, err = sahfl("init", tmp_path / "site.yaml", "--site-file", "--site", f"bern={scans / 'bern'}")
    assert code == 0, err
    site = load_site(tmp_path / "site.yaml")
    assert (site.name, site.data.path, site.folder) == ("bern", scans / "bern", tmp_path / "bern-site")
    code, _, err = sahfl(
        "init", tmp_path / "c.yaml", "--consortium", "--host", "fl.example.org", "--site", "a", "--site", "b"
    )
    assert code == 0, err
    consortium = load_consortium(tmp_path / "c.yaml")
    assert (consortium.name, consortium.sites, consortium.server.host) == ("c", ("a", "b"), "fl.example.org")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["null", "1", "1e3", "no", "0x10"])
def test_names_that_yaml_would_read_as_something_else_are_names(sahfl, scans, tmp_path, name):
    file = tmp_path / f"{name}.yaml"
    code, _, err = sahfl("init", file, "--site", f"{name}={scans / 'bern'}")
    assert code == 0, err
    study = load_study(file)
    assert (study.name, study.finetune.sites) == (name, (name,))
    code, _, err = sahfl("init", tmp_path / "site.yaml", "--site-file", "--site", f"{name}={scans / 'bern'}")
    assert (code, load_site(tmp_path / "site.yaml").name) == (0, name), err


def test_a_consortium_that_would_be_refused_is_not_written(sahfl, tmp_path):
    for arguments, found in (
        (("--site", "a", "--site", "a"), "named twice: a"),
        (("--site", "server"), "no site can be called server"),
        (("--site", "a", "--host", "a b: #"), "expected a DNS name or an IP address"),
    ):
        code, _, err = sahfl("init", tmp_path / "c.yaml", "--consortium", *arguments)
        assert (code, found in err) == (2, True), err
        assert not (tmp_path / "c.yaml").exists()


def test_the_next_command_can_be_pasted_and_a_name_that_is_too_long_is_refused(sahfl, scans, tmp_path):
    sites = ("--site", f"bern={scans / 'bern'}")
    _, _, err = sahfl("init", tmp_path / "my study.yaml", *sites)
    assert f"next: sahfl study '{tmp_path / 'my study.yaml'}'" in err
    code, _, err = sahfl("init", tmp_path / f"{'n' * 300}.yaml", *sites)
    assert code == 2
    assert "File name too long; name another path" in err


@pytest.mark.parametrize("inside", [True, False])
def test_a_pipe_is_no_scan_and_blocks_nothing(sahfl, tmp_path, inside):
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    code, _, err = sahfl("init", tmp_path / "a.yaml", "--site", f"bern={folder if inside else folder / 'pipe'}")
    assert code == 2
    assert "expected a datalist (.json), a table (.csv), an nnU-Net raw folder" in err


REFUSED = {
    "no-path": (("--site", "bern"), "--site: got 'bern', expected NAME=PATH, such as bern=/data/bern"),
    "name": (("--site", "Bern=x"), "got the name 'Bern', expected 1 to 40 lower-case letters"),
    "twice": (("--site", "bern=x", "--site", "bern=y"), "--site names a site twice"),
    "reserved": (("--site", "each=x"), "no site can have the name each, which means something else in results"),
    "both-kinds": (("--site-file", "--consortium", "--site", "bern=x"), "write two kinds of file"),
    "two-hospitals": (("--site-file", "--site", "a=x", "--site", "b=y"), "--site-file is for one hospital, got a, b"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_options_are_refused_and_nothing_is_written(sahfl, tmp_path, arguments, message):
    code, _, err = sahfl("init", tmp_path / "study.yaml", *arguments)
    assert code == 2
    assert message in err
    assert not (tmp_path / "study.yaml").exists()


def test_every_path_without_scans_is_named_in_one_message(sahfl, tmp_path):
    (tmp_path / "empty").mkdir()
    sites = ("--site", f"bern={tmp_path / 'none'}", "--site", f"graz={tmp_path / 'empty'}")
    code, _, err = sahfl("init", tmp_path / "study.yaml", *sites)
    assert code == 2
    assert f"site bern: {tmp_path / 'none'}: got nothing (no such" in err
    assert f"site graz: {tmp_path / 'empty'}: got a folder" in err
    assert not (tmp_path / "study.yaml").exists()


def test_scans_without_a_mask_and_damaged_scans_are_counted(sahfl, scans, tmp_path):
    raw = Path(as_nnunet(scans / "phantoms" / "bern", tmp_path / "raw"))
    masks, images = sorted((raw / "labelsTr").iterdir()), sorted((raw / "imagesTr").iterdir())
    masks[0].unlink()
    images[1].write_bytes(b"no scan")
    found = survey(raw, "bern")
    assert (found.n_scans, found.n_unmasked, found.n_unreadable, len(found.sizes)) == (3, 1, 1, 2)
    _, _, err = sahfl("init", tmp_path / "study.yaml", "--site", f"bern={raw}")
    assert "warning: bern: 1 scans have no mask and are left out" in err
    assert "warning: bern: 1 of 3 scans could not be opened" in err


def test_sizes_are_read_along_the_axes_of_the_body_whatever_the_order_in_the_file(tmp_path):
    affine = np.array([[0, 0, 5.0, 0], [2.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 0, 1]])
    for part, tail in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (tmp_path / part).mkdir()
        nibabel.save(nibabel.Nifti1Image(np.zeros((20, 30, 40), np.int16), affine), tmp_path / part / f"a{tail}")
    labels = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "blood": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(labels | {"numTraining": 1}))
    (size,) = survey(tmp_path, "bern").sizes
    assert size == ScanSize((40, 20, 30), (5.0, 2.0, 3.0))
    assert size.extent_mm == (200.0, 40.0, 90.0)


# --- what is proposed -----------------------------------------------------------------------------------------------


def found(site="a", *, patients=10, folds=None, extent=(220, 220, 160), unreadable=0):
    size = ScanSize(extent, (1.0, 1.0, 1.0))
    sizes = () if unreadable else (size,)
    return SiteSurvey(site, Path(site), "nnU-Net", patients, patients, 0, folds, sizes, unreadable)


@pytest.mark.parametrize(
    ("patients", "folds"), [((2, 100), 2), ((5, 9), 2), ((6, 60), 3), ((49, 50), 3), ((50, 90), 5)]
)
def test_the_number_of_folds_follows_from_the_smallest_site(patients, folds):
    sites = [found(name, patients=n) for name, n in zip("ab", patients, strict=True)]
    assert propose("s", sites).folds == folds


def test_folds_that_the_lists_assign_are_kept_and_differing_lists_are_refused():
    assert propose("s", [found("a", folds=5), found("b", folds=5)]).folds == 5
    with pytest.raises(DataError, match="lists of folds: a 5, b 4; expected the same number at every site"):
        propose("s", [found("a", folds=5), found("b", folds=4)])
    with pytest.raises(DataError, match="lists of folds: a 5; expected the same"):
        propose("s", [found("a", folds=5), found("b")])


def test_the_size_holds_the_largest_head_up_to_that_of_the_base_network():
    assert propose("s", [found(extent=(120, 130, 100)), found("b", extent=(100, 140, 90))]).views.size == (64, 80, 64)
    assert propose("s", [found(extent=(400, 400, 900))]).views.size == (96, 112, 80)


def test_short_scans_have_the_axial_view_alone():
    assert propose("s", [found(extent=(200, 200, 39))]).views.weights == {"axial": 1.0}
    assert set(propose("s", [found(extent=(200, 200, 40))]).views.weights) == {"axial", "coronal", "sagittal"}


def test_a_site_with_one_patient_or_no_readable_scan_is_named():
    with pytest.raises(
        DataError, match=r"(?s)site a: its \d+ scan.s. are of 1 patient, expected at least 2.*site b: none of 4 scans"
    ):
        propose("s", [found(patients=1), found("b", unreadable=4)])


def with_regions(scans, folder):
    """A copy of a site's nnU-Net folder, whose labels are regions without a name for blood."""
    shutil.copytree(scans, folder)
    settings = json.loads((folder / "dataset.json").read_text())
    settings |= {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    (folder / "dataset.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("labels", ["whole,core", "1,2", " whole , 2"])
def test_labels_without_a_name_for_blood_are_chosen_at_one_site_alone(sahfl, scans, tmp_path, labels):
    with_regions(scans / "bern", tmp_path / "wien")
    sites = ("--site", f"graz={scans / 'graz'}", "--site", f"wien={tmp_path / 'wien'}")
    code, _, err = sahfl("init", tmp_path / "a.yaml", *sites)
    assert code == 2
    assert "labels.whole: is not named as blood" in err
    assert "here: --blood wien=LABEL,..." in err
    assert not (tmp_path / "a.yaml").exists()
    code, _, err = sahfl("init", tmp_path / "a.yaml", *sites, "--blood", f"wien={labels}")
    assert code == 0, err
    assert "count as no blood" not in err
    found = load_study(tmp_path / "a.yaml").data.for_sites(("graz", "wien"), study="a", seed=1)
    assert found["graz"].blood is None
    assert {case.blood for case in found["wien"].glance("wien", tmp_path)} == {(1, 2)}


def test_a_site_file_has_the_labels_that_were_chosen(sahfl, scans, tmp_path):
    with_regions(scans / "bern", tmp_path / "wien")
    options = ("--site", f"wien={tmp_path / 'wien'}", "--blood", "wien=core")
    code, _, err = sahfl("init", tmp_path / "site.yaml", "--site-file", *options)
    assert code == 0, err
    assert load_site(tmp_path / "site.yaml").data.blood == ("core",)
    assert "note: wien: voxels of value 1 count as no blood; name their labels in --blood too if they are" in err


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["bern"], "--blood: got 'bern', expected NAME=LABEL,LABEL, such as bern=hematoma or bern=1,2"),
        (["bern=1,"], "--blood: got 'bern=1,', expected NAME=LABEL,LABEL"),
        (["wien=1"], "--blood: names 'wien', which no --site names; they name bern"),
        (["bern=1", "bern=2"], "--blood: names bern twice; list its labels once, with commas"),
        (["bern=nothing"], "blood: 'nothing' is no label of dataset.json, which has"),
    ],
)
def test_a_choice_of_labels_that_cannot_be_is_refused(sahfl, scans, tmp_path, given, text):
    options = [option for each in given for option in ("--blood", each)]
    code, _, err = sahfl("init", tmp_path / "a.yaml", "--site", f"bern={scans / 'bern'}", *options)
    assert code == 2
    assert text in err
