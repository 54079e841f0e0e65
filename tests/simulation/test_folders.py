"""A study over a datalist, an nnU-Net folder and DICOM series: the source of the scans does not change the result."""

import json

import numpy as np
import pytest
from harness.dicom_files import CANARIES
from harness.site_folders import as_dicom, as_nnunet
from harness.tiny_study import TINY, changed

from sahfl.adapters.files import load_tensors
from sahfl.events import Warned, listening


@pytest.mark.slow
def test_the_same_scans_from_three_kinds_of_folder_give_the_same_base_network(federate, scans, tmp_path):
    settings = changed(TINY, finetune__methods=[{"method": "zero_shot"}], finetune__rounds=1)
    phantom, _ = federate(settings, name="phantom")
    paths = {
        "tbi_a": as_dicom(scans / "tbi_a" / "scans", tmp_path / "dicom"),
        "tbi_b": as_nnunet(scans / "tbi_b" / "scans", tmp_path / "raw"),
        **{site: str(scans / site / "scans" / "datalist.json") for site in ("sah_a", "sah_b", "sah_c")},
    }
    folder, grid = federate(changed(settings, data={"source": "folder", "sites": paths}), name="folders")
    (one, _), (other, _) = (load_tensors(run.path / "base" / "base.safetensors") for run in (phantom, folder))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    sources = {site["site"]: site["source"] for site in json.loads((folder.path / "results.json").read_text())["sites"]}
    assert sources["tbi_a"] == "DICOM"
    assert sources["tbi_b"] == "nnU-Net"
    replies = repr([record for _, _, reply in grid.seen for record in reply.content.config_records.values()])
    files = [path.read_bytes() for path in folder.path.rglob("*") if path.is_file()]
    assert not [word for word in CANARIES if word in replies or any(word.encode() in content for content in files)]


def test_a_missing_mask_is_warned_of_with_its_site_before_anything_trains(federate, scans, tmp_path):
    raw = as_nnunet(scans / "sah_a" / "scans", tmp_path / "raw")
    sorted((tmp_path / "raw" / "labelsTr").iterdir())[0].unlink()
    others = ("tbi_a", "tbi_b", "sah_b", "sah_c")
    paths = {"sah_a": raw, **{site: str(scans / site / "scans" / "datalist.json") for site in others}}
    settings = changed(TINY, finetune__methods=[{"method": "zero_shot"}], finetune__rounds=1, pretrain__rounds=1)
    seen = []
    with listening(seen.append):
        federate(changed(settings, data={"source": "folder", "sites": paths}), name="without-a-mask")
    (warned,) = [event.text for event in seen if isinstance(event, Warned) and "left out" in event.text]
    assert warned.startswith("sah_a: 1 case is left out (missing); sahfl check SITE_FILE lists them, with pictures")
