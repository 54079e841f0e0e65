"""Folders of synthetic cases, of one site or of several; an interruption of the writing costs at most one case."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from sahfl.atomic import make_folder, write_atomic
from sahfl.data.nifti import load_nifti
from sahfl.data.phantom.case import PhantomCase, make_case
from sahfl.data.phantom.hemorrhage import LABELS
from sahfl.data.phantom.lesions import PhantomKind
from sahfl.data.phantom.profiles import PROFILES, ScannerProfile
from sahfl.errors import DataError
from sahfl.regular_files import DATALIST_BYTES, read_json

_GZIP_LEVEL = 2
DATALIST = "datalist.json"
"""Name of the list of cases in a cohort's folder; it is written last."""
_PLAN = "phantom.json"


@dataclass(frozen=True)
class CohortSpec:
    """The settings of a cohort; equal settings give byte-identical files."""

    site: str
    """Name of the site; goes into the seeds and the patient names."""
    kind: PhantomKind
    profile: str
    """A name in ``PROFILES``."""
    n_cases: int
    seed: int
    shape: tuple[int, int, int] = (128, 128, 32)
    """Voxels (X, Y, Z)."""
    spacing_mm: tuple[float, float, float] = (1.8, 1.8, 5.0)
    rater_shift: float | None = None
    """In place of the profile's; None leaves that one."""

    @property
    def scanner(self) -> ScannerProfile:
        """The profile, with this site's rater."""
        profile = PROFILES[self.profile]
        return profile if self.rater_shift is None else replace(profile, rater_shift=self.rater_shift)


