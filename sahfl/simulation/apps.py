"""The choice of a simulated site's app: that of hospitals, or that of a hostile or pooled site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sahfl.config import HostileAct, SiteConfig, SiteScansPooled
from sahfl.federation.workers.worker import hospital_app


def simulated_app(site: SiteConfig, *, hostile: Mapping[str, HostileAct]) -> Any:
    """Choose the app of a site; ``hostile`` has the attack of each hostile site.

    The imports come late, so that a worker process loads only the modules that its sites need.
    """
    if (act := hostile.get(site.name)) is not None:
        from sahfl.simulation.hostile import hostile_app

        return hostile_app(act, site.name)
    if isinstance(site.data, SiteScansPooled):
        from sahfl.simulation.pooled import app

        return app
    return hospital_app(site)
