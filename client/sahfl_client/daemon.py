"""The site's service: a connection, a child process that does the work, and the way of its answers."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flwr.app import Message

from sahfl import __version__
from sahfl.config import SiteConfig
from sahfl.errors import ConfigError, PayloadError, StorageError
from sahfl.events import Event, SiteStep
from sahfl.federation import flower
from sahfl.federation.flower.parcels import Offer, prepare
from sahfl.federation.flower.supernode import FleetLink
from sahfl.process import locked, now_text
from sahfl.trust.kit import SiteKit
from sahfl_client.connection import Connection
from sahfl_client.log import say, warn
from sahfl_client.outbox import Answer, Outbox
from sahfl_client.status import Status
from sahfl_client.trainer import Trainer

TICK_S = 1.0


class Daemon:
    """Takes requests, has them worked on, and sends the answers, until SIGTERM or Ctrl-C.

    This process holds the connection and the keys, and never touches a scan; its child touches scans, and never the
    network. What a run names as its code is not fetched: the child runs the installed app and nothing else.

    Args:
        site: the site's configuration.
        kit: where its keys are.
    """

    def __init__(self, site: SiteConfig, kit: SiteKit) -> None:
        self._site = site
        self._stop = threading.Event()
        self._failed = threading.Event()
        self._failure: BaseException | None = None
        self._status = Status(site.folder, site=site.name, server=f"{kit.host}:{kit.port}")
        self._trainer = Trainer(site, on_reply=self._answer, on_step=self._show)
        self._connection = Connection(
            kit.folder,
            status=self._status,
            stop=self._stop,
            on_offer=self._take,
            on_new_session=self._forget,
        )
        self._outbox = Outbox(self._connection.push, status=self._status, stop=self._stop)

    def run(self) -> None:
        """Serve until an interrupt.

        Raises:
            SahflError: the child cannot start, or the device is not there.
        """
        why = None
        try:
            say("started", version=__version__, pid=os.getpid())
            self._start(self._begin_work)
            while not self._failed.wait(TICK_S):  # a wait without an end can miss a signal that comes just before it
                pass
        except KeyboardInterrupt as interrupt:
            why = str(interrupt)
        self._end(why)
        if self._failure is not None:
            raise self._failure

    def _begin_work(self) -> None:
        self._trainer.wait_until_ready()
        self._start(self._trainer.run, self._connection.run, self._connection.beat, self._outbox.run)

    def _start(self, *works: Callable[[], None]) -> None:
        for work in works:
            threading.Thread(target=self._watched, args=(work,), daemon=True).start()

    def _watched(self, work: Callable[[], None]) -> None:
        """Run a thread's work; where it fails, the daemon ends with its error."""
        try:
            work()
        except Exception as error:
            self._failure = self._failure or error
            self._failed.set()

    def _end(self, why: str | None) -> None:
        self._stop.set()
        self._trainer.close()
        self._connection.close()
        reason = "failed" if self._failure is not None else "stopped"
        self._status.set(connected=False, since=now_text(), reason=reason, doing=None, pid=None)
        say(reason, signal=why if self._failure is None else None)

    # ------------------------------------------------------------------------------------------- requests

    def _take(self, link: FleetLink, offer: Offer) -> None:
        """Begin with what the server asks; whatever is still being done for an earlier request ends."""
        if self._trainer.working_on(offer.id) or self._outbox.holds(offer.id):
            link.confirm(offer)
            return
        flower.enter_run(offer.run_id, offer.node_id)
        if code := link.code_of(offer.run_id):
            say("code_refused", level=logging.ERROR, what=offer.kind, code=code[:12])
            self._begin(link, offer, None, "PolicyRefused")
            return
        try:
            message = link.fetch(offer)
        except PayloadError as error:
            warn("request_refused", what=offer.kind, reason=str(error))
            self._begin(link, offer, None, type(error).__name__)
            return
        self._begin(link, offer, message)

    def _begin(self, link: FleetLink, offer: Offer, message: Message | None, refusal: str = "") -> None:
        say("received", what=offer.kind)
        self._outbox.drop()
        self._status.set(last_request={"at": now_text(), "what": offer.kind}, doing={"what": offer.kind})
        if message is None:
            self._trainer.abandon()
            self._answer(offer.head, flower.error_reply(offer.head, refusal))
        else:
            self._trainer.work(message)
        # Last of all: what was confirmed is never offered again, so it has to be in somebody's hands by now.
        link.confirm(offer)

    def _answer(self, message: Message, reply: Message) -> None:
        kind = message.metadata.message_type
        if reply.has_error():
            warn("failed", what=kind, error=reply.error.reason, log=f"logs/{self._site.name}.log")
        self._status.set(doing=None)
        self._outbox.put(Answer(message.metadata.message_id, kind, prepare(reply, message.metadata.dst_node_id)))

    def _show(self, event: Event) -> None:
        if isinstance(event, SiteStep):
            self._status.progress({"what": event.work, "done": event.done, "total": event.total})

    def _forget(self) -> None:
        """The server was started anew: nobody waits for what it asked before."""
        self._outbox.drop()
        self._trainer.abandon()
        self._status.set(doing=None)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a site's folder for this process; also a process that is killed lets it go.

    Raises:
        ConfigError: another process works in this folder.
        StorageError: the folder cannot be written.
    """
    busy = ConfigError(f"{folder}: another sahfl-client works in this folder; stop it first")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / "daemon.lock", busy=busy))
        except OSError as error:
            where = f"{folder}: cannot be written ({error.strerror}); see folder in the site's file"
            raise StorageError(where) from error
        yield


def load_kit(site: SiteConfig) -> SiteKit:
    """The kit that a site's file names, also one that has expired or is not valid yet.

    The connection says that of a kit, and tries on: a service that is started with an old kit, or before the clock of
    its machine is right, needs no command once that is mended.

    Raises:
        ConfigError: it names none, or that of another site.
        TrustError: the kit cannot be used, whatever the time is.
    """
    if site.kit is None:
        raise ConfigError(f"site {site.name}: kit is missing; expected the folder that the coordinating centre sent")
    kit = SiteKit.load(site.kit, at_any_time=True)
    if kit.site != site.name:
        raise ConfigError(f"{site.kit}: got the kit of site {kit.site}, expected that of {site.name}; see name and kit")
    return kit
