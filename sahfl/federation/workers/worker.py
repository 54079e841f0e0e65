"""The main function of a worker process, which runs the site's app on one message at a time."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict

from sahfl.config import SiteConfig
from sahfl.events import listening
from sahfl.federation import flower
from sahfl.log_lines import TextLines
from sahfl.regular_files import open_to_append


def cause_of_death(code: int) -> str:
    """Describe the exit code of a process in words, with the name of the signal that ended it."""
    if code >= 0:
        return f"exit code {code}"
    hints = {signal.SIGKILL: ": out of memory, or killed by hand", signal.SIGBUS: ": /dev/shm or a disk is full"}
    native = {signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
    try:
        number = signal.Signals(-code)
    except ValueError:
        return f"signal {-code}"
    return number.name + (": a crash in native code" if number in native else hints.get(number, ""))


AppOf = Callable[[SiteConfig], Any]
"""Returns the Flower app for a site."""


def work(requests: Connection, replies: Connection, logs: str, app_of: AppOf) -> None:
    """Answer messages until the connection ``requests`` ends. Imports come late, so that an early stop takes effect."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    import torch

    import sahfl.federation.site.app  # noqa: F401  (the longest of the imports, done before "ready")

    handler = logging.StreamHandler()
    handler.setFormatter(TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    with listening(lambda event: replies.send(("event", event))), suppress(EOFError, OSError):
        replies.send(("ready", torch.cuda.device_count()))
        while True:
            site, run_id, node_id, message = requests.recv()
            flower.enter_run(run_id, node_id)
            try:
                _log_to(Path(logs) / f"{site.name}.log")
            except OSError as error:  # a full disk; lines of this site must not go to another site's log
                replies.send(("error", f"StorageError: its log cannot be written ({error.strerror})"))
                continue
            replies.send(_answer(app_of(site), site, message, node_id))


def hospital_app(site: SiteConfig) -> Any:
    """The app of every hospital; a simulation also has others (``simulation.apps``)."""
    from sahfl.federation.site.app import app

    return app


def _answer(app: Any, site: SiteConfig, message: Message, node_id: int) -> tuple[str, Any]:
    config: Mapping[str, Any] = {"site": site.model_dump_json()}
    context = Context(message.metadata.run_id, node_id, dict(config), RecordDict(), {})
    try:
        return "reply", app(message, context)
    except Exception as error:
        return "error", str(error)


def _log_to(path: Path) -> None:
    """Redirect all output of this process to the site's log: that of logging, of print, and of native code."""
    sys.stdout.flush()
    sys.stderr.flush()
    with open_to_append(path, or_device=True) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
