"""Error feedback: a site adds the rounding error of its update in one round to its update in the next.

The site stores the errors of several rounds (``kept``), so that a repeated round gives the same answer. If different
tensors train in different rounds, each set of tensors has its own files, used in the next round that sends this set.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from sahfl.adapters import AdapterState
from sahfl.federation.site.kept import KeptTensors
from sahfl.payload import Encoding, Header, layout, pack, steps, unpack

FOLDER = "feedback"


def with_feedback(folder: Path, header: Header, change: AdapterState, encoding: Encoding) -> AdapterState:
    """Return ``change`` plus the rounding error of the last round, and store the error of this round in ``folder``.

    In float32 nothing is rounded, stored or added.

    Guarantees: the sum of the sent updates differs from the sum of the changes by the error of the last round, besides
    the rounding of float32. A stored error that is damaged or of another layout is not used.

    Source: Karimireddy et al. 2019, arXiv 1901.09847, algorithm 1.
    """
    if encoding == "float32":
        return change
    turn = hashlib.sha256(repr(layout(change)).encode()).hexdigest()[:16]
    kept = KeptTensors(folder / FOLDER, header, turn)
    # Only the last stored error: those of earlier rounds were sent already.
    left = next(kept.read(up_to=header.round - 1, like=change), None)
    wanted = {name: value + left[name] if left else value for name, value in change.items()}
    sent = unpack(
        pack(wanted, encoding).tobytes(), layout(wanted), like=wanted, encoding=encoding, tensor_steps=steps(wanted)
    )
    kept.keep({name: wanted[name] - sent[name] for name in wanted})
    return wanted
