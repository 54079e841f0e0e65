"""A hospital whose patients come in every format, from its folder to a volume for each patient."""

import csv
import json
import math
import shutil
import subprocess

import pytest
import yaml
from harness.commands import SAHFL
from harness.mixed_site import FORMATS, write_disc, write_patients, zipped

SETTINGS = {
    "name": "mixed",
    "views": {"weights": {"axial": 1.0}, "spacing_mm": 2.0, "size": [96, 112, 64]},
    "base": "phantom",
    "finetune": {"folds": 2, "rounds": 1, "local": {"steps": 2}, "methods": [{"method": "cp_lora", "rank": 2}]},
    "evaluation": {"replicates": 100},
}


def sahfl(folder, *arguments):
    done = subprocess.run([SAHFL, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr + done.stdout
    return done


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """The sites' paths, and the mL of blood of each patient of the mixed one."""
    folder = tmp_path_factory.mktemp("sites")
    volumes = write_patients(folder / "mixed")
    write_disc(folder / "disc", [21, 22])
    shutil.copytree(folder / "mixed", folder / "listed" / "scans")
    listed = [
        ("p01/ct.nii", "p01/mask.nii"),
        ("p03/ct.nrrd", "p03/ct.seg.nrrd"),
        ("p07", "p07/seg.dcm"),
        ("p08", "p08"),
    ]
    rows = ["image;mask;patient", *(f"scans\\{image};scans\\{mask};{image[:3]}" for image, mask in listed)]
    (folder / "listed" / "list.csv").write_text("\r\n".join(rows))
    zipped(folder / "mixed", folder / "mixed.zip")
    return folder, volumes


@pytest.mark.slow
def test_every_patient_of_a_mixed_site_is_checked_with_the_blood_that_was_drawn(sites, tmp_path):
    folder, volumes = sites
    assert len(volumes) == len(FORMATS) >= 10
    for source in ("mixed", "mixed.zip"):
        sahfl(tmp_path, "init", f"{source}.yaml", "--site-file", "--site", f"{source[-3:]}={folder / source}")
        done = sahfl(tmp_path, "check", f"{source}.yaml")
        assert f"may train ({len(FORMATS)} of {len(FORMATS)} cases usable" in done.stdout
        cases = json.loads((tmp_path / f"{source[-3:]}-site" / "checks.json").read_text())["cases"]
        assert [case["volume_ml"] for case in cases] == pytest.approx(list(volumes.values()), abs=1e-3)


@pytest.mark.slow
def test_a_mixed_site_a_disc_and_a_list_are_trained_on_and_each_format_gets_a_volume(sites, tmp_path):
    folder, _ = sites
    paths = {name: str(folder / name) for name in ("mixed", "disc", "listed")}
    settings = SETTINGS | {"data": {"source": "folder", "sites": paths}}
    settings["finetune"] = settings["finetune"] | {"sites": list(paths)}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
    sahfl(tmp_path, "check", "study.yaml")
    sahfl(tmp_path, "simulate", "study.yaml", "--out", "run")
    found = json.loads((tmp_path / "run" / "results.json").read_text())["sites"]
    described = {site["site"]: (site["source"], site["n_volumes"], site["n_refused"]) for site in found}
    assert described == {"mixed": ("mixed", len(FORMATS), 0), "disc": ("DICOM disc", 2, 0), "listed": ("CSV", 4, 0)}
    for name, n_scans in (("mixed", len(FORMATS)), ("disc", 2), ("listed/list.csv", 4)):
        out = tmp_path / "out" / name
        out.parent.mkdir(parents=True, exist_ok=True)
        sahfl(tmp_path, "predict", "run", folder / name, "--out", out)
        with open(out / "results.csv", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["status"] for row in rows] == ["done"] * n_scans
        assert all(math.isfinite(float(row["volume_ml"])) for row in rows)
