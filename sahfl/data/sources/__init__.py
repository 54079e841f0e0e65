"""The sources of scans: the data sections of study and site files, and how a site lists its cases.

    study file, data: {source: folder, ...} ──> StudyScans ──> for_sites ──┐  in a simulation
    site file,  data: {source: folder, ...}  ──────────────────────────────┴─> SiteScans ──> list_cases ──> cases

A source is a module with its two sections, and one entry of ``table.SOURCES``.
"""
