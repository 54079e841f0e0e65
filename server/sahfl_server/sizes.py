"""How large anything that a site sends in a study can be."""

from __future__ import annotations

from sahfl.adapters import AdapterState, state
from sahfl.config import Study, ZeroShot
from sahfl.federation.networks import fine_tuned_network, whole_network
from sahfl.statistics import EvaluationSums


def payload_bytes(study: Study) -> int:
    """Bytes of the largest state or sums that a site of this study sends."""
    base = state.read(whole_network(study.views, study.model, study.seed))
    sizes = [_size(base)]
    for method in study.finetune.methods:
        if not isinstance(method, ZeroShot):
            net = fine_tuned_network(study.views, study.model, base, method, study.seed)
            sizes.append(_size(state.read(net)))
    n_strata = len(study.evaluation.volume_edges_ml) + 1
    sums = EvaluationSums.zero(n_strata=n_strata, replicates=study.evaluation.replicates)
    return max(*sizes, sums.to_array().nbytes)


def _size(tensors: AdapterState) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
