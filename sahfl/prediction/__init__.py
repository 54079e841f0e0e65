"""Segmenting one scan with a run's trained networks; the result is on the scan's own grid, with files to look at."""
