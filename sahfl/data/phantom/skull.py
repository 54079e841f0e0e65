"""Skull vault, skull base and scalp: the border of the brain's cavity and what surrounds it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sahfl.data.phantom.space import Field, Points, Triple, chain_distance, coverage, ellipsoid_distance
from sahfl.data.phantom.subject import Region, Subject

AIR_HU = -1000.0
FAT_HU = -90.0
SKIN_HU = 45.0
MUSCLE_HU = 57.0
SCALP_BLOOD_HU = 60.0
COMPACT_BONE_HU = 1150.0
DIPLOE_HU = 600.0
BASE_HU = 710.0
ORBITAL_ROOF_HU = 450.0
PETROUS_HU = 1500.0
MASTOID_AIR_HU = -400.0
SINUS_AIR_HU = -850.0
GLOBE_HU = 12.0

_POWER = np.float32(2.25)
"""Exponent of the superellipsoid: 2 gives an ellipsoid, larger values are boxier."""
_FLOOR_Y_MM = (-110.0, -80.0, -55.0, -31.0, -19.0, 5.0, 14.0, 36.0, 60.0, 90.0)
_FLOOR_Z_MM = (-44.0, -53.0, -60.0, -56.0, -37.0, -31.0, -25.5, -24.0, -27.0, -37.0)
"""Height of the skull base in the midline, from back to front: posterior, middle and anterior fossa."""
_DORSUM_Y_MM, _PETROUS_SLOPE = -19.0, 0.40
"""Rear border of the middle fossa: its position at the dorsum sellae, and its retreat per mm to the side."""
_CLINOID_Y_MM, _WING_SLOPE = 5.0, 0.38
"""Front border of the middle fossa: its position at the clinoids, and the slope of the sphenoid's wing there."""


@dataclass(frozen=True)
class Skull:
    """Signed distances (mm, negative inside) of one head's bony shells, each of shape (n,)."""

    region: Region
    vault: Field
    """Inner table of the vault, as if it were closed below."""
    floor: Field
    """Skull base; negative above it."""
    thickness: Field
    """Vault thickness (mm), positive."""
    face: Field
    """Distance to the outline of the soft head, which narrows less towards the neck than the vault does."""
    radius: Field
    """Distance from the head's origin."""

    @property
    def cavity(self) -> Field:
        """Distance to the brain's cavity, (n,)."""
        return np.maximum(self.vault, self.floor)


def build_skull(region: Region, subject: Subject) -> Skull:
    """Build a superellipsoid that is narrower in front, with a base of three fossae."""
    x, y, z = region.points
    radius = np.sqrt(x * x + y * y + z * z) + np.float32(1e-3)
    back = y + 3 - 4 * np.clip(-z / 60, 0, 1)
    half_width = 66 + 5 * np.clip(-y / 85, -1, 1) - 2.5 * np.clip(y / 60, 0, 1.5) ** 2
    half_height = np.where(z > 0, np.float32(74), np.float32(62))
    across = (np.abs(x) / half_width) ** _POWER + np.abs(back / 86) ** _POWER
    vault = _outline_distance(across + np.abs((z - 2) / half_height) ** _POWER, radius)
    low = np.flatnonzero(z < 0)
    face = vault.copy()
    face[low] = _outline_distance((across + np.abs((z - 2) / 100) ** _POWER)[low], radius[low])
    thickness = subject.bone_thickness_mm + 1.3 * np.clip(back / 60, 0, 1) + 1.6 * np.clip(-back / 70, 0, 1)
    thickness += 0.7 * region.noise(50)
    # The temporal squama is the thin window of the skull.
    thickness -= 2.2 * np.clip((np.abs(x) - 45) / 20, 0, 1) * np.clip(1 - np.abs(z) / 45, 0, 1)
    return Skull(region, vault, _floor_distance(region), thickness, face, radius)


def _outline_distance(powers: Field, radius: Field) -> Field:
    """Distance along the ray from the origin to the superellipsoid whose summed powers are 1."""
    shape = powers ** (1 / _POWER)
    return (shape - 1) * radius / np.maximum(shape, np.float32(0.2))


