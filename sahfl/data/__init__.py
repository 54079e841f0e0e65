"""Scans at a site: datalists and folds, CT volumes, checks, multi-view slices, and the phantom cohort."""
