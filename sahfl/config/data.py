"""Where scans come from: the data section of a study, and a site's own configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sahfl.config.section import Name, Section


class PhantomSite(Section):
    """One simulated hospital of the phantom cohort."""

    kind: Literal["tbi", "sah", "normal"]
    """Traumatic hemorrhage, aneurysmal SAH, or heads without blood."""
    n_cases: Annotated[int, Field(ge=1, le=10_000)]
    """Patients, one scan each."""
    profile: Literal["standard", "sharp", "smooth", "noisy", "low_dose", "tilted", "offset"] = "standard"
    """Scanner profile: what makes this site's images different from the others'."""


Matrix = Annotated[int, Field(ge=32, le=512)]
Spacing = Annotated[float, Field(gt=0.2, le=12)]


class PhantomData(Section):
    """Simulated head CT, written by each site as NIfTI before the first round."""

    source: Literal["phantom"]
    """Which kind of data section this is."""
    shape: tuple[Matrix, Matrix, Annotated[int, Field(ge=8, le=512)]]
    """Voxels along x (left-right), y (front-back) and z (foot-head)."""
    spacing_mm: tuple[Spacing, Spacing, Spacing]
    """Voxel size in mm along x, y, z."""
    sites: Annotated[dict[Name, PhantomSite], Field(min_length=1)]
    """The simulated hospitals by name."""


class DatalistData(Section):
    """NIfTI scans on disk, named by a datalist."""

    source: Literal["datalist"]
    """Which kind of data section this is."""
    path: Path
    """JSON file ``{"sites": {name: [{"image": ..., "label": ..., "patient": ...}]}}``; files relative to its folder."""


class PhantomCohort(Section):
    """The phantom patients of one simulated site; they are a function of these values alone."""

    source: Literal["phantom"] = "phantom"
    """Which kind of data section this is."""
    seed: int
    """Seed of the cohort."""
    shape: tuple[int, int, int]
    """Voxels along x, y, z."""
    spacing_mm: tuple[float, float, float]
    """Voxel size in mm along x, y, z."""
    patients: PhantomSite
    """Kind and number of patients, scanner profile."""


class SiteConfig(Section):
    """One hospital: its name, its scans, and the folder that it works in."""

    name: Name
    """The site's name in the study."""
    folder: Path
    """The site's own folder (phantom scans, manifest, cache, base network, results per case); never leaves."""
    data: Annotated[PhantomCohort | DatalistData, Field(discriminator="source")]
    """Where the scans come from."""
