"""Where scans come from: the data section of a study, and a site's own configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sahfl.config.policy import SitePolicy
from sahfl.config.section import Name, Section, parse, read_mapping


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


class StudyScansPhantom(Section):
    """Simulated head CT, written by each site as NIfTI before the first round."""

    source: Literal["phantom"]
    """Which kind of data section this is."""
    shape: tuple[Matrix, Matrix, Annotated[int, Field(ge=8, le=512)]]
    """Voxels along x (left-right), y (front-back) and z (foot-head)."""
    spacing_mm: tuple[Spacing, Spacing, Spacing]
    """Voxel size in mm along x, y, z."""
    sites: Annotated[dict[Name, PhantomSite], Field(min_length=1)]
    """The simulated hospitals by name."""


class StudyScansDatalist(Section):
    """NIfTI scans on disk, named by a datalist."""

    source: Literal["datalist"]
    """Which kind of data section this is."""
    path: Path
    """JSON file ``{"sites": {name: [{"image": ..., "label": ..., "patient": ...}]}}``; files relative to its folder."""


class StudyScansFolders(Section):
    """Scans on disk, at a path of its own for each site."""

    source: Literal["folders"]
    """Which kind of data section this is."""
    sites: Annotated[dict[Name, Path], Field(min_length=1)]
    """Per site a datalist (JSON), an nnU-Net raw folder or a folder of DICOM series; recognised by what is there."""

    @model_validator(mode="after")
    def _paths_are_distinct(self) -> Self:
        paths = list(self.sites.values())
        if twice := sorted(site for site, path in self.sites.items() if paths.count(path) > 1):
            raise ValueError(f"each site needs scans of its own, got one path for {', '.join(twice)}")
        return self


class StudyScansAtSites(Section):
    """Scans that each hospital's own site file names; nobody else knows where they lie."""

    source: Literal["sites"]
    """Which kind of data section this is."""


class SiteScansPhantom(Section):
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


class SiteScansDatalist(Section):
    """One site's NIfTI scans on disk, named by a datalist."""

    source: Literal["datalist"] = "datalist"
    """Which kind of data section this is."""
    path: Path
    """The datalist; see ``StudyScansDatalist``."""


class SiteScansFolder(Section):
    """One site's scans on disk."""

    source: Literal["folder"] = "folder"
    """Which kind of data section this is."""
    path: Path
    """A datalist (JSON), an nnU-Net raw folder or a folder of DICOM series; recognised by what is there."""


class SiteScansPooled(Section):
    """Scans of several simulated sites, each read and split into folds as its own site does."""

    source: Literal["pooled"] = "pooled"
    """Which kind of data section this is."""
    members: tuple[SiteConfig, ...]
    """The sites whose scans they are."""


class SiteConfig(Section):
    """One hospital: its name, its scans, the folder that it works in, and what it allows."""

    name: Name
    """The site's name in the study."""
    folder: Path
    """The site's own folder (phantom scans, manifest, cache, base network, results per case); never leaves."""
    data: Annotated[
        SiteScansPhantom | SiteScansDatalist | SiteScansFolder | SiteScansPooled, Field(discriminator="source")
    ]
    """Where the scans come from; ``pooled`` in a simulation alone."""
    max_refused_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the cases that may break an error rule of the data checks before the site refuses to train; 0: none."""
    kit: Path | None = None
    """The folder that ``sahfl provision`` made for this site: keys, certificates, and whose signature it obeys."""
    policy: SitePolicy = SitePolicy()
    """What studies may ask, and what may leave; whatever is not said here is closed."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$")] = "auto"
    """What computes: auto (a GPU if there is one), cpu, cuda, or one of several GPUs, as cuda:1."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Processor threads that training may use; all cores if it is not said. Simulations use one."""
    log: Literal["text", "json"] = "text"
    """Form of the log lines of ``sahfl-client``: ``key=value`` or one JSON object a line."""


class SiteFile(SiteConfig):
    """What a hospital's own file may say: its data are its own."""

    data: Annotated[SiteScansPhantom | SiteScansDatalist | SiteScansFolder, Field(discriminator="source")]
    """Where the scans come from."""


def load_site(path: Path) -> SiteFile:
    """Read a site file; relative paths in it start at the file's folder.

    Raises:
        ConfigError: the file cannot be read, or has problems: every unknown key and bad value, in one message.
    """
    settings = read_mapping(path)
    data = settings.get("data")
    for section, key in ((settings, "folder"), (settings, "kit"), (data, "path")):
        if isinstance(section, dict) and isinstance(section.get(key), str):
            section[key] = str((path.parent / section[key]).resolve())
    return parse(SiteFile, settings, where=str(path))
