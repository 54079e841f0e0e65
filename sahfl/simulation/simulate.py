"""A simulated federation on one machine: the sites' app in worker processes, the server's app in this one."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, get_args

from flwr.app import Context, RecordDict, UserConfig

from sahfl.adapters.methods import ADAPTERS
from sahfl.config import POOLED, SiteConfig, SitePolicy, SiteScansPooled, Study
from sahfl.config.methods import WEIGHTS
from sahfl.config.policy import AdapterLimits, WeightLimits
from sahfl.config.training import Part
from sahfl.events import StageBegun, Warned, emit
from sahfl.federation.server.app import app
from sahfl.report.page import write_report
from sahfl.results.gains import check_gains
from sahfl.run.folder import RunFolder
from sahfl.run.session import session
from sahfl.simulation.case_overlays import add_overlays
from sahfl.simulation.local_grid import LocalGrid

_OPEN: dict[str, Any] = {
    **dict.fromkeys(("least_steps", "least_batch", "least_patients", "most_learning_rate"), 1),
    "least_effective_steps": 0,
}


def open_policy() -> SitePolicy:
    """A policy that allows everything that a study can request, because all data are on this machine."""
    return SitePolicy(
        require_signature=False,
        bases="any",
        confirmations=0,
        bounded_starts=False,
        stages=("pretrain", "finetune"),
        methods=(*ADAPTERS, *WEIGHTS),
        also_train=("norm", "bias", *get_args(Part)),
        common_random_numbers=True,
        private_mean=True,
        share_scan_keys=True,
        most_rounds=10_000,
        most_steps=100_000,
        adapters=AdapterLimits(**_OPEN, most_alpha=1e6, most_rank=dict.fromkeys(ADAPTERS, 512)),
        weights=WeightLimits(**_OPEN),
        most_bytes=10_000_000_000,
        most_replicates=100_000,
        smallest_group=1,
        smallest_bootstrap=1,
    )


def _settings() -> dict[str, Any]:
    """Settings of every simulated site: unusable cases never stop it, and it computes on the processor.

    All data are on this machine, and the result must not depend on the machine.
    """
    return {"simulated": True, "max_refused_share": 1.0, "policy": open_policy(), "device": "cpu"}


def simulated_secret(seed: int, site: str) -> str:
    """The secret of a simulated site, 64 hex digits, which follows from the study's seed."""
    return hashlib.sha256(f"{seed} {site}".encode()).hexdigest()


def site_configs(study: Study, folder: Path) -> tuple[SiteConfig, ...]:
    """The configurations of a study's sites, each with its own folder in ``folder``; ``pooled`` is last, if needed.

    Raises:
        ConfigError: the study's scans are listed only in the site files of hospitals.
        DataError: the datalist cannot be read or lacks a site of the study, or paths (all are listed) have no scans.
    """
    scans = study.data.for_sites(study.sites, study=study.name, seed=study.seed)
    sites = tuple(
        SiteConfig(name=name, folder=folder / name, data=data, secret=simulated_secret(study.seed, name), **_settings())
        for name, data in scans.items()
    )
    if not study.pools:
        return sites
    members = tuple(site for site in sites if site.name in study.finetune.sites)
    return (
        *sites,
        SiteConfig(
            name=POOLED,
            folder=folder / POOLED,
            data=SiteScansPooled(members=members),
            secret=simulated_secret(study.seed, POOLED),
            **_settings(),
        ),
    )


def simulate(
    folder: RunFolder, *, workers: int | None = None, lanes: int | None = None, cells: Path | None = None
) -> Path:
    """Run the study of a run folder from its last committed state to its report.

    Args:
        folder: folder of a new run, or of one to resume.
        workers: number of worker processes; by default one per site of the larger stage, but at most two per core,
            because three sites in parallel on two cores end sooner than two and then one. Does not change the result.
        lanes: number of cells in work at a time, so that no worker waits for the slowest site of a round; by default
            one more than workers. Does not change the result.
        cells: folder of finished cells that runs share; without it, this run computes every cell.

    Returns:
        Path of the report.

    Raises:
        KeyboardInterrupt: the run was interrupted; every worker has ended, and the committed state is on disk.
        RunFailed: fewer sites answered than the quorum requires.
        StorageError: the disk is full, or the run cannot be written to it.
        RunError: another process works on this run.
        LosingSite: the run is complete, and a site does not gain what the study requires.
    """
    study = folder.study()
    sites = site_configs(study, folder.path.resolve() / "sites")
    pretraining = len(study.pretrain.sites) if study.pretrain else 0
    at_once = max(pretraining, len(study.finetune.sites))
    workers = workers or min(at_once, 2 * (os.cpu_count() or 1))
    logs = folder.path / "logs"
    grid = LocalGrid(sites, workers=workers, logs=logs, hostile=study.hostile)
    with session(folder), grid:
        if study.hostile:
            named = ", ".join(f"{site} ({act})" for site, act in sorted(study.hostile.items()))
            emit(Warned(f"hostile sites, by the study's settings: {named}"))
        nodes = dict(zip(grid.get_node_ids(), (site.name for site in sites), strict=True))
        settings: UserConfig = {"run-folder": str(folder.path.resolve()), "nodes": json.dumps(nodes)}
        settings |= {"lanes": lanes or workers + 1, "cells": str(cells.resolve()) if cells else "", "report": False}
        app(grid, Context(grid.run.run_id, 0, {}, RecordDict(), settings))
        results = add_overlays(folder, study, sites)  # released, as all data lie on this machine
        emit(StageBegun("writing the report"))
        write_report(results, folder.path)
    check_gains(study, results["gains"])
    return folder.path / "report.html"
