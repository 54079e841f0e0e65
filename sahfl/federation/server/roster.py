"""The sites of a study: checks of their descriptions, who trains what, the quorum, and sites that come late."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from sahfl.config import POOLED, POOLS, RoundsConfig, Study, TrainedMethod, ZeroShot
from sahfl.data.manifest import PATIENTS_FROM
from sahfl.data.misplaced import misplaced
from sahfl.data.rules import BY_ID
from sahfl.errors import DataError, DataShared, PayloadError, RunFailed
from sahfl.events import SiteLeftOut, emit
from sahfl.federation import flower, protocol
from sahfl.federation.server.base import LONGEST_PAUSE_S, waits
from sahfl.federation.server.mailbox import Mailbox
from sahfl.run.folder import Record, RunFolder
from sahfl.task import Descriptions, SiteDescription

OTHER_SECRET = (
    "draws its batches from another secret than before in this run: its folder was lost, or the secret renewed"
)
"""Warning of a site whose later rounds cannot be those that it would have sent otherwise."""


@dataclass(frozen=True)
class Member:
    """A site that takes part."""

    node_id: int
    description: SiteDescription


def check_description(description: SiteDescription, site: str, *, folds: int, journal: Iterable[Record]) -> None:
    """Compare a site's description with the study and with the site's earlier descriptions.

    Raises:
        PayloadError: it is another site's, has another number of folds, or the data changed since the run began.
    """
    found = {len(description.fold_sizes), len(description.fold_positive)}
    if description.site != site or found != {folds}:
        raise PayloadError(f"describes site {description.site[:40]!r}, expected {site!r} with the study's folds")
    before = {line["data"] for line in journal if line["event"] == "described" and line["site"] == site}
    if before - {description.data}:
        raise PayloadError("its data changed since this run began; start a new run")


def what_computes(description: SiteDescription) -> Record:
    """What determines a site's results besides its settings, each as a hash: its data, its software and its secret."""
    return description.model_dump(mode="json", include={"data", "software", "batches"})


def draws_from_another_secret(description: SiteDescription, journal: Iterable[Record]) -> bool:
    """Whether a site drew its batches from another secret in an earlier session of this run."""
    described = [line for line in journal if line["event"] == "described" and line["site"] == description.site]
    return any(line.get("batches", description.batches) != description.batches for line in described)


def require_quorum(
    config: RoundsConfig, stage: str, sites: tuple[str, ...], present: Collection[str], *, out: Mapping[str, str]
) -> None:
    """Refuse a stage that has too few sites; ``out`` has the reason of each site that is out.

    Raises:
        RunFailed: too few sites are present; the absent ones are named, with their reasons.
    """
    absent = [site for site in sites if site not in present]
    quorum, n_present = needed(config, len(sites)), len(sites) - len(absent)
    if n_present < quorum:
        found = f"got {n_present} of {len(sites)} sites, expected at least {quorum}"
        named = ", ".join(f"{site} ({out.get(site, 'not asked')})" for site in absent)
        raise RunFailed(f"{stage}: {found}; out: {named}")


def needed(config: RoundsConfig, n_sites: int) -> int:
    """How many usable replies commit a round."""
    return max(1, math.ceil(config.quorum * n_sites - 1e-9))


def refuse_shared_scans(keys: Mapping[str, frozenset[str]], folder: RunFolder) -> None:
    """Compare the sites' scan keys, and write shared ones to the journal.

    Raises:
        DataShared: two sites hold the same scan.
    """
    shared = [(a, b, sorted(keys[a] & keys[b])) for a, b in combinations(keys, 2) if keys[a] & keys[b]]
    for a, b, common in shared:
        folder.note({"event": "shared_scans", "sites": [a, b], "keys": common})
    if shared:
        named = "; ".join(f"{a} and {b}: {len(common)}, for example key {common[0]}" for a, b, common in shared)
        raise DataShared(f"the same scan lies at two sites ({named}); see scan_keys.json in each site's folder")


def cell_sites(study: Study, method: TrainedMethod, fold: int, sites: Descriptions) -> tuple[str, ...]:
    """Sites that are asked to train a method with a fold held out; the quorum counts these.

    A site without patients outside the fold is left out. Absent sites of a federation are counted; a site that trains
    alone must be present.
    """
    all_sites = study.training_sites(method)
    chosen = [site for site in all_sites if site not in sites or not sites[site].sits_out(fold, inner=method.inner)]
    return tuple(site for site in chosen if method.trained_at is None or site in sites)


def require_patients_to_train_on(study: Study, sites: Descriptions) -> None:
    """Refuse a study before anything is trained if a fold leaves no patient to train on at any site.

    Raises:
        DataError: the message has each site's number of volumes and of patients.
    """
    for method in study.finetune.methods:
        if isinstance(method, ZeroShot) or method.trained_at is not None or method.inner:
            continue
        for fold in range(study.finetune.folds):
            if cell_sites(study, method, fold, sites):
                continue
            found = ", ".join(
                f"{site} {sites[site].n_volumes} volume(s) of {sites[site].n_patients} patient(s)"
                for site in study.training_sites(method)
            )
            raise DataError(
                f"finetune: with fold {fold} of {study.finetune.folds} held out no site has a patient to train on, "
                f"expected at least 2 patients, in different folds; got {found}. Add patients, or correct "
                f"{PATIENTS_FROM} where that is wrong"
            )


def contributors(study: Study, method: TrainedMethod, sites: Descriptions) -> tuple[str, ...]:
    """Present sites on whose patients a method is trained."""
    wanted = study.finetune.sites if method.trained_at in POOLS else study.training_sites(method)
    return tuple(site for site in wanted if site in sites)


