"""The rules about a single scan, applied to its measurements; every text names the case and the measured values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sahfl.data.ct import Scan
from sahfl.data.measures import AnnotationMeasures, Measures
from sahfl.data.rules import Finding, finding

SPACING_MM = (0.3, 1.2), (0.5, 10.0)
"""Usual pixel size and slice distance of a head CT."""
SLICES = 15, 400
WHOLE_HEAD_HU = (-500.0, 300.0)
"""A head CT contains air below the first value, at least in the sinuses, and bone above the second."""
MOST_HU = 70_000.0
"""More than 16 bits can store with any usual intercept; metal reaches 30,000 HU."""
LOW_HU, HIGH_HU = -900.0, 300.0
"""Usual limits of the 1st and the 99th percentile."""
BRAIN_HU, BRAIN_RANGE_HU = (20.0, 45.0), (0.0, 90.0)
"""Usual and possible medians of the tissue inside the skull; measured: 32-41 HU."""
UNSIGNED_SHIFT_HU = 1024.0
MOST_NOISE_HU = 12.0
"""Measured: 2.0-3.2 HU on real slices; bone kernels reach 20 and more."""
NO_HU = {"windowed", "shifted", "not_hu"}
MOST_BLOOD_ML, MOST_HEAD_SHARE = 500.0, 0.3
BLOOD_HU = (25.0, 110.0)
"""Measured on real annotations: medians of 36-93 HU."""
TOP_SHARE, MOST_SHEAR = 0.85, 0.02
"""Area of the head in the topmost slice relative to the largest; cosine between two axes (0.02 is a degree)."""
MIRRORED_HU = 5.0, 15.0
"""Suspicious: a contrast of at most the first value, which rises by at least the second when mirrored."""


def judge_scan(case: str, scan: Scan, measures: Measures) -> Iterator[Finding]:
    """Findings of a readable scan, in the order of the rule table."""
    found = [*_geometry(scan), *_values(measures)]
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
        yield "spacing", f"voxels of {x:.2f} x {y:.2f} x {z:.2f} mm, {text}, or not in mm?"
    n_slices = scan.image.shape[2]
    if n_slices == 1:
        yield "one_slice", "1 slice"
    elif not SLICES[0] <= n_slices <= SLICES[1]:
        yield "slices", f"{n_slices} slices"


def _values(measures: Measures) -> Iterator[tuple[str, str]]:
    low, high = measures.lowest_hu, measures.highest_hu
    span = f"values from {low:.0f} to {high:.0f}"
    if low >= 0 and high <= 255:
        yield "windowed", span
        return
    # Air lies near zero, and bone near its usual values plus 1024.
    if low >= 0 and measures.low_hu < 200 and UNSIGNED_SHIFT_HU + HIGH_HU < high < 8192:
        yield "shifted", f"{span}, 1st percentile {measures.low_hu:.0f}, none below zero where air should be"
        return
    if max(-low, high) > MOST_HU:
        yield "not_hu", f"values from {low:.3g} to {high:.3g} are more than a scanner can store"
        return
    if low > WHOLE_HEAD_HU[0] or high < WHOLE_HEAD_HU[1]:
        yield "not_hu", f"{span} are not HU of a whole head (air to bone)"
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


def _annotation(scan: Scan, blood: AnnotationMeasures | None) -> Iterator[tuple[str, str]]:
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
        yield "label_place", f"the annotation has a median of {blood.median_hu:.0f} HU ({places})"
        return
    for rule, share, most, place in (
        ("label_outside", outside, 0.01, "outside the head"),
        ("label_on_air", air, 0.05, "on air"),
        ("label_on_bone", bone, 0.2, "on bone"),
    ):
        if share > most:
            yield rule, f"{share:.1%} of the annotation lies {place}"
    if not BLOOD_HU[0] <= blood.median_hu <= BLOOD_HU[1]:
        yield "label_hu", f"the annotation has a median of {blood.median_hu:.0f} HU"
    here, there = blood.contrast_hu, blood.mirrored_hu
    if here is not None and there is not None and here <= MIRRORED_HU[0] and there - max(here, 0) >= MIRRORED_HU[1]:
        yield "left_right", f"contrast {here:.0f} HU as it is, {there:.0f} HU with left and right swapped"
