"""Which app works for a site of a simulation: the one of hospitals, or that of a hostile or pooled site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sahfl.config import HostileAct, SiteConfig, SiteScansPooled
from sahfl.federation.workers.worker import hospital_app


def simulated_app(site: SiteConfig, *, hostile: Mapping[str, HostileAct]) -> Any:
    """The app of a site; ``hostile`` names what some sites do against the others.

    The imports come late: a worker process loads what its first site needs and nothing else.
    """
    if (act := hostile.get(site.name)) is not None:
        from sahfl.simulation.hostile import hostile_app

        return hostile_app(act, site.name)
    if isinstance(site.data, SiteScansPooled):
        from sahfl.simulation.pooled import app

        return app
    return hospital_app(site)