def why_untrained(method: TrainedMethod, sites: Descriptions) -> str:
    """Why a method that is trained in one place, or a trial of a learning rate, is not trained."""
    if method.trained_at is None:
        return "not trained: no site has a patient outside the two folds of a trial"
    if method.trained_at not in (*sites, *POOLS):
        return f"not trained: {method.trained_at} does not take part"
    return f"not trained: {method.trained_at} has no patient outside the fold"


def describe_pool(study: Study, sites: Descriptions) -> SiteDescription | None:
    """Description of the pseudo-site ``pooled`` of a simulation, with summed counts; None if no member takes part."""
    members = [sites[site] for site in study.finetune.sites if site in sites]
    if not members:
        return None
    folds = range(study.finetune.folds)
    return SiteDescription(
        site=POOLED,
        source="all fine-tuning sites",
        n_volumes=sum(member.n_volumes for member in members),
        n_patients=sum(member.n_patients for member in members),
        n_positive=sum(member.n_positive for member in members),
        volume_ml=sum(member.volume_ml or 0.0 for member in members),
        fold_sizes=tuple(sum(member.fold_sizes[fold] for member in members) for fold in folds),
        fold_positive=tuple(sum(member.fold_positive[fold] for member in members) for fold in folds),
        data=hashlib.sha256(" ".join(member.data for member in members).encode()).hexdigest()[:16],
        software=members[0].software,  # a simulation is one installation
        batches=hashlib.sha256(" ".join(member.batches for member in members).encode()).hexdigest()[:16],
        confirmations=0,
        n_refused=sum(member.n_refused for member in members),
        findings={},
    )


def did_not_answer(reply: Message | None) -> bool:
    """Whether a site gave no answer of its own: it is not connected, or its process died. An error is an answer."""
    return reply is None or flower.is_unreachable(reply) or flower.is_crash(reply)


class Latecomers:
    """The sites that may still come: each describes its data, then installs the base, then takes part.

    Guarantees: the run does not wait for them; it sends nothing to a site that is not connected; a site that answers
    with an error is not asked again in this session, unless only its people have not accepted the base yet. ``read``
    reads and checks a site's description.
    """

    def __init__(
        self,
        mail: Mailbox,
        grid: Grid,
        node_of: Mapping[str, int],
        read: Callable[[str, Message | None], SiteDescription],
    ) -> None:
        self._mail, self._grid, self._node_of, self._read = mail, grid, node_of, read
        self.awaited: dict[str, SiteDescription | None] = {}
        self._asked: set[str] = set()
        self._not_before: dict[str, float] = {}

    def expect(self, site: str) -> None:
        """Ask a site as soon as it is connected."""
        self.awaited[site] = None

    def welcome(
        self, sites: Iterable[str], describe: RecordDict, base: RecordDict | None
    ) -> dict[str, SiteDescription]:
        """Handle the replies that have arrived, and ask those of ``sites`` that are connected and were not asked yet.

        ``describe`` and ``base`` are the requests to describe the data and to install the base, if there is one yet.
        Returns the descriptions of the sites that take part from now on.
        """
        ready: dict[str, SiteDescription] = {}
        for site, reply in self._mail.arrivals().items():
            self._asked.discard(site)
            if not did_not_answer(reply):
                self._advance(site, reply, ready, needs_base=base is not None)
        reachable = set(self._grid.get_node_ids())
        for site in sites:
            due = time.monotonic() >= self._not_before.get(site, 0.0)
            if site in self.awaited and site not in self._asked and due and self._node_of[site] in reachable:
                content = describe if self.awaited[site] is None else base
                message_type = protocol.DESCRIBE if self.awaited[site] is None else protocol.INSTALL_BASE
                self._mail.invite(site, content or describe, message_type, self._node_of[site])
                self._asked.add(site)
        return ready

    def _advance(self, site: str, reply: Message, ready: dict[str, SiteDescription], *, needs_base: bool) -> None:
        known = self.awaited.pop(site)
        try:
            description = known or self._read(site, reply)
        except PayloadError as error:
            emit(SiteLeftOut(site, f"stays out: {error}"))
            return
        if known is not None and waits(reply):
            self.awaited[site], self._not_before[site] = known, time.monotonic() + LONGEST_PAUSE_S
        elif known is not None and reply.has_error():
            emit(SiteLeftOut(site, f"stays out: the base is not installed ({str(reply.error.reason)[:120]})"))
        elif known is None and needs_base:
            self.awaited[site] = description
        else:
            ready[site] = description


SEE = "sahfl check SITE_FILE lists them, with pictures (sahfl init can write a site file)"


def left_out_text(description: SiteDescription) -> str:
    """How many cases a site cannot use, and which rules of the data checks they break."""
    n = description.n_refused
    broken = [name for name in description.findings if name in BY_ID and BY_ID[name].severity == "error"]
    why = f" ({', '.join(sorted(broken))})" if broken else ""
    return f"{n} case{'s are' if n > 1 else ' is'} left out{why}; {SEE}"


def untested_text(description: SiteDescription) -> str:
    """In how many folds no patient of a site is tested; empty if in none."""
    n = description.fold_sizes.count(0)
    folds = f"{len(description.fold_sizes)} folds for {description.n_patients} patient(s)"
    return f"nobody is tested there in {n} of {folds}; choose fewer (finetune.folds)" if n else ""


def doubt_text(description: SiteDescription) -> str:
    """How many annotations may belong to another scan or side; empty if they are few."""
    rules = misplaced(description.findings, description.n_volumes)
    found = [f"{rule} {description.findings[rule] or 'in a few cases'}" for rule in rules]
    return f"annotations may belong to another scan or side ({', '.join(found)}); {SEE}" if found else ""
