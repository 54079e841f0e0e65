"""The site's service: its connection, the child process that does the work, and its answers."""

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
from sahfl.events import Event, SiteStep, Warned
from sahfl.federation import flower
from sahfl.federation.flower.parcels import Offer, prepare
from sahfl.federation.flower.supernode import FleetLink
from sahfl.log_lines import LogLine, log_ignored_variables
from sahfl.process import locked, now_text
from sahfl.settings_file import about_setting
from sahfl.trust.kit import SiteKit
from sahfl_client.connection import Answer, Connection, Outbox
from sahfl_client.status import Status
from sahfl_client.trainer import Trainer

log = logging.getLogger(__name__)

TICK_S = 1.0


class Daemon:
    """Takes requests, passes them to a child process, and sends the answers, until SIGTERM or Ctrl-C.

    This process holds the connection and the keys, and reads no scan; its child reads scans, and never uses the
    network. No code of a run is fetched: the child runs the installed app only.
    """

    def __init__(self, site: SiteConfig, kit: SiteKit) -> None:
        flower.silence()
        self._site = site
        self._stop = threading.Event()
        self._failed = threading.Event()
        self._failure: BaseException | None = None
        self._status = Status(site.folder, site=site.name, server=f"{kit.host}:{kit.port}")
        self._trainer = Trainer(site, on_reply=self._answer, on_step=self._show)
        self._connection = Connection(
            kit.folder, self._status, self._stop, on_offer=self._take, on_new_session=self._drop_work
        )
        self._outbox = Outbox(self._connection.push, self._status, self._stop)

    def run(self) -> None:
        """Serve until an interrupt.

        Raises:
            SahflError: the child cannot start, or the device is not there.
        """
        why = None
        try:
            log.info(LogLine("started", version=__version__, pid=os.getpid()))
            log_ignored_variables(log)
            self._start(self._begin_work)
            while not self._failed.wait(TICK_S):  # a wait without an end can miss a signal that comes just before it
                pass
        except KeyboardInterrupt as interrupt:
            why = str(interrupt)
        self._end(why)

    def _begin_work(self) -> None:
        self._trainer.wait_until_ready()
        self._start(self._trainer.run, self._connection.run, self._connection.beat, self._outbox.run)

    def _start(self, *works: Callable[[], None]) -> None:
        for work in works:
            threading.Thread(target=self._watched, args=(work,), daemon=True).start()

    def _watched(self, work: Callable[[], None]) -> None:
        """Run a thread's work; an error in it ends the daemon."""
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
        log.info(LogLine(reason, signal=why if self._failure is None else None))
        if self._failure is not None:
            raise self._failure

    def _take(self, link: FleetLink, offer: Offer) -> None:
        """Begin with a request of the server, and end the work on an earlier one."""
        if self._trainer.working_on(offer.id) or self._outbox.holds(offer.id):
            link.confirm(offer)
            return
        flower.enter_run(offer.run_id, offer.node_id)
        message, refusal = None, "PolicyRefused"
        if code := link.code_of(offer.run_id):
            log.error(LogLine("code_refused", what=offer.kind, code=code[:12]))
        else:
            try:
                message = link.fetch(offer)
            except PayloadError as error:
                refusal = type(error).__name__
                log.warning(LogLine("request_refused", what=offer.kind, reason=str(error)))
        log.info(LogLine("received", what=offer.kind))
        self._outbox.put(None)
        at = now_text()
        doing = {"what": offer.kind, "since": at}
        self._status.set(last_request={"at": at, "what": offer.kind}, doing=doing)
        if message is None:
            self._trainer.abandon()
            self._answer(offer.head, flower.error_reply(offer.head, refusal))
        else:
            self._trainer.work(message)
        # Last of all: the server never offers a confirmed request again.
        link.confirm(offer)

    def _answer(self, message: Message, reply: Message) -> None:
        kind = message.metadata.message_type
        if reply.has_error():
            log.warning(LogLine("failed", what=kind, error=reply.error.reason, log=f"logs/{self._site.name}.log"))
        self._status.answered(kind, flower.error_class(reply) if reply.has_error() else None)
        self._outbox.put(Answer(message.metadata.message_id, kind, prepare(reply, message.metadata.dst_node_id)))

    def _show(self, event: Event) -> None:
        if isinstance(event, SiteStep):
            self._status.progress({"what": event.work, "done": event.done, "total": event.total})
        elif isinstance(event, Warned):
            log.warning(LogLine("warning", what=event.text))

    def _drop_work(self) -> None:
        """Drop all work, after a restart of the server: nobody waits for it."""
        self._outbox.put(None)
        self._trainer.abandon()
        self._status.set(doing=None)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a site's folder for this process, until it ends in whatever way.

    Raises:
        ConfigError: another process works in this folder.
        StorageError: the folder cannot be written.
    """
    busy = ConfigError(f"{folder}: another sahfl-client works in this folder; stop it first")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / "daemon.lock", busy=busy))
        except OSError as error:
            failed = StorageError(f"{folder}: cannot be written ({error.strerror}); see folder in the site's file")
            failed.settings = {("folder",): str(failed)}
            raise failed from error
        yield


def load_kit(site: SiteConfig) -> SiteKit:
    """Read the kit that a site's file names, even if it has expired or is not valid yet.

    The connection reports such a kit and tries again, so that the service needs no restart once the kit is renewed or
    the machine's clock is right.

    Raises:
        ConfigError: the file names no kit, or another site's.
        TrustError: the kit cannot be used at any time.
    """
    with about_setting("kit"):
        if site.kit is None:
            raise ConfigError(
                f"site {site.name}: kit is missing; expected the folder that the coordinating centre sent"
            )
        kit = SiteKit.load(site.kit, at_any_time=True)
        if kit.site != site.name:
            found = f"got the kit of site {kit.site}, expected that of {site.name}; see name and kit"
            raise ConfigError(f"{site.kit}: {found}")
    return kit
