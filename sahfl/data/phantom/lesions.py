"""The possible lesions of a case as plain values, in the head's frame (mm, RAS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from sahfl.data.phantom.space import Triple

PhantomKind = Literal["tbi", "sah", "normal"]


@dataclass(frozen=True)
class EpiduralClot:
    """A lens under the vault."""

    direction: Triple
    """From the head's origin to the clot's centre; not normalised."""
    volume_ml: float
    thickness_ratio: float
    """Greatest thickness over the radius of its base."""
    swirl: bool
    """Whether it contains unclotted, darker blood."""


@dataclass(frozen=True)
class SubduralClot:
    """A crescent along one hemisphere that does not cross the midline."""

    direction: Triple
    thickness_mm: float
    half_angles_rad: tuple[float, float]
    """Half extent from front to back and from top to bottom, seen from the head's origin."""
    density: float
    """Blood share of the collection: subdural blood is diluted by CSF from the torn arachnoid."""
    swirl: bool = False
    darkening_hu: float = 0.0
    """Darkening of the collection with age (HU): 0 is acute, 20-30 isodense, 40-52 chronic."""
    settled_hu: float = 0.0
    """Brightening by cells that sank to the back (HU); above 0 the collection is mixed."""
    level_y_mm: float = 0.0
    """Position of the surface of the settled cells (y, mm)."""
    membranes: bool = False
    """Whether bright membranes run through the collection."""


@dataclass(frozen=True)
class DuralLayer:
    """A thin layer of subdural blood along one side of the falx or on one half of the tentorium (SDH)."""

    dura: Literal["falx", "tentorium"]
    side: float
    """-1 left, 1 right."""
    thickness_mm: float
    centre: Triple
    """Middle of the layer; only its position along the dura matters."""
    radius_mm: float
    """Distance from the middle at which the thinning layer ends."""


@dataclass(frozen=True)
class Contusion:
    """Blood in the brain's tissue (IPH) with a rim of oedema."""

    centre: Triple
    volume_ml: float
    aspect: Triple
    raggedness: float
    """Amplitude of small irregularities relative to its radius."""
    oedema_mm: float


@dataclass(frozen=True)
class CisternalBlood:
    """Blood mixed into subarachnoid CSF (SAH), densest at its source."""

    source: Triple
    volume_ml: float
    density: float
    """Blood share of the CSF at the source; above 1 the clot is saturated beyond the source."""
    expansion_mm: float
    """How far clot widens the cisterns."""
    sulcal_spread: float
    """0 stays at the base, 1.9 reaches far over the convexity."""
    basal_mm: float = 8.0
    """Additional reach of blood in the basal cisterns (mm): 8 sinks into them, 35 fills the whole star."""
    patchy_mm: float = 9.0
    """Standard deviation of the reach between places (mm)."""


@dataclass(frozen=True)
class VentricularBlood:
    """Blood in the ventricles (IVH): a fluid level in the dependent horns or a cast around ``source``."""

    level_mm: float
    """Height of the fluid level above the lowest part of the occipital horns; 0 for a cast."""
    cast_mm: float
    """Radius filled around ``source``, from a speck to the whole ventricles; 0 for a level."""
    density: float = 0.9
    source: Triple = (0.0, 10.0, 8.0)


@dataclass(frozen=True)
class Metal:
    """A clip or a bundle of coils in an aneurysm; it causes streaks and is not blood."""

    centre: Triple
    radius_mm: float
    length_mm: float
    """0 for a ball of coils, else a clip of this length from left to right."""


Lesion: TypeAlias = EpiduralClot | SubduralClot | DuralLayer | Contusion | CisternalBlood | VentricularBlood


@dataclass(frozen=True)
class Injury:
    """All lesions of one case and their effects on the healthy head."""

    lesions: tuple[Lesion, ...] = ()
    faded_hu: float = 0.0
    """Darkening of clots in tissue and ventricles compared with fresh ones (HU): days old, or an anaemic patient."""
    hydrocephalus: float = 0.0
    """Relative widening of the ventricles."""
    drain_side: float = 0.0
    """Side of a ventricular drain: -1 left, 1 right, 0 none; a bright line that is not blood."""
    metal: Metal | None = None
    """Clip or coils, if the aneurysm has been treated."""
    swelling: Triple | None = None
    """Direction of a scalp swelling, if there is one."""
    bone_flap: Triple | None = None
    """Direction of a craniectomy, if there was one."""
