"""``sahfl check SITE.yaml``: the command, its files and its exit code."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sahfl.config import load_site
from sahfl.errors import ConfigError
from sahfl.federation.site import site_check
from sahfl.federation.site.site_check import check_site

SAHFL = Path(sys.executable).with_name("sahfl")
SECRETS = ["Muster", "1961", "images/", ".nii"]


def write_site(folder, scans):
    """A site's file over three phantom scans of which the second is damaged, under names that nobody should see."""
    entries = []
    for index in range(3):
        entry = {"patient": f"Muster^Hans{index}"}
        for part in ("image", "label"):
            source = scans / "sah_a" / "scans" / f"{part}s" / f"000{index}.nii.gz"
            path = folder / f"Muster_Hans_1961-04-12_{part}{index}.nii.gz"
            path.write_bytes(source.read_bytes())
            entry[part] = path.name
        entries.append(entry)
    (folder / entries[1]["image"]).write_bytes(b"Muster^Hans")
    (folder / "datalist.json").write_text(json.dumps({"sites": {"bern": entries}}))
    path = folder / "site.yaml"
    path.write_text("name: bern\nfolder: work\ndata: {source: datalist, path: datalist.json}\n")
    return path


@pytest.fixture
def site_file(tmp_path, scans):
    return write_site(tmp_path, scans)


def run(*arguments):
    return subprocess.run([SAHFL, "check", *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def refused(tmp_path_factory, scans):
    """The command's end and the site's folder, once; the tests only read them."""
    path = write_site(tmp_path_factory.mktemp("refused"), scans)
    return run(path), path.parent / "work"


@pytest.mark.slow
def test_a_site_above_its_threshold_has_exit_code_2_a_table_and_both_files(refused):
    done, work = refused
    assert done.returncode == 2, done.stderr
    assert "site bern: may NOT train (2 of 3 cases usable, up to 0% may fail)" in done.stdout
    assert re.search(r"^unreadable +error +1 ", done.stdout, re.MULTILINE)
    assert re.search(r"^refused: bern-[0-9]{4}: unreadable$", done.stdout, re.MULTILINE)
    *_, manifest, page = done.stdout.splitlines()
    assert manifest == f"the files of each case stand in {work / 'manifest.json'}"
    assert (work / "manifest.json").is_file()
    assert page == str(work / "checks.html")
    checks = json.loads((work / "checks.json").read_text())
    assert (checks["may_train"], checks["n_refused"], checks["n_patients"]) == (False, 1, 3)
    assert [case["usable"] for case in checks["cases"]] == [True, False, True]
    assert checks["cases"][0]["measures"]["brain_hu"] == pytest.approx(35, abs=8)
    assert checks["cases"][1]["measures"] is None


@pytest.mark.slow
def test_a_site_within_its_threshold_has_exit_code_0(site_file):
    site_file.write_text(site_file.read_text() + "max_refused_share: 0.4\n")
    done = run(site_file)
    assert done.returncode == 0, done.stderr
    assert "site bern: may train (2 of 3 cases usable, up to 40% may fail)" in done.stdout


@pytest.mark.slow
def test_likely_repeat_scans_are_a_warning_with_their_number_and_what_to_do(site_file):
    entries = json.loads((site_file.parent / "datalist.json").read_text())["sites"]["bern"]
    for entry, name in zip(entries, ("Muster_1.nii.gz", "Muster_2.nii.gz", "other.nii.gz"), strict=True):
        del entry["patient"]
        entry["image"] = str((site_file.parent / entry["image"]).rename(site_file.parent / name))
    (site_file.parent / "datalist.json").write_text(json.dumps({"training": entries}))
    done = run(site_file)
    text = "warning: by their names, 2 cases look like repeat scans of 1 patient(s), but each counts as another patient"
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(text)]
    assert "patients.json" in line
    assert re.search(r"^repeat_scan +warning +2 ", done.stdout, re.MULTILINE)
    assert "Muster" not in done.stdout + done.stderr


def test_no_name_of_a_patient_or_file_is_shown(refused):
    done, work = refused
    for text in (done.stdout, done.stderr, (work / "checks.json").read_text(), (work / "checks.html").read_text()):
        assert not [secret for secret in SECRETS if secret in text]


def test_a_folder_that_cannot_be_written_is_said_before_any_scan_is_read(site_file):
    settings = load_site(site_file)
    (site_file.parent / "taken").write_text("a file")
    with pytest.raises(ConfigError, match=r"folder \S+taken cannot be written \(File exists\); name another one"):
        check_site(settings.model_copy(update={"folder": site_file.parent / "taken"}), on_case=pytest.fail)


@pytest.mark.parametrize(("patient", "n"), [("one", 1), (None, 2)], ids=["one-patient", "fewer-than-the-policy"])
def test_a_site_with_fewer_patients_than_it_trains_on_is_warned_with_both_numbers(site_file, patient, n):
    content = json.loads((site_file.parent / "datalist.json").read_text())
    for entry in content["sites"]["bern"]:
        entry["patient"] = patient or entry["patient"]
    (site_file.parent / "datalist.json").write_text(json.dumps(content))
    (text,) = check_site(load_site(site_file)).warnings
    assert f"the 2 usable case(s) are scans of {n} patient(s)" in text
    assert ("a study needs 2" in text) == (n == 1)
    assert "trains on 5 or more (policy.adapters.least_patients)" in text
    site_file.write_text(site_file.read_text() + "max_refused_share: 0.5\n")
    assert "\nsite bern: data usable, too few patients to train (2 of 3 cases usable" in run(site_file).stdout
    page = (site_file.parent / "work" / "checks.html").read_text()
    assert "This site has too few patients to train; 1 of 3 cases cannot be used" in page
    allowed = "policy: {adapters: {least_patients: 2}}\n"
    site_file.write_text(site_file.read_text() + allowed)
    assert len(check_site(load_site(site_file)).warnings) == (n == 1)


def test_the_page_has_a_picture_of_every_readable_case(site_file):
    verdict = check_site(load_site(site_file))
    page = verdict.page.read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert page.count("<polygon") == 2
    assert not verdict.may_train


def test_of_many_cases_only_those_with_a_finding_get_a_picture(site_file, monkeypatch):
    monkeypatch.setattr(site_check, "MOST_PICTURES", 0)
    heard = []
    verdict = check_site(load_site(site_file), on_case=lambda done, total: heard.append((done, total)))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    with_finding = [case for case in verdict.checks["cases"] if case["findings"] and case["measures"]]
    assert verdict.page.read_text().count("data:image/jpeg;base64,") == len(with_finding)


def test_a_file_that_is_neither_ends_with_a_message_that_names_both_forms(tmp_path):
    (tmp_path / "x.yaml").write_text("name: bern\n")
    done = run(tmp_path / "x.yaml")
    assert done.returncode == 2
    assert "is neither a study file" in done.stderr
    assert "nor a site file" in done.stderr


def test_the_datalist_option_is_not_for_site_files(site_file):
    done = run(site_file, "--datalist", "x.json")
    assert done.returncode == 2
    assert "--datalist is for study files" in done.stderr


def test_the_table_of_rules_is_printed_on_request():
    done = run("--rules")
    assert done.returncode == 0
    assert done.stdout in (Path(__file__).parents[3] / "docs" / "data-checks.md").read_text()
    assert run().returncode == 2
