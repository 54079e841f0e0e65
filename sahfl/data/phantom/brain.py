"""Geometry of brain surface, CSF spaces and dura; other modules fill in tissue and blood."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from sahfl.data.phantom.mass_effect import MassEffect
from sahfl.data.phantom.skull import Skull
from sahfl.data.phantom.space import (
    CENTRE_HEIGHT_MM,
    REACH_MM,
    Ball,
    Field,
    Points,
    chain_distance,
    coverage,
    ellipsoid_distance,
)
from sahfl.data.phantom.subject import Region, Subject

_SULCUS_LENGTH_MM = 7.0
_SULCUS_GRADIENT = 0.158
"""Typical slope (per mm) of a unit-variance field of that length; converts its values to distances."""


@dataclass(frozen=True)
class Brain:
    """Geometry inside one cavity; fields of shape (n,), distances in mm (negative inside), shares 0 to 1."""

    region: Region
    points: Points
    """Coordinates before the brain was displaced; anatomy is defined in them."""
    depth_mm: Field
    """Depth below the inner table, positive inside."""
    vault_depth_mm: Field
    """Depth below the vault only: large over the skull base."""
    inside: Field
    """Share of the voxel inside the cavity."""
    pial_depth_mm: Field
    """Depth below the brain's surface, positive inside."""
    cistern_mm: Field
    """Distance to the nearest cistern or fissure."""
    cortex_mm: Field
    """Distance to the nearest CSF beside cortex."""
    ventricle: Field
    csf: Field
    """Subarachnoid share, without the ventricles."""
    stem: Field
    """Share of brainstem."""
    below_tentorium: Field
    """1 in the posterior fossa."""
    dura: Field
    """Share of falx and tentorium."""
    sinus: Field
    """Share of venous sinus."""


def build_brain(skull: Skull, subject: Subject, mass: MassEffect, *, hydrocephalus: float) -> Brain:
    """Fill the cavity of ``skull`` with a brain that the lesions of ``mass`` have displaced."""
    region = skull.region
    partial = region.partial_mm
    points = region.points.shifted(mass.shift_x_mm)
    gap = np.where(mass.clot_mm > 1, np.float32(0.4), np.float32(subject.convexity_gap_mm))
    pial_depth = -np.maximum(skull.cavity + gap + mass.clot_mm, skull.floor + 1)
    tentorium = tentorium_height(points)
    # The tentorium is fixed to the petrous ridges, which recede to the sides.
    below = ((points.y < -8 - 0.4 * np.abs(points.x)) & (tentorium < 0)).astype(np.float32)
    stem = coverage(chain_distance(points, [(0, -20, -6, 14), (0, -22, -30, 13), (0, -36, -62, 8)]), partial)
    ventricle = coverage(_ventricles(points, subject.ventricle_width * (1 + hydrocephalus)), partial)
    posterior = _posterior_cisterns(points, subject.cistern_width)
    cistern = np.where(below > 0, posterior, np.minimum(posterior, _fissures(region, points, subject.cistern_width)))
    sulcus, cortex = _sulci(region, points, subject, pial_depth, mass.clot_mm)
    in_sulcus = coverage(sulcus, partial) * (1 - 0.65 * below) * (1 - stem) * (1 - ventricle)
    in_cistern = coverage(cistern, partial) * (1 - stem)
    inside, in_brain = coverage(skull.cavity, partial), coverage(-pial_depth, partial)
    return Brain(
        region=region,
        points=points,
        depth_mm=-skull.cavity,
        vault_depth_mm=-skull.vault,
        inside=inside,
        pial_depth_mm=pial_depth,
        cistern_mm=cistern,
        cortex_mm=np.minimum(cortex, np.maximum(cistern, 0)),
        ventricle=ventricle,
        csf=1 - (1 - in_cistern) * (1 - in_sulcus) * in_brain,
        stem=stem,
        below_tentorium=below,
        dura=np.maximum(0.9 * _falx(points), 0.8 * _tentorium(points, tentorium)),
        sinus=coverage(_sinuses(points), partial),
    )


