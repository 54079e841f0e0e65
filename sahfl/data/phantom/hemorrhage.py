"""Distribution of blood: its share of tissue, cisterns and ventricles, and its density."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from sahfl.data.phantom.brain import Brain, tentorium_height
from sahfl.data.phantom.lesions import (
    CisternalBlood,
    Contusion,
    DuralLayer,
    EpiduralClot,
    Injury,
    SubduralClot,
    VentricularBlood,
)
from sahfl.data.phantom.mass_effect import MassEffect
from sahfl.data.phantom.space import Field, coverage, sphere_radius_mm
from sahfl.data.phantom.subject import Subject

LABELS: Mapping[str, int] = MappingProxyType({"EDH": 1, "IPH": 2, "IVH": 3, "SAH": 4, "SDH": 5})
"""Label values of the masks; 0 is background."""

_DENSITY_HU = {"EDH": 8.0, "IPH": 1.0, "IVH": -2.0, "SAH": -2.0, "SDH": 0.0}
"""Difference (HU) of each kind from the patient's clot density: mixing with CSF dilutes blood."""
_SWIRL_HU = 22.0
_MEMBRANE_HU = 20.0
_FADING_KINDS = ("IPH", "IVH")
_OCCIPITAL_FLOOR_MM = -58.0
"""End of the occipital horns: the lowest place of the ventricles in a patient who lies on the back."""
_FADE_MM = 12.0
"""Width of the zone over which subarachnoid blood thins out (mm)."""
_SEARCH_STEPS = 14


def spread_blood(brain: Brain, injury: Injury, mass: MassEffect) -> tuple[dict[str, Field], Field]:
    """Blood share of the cavity's content at each point by label name, and the share of oedema: fields (n,).

    Guarantees: shares lie in [0, 1] and their sum over the kinds is at most 1. They do not account for bone: for points
    that are partly bone, multiply by ``brain.inside``.
    """
    shares: dict[str, Field] = dict(mass.blood)
    oedema = np.zeros_like(brain.depth_mm)
    for lesion in injury.lesions:
        if isinstance(lesion, Contusion):
            share, rim = _bruise(brain, lesion)
            oedema = np.maximum(oedema, rim)
            _merge(shares, "IPH", share)
        elif isinstance(lesion, CisternalBlood):
            _merge(shares, "SAH", _fill_cisterns(brain, lesion))
        elif isinstance(lesion, VentricularBlood):
            _merge(shares, "IVH", _fill_ventricles(brain, lesion))
        elif isinstance(lesion, DuralLayer):
            _merge(shares, "SDH", _line_dura(brain, lesion))
    room = np.ones_like(brain.depth_mm)
    for name, share in shares.items():
        shares[name] = np.clip(share, 0, 1) * room
        room = room - shares[name]
    return shares, oedema


def mix_blood(hu: Field, brain: Brain, shares: Mapping[str, Field], injury: Injury, subject: Subject) -> Field:
    """HU (n,) after each kind of blood has replaced its share of every point."""
    subdurals = [lesion for lesion in injury.lesions if isinstance(lesion, SubduralClot)]
    swirling = {
        "EDH": any(isinstance(lesion, EpiduralClot) and lesion.swirl for lesion in injury.lesions),
        "SDH": any(lesion.swirl for lesion in subdurals),
    }
    for name, share in shares.items():
        clot = subject.blood_hu + _DENSITY_HU[name] + 4.0 * brain.region.noise(7)
        if swirling.get(name):
            clot = clot - _SWIRL_HU * coverage(0.6 - brain.region.noise(10.5), 0.25)
        if name in _FADING_KINDS:
            clot = clot - np.float32(injury.faded_hu)
        if name == "SDH" and subdurals:
            # Both sides of a patient bled at about the same time, so the first collection represents all.
            clot = clot - _darken_with_age(brain, subdurals[0])
        hu = hu + (clot - hu) * share
    return hu


def _darken_with_age(brain: Brain, lesion: SubduralClot) -> Field:
    """HU (n,) that old subdural blood has lost: the same everywhere, except less in settled cells and in membranes."""
    lost = np.full_like(brain.depth_mm, lesion.darkening_hu)
    if lesion.settled_hu > 0:
        under = coverage(brain.points.y - np.float32(lesion.level_y_mm) - 2 * brain.region.noise(16), 2.5)
        lost -= np.float32(lesion.settled_hu) * under
    if lesion.membranes:
        lost -= np.float32(_MEMBRANE_HU) * coverage(np.abs(brain.region.noise(10.5)) - 0.1, 0.1)
    return lost


