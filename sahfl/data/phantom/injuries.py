"""Amounts and places of bleeding: injuries drawn from published volume distributions.

Sources: intraparenchymal volumes are log-normal with median 6.3 mL and IQR 1.7-15 mL (525 real masks); aneurysmal SAH
39.7 +- 32.8 mL (Boers et al., AJNR 2014). The extents of extra-axial clots and the shares of kinds and places are
estimates: craniectomies 12 %, old or mixed subdurals a third, blood along falx or tentorium a fifth of acute subdurals,
traumatic subarachnoid blood 35 %, diffusely filled cisterns 30 % of thick aneurysmal SAH, treated aneurysms 20 %,
ventricular drains 15 %, faded clots 12 %. Densities and extents were set to two targets: masks with a median of 20-30
mL in aneurysmal SAH, and the HU, thickness and pieces per slice of each kind measured on 72 real slices
(``tests/data/test_phantom_values.py``). No value was ever set by a network's scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sahfl.data.phantom.lesions import (
    CisternalBlood,
    Contusion,
    EpiduralClot,
    Injury,
    Lesion,
    Metal,
    PhantomKind,
    VentricularBlood,
)
from sahfl.data.phantom.space import Triple, sphere_radius_mm
from sahfl.data.phantom.subdurals import sample_subdurals

SAH_MEDIAN_ML = 33.0
"""Median volume of subarachnoid blood; Boers 2014: 31 mL, cisterns alone 7 to 17 mL (Foettinger et al., JAHA 2024)."""
SAH_SIGMA = 0.72
"""Log-normal sigma of that volume, from 39.7 +- 32.8 mL (Boers 2014)."""
THICK_ABOVE_ML = 18.0
"""Limit between thin (Fisher 1, 2) and thick (Fisher 3, 4) clot; divides the volumes about 1 to 2."""

_ANEURYSMS: tuple[tuple[Triple, Triple], ...] = (
    ((0, 18, -13), (8, 38, -2)),  # anterior communicating artery
    ((30, 12, -12), (42, 6, -6)),  # middle cerebral artery
    ((11, 2, -16), (34, 0, -16)),  # posterior communicating artery
    ((0, -10, -17), (10, -20, 0)),  # basilar artery
)
"""Places where aneurysms rupture, and the place of a clot in the tissue beside each; the side is drawn."""
_SPECK_PLACES: tuple[Triple, ...] = ((22, -48, 6), (23, -38, 9), (13, -20, 18), (8, 14, 10), (0, -6, -1), (0, -40, -34))
"""Occipital horn, atrium, body, frontal horn, third and fourth ventricle."""


def sample_injury(rng: np.random.Generator, kind: PhantomKind) -> Injury:
    """Draw the lesions of one case of this kind."""
    samplers: dict[PhantomKind, Callable[[np.random.Generator], Injury]] = {
        "normal": lambda _: Injury(),
        "tbi": _sample_trauma,
        "sah": _sample_aneurysm,
    }
    return samplers[kind](rng)


def _log_normal(rng: np.random.Generator, median: float, sigma: float, limits: tuple[float, float]) -> float:
    return min(max(median * math.exp(rng.normal(0, sigma)), limits[0]), limits[1])


def _sample_trauma(rng: np.random.Generator) -> Injury:
    side = float(rng.choice([-1, 1]))
    kinds = ["epidural", "subdural", "contusion", "subdural contusion", "epidural contusion"]
    kind = str(rng.choice(kinds, p=[0.26, 0.34, 0.20, 0.12, 0.08]))
    lesions: list[Lesion] = []
    swelling: Triple = (side, rng.uniform(-0.4, 0.6), rng.uniform(0.0, 0.7))
    if "epidural" in kind:
        lesions.append(_sample_epidural(rng, side))
    if "subdural" in kind:
        lesions += sample_subdurals(rng, side)
    if "contusion" in kind:
        n_contusions = 1 + int(rng.random() < 0.45) + int(rng.random() < 0.2)
        for _ in range(n_contusions):
            lesions += _with_satellites(rng, _sample_contusion(rng))
    elif rng.random() < 0.12:
        lesions += _sample_deep_clot(rng, side)
    if rng.random() < 0.2:
        lesions.append(_sample_little_ventricular_blood(rng, side))
    if rng.random() < 0.35:
        lesions.append(_sample_convexity_blood(rng, side))
    bone_flap: Triple = (side, rng.uniform(-0.1, 0.4), rng.uniform(0.1, 0.6))
    return Injury(
        tuple(lesions),
        faded_hu=rng.uniform(10, 22) if rng.random() < 0.12 else 0.0,
        swelling=swelling if rng.random() < 0.5 else None,
        bone_flap=bone_flap if rng.random() < 0.12 else None,
    )


def _sample_epidural(rng: np.random.Generator, side: float) -> EpiduralClot:
    temporal: Triple = (side, rng.uniform(-0.35, 0.55), rng.uniform(-0.15, 0.55))
    frontal: Triple = (side * 0.55, float(rng.choice([-1, 1])) * 0.8, rng.uniform(0, 0.5))
    return EpiduralClot(
        direction=temporal if rng.random() < 0.75 else frontal,
        volume_ml=_log_normal(rng, 11, 0.9, (1, 90)),
        thickness_ratio=rng.uniform(0.22, 0.5),
        swirl=rng.random() < 0.2,
    )


def _sample_contusion(rng: np.random.Generator) -> Contusion:
    side = float(rng.choice([-1, 1]))
    where = rng.random()
    # Frontal and temporal poles strike bone; the rest lies anywhere in the hemispheres.
    if where < 0.45:
        centre = (side * rng.uniform(14, 34), rng.uniform(44, 60), rng.uniform(-12, 12))
    elif where < 0.8:
        centre = (side * rng.uniform(38, 50), rng.uniform(-20, 16), rng.uniform(-26, -10))
    else:
        centre = (side * rng.uniform(18, 42), rng.uniform(-55, 25), rng.uniform(10, 45))
    return Contusion(
        centre=centre,
        volume_ml=_log_normal(rng, 6.3, 1.2, (0.15, 60)),
        aspect=_sample_aspect(rng, 0.75, 1.35),
        raggedness=rng.uniform(0.06, 0.25),
        oedema_mm=rng.uniform(2, 7),
    )


def _with_satellites(rng: np.random.Generator, clot: Contusion) -> list[Contusion]:
    """The clot, and in two of five cases up to three droplets of blood around it."""
    n_satellites = int(rng.integers(1, 4)) if rng.random() < 0.4 else 0
    radius = sphere_radius_mm(clot.volume_ml)
    clots = [clot]
    for _ in range(n_satellites):
        away = rng.normal(size=3)
        away *= (1.3 * radius + rng.uniform(3, 9)) / np.linalg.norm(away)
        x, y, z = (float(c + step) for c, step in zip(clot.centre, away, strict=True))
        volume = _log_normal(rng, 0.25, 0.6, (0.08, 0.8))
        clots.append(Contusion((x, y, z), volume, _sample_aspect(rng, 0.7, 1.4), 0.15, oedema_mm=rng.uniform(1, 3)))
    return clots


def _sample_deep_clot(rng: np.random.Generator, side: float) -> list[Lesion]:
    """A clot of the basal ganglia or the thalamus, which often ruptures into the ventricles and fills them."""
    centre: Triple = (side * rng.uniform(12, 27), rng.uniform(-20, 14), rng.uniform(0, 14))
    clot = Contusion(
        centre=centre,
        volume_ml=_log_normal(rng, 6.3, 1.2, (0.5, 60)),
        aspect=_sample_aspect(rng, 0.75, 1.4),
        raggedness=rng.uniform(0.08, 0.25),
        oedema_mm=rng.uniform(1, 5),
    )
    if rng.random() < 0.5:
        return [clot]
    return [clot, VentricularBlood(level_mm=0.0, cast_mm=rng.uniform(15, 45), density=1.0, source=centre)]


def _sample_aspect(rng: np.random.Generator, low: float, high: float) -> Triple:
    x, y, z = (rng.uniform(low, high) for _ in range(3))
    size = (x * y * z) ** (1 / 3)
    return (x / size, y / size, z / size)


def _sample_little_ventricular_blood(rng: np.random.Generator, side: float) -> VentricularBlood:
    """Ventricular blood after trauma: a thin layer or, in a third of the cases, a speck."""
    if rng.random() < 0.33:
        x, y, z = _SPECK_PLACES[int(rng.integers(len(_SPECK_PLACES)))]
        return VentricularBlood(level_mm=0.0, cast_mm=rng.uniform(4, 9), density=1.0, source=(side * x, y, z))
    return VentricularBlood(level_mm=rng.uniform(2, 5) if rng.random() < 0.5 else rng.uniform(5, 12), cast_mm=0.0)


def _sample_convexity_blood(rng: np.random.Generator, side: float) -> CisternalBlood:
    """Traumatic SAH: a few millilitres in the sulci of one convexity or a sylvian fissure."""
    return CisternalBlood(
        source=(side * rng.uniform(40, 58), rng.uniform(-40, 35), rng.uniform(-5, 45)),
        volume_ml=_log_normal(rng, 4.0, 0.7, (0.8, 15)),
        density=rng.uniform(0.85, 1.15),
        expansion_mm=0.0,
        sulcal_spread=1.2,
        basal_mm=0.0,
        patchy_mm=14.0,
    )


def _sample_aneurysm(rng: np.random.Generator) -> Injury:
    (x, y, z), beside = _ANEURYSMS[int(rng.choice(4, p=[0.36, 0.24, 0.27, 0.13]))]
    side = float(rng.choice([-1, 1]))
    volume = _log_normal(rng, SAH_MEDIAN_ML, SAH_SIGMA, (5, 110))
    thick = volume > THICK_ABOVE_ML
    source: Triple = (side * x, y, z)
    lesions: list[Lesion] = [_sample_cisternal_blood(rng, source, volume)]
    if rng.random() < (0.43 if thick else 0.33):
        if rng.random() < 0.7:
            lesions.append(VentricularBlood(level_mm=rng.uniform(2, 14), cast_mm=0.0))
        else:
            lesions.append(VentricularBlood(level_mm=0.0, cast_mm=rng.uniform(15, 40), density=1.0))
    if thick and rng.random() < 0.2:
        x, y, z = beside
        volume = _log_normal(rng, 12, 0.7, (1, 50))
        aspect = _sample_aspect(rng, 0.7, 1.4)
        lesions.append(Contusion((side * x, y, z), volume, aspect, raggedness=0.15, oedema_mm=rng.uniform(1, 4)))
    drain_side = float(rng.choice([-1, 1])) if rng.random() < 0.15 else 0.0
    return Injury(
        tuple(lesions),
        hydrocephalus=rng.uniform(0, 0.45),
        drain_side=drain_side,
        metal=_sample_metal(rng, source) if rng.random() < 0.2 else None,
    )


def _sample_cisternal_blood(rng: np.random.Generator, source: Triple, volume_ml: float) -> CisternalBlood:
    thick = volume_ml > THICK_ABOVE_ML
    diffuse = thick and rng.random() < 0.3
    return CisternalBlood(
        source=source,
        volume_ml=volume_ml,
        density=rng.uniform(0.97, 1.3) if thick else rng.uniform(0.9, 1.12),
        expansion_mm=rng.uniform(0.6, 1.3) if diffuse else rng.uniform(0.0, 0.2),
        sulcal_spread=rng.uniform(0.5, 1.9),
        basal_mm=rng.uniform(25, 40) if diffuse else 8.0,
    )


def _sample_metal(rng: np.random.Generator, source: Triple) -> Metal:
    """Coils in two of three, else a clip."""
    if rng.random() < 0.67:
        return Metal(source, radius_mm=rng.uniform(2.0, 4.5), length_mm=0.0)
    return Metal(source, radius_mm=rng.uniform(0.8, 1.2), length_mm=rng.uniform(7, 14))
