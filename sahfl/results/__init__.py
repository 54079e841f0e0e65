"""Makes ``results.json`` from the sums of the sites: rows of methods, comparisons, findings."""
