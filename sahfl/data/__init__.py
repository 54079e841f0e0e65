"""Scans at a site: sources, patients and folds, CT volumes, checks, slices, and the phantom cohort."""