def write_cohort(
    folder: Path, spec: CohortSpec, *, on_case: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """Write the cohort into ``folder`` and return the path of its datalist.json.

    After each case, ``on_case`` is called with (cases done, cases in all).

    Guarantees: the same spec gives bit-identical files; a file appears under its name only when it is complete;
    datalist.json comes last. Finished cases of an interrupted cohort are kept; a finished cohort is not changed.

    Raises:
        DataError: the folder belongs to another spec, or the spec cannot be built.
    """
    _check_spec(spec)
    datalist = folder / DATALIST
    if claim_folder(folder, spec_as_json(spec)):
        return datalist
    for part in ("images", "labels"):
        make_folder(folder / part)
    entries = []
    for index in range(spec.n_cases):
        name = f"{index:04d}.nii.gz"
        entry = {"image": f"images/{name}", "label": f"labels/{name}", "patient": f"{spec.site}-{index:04d}"}
        if not all((folder / entry[part]).exists() for part in ("image", "label")):
            seed, scanner = case_seed(spec, index), spec.scanner
            case = make_case(seed, kind=spec.kind, profile=scanner, shape=spec.shape, spacing_mm=spec.spacing_mm)
            _write_case(folder, entry, case)
        entries.append(entry)
        on_case(index + 1, spec.n_cases)
    content = {
        "description": f"Synthetic head CT, kind {spec.kind}, scanner profile {spec.profile}; no patient data.",
        "labels": {"background": 0, **LABELS},
        "phantom": spec_as_json(spec),
        "sites": {spec.site: entries},
    }
    write_atomic(datalist, json_bytes(content))
    return datalist


def case_seed(spec: CohortSpec, index: int) -> int:
    """Seed of one case, below 2**63: a hash of the cohort's seed, its site and the case's number."""
    digest = hashlib.sha256(json.dumps([spec.seed, spec.site, index]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def encode_nifti(data: NDArray[Any], affine: NDArray[np.float64]) -> bytes:
    """A .nii.gz file of integers (X, Y, Z): scanner space, mm, no text fields, no time stamp."""
    image = nibabel.Nifti1Image(data, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units(xyz="mm")
    image.header.set_slope_inter(1.0, 0.0)
    return gzip.compress(image.to_bytes(), _GZIP_LEVEL, mtime=0)


def _check_spec(spec: CohortSpec) -> None:
    problems = []
    if spec.profile not in PROFILES:
        problems.append(f"profile: got {spec.profile!r}, expected one of {', '.join(PROFILES)}")
    if spec.n_cases < 1:
        problems.append(f"n_cases: got {spec.n_cases}, expected 1 or more")
    if problems:
        raise DataError(f"phantom cohort of site {spec.site!r}: " + "; ".join(problems))


def claim_folder(folder: Path, plan: dict[str, Any]) -> bool:
    """Reserve ``folder`` for the content that ``plan`` describes; True if it already holds this content's datalist.

    Raises:
        DataError: the folder holds other content.
    """
    for name in (DATALIST, _PLAN):
        path = folder / name
        if path.exists():
            _check_owner(path, plan)
            if name == DATALIST:
                return True
    make_folder(folder)
    # Otherwise an interrupted cohort of one spec could be completed with the cases of another.
    write_atomic(folder / _PLAN, json_bytes({"phantom": plan}))
    return False


def _check_owner(path: Path, plan: dict[str, Any]) -> None:
    try:
        content = read_json(path, most=DATALIST_BYTES)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); choose an empty folder") from error
    found = content.get("phantom") if isinstance(content, dict) else None
    if found != plan:
        raise DataError(f"{path}: holds phantom spec {found}, expected {plan}; choose another folder or remove it")


def _write_case(folder: Path, entry: dict[str, str], case: PhantomCase) -> None:
    for part, data in (("image", case.image), ("label", case.label)):
        path = folder / entry[part]
        if not path.exists():
            write_atomic(path, encode_nifti(data, case.affine))


def spec_as_json(spec: CohortSpec) -> dict[str, Any]:
    """The spec as JSON values: tuples become lists; a rater of the profile's is left out."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(spec)))
    return {name: value for name, value in values.items() if value is not None}


def json_bytes(content: dict[str, Any]) -> bytes:
    """Indented JSON that ends in a line break."""
    return (json.dumps(content, indent=2) + "\n").encode()


def demo_sites() -> tuple[CohortSpec, ...]:
    """The cohorts of ``configs/demo.yaml``, which an installed package does not contain: name, kind, profile, cases."""
    sites: tuple[tuple[str, PhantomKind, str, int], ...] = (
        ("tbi_a", "tbi", "standard", 12),
        ("tbi_b", "tbi", "sharp", 12),
        ("tbi_c", "tbi", "low_dose", 12),
        ("tbi_d", "tbi", "offset", 12),
        ("sah_a", "sah", "smooth", 12),
        ("sah_b", "sah", "noisy", 10),
        ("sah_c", "sah", "tilted", 8),
    )
    return tuple(CohortSpec(*site, seed=7, shape=(96, 112, 24), spacing_mm=(2.0, 2.0, 5.0)) for site in sites)


def write_sites(
    folder: Path,
    specs: Sequence[CohortSpec],
    *,
    on_case: Callable[[str, int, int], None] = lambda site, done, total: None,
) -> Path:
    """Write every site's cohort into ``folder/<site>`` and return the path of the datalist of all sites.

    After each case, ``on_case`` is called with (site, cases done, cases in all).

    Guarantees: the same specs give bit-identical files; the next call continues an interrupted one; datalist.json comes
    last.

    Raises:
        DataError: the folder belongs to other specs, or one of them cannot be built.
    """
    plan = {"sites": {spec.site: spec_as_json(spec) for spec in specs}}
    datalist = folder / DATALIST
    if claim_folder(folder, plan):
        return datalist
    sites = {spec.site: _write_site(folder, spec, on_case) for spec in specs}
    description = "Synthetic head CT; no patient data."
    content = {"description": description, "labels": {"background": 0, **LABELS}, "phantom": plan, "sites": sites}
    write_atomic(datalist, json_bytes(content))
    return datalist


def read_cases(folder: Path, spec: CohortSpec) -> Iterator[PhantomCase]:
    """The cases of one site, one at a time, from a folder written by ``write_sites``."""
    for index in range(spec.n_cases):
        name = f"{index:04d}.nii.gz"
        parts = (folder / spec.site / part / name for part in ("images", "labels"))
        image, label = (load_nifti(path) for path in parts)
        yield PhantomCase(
            image=np.asarray(image.dataobj, np.int16),
            label=np.asarray(label.dataobj, np.uint8),
            affine=np.asarray(image.affine, np.float64),
            seed=case_seed(spec, index),
            kind=spec.kind,
        )


def _write_site(folder: Path, spec: CohortSpec, on_case: Callable[[str, int, int], None]) -> list[dict[str, str]]:
    datalist = write_cohort(folder / spec.site, spec, on_case=lambda done, total: on_case(spec.site, done, total))
    entries: list[dict[str, str]] = read_json(datalist, most=DATALIST_BYTES)["sites"][spec.site]
    return [entry | {part: f"{spec.site}/{entry[part]}" for part in ("image", "label")} for entry in entries]
