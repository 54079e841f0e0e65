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
from sahfl.errors import RunFailed, SahflError, StorageError, StudyCancelled
from sahfl.events import listening
from sahfl.federation.flower.fleet import Fleet
from sahfl.federation.flower.gate import Gate
from sahfl.federation.flower.link import Link
from sahfl.federation.flower.superlink import StateGrid
from sahfl.federation.server.studies import Studies, check_not_revoked, check_registered, read_deployed
from sahfl.log_lines import LogLine, log_run_event
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

    def doing(self) -> dict[str, dict[str, str]]:
        """What each site was asked for, whether it works on that, and since when."""
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
            log.error(LogLine("study_waits", study=name, reason=str(error), retry_s=RETRY_S))
            self.last = {"study": name, "ended": "waits for room", "reason": str(error)}
            self._sleep(RETRY_S)
            return False
        except StudyCancelled as error:
            log.warning(LogLine("study_cancelled", study=name, reason=str(error)))
            self.last = {"study": name, "ended": "cancelled", "reason": str(error)}
            return False
        except SahflError as error:
            log.error(LogLine("study_failed", study=name, exit_code=error.exit_code, reason=str(error)))
            self.last = {"study": name, "ended": "failed", "reason": str(error)}
            self._studies.end(file, str(error))
            return False
        finally:
            self._status.end()
            self._link.end_run()
            self._grid = None
        self.last = {"study": name, "ended": "done", "reason": ""}
        self._studies.end(file)
        log.info(LogLine("study_done", study=name, report=str(self._studies.run_of(name) / "report.html")))
        return True

    def _run(self, file: Path, study: Study) -> None:
        name, names = file.stem, list(study.sites)
        stop_if_cancelled = partial(_stop_if_cancelled, file)
        check_registered(study, self._fleet.nodes())
        began = time.monotonic()
        from sahfl.federation.server.plan import payload_bytes
        from sahfl.run.folder import RunFolder

        path = self._studies.run_of(name)
        fresh = self._studies.is_fresh(name)
        self._gate.payload_bytes = payload_bytes(study)
        log.info(LogLine("study", study=name, run=str(path), loaded_s=round(time.monotonic() - began, 1)))
        self._await_sites(name, study, fresh=fresh, on_look=stop_if_cancelled)
        folder = RunFolder(path) if (path / "study.json").exists() else RunFolder.create(path, study)
        give_up_s, wake = self._config.give_up_s, self._gate.wake
        self._grid = grid = StateGrid(
            self._link, self._fleet, wake=wake, give_up_s=give_up_s, on_look=stop_if_cancelled
        )
        from sahfl.run.session import session

        with session(folder), listening(partial(log_run_event, log)):
            nodes = self._fleet.nodes()
            self._start(grid, folder, {str(nodes[site]): site for site in names})

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
        """Wait until the study's sites are connected; a study that has begun goes on without revoked ones.

        Raises:
            ConfigError: a site of a study that has not begun is revoked.
            RunFailed: too few sites connected in the time that the settings allow; the missing ones are named.
            StudyCancelled: the study was taken out of the queue.
        """
        config, began, logged = self._config, time.monotonic(), (0.0, [""])
        names = list(study.sites)
        patience_s = config.wait_for_sites_s if fresh else config.resume_wait_s
        while True:
            on_look()
            revoked = [site for site in names if site in self._fleet.revoked()]
            if fresh:
                check_not_revoked(study, revoked)
            if not (missing := self._fleet.missing(names)):
                break
            waited = time.monotonic() - began
            self._status.wait_for(missing, deadline_s=max(0.0, config.wait_for_sites_s - waited))
            if missing != logged[1] or waited - logged[0] > LOG_EVERY_S:
                logged = (waited, missing)
                log.info(LogLine("waiting", study=name, missing=",".join(missing), waited_s=round(waited)))
            may_start = waited > patience_s and (not fresh or config.start_with == "quorum")
            if may_start and _enough(study, absent=missing + revoked):
                log.warning(LogLine("starts_without", study=name, missing=",".join(missing)))
                break
            if waited > config.wait_for_sites_s:
                raise RunFailed(
                    f"study {name}: got {len(names) - len(missing)} of {len(names)} sites connected within "
                    f"{config.wait_for_sites_s:.0f} s, expected all; missing: {', '.join(missing)}. Bring them up and "
                    "submit the study again, or set start_with: quorum"
                )
            self._fleet.bell.wait(0.5)
        self._status.wait_for([])
        if revoked:
            log.warning(LogLine("goes_on_without", study=name, revoked=",".join(revoked)))

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(0.5, left))


def _stop_if_cancelled(file: Path) -> None:
    if not file.exists():
        raise StudyCancelled(f"{file.name}: was taken out of the queue; submit it again to go on")


def _enough(study: Study, *, absent: list[str]) -> bool:
    from sahfl.federation.server.roster import needed

    stages = [stage.sites for stage in (study.pretrain, study.finetune) if stage]
    return all(sum(site not in absent for site in sites) >= needed(study.rounds, len(sites)) for sites in stages)
