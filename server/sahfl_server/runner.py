"""Runs one study of the queue: waits for its sites, then calls Flower's ServerApp on the embedded SuperLink."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sahfl.config import ServerConfig, Study
from sahfl.errors import ConfigError, RunFailed, SahflError, StorageError, StudyCancelled
from sahfl.events import Event, Paused, RoundFailed, SiteFailed, Warned, listening
from sahfl.federation.flower.fleet import Fleet
from sahfl.federation.flower.gate import Gate
from sahfl.federation.flower.link import Link
from sahfl.federation.flower.superlink import StateGrid
from sahfl.federation.server.studies import Studies, read_deployed
from sahfl.log_lines import event_line
from sahfl_server.status import Status

if TYPE_CHECKING:
    from sahfl.run.folder import RunFolder

log = logging.getLogger(__name__)
LOG_EVERY_S = 60.0
"""Pause between two log lines on the same missing sites."""
RETRY_S = 30.0
"""Pause after a full disk, before the study goes on."""


class Runner:
    """Runs studies one after the other; torch is loaded with the first one."""

    def __init__(
        self, config: ServerConfig, link: Link, fleet: Fleet, gate: Gate, status: Status, studies: Studies
    ) -> None:
        self._config, self._link, self._fleet, self._gate = config, link, fleet, gate
        self._status, self._studies = status, studies
        self._grid: StateGrid | None = None
        self.last: dict[str, str] | None = None
        """The study that ended last, with its outcome."""

    def doing(self) -> dict[str, str]:
        """What each site works on."""
        return {} if self._grid is None else self._grid.doing()

    def run(self, file: Path) -> bool:
        """Run a study of the queue to its end, move its file out of the queue, and return whether it succeeded.

        Raises:
            KeyboardInterrupt: a signal; the file stays in the queue.
        """
        name = file.stem
        try:
            study = read_deployed(file)
            self._studies.check_run(name, study)
            self._status.begin(name, study)
            self._run(file, study)
        except StorageError as error:  # nothing is lost, and there may be room later
            log.error("event=study_waits study=%s reason=%r retry_s=%.0f", name, str(error), RETRY_S)
            self.last = {"study": name, "ended": "waits for room", "reason": str(error)}
            self._sleep(RETRY_S)
            return False
        except StudyCancelled as error:
            log.warning("event=study_cancelled study=%s reason=%r", name, str(error))
            self.last = {"study": name, "ended": "cancelled", "reason": str(error)}
            return False
        except SahflError as error:
            log.error("event=study_failed study=%s exit_code=%d reason=%r", name, error.exit_code, str(error))
            self.last = {"study": name, "ended": "failed", "reason": str(error)}
            self._studies.end(file, str(error))
            return False
        finally:
            self._status.end()
            self._link.end_run()
            self._grid = None
        self.last = {"study": name, "ended": "done", "reason": ""}
        self._studies.end(file)
        log.info("event=study_done study=%s report=%s", name, self._studies.run_of(name) / "report.html")
        return True

    def _run(self, file: Path, study: Study) -> None:
        name, names = file.stem, list(study.sites)
        stop_if_cancelled = partial(_stop_if_cancelled, file)
        known = {seat.site: seat.node_id for seat in self._fleet.seats()}
        if strangers := [site for site in names if site not in known]:
            raise ConfigError(
                f"study {name}: names {', '.join(strangers)}, expected registered sites (there are: "
                f"{', '.join(known) or 'none'}); provision them, or take them out of the study"
            )
        began = time.monotonic()
        from sahfl.federation.server.plan import payload_bytes
        from sahfl.run.folder import RunFolder

        path = self._studies.run_of(name)
        fresh = not (path / "journal.jsonl").exists()
        folder = RunFolder(path) if (path / "study.json").exists() else RunFolder.create(path, study)
        self._gate.payload_bytes = payload_bytes(study)
        log.info("event=study study=%s run=%s loaded_s=%.1f", name, path, time.monotonic() - began)
        self._await_sites(name, study, fresh=fresh, on_look=stop_if_cancelled)
        give_up_s, wake = self._config.give_up_s, self._gate.wake
        self._grid = grid = StateGrid(
            self._link, self._fleet, wake=wake, give_up_s=give_up_s, on_look=stop_if_cancelled
        )
        from sahfl.run.session import session

        with session(folder), listening(_log_event):
            self._start(grid, folder, {str(known[site]): site for site in names})

    def _start(self, grid: StateGrid, folder: RunFolder, nodes: dict[str, str]) -> None:
        from flwr.app import Context, RecordDict, UserConfig

        from sahfl.federation.server.app import app

        settings: UserConfig = {
            "run-folder": str(folder.path.resolve()),
            "nodes": json.dumps(nodes),
            "signing-key": str(self._config.kit / "signing.key"),
            "lanes": self._config.lanes,
            "cells": str(self._studies.cells.resolve()),
        }
        app(grid, Context(self._link.run_id, 1, {}, RecordDict(), settings))

    def _await_sites(self, name: str, study: Study, *, fresh: bool, on_look: Callable[[], None]) -> None:
        """Wait until the study's sites are connected.

        Raises:
            RunFailed: too few sites connected in the time that the settings allow; the missing ones are named.
            StudyCancelled: the study was taken out of the queue.
        """
        config, began, logged = self._config, time.monotonic(), (0.0, [""])
        names = list(study.sites)
        patience_s = config.wait_for_sites_s if fresh else config.resume_wait_s
        while missing := self._fleet.missing(names):
            on_look()
            waited = time.monotonic() - began
            self._status.wait_for(missing, deadline_s=max(0.0, config.wait_for_sites_s - waited))
            if missing != logged[1] or waited - logged[0] > LOG_EVERY_S:
                logged = (waited, missing)
                log.info("event=waiting study=%s missing=%s waited_s=%.0f", name, ",".join(missing), waited)
            if waited > patience_s and (not fresh or config.start_with == "quorum") and _enough(study, missing):
                log.warning("event=starts_without study=%s missing=%s", name, ",".join(missing))
                break
            if waited > config.wait_for_sites_s:
                raise RunFailed(
                    f"study {name}: got {len(names) - len(missing)} of {len(names)} sites connected within "
                    f"{config.wait_for_sites_s:.0f} s, expected all; missing: {', '.join(missing)}. Bring them up and "
                    "submit the study again, or set start_with: quorum"
                )
            self._fleet.bell.wait(0.5)
        self._status.wait_for([])

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(0.5, left))


def _stop_if_cancelled(file: Path) -> None:
    if not file.exists():
        raise StudyCancelled(f"{file.name}: was taken out of the queue; submit it again to go on")


def _enough(study: Study, missing: list[str]) -> bool:
    from sahfl.federation.server.roster import needed

    stages = [stage.sites for stage in (study.pretrain, study.finetune) if stage]
    return all(sum(site not in missing for site in sites) >= needed(study.rounds, len(sites)) for sites in stages)


def _log_event(event: Event) -> None:
    line = event_line(event)
    where = f"site={line.site} " if line.site else f"cell={line.cell} " if line.cell else ""
    level = logging.WARNING if isinstance(event, SiteFailed | RoundFailed | Warned | Paused) else logging.INFO
    log.log(level, "event=%s %swhat=%r%s", line.name, where, line.what, line.numbers)
