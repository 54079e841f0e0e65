"""From the cases of each hospital to sums that may leave it, and from the sums of all hospitals to estimates.

Read the modules in this order: ``metrics`` (what is measured per case, with histogram bins), ``cases`` (one case and
its groups), ``agreement`` (sums of volumes), ``groups`` (sums of one group), ``sums`` (everything a site reports),
``disclosure`` (what a site withholds) and ``estimates`` (means, intervals and tests). The modules that run at a
hospital use only numpy, so that a hospital can read them.
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
