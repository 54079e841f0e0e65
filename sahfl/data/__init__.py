"""Scans at a site: where they come from, patients and folds, CT volumes, checks, slices, and the phantom cohort."""
