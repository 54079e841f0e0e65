"""A study over real folders through the real command: phantoms written by one command are the scans of the next."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from harness.dicom_files import CANARIES
from harness.site_folders import as_dicom, as_nnunet
from harness.tiny_study import TINY, changed

SAHFL = Path(sys.executable).with_name("sahfl")
DATA = {
    "source": "phantom",
    "shape": [40, 48, 8],
    "spacing_mm": [5.0, 5.0, 12.0],
    "sites": {name: TINY["data"]["sites"][name] for name in ("tbi_a", "sah_a", "sah_b")},
}
STUDY = changed(
    TINY,
    data=DATA,
    pretrain__sites=["tbi_a"],
    pretrain__rounds=1,
    finetune__sites=["sah_a", "sah_b"],
    finetune__rounds=1,
    evaluation__replicates=100,
)


def sahfl(folder, *arguments):
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([SAHFL, *arguments], cwd=folder, env=settings, capture_output=True, text=True, check=False)


def write(path, settings):
    path.write_text(yaml.safe_dump(settings))
    return path.name


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with a study whose three sites lie in three kinds of folder, paths relative to the study file."""
    tmp_path = tmp_path_factory.mktemp("folders")
    result = sahfl(tmp_path, "phantom", "phantoms", "--study", write(tmp_path / "phantoms.yaml", STUDY))
    assert result.returncode == 0, result.stderr
    scans = tmp_path / "phantoms"
    as_dicom(scans / "tbi_a", tmp_path / "dicom")
    as_nnunet(scans / "sah_a", tmp_path / "raw")
    names = [path.name for path in sorted((scans / "sah_b" / "images").iterdir())]
    training = [{"image": f"images/{name}", "label": f"labels/{name}"} for name in names]
    (scans / "sah_b" / "monai.json").write_text(json.dumps({"training": training}))
    sites = {"tbi_a": "dicom", "sah_a": "raw", "sah_b": "phantoms/sah_b/monai.json"}
    write(tmp_path / "study.yaml", changed(STUDY, data={"source": "folder", "sites": sites}))
    return tmp_path


@pytest.mark.slow
def test_a_study_over_three_kinds_of_folder_runs_to_its_report_and_tells_nothing_of_patients(folders):
    result = sahfl(folders, "simulate", "study.yaml", "--out", "run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["run/report.html"]
    results = json.loads((folders / "run" / "results.json").read_text())
    found = {site["site"]: (site["source"], site["n_patients"], site["out"]) for site in results["sites"]}
    assert found == {"tbi_a": ("DICOM", 2, None), "sah_a": ("nnU-Net", 3, None), "sah_b": ("datalist", 2, None)}
    assert {method["id"]: method["metrics"]["dice"]["overall"]["n"] for method in results["methods"]} == {
        "zero_shot": 5,
        "cp_lora-r2": 5,
    }
    files = [path.read_bytes() for path in (folders / "run").rglob("*") if path.is_file()]
    said = [result.stdout.encode(), result.stderr.encode(), *files]
    assert not [word for word in CANARIES if any(word.encode() in content for content in said)]


@pytest.mark.slow
def test_a_folder_without_scans_stops_the_study_before_it_starts_naming_every_such_site(folders):
    sites = {"tbi_a": "absent", "sah_a": "phantoms/sah_a/images", "sah_b": "raw"}
    write(folders / "wrong.yaml", changed(STUDY, data={"source": "folder", "sites": sites}))
    result = sahfl(folders, "simulate", "wrong.yaml", "--out", "wrong")
    assert (result.returncode, result.stdout) == (2, "")
    assert re.search(
        r"site tbi_a: \S+absent: got nothing \(no such file or folder\), expected a datalist", result.stderr
    )
    assert re.search(r"site sah_a: \S+images: got a folder of \d+ volume\(s\), none with a mask", result.stderr)
    assert "sah_b" not in result.stderr
    assert "Traceback" not in result.stderr
