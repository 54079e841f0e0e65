"""What a server is doing, as one JSON file, for ``sahfl status`` and for monitoring."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, assert_never

from sahfl import __version__, events
from sahfl.atomic import write_atomic
from sahfl.cell_names import PRETRAIN
from sahfl.config import Study
from sahfl.events import CellResumed, CellStage, Event, RoundCommitted
from sahfl.federation.flower.fleet import Fleet
from sahfl.last_errors import LastErrors, after_answer
from sahfl.log_lines import LogLine
from sahfl.process import now, now_text

log = logging.getLogger(__name__)
SCHEMA = 3
EVERY_S = 1.0
"""Shortest time between two writings of the file."""
BEGUN: dict[str, Any] = {
    "doing": "training",
    "round": 0,
    "rounds": 0,
    "attempt": 1,
    "waiting_for": [],
    "deadline": None,
}
"""The status of a cell that has just begun."""
DOING: dict[CellStage, str] = {"fine-tuning": "training", "evaluating": "evaluating"}


class Status:
    """The status of one server process; ``about`` returns ``doing``, the work of each site, and more fields."""

    def __init__(self, path: Path, fleet: Fleet, *, pid: int, about: Callable[[], dict[str, Any]]) -> None:
        self._path, self._fleet, self._about = path, fleet, about
        self._lock = threading.Lock()
        self._written = 0.0
        self._stuck = ""
        self._server: dict[str, Any] = {"version": __version__, "started": now_text(), "pid": pid, "listening": None}
        self._study: dict[str, Any] | None = None
        self._reasons: dict[str, str] = {}
        self._errors: dict[str, LastErrors] = {}

    def listening(self, address: str | None) -> None:
        """Set the address of the open port; None once the server ends."""
        self._server["listening"] = address

    def begin(self, name: str, study: Study) -> None:
        """Begin with a study."""
        sites = list(study.sites)
        self._study = {
            **{"name": name, "stage": "waiting for sites", "cells": {}, "quorum": study.rounds.quorum},
            **{"waiting_for": [], "deadline": None, "sites": sites, "committed": None, "loss": None},
        }
        self._reasons = {}

    def end(self) -> None:
        """Leave the study, which has ended."""
        self._study = None

    def wait_for(self, sites: list[str], *, deadline_s: float | None = None, cell: str = "") -> None:
        """Set the sites that the study waits for, or a cell of it."""
        if self._study is not None:
            end = None if deadline_s is None else now() + timedelta(seconds=deadline_s)
            waits = {"waiting_for": sites, "deadline": end and end.isoformat(timespec="seconds")}
            if cell:
                self._work(cell, **waits)
            else:
                self._study |= waits

    def update(self, event: Event) -> None:
        """Follow an event of the run."""
        study = self._study
        if study is None:
            return
        match event:
            case events.StageBegun():
                study.update(stage=event.text, cells={}, waiting_for=[], deadline=None)
            case events.CellStageBegun():
                study.update(stage="fine-tuning and evaluation", waiting_for=[], deadline=None)
                self._work(event.cell, doing=DOING[event.stage], waiting_for=[], deadline=None)
            case events.RoundBegun():
                self._work(event.cell, **BEGUN | {"round": event.round, "rounds": event.rounds})
            case events.RoundCommitted():
                self._commit(study, event, loss=event.loss)
            case events.CellResumed():
                self._commit(study, event, loss=None)
            case events.CellEvaluated():
                study["cells"] = {cell: what for cell, what in study["cells"].items() if cell != event.cell}
            case events.RoundFailed():
                self._work(event.cell, attempt=study["cells"].get(event.cell, BEGUN)["attempt"] + 1)
            case events.Waiting():
                awaited = sorted((*event.sites, *event.working))
                self.wait_for(awaited, deadline_s=event.deadline_s - event.waited_s, cell=event.cell)
            case events.Paused():
                self.wait_for(self._fleet.missing(study["sites"]), deadline_s=event.seconds, cell=event.cell)
            case events.SiteFinished():
                self._reasons.pop(event.site, None)
                self._answered(event.site, event.work, None)
            case events.SiteFailed():
                self._reasons[event.site] = event.reason
                if event.error:
                    self._answered(event.site, event.work, event.error)
            case events.SiteLeftOut():
                self._reasons[event.site] = event.reason
            case (
                events.CellReused()
                | events.RoundEvaluated()
                | events.UpdateBounded()
                | events.SiteStarted()
                | events.SiteStep()
                | events.Warned()
            ):
                pass
            case _:
                assert_never(event)
        self.write()

    def _commit(self, study: dict[str, Any], event: RoundCommitted | CellResumed, *, loss: float | None) -> None:
        study.update(committed=f"{event.cell}, round {event.round}", loss=loss)
        if event.cell == PRETRAIN and event.round >= event.rounds:
            study["cells"] = {}

    def _work(self, cell: str, **what: Any) -> None:
        """Change fields of a cell, in a new mapping: other threads may be reading the old one."""
        if self._study is not None:
            known = self._study["cells"]
            self._study["cells"] = known | {cell: known.get(cell, BEGUN) | what}

    def _answered(self, site: str, what: str, error: str | None) -> None:
        self._errors = self._errors | {site: after_answer(self._errors.get(site, {}), what, error)}

    def _sites(self, doing: dict[str, dict[str, str]]) -> dict[str, Any]:
        gone = {"last_seen": None, "version": None, "doing": None, "missing_reason": "its key was revoked"}
        found: dict[str, Any] = {site: {"state": "revoked", **gone} for site in self._fleet.revoked()}
        for seat in self._fleet.seats():
            there = self._fleet.connected(seat)
            found[seat.site] = {
                "state": "connected" if there else "not connected",
                "last_seen": seat.seen_at and seat.seen_at.isoformat(timespec="seconds"),
                "version": seat.version or None,
                "doing": doing.get(seat.site) if there else None,
                "missing_reason": self._reasons.get(seat.site) or (None if there else "not connected"),
            }
        return {site: of | {"errors": self._errors.get(site, {})} for site, of in sorted(found.items())}

    def _running(self, doing: dict[str, dict[str, str]]) -> dict[str, Any] | None:
        """The study; of the sites whose answers are still to come, those that work and those that are waited for."""
        if self._study is None:
            return None
        busy = {site for site, work in doing.items() if work["state"] == "working"}

        def told_apart(at: dict[str, Any]) -> dict[str, Any]:
            working = [site for site in at["waiting_for"] if site in busy]
            return at | {"working": working, "waiting_for": [site for site in at["waiting_for"] if site not in busy]}

        return told_apart(self._study) | {"cells": {cell: told_apart(at) for cell, at in self._study["cells"].items()}}

    def content(self) -> dict[str, Any]:
        """The whole status."""
        about = self._about()
        doing = about.pop("doing")
        running, sites = self._running(doing), self._sites(doing)
        return {"schema": SCHEMA, "at": now_text(), "server": self._server, "study": running, "sites": sites} | about

    def write(self, *, force: bool = False) -> None:
        """Write the file, if the last writing is long enough ago; a full disk stops nothing, and is logged once."""
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
                    log.error(LogLine("status_not_written", file=str(self._path), reason=error.strerror))
