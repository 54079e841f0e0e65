"""From the sums that sites sent to ``results.json``: rows of methods, comparisons, findings."""
