"""Who takes part in a study: what a site's description has to fit, and how many sites a stage needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sahfl.config import RoundsConfig
from sahfl.errors import PayloadError, RunFailed
from sahfl.federation.protocol import SiteDescription
from sahfl.federation.server.rounds import needed
from sahfl.federation.server.run_folder import Record


def check_description(description: SiteDescription, site: str, *, folds: int, journal: Iterable[Record]) -> None:
    """Compare what a site tells of its data with the study, and with what it told before.

    Raises:
        PayloadError: it is another site's, of another number of folds, or of data that changed since the run began.
    """
    found = {len(description.fold_sizes), len(description.fold_positive)}
    if description.site != site or found != {folds}:
        raise PayloadError(f"describes site {description.site[:40]!r}, expected {site!r} with the study's folds")
    before = {line["data"] for line in journal if line["event"] == "described" and line["site"] == site}
    if before - {description.data}:
        raise PayloadError("its data changed since this run began; start a new run")


def require_quorum(config: RoundsConfig, stage: str, sites: tuple[str, ...], present: Collection[str]) -> None:
    """Refuse a stage that has too few sites.

    Raises:
        RunFailed: it names the sites that are out.
    """
    absent = [site for site in sites if site not in present]
    quorum, n_present = needed(config, len(sites)), len(sites) - len(absent)
    if n_present < quorum:
        found = f"got {n_present} of {len(sites)} sites, expected at least {quorum}"
        raise RunFailed(f"{stage}: {found}; out: {', '.join(absent)} (see each site's log and the journal)")
