"""One synthetic patient: from a seed to an image and its mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sahfl.data.phantom.acquisition import add_headrest, harden_beam, scan
from sahfl.data.phantom.brain import build_brain
from sahfl.data.phantom.hemorrhage import mix_blood, spread_blood
from sahfl.data.phantom.injuries import sample_injury
from sahfl.data.phantom.lesions import Injury, PhantomKind
from sahfl.data.phantom.mass_effect import displace_brain
from sahfl.data.phantom.metal import add_metal, metal_distance, outlined_share
from sahfl.data.phantom.noise import NoiseBank
from sahfl.data.phantom.profiles import ScannerProfile
from sahfl.data.phantom.rater import draw_label
from sahfl.data.phantom.skull import AIR_HU, Skull, build_skull, petrous_coverage, render_skull
from sahfl.data.phantom.space import Field, Grid
from sahfl.data.phantom.subject import Subject, place_head, sample_subject
from sahfl.data.phantom.tissue import add_calcifications, add_drain, render_tissue


@dataclass(frozen=True)
class PhantomCase:
    """A synthetic head CT with its mask; it contains no data of a patient."""

    image: NDArray[np.int16]
    """(X, Y, Z) in HU, axes RAS+."""
    label: NDArray[np.uint8]
    """(X, Y, Z): 0 is background, other values are in ``LABELS``."""
    affine: NDArray[np.float64]
    """(4, 4) voxel index to mm, RAS+, diagonal; the head's centre is near the origin."""
    seed: int
    kind: PhantomKind


def make_case(
    seed: int,
    *,
    kind: PhantomKind,
    profile: ScannerProfile,
    shape: tuple[int, int, int] = (128, 128, 32),
    spacing_mm: tuple[float, float, float] = (1.8, 1.8, 5.0),
) -> PhantomCase:
    """Build one case; its seed is 0 or greater, and a head needs a grid of about 160 x 200 x 150 mm.

    Guarantees: the result depends only on the arguments, bit for bit (with one build of numpy and scipy); the same seed
    on another grid gives the same head and lesions; the same seed with another kind gives the same healthy head.
    """
    # Each part has its own random stream, so that a change of one part does not change the others.
    for_subject, for_noise, for_injury, for_anatomy, for_scanner, for_metal = np.random.SeedSequence(seed).spawn(6)
    grid = Grid(shape, spacing_mm)
    subject = sample_subject(np.random.default_rng(for_subject), profile)
    injury = sample_injury(np.random.default_rng(for_injury), kind)
    head = place_head(grid, subject, NoiseBank(for_noise, grid), gantry_tilt_deg=profile.gantry_tilt_deg)
    skull = build_skull(head, subject)
    hu = render_skull(skull, swelling=injury.swelling, bone_flap=injury.bone_flap)
    inner = np.flatnonzero(skull.cavity < head.partial_mm)
    cavity = _enter(skull, inner)
    contents, shares, soft = _fill(cavity, subject, injury, profile, np.random.default_rng(for_anatomy))
    hu[inner] += (contents - hu[inner]) * soft
    rng = np.random.default_rng(for_scanner)
    image = head.average(hu, background=AIR_HU)
    if injury.metal is not None:
        distance = metal_distance(cavity.region, injury.metal)
        add_metal(image, cavity.region, distance, np.random.default_rng(for_metal))
        soft = soft * outlined_share(distance)
    if profile.headrest:
        add_headrest(image, grid, rng)
    return PhantomCase(
        image=scan(image, grid, profile, rng),
        label=draw_label(cavity.region, shares, soft, profile),
        affine=grid.affine(),
        seed=seed,
        kind=kind,
    )


def _enter(skull: Skull, inner: NDArray[np.intp]) -> Skull:
    """The same skull, restricted to the points ``inner`` of its cavity."""
    shells = (skull.vault, skull.floor, skull.thickness, skull.face, skull.radius)
    return Skull(skull.region.subset(inner), *(shell[inner] for shell in shells))


def _fill(
    cavity: Skull, subject: Subject, injury: Injury, profile: ScannerProfile, rng: np.random.Generator
) -> tuple[Field, dict[str, Field], Field]:
    """HU, blood shares by label name, and share of soft matter at the cavity's points, each (n,)."""
    mass = displace_brain(cavity, injury, rng)
    brain = build_brain(cavity, subject, mass, hydrocephalus=injury.hydrocephalus)
    shares, oedema = spread_blood(brain, injury, mass)
    hu = render_tissue(brain, subject, oedema, contrast=profile.tissue_contrast)
    hu = mix_blood(hu, brain, shares, injury, subject)
    hu = add_calcifications(hu, brain, subject, rng)
    hu = add_drain(hu, brain, injury.drain_side)
    hu = harden_beam(hu, cavity.region.points, brain.depth_mm, profile)
    soft = brain.inside * (1 - petrous_coverage(cavity.region.points, cavity.floor))
    return hu, {name: share * brain.inside for name, share in shares.items()}, soft
