"""A site's phantom scans in the forms in which hospitals keep theirs."""

import json
import shutil

import nibabel
import numpy as np

from harness.dicom_files import write_segmentation, write_series
from sahfl.data.phantom import LABELS


def as_nnunet(scans, folder):
    """A site's phantom scans as an nnU-Net raw folder."""
    for part, tail in (("images", "_0000.nii.gz"), ("labels", ".nii.gz")):
        (folder / f"{part}Tr").mkdir(parents=True)
        for path in sorted((scans / part).iterdir()):
            shutil.copy(path, folder / f"{part}Tr" / f"{path.name.removesuffix('.nii.gz')}{tail}")
    settings = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **LABELS}, "file_ending": ".nii.gz"}
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
