"""Named scanner profiles: the effects of a scanner, its protocol and its rater on the image of a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType


@dataclass(frozen=True)
class ScannerProfile:
    """Everything that differs between sites but not between the patients of a site.

    Source: noise SD 2.3 HU (2.0-3.2) and its correlation were measured on real slices; the other spreads are estimates.
    """

    noise_sd_hu: float = 2.3
    """Standard deviation of the image noise at the head's edge and centre combined (HU)."""
    noise_correlation_mm: float = 0.6
    """Gaussian sigma of the in-plane noise correlation (mm); white at 1.8 mm pixels."""
    psf_sigma_mm: float = 0.9
    """Gaussian sigma of the in-plane point spread (mm)."""
    edge_enhancement: float = 0.0
    """Share of unsharp masking added by a sharp kernel (unitless, 0 to 1)."""
    slice_bleed: float = 0.0
    """Share of each neighbouring slice that is averaged in (unitless, 0 to 0.25): thick overlapping slices."""
    hu_offset_hu: float = 0.0
    """Calibration error, added to everything but air (HU)."""
    tissue_contrast: float = 1.0
    """Factor on the differences between grey matter, white matter and oedema (unitless)."""
    pitch_deg: float = 0.0
    """Mean nodding angle of the heads (degrees, positive lifts the face)."""
    roll_sd_deg: float = 2.0
    """Spread of the head's roll (degrees)."""
    yaw_sd_deg: float = 4.0
    """Spread of the head's yaw (degrees)."""
    gantry_tilt_deg: float = 0.0
    """Gantry tilt that was not corrected: a shear of the slices (degrees)."""
    cupping_hu: float = 3.0
    """Brightening under the skull left by beam hardening (HU)."""
    streak_hu: float = 6.0
    """Strength of the dark band between the petrous bones (HU)."""
    rater_shift: float = 0.0
    """Added to the blood fraction from which the site's rater marks a voxel (unitless)."""
    age_years: tuple[float, float] = (20.0, 80.0)
    """Youngest and oldest patient (years); age drives atrophy and calcification."""
    headrest: bool = True
    """Whether the head support lies in the field of view."""


_STANDARD = ScannerProfile()

PROFILES: Mapping[str, ScannerProfile] = MappingProxyType(
    {
        "standard": _STANDARD,
        "sharp": replace(_STANDARD, noise_sd_hu=3.0, noise_correlation_mm=0.3, psf_sigma_mm=0.6, edge_enhancement=0.3),
        "smooth": replace(_STANDARD, noise_sd_hu=1.6, psf_sigma_mm=1.4, slice_bleed=0.12, rater_shift=-0.04),
        "noisy": replace(_STANDARD, noise_sd_hu=4.0, streak_hu=9.0, rater_shift=0.04, age_years=(45.0, 90.0)),
        "low_dose": replace(
            _STANDARD, noise_sd_hu=5.5, noise_correlation_mm=0.9, psf_sigma_mm=1.1, cupping_hu=5.0, streak_hu=12.0
        ),
        "tilted": replace(
            _STANDARD, pitch_deg=10.0, roll_sd_deg=5.0, yaw_sd_deg=9.0, gantry_tilt_deg=14.0, age_years=(16.0, 55.0)
        ),
        "offset": replace(_STANDARD, hu_offset_hu=6.0, tissue_contrast=0.8, cupping_hu=4.5, headrest=False),
    }
)
"""Profiles by name; the others are defined by their differences from "standard"."""
