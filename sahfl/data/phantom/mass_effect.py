"""Extra-axial clots, and the displacement of the brain by lesions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sahfl.data.phantom.lesions import Contusion, EpiduralClot, Injury, SubduralClot
from sahfl.data.phantom.skull import Skull
from sahfl.data.phantom.space import Field, Triple, coverage, sphere_radius_mm

VAULT_RADIUS_MM = 72.0
"""Mean radius of the vault; converts angles to lengths along it (mm)."""


@dataclass(frozen=True)
class MassEffect:
    """Displacement of the brain inside the cavity; fields of shape (n,)."""

    shift_x_mm: Field
    """Distance that tissue moved to the right (mm)."""
    clot_mm: Field
    """Thickness of the extra-axial clot between the inner table and the brain."""
    blood: dict[str, Field]
    """Blood share of the cavity's content by label name, for the extra-axial kinds."""


def displace_brain(skull: Skull, injury: Injury, rng: np.random.Generator) -> MassEffect:
    """Place extra-axial clots under the vault, and shift the midline away from every lesion.

    Source: the shift is 0.42 of a clot's thickness, at most 13 mm (estimate).
    """
    x = skull.region.points.x
    shift, clot = np.zeros_like(x), np.zeros_like(x)
    blood: dict[str, Field] = {}
    for lesion in injury.lesions:
        if isinstance(lesion, Contusion):
            push = min(0.22 * sphere_radius_mm(lesion.volume_ml), 7.0)
            shift -= math.copysign(push, lesion.centre[0]) * _push_field(skull, lesion.centre, 40)
        if not isinstance(lesion, EpiduralClot | SubduralClot):
            continue
        label = "EDH" if isinstance(lesion, EpiduralClot) else "SDH"
        thickness, greatest = _lens(skull, lesion) if isinstance(lesion, EpiduralClot) else _crescent(skull, lesion)
        thickness = np.maximum(thickness, 0)
        share = coverage(-skull.cavity - thickness, skull.region.partial_mm) * (thickness > 0.3)
        share *= np.float32(lesion.density if isinstance(lesion, SubduralClot) else 1.0)
        blood[label] = np.maximum(blood.get(label, np.float32(0)), share)
        clot = np.maximum(clot, thickness)
        push = min(0.42 * greatest, 13.0) * rng.uniform(0.6, 1.2)
        ux, uy, uz = _unit(lesion.direction)
        shift -= math.copysign(push, ux) * _push_field(skull, (55 * ux, 55 * uy, 55 * uz), 45)
    return MassEffect(shift, clot, blood)


def _unit(direction: Triple) -> Triple:
    length = math.sqrt(sum(value * value for value in direction))
    return (direction[0] / length, direction[1] / length, direction[2] / length)


def _push_field(skull: Skull, centre: Triple, width_mm: float) -> Field:
    """Share of a displacement at each point (n,): bell-shaped along the midline, zero at the vault."""
    x, y, z = skull.region.points
    bell = np.exp(-((y - centre[1]) ** 2 + (z - centre[2]) ** 2) / np.float32(2 * width_mm**2))
    return bell * np.clip(1 - np.abs(x) / 72, 0, 1) ** np.float32(0.6)


def _angle_to(skull: Skull, direction: Triple) -> Field:
    x, y, z = skull.region.points
    ux, uy, uz = direction
    return np.arccos(np.clip((x * ux + y * uy + z * uz) / skull.radius, -1, 1))


def _lens(skull: Skull, clot: EpiduralClot) -> tuple[Field, float]:
    """Thickness field and greatest thickness (mm) of a half ellipsoid of the lesion's volume."""
    base = (clot.volume_ml * 1000 / (2 / 3 * math.pi * clot.thickness_ratio)) ** (1 / 3)
    greatest = clot.thickness_ratio * base
    along = _angle_to(skull, _unit(clot.direction)) * np.float32(VAULT_RADIUS_MM / base)
    profile = np.sqrt(np.clip(1 - along * along, 0, 1))
    return greatest * profile * (1 + 0.10 * skull.region.noise(24)), greatest


def _crescent(skull: Skull, clot: SubduralClot) -> tuple[Field, float]:
    """Thickness field and greatest thickness (mm), longest from front to back, ending at the midline."""
    centre = np.array(_unit(clot.direction))
    forward = np.array([0, 1, 0.15]) - centre * (centre @ [0, 1, 0.15])
    forward /= np.linalg.norm(forward)
    upward = np.cross(centre, forward)
    x, y, z = skull.region.points
    ahead = (x * forward[0] + y * forward[1] + z * forward[2]).astype(np.float32)
    above = (x * upward[0] + y * upward[1] + z * upward[2]).astype(np.float32)
    aside = np.sqrt(ahead**2 + above**2 + np.float32(1e-6))
    angle = _angle_to(skull, _unit(clot.direction))
    half_ahead, half_above = clot.half_angles_rad
    along = np.sqrt((angle * ahead / aside / half_ahead) ** 2 + (angle * above / aside / half_above) ** 2)
    profile = np.clip(1 - along ** np.float32(2.2), 0, 1) ** np.float32(0.7)
    one_sided = np.clip((math.copysign(1.0, clot.direction[0]) * x - 2) / 6, 0, 1)
    return clot.thickness_mm * profile * (1 + 0.22 * skull.region.noise(16)) * one_sided, clot.thickness_mm