def _floor_distance(region: Region) -> Field:
    x, y, z = region.points
    aside = np.clip(np.abs(x) - 8, 0, 45)
    rear, front = _DORSUM_Y_MM - _PETROUS_SLOPE * aside, _CLINOID_Y_MM + _WING_SLOPE * aside
    within = np.clip((y - rear) / (front - rear), 0, 1)
    # The three fossae meet along an X: the middle one is narrow at the sella and wide at the temples.
    midline_y = _DORSUM_Y_MM + (_CLINOID_Y_MM - _DORSUM_Y_MM) * within + np.minimum(y - rear, 0)
    height = np.interp(midline_y + np.maximum(y - front, 0), _FLOOR_Y_MM, _FLOOR_Z_MM).astype(np.float32)
    # The temporal poles lie deeper than the sella between them.
    height -= 12 * np.clip(8 * within * (1 - within), 0, 1) * np.clip((np.abs(x) - 11) / 14, 0, 1)
    # The orbits bulge into the anterior fossa; the nose between them does not.
    height += 7 * np.exp(-(((np.abs(x) - 30) / 15) ** 2) - ((y - 48) / 20) ** 2)
    height += 1.8 * region.noise(10.5) * np.clip((y + 20) / 30, 0.25, 1)
    return (height - z) * np.float32(0.9)


def petrous_coverage(points: Points, floor: Field) -> Field:
    """Share of dense petrous bone (n,): two oblique ridges between middle and posterior fossa."""
    ridge = chain_distance(points.mirrored(), [(13, -7, -37, 3.5), (30, -18, -38, 6.0), (50, -32, -38, 9.0)])
    return coverage(ridge, 1.0) * (floor > -8)


def render_skull(skull: Skull, *, swelling: Triple | None, bone_flap: Triple | None = None) -> Field:
    """HU of scalp, bone and face at the head's points (n,), as if the cavity were solid; air outside.

    ``swelling`` and ``bone_flap`` are the directions of a scalp swelling and of a craniectomy, if there is one.
    """
    region = skull.region
    partial = region.partial_mm
    outside_bone = skull.vault - skull.thickness
    uneven = region.noise(24)
    muscle_mm = _temporalis_mm(skull, uneven)
    scalp_mm = 4.5 + 1.2 * uneven
    soft_hu: Field | float = SKIN_HU
    if swelling is not None:
        swollen_mm = _swelling_mm(skull, swelling)
        scalp_mm = scalp_mm + swollen_mm
        # The swelling contains blood under the galea.
        soft_hu = SKIN_HU + (SCALP_BLOOD_HU - SKIN_HU) * np.clip(swollen_mm / 4, 0, 1)
    outside_face = skull.face - skull.thickness
    outside_muscle = outside_face - muscle_mm
    skin = coverage(outside_muscle - scalp_mm, partial)
    # A fat layer between galea and skin; swelling widens the outer, fat-free part.
    fat = coverage(np.abs(outside_muscle - 2.2) - 1.5, 0.7)
    hu: Field = AIR_HU + (soft_hu - (soft_hu - FAT_HU) * fat - AIR_HU) * skin
    hu = _blend(hu, MUSCLE_HU + 4 * uneven, coverage(outside_muscle, partial) * (muscle_mm > 0.5))
    below = coverage(-skull.floor, 1.5) * coverage(outside_face, partial)
    hu = _blend(hu, _render_base(skull), below)
    bone = _render_bone(skull)
    above_floor = skull.floor <= 0
    present = np.float32(1) if bone_flap is None else _remaining_bone(skull, bone_flap)
    hu = _blend(hu, bone, coverage(outside_bone, partial) * above_floor * present)
    ring = coverage(np.maximum(outside_bone, -skull.vault), partial) * ~above_floor
    # The ring of bone reaches down to the foramen magnum behind, and ends at the orbits in front.
    lowest = -62 + 24 * np.clip((region.points.y + 10) / 30, 0, 1)
    hu = _blend(hu, 0.8 * bone, ring * coverage(lowest - region.points.z, 2.0))
    return _add_air_cells(hu, skull)


def _temporalis_mm(skull: Skull, uneven: Field) -> Field:
    """Thickness (n,) of the temporalis muscle, which is as dense as fresh blood, outside of thin bone."""
    across, y, z = skull.region.points.mirrored()
    bed = 1 - ((y - 18 + 0.3 * z) / 42) ** 2 - ((z + 14) / 50) ** 2
    return 9 * np.clip(bed, 0, 1) ** 0.7 * np.clip((across - 38) / 18, 0, 1) * np.clip(1 + 0.25 * uneven, 0.5, 1.5)


def _remaining_bone(skull: Skull, direction: Triple) -> Field:
    """0 where a craniectomy of 85 mm has left only scalp, 1 elsewhere, (n,); its edge is uneven."""
    aside = np.arccos(np.clip(_cosine(skull, direction), -1, 1)) * np.float32(80)
    return 1 - coverage(aside - 43 + 3 * skull.region.noise(24), 1.5)


