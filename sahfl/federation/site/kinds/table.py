"""The table of all kinds of messages that a site answers; every other kind is refused."""

from __future__ import annotations

from sahfl.errors import PolicyRefused
from sahfl.federation.site.kinds.confirm_start import CONFIRM_START
from sahfl.federation.site.kinds.describe import DESCRIBE
from sahfl.federation.site.kinds.evaluate import EVALUATE
from sahfl.federation.site.kinds.evaluate_masked import EVALUATE_MASKED
from sahfl.federation.site.kinds.evaluate_own import EVALUATE_OWN
from sahfl.federation.site.kinds.install_base import INSTALL_BASE
from sahfl.federation.site.kinds.kind import Kind
from sahfl.federation.site.kinds.local_phase import LOCAL_PHASE
from sahfl.federation.site.kinds.masking_keys import MASKING_KEYS
from sahfl.federation.site.kinds.masking_reveal import MASKING_REVEAL
from sahfl.federation.site.kinds.masking_shares import MASKING_SHARES
from sahfl.federation.site.kinds.masking_survivors import MASKING_SURVIVORS
from sahfl.federation.site.kinds.private_part import PRIVATE_PART
from sahfl.federation.site.kinds.scan_keys import SCAN_KEYS
from sahfl.federation.site.kinds.train import TRAIN

ALL = (
    *(DESCRIBE, SCAN_KEYS, INSTALL_BASE, CONFIRM_START),
    *(MASKING_KEYS, MASKING_SHARES, TRAIN, MASKING_SURVIVORS, MASKING_REVEAL),
    *(LOCAL_PHASE, EVALUATE, EVALUATE_MASKED, EVALUATE_OWN, PRIVATE_PART),
)
KINDS: dict[str, Kind] = {kind.type: kind for kind in ALL}
"""Every kind by its message type, in the order in which a study sends them."""


def unknown_kind(message_type: str) -> str:
    """Describe a message type that the table lacks, with those that it has."""
    return f"requests: got {message_type[:40]!r}, expected one of {', '.join(KINDS)}"


def find_kind(message_type: str) -> Kind:
    """Look up the kind of a message type.

    Raises:
        PolicyRefused: the table does not contain the message type.
    """
    if message_type not in KINDS:
        raise PolicyRefused(unknown_kind(message_type))
    return KINDS[message_type]
