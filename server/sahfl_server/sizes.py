"""How large anything that a site sends in a study can be."""

from __future__ import annotations

from sahfl.adapters import AdapterState, exchanged
from sahfl.config import Study, ZeroShot
from sahfl.networks import fine_tuned_network, whole_network
from sahfl.statistics.sums import array_length


def payload_bytes(study: Study) -> int:
    """Bytes of the largest state or sums that a site of this study sends."""
    base = exchanged.read(whole_network(study.views, study.model, study.seed))
    sizes = [_size(base)]
    for method in study.finetune.methods:
        if not isinstance(method, ZeroShot):
            net = fine_tuned_network(study.views, study.model, base, method, study.seed)
            sizes.append(_size(exchanged.read(net)))
    return max(*sizes, 8 * array_length(study.evaluation))


def _size(tensors: AdapterState) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