def _fissures(region: Region, points: Points, width: float) -> Field:
    """Suprasellar star, sylvian and interhemispheric fissures, insular cisterns."""
    folded = points.mirrored()
    chains: list[list[Ball]] = [
        [(0, 9, -17, 3.4 * width), (13, 17, -15, 1.6 * width), (27, 13, -14, 1.5 * width)],
        [(0, 9, -17, 3.2 * width), (0, 27, -15, 1.2 * width)],
        [(0, 0, -18, 2.6 * width), (0, -9, -18, 1.9 * width)],
    ]
    star = np.minimum.reduce([chain_distance(folded, chain) for chain in chains])
    x, y, z = folded
    wobble = region.noise(16)
    # Sylvian fissure: a sheet from its stem to the lateral surface, then up and back; its ends taper off.
    height = -13 + 0.33 * (x - 25) + 0.28 * np.clip(10 - y, 0, 60) * np.clip((x - 34) / 12, 0, 1)
    half_width = (0.5 + 0.65 * width) * np.clip(1.25 - 0.012 * np.clip(10 - y, 0, 60), 0.5, 1.3)
    end = np.maximum(25 - x, np.maximum(y - 17 + 0.10 * (x - 25), -(y + 26 - 0.25 * np.clip(x - 40, 0, 30))))
    sylvian = np.abs(z - height + 2.4 * wobble) - half_width * np.clip(-end / 5, -1, 1)
    surface = 40 - 0.020 * (y + 2) ** 2 - 0.03 * (z - 2) ** 2
    near_insula = 1.15 - ((y + 2) / 20) ** 2 - ((z - 2) / 16) ** 2
    insular = np.abs(x - surface - 1.8 * region.noise(10.5)) - 1.0 * width * np.clip(near_insula, -1, 1)
    return np.minimum.reduce([star, sylvian, insular, _interhemispheric(region, points, width)])


def _interhemispheric(region: Region, points: Points, width: float) -> Field:
    x, y, z = points
    wide = 0.6 + 0.4 * np.clip(y / 40, 0, 1) + 0.2 * np.clip((z - 45) / 20, 0, 1)
    sheet = np.abs(x + 0.7 * region.noise(24)) - (0.9 + 0.5 * width) * wide
    lower_edge = np.where(y > 25, -(z + 20), np.where(y < -40, -(z - 2), 24 - z))
    return np.maximum(sheet, lower_edge)


def _posterior_cisterns(points: Points, width: float) -> Field:
    """Crural, ambient, quadrigeminal, prepontine and great cisterns."""
    folded = points.mirrored()
    crural: list[Ball] = [
        (0, 9, -17, 3.4 * width),
        (9, -4, -16, 1.6 * width),
        (17, -16, -15, 1.3 * width),
        (17, -28, -10, 1.4 * width),
        (6, -36, -2, 1.8 * width),
    ]
    quadrigeminal: list[Ball] = [(0, -36, -2, 2.4 * width), (8, -35, -3, 1.6 * width)]
    x, y, z = points
    prepontine = np.abs(np.sqrt(x * x + (y + 20) ** 2) - 16.5) - 1.2 * width
    prepontine = np.maximum.reduce([prepontine, z + 17, -(z + 46), -(y + 22)])
    great = ellipsoid_distance(points, (0, -78, -52), (12 * width, 9 * width, 9))
    return np.minimum.reduce([chain_distance(folded, crural), chain_distance(folded, quadrigeminal), prepontine, great])


