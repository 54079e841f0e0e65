"""Fuzzed scans: NIfTI, DICOM series and segmentations, and the lists that name them."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
from pydantic import TypeAdapter

from harness.dicom_files import write_segmentation, write_series
from harness.fuzz.outcome import Reader
from sahfl.data.checks import CheckedCase, check_cases
from sahfl.data.ct import read_scan
from sahfl.data.manifest import Case, datalist_sites, read_datalist
from sahfl.data.nnunet import read_nnunet

SHAPE = (6, 8, 4)
AFFINE = np.diag([-4.0, -4.0, 5.0, 1.0])


def volume() -> np.ndarray:
    """A volume in which every voxel has a value of its own."""
    return np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) * 3


def mask() -> np.ndarray:
    """Blood in two slices."""
    label = np.zeros(SHAPE, np.uint8)
    label[1, 2, 1] = label[-2:, 3, 2] = 1
    return label


def nifti(folder: Path) -> Reader:
    """A NIfTI image and its annotation, both also compressed."""
    for name, content in (("image", volume()), ("label", mask())):
        for ending in ("nii", "nii.gz"):
            nibabel.save(nibabel.Nifti1Image(content, AFFINE), folder / f"{name}.{ending}")

    def read(name: str) -> None:
        ending = name.partition(".")[2]
        scan = read_scan(Case("bern-0000", folder / f"image.{ending}", folder / f"label.{ending}", "p"))
        assert np.isfinite(scan.image).all()
        assert scan.image.shape == scan.label.shape

    return Reader.of_folder(folder, read)


def dicom(folder: Path) -> Reader:
    """A slice of a DICOM series, and its segmentation."""
    slices = write_series(folder, volume(), AFFINE)
    write_segmentation(folder / "seg.dcm", slices, mask())
    case = Case("bern-0000", folder, folder, "p")
    return Reader.of_folder(folder, lambda name: read_scan(case), slices[1].name, "seg.dcm")


def lists(folder: Path) -> Reader:
    """Lists of cases: sahfl's, MONAI's and nnU-Net's."""
    cases = [{"image": f"i{i}.nii.gz", "label": f"l{i}.nii.gz", "patient": f"p{i}", "fold": i % 2} for i in range(4)]
    (folder / "datalist.json").write_text(json.dumps({"sites": {"bern": cases}}))
    (folder / "monai.json").write_text(json.dumps({"training": cases}))
    settings = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "blood": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(settings | {"numTraining": 2}))
    (folder / "splits_final.json").write_text(
        json.dumps([{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}])
    )
    (folder / "patients.json").write_text(json.dumps({"a": "p1", "b": "p2"}))
    for name in "ab":
        for path in (folder / "imagesTr" / f"{name}_0000.nii.gz", folder / "labelsTr" / f"{name}.nii.gz"):
            path.parent.mkdir(exist_ok=True)
            path.touch()

    def read(name: str) -> None:
        if name in ("datalist.json", "monai.json"):
            read_datalist(folder / name, "bern")
            if name == "datalist.json":
                datalist_sites(folder / name)
        else:
            read_nnunet(folder, "bern")

    return Reader.of_folder(folder, read, *(path.name for path in folder.glob("*.json")))


def checked_cases(folder: Path) -> bytes:
    """The manifest of a site with one case, whose files lie in ``folder``."""
    for name, content in (("image", volume()), ("label", mask())):
        nibabel.save(nibabel.Nifti1Image(content, AFFINE), folder / f"{name}.nii.gz")
    case = Case("bern-0000", folder / "image.nii.gz", folder / "label.nii.gz", "p")
    (checked,) = check_cases([case])
    usable = replace(checked, findings=())  # the rules find no head in so small a volume
    return TypeAdapter(tuple[CheckedCase, ...]).dump_json((usable,))
