"""The parent's side of a worker process: sends it one message at a time, and reads its output in a thread.

The simulation's grid and a hospital's daemon both use this class, so that both report a crash in the same words.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from flwr.app import Message

from sahfl.config import SiteConfig
from sahfl.federation.workers.worker import AppOf, cause_of_death, hospital_app, work
from sahfl.process import n_threads, own_process, spawning

LOST = {"MemoryError", "_ArrayMemoryError", "OutOfMemoryError", "AcceleratorError"}
"""Error classes after which a process gets no further task: memory ran out, or the GPU failed."""
STOP_S = 1.0
"""Seconds that idle workers have to end before they are killed."""


KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**31)}
"""Settings that glibc reads when a process starts: memory freed by a training step stays with the process.

Otherwise the system takes the memory back and clears it again for the next step, which took a tenth of a step. 2**25 is
the largest value that glibc accepts."""


class Worker:
    """A process that runs one message at a time, and the thread that reads its output.

    Guarantees: every output of the process arrives in ``outputs`` with this worker, and None last of all, even if the
    process dies in the middle of an output; ``give`` never blocks; the process ignores Ctrl-C, which reaches the whole
    group, and ends when its parent dies.

    Args:
        outputs: receives ("ready", number of GPUs), ("event", Event), ("reply", Message) or ("error", text).
        logs: folder for one log file per site.
        threads: number of threads of its computations; with one, a result depends on the message alone.
        app_of: returns the app for a site.
    """

    def __init__(self, outputs: WorkerOutputs, *, logs: Path, threads: int, app_of: AppOf = hospital_app) -> None:
        context = multiprocessing.get_context("spawn")
        # Two pipes: if a thread reads from a pipe, closing it here does not end it for the other side.
        their_requests, self._requests = context.Pipe(duplex=False)
        replies, their_replies = context.Pipe(duplex=False)
        self.ready = False
        self.message: Message | None = None
        memory = {name: os.environ.get(name, value) for name, value in KEEP_MEMORY.items()}
        with spawning(memory | n_threads(threads)):
            arguments = (their_requests, their_replies, str(logs), app_of)
            self.process = own_process(work, arguments)
            self.process.start()
            self.reader = threading.Thread(target=self._listen, args=(replies, outputs), daemon=True)
            self.reader.start()
        their_requests.close()
        their_replies.close()

    def give(self, message: Message, *, site: SiteConfig, run_id: int, node_id: int) -> None:
        """Send a message to the process, which answers it as ``site``."""
        self.message = message
        # In a thread: a worker that hangs before it has read the whole message must not block the parent.
        content = (site, run_id, node_id, message)
        threading.Thread(target=_send, args=(self._requests, content), daemon=True).start()

    def take(self) -> Message | None:
        """Remove and return the current message."""
        message, self.message = self.message, None
        return message

    def end_input(self) -> None:
        """Let an idle process end by itself."""
        self._requests.close()

    def kill(self) -> None:
        """Kill the process at once, and wait for its end."""
        self.process.kill()
        self.process.join()
        self.end_input()
        self.reader.join(STOP_S)

    def cause_of_death(self) -> str:
        """The cause of the process's death in words; waits, because its output ends a moment before the process."""
        self.process.join(STOP_S)
        return cause_of_death(self.process.exitcode or 0)

    def _listen(self, replies: Connection, outputs: WorkerOutputs) -> None:
        """Pass on the outputs of the process until it ends; an output that is incomplete then is dropped."""
        try:
            with replies, suppress(EOFError, OSError):
                while wait([replies, self.process.sentinel]) and replies.poll():
                    outputs.put((self, replies.recv()))
        finally:  # also if memory runs out while an output is read
            outputs.put((self, None))


WorkerOutputs = SimpleQueue[tuple[Worker, tuple[str, Any] | None]]
"""Outputs of workers in the order of their arrival; None marks the end of a worker."""


def _send(connection: Connection, content: Any) -> None:
    # ``_listen`` notices a dead worker by its sentinel. A connection that was closed meanwhile raises TypeError.
    with suppress(OSError, TypeError):
        connection.send(content)
