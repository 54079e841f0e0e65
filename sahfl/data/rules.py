"""The table of data rules: for each possible finding its severity, its meaning and its remedy.

The documents (``docs/data-checks.md``) and the page of ``sahfl check SITE.yaml`` are made from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from sahfl.data.dicom.rules import DICOM_RULES

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


RULES = (
    # Files
    Rule("missing", "error", "A file of the case does not exist.", "Correct the path in the datalist."),
    Rule(
        "permission",
        "error",
        "A file exists, but may not be read.",
        "Give the account that runs sahfl read access; the file itself may be fine.",
    ),
    Rule(
        "unreadable",
        "error",
        "A file is empty, truncated, damaged or not NIfTI.",
        "Export or copy the file again and compare sizes.",
    ),
    Rule("not_3d", "error", "The image is not a volume of three dimensions.", "Export one series as one volume."),
    Rule("not_finite", "error", "The image holds NaN or infinite voxels.", "Export again from DICOM; never fill gaps."),
    # Geometry
    Rule(
        "shape",
        "error",
        "Image and annotation differ in their number of voxels.",
        "Annotate on this very image, or resample the annotation to its grid (nearest neighbour).",
    ),
    Rule(
        "affine",
        "error",
        "Image and annotation lie at different places (more than 0.001 mm), or the voxels have no volume.",
        "Copy the image's geometry to the annotation only if you know that their voxels match.",
    ),
    Rule(
        "no_orientation",
        "error",
        "The header has neither sform nor qform: left and right are not known.",
        "Convert again from DICOM (dcm2niix); do not guess an orientation.",
    ),
    Rule(
        "handedness",
        "error",
        "sform and qform contradict each other about left and right.",
        "Convert again from DICOM; find out which program rewrote the header.",
    ),
    Rule(
        "forms_differ",
        "warning",
        "sform and qform place the voxels more than 1 mm apart; the sform is used.",
        "Check that image and annotation were made with programs that use the same form.",
    ),
    Rule(
        "sheared",
        "warning",
        "The axes of the volume are not at right angles (gantry tilt that was not corrected).",
        "Usable; a tilt-corrected export gives better coronal and sagittal views.",
    ),
    Rule(
        "spacing",
        "warning",
        "The voxels are coarser or finer than scanners deliver (0.3-1.2 mm in the slice, 0.5-10 mm between slices).",
        "Check the unit (mm); if the scan was downsampled, use the original: thin blood is lost in coarse voxels.",
    ),
    Rule("one_slice", "warning", "The volume has a single slice.", "Legal; whole volumes give better results."),
    Rule(
        "slices",
        "warning",
        "The number of slices is unusual (15-400 expected).",
        "Check that the series is complete and is the right one, not a localiser.",
    ),
    Rule(
        "vertex",
        "warning",
        "The topmost slice still shows a full head: the vertex seems to be missing.",
        "Check that the series is complete.",
    ),
    # Values
    Rule(
        "windowed",
        "error",
        "Values lie within 0..255: a windowed picture, not Hounsfield units.",
        "Export the original series, not screenshots or secondary captures.",
    ),
    Rule(
        "shifted",
        "error",
        "Values are Hounsfield units plus 1024 (stored unsigned, rescale intercept lost).",
        "Apply the rescale intercept (-1024), or convert again with dcm2niix.",
    ),
    Rule(
        "not_hu",
        "error",
        "The values are not Hounsfield units of a whole head, from air to bone.",
        "Apply rescale slope and intercept; do not normalise, strip the skull or clip.",
    ),
    Rule(
        "brain_not_hu",
        "error",
        "Tissue inside the skull has values that brain cannot have (median outside 0..90 HU).",
        "Apply rescale slope and intercept; check that this is CT.",
    ),
    Rule(
        "brain_hu",
        "warning",
        "Tissue inside the skull has an unusual median (20-45 HU expected): contrast agent or calibration.",
        "Check that the scan is without contrast agent and that the rescale values were applied.",
    ),
    Rule(
        "low_air",
        "warning",
        "The 1st percentile is above -900 HU: hardly any air around the head.",
        "Check that the image was not cropped, masked or filled around the head.",
    ),
    Rule(
        "low_bone",
        "warning",
        "The 99th percentile is below 300 HU: hardly any bone.",
        "Check the field of view, and that values were not clipped.",
    ),
    Rule(
        "padding",
        "warning",
        "Voxels below -1024 HU: padding outside the scanner's field of view.",
        "None needed: sahfl takes them as air.",
    ),
    Rule(
        "not_whole",
        "warning",
        "Values are not whole numbers: the image was resampled or filtered.",
        "Use the original export where there is one.",
    ),
    Rule(
        "few_values",
        "warning",
        "At most 256 different values: made from an 8-bit picture, so HU are approximate.",
        "Use the original export where there is one.",
    ),
    Rule(
        "noise",
        "warning",
        "Very noisy brain (SD above 12 HU): a bone kernel or a very thin slice.",
        "Use the soft-tissue reconstruction.",
    ),
    Rule(
        "contrast_agent",
        "warning",
        "The DICOM header names a contrast agent.",
        "Use the scan without contrast agent: enhanced vessels look like blood.",
    ),
    Rule(
        "sharp_kernel",
        "warning",
        "The DICOM header names a reconstruction kernel for bone or lung.",
        "Use the soft-tissue reconstruction of the same acquisition.",
    ),
    # Annotations
    Rule(
        "label_values",
        "error",
        "The annotation holds values that are not whole numbers from 0 to 255.",
        "Save classes, not probabilities; resample annotations with nearest neighbour.",
    ),
    Rule("no_blood", "note", "The annotation is empty; legal, and counted apart.", "Confirm that the head is normal."),
    Rule(
        "much_blood",
        "warning",
        "More than 500 mL of annotated blood.",
        "Check voxel size and annotation.",
    ),
    Rule(
        "label_share",
        "error",
        "The annotation covers more than 30 % of the head: inverted, or another structure.",
        "Check which label value is which, and that 0 is background.",
    ),
    Rule(
        "label_place",
        "error",
        "Most of the annotation lies on air, fat or bone, or outside the head.",
        "The annotation belongs to another scan or orientation: pair them again.",
    ),
    Rule(
        "label_outside",
        "warning",
        "Over 1 % of the annotation lies outside the head.",
        "Look at the contour; erase stray voxels.",
    ),
    Rule("label_on_air", "warning", "Over 5 % of the annotation lies on air.", "Look at the contour."),
    Rule("label_on_bone", "warning", "Over 20 % of the annotation lies on bone.", "Look at the contour."),
    Rule(
        "label_hu",
        "warning",
        "The annotated tissue has a median that acute blood does not have (25-110 HU).",
        "Look at the contour for old blood, another structure or a shifted annotation.",
    ),
    Rule(
        "left_right",
        "warning",
        "The annotation fits the image much better when left and right are swapped.",
        "Look at the contour; if it lies on the wrong side, convert image and annotation with one program.",
    ),
    # Across the site's cases
    Rule(
        "duplicate",
        "error",
        "The image has exactly the voxels of an earlier case, which would put one scan into two folds.",
        "Remove one of the two; check which patient it belongs to.",
    ),
    Rule(
        "corrected_copy",
        "error",
        "By its file name the image is the raw or corrected copy (dcm2niix _Tilt, _Eq) of an earlier case.",
        "Keep the copy on which the annotation was drawn, and remove the other one.",
    ),
    Rule(
        "near_duplicate",
        "warning",
        "The image looks like an earlier case (a resampled or tilt-corrected copy, or the same patient).",
        "Keep one of the two, or give both the same patient.",
    ),
    Rule(
        "patient_alike",
        "warning",
        "Two patient ids differ only in case, spaces, punctuation or leading zeros.",
        "If it is one person, use one id: otherwise two scans of a patient may land in two folds.",
    ),
    # Privacy
    Rule(
        "file_name",
        "warning",
        "The name of a file or folder holds what looks like a person's name or a date.",
        "Rename it to a pseudonym; sahfl never sends it, but people see it.",
    ),
    Rule(
        "header_text",
        "warning",
        "A text field or extension of a header, or the name inside a .gz, holds what looks like a name or a date.",
        "Clear the text fields and extensions (for example with nibabel), and pack without names (gzip -n).",
    ),
    # DICOM
    *(Rule(rule, "error", meaning, remedy) for rule, meaning, remedy in DICOM_RULES),
)
"""Every rule, in the order of the documents."""

BY_ID = MappingProxyType({rule.id: rule for rule in RULES})


def finding(rule: str, text: str) -> Finding:
    """Make a finding of a rule, with the rule's severity from the table."""
    return Finding(rule, BY_ID[rule].severity, text)


def rules_table() -> str:
    """The table as Markdown, for the documents."""
    head = ["| rule | severity | meaning | remedy |", "|---|---|---|---|"]
    return "\n".join(head + [f"| `{r.id}` | {r.severity} | {r.meaning} | {r.remedy} |" for r in RULES]) + "\n"
