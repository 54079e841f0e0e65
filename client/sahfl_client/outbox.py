"""Sends an answer to the server until it arrives, or until nobody wants it any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sahfl.errors import NotConnected, PayloadError
from sahfl.federation.flower.parcels import Upload
from sahfl.federation.flower.supernode import RunOver
from sahfl.process import now_text
from sahfl_client.backoff import Backoff
from sahfl_client.log import log_event, warn
from sahfl_client.status import Status


@dataclass(frozen=True)
class Answer:
    """An answer, with the id and the kind of its request."""

    id: str
    kind: str
    upload: Upload


class Outbox:
    """Sends one answer at a time; a newer one takes its place.

    Guarantees: an answer has one id and the same bytes in each try, so that the server counts it once, however often
    the link is cut.

    Args:
        push: sends an answer, in one try.
        status: shows what was sent.
        stop: set when the daemon ends.
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
                log_event("answered", **sent)
                self._status.set(last_answer={"at": now_text()} | sent)
                return
            except RunOver:
                log_event("abandoned", what=answer.kind, reason="the server does not want it any more")
                return
            except PayloadError as error:
                warn("answer_refused", what=answer.kind, reason=str(error))
                return
            except NotConnected as error:
                if tries == 1:
                    warn("answer_interrupted", what=answer.kind, reason=str(error))
                with self._changed:
                    self._changed.wait_for(lambda: self._answer is not answer, timeout=backoff.next_s())
