"""Segmenting one scan with what a run trained: networks of the folds, the scan's own grid, files to look at."""
