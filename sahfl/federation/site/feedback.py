"""Error feedback: what rounding took from a site's update in one round is added to its update in the next.

Kept at the site (``kept``), so that a round that is asked again gives the same answer. Where other tensors train from
round to round, each choice of tensors has files of its own: what is left over waits for the next round that sends them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from sahfl.adapters import AdapterState
from sahfl.federation.site.kept import KeptTensors
from sahfl.payload import Encoding, Header, layout, pack, steps, unpack


def with_feedback(folder: Path, header: Header, change: AdapterState, encoding: Encoding) -> AdapterState:
    """What to send in the place of ``change``: the change and what rounding has left over so far.

    The left-over of this round is kept in ``folder``. In float32 nothing is rounded, kept or added.

    Guarantees: what was sent over the rounds differs from the sum of the changes by what the last round left over,
    besides the rounding of float32. A left-over that is damaged or of another layout is not used.

    Source: Karimireddy et al. 2019, arXiv 1901.09847, algorithm 1.
    """
    if encoding == "float32":
        return change
    turn = hashlib.sha256(repr(layout(change)).encode()).hexdigest()[:16]
    kept = KeptTensors(folder / "feedback", header, turn)
    # Only the last one: what earlier rounds left over was sent already.
    left = next(kept.read(up_to=header.round - 1, like=change), None)
    wanted = {name: value + left[name] if left else value for name, value in change.items()}
    sent = unpack(
        pack(wanted, encoding).tobytes(), layout(wanted), like=wanted, encoding=encoding, tensor_steps=steps(wanted)
    )
    kept.keep({name: wanted[name] - sent[name] for name in wanted})
    return wanted
