"""HU of everything in the cavity except fresh blood: tissue, CSF, dura and structures that resemble hemorrhage."""

from __future__ import annotations

import numpy as np

from sahfl.data.phantom.brain import Brain
from sahfl.data.phantom.space import Ball, Field, chain_distance, coverage, ellipsoid_distance
from sahfl.data.phantom.subject import Subject

CSF_HU = 7.0
CEREBELLUM_HU = 38.5
OEDEMA_HU = 20.0
DURA_HU = 48.0
SINUS_HU = 58.0
DRAIN_HU = 140.0
_PIVOT_HU = 35.0
"""A profile's tissue contrast stretches HU around this value, the median of real parenchyma."""
_CORTEX_MM = 3.1


def render_tissue(brain: Brain, subject: Subject, oedema: Field, *, contrast: float) -> Field:
    """HU of tissue, CSF, dura and sinuses at the cavity's points (n,)."""
    grey = np.maximum(coverage(brain.cortex_mm - _CORTEX_MM, 1.4), 0.9 * _deep_grey(brain))
    hu = subject.white_hu + (subject.grey_hu - subject.white_hu) * grey
    dentate = ellipsoid_distance(brain.points.mirrored(), (20, -56, -36), (14, 14, 10))
    cerebellum = CEREBELLUM_HU - 2.5 * coverage(dentate, 4.0) + 1.2 * brain.region.noise(4.5)
    hu = np.where(brain.below_tentorium > 0, cerebellum, hu)
    hu = _blend(hu, subject.white_hu + 3, brain.stem)
    hu = hu + 1.0 * brain.region.noise(16)
    hu = _PIVOT_HU + (hu - _PIVOT_HU) * contrast
    hu = _blend(hu, OEDEMA_HU, oedema)
    hu = _blend(hu, CSF_HU, brain.csf)
    hu = _blend(hu, CSF_HU, brain.ventricle)
    return _blend(_blend(hu, DURA_HU, brain.dura), SINUS_HU, brain.sinus)


def add_calcifications(hu: Field, brain: Brain, subject: Subject, rng: np.random.Generator) -> Field:
    """Add calcified choroid plexus, pineal gland and falx to HU (n,), more often in the old: dense, but no blood."""
    often = 0.55 * min(max((subject.age_years - 25) / 30, 0.1), 1.0)
    for side in (-1.0, 1.0):
        jitter = rng.normal(0, 1.5, 3)
        density = rng.uniform(80, 250)
        if rng.random() < often:
            centre = (side * 23 + float(jitter[0]), -40 + float(jitter[1]), 9 + float(jitter[2]))
            hu = hu + np.float32(density) * coverage(ellipsoid_distance(brain.points, centre, (2, 3.5, 2.5)), 0.8)
    if rng.random() < 0.6:
        pineal = ellipsoid_distance(brain.points, (0, -33, 2), (1.8, 2.6, 2.2))
        hu = hu + np.float32(rng.uniform(60, 220)) * coverage(pineal, 0.8)
    if rng.random() < 0.25:
        plaque = ellipsoid_distance(brain.points, (0, 40 + rng.normal(0, 8), 50), (1.2, 8, 3))
        hu = hu + np.float32(rng.uniform(80, 300)) * coverage(plaque, 0.7)
    return hu


def add_drain(hu: Field, brain: Brain, side: float) -> Field:
    """Add to HU (n,) a ventricular drain from the front of the vault to a lateral ventricle; side 0 means none."""
    if side == 0:
        return hu
    path: list[Ball] = [(side * 27, 42, 66, 1.3), (side * 8, 12, 9, 1.3)]
    return _blend(hu, DRAIN_HU, coverage(chain_distance(brain.points, path), 0.8))


def _deep_grey(brain: Brain) -> Field:
    """Thalamus, lentiform and caudate nuclei."""
    folded = brain.points.mirrored()
    nuclei = np.minimum.reduce(
        [
            ellipsoid_distance(folded, (11, -14, 6), (8, 13, 9)),
            ellipsoid_distance(folded, (22, 4, 2), (6, 14, 10)),
            chain_distance(folded, [(15, 19, 6, 4.5), (17, 2, 18, 2.5)]),
        ]
    )
    return coverage(nuclei, 2.0)


def _blend(below: Field, above: float, share: Field) -> Field:
    return below + (np.float32(above) - below) * share
