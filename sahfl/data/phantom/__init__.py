"""A procedural 3-D head-CT phantom: synthetic patients for demonstrations, tests and pretraining.

    ScannerProfile ─┐
    seed, kind ─────┴─> make_case ─> PhantomCase (image, label, affine)
    CohortSpec ───────> write_cohort ─> images/, labels/, datalist.json
    a spec per site ─> write_sites ─> a cohort per site, one datalist.json ─> read_cases

Anatomy, volumes and contrast come from published and measured values, never from a network's scores.
"""

from sahfl.data.phantom.case import PhantomCase, make_case
from sahfl.data.phantom.cohort import CohortSpec, demo_sites, read_cases, write_cohort, write_sites
from sahfl.data.phantom.hemorrhage import LABELS
from sahfl.data.phantom.lesions import PhantomKind
from sahfl.data.phantom.profiles import PROFILES, ScannerProfile

__all__ = [
    "LABELS",
    "PROFILES",
    "CohortSpec",
    "PhantomCase",
    "PhantomKind",
    "ScannerProfile",
    "demo_sites",
    "make_case",
    "read_cases",
    "write_cohort",
    "write_sites",
]
