"""Rounds of a cell: ask the sites, aggregate the usable replies, commit; or stop below the quorum."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sahfl.adapters import AdapterState, FactoredLayer
from sahfl.aggregation.rules import RULES, USUAL
from sahfl.aggregation.update import SiteUpdate
from sahfl.config import RoundsConfig
from sahfl.errors import PayloadError, RunFailed
from sahfl.events import CellResumed, Paused, RoundBegun, RoundCommitted, RoundFailed, SiteFailed, UpdateBounded, emit
from sahfl.federation import protocol
from sahfl.federation.protocol import TrainReply
from sahfl.federation.requests import in_round
from sahfl.federation.server.aggregate import aggregate
from sahfl.federation.server.mailbox import Answers, Ask, reason_of
from sahfl.federation.server.roster import Member, needed
from sahfl.federation.server.schedule import Pause, Steps
from sahfl.federation.site_ranks import SiteRanks
from sahfl.payload import Header
from sahfl.run.folder import Checkpoint, RunFolder
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
    staying: tuple[str, ...] = ()
    """Names of the tensors that stay at the sites; the global state keeps their first values."""
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

    def descriptions(self) -> dict[str, SiteDescription]:
        """Description of each site of the roster."""
        return {site: member.description for site, member in self.roster.items()}


@dataclass
class Outcome:
    """Outcome of a round's requests; each site is in exactly one of ``used``, ``refused`` and ``missing``."""

    used: dict[str, TrainReply] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    oddities: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """Late replies, second replies, and sites that were asked again."""

    def reasons(self) -> list[dict[str, str]]:
        """Sites without a usable reply, each with its reason."""
        return [{"site": site, "reason": reason} for site, reason in sorted((self.refused | self.missing).items())]


def run_cell(cell: Cell, start: AdapterState, run: Run) -> Steps[AdapterState]:
    """Run the rounds of a cell from its last committed one, and return the final state.

    The state before the first round is ``start``. Before each attempt at a round, sites that came late are invited.

    Guarantees: a round is committed or leaves only a journal line; the result does not depend on interruptions.

    Raises:
        RunFailed: a round stayed below the quorum in every attempt.
    """
    checkpoint = run.folder.last_checkpoint(cell.key)
    state, done = (checkpoint.state, checkpoint.round) if checkpoint else (start, 0)
    if done:
        emit(CellResumed(cell.key, done, cell.task.rounds))
    for round_ in range(done + 1, cell.task.rounds + 1):
        emit(RoundBegun(cell.key, round_, cell.task.rounds))
        sent = cell.ranks.states(state, cell.sites, cell.layers)
        outcome, record = yield from _run_round(cell, sent, round_, run)
        updates = [
            SiteUpdate(site, reply.n_volumes, sent[site] | reply.state, sent[site])
            for site, reply in outcome.used.items()
        ]
        found = aggregate(updates, like=state, rule=cell.rule, layers=cell.layers, config=run.config)
        state, record = found.state, record | found.notes
        for site, factor in found.notes["shortened"].items():
            emit(UpdateBounded(cell.key, round_, site, factor))
        run.folder.commit(cell.key, Checkpoint(round_, state, record))
        losses = [site["loss"] * site["n_volumes"] for site in record["used"]]
        loss = sum(losses) / sum(site["n_volumes"] for site in record["used"])
        emit(RoundCommitted(cell.key, round_, cell.task.rounds, loss))
    return state


def _run_round(
    cell: Cell, sent: Mapping[str, AdapterState], round_: int, run: Run
) -> Steps[tuple[Outcome, dict[str, Any]]]:
    config = run.config
    quorum = needed(config, len(cell.sites))
    for attempt in range(1, config.attempts + 1):
        run.invite(cell.sites)
        began = time.monotonic()
        outcome, n_bytes_down = yield from _ask(cell, sent, round_, run)
        enough = len(outcome.used) >= quorum
        record = _record(cell, round_, attempt, outcome, n_bytes_down, time.monotonic() - began) | {"committed": enough}
        if enough:
            return outcome, record
        run.folder.note(record)
        emit(RoundFailed(cell.key, _shortage(cell, round_, attempt, outcome, quorum)))
        if attempt < config.attempts and config.pause_s:
            sites, pause = outcome.reasons(), {"cell": cell.key, "round": round_, "seconds": config.pause_s}
            run.folder.note({"event": "paused", **pause, "sites": sites})
            emit(Paused(cell.key, round_, tuple(item["site"] for item in sites), config.pause_s))
            yield Pause(config.pause_s)
    raise RunFailed(_shortage(cell, round_, config.attempts, outcome, quorum))


def _ask(cell: Cell, sent: Mapping[str, AdapterState], round_: int, run: Run) -> Steps[tuple[Outcome, dict[str, int]]]:
    roster, deadline_s = run.roster, run.config.deadline_s
    header = Header(**{**cell.header.as_dict(), "round": round_})
    members = {site: roster[site] for site in cell.sites if site in roster}
    tasks = {site: in_round(cell.task, round_, cell.ranks.ranks.get(site)) for site in members}
    contents = {site: protocol.request(tasks[site], header, sent[site]) for site in members}
    nodes = {site: member.node_id for site, member in members.items()}
    what = f"{cell.key}, round {round_}"
    answers: Answers = yield Ask(contents, protocol.TRAIN, nodes, deadline_s, what, cell.key)
    replies = answers.replies
    outcome = Outcome(oddities=answers.oddities())
    outcome.missing |= {site: "not in the roster" for site in cell.sites if site not in roster}
    for site, member in members.items():
        if reason := reason_of(replies.get(site), deadline_s):
            outcome.missing[site] = reason
            continue
        names = RULES[cell.rule].names_of_turn(cell.layers, tuple(sent[site]), round_)
        try:
            outcome.used[site] = protocol.read_train_reply(
                replies[site].content,
                header=header,
                like={name: sent[site][name] for name in names if name not in cell.staying},
                most_volumes=member.description.n_volumes,
                encoding=cell.task.payload,
            )
        except PayloadError as error:
            outcome.refused[site] = str(error)
            emit(SiteFailed(site, f"refused: {error}"))
    return outcome, {site: protocol.n_bytes(content) for site, content in contents.items()}


def _record(
    cell: Cell, round_: int, attempt: int, outcome: Outcome, n_bytes_down: Mapping[str, int], seconds: float
) -> dict[str, Any]:
    return {
        "event": "round",
        "stage": cell.task.stage,
        "method": cell.header.method if cell.task.stage == "finetune" else None,
        "fold": cell.task.fold if cell.task.stage == "finetune" else None,
        "round": round_,
        "attempt": attempt,
        "seconds": round(seconds, 3),
        "used": [
            {
                "site": site,
                "n_volumes": reply.n_volumes,
                "loss": reply.loss,
                "bytes_up": reply.n_bytes,
                "bytes_down": n_bytes_down[site],
                "seconds": round(reply.seconds, 3),
            }
            for site, reply in sorted(outcome.used.items())
        ],
        "refused": [{"site": site, "reason": reason} for site, reason in sorted(outcome.refused.items())],
        "missing": [{"site": site, "reason": reason} for site, reason in sorted(outcome.missing.items())],
        **outcome.oddities,
    }


def _shortage(cell: Cell, round_: int, attempt: int, outcome: Outcome, quorum: int) -> str:
    named = "; ".join(f"{item['site']}: {item['reason']}" for item in outcome.reasons())
    found = f"got {len(outcome.used)} usable replies of {len(cell.sites)} sites, expected at least {quorum}"
    return f"{cell.key}, round {round_}, attempt {attempt}: {found} ({named})"
