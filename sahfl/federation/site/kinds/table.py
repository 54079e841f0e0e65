"""The table of all kinds of messages that a site answers. A kind that is not here is refused."""

from __future__ import annotations

from sahfl.errors import PolicyRefused
from sahfl.federation.site.kinds.describe import DESCRIBE
from sahfl.federation.site.kinds.evaluate import EVALUATE
from sahfl.federation.site.kinds.install_base import INSTALL_BASE
from sahfl.federation.site.kinds.kind import Kind
from sahfl.federation.site.kinds.scan_keys import SCAN_KEYS
from sahfl.federation.site.kinds.train import TRAIN

KINDS: dict[str, Kind] = {kind.type: kind for kind in (DESCRIBE, SCAN_KEYS, INSTALL_BASE, TRAIN, EVALUATE)}
"""Every kind by its message type, in the order in which a study asks."""


def find_kind(message_type: str) -> Kind:
    """The kind of a message.

    Raises:
        PolicyRefused: the table has no such kind.
    """
    if message_type not in KINDS:
        raise PolicyRefused(f"requests: got {message_type[:40]!r}, expected one of {', '.join(KINDS)}")
    return KINDS[message_type]
