"""What the rounds of a training share, and the outcome of one round's requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sahfl.adapters import AdapterState, FactoredLayer
from sahfl.aggregation.rules import USUAL
from sahfl.config import RoundsConfig
from sahfl.federation.protocol import TrainReply
from sahfl.federation.server.roster import Member
from sahfl.federation.site_ranks import SiteRanks
from sahfl.payload import Header
from sahfl.run.folder import RunFolder
from sahfl.task import SiteDescription, Task


@dataclass(frozen=True)
class Cell:
    """A training: pretraining, or one method on one fold."""

    key: str
    """Folder of its checkpoints, ``pretrain`` or ``cp_lora-r8/fold-0``."""
    task: Task
    """The sites' task, without the round."""
    header: Header
    """What replies must repeat, without the round."""
    sites: tuple[str, ...]
    """Sites that are asked; the quorum counts these."""
    rule: str = USUAL
    """Name of the aggregation rule."""
    layers: tuple[FactoredLayer, ...] = ()
    """The adapted layers; empty where whole weights train."""
    private: AdapterState = field(default_factory=dict)
    """What stays at the sites until the last round, in which they send it: names and first values; usually nothing."""
    private_layers: tuple[FactoredLayer, ...] = ()
    """The adapted layers of ``private``."""
    ranks: SiteRanks = field(default_factory=SiteRanks)
    """Sites whose adapter has another rank than the global state."""


@dataclass(frozen=True)
class Run:
    """What all cells of a run share."""

    folder: RunFolder
    config: RoundsConfig
    roster: dict[str, Member]
    """Sites that take part; it may grow while cells run."""
    invite: Callable[[tuple[str, ...]], None] = lambda sites: None
    """Called with the sites that are wanted, to admit those that came late."""
    out: dict[str, str] = field(default_factory=dict)
    """Why each site is out of the roster that was asked and does not take part."""

    def why_out(self, site: str) -> str:
        """Why a site does not take part, for the journal."""
        return f"not in the roster: {self.out[site]}" if site in self.out else "not in the roster"

    def descriptions(self) -> dict[str, SiteDescription]:
        """Description of each site of the roster."""
        return {site: member.description for site, member in self.roster.items()}


@dataclass(frozen=True)
class MaskedSum:
    """What a masked round told the server: means over the sites in ``Outcome.used``, weighted by their volumes."""

    change: Mapping[str, NDArray[np.float64]]
    """Mean change from the round's start, of the tensors that trained."""
    loss: float


@dataclass
class Outcome:
    """Outcome of a round's requests; each site is in exactly one of ``used``, ``refused`` and ``missing``."""

    used: dict[str, TrainReply] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    """Those of ``missing`` that trained and held back their update; the quorum counts them."""
    masked: MaskedSum | None = None
    """The sum of a masked round; None without one."""
    spent: bool = False
    """Whether a masked round failed after vectors were asked for, so that it cannot be tried in another way."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Further fields of the journal's line."""
    oddities: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """Late replies, second replies, and sites that were asked again."""

    def reasons(self) -> list[dict[str, str]]:
        """Sites without a usable reply, each with its reason."""
        return [{"site": site, "reason": reason} for site, reason in sorted((self.refused | self.missing).items())]
