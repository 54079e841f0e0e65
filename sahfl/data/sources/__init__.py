"""The sources of scans: the data sections of study and site files, and how a site lists its cases.

    study file, data: {source: folders, ...} ──> StudyScans ──> for_sites ──┐  in a simulation
    site file,  data: {source: folder, ...}  ──────────────────────────────┴─> SiteScans ──> list_cases ──> cases

Each source is one module with its two sections, and one entry of ``table.SOURCES``.
"""

from sahfl.data.sources.at_sites import StudyScansAtSites
from sahfl.data.sources.datalist import SiteScansDatalist, StudyScansDatalist
from sahfl.data.sources.folders import SiteScansFolder, StudyScansFolders
from sahfl.data.sources.phantom import PhantomSite, SiteScansPhantom, StudyScansPhantom
from sahfl.data.sources.scans import SiteScans, StudyScans
from sahfl.data.sources.table import SOURCES, AnySiteScans, AnyStudyScans, Source

__all__ = [
    "SOURCES",
    "AnySiteScans",
    "AnyStudyScans",
    "PhantomSite",
    "SiteScans",
    "SiteScansDatalist",
    "SiteScansFolder",
    "SiteScansPhantom",
    "Source",
    "StudyScans",
    "StudyScansAtSites",
    "StudyScansDatalist",
    "StudyScansFolders",
    "StudyScansPhantom",
]
