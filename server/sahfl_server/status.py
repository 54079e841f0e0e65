"""What a server is doing, as one JSON file: for ``sahfl status``, for Prometheus, and for whoever watches it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from sahfl import __version__
from sahfl.atomic import write_atomic
from sahfl.config import Study
from sahfl.events import Event
from sahfl.federation.flower.fleet import Fleet
from sahfl.process import now, now_text

log = logging.getLogger(__name__)
SCHEMA = 2
EVERY_S = 1.0
"""The file is written this often at most, and after each event."""
BEGUN: dict[str, Any] = {
    "doing": "training",
    "round": 0,
    "rounds": 0,
    "attempt": 1,
    "waiting_for": [],
    "deadline": None,
}
"""What is said of a cell that has just begun."""


class Status:
    """The status of one server process.

    Args:
        path: the file.
        fleet: the registered sites.
        about: what is asked when it is written: more fields of the whole.
    """

    def __init__(self, path: Path, fleet: Fleet, *, pid: int, about: Callable[[], dict[str, Any]]) -> None:
        self._path, self._fleet, self._about = path, fleet, about
        self._lock = threading.Lock()
        self._written = 0.0
        self._stuck = ""
        self._server: dict[str, Any] = {"version": __version__, "started": now_text(), "pid": pid, "listening": None}
        self._study: dict[str, Any] | None = None
        self._reasons: dict[str, str] = {}

    def listening(self, address: str) -> None:
        """The port is open."""
        self._server["listening"] = address

    def stopped(self) -> None:
        """The server ends."""
        self._server["listening"] = None

    def begin(self, name: str, study: Study) -> None:
        """A study begins."""
        sites = list(study.sites)
        self._study = {
            **{"name": name, "stage": "waiting for sites", "cells": {}, "quorum": study.rounds.quorum},
            **{"waiting_for": [], "deadline": None, "sites": sites, "committed": None, "loss": None},
        }
        self._reasons = {}

    def end(self) -> None:
        """No study runs."""
        self._study = None

    def wait_for(self, sites: list[str], *, deadline_s: float | None = None, cell: str = "") -> None:
        """The study waits for these sites, or a cell of it does."""
        if self._study is not None:
            end = None if deadline_s is None else now() + timedelta(seconds=deadline_s)
            waits = {"waiting_for": sites, "deadline": end and end.isoformat(timespec="seconds")}
            if cell:
                self._work(cell, **waits)
            else:
                self._study |= waits

    def hear(self, event: Event) -> None:
        """Take in an event of the run."""
        study = self._study
        if study is None:
            return
        match event.kind:
            case "stage" if event.cell:
                study.update(stage="fine-tuning and evaluation", waiting_for=[], deadline=None)
                doing = "evaluating" if event.text.startswith("evaluating") else "training"
                self._work(event.cell, doing=doing, waiting_for=[], deadline=None)
            case "stage":
                study.update(stage=event.text, cells={}, waiting_for=[], deadline=None)
            case "round":
                self._work(event.text, **BEGUN | {"round": int(event.done), "rounds": int(event.total)})
            case "committed" | "resumed":
                study.update(committed=f"{event.text}, round {event.done:.0f}", loss=event.loss)
                if event.text == "pretrain" and event.done >= event.total:
                    study["cells"] = {}
            case "evaluated":
                study["cells"] = {cell: what for cell, what in study["cells"].items() if cell != event.text}
            case "failed_round":
                self._work(event.cell, attempt=study["cells"].get(event.cell, BEGUN)["attempt"] + 1)
            case "waiting":
                self.wait_for(event.text.split(", "), deadline_s=event.total - event.done, cell=event.cell)
            case "paused":
                missing = self._fleet.missing(study["sites"])
                self.wait_for(missing, deadline_s=event.total, cell=event.cell)
            case "finished":
                self._reasons.pop(event.site, None)
            case "failed":
                self._reasons[event.site] = event.text
        self.write()

    def _work(self, cell: str, **what: Any) -> None:
        """Say more of a cell; the mapping is a new one, as other threads may be reading the old one."""
        if self._study is not None:
            known = self._study["cells"]
            self._study["cells"] = known | {cell: known.get(cell, BEGUN) | what}

    def sites(self, doing: dict[str, str]) -> dict[str, Any]:
        """Each site: whether it is there, since when not, what it does."""
        found: dict[str, Any] = {site: {"state": "revoked"} for site in self._fleet.revoked()}
        for seat in self._fleet.seats():
            there = self._fleet.connected(seat)
            found[seat.site] = {
                "state": "connected" if there else "not connected",
                "last_seen": seat.heard_at and seat.heard_at.isoformat(timespec="seconds"),
                "version": seat.version or None,
                "doing": doing.get(seat.site, "idle") if there else None,
                "missing_reason": self._reasons.get(seat.site) or (None if there else "not connected"),
            }
        return dict(sorted(found.items()))

    def content(self) -> dict[str, Any]:
        """The whole status."""
        about = self._about()
        sites = self.sites(about.pop("doing"))
        study = None if self._study is None else dict(self._study)
        return {"schema": SCHEMA, "at": now_text(), "server": self._server, "study": study, "sites": sites} | about

    def write(self, *, force: bool = False) -> None:
        """Write the file, if the last time is long enough ago; a full disk is said once and stops nothing."""
        with self._lock:
            if not force and time.monotonic() - self._written < EVERY_S:
                return
            self._written = time.monotonic()
            try:
                write_atomic(self._path, json.dumps(self.content(), indent=1) + "\n")
                self._stuck = ""
            except OSError as error:
                if self._stuck != str(error):
                    self._stuck = str(error)
                    log.error("event=status_not_written file=%s reason=%r", self._path, error.strerror)
