"""A toy aggregation rule: the middle between the smallest and the largest number of all sites."""

import numpy as np

from sahfl.aggregation.rules import Rule
from sahfl.aggregation.update import check_update, in_order


def midrange(updates, *, like, layers):
    ordered = in_order(updates)
    for update in ordered:
        check_update(update, like=like)
    stacked = {name: np.stack([update.state[name] for update in ordered]) for name in like}
    return {name: (values.min(0) + values.max(0)) / 2 for name, values in stacked.items()}


TOY = Rule("midrange", midrange)
