"""What each program needs from its operating system: its end by a signal, locks on files, the time."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import current_process, get_context, resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from sahfl.atomic import make_folder
from sahfl.regular_files import LOG_BYTES, OWNER_ONLY, open_regular

RAISE_AGAIN_S = 0.1
"""Time after which an interrupt that Python dropped is raised once more."""

_OWN = threading.Event()
"""Set where a command of sahfl began this process."""

_WORKER = "sahfl-worker"
"""Name of the processes of ``own_process``, which multiprocessing gives a process before it imports anything else."""

_MAIN = threading.Lock()
"""Held while another module stands in the place of the main file."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGINT (Ctrl-C) and SIGTERM end the block cleanly, and the second of them end the process at once.

    Each command of sahfl runs in such a block, which makes the process its own (``is_own``).

    The first signal raises KeyboardInterrupt, with the signal's name, in the main thread, which must run the block.

    Guarantees: no signal is lost. SIGINT counts even if a shell started the program in the background, to ignore it.
    During an import one signal ends the process at once, because a library may catch KeyboardInterrupt or turn it into
    an error of its own. An interrupt that Python drops (raised in ``__del__``, for example) comes again.
    """
    _OWN.set()
    asked: int | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked is not None or _imports(frame):
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        asked = number
        raise KeyboardInterrupt(signal.Signals(number).name)

    def report(dropped: sys.UnraisableHookArgs) -> None:
        nonlocal asked
        if asked is None or not isinstance(dropped.exc_value, KeyboardInterrupt):
            report_before(dropped)
            return
        number, asked = asked, None
        threading.Timer(RAISE_AGAIN_S, signal.pthread_kill, (threading.main_thread().ident, number)).start()

    report_before, sys.unraisablehook = sys.unraisablehook, report
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = report_before


def _imports(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def is_own() -> bool:
    """Whether no user's code runs in this process: a command of sahfl, or what ``own_process`` made."""
    return _OWN.is_set() or current_process().name == _WORKER


def own_process(target: Callable[..., None], arguments: tuple[Any, ...]) -> SpawnProcess:
    """A new process, not started yet, that runs a function of sahfl; start it in ``spawning``."""
    return get_context("spawn").Process(target=target, args=arguments, daemon=True, name=_WORKER)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C, which reaches all processes of a terminal, from those that this thread spawns in the block."""
    resource_tracker.ensure_running()  # it starts with the first process that is spawned, and then unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def main_left_out() -> Iterator[None]:
    """Keep processes that are spawned in the block from running this program's main file once more.

    multiprocessing runs it in every new process, so that a script without ``if __name__ == "__main__"`` would start its
    work again there. With an empty module in its place there is nothing to run. What such a process needs must
    therefore lie in a module, not in the main file.
    """
    with _MAIN:
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Give processes that start in the block these variables; afterwards this process has its own again.

    Only one thread at a time may be in such a block, as in that of ``spawning``.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def spawning(variables: Mapping[str, str]) -> Iterator[None]:
    """Start processes of ``own_process`` in the block, which Ctrl-C does not reach, with these variables."""
    with interrupts_blocked(), main_left_out(), environment(variables):
        yield


def n_threads(n: int) -> dict[str, str]:
    """The variables of a process that computes with ``n`` threads, whichever of them a user has set.

    Libraries read them when they are imported. PyTorch's own setting does not reach numpy's linear algebra: beside two
    other processes on two cores its idle threads took two thirds of the processor from those that had work.
    """
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(n))


@contextmanager
def locked(path: Path, *, busy: Exception | None = None) -> Iterator[None]:
    """Hold the lock of a file or folder while the block runs; the system frees it when the process ends.

    Args:
        path: a folder, or a file, which is made with its folder if it is absent.
        busy: raised if another process holds the lock; without one, this process waits.

    Raises:
        OSError: the file cannot be made.
    """
    is_folder = path.is_dir()
    if not is_folder:
        make_folder(path.parent)
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT, OWNER_ONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            raise busy or error from error
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file."""
    try:
        with open_regular(path, most=LOG_BYTES) as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def now_text(timespec: str = "seconds") -> str:
    """The time as files and logs of a run hold it: ISO 8601, in UTC, to ``timespec``."""
    return now().isoformat(timespec=timespec)
