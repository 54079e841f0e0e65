"""A question to the server that is never answered with work: would it let this site in?"""

from __future__ import annotations

import httpx

from sahfl.errors import NotConnected
from sahfl.federation.flower.handshake import own_versions
from sahfl.federation.flower.reasons import word_of
from sahfl.federation.flower.supernode import FleetLink
from sahfl.trust.kit import SiteKit

WITHOUT_INSTANCE = "no instance"
"""The gate's last objection: key, signature, clock and versions are right, only the process has no name."""


def ask_admission(kit: SiteKit) -> None:
    """Knock at the server as a process without a name, which changes nothing for the process that is connected.

    Raises:
        NotConnected: the server would refuse this site; the message says why, as it would in the log of sahfl-client.
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
