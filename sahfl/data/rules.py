"""The table of data rules: for each possible finding its severity, its meaning and its remedy.

The documents (``docs/data-checks.md``) and the page of ``sahfl check SITE.yaml`` are made from this table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, cast

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Rule:
    """One possible problem of a case, with its severity, meaning and remedy."""

    id: str
    severity: Severity
    """``error``: the case is not used. ``warning``: used, but should be looked at. ``note``: legal, only counted."""
    meaning: str
    """One sentence."""
    remedy: str


@dataclass(frozen=True)
class Finding:
    """One rule that a case breaks, with the measured values."""

    rule: str
    severity: Severity
    text: str


_RULES = """
# Files
error missing
    A file of the case does not exist.
    Put it there (a mask beside its image, named `NAME_mask`, or in its patient's DICOM folder), or correct the list.
error permission
    A file exists, but may not be read.
    Give the account that runs sahfl read access; the file itself may be fine.
error unreadable
    A file is empty, truncated, damaged, or in no format that is read.
    Export or copy the file again and compare sizes.
error too_large
    The headers claim more voxels than a head CT has (512 x 512 x 512), or a file unpacks to more.
    Export the head alone, or in thicker slices; a small file that claims much is damaged or made to do harm.
error not_3d
    The image is not a volume of three dimensions.
    Export one series as one volume.
error not_finite
    The image holds NaN or infinite voxels.
    Export again from DICOM; never fill gaps.
# Geometry
error shape
    The annotation is not a volume of three dimensions.
    Save it as one volume on the voxels of its image.
warning regridded
    The annotation has other voxels than the image; it is resampled (nearest neighbour).
    Look at the contour; an annotation drawn on the image itself (`sahfl convert`) loses nothing.
error grid_lost
    The annotation loses too much when it is resampled to the image (Dice of there and back below 0.7).
    Annotate on the voxels that are used: `sahfl convert` writes them as NIfTI.
error affine
    Image and annotation lie at different places (more than 0.001 mm), or the voxels have no volume.
    Copy the image's geometry to the annotation only if you know that their voxels match.
error units
    In the unit of length that the header declares, the volume is no size that a head can have.
    Write the unit in which the affine is into the header (xyzt_units), or convert the affine to mm.
error no_orientation
    The header has no orientation (in NIfTI neither sform nor qform): left and right are not known.
    Convert again from DICOM (dcm2niix); do not guess an orientation.
error handedness
    sform and qform contradict each other about left and right.
    Convert again from DICOM; find out which program rewrote the header.
warning forms_differ
    sform and qform place the voxels more than 1 mm apart; the sform is used.
    Check that image and annotation were made with programs that use the same form.
warning sheared
    The axes of the volume are not at right angles (gantry tilt that was not corrected).
    Usable; a tilt-corrected export gives better coronal and sagittal views.
warning spacing
    The voxels are coarser or finer than scanners deliver (0.3-1.2 mm in the slice, 0.5-10 mm between slices).
    Check the unit (mm); if the scan was downsampled, use the original: thin blood is lost in coarse voxels.
warning one_slice
    The volume has a single slice.
    Legal; whole volumes give better results.
warning slices
    The number of slices is unusual (15-400 expected).
    Check that the series is complete and is the right one, not a localiser.
warning vertex
    The topmost slice still shows a full head: the vertex seems to be missing.
    Check that the series is complete.
# Values
error windowed
    Values lie within 0..255: a windowed picture, not Hounsfield units.
    Export the original series, not screenshots or secondary captures.
error shifted
    Values are Hounsfield units plus 1024 (stored unsigned, rescale intercept lost).
    Convert again with dcm2niix; if the DICOM files are lost, subtract 1024 from all values.
error looks_like_mr
    As in MR, values are above those of bone, or 0 and more without a skull with brain in it, minus 1024 or not.
    Use the CT of the head. An MR has no Hounsfield units, and no change of its values makes them.
error no_head
    No skull with brain in it (judged in fields of view of 140 mm or more): another part of the body, or no CT.
    Use the CT of the head, with the skull in the field of view; another scale of the values does not help.
error not_hu
    The values are not Hounsfield units of a whole head, from air to bone.
    Apply rescale slope and intercept; do not normalise, strip the skull or clip.
error brain_not_hu
    Tissue inside the skull has values that brain cannot have (median outside 0..90 HU).
    Apply rescale slope and intercept; check that this is CT.
warning brain_hu
    Tissue inside the skull has an unusual median (20-45 HU expected): contrast agent or calibration.
    Check that the scan is without contrast agent and that the rescale values were applied.
warning low_air
    The 1st percentile is above -900 HU: hardly any air around the head.
    Check that the image was not cropped, masked or filled around the head.
warning low_bone
    The 99th percentile is below 300 HU: hardly any bone.
    Check the field of view, and that values were not clipped.
warning padding
    Voxels below -1024 HU: padding outside the scanner's field of view.
    None needed: sahfl takes them as air.
warning not_whole
    Values are not whole numbers: the image was resampled or filtered.
    Use the original export where there is one.
warning few_values
    At most 256 different values: made from an 8-bit picture, so HU are approximate.
    Use the original export where there is one.
warning noise
    Very noisy brain (SD above 12 HU): a bone kernel or a very thin slice.
    Use the soft-tissue reconstruction.
warning contrast_agent
    The DICOM header names a contrast agent.
    Use the scan without contrast agent: enhanced vessels look like blood.
warning sharp_kernel
    The DICOM header names a reconstruction kernel for bone or lung.
    Use the soft-tissue reconstruction of the same acquisition.
# Annotations
error label_values
    The annotation holds values that are not whole numbers from 0 to 255.
    Save classes, not probabilities; resample annotations with nearest neighbour.
error label_undeclared
    The annotation holds a value that neither `labels` of `dataset.json` or of the datalist nor its segments declare.
    Declare it under `labels`, or name the values that are blood in the data section (`blood: [1]`); or add a segment.
warning label_kinds
    The annotation holds several values, nothing says which are blood, and all of them are counted.
    Name the values that are blood in the data section (`blood: [1, 2]`), or all under `labels` of the datalist.
note label_left_out
    The annotation holds values that the site does not name as blood; they are left out.
    None needed, if `blood` in the data section is right.
note no_blood
    The annotation is empty; legal, and counted apart.
    Confirm that the head is normal.
warning much_blood
    More than 500 mL of annotated blood.
    Check voxel size and annotation.
error label_share
    The annotation covers more than 30 % of the head: inverted, or another structure.
    Check which label value is which, and that 0 is background.
error label_place
    Most of the annotation lies on air, fat or bone, or outside the head.
    The annotation belongs to another scan or orientation: pair them again.
warning label_outside
    Over 1 % of the annotation lies outside the head.
    Look at the contour; erase stray voxels.
warning label_on_air
    Over 5 % of the annotation lies on air.
    Look at the contour.
warning label_on_bone
    Over 20 % of the annotation lies on bone.
    Look at the contour.
warning label_hu
    The annotated tissue has a median that acute blood does not have (25-110 HU).
    Look at the contour for old blood, another structure or a shifted annotation.
warning label_contrast
    The annotated tissue is hardly brighter than the tissue around it (up to 5 HU): flipped, moved, or another scan's.
    Look at the contour; if it misses the blood, swap its axes as the finding says, or pair it with its own image.
warning label_gaps
    Three slices or more are annotated, and no two of them are neighbours: mL and Dice come out too small.
    Annotate the slices between them, or let the program that made the annotation interpolate.
warning left_right
    The annotation fits the image much better when left and right are swapped.
    Look at the contour; if it lies on the wrong side, convert image and annotation with one program.
# Across the site's cases
error duplicate
    The image has exactly the voxels of an earlier case, which would put one scan into two folds.
    Remove one of the two; check which patient it belongs to.
error corrected_copy
    By its file name the image is the raw or corrected copy (dcm2niix _Tilt, _Eq) of an earlier case.
    Keep the copy on which the annotation was drawn, and remove the other one.
warning near_duplicate
    The image looks like an earlier case (a resampled or tilt-corrected copy, or the same patient).
    Keep one of the two, or give both the same patient.
warning same_annotation
    The annotation has exactly the voxels of that of an earlier case, whose image is another one.
    Look at both contours; correct the list or the name of the one that belongs to the other scan.
warning patient_alike
    Two patient ids differ only in case, spaces, punctuation or leading zeros.
    If it is one person, use one id: otherwise two scans of a patient may land in two folds.
warning repeat_scan
    No file states the patients, and the names of some cases differ only in a last number, letter or date.
    List the patients (`patients.json` of an nnU-Net folder, `patient` in a datalist), or rename to `sub-ID_ses-N`.
warning one_id
    Several folders hold the same patient id, such as ANONYMOUS, and each folder counts as a patient.
    Give each patient an id of its own in the headers; put all scans of one patient under one id.
warning left_out
    Beside the patients' folders lies a folder, or a study of a disc, without a scan, such as a viewer's.
    None needed, unless a patient's scan is lost: then export it again.
# DICOM series that are used
warning uneven_slices
    The slices are not evenly spaced; they are resampled to even distances (linear), and the annotation too (nearest).
    Usable; a reconstruction of one thickness keeps the scanner's own voxels.
warning derived_series
    The folder's only series is derived (a reformat, a fusion, a secondary capture).
    Use the scanner's own axial series where there is one.
warning not_axial
    The folder's only series is coronal or sagittal.
    Use the axial series: the network sees axial slices.
warning scrambled_uids
    The slices have a series UID each; their geometry puts them together.
    Usable; an anonymiser that maps each UID to one new UID keeps the series together.
note annotation_grid
    The annotation has the series' own voxels, and its header writes the gantry tilt or slice distance in another way.
    None needed: programs such as ITK-SNAP and dcm2niix write it so.
note series_choice
    The folder holds several series, of which one is used.
    Name the one to use under `data.series` of the site file if it is not the one that was annotated.
note seg_counted
    The segmentation has segments that are not blood; they do not count.
    Name the segments that are blood under `data.blood` of the site file if these are not the right ones.
note no_frame
    The slices have no common frame of reference.
    None needed for one series; compare the annotation's contour with the image.
note foreign_files
    The folder holds files that are no scan; they are left out.
    None needed.
# Privacy
warning file_name
    The name of a file or folder holds what looks like a person's name or a date.
    Rename it to a pseudonym; sahfl never sends it, but people see it.
warning header_text
    A text field or extension of a header, or the name inside a .gz, holds what looks like a name or a date.
    Clear the text fields and extensions (for example with nibabel), and pack without names (gzip -n).
"""
"""Severity and name, meaning and remedy of each rule but those of DICOM, in the order of the documents."""
DICOM_RULES = (
    ("not_ct", "The folder holds no CT series.", "Put the case's axial CT series there, and nothing else."),
    ("localizer", "The folder holds only a localizer (scout).", "Put the axial series there."),
    ("multi_frame", "A multi-frame CT does not describe its frames.", "Export as classic CT, one file per slice."),
    (
        "several_series",
        "Nothing decides between several CT series.",
        "Name one (`data.series`; to `sahfl predict` one of its files), or keep one.",
    ),
    ("several_annotations", "The folder holds several annotations.", "Keep one."),
    ("compressed", "The pixels are packed in a way that cannot be read here.", "Decompress them: `dcmdjpeg IN OUT`."),
    ("not_grey", "The pixels are not plain grey values.", "Export the original series, not a screen capture."),
    ("no_rescale", "Rescale slope or intercept is missing or 0.", "Export the original series with its whole header."),
    ("no_geometry", "Position, orientation or pixel size is missing or wrong.", "Export the original series."),
    ("unknown_thickness", "One slice without a thickness: its volume is unknown.", "Export with SliceThickness."),
    ("mixed_frames", "The slices belong to several frames of reference.", "Export one acquisition."),
    ("mixed_patients", "The CT images hold several patient ids.", "Export each patient into a folder of its own."),
    ("mixed_orientations", "The slices lean differently.", "Export one acquisition; reformats do not belong to it."),
    ("mixed_sizes", "The slices have different numbers or sizes of pixels.", "Export one acquisition."),
    ("duplicate_positions", "Several slices lie at one place.", "Remove the copy, or the second acquisition."),
    ("missing_slices", "Slices are missing between the first and the last.", "Export the series again, whole."),
    ("shifted_slices", "A slice is shifted in its own plane.", "Export one acquisition; check the slices' order."),
    ("tilt", "The stack is sheared more than a gantry can tilt.", "Check the order and positions of the slices."),
    ("seg_type", "The annotation is not a binary DICOM segmentation.", "Export as binary segmentation, or as NIfTI."),
    ("seg_frame_of_reference", "The segmentation belongs to another acquisition.", "Put the right one there."),
    ("seg_geometry", "The segmentation's frames do not lie on the slices.", "Annotate on this very series."),
    (
        "seg_segments",
        "No segment is named as blood, or the blood cannot be told from another segment.",
        "Name it, or list its name under `data.blood` of the site file; give each segment of a layer its own value.",
    ),
)
"""Why a folder of DICOM files cannot be a case: rule, meaning and remedy; each is an error."""


def _read_rules() -> Iterator[Rule]:
    lines = [line.strip() for line in _RULES.splitlines() if line and not line.startswith("#")]
    for title, meaning, remedy in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        severity, name = title.split()
        yield Rule(name, cast(Severity, severity), meaning, remedy)


RULES = (*_read_rules(), *(Rule(rule, "error", meaning, remedy) for rule, meaning, remedy in DICOM_RULES))
"""Every rule, in the order of the documents."""
BY_ID = MappingProxyType({rule.id: rule for rule in RULES})


def finding(rule: str, text: str) -> Finding:
    """Make a finding of a rule, with the rule's severity from the table."""
    return Finding(rule, BY_ID[rule].severity, text)
