import dataclasses
import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from harness.one_case import check_case

from sahfl.data import checks
from sahfl.data.checks import (
    CheckedCase,
    Finding,
    check_cases,
    count_findings,
    patient_keys,
    usable_cases,
    verify_unchanged,
)
from sahfl.data.manifest import Case
from sahfl.errors import DataChanged, DataError, DataRefused

SHAPE = (32, 32, 16)


def head():
    """Air, a ring of bone, brain with a small bleed inside, air above: HU."""
    rng = np.random.default_rng(0)
    image = rng.normal(-1000, 3, SHAPE)
    image[2:26, 2:26, :14] = rng.uniform(500, 1300, (24, 24, 14))
    image[4:24, 4:24, :14] = rng.normal(33, 3, (20, 20, 14))
    image[6:9, 6:10, 3] += 32
    return np.rint(image).astype(np.float32)


def blood(where=np.s_[6:9, 6:10, 3]):
    label = np.zeros(SHAPE, np.uint8)
    label[where] = 1
    return label


def a_case(folder, name="a", image=None, label=None, spacing=(1.0, 1.0, 5.0), patient="p1"):
    affine = np.diag([*spacing, 1.0])
    paths = [folder / f"{name}-image.nii", folder / f"{name}-label.nii"]
    for path, voxels in zip(
        paths, (head() if image is None else image, blood() if label is None else label), strict=True
    ):
        nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return Case(f"bern-{name}", *paths, patient)


def test_a_good_case_has_no_findings_and_its_volume(tmp_path):
    checked = check_case(a_case(tmp_path))
    assert checked.findings == ()
    assert checked.usable
    assert checked.volume_ml == pytest.approx(3 * 4 * 1 * 1 * 5 / 1000)
    assert len(bytes.fromhex(checked.content)) == len(bytes.fromhex(checked.voxels)) == 32


def test_a_case_with_warnings_is_usable_and_one_with_an_error_is_not(tmp_path):
    assert check_case(a_case(tmp_path, label=blood(np.s_[:0]), spacing=(1.0, 1.0, 11.0))).usable
    assert not check_case(a_case(tmp_path, label=blood(np.s_[:2]))).usable


def test_a_finding_names_the_case_and_what_was_found(tmp_path):
    (finding,) = check_case(a_case(tmp_path, image=np.clip(head(), 0, 80))).findings
    assert finding == Finding("windowed", "error", "case bern-a: values from 0 to 80")


def test_a_case_that_cannot_be_read_is_a_finding_not_an_exception(tmp_path):
    case = a_case(tmp_path)
    case.label.unlink()
    checked = check_case(case)
    assert checked.findings == (Finding("missing", "error", "case bern-a: the label file is missing"),)
    assert (checked.volume_ml, checked.content, checked.usable) == (0.0, "", False)


def test_progress_is_reported_after_each_case(tmp_path):
    heard = []
    cases = [a_case(tmp_path, name) for name in "abc"]
    checked = check_cases(cases, on_case=lambda done, total: heard.append((done, total)))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert [item.case for item in checked] == cases


def another_head(name):
    """A head of which no other case has a copy."""
    return head() + np.float32(ord(name))


def a_site(folder):
    """Two good cases, two windowed ones, and one that cannot be read."""
    cases = [a_case(folder, name, another_head(name) - np.float32(97)) for name in "abc"]
    cases += [a_case(folder, name, image=np.clip(head(), 0, 80)) for name in "de"]
    cases[0].image.unlink()
    return check_cases(cases)


def test_cases_with_errors_are_left_out_and_counted_by_rule(tmp_path):
    checked = a_site(tmp_path)
    assert [item.case.id for item in usable_cases(checked)] == ["bern-b", "bern-c"]
    assert count_findings(iter(checked)) == {"missing": 1, "windowed": 2, "near_duplicate": 1}


def test_a_site_without_a_usable_case_is_refused_with_every_rule_its_count_and_an_example(tmp_path):
    with pytest.raises(DataError) as caught:
        usable_cases(item for item in a_site(tmp_path) if not item.usable)
    lines = str(caught.value).splitlines()
    assert lines[0] == "none of 3 case(s) can be used:"
    assert lines[1] == "  missing (1x), for example: case bern-a: the image file is missing"
    assert lines[2] == "  windowed (2x), for example: case bern-e: values from 0 to 80"


def test_more_refused_cases_than_the_policy_allows_stop_the_site(tmp_path):
    checked = a_site(tmp_path)
    assert len(usable_cases(checked, max_refused_share=0.6)) == 2
    with pytest.raises(
        DataRefused, match=r"3 of 5 case\(s\) are refused \(60.0%\), the site's max_refused_share is 59"
    ):
        usable_cases(checked, max_refused_share=0.59)


def test_warnings_and_notes_never_stop_a_site(tmp_path):
    checked = check_cases([a_case(tmp_path, label=blood(np.s_[:0]), spacing=(2.0, 2.0, 11.0))])
    assert count_findings(checked) == {"spacing": 1, "no_blood": 1}
    assert usable_cases(checked, max_refused_share=0.0) == checked