def _line_dura(brain: Brain, lesion: DuralLayer) -> Field:
    """A sheet that is thickest in its middle, on one side of the falx or over one half of the tentorium."""
    x, y, z = brain.points
    if lesion.dura == "falx":
        to_dura, aside = x * np.float32(lesion.side), z - np.float32(lesion.centre[2])
    else:
        to_dura, aside = tentorium_height(brain.points) * np.float32(0.9), x - np.float32(lesion.centre[0])
    away = np.sqrt((y - np.float32(lesion.centre[1])) ** 2 + aside**2) / np.float32(lesion.radius_mm)
    uneven = 1 + 0.2 * np.clip(brain.region.noise(16), -1.5, 1.5)
    thickness = lesion.thickness_mm * uneven * np.clip(1.6 * (1 - away**2), 0, 1)
    sheet = coverage(np.abs(to_dura - thickness / 2) - thickness / 2, brain.region.partial_mm) * (thickness > 0.5)
    if lesion.dura == "tentorium":
        sheet *= (y < -26) & (np.sign(x) == lesion.side)
    return sheet * np.float32(0.9) * (1 - brain.stem)


def _merge(shares: dict[str, Field], name: str, share: Field) -> None:
    shares[name] = np.maximum(shares[name], share) if name in shares else share


def _bruise(brain: Brain, lesion: Contusion) -> tuple[Field, Field]:
    """A ragged ellipsoid in the tissue and its rim of oedema."""
    region = brain.region
    radius = sphere_radius_mm(lesion.volume_ml)
    squared = sum(((axis - c) / q) ** 2 for axis, c, q in zip(brain.points, lesion.centre, lesion.aspect, strict=True))
    distance = np.sqrt(np.asarray(squared, np.float32)) - np.float32(radius)
    distance += np.float32(0.2 * radius) * region.noise(10.5)
    distance += np.float32(lesion.raggedness * radius) * region.noise(4.5)
    tissue = coverage(-brain.pial_depth_mm, region.partial_mm) * (1 - brain.ventricle)
    rim = coverage(distance - np.float32(lesion.oedema_mm), 2.0) * tissue * (1 - brain.csf)
    return coverage(distance, region.partial_mm) * tissue, rim


def _fill_cisterns(brain: Brain, lesion: CisternalBlood) -> Field:
    """Share of blood (n,) in subarachnoid CSF; it spreads from the source until the lesion's volume is used up."""
    region = brain.region
    x, y, z = brain.points
    source_x, source_y, source_z = lesion.source
    # Blood of a midline aneurysm spreads to both sides more easily than to one.
    across = 1.35 if abs(source_x) < 5 else 1.0
    distance = np.sqrt(((x - source_x) / across) ** 2 + 0.8 * (y - source_y) ** 2 + (1.1 * (z - source_z)) ** 2)
    shallow = np.clip(14 - brain.vault_depth_mm, 0, 14) / 14
    # Blood sinks into the basal cisterns from any source.
    basal = np.clip((-4 - z) / 10, 0, 1)
    eased = lesion.basal_mm * basal + lesion.sulcal_spread * 16 * shallow + lesion.patchy_mm * region.noise(16)
    nearness = eased - distance
    density = lesion.density * (0.88 + 0.12 * region.noise(4.5))
    # Blood collects in sulci; little stays in the thin space over the convexity.
    space = brain.csf * (1 - brain.ventricle) * np.where(brain.depth_mm < 1.2, np.float32(0.25), np.float32(1))
    in_brain = coverage(-brain.pial_depth_mm, region.partial_mm)
    widened = coverage(brain.cistern_mm - np.float32(1.2 * lesion.expansion_mm), region.partial_mm)
    widened *= (1 - brain.stem) * in_brain

    def fill(reach_mm: float) -> Field:
        concentration = np.clip((nearness + np.float32(reach_mm)) / _FADE_MM, 0, 1) * density
        share = np.clip(concentration, 0, 1) * space
        return np.maximum(share, widened * np.clip(1.1 * concentration - 0.35, 0, 1))

    def volume_ml(reach_mm: float) -> float:
        return float((fill(reach_mm) * brain.inside).sum(dtype=np.float64)) * region.grid.layer_ml

    return fill(_solve(volume_ml, lesion.volume_ml))


def _solve(volume_ml: Callable[[float], float], target_ml: float) -> float:
    """The reach (mm) at which the filled volume is ``target_ml``; the largest reach if there is less space."""
    low, high = -40.0, 160.0
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) / 2
        if volume_ml(middle) < target_ml:
            low = middle
        else:
            high = middle
    return high


def _fill_ventricles(brain: Brain, lesion: VentricularBlood) -> Field:
    """A fluid level in the dependent horns, or a cast around the lesion's source."""
    if lesion.cast_mm > 0:
        uneven = min(6.0, 0.25 * lesion.cast_mm) * brain.region.noise(16)
        distance = brain.points.distance_to(lesion.source) - lesion.cast_mm - uneven
        filled = coverage(distance, 3.0)
    else:
        filled = coverage(brain.points.y - (_OCCIPITAL_FLOOR_MM + lesion.level_mm), 1.5)
    return brain.ventricle * filled * np.float32(lesion.density)
