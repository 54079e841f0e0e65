"""A study over a datalist, an nnU-Net folder and DICOM series: the source of the scans does not change the result."""

import json
import shutil

import nibabel
import numpy as np
from dicom_files import CANARIES, write_segmentation, write_series
from tiny_study import TINY, changed

from sahfl.adapters.files import load_tensors


def as_nnunet(scans, folder):
    """A site's phantom scans as an nnU-Net raw folder."""
    for part, tail in (("images", "_0000.nii.gz"), ("labels", ".nii.gz")):
        (folder / f"{part}Tr").mkdir(parents=True)
        for path in sorted((scans / part).iterdir()):
            shutil.copy(path, folder / f"{part}Tr" / f"{path.name.removesuffix('.nii.gz')}{tail}")
    settings = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "blood": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(
        json.dumps(settings | {"numTraining": len(list((scans / "images").iterdir()))})
    )
    return str(folder)


def as_dicom(scans, folder):
    """A site's phantom scans as DICOM series with segmentation objects."""
    for number, path in enumerate(sorted((scans / "images").iterdir())):
        image, label = nibabel.load(path), nibabel.load(scans / "labels" / path.name)

        def other_patient(data, index, number=number):
            data.PatientID = f"4711-0815-{number}"

        volume = np.asarray(image.dataobj, np.int16)
        slices = write_series(folder / path.name[:4], volume, image.affine, change=other_patient)
        write_segmentation(folder / path.name[:4] / "seg.dcm", slices, np.asarray(label.dataobj) > 0)
    return str(folder)


def test_the_same_scans_from_three_kinds_of_folder_give_the_same_base_network(federate, scans, tmp_path):
    settings = changed(TINY, finetune__methods=[{"method": "zero_shot"}], finetune__rounds=1)
    phantom, _ = federate(settings, name="phantom")
    paths = {
        "tbi_a": as_dicom(scans / "tbi_a" / "scans", tmp_path / "dicom"),
        "tbi_b": as_nnunet(scans / "tbi_b" / "scans", tmp_path / "raw"),
        **{site: str(scans / site / "scans" / "datalist.json") for site in ("sah_a", "sah_b", "sah_c")},
    }
    folder, grid = federate(changed(settings, data={"source": "folders", "sites": paths}), name="folders")
    (one, _), (other, _) = (load_tensors(run.path / "base" / "base.safetensors") for run in (phantom, folder))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    sources = {site["site"]: site["source"] for site in json.loads((folder.path / "results.json").read_text())["sites"]}
    assert sources["tbi_a"] == "DICOM"
    assert sources["tbi_b"] == "nnU-Net"
    replies = repr([record for _, _, reply in grid.seen for record in reply.content.config_records.values()])
    files = [path.read_bytes() for path in folder.path.rglob("*") if path.is_file()]
    assert not [word for word in CANARIES if word in replies or any(word.encode() in content for content in files)]
