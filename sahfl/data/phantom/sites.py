"""Synthetic patients of several sites in one folder, with one datalist for all sites."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nibabel
import numpy as np

from sahfl.atomic import write_atomic
from sahfl.data.phantom.case import PhantomCase
from sahfl.data.phantom.cohort import (
    DATALIST,
    CohortSpec,
    case_seed,
    claim_folder,
    json_bytes,
    spec_as_json,
    write_cohort,
)
from sahfl.data.phantom.hemorrhage import LABELS
from sahfl.data.phantom.lesions import PhantomKind

_DEMO: tuple[tuple[str, PhantomKind, str, int], ...] = (
    ("tbi_a", "tbi", "standard", 12),
    ("tbi_b", "tbi", "sharp", 12),
    ("tbi_c", "tbi", "low_dose", 12),
    ("tbi_d", "tbi", "offset", 12),
    ("sah_a", "sah", "smooth", 12),
    ("sah_b", "sah", "noisy", 10),
    ("sah_c", "sah", "tilted", 8),
)
"""The sites of ``configs/demo.yaml``: name, kind, profile, cases; an installed package does not contain that file."""


def demo_sites() -> tuple[CohortSpec, ...]:
    """The cohorts of the demo: four trauma and three aneurysm sites, each with another scanner profile."""
    return tuple(
        CohortSpec(name, kind, profile, n_cases, seed=7, shape=(96, 112, 24), spacing_mm=(2.0, 2.0, 5.0))
        for name, kind, profile, n_cases in _DEMO
    )


def write_sites(
    folder: Path,
    specs: Sequence[CohortSpec],
    *,
    on_case: Callable[[str, int, int], None] = lambda site, done, total: None,
) -> Path:
    """Write every site's cohort into ``folder/<site>`` and return the path of the datalist of all sites.

    Guarantees: the same specs give bit-identical files; the next call continues an interrupted one; datalist.json comes
    last.

    Args:
        folder: created if missing.
        specs: one per site, with different names.
        on_case: called with (site, cases done, cases in all) after each case.

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
        image, label = (nibabel.Nifti1Image.from_filename(path) for path in parts)
        yield PhantomCase(
            image=np.asarray(image.dataobj, np.int16),
            label=np.asarray(label.dataobj, np.uint8),
            affine=np.asarray(image.affine, np.float64),
            seed=case_seed(spec, index),
            kind=spec.kind,
        )


def _write_site(folder: Path, spec: CohortSpec, on_case: Callable[[str, int, int], None]) -> list[dict[str, str]]:
    datalist = write_cohort(folder / spec.site, spec, on_case=lambda done, total: on_case(spec.site, done, total))
    entries: list[dict[str, str]] = json.loads(datalist.read_text())["sites"][spec.site]
    return [
        {**entry, "image": f"{spec.site}/{entry['image']}", "label": f"{spec.site}/{entry['label']}"}
        for entry in entries
    ]
