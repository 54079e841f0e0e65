"""The pseudo-site ``pooled`` of a simulation: the patients of all fine-tuning sites in one place.

A hospital never loads this module. A study compares the federation with the pool. The pool runs the honest app
(``site.app``) on the cases of its member sites. It only trains, and every site evaluates its own held-out patients.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sahfl.config import SiteConfig, SiteScansPooled, ViewsConfig
from sahfl.data.checks import CheckedCase
from sahfl.data.views import CaseViews
from sahfl.errors import DataError, DataRefused
from sahfl.federation.site.app import make_app
from sahfl.federation.site.site import Site
from sahfl.log_lines import LogLine

log = logging.getLogger(__name__)


class PooledSite(Site):
    """The training cases of all members together; each member reads and splits its own."""

    def __init__(self, config: SiteConfig) -> None:
        super().__init__(config)
        assert isinstance(config.data, SiteScansPooled)
        self._members = [Site(member) for member in config.data.members]
        self._owner: dict[str, Site] = {}

    def training_cases(
        self, *, fold: int, n_folds: int, seed: int, turn: int = 0, inner: bool = False, most: int | None = None
    ) -> tuple[CheckedCase, ...]:
        """The members' training cases of this fold, in the order of the members; ``most`` counts at each member.

        Guarantees: no patient that a member holds out in this fold is included. As in the federation, a member whose
        data were refused takes no part. A member may have no patient outside the fold.

        Raises:
            DataError: no member has a patient outside the fold, or a member was never prepared.
            DataChanged: a member's file changed since it was checked.
        """
        chosen: list[CheckedCase] = []
        for member in self._members:
            try:
                items = member.cases_outside(fold=fold, n_folds=n_folds, seed=seed, turn=turn, inner=inner, most=most)
            except DataRefused:
                log.warning(LogLine("member_out", site=member.config.name))
                continue
            self._owner |= {item.content: member for item in items}
            chosen += items
        if not chosen:
            raise DataError(f"site {self.config.name}: no member has a patient outside fold {fold}")
        return tuple(chosen)

    def load_views(self, items: Sequence[CheckedCase], views: ViewsConfig) -> list[CaseViews]:
        """Load training cases as slices, each from the cache of its member."""
        return [case for item in items for case in self._owner[item.content].load_views([item], views)]


app = make_app(PooledSite)
