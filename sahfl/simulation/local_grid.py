"""LocalGrid: Flower's Grid on one machine, with spawned worker processes that run the site's app."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from sahfl.atomic import make_folder
from sahfl.config import HostileAct, SiteConfig
from sahfl.errors import RunFailed
from sahfl.events import SiteFailed, SiteFinished, SiteStarted, emit
from sahfl.federation import flower
from sahfl.federation.flower import Run
from sahfl.federation.workers.worker_process import LOST, STOP_S, Worker, WorkerOutputs
from sahfl.simulation.apps import simulated_app

FIRST_NODE_ID = 100


class LocalGrid(Grid):
    """Runs the app of any number of sites in a few worker processes.

    Guarantees: a site works on at most one message; an error or a dead worker gives an error reply for that site alone,
    and a dead worker is replaced; results do not depend on the number of workers (each computes with one thread).
    Leaving the block ends every worker, at once after an exception, and workers also end when this process dies. A
    worker that stops in the middle of a reply blocks only its own site, because a separate thread reads its output.

    Args:
        sites: configurations of the sites; node ids count from 100 in this order.
        workers: number of processes.
        logs: folder for one log file per site.
        hostile: attack of each hostile site by name (``simulation.hostile``); by default all sites are honest.

    Raises:
        RunFailed: a worker process cannot start (out of memory, broken installation).
    """

    waits = True
    """``pull_messages`` waits by itself."""

    def __init__(
        self, sites: Iterable[SiteConfig], *, workers: int, logs: Path, hostile: Mapping[str, HostileAct] | None = None
    ) -> None:
        self._run_id = flower.new_run_id()
        flower.enter_run(self._run_id)
        self._sites = {FIRST_NODE_ID + index: site for index, site in enumerate(sites)}
        self._n_workers, self._logs = workers, logs
        self._app_of = partial(simulated_app, hostile=dict(hostile or {}))
        self._workers: list[Worker] = []
        self._outputs: WorkerOutputs = SimpleQueue()
        self._queue: deque[Message] = deque()
        self._replies: dict[str, Message] = {}
        self._run = flower.empty_run(self._run_id)

    def __enter__(self) -> Self:
        make_folder(self._logs)
        for _ in range(self._n_workers):
            self._spawn()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            if kind is not None or worker.message is not None:
                worker.process.kill()
            worker.end_input()  # an idle worker ends at the end of its input
        end = time.monotonic() + STOP_S
        for worker in self._workers:
            worker.process.join(max(0.0, end - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.reader.join(STOP_S)
        self._workers.clear()

    # ------------------------------------------------------------------------------------------- Grid

    def set_run(self, run: Run) -> None:
        """Set the run (Flower's runtimes call this)."""
        self._run = run

    @property
    def run(self) -> Run:
        """The Flower run of this grid's messages."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message to a node."""
        return flower.new_message(content, dst_node_id, message_type, group_id, ttl)

    def get_node_ids(self) -> list[int]:
        """Node ids of all sites of the simulation."""
        return list(self._sites)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages; an earlier message to the same site is stopped, and ends with an error reply."""
        ids = []
        for message in messages:
            self._drop(message.metadata.dst_node_id)
            ids.append(flower.give_id(message))
            self._queue.append(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived; waits for a twentieth of a second at most if there are none."""
        wanted = list(message_ids)
        self._pump(0.0 if any(id_ in self._replies for id_ in wanted) else 0.05)
        return [self._replies.pop(id_) for id_ in wanted if id_ in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push messages, and wait for all replies or ``timeout`` seconds."""
        return flower.send_and_wait(self, messages, timeout)

    # ------------------------------------------------------------------------------------------- workers

    def working(self) -> set[str]:
        """Sites that work on a message."""
        return set(self.busy())

    def busy(self) -> dict[str, int]:
        """Process id of the worker of each site that works on a message."""
        return {
            self._name(worker.message): worker.process.pid
            for worker in self._workers
            if worker.message is not None and worker.process.pid is not None
        }

    def _name(self, message: Message) -> str:
        return self._sites[message.metadata.dst_node_id].name

    def _spawn(self) -> None:
        self._workers.append(Worker(self._outputs, logs=self._logs, threads=1, app_of=self._app_of))

    def _drop(self, node_id: int) -> None:
        dropped = [message for message in self._queue if message.metadata.dst_node_id == node_id]
        self._queue = deque(message for message in self._queue if message.metadata.dst_node_id != node_id)
        for worker in [w for w in self._workers if w.message and w.message.metadata.dst_node_id == node_id]:
            dropped += [worker.message] if worker.message is not None else []
            worker.message = None
            self._replace(worker)
        for message in dropped:
            reply = flower.error_reply(message, "stopped: the site is asked for something newer")
            self._replies[message.metadata.message_id] = reply

    def _replace(self, worker: Worker) -> None:
        worker.kill()
        self._workers.remove(worker)
        self._spawn()

    def _pump(self, timeout: float) -> None:
        self._dispatch()
        with suppress(Empty):
            self._process(*self._outputs.get(timeout=timeout))
            for _ in range(self._outputs.qsize()):
                self._process(*self._outputs.get_nowait())
        self._dispatch()

    def _process(self, worker: Worker, output: tuple[str, Any] | None) -> None:
        """Process an output of a worker, or its end (None); outputs of workers that were replaced are ignored."""
        if worker not in self._workers:
            return
        if output is None:
            self._bury(worker)
        else:
            self._receive(worker, *output)

    def _dispatch(self) -> None:
        for worker in self._workers:
            if self._queue and worker.ready and worker.message is None:
                message = self._queue.popleft()
                node_id = message.metadata.dst_node_id
                site = self._sites[node_id]
                worker.give(message, site=site, run_id=self._run_id, node_id=node_id)
                emit(SiteStarted(self._name(message), message.metadata.message_type))

    def _receive(self, worker: Worker, kind: str, content: Any) -> None:
        if kind == "ready":
            worker.ready = True
        elif kind == "event":
            emit(content)
        elif (message := worker.take()) is not None:
            if kind == "reply":
                self._replies[message.metadata.message_id] = content
                emit(SiteFinished(self._name(message), message.metadata.message_type))
            else:
                crash = content in LOST
                self._fail(message, content, crash=crash)
                if crash:
                    self._replace(worker)

    def _bury(self, worker: Worker) -> None:
        cause = worker.cause_of_death()
        if not worker.ready:
            raise RunFailed(f"a worker process could not start ({cause}); its messages are on standard error")
        message = worker.take()
        self._replace(worker)
        if message is not None:
            self._fail(message, f"worker process died ({cause})", crash=True)

    def _fail(self, message: Message, reason: str, *, crash: bool) -> None:
        reply = flower.error_reply(message, reason, crash=crash)
        self._replies[message.metadata.message_id] = reply
        emit(SiteFailed(self._name(message), message.metadata.message_type, reason, flower.error_class(reply)))