def _sulci(region: Region, points: Points, subject: Subject, pial_depth: Field, clot_mm: Field) -> tuple[Field, Field]:
    """Signed distance to the sulci, and distance of tissue from them, both (n,) in mm.

    Sulci are the zero surface of a noise field sampled along rays from the centre, so they run perpendicular to the
    surface. A clot above them compresses them.
    """
    radius = np.sqrt(points.x**2 + points.y**2 + points.z**2)
    outward = (60 / np.maximum(radius, 18)) ** np.float32(0.8)
    field = region.bank.volume(_SULCUS_LENGTH_MM)
    centre = (0.0, 0.0, CENTRE_HEIGHT_MM)
    spacing = (*region.grid.spacing_mm[:2], region.grid.spacing_mm[2] / region.grid.n_sub)
    at = [
        (axis * outward - middle) / step + (n - 1) / 2
        for axis, middle, step, n in zip(points, centre, spacing, field.shape, strict=True)
    ]
    sheet = np.abs(ndimage.map_coordinates(field, at, order=1, mode="reflect")) / np.float32(_SULCUS_GRADIENT)
    depth = 15 + 5 * region.noise(16)
    # Sulci open towards the vertex, in the young too.
    width = 0.8 + 0.85 * subject.atrophy + 0.3 * region.noise(50) + 0.5 * np.clip((points.z - 15) / 30, 0, 1)
    half_width = np.maximum(width, 0.3) * np.clip(1.25 - pial_depth / np.maximum(depth, 4), 0, 1) ** np.float32(0.6)
    half_width *= 1 - np.clip(clot_mm / 5, 0, 1)
    sulcus = np.maximum(sheet - half_width, pial_depth - depth)
    sulcus = np.where(points.z < -30, np.float32(REACH_MM), sulcus)
    cortex = np.maximum(sheet - half_width, 0) + np.where(pial_depth > depth, np.float32(6), np.float32(0))
    return sulcus, np.minimum(pial_depth, cortex)


def _ventricles(points: Points, width: float) -> Field:
    folded = points.mirrored()
    body = [
        (13, 33, 5, 2.0),
        (9, 23, 8, 3.4),
        (7, 9, 13, 4.0),
        (11, -6, 19, 4.0),
        (14, -20, 19, 4.2),
        (23, -38, 10, 5.6),
        (21, -58, 2, 2.4),
    ]
    temporal_horn = [(23, -38, 8, 3.6), (33, -22, -9, 1.6), (31, -2, -19, 1.3)]
    lateral = np.minimum(
        chain_distance(folded, [(x, y, z, r * width) for x, y, z, r in body]),
        chain_distance(folded, [(x, y, z, r * width) for x, y, z, r in temporal_horn]),
    )
    lateral = np.maximum(lateral, 1.1 - folded.x)  # septum
    third = ellipsoid_distance(points, (0, -6, -1), (1.6 * width**1.4, 15, 10))
    aqueduct = chain_distance(points, [(0, -20, -4, 0.8), (0, -34, -26, 0.9)])
    fourth = ellipsoid_distance(points, (0, -40, -34), (6 * width, 5, 8))
    return np.minimum.reduce([lateral, third, aqueduct, fourth])


def tentorium_height(points: Points) -> Field:
    """Height (mm) of points above the tentorium, (n,): a tent with its ridge in the midline."""
    x, y, z = points
    ridge = 18 * np.exp(-((x / 14) ** 2)) * np.clip((-y - 25) / 40, 0, 1)
    return z - (-8 - 0.42 * np.abs(x) + 0.10 * (y + 40) + ridge)


def _tentorium(points: Points, height: Field) -> Field:
    near = (points.y < -26) & (np.abs(points.x) < 60)
    return coverage(np.where(near, np.abs(height) * np.float32(0.9) - np.float32(0.7), np.float32(REACH_MM)), 0.9)


def _falx(points: Points) -> Field:
    x, y, z = points
    lower_edge = np.where(y > 20, -(z + 8), np.where(y < -45, -(z - 4), 34 - z))
    return coverage(np.maximum(np.abs(x) - np.float32(0.55), lower_edge), 0.9)


def _sinuses(points: Points) -> Field:
    sagittal = chain_distance(points, [(0, -83, 8, 3.2), (0, -60, 60, 3.0)])
    transverse = chain_distance(points.mirrored(), [(4, -84, -6, 2.8), (52, -52, -16, 3.0)])
    return np.minimum(sagittal, transverse)
