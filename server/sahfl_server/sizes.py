"""Size of the largest payload that a site sends in a study."""

from __future__ import annotations

from sahfl.adapters import exchanged
from sahfl.config import Study, ZeroShot
from sahfl.networks import fine_tuned_network, whole_network
from sahfl.statistics.sums import array_length


def payload_bytes(study: Study) -> int:
    """Bytes of the largest state or sums that a site of this study sends."""
    base = exchanged.read(whole_network(study.views, study.model, study.seed))
    states = [base]
    for method in study.finetune.methods:
        if not isinstance(method, ZeroShot):
            states.append(exchanged.read(fine_tuned_network(study.views, study.model, base, method, study.seed)))
    sizes = [sum(tensor.nbytes for tensor in state.values()) for state in states]
    return max(*sizes, 8 * array_length(study.evaluation))
