"""The server's process: its port, its registered sites, its queue of studies, and a clean end."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from sahfl.config import ServerConfig
from sahfl.errors import RunError, TrustError
from sahfl.events import Event, RoundBegun, listening
from sahfl.federation.flower.doorway import allow_many_files, open_port
from sahfl.federation.flower.fleet import Fleet
from sahfl.federation.flower.gate import Gate
from sahfl.federation.flower.link import Link
from sahfl.federation.flower.listener import Listener
from sahfl.federation.server.studies import Studies
from sahfl.log_lines import LogLine, log_ignored_variables
from sahfl.process import locked, now
from sahfl.settings_file import about_setting
from sahfl.trust.kit import ServerKit
from sahfl_server.metrics import showing_metrics
from sahfl_server.runner import Runner
from sahfl_server.status import Status

log = logging.getLogger(__name__)
TICK_S = 1.0
"""Pause between two checks of registered sites, connections and status."""


class Service:
    """One server: everything between the settings and the exit code.

    Guarantees: one process, one port (and a loopback port for metrics, if set); a restart needs the run folders only. A
    site that is revoked in ``sites.json`` is out within two seconds, and always before the next round.

    Raises:
        TrustError: the kit cannot be used.
        RunError: the port is taken, or another server works in the same folder.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        with about_setting("kit"):
            self._kit = ServerKit.load(config.kit)
        self._tls = self._kit.tls()
        self._fleet, self._link = Fleet(), Link()
        self._gate = Gate(self._link, self._fleet)
        self._status = Status(config.folder / "status.json", self._fleet, pid=os.getpid(), about=self._about)
        self._studies = Studies(config.folder)
        self._runner = Runner(config, self._link, self._fleet, self._gate, self._status, self._studies)
        self._known: tuple[float, ...] = ()
        self._refreshing = threading.Lock()
        self._there: set[str] = set()

    def run(self, *, until_done: bool) -> int:
        """Serve until a signal, or with ``until_done`` until the queue is empty.

        Returns:
            Exit code: 0, or 3 if a study failed and the queue is empty.
        """
        config = self._config
        busy = RunError(f"{config.folder}: another server works here; stop it, or give this one another folder")
        with ExitStack() as stack:
            stack.enter_context(locked(config.folder / "server.lock", busy=busy))
            self._refresh()
            allow_many_files()
            doorway = open_port(config.host, config.port)
            listener = stack.enter_context(Listener(self._gate, doorway, tls=self._tls, closing=self._gate.close))
            metrics = stack.enter_context(showing_metrics(config.metrics_port, self._status.content))
            self._status.listening(listener.address)
            n_sites = len(self._fleet.seats())
            log.info(LogLine("listening", address=listener.address, sites=n_sites, metrics=metrics))
            log_ignored_variables(log)
            for warning in self._kit.warnings(now()):
                log.warning(LogLine("certificate_ends", what=warning))
            stack.enter_context(self._ticking())
            stack.enter_context(listening(self._follow))
            try:
                return self._serve(until_done)
            except KeyboardInterrupt:
                log.info(LogLine("stopping", reason="signal"))
                return 0
            finally:
                self._status.listening(None)
                self._status.write(force=True)

    def _serve(self, until_done: bool) -> int:
        failed = 0
        while True:
            if waiting := self._studies.waiting():
                failed += not self._runner.run(waiting[0])
            elif until_done:
                return 3 if failed else 0
            else:
                self._fleet.bell.wait(TICK_S)

    def _follow(self, event: Event) -> None:
        if isinstance(event, RoundBegun):
            self._refresh()
        self._status.update(event)

    def _refresh(self) -> None:
        """Read the registered sites again if their files changed; after an unreadable file they stay as they are."""
        with self._refreshing:
            files = [self._config.kit / name for name in ("sites.json", "revoked.crl")]
            found = tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)
            if found == self._known:
                return
            first, self._known = not self._known, found
            try:
                joined, out = self._fleet.register(self._kit.sites(), self._link.enroll, revoked=self._kit.revoked())
                self._kit.read_revoked(self._tls)
            except TrustError as error:
                log.error(LogLine("sites_not_read", reason=str(error)))
                if first:
                    raise
                return
            for site in () if first else joined:
                log.info(LogLine("registered", site=site))
            for site in out:
                log.warning(LogLine("revoked", site=site))
            self._gate.wake([seat.node_id for seat in self._fleet.everyone()])

    @contextmanager
    def _ticking(self) -> Iterator[None]:
        stop = threading.Event()

        def tick() -> None:
            while not stop.wait(TICK_S):
                self._refresh()
                self._log_changes()
                self._status.write()

        thread = threading.Thread(target=tick, name="ticker", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(2 * TICK_S)

    def _log_changes(self) -> None:
        there = {seat.site for seat in self._fleet.seats() if self._fleet.connected(seat)}
        for site in sorted(self._there - there):
            log.warning(LogLine("disconnected", site=site))
        if self._there != there:
            self._there = there
            self._fleet.bell.ring()

    def _about(self) -> dict[str, Any]:
        """Fields of the status besides the study and the sites."""
        certificates = {"server": self._kit.certificate_expires, "authority": self._kit.authority_expires}
        warnings: list[str] = []
        with suppress(TrustError):
            entries = self._kit.entries().items()
            certificates |= {site: entry.expires for site, entry in entries if entry.state == "active"}
            warnings = self._kit.warnings(now())
        return {
            "doing": self._runner.doing(),
            "queue": [path.stem for path in self._studies.waiting()],
            "certificates": {name: end.isoformat(timespec="seconds") for name, end in certificates.items()},
            "warnings": warnings,
            "held": self._link.counts(),
            "last": self._runner.last,
        }
