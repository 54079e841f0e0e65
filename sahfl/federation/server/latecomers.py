"""Sites of a study that were not there when it began: they are asked again, and take part from a later round on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from sahfl.errors import PayloadError
from sahfl.federation import flower, protocol
from sahfl.federation.events import Event, emit
from sahfl.federation.protocol import SiteDescription
from sahfl.federation.server.mailbox import Mailbox


def is_away(reply: Message | None) -> bool:
    """Whether a site did not answer because it is not there; one that answered with an error of its own is."""
    return reply is None or flower.is_unreachable(reply) or flower.is_crash(reply)


class Latecomers:
    """The sites that are awaited, and how far each has come: it describes its data, then it installs the base.

    Guarantees: nobody waits for them; a site that is not connected costs nothing; one that answers with an error of its
    own is not asked again in this session. With every site there from the start, nothing is sent.

    Args:
        mail: how they are asked.
        grid: who is connected.
        node_of: node of each site.
        read: checks a site's description.
    """

    def __init__(
        self,
        mail: Mailbox,
        grid: Grid,
        node_of: Mapping[str, int],
        read: Callable[[str, Message | None], SiteDescription],
    ) -> None:
        self._mail, self._grid, self._node_of, self._read = mail, grid, node_of, read
        self.awaited: dict[str, SiteDescription | None] = {}
        self._asked: set[str] = set()

    def expect(self, site: str) -> None:
        """Ask a site again as soon as it is connected."""
        self.awaited[site] = None

    def welcome(
        self, sites: Iterable[str], describe: RecordDict, base: RecordDict | None
    ) -> dict[str, SiteDescription]:
        """Take in what has arrived, and ask who is connected and was not asked yet.

        Args:
            sites: those that are wanted now.
            describe: the request to describe the data.
            base: the request to install the base; None where it is not needed.

        Returns:
            Sites that take part from now on, with what they have.
        """
        ready: dict[str, SiteDescription] = {}
        for site, reply in self._mail.arrivals().items():
            self._asked.discard(site)
            if not is_away(reply):
                self._advance(site, reply, ready, needs_base=base is not None)
        reachable = set(self._grid.get_node_ids())
        for site in sites:
            if site in self.awaited and site not in self._asked and self._node_of[site] in reachable:
                content = describe if self.awaited[site] is None else base
                message_type = protocol.DESCRIBE if self.awaited[site] is None else protocol.INSTALL_BASE
                self._mail.invite(site, content or describe, message_type, self._node_of[site])
                self._asked.add(site)
        return ready

    def _advance(self, site: str, reply: Message, ready: dict[str, SiteDescription], *, needs_base: bool) -> None:
        known = self.awaited.pop(site)
        try:
            description = known or self._read(site, reply)
        except PayloadError as error:
            emit(Event("failed", f"stays out: {error}", site))
            return
        if known is not None and reply.has_error():
            emit(Event("failed", f"stays out: the base is not installed ({str(reply.error.reason)[:120]})", site))
        elif known is None and needs_base:
            self.awaited[site] = description
        else:
            ready[site] = description
