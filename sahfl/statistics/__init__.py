"""From cases at a hospital to sums that may leave it, and from the sums of all hospitals to estimates.

``metrics`` (what is measured of a case, and its histogram) -> ``cases`` (one case; the groups) -> ``agreement``
(volumes) and ``groups`` (sums of one group) -> ``sums`` (all that a site reports) -> ``disclosure`` (what of it may
leave) and ``estimates`` (what all of it says). What of it runs at a hospital is numpy, so that it can be read.
"""

from sahfl.statistics.cases import CaseResult, Settings, extent_labels, stratum_labels
from sahfl.statistics.estimates import Estimate, difference, estimate, holm
from sahfl.statistics.groups import GroupSums, normal_weights
from sahfl.statistics.metrics import METRICS, VOLUME_EDGES_ML, Metric
from sahfl.statistics.sums import EvaluationSums, Withheld, average

__all__ = [
    "METRICS",
    "VOLUME_EDGES_ML",
    "CaseResult",
    "Estimate",
    "EvaluationSums",
    "GroupSums",
    "Metric",
    "Settings",
    "Withheld",
    "average",
    "difference",
    "estimate",
    "extent_labels",
    "holm",
    "normal_weights",
    "stratum_labels",
]
