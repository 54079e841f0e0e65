"""Subdural collections: fresh, isodense, old and dark, or mixed; thin ones along falx and tentorium."""

from __future__ import annotations

import math

import numpy as np

from sahfl.data.phantom.lesions import DuralLayer, Lesion, SubduralClot
from sahfl.data.phantom.space import Triple

_STAGES = ("acute", "isodense", "chronic", "mixed")
_STAGE_SHARES = (0.65, 0.09, 0.12, 0.14)


def sample_subdurals(rng: np.random.Generator, side: float) -> list[Lesion]:
    """The subdural blood of one patient, most of it on ``side``."""
    stage = str(rng.choice(_STAGES, p=_STAGE_SHARES))
    if stage != "acute":
        lesions: list[Lesion] = [_sample_old(rng, side, stage, thickest_mm=20)]
        # In one of four atrophic brains, old collections lie on both sides.
        return lesions + [_sample_old(rng, -side, stage, thickest_mm=9)] * int(rng.random() < 0.25)
    along_dura = rng.random()
    if along_dura < 0.08:
        return [_sample_layer(rng, side)]
    fresh = _sample_fresh(rng, side)
    return [fresh, _sample_layer(rng, side)] if along_dura < 0.25 else [fresh]


def _sample_fresh(rng: np.random.Generator, side: float) -> SubduralClot:
    return SubduralClot(
        direction=_sample_direction(rng, side),
        thickness_mm=min(max(5.5 * math.exp(rng.normal(0, 0.5)), 2.2), 18),
        half_angles_rad=(rng.uniform(0.65, 1.15), rng.uniform(0.4, 0.8)),
        density=rng.uniform(0.8, 1.0),
        swirl=rng.random() < 0.25,
    )


def _sample_old(rng: np.random.Generator, side: float, stage: str, *, thickest_mm: float) -> SubduralClot:
    """A long crescent; its density depends only on its age, because nothing dilutes it any more."""
    dark = rng.uniform(40, 52)
    mixed = stage == "mixed"
    return SubduralClot(
        direction=_sample_direction(rng, side),
        thickness_mm=min(max(10 * math.exp(rng.normal(0, 0.4)), 3.5), thickest_mm),
        half_angles_rad=(rng.uniform(0.85, 1.3), rng.uniform(0.55, 0.9)),
        density=1.0,
        darkening_hu=rng.uniform(21, 31) if stage == "isodense" else dark,
        settled_hu=rng.uniform(0.5, 0.95) * dark if mixed else 0.0,
        level_y_mm=rng.uniform(-35, 15),
        membranes=rng.random() < (0.5 if mixed else 0.25),
    )


def _sample_direction(rng: np.random.Generator, side: float) -> Triple:
    return (side, rng.uniform(-0.25, 0.3), rng.uniform(0.05, 0.5))


def _sample_layer(rng: np.random.Generator, side: float) -> DuralLayer:
    thickness, radius = rng.uniform(2.5, 5.0), rng.uniform(22, 40)
    if rng.random() < 0.6:
        behind = rng.random() < 0.6
        centre = (0.0, rng.uniform(-65, -45) if behind else rng.uniform(25, 55), rng.uniform(15, 45))
        return DuralLayer("falx", side, thickness, centre, radius)
    centre = (side * rng.uniform(12, 26), rng.uniform(-58, -42), 0.0)
    return DuralLayer("tentorium", side, 0.8 * thickness, centre, radius)
