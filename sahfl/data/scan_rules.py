"""The rules about a single scan, applied to its measurements; every text names the case and the measured values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sahfl.data.contrast import BETTER_HU, LOW_CONTRAST_HU
from sahfl.data.ct import Scan
from sahfl.data.measures import LEAST_CT_HU, UNSIGNED_SHIFT_HU, AnnotationMeasures, Measures
from sahfl.data.rules import Finding, finding

SPACING_MM = (0.3, 1.2), (0.5, 10.0)
"""Usual pixel size and slice distance of a head CT."""
SLICES = 15, 400
WHOLE_HEAD_HU = (-500.0, 300.0)
"""A head CT contains air below the first value, at least in the sinuses, and bone above the second."""
MOST_HU = 70_000.0
"""More than 16 bits can store with any usual intercept; metal reaches 30,000 HU."""
MOST_BONE_HU = 4000.0
"""Metal alone lies above this value, and is less than 1 % of a volume."""
LOW_HU, HIGH_HU = -900.0, 300.0
"""Usual limits of the 1st and the 99th percentile."""
BRAIN_HU, BRAIN_RANGE_HU = (20.0, 45.0), (0.0, 90.0)
"""Usual and possible medians of the tissue inside the skull; measured: 32-41 HU."""
MOST_NOISE_HU = 12.0
"""Measured: 2.0-3.2 HU on real slices; bone kernels reach 20 and more."""
NO_HU = {"windowed", "shifted", "not_hu", "looks_like_mr", "no_head"}
HEAD_MM, HEAD_SHARE = 10.0, 0.2
"""A volume shows a head if slices of this height, or this share of them, show brain inside a skull."""
MOST_BLOOD_ML, MOST_HEAD_SHARE = 500.0, 0.3
BLOOD_HU = (25.0, 110.0)
"""Measured on real annotations: medians of 36-93 HU."""
TOP_SHARE, MOST_SHEAR = 0.85, 0.02
"""Area of the head in the topmost slice relative to the largest; cosine between two axes (0.02 is a degree)."""
LEAST_APART = 3
"""As many annotated slices without a neighbour are a habit of the reader, not several small bleedings."""


def judge_scan(case: str, scan: Scan, measures: Measures) -> Iterator[Finding]:
    """Findings of a readable scan, in the order of the rule table."""
    found = [*_geometry(scan), *_values(scan, measures)]
    if not NO_HU & {rule for rule, _ in found}:  # without HU, the other rules would report the same problem again
        found += [*_tissue(scan, measures), *_annotation(scan, measures.annotation)]
    for rule, text in found:
        yield finding(rule, f"case {case}: {text}")


def _geometry(scan: Scan) -> Iterator[tuple[str, str]]:
    axes = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > MOST_SHEAR:
        yield "sheared", f"axes are {np.degrees(np.arcsin(min(shear, 1.0))):.0f} degrees off a right angle"
    (x, y, z), (pixel, slice_) = scan.spacing_mm, SPACING_MM
    usual = ((x, pixel), (y, pixel), (z, slice_))
    if not all(low - 1e-4 <= size <= high + 1e-4 for size, (low, high) in usual):  # headers hold float32
        coarse = x > pixel[1] or y > pixel[1] or z > slice_[1]
        text = "coarser than usual: downsampled" if coarse else "finer than usual: resampled"
        yield "spacing", f"voxels of {x:.2f} x {y:.2f} x {z:.2f} mm, {text}, or in another unit than mm"
    n_slices = scan.image.shape[2]
    if n_slices == 1:
        yield "one_slice", "1 slice"
    elif not SLICES[0] <= n_slices <= SLICES[1]:
        yield "slices", f"{n_slices} slices"


def _values(scan: Scan, measures: Measures) -> Iterator[tuple[str, str]]:
    low, high = measures.lowest_hu, measures.highest_hu
    span = f"values from {low:.0f} to {high:.0f}"
    if low >= 0 and high <= 255:
        yield "windowed", span
        return
    if max(-low, high) > MOST_HU:
        yield "not_hu", f"values from {low:.3g} to {high:.3g} are more than a scanner can store"
        return
    if measures.high_hu > MOST_BONE_HU:
        yield "looks_like_mr", f"{span}, 99th percentile {measures.high_hu:.0f}: more than bone has in CT"
        return
    head, shifted = (_shows_head(scan, share) for share in (measures.skull_share, measures.shifted_skull_share))
    # Air lies near zero, and bone near its usual values plus 1024.
    near_zero = low >= 0 and measures.low_hu < 200 and UNSIGNED_SHIFT_HU + HIGH_HU < high < 8192
    if near_zero and shifted is not False:
        yield "shifted", f"{span}, 1st percentile {measures.low_hu:.0f}, none below zero where air should be"
        return
    if low >= LEAST_CT_HU and head is False and shifted is False:
        yield "looks_like_mr", f"{span}: no air in HU, and no skull with brain in it, minus 1024 or not"
        return
    if low > WHOLE_HEAD_HU[0] or high < WHOLE_HEAD_HU[1]:
        yield "not_hu", f"{span} are not HU of a whole head (air to bone)"
        return
    if head is False:
        height = scan.image.shape[2] * scan.spacing_mm[2]
        shown = (measures.skull_share or 0) * height
        yield "no_head", f"{shown:.0f} mm of {height:.0f} mm show brain inside a skull"
        return
    if measures.low_hu > LOW_HU:
        yield "low_air", f"1st percentile {measures.low_hu:.0f} HU"
    if measures.high_hu < HIGH_HU:
        yield "low_bone", f"99th percentile {measures.high_hu:.0f} HU"
    if measures.padding_share > 0:
        yield "padding", f"{measures.padding_share:.1%} of the voxels lie below -1024 HU (lowest {low:.0f})"
    if not measures.whole_numbers:
        yield "not_whole", "values are not whole numbers"
    elif measures.n_values <= 256:
        yield "few_values", f"{measures.n_values} different values"


def _shows_head(scan: Scan, share: float | None) -> bool | None:
    """Whether enough of the slices show brain inside a skull; None if it cannot be judged."""
    if share is None:
        return None
    return share > 0 and (share >= HEAD_SHARE or share * scan.image.shape[2] * scan.spacing_mm[2] >= HEAD_MM)


def _tissue(scan: Scan, measures: Measures) -> Iterator[tuple[str, str]]:
    if scan.image.shape[2] > 1 and measures.top_share > TOP_SHARE:
        yield "vertex", f"the topmost slice shows {measures.top_share:.0%} of the head's largest section"
    if measures.brain_hu is None:
        return
    text = f"median {measures.brain_hu:.0f} HU in {measures.brain_ml:.0f} mL inside the skull"
    if not BRAIN_RANGE_HU[0] <= measures.brain_hu <= BRAIN_RANGE_HU[1]:
        yield "brain_not_hu", text
    elif not BRAIN_HU[0] <= measures.brain_hu <= BRAIN_HU[1]:
        yield "brain_hu", text
    if measures.noise_hu is not None and measures.noise_hu > MOST_NOISE_HU:
        yield "noise", f"noise of {measures.noise_hu:.1f} HU inside the skull"


def _kinds(scan: Scan) -> Iterator[tuple[str, str]]:
    kinds = scan.kinds
    if kinds is None:
        return
    amounts = {value: f"{value} ({n * scan.voxel_ml:.2f} mL)" for value, n in kinds.voxels.items()}
    counted = ", ".join(amounts[value] for value in kinds.counted) or "none"
    if kinds.left_out:
        others = ", ".join(amounts[value] for value in kinds.left_out)
        yield "label_left_out", f"of the annotation's values, {counted} are blood; left out: {others}"
    elif len(kinds.counted) > 1 and not kinds.known:
        yield "label_kinds", f"the annotation's values {counted} are all counted as blood"


def _annotation(scan: Scan, blood: AnnotationMeasures | None) -> Iterator[tuple[str, str]]:
    yield from _kinds(scan)
    if blood is None:
        yield "no_blood", "the annotation is empty"
        return
    if scan.volume_ml > MOST_BLOOD_ML:
        yield "much_blood", f"{scan.volume_ml:.0f} mL of annotated blood"
    if blood.head_share > MOST_HEAD_SHARE:
        yield "label_share", f"the annotation is as large as {blood.head_share:.0%} of the head"
    outside, air, bone = blood.outside_share, blood.air_share, blood.bone_share
    if blood.median_hu < 0 or air + bone > 0.5 or outside > 0.5:
        places = f"{air:.0%} on air, {bone:.0%} on bone, {outside:.0%} outside the head"
        fits = f"; with {blood.better.change} it would fit" if blood.better else ""
        yield "label_place", f"the annotation has a median of {blood.median_hu:.0f} HU ({places}){fits}"
        return
    for rule, share, most, place in (
        ("label_outside", outside, 0.01, "outside the head"),
        ("label_on_air", air, 0.05, "on air"),
        ("label_on_bone", bone, 0.2, "on bone"),
    ):
        if share > most:
            yield rule, f"{share:.1%} of the annotation lies {place}"
    slices = np.flatnonzero(scan.label.any(axis=(0, 1)))
    if len(slices) >= LEAST_APART and np.diff(slices).min() > 1:
        yield "label_gaps", f"{len(slices)} slices are annotated, and of all between them none"
    if not BLOOD_HU[0] <= blood.median_hu <= BLOOD_HU[1]:
        yield "label_hu", f"the annotation has a median of {blood.median_hu:.0f} HU"
    yield from _contrast(blood)


def _contrast(blood: AnnotationMeasures) -> Iterator[tuple[str, str]]:
    here, there, better = blood.contrast_hu, blood.mirrored_hu, blood.better
    if here is None or here > LOW_CONTRAST_HU:
        return
    mirrored = there is not None and there - max(here, 0) >= BETTER_HU
    if mirrored:
        yield "left_right", f"contrast {here:.0f} HU as it is, {there:.0f} HU with left and right swapped"
    if mirrored and (better is None or better.contrast_hu - (there or 0) < LOW_CONTRAST_HU):
        return
    text = f"contrast {here:.0f} HU to the tissue around it"
    if better is None:
        yield "label_contrast", f"{text}; no swap of its axes and no near slice fits better"
    else:
        yield "label_contrast", f"{text}; with {better.change} it would be {better.contrast_hu:.0f} HU"
