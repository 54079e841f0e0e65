"""Compressed DICOM files, and series in one file, for tests."""

import gdcm
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage

from harness.dicom_files import RAS_TO_LPS, slice_dataset


def pack(path, syntax):
    """Compress a file's pixels by GDCM."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def enhanced(
    folder,
    hounsfield,
    affine,
    *,
    order=None,
    localizers=0,
    storage=EnhancedCTImageStorage,
    shared=True,
    change=lambda data: None,
):
    """One file with all slices as frames, in any order."""
    n_slices = hounsfield.shape[2]
    order = list(range(n_slices)) if order is None else order
    data = slice_dataset(hounsfield, affine, 0)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = storage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    own = [slice_dataset(hounsfield, affine, index) for index in order]
    plane = RAS_TO_LPS @ affine[:3]

    def group(**elements):
        item = Dataset()
        for name, value in elements.items():
            setattr(item, name, value)
        return Sequence([item])

    common = {
        "PlaneOrientationSequence": group(ImageOrientationPatient=own[0].ImageOrientationPatient),
        "PixelMeasuresSequence": group(PixelSpacing=own[0].PixelSpacing, SliceThickness="5.0"),
        "PixelValueTransformationSequence": group(RescaleSlope="1", RescaleIntercept="-1024", RescaleType="HU"),
    }
    frames = []
    for index in order:
        frame = {"PlanePositionSequence": group(ImagePositionPatient=[f"{mm:.6f}" for mm in plane @ [0, 0, index, 1]])}
        frames.append(group(**(frame if shared else frame | common))[0])
    for _ in range(localizers):
        frames.append(group(CTImageFrameTypeSequence=group(FrameType=["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]))[0])
    if shared:
        data.SharedFunctionalGroupsSequence = group(**common)
    data.PerFrameFunctionalGroupsSequence = Sequence(frames)
    data.NumberOfFrames = len(frames)
    data.PixelData = b"".join(item.PixelData for item in own) + bytes(localizers * len(own[0].PixelData))
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(data, name)
    change(data)
    folder.mkdir(parents=True)
    data.save_as(folder / "enhanced.dcm", enforce_file_format=True)
    return folder