@pytest.mark.parametrize("which", ["image", "label"])
def test_a_file_that_changed_after_the_check_is_noticed(tmp_path, which):
    checked = check_case(a_case(tmp_path))
    verify_unchanged([checked])
    with getattr(checked.case, which).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(DataChanged, match="case bern-a: its files changed after they were checked; start a new run"):
        verify_unchanged([checked])


def test_a_file_that_vanished_after_the_check_is_noticed(tmp_path):
    checked = check_case(a_case(tmp_path))
    checked.case.image.unlink()
    with pytest.raises(DataChanged, match="its files changed"):
        verify_unchanged([checked])


def test_a_damaged_path_is_a_change_and_no_fault_of_the_program(tmp_path):
    checked = check_case(a_case(tmp_path))
    case = dataclasses.replace(checked.case, image=Path(f"{checked.case.image}\0"))
    with pytest.raises(DataChanged, match="its files changed"):
        verify_unchanged([dataclasses.replace(checked, case=case)])


def test_a_damaged_list_of_sizes_is_a_change_and_no_fault_of_the_program(tmp_path):
    checked = check_case(a_case(tmp_path))
    huge = (10**400, *checked.stamp[1:])
    with pytest.raises(DataChanged, match="its files changed"):
        verify_unchanged([dataclasses.replace(checked, content="0" * 64, stamp=huge)])


def test_a_file_that_was_only_touched_is_not_a_change(tmp_path):
    """A backup or a copy back changes times; the content decides."""
    checked = check_case(a_case(tmp_path))
    before = checked.case.label.stat()
    os.utime(checked.case.label, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))
    verify_unchanged([checked])
    verify_unchanged([checked], turn=1)


def test_a_change_that_kept_size_and_times_is_found_when_its_turn_comes(tmp_path, monkeypatch):
    """A large cohort is hashed in parts: here two cases a part, so the third case is seen in one turn of three."""
    cohort = [check_case(a_case(tmp_path, name)) for name in "abcdef"]
    monkeypatch.setattr(checks, "HASHED_BYTES", 2 * sum(cohort[0].stamp[::3]))
    changed = cohort[2].case.label
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    hidden = [dataclasses.replace(item, stamp=checks._stamp(item.case)) for item in cohort]  # as if times were kept
    noticed = []
    for turn in range(6):
        try:
            verify_unchanged(hidden, turn=turn)
        except DataChanged:
            noticed.append(turn)
    assert noticed == [2, 5]
    with pytest.raises(DataChanged, match="bern-c"):
        verify_unchanged(hidden, whole=True)


# --- keys of patients -----------------------------------------------------------------------------------------------


def checked(patient, content):
    return CheckedCase(Case("bern-0", Path("a"), Path("b"), patient), 1.0, content, (), ())


def test_the_scans_of_a_patient_share_one_key_whatever_their_order():
    scans = [checked("p1", "aa"), checked("p2", "bb"), checked("p1", "cc")]
    keys = patient_keys(scans, "study")
    assert keys.keys() == {"p1", "p2"}
    assert keys["p1"] != keys["p2"]
    assert patient_keys(reversed(scans), "study") == keys


def test_a_key_cannot_be_derived_from_the_patients_id():
    """The same id with another scan has another key, another id with the same scan has the same one."""
    one, other = patient_keys([checked("p1", "aa")], "study"), patient_keys([checked("p1", "bb")], "study")
    assert one["p1"] != other["p1"]
    assert patient_keys([checked("Hans Muster", "aa")], "study")["Hans Muster"] == one["p1"]


def test_another_study_has_other_keys():
    assert patient_keys([checked("p1", "aa")], "a") != patient_keys([checked("p1", "aa")], "b")


def test_the_content_of_a_case_depends_on_image_and_annotation(tmp_path):
    image = head()
    image[10, 10, 4] += 1
    contents = {
        check_case(a_case(tmp_path, "a")).content,
        check_case(a_case(tmp_path, "b")).content,
        check_case(a_case(tmp_path, "c", image=image)).content,
        check_case(a_case(tmp_path, "d", label=blood(np.s_[6:9, 6:9, 3]))).content,
    }
    assert len(contents) == 3


def test_a_verdict_cannot_be_changed(tmp_path):
    with pytest.raises(dataclasses.FrozenInstanceError):
        check_case(a_case(tmp_path)).findings = ()


def test_a_gz_file_whose_checksum_does_not_fit_is_unreadable(tmp_path):
    case = a_case(tmp_path)
    content = bytearray(gzip.compress(case.image.read_bytes()))
    content[-5] ^= 1  # the last eight bytes are checksum and size; nibabel reads neither
    packed = tmp_path / "image.nii.gz"
    packed.write_bytes(content)
    (finding,) = check_case(dataclasses.replace(case, image=packed)).findings
    assert (finding.rule, finding.severity) == ("unreadable", "error")
    assert "its checksum does not fit" in finding.text