def _swelling_mm(skull: Skull, direction: Triple) -> Field:
    """Extra scalp thickness: a cap of up to 7 mm around ``direction``."""
    return 7 * np.exp((_cosine(skull, direction) - 1) / np.float32(0.12))


def _cosine(skull: Skull, direction: Triple) -> Field:
    """Cosine (n,) of the angle between ``direction`` and each point, seen from the head's origin."""
    length = math.sqrt(sum(value * value for value in direction))
    along = sum(axis * np.float32(value / length) for axis, value in zip(skull.region.points, direction, strict=True))
    return np.asarray(along, np.float32) / skull.radius


def _render_bone(skull: Skull) -> Field:
    middle = np.abs(skull.vault - 0.52 * skull.thickness) - 0.17 * skull.thickness
    return COMPACT_BONE_HU - (COMPACT_BONE_HU - DIPLOE_HU) * coverage(middle, 0.6) + 60 * skull.region.noise(7)


def _render_base(skull: Skull) -> Field:
    """HU below the skull base: a plate of bone, muscle and fat, orbits, nose and sphenoid sinus."""
    region = skull.region
    points = region.points
    folded = points.mirrored()
    soft = FAT_HU + (MUSCLE_HU - FAT_HU) * coverage(region.noise(10.5) - 0.7, 0.25)
    in_front = points.y > 8
    plate = skull.floor < np.where(in_front, np.float32(1.2), np.float32(2.8))
    hu = np.where(plate, np.where(in_front, np.float32(ORBITAL_ROOF_HU), np.float32(BASE_HU)), soft)
    orbit = ellipsoid_distance(folded, (29, 56, -36), (17, 26, 17))
    hu = np.where((orbit < 0) & ~plate, np.float32(FAT_HU), hu)
    # Above, the plate itself is the orbit's wall.
    hu = np.where((np.abs(orbit) < 1.0) & (skull.floor > 5), np.float32(420), hu)
    nerve = chain_distance(folded, [(10, 26, -36, 1.8), (29, 58, -38, 2.0)])
    muscles = np.minimum(
        chain_distance(folded, [(14, 32, -37, 1.5), (18, 64, -38, 2.2)]),
        chain_distance(folded, [(16, 32, -37, 1.5), (41, 62, -38, 2.2)]),
    )
    hu = np.where(np.minimum(nerve, muscles) < 0, np.float32(MUSCLE_HU - 15), hu)
    globe = ellipsoid_distance(folded, (30, 68, -38), (12, 12, 12))
    hu = np.where(globe < 0, np.float32(GLOBE_HU), hu)
    hu = np.where(np.abs(globe) < 0.7, np.float32(MUSCLE_HU), hu)
    nose = np.minimum(
        ellipsoid_distance(folded, (0, 56, -44), (13, 26, 18)), ellipsoid_distance(folded, (0, 22, -37), (12, 13, 10))
    )
    septa = np.minimum(np.abs(points.x), np.abs(np.mod(points.y, 9) - 4.5)) < 0.9
    hu = np.where(nose < 0, np.where(septa, np.float32(150), np.float32(SINUS_AIR_HU)), hu)
    return np.where(np.abs(nose) < 1.0, np.float32(400), hu)


def _add_air_cells(hu: Field, skull: Skull) -> Field:
    """Add dense petrous bone, then the air of mastoid and frontal sinus inside the bone."""
    folded = skull.region.points.mirrored()
    petrous = petrous_coverage(skull.region.points, skull.floor)
    hu = _blend(hu, np.float32(PETROUS_HU), 0.95 * petrous)
    mastoid = ellipsoid_distance(folded, (55, -34, -42), (10, 14, 13)) < 0
    hu = np.where(mastoid & (skull.region.noise(4.5) > 0), np.float32(MASTOID_AIR_HU), hu)
    # The frontal sinus differs between people: lobed, lopsided, sometimes absent.
    sinus_mm = ellipsoid_distance(folded, (9, 87, -14), (13, 4.0, 14)) + 3.5 * np.clip(skull.region.noise(50), -1, 1.5)
    frontal = sinus_mm + 1.2 * np.clip(skull.region.noise(7), -1, 1) < 0
    in_bone = (skull.vault > 1.5) & (skull.vault < skull.thickness - 1.5)
    return np.where(frontal & in_bone, np.float32(SINUS_AIR_HU), hu)


def _blend(below: Field, above: Field | np.float32, share: Field) -> Field:
    return below + (above - below) * share
