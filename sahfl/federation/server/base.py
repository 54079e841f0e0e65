"""The base network at the sites: each gets it, and the run waits until the people of every site have accepted it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from flwr.app import Message, RecordDict

from sahfl.errors import BaseNotAccepted
from sahfl.events import StageBegun, Warned, emit
from sahfl.federation import protocol
from sahfl.federation.server.mailbox import Answers, Ask
from sahfl.federation.server.replies import error_text
from sahfl.federation.server.schedule import Pause, Steps
from sahfl.run.folder import RunFolder

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
"""Pauses between two questions to a site that has not accepted yet; each is twice the one before."""


def install(
    request: RecordDict, nodes: Mapping[str, int], folder: RunFolder, *, base: str, deadline_s: float, accept_s: float
) -> Steps[dict[str, Message | None]]:
    """Send the base network to sites, and ask those again that have not accepted it, for ``accept_s`` seconds.

    Args:
        request: the request to store the base network.
        nodes: the node of each site.
        folder: of the run; its journal gets a line that names the sites that are waited for.
        base: the network's hash.
        deadline_s: seconds until a site that has not answered is left out.
        accept_s: seconds until a site that has not accepted is left out.

    Returns:
        The last reply of each site, None without one.
    """
    replies: dict[str, Message | None] = {}
    left, pause, noted = list(nodes), FIRST_PAUSE_S, False
    ends = time.monotonic() + accept_s
    while left:
        asked = {site: nodes[site] for site in left}
        answers: Answers = yield Ask(dict.fromkeys(asked, request), protocol.INSTALL_BASE, asked, deadline_s)
        answers.write_oddities(folder.note, protocol.INSTALL_BASE)
        replies |= {site: answers.replies.get(site) for site in asked}
        left = [site for site in asked if waits(replies[site])]
        if not left or time.monotonic() >= ends:
            break
        if not noted:
            _announce(left, base, folder)
            noted = True
        yield Pause(min(pause, max(0.0, ends - time.monotonic())))
        pause = min(2 * pause, LONGEST_PAUSE_S)
    return replies


def waits(reply: Message | None) -> bool:
    """Whether a site refused a request because nobody there has accepted the base network yet."""
    return reply is not None and reply.has_error() and error_text(reply) == BaseNotAccepted.__name__


def _announce(sites: Collection[str], base: str, folder: RunFolder) -> None:
    named = ", ".join(sorted(sites))
    folder.note({"event": "base_waits", "base": base, "sites": sorted(sites)})
    emit(StageBegun("waiting until the sites accept the base network"))
    emit(Warned(f"base network {base} waits for {named}; there: sahfl-client accept-base SITE_FILE {base}"))
