"""The source ``phantom``: synthetic patients, written by each site before the first round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sahfl.data.manifest import Case, read_datalist
from sahfl.data.sources.scans import SiteScans, StudyScans
from sahfl.section import Name, Section, is_none

if TYPE_CHECKING:
    from sahfl.data.phantom import CohortSpec


class PhantomSite(Section):
    """One simulated hospital of the phantom cohort."""

    kind: Literal["tbi", "sah", "normal"]
    """Traumatic hemorrhage, aneurysmal SAH, or heads without blood."""
    n_cases: Annotated[int, Field(ge=1, le=10_000)]
    """Patients, one scan each."""
    profile: Literal["standard", "sharp", "smooth", "noisy", "low_dose", "tilted", "offset"] = "standard"
    """Scanner profile: what makes this site's images different from the others'."""
    rater_shift: Annotated[float, Field(ge=-0.3, le=0.3)] | None = Field(default=None, exclude_if=is_none)
    """Added to the share of blood from which this site's annotator marks a voxel (unitless), in place of that of the
    profile: of ``smooth`` -0.04, of ``noisy`` 0.04, of the others 0."""


class SiteScansPhantom(SiteScans):
    """The phantom patients of one simulated site; they depend only on these values."""

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

    def cohort(self, site: str) -> CohortSpec:
        """The cohort of the site with this name."""
        from sahfl.data.phantom import CohortSpec

        of = self.patients
        return CohortSpec(site, of.kind, of.profile, of.n_cases, self.seed, self.shape, self.spacing_mm, of.rater_shift)

    def list_cases(self, site: str, folder: Path, on_case: Callable[[int, int], None]) -> tuple[Case, ...]:
        """The patients; they are written to ``scans`` in the site's folder unless they are there."""
        from sahfl.data.phantom import write_cohort

        return read_datalist(write_cohort(folder / "scans", self.cohort(site), on_case=on_case), site)

    @property
    def n_made(self) -> int:
        """Number of patients, all of which the site makes."""
        return self.patients.n_cases

    def label(self, site: str) -> str:
        """The source and the scanner profile."""
        return f"phantom ({self.patients.profile})"


Matrix = Annotated[int, Field(ge=32, le=512)]
Spacing = Annotated[float, Field(gt=0.2, le=12)]


class StudyScansPhantom(StudyScans):
    """Simulated head CT, written by each site as NIfTI before the first round."""

    source: Literal["phantom"]
    """Which kind of data section this is."""
    shape: tuple[Matrix, Matrix, Annotated[int, Field(ge=8, le=512)]]
    """Voxels along x (left-right), y (front-back) and z (foot-head)."""
    spacing_mm: tuple[Spacing, Spacing, Spacing]
    """Voxel size in mm along x, y, z."""
    sites: Annotated[dict[Name, PhantomSite], Field(min_length=1)]
    """The simulated hospitals by name."""

    def site_names(self) -> tuple[str, ...]:
        """The simulated hospitals."""
        return tuple(self.sites)

    def for_sites(self, sites: Sequence[str], *, study: str, seed: int) -> dict[str, SiteScansPhantom]:
        """Each site's own patients, all with the study's seed."""
        return {
            site: SiteScansPhantom(seed=seed, shape=self.shape, spacing_mm=self.spacing_mm, patients=self.sites[site])
            for site in sites
        }
