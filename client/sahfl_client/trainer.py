"""The child process that reads scans: its messages, its outputs, and the cause of its death."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from flwr.app import Message

from sahfl.atomic import make_folder
from sahfl.config import SiteConfig
from sahfl.errors import RunFailed
from sahfl.events import Event
from sahfl.federation import flower
from sahfl.federation.site.device import resolve
from sahfl.federation.workers.worker_process import LOST, Worker, WorkerOutputs
from sahfl.log_lines import LogLine
from sahfl_client.backoff import Backoff

log = logging.getLogger(__name__)

START_S = 300.0
"""Longest time for the child to start: it loads PyTorch, perhaps from a slow disk."""


class Trainer:
    """Works on one message at a time in a child process, which stays between messages.

    Guarantees: a crash, a kill for memory or a failed GPU is an error reply that says so, and a new child; a newer
    message ends the work on the older one, which gets no reply; a child that cannot start again is tried again, with
    growing pauses. Methods may be called from several threads.

    Args:
        site: the site's configuration, which the child works as.
        on_reply: called with (message, reply), from a thread of this class.
        on_step: called with each event of the child's progress.
    """

    def __init__(
        self, site: SiteConfig, *, on_reply: Callable[[Message, Message], None], on_step: Callable[[Event], None]
    ) -> None:
        self._site, self._on_reply, self._on_step = site, on_reply, on_step
        self._outputs: WorkerOutputs = SimpleQueue()
        self._lock = threading.RLock()
        self._waiting: Message | None = None
        self._backoff = Backoff()
        self._closing = threading.Event()
        self._worker = self._spawn()

    def wait_until_ready(self) -> None:
        """Wait for the first child.

        Raises:
            RunFailed: it does not start.
            ConfigError: the device that the site's file names is not there.
        """
        worker, output = self._outputs.get(timeout=START_S)
        if output is None:
            cause = worker.cause_of_death()
            raise RunFailed(f"the worker process could not start ({cause}); its messages are on standard error")
        resolve(self._site.device, n_gpus=int(output[1]))
        worker.ready = True

    def run(self) -> None:
        """Process the outputs of the child until ``close``."""
        while not self._closing.is_set():
            worker, output = self._outputs.get()
            with self._lock:
                known = worker is self._worker and not self._closing.is_set()
                outcome = self._process(worker, output) if known else None
            if outcome is not None:
                self._on_reply(*outcome)
            if known and output is None:
                self._closing.wait(0.0 if worker.ready else self._backoff.next_s())
                with self._lock:
                    if worker is self._worker and not self._closing.is_set():
                        self._replace()

    def work(self, message: Message) -> None:
        """Work on a message, and on nothing else."""
        with self._lock:
            self.abandon()
            self._waiting = message
            self._dispatch()

    def abandon(self) -> None:
        """End what is being worked on, without a reply."""
        with self._lock:
            self._waiting = None
            if self._worker.take() is not None:
                self._replace()

    def working_on(self, id_: str) -> bool:
        """Whether a message is being worked on, or waits for it."""
        with self._lock:
            return any(m is not None and m.metadata.message_id == id_ for m in (self._waiting, self._worker.message))

    def close(self) -> None:
        """End the child at once."""
        with self._lock:
            self._closing.set()
            self._worker.kill()

    def _spawn(self) -> Worker:
        logs = self._site.folder / "logs"
        make_folder(logs)
        return Worker(self._outputs, logs=logs, threads=self._site.threads or len(os.sched_getaffinity(0)))

    def _replace(self) -> None:
        self._worker.kill()
        self._worker = self._spawn()

    def _dispatch(self) -> None:
        message = self._waiting
        if message is not None and self._worker.ready and self._worker.message is None:
            self._waiting = None
            run_id, node_id = message.metadata.run_id, message.metadata.dst_node_id
            self._worker.give(message, site=self._site, run_id=run_id, node_id=node_id)

    def _process(self, worker: Worker, output: tuple[str, Any] | None) -> tuple[Message, Message] | None:
        """Process one output of the child; returns a message and its reply if the output ends the message's work."""
        if output is None:
            return self._bury(worker)
        kind, content = output
        if kind == "ready":
            worker.ready = True
            self._backoff.reset()
            self._dispatch()
        elif kind == "event":
            self._on_step(content)
        elif (message := worker.take()) is not None:
            if kind == "reply":
                return message, content
            if crash := content in LOST:
                log.warning(LogLine("worker_replaced", reason=content))
                self._replace()
            return message, flower.error_reply(message, content, crash=crash)
        return None

    def _bury(self, worker: Worker) -> tuple[Message, Message] | None:
        cause, message = worker.cause_of_death(), worker.take()
        log.warning(LogLine("worker_died", cause=cause))
        if message is None:
            message, self._waiting = self._waiting, None
        if message is None:
            return None
        return message, flower.error_reply(message, f"worker process died ({cause})", crash=True)
