"""Exporting a run's trained networks for other programs; each export is compared with the run's own network."""
