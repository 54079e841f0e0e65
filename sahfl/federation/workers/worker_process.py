"""A worker process as its parent sees it: it is given one message at a time, and a thread reads what it says.

The simulation's grid and a hospital's daemon hold their workers by this one class, so that a crash has the same name
in both.
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
from sahfl.process import interrupts_blocked

LOST = {"MemoryError", "_ArrayMemoryError", "OutOfMemoryError", "AcceleratorError"}
"""Classes of errors after which a process is not trusted with another task: memory, or a GPU that failed."""
STOP_S = 1.0
"""How long idle workers may take to end by themselves before they are killed."""


KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**31)}
"""Read by glibc as a process starts: what a training step frees stays with the process for the next step. Otherwise the
system takes it back and clears it anew each time, which was a tenth of a step. 2**25 is the most that glibc accepts."""


class Worker:
    """A process that runs one message at a time, and the thread that reads what it says.

    Guarantees: everything that the process says arrives in ``heard`` with this worker beside it, and None last of all,
    also where the process dies in the middle of a sentence; giving a message never blocks; the process ignores Ctrl-C,
    which reaches the whole group, and ends when its parent dies.

    Args:
        heard: where it goes: ("ready", number of GPUs), ("event", Event), ("reply", Message) or ("error", text).
        logs: folder for one log file per site.
        threads: of PyTorch's; with one, a result is a function of the message alone.
        app_of: which app works for a site.
    """

    def __init__(self, heard: Heard, *, logs: Path, threads: int, app_of: AppOf = hospital_app) -> None:
        spawning = multiprocessing.get_context("spawn")
        # Two pipes: one that a thread reads from is not seen to end by the other side when it is closed here.
        their_requests, self._requests = spawning.Pipe(duplex=False)
        replies, their_replies = spawning.Pipe(duplex=False)
        self.ready = False
        self.message: Message | None = None
        for name, value in KEEP_MEMORY.items():
            os.environ.setdefault(name, value)
        with interrupts_blocked():
            arguments = (their_requests, their_replies, str(logs), threads, app_of)
            self.process = spawning.Process(target=work, args=arguments, daemon=True)
            self.process.start()
            self.reader = threading.Thread(target=self._listen, args=(replies, heard), daemon=True)
            self.reader.start()
        their_requests.close()
        their_replies.close()

    def give(self, message: Message, *, site: SiteConfig, run_id: int, node_id: int) -> None:
        """Have a message worked on, as a site."""
        self.message = message
        # In a thread: a worker that hangs before it has read all of it must not hold up the others.
        content = (site, run_id, node_id, message)
        threading.Thread(target=_send, args=(self._requests, content), daemon=True).start()

    def take(self) -> Message | None:
        """The message that was worked on, which is thereby done with."""
        message, self.message = self.message, None
        return message

    def end_input(self) -> None:
        """Let an idle process end by itself."""
        self._requests.close()

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        self.process.kill()
        self.process.join()
        self.end_input()
        self.reader.join(STOP_S)

    def cause_of_death(self) -> str:
        """What the process died of; it ends its output a moment before it is gone."""
        self.process.join(STOP_S)
        return cause_of_death(self.process.exitcode or 0)

    def _listen(self, replies: Connection, heard: Heard) -> None:
        """Pass on what the process says to its end, or until it dies: nothing more is awaited of a torn message."""
        try:
            with replies, suppress(EOFError, OSError):
                while wait([replies, self.process.sentinel]) and replies.poll():
                    heard.put((self, replies.recv()))
        finally:  # also where a message cannot be read, for want of memory
            heard.put((self, None))


Heard = SimpleQueue[tuple[Worker, tuple[str, Any] | None]]
"""What workers say, in the order in which they said it; None is the end of one."""


def _send(connection: Connection, content: Any) -> None:
    # A worker that has just died is found by its sentinel. A connection that was closed meanwhile raises TypeError.
    with suppress(OSError, TypeError):
        connection.send(content)
