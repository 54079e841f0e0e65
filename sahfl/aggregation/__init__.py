"""Aggregation: from the sites' updates of a round to the next global state. numpy only.

Every rule is a pure function of the updates, with its guarantees in its docstring; results do not depend on the order
in which the sites replied, to the last bit.
"""

from sahfl.aggregation.lowrank import aggregation_error, mean_of_factors, project
from sahfl.aggregation.mean import mean, mean_of_stream
from sahfl.aggregation.ranks import at_rank_of
from sahfl.aggregation.robust import Bounded, bound, change_norm, median, trimmed_mean
from sahfl.aggregation.server_step import Adam, Memory, Momentum
from sahfl.aggregation.update import SiteUpdate, check_update

__all__ = [
    "Adam",
    "Bounded",
    "Memory",
    "Momentum",
    "SiteUpdate",
    "aggregation_error",
    "at_rank_of",
    "bound",
    "change_norm",
    "check_update",
    "mean",
    "mean_of_factors",
    "mean_of_stream",
    "median",
    "project",
    "trimmed_mean",
]
