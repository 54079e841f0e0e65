"""The site's connection to the server: it is kept, made anew after a loss, asked for work, and takes the answers."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sahfl.errors import NotConnected, PayloadError, TrustError
from sahfl.federation.flower.handshake import request_headers
from sahfl.federation.flower.parcels import Offer, Upload
from sahfl.federation.flower.supernode import FleetLink, RunOver, SessionLost
from sahfl.log_lines import LogLine
from sahfl.process import now, now_text
from sahfl.trust.kit import SiteKit
from sahfl_client.backoff import Backoff
from sahfl_client.status import Status

log = logging.getLogger(__name__)

BEAT_S = 10.0
"""Pause between two heartbeats."""


class Connection:
    """Asks the server for work until ``stop`` is set.

    Guarantees: each change between connected and not connected is one log line, and stands in the status with its
    cause; each new session reads the kit again, so that a renewed certificate needs no restart; no error of the server
    or the network ends it. ``on_offer`` is called with each request of the server, and ``on_new_session`` when the
    server has lost its earlier requests.
    """

    def __init__(
        self,
        kit: Path,
        status: Status,
        stop: threading.Event,
        *,
        on_offer: Callable[[FleetLink, Offer], None],
        on_new_session: Callable[[], None],
    ) -> None:
        self._kit, self._status, self._stop = kit, status, stop
        self._on_offer, self._on_new_session = on_offer, on_new_session
        self._headers = request_headers(secrets.token_hex(8))
        self._link: FleetLink | None = None
        self._node_id: int | None = None
        self._state = ""
        self._warned: list[str] = []
        self._backoff = Backoff()

    def run(self) -> None:
        """Ask for work until ``stop`` is set."""
        while not self._stop.is_set():
            try:
                link = self._link or self._connect()
                offer = link.pull()
                self._connected()
                if offer is not None:
                    self._on_offer(link, offer)
            except SessionLost:
                self._link = None
                self._stop.wait(self._backoff.next_s())
            except RunOver:
                log.info(LogLine("abandoned", reason="the server does not want it any more"))
            except (NotConnected, TrustError, PayloadError) as error:
                lasting = not isinstance(error, NotConnected) or error.lasting
                if lasting:
                    self._link = None
                self._lost(str(error), pause_s := self._backoff.next_s(lasting=lasting))
                self._stop.wait(pause_s)

    def beat(self) -> None:
        """Send heartbeats until ``stop`` is set; ``run`` handles what goes wrong."""
        while not self._stop.wait(BEAT_S):
            if (link := self._link) is not None:
                try:
                    link.heartbeat()
                except (NotConnected, SessionLost, RunOver, PayloadError):
                    continue

    def push(self, upload: Upload) -> None:
        """Send an answer, in one try.

        Raises:
            NotConnected: it did not arrive whole.
            RunOver: nobody waits for it any more.
            PayloadError: the server refuses it.
        """
        link = self._link
        if link is None:
            raise NotConnected("not connected")
        try:
            link.push(upload)
        except SessionLost as error:
            raise NotConnected("the server has no such session") from error

    def close(self) -> None:
        """End the session at the server."""
        if (link := self._link) is not None:
            link.deactivate()

    def _connect(self) -> FleetLink:
        kit = SiteKit.load(self._kit)
        link = FleetLink(kit.host, kit.port, tls=kit.tls(), node_key=kit.node_key, headers=self._headers)
        link.activate()
        if self._node_id not in (None, link.node_id):
            self._on_new_session()
        self._link, self._node_id = link, link.node_id
        self._warn(kit)
        self._connected()
        return link

    def _warn(self, kit: SiteKit) -> None:
        before, self._warned = self._warned, kit.warnings(now())
        for text in self._warned:
            if text not in before:
                log.warning(LogLine("certificate", text=text))
        self._status.set(certificate_days=(kit.certificate_expires - now()).days, warnings=self._warned)

    def _connected(self) -> None:
        self._backoff.reset()
        if self._state != "connected":
            self._state = "connected"
            log.info(LogLine("connected"))
            self._status.set(connected=True, since=now_text(), reason=None)

    def _lost(self, reason: str, pause_s: float) -> None:
        if self._state == reason:
            return
        since = {"since": now_text()} if self._state in ("", "connected") else {}
        self._state = reason
        log.warning(LogLine("not_connected", reason=reason, next_try_s=round(pause_s, 1)))
        self._status.set(connected=False, reason=reason, **since)


@dataclass(frozen=True)
class Answer:
    """An answer, with the id and the kind of its request."""

    id: str
    kind: str
    upload: Upload


class Outbox:
    """Sends one answer at a time; a newer one takes its place.

    Guarantees: an answer has one id and the same bytes in each try, so that the server counts it once, however often
    the link is cut. ``push`` sends an answer in one try.
    """

    def __init__(self, push: Callable[[Upload], None], status: Status, stop: threading.Event) -> None:
        self._push, self._status, self._stop = push, status, stop
        self._changed = threading.Condition()
        self._answer: Answer | None = None

    def put(self, answer: Answer | None) -> None:
        """Send an answer, in place of one that is not sent yet; None drops that one only."""
        with self._changed:
            self._answer = answer
            self._changed.notify_all()

    def holds(self, id_: str) -> bool:
        """Whether the answer to a request is still to be sent."""
        answer = self._answer
        return answer is not None and answer.id == id_

    def run(self) -> None:
        """Send answers until ``stop`` is set."""
        while not self._stop.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._answer is not None, timeout=1.0)
                answer = self._answer
            if answer is not None:
                self._send(answer)
                with self._changed:
                    if self._answer is answer:
                        self._answer = None

    def _send(self, answer: Answer) -> None:
        backoff, tries = Backoff(), 0
        while self._answer is answer and not self._stop.is_set():
            tries += 1
            try:
                self._push(answer.upload)
                sent: dict[str, Any] = {"what": answer.kind, "bytes": answer.upload.n_bytes, "tries": tries}
                log.info(LogLine("answered", **sent))
                self._status.set(last_answer={"at": now_text()} | sent)
                return
            except RunOver:
                log.info(LogLine("abandoned", what=answer.kind, reason="the server does not want it any more"))
                return
            except PayloadError as error:
                log.warning(LogLine("answer_refused", what=answer.kind, reason=str(error)))
                return
            except NotConnected as error:
                if tries == 1:
                    log.warning(LogLine("answer_interrupted", what=answer.kind, reason=str(error)))
                with self._changed:
                    self._changed.wait_for(lambda: self._answer is not answer, timeout=backoff.next_s())
