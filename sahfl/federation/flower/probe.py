"""A test request to the server, which finds out whether the server would admit this site."""

from __future__ import annotations

import httpx

from sahfl.errors import NotConnected
from sahfl.federation.flower.handshake import own_versions
from sahfl.federation.flower.reasons import word_of
from sahfl.federation.flower.supernode import FleetLink
from sahfl.trust.kit import SiteKit

WITHOUT_INSTANCE = "no instance"
"""The gate's last check: a process with right key, signature, clock and versions is refused because it has no name."""


def ask_admission(kit: SiteKit) -> None:
    """Try to connect as a process without a name, which does not disturb the process that is connected.

    Raises:
        NotConnected: the server would refuse this site, for the reason in the message.
    """
    link = FleetLink(kit.host, kit.port, tls=kit.tls(), node_key=kit.node_key, headers=own_versions())
    try:
        link.activate()
    except NotConnected as error:
        refusal = error.__cause__
        if isinstance(refusal, httpx.HTTPStatusError) and word_of(refusal.response) == WITHOUT_INSTANCE:
            return
        raise
    finally:
        link.close()
    raise NotConnected("the server let in a process without a name; it is no sahfl-server of this version")
