"""Rounds of a cell: ask the sites, aggregate the usable replies, commit; or stop below the quorum."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import RecordDict

from sahfl.adapters import AdapterState
from sahfl.aggregation.rules import RULES
from sahfl.aggregation.update import SiteUpdate
from sahfl.cell_names import PRETRAIN
from sahfl.config import RoundsConfig
from sahfl.errors import PayloadError, RunFailed
from sahfl.events import CellResumed, Paused, RoundBegun, RoundCommitted, RoundFailed, SiteLeftOut, UpdateBounded, emit
from sahfl.federation import protocol
from sahfl.federation.protocol import TrainReply
from sahfl.federation.requests import in_round
from sahfl.federation.server.aggregate import NO_UPDATES, Aggregate, add_change, aggregate
from sahfl.federation.server.cell import Cell, Outcome, Run
from sahfl.federation.server.confirm import with_confirmations
from sahfl.federation.server.mailbox import Answers, Ask
from sahfl.federation.server.masked_round import MaskedRound
from sahfl.federation.server.replies import is_held_back, reason_of
from sahfl.federation.server.roster import Member, needed
from sahfl.federation.server.schedule import Pause, Steps
from sahfl.federation.server.used_rounds import is_of, last_used
from sahfl.payload import Header
from sahfl.run.folder import Checkpoint

LINEAR = ("mean", "project", "alternate")
"""Rules whose aim is the mean of the sites' updates."""


def run_cell(
    cell: Cell, start: AdapterState, run: Run, after: Callable[[int, AdapterState], Steps[None]] | None = None
) -> Steps[AdapterState]:
    """Run the rounds of a cell from its last committed one, and return the final state.

    The state before the first round is ``start``, without what stays at the sites. Before each attempt at a round,
    sites that came late are invited. The final state has the mean of ``cell.private`` too, if there is any. ``after``
    follows each committed round, and that from which a later session goes on, with its number and state.

    Guarantees: a round is committed or leaves only a journal line; the result does not depend on interruptions.

    Raises:
        RunFailed: a round stayed below the quorum in every attempt.
    """
    checkpoint = run.folder.last_checkpoint(cell.key)
    state, done = (checkpoint.state, checkpoint.round) if checkpoint else (start, 0)
    if done:
        emit(CellResumed(cell.key, done, cell.task.rounds))
        if after is not None:
            yield from after(done, state)
    own_rounds = last_used(run.folder.journal(), cell.header, before=done + 1)
    for round_ in range(done + 1, cell.task.rounds + 1):
        emit(RoundBegun(cell.key, round_, cell.task.rounds))
        sent = cell.ranks.states(state, cell.sites, cell.layers, first=round_ == 1)
        outcome, record = yield from _run_round(cell, sent, round_, run, own_rounds)
        found = _next_state(cell, state, sent, outcome, run.config)
        state, record = found.state, record | found.notes | {"private_shortened": {}}
        if round_ == cell.task.rounds and cell.private:
            mean = _mean_of_private(cell, outcome.used, run.config)
            state = dict(sorted((state | mean.state).items()))
            record["private_shortened"] = mean.notes["shortened"]
        own_rounds |= dict.fromkeys(outcome.used, round_)
        for site, factor in found.notes["shortened"].items():
            emit(UpdateBounded(cell.key, round_, site, factor))
        run.folder.commit(cell.key, Checkpoint(round_, state, record))
        emit(RoundCommitted(cell.key, round_, cell.task.rounds, _loss(outcome)))
        if after is not None:
            yield from after(round_, state)
    return state


def run_local_phase(cell: Cell, state: AdapterState, run: Run) -> Steps[None]:
    """Ask each site of a cell for its last phase by itself, once; nothing but counts comes back.

    A site that does not do it is noted, and is evaluated with what it trained in the rounds.
    """
    lines = [line for line in run.folder.journal() if is_of(line, cell.header)]
    if lines and lines[-1]["event"] == "local_phase":
        return
    own_rounds, round_ = last_used(lines, cell.header, before=cell.task.rounds + 1), cell.task.rounds + 1
    shared = {name: value for name, value in state.items() if name not in cell.private}
    sent, began, deadline_s = (
        cell.ranks.states(shared, cell.sites, cell.layers),
        time.monotonic(),
        run.config.deadline_s,
    )
    header, members, contents = _requests(cell, sent, round_, run, own_rounds)
    nodes = {site: member.node_id for site, member in members.items()}
    what = f"{cell.key}, last phase at the sites"
    answers: Answers = yield Ask(contents, protocol.LOCAL_PHASE, nodes, deadline_s, what, cell.key)
    outcome = Outcome(oddities=answers.oddities())
    outcome.missing |= {site: run.why_out(site) for site in cell.sites if site not in members}
    for site, member in members.items():
        if reason := reason_of(answers.replies.get(site), deadline_s):
            outcome.missing[site] = reason
            continue
        try:
            outcome.used[site] = protocol.read_local_phase_reply(
                answers.replies[site].content,
                header=header,
                most_volumes=member.description.n_volumes,
                masked=cell.task.masking is not None,
            )
        except PayloadError as error:
            outcome.refused[site] = str(error)
    for item in outcome.reasons():
        emit(SiteLeftOut(item["site"], f"{what}: {item['reason']}"))
    n_bytes_down = {site: protocol.n_bytes(content) for site, content in contents.items()}
    record = _record(cell, round_, 1, outcome, n_bytes_down, time.monotonic() - began)
    run.folder.note(record | {"event": "local_phase", "committed": True})


def _loss(outcome: Outcome) -> float | None:
    """The mean loss of a round, weighted by volumes."""
    if outcome.masked is not None:
        return outcome.masked.loss
    known = [(reply.loss, reply.n_volumes) for reply in outcome.used.values() if reply.loss is not None]
    total = sum(n for _, n in known)
    return sum(loss * n for loss, n in known) / total if total else None


def _next_state(
    cell: Cell, state: AdapterState, sent: Mapping[str, AdapterState], outcome: Outcome, config: RoundsConfig
) -> Aggregate:
    """The state after a round; where every site held back its update, or a masked round is lost, the state before."""
    used = outcome.used
    if outcome.masked is not None:
        return add_change(state, outcome.masked.change)
    if not used:
        return Aggregate(state, dict(NO_UPDATES))
    updates = [
        SiteUpdate(site, reply.n_volumes, sent[site] | _only(reply.state, sent[site]), sent[site])
        for site, reply in used.items()
    ]
    return aggregate(updates, like=state, rule=cell.rule, layers=cell.layers, config=config)


def _only(state: AdapterState, like: AdapterState) -> AdapterState:
    return {name: value for name, value in state.items() if name in like}


def _mean_of_private(cell: Cell, used: Mapping[str, TrainReply], config: RoundsConfig) -> Aggregate:
    """The mean of what stayed at the sites until now: of private terms, the mean of their products (``project``)."""
    like = cell.private
    if not used:
        return Aggregate(like, {"shortened": {}})
    updates = [SiteUpdate(site, reply.n_volumes, _only(reply.state, like), like) for site, reply in used.items()]
    rule = "project" if cell.private_layers and cell.rule in LINEAR else cell.rule
    return aggregate(updates, like=like, rule=rule, layers=cell.private_layers, config=config)


def _run_round(
    cell: Cell, sent: Mapping[str, AdapterState], round_: int, run: Run, own_rounds: Mapping[str, int]
) -> Steps[tuple[Outcome, dict[str, Any]]]:
    config = run.config
    quorum = needed(config, len(cell.sites))
    for attempt in range(1, config.attempts + 1):
        run.invite(cell.sites)
        began = time.monotonic()
        outcome, n_bytes_down = yield from _ask(cell, sent, round_, run, own_rounds)
        enough = len(outcome.used) + len(outcome.held) >= quorum
        if cell.task.masking is not None:  # a round that is spent without a sum is lost, and changes nothing
            over = attempt == config.attempts or len(outcome.held) >= quorum
            enough = outcome.masked is not None or (outcome.spent and over)
        record = _record(cell, round_, attempt, outcome, n_bytes_down, time.monotonic() - began) | {"committed": enough}
        if enough:
            return outcome, record | outcome.notes
        run.folder.note(record | outcome.notes)
        emit(RoundFailed(cell.key, _shortage(cell, round_, attempt, outcome, quorum)))
        if attempt < config.attempts and config.pause_s:
            sites, pause = outcome.reasons(), {"cell": cell.key, "round": round_, "seconds": config.pause_s}
            run.folder.note({"event": "paused", **pause, "sites": sites})
            emit(Paused(cell.key, round_, tuple(item["site"] for item in sites), config.pause_s))
            yield Pause(config.pause_s)
    raise RunFailed(_shortage(cell, round_, config.attempts, outcome, quorum))


def _requests(
    cell: Cell, sent: Mapping[str, AdapterState], round_: int, run: Run, own_rounds: Mapping[str, int]
) -> tuple[Header, dict[str, Member], dict[str, RecordDict]]:
    """The header of a round, the sites that are asked, and the request to each."""
    header = Header(**{**cell.header.as_dict(), "round": round_})
    members = {site: run.roster[site] for site in cell.sites if site in run.roster}
    tasks = {
        site: in_round(cell.task, round_, cell.ranks.ranks.get(site), own_round=own_rounds.get(site, 0))
        for site in members
    }
    return header, members, {site: protocol.request(tasks[site], header, sent[site]) for site in members}


def _ask(
    cell: Cell, sent: Mapping[str, AdapterState], round_: int, run: Run, own_rounds: Mapping[str, int]
) -> Steps[tuple[Outcome, dict[str, int]]]:
    deadline_s = run.config.deadline_s
    header, members, contents = _requests(cell, sent, round_, run, own_rounds)
    nodes = {site: member.node_id for site, member in members.items()}
    what = f"{cell.key}, round {round_}"
    contents = yield from with_confirmations(
        contents, task=in_round(cell.task, round_), header=header, run=run, cell=cell.key
    )
    if cell.task.masking is not None:
        return (yield from _ask_masked(cell, contents, sent, header, run))
    answers: Answers = yield Ask(contents, protocol.TRAIN, nodes, deadline_s, what, cell.key)
    replies = answers.replies
    outcome = Outcome(oddities=answers.oddities())
    outcome.missing |= {site: run.why_out(site) for site in cell.sites if site not in members}
    for site, member in members.items():
        if reason := reason_of(replies.get(site), deadline_s):
            outcome.missing[site] = reason
            outcome.held |= {site} if is_held_back(replies.get(site)) else set()
            continue
        expected = _in_turn(cell, sent[site], round_)
        if round_ == cell.task.rounds:
            expected = dict(sorted((expected | cell.private).items()))
        try:
            outcome.used[site] = protocol.read_train_reply(
                replies[site].content,
                header=header,
                like=expected,
                most_volumes=member.description.n_volumes,
                encoding=cell.task.payload,
            )
        except PayloadError as error:
            outcome.refused[site] = str(error)
            emit(SiteLeftOut(site, f"refused: {error}"))
    return outcome, {site: protocol.n_bytes(content) for site, content in contents.items()}


def _in_turn(cell: Cell, sent: AdapterState, round_: int) -> AdapterState:
    """What was sent of the tensors that train in a round."""
    return {name: sent[name] for name in RULES[cell.rule].names_of_turn(cell.layers, tuple(sent), round_)}


def _ask_masked(
    cell: Cell, contents: Mapping[str, RecordDict], sent: Mapping[str, AdapterState], header: Header, run: Run
) -> Steps[tuple[Outcome, dict[str, int]]]:
    like = _in_turn(cell, next(iter(sent.values()), {}), header.round)
    task, quorum = in_round(cell.task, header.round), needed(run.config, len(cell.sites))
    attempt = MaskedRound(cell, task, header, contents, like, run, quorum)
    yield from attempt.run()
    outcome = attempt.outcome
    outcome.notes = attempt.notes
    known = outcome.used.keys() | outcome.refused.keys() | outcome.missing.keys()
    left = [site for site in cell.sites if site not in known]
    outcome.missing |= {site: run.why_out(site) for site in left if site not in contents}
    text = "came after this masked round began" if attempt.progress.listed else "the round ended before its vector"
    outcome.missing |= {site: text for site in left if site in contents}
    return outcome, attempt.n_bytes_down


def _record(
    cell: Cell, round_: int, attempt: int, outcome: Outcome, n_bytes_down: Mapping[str, int], seconds: float
) -> dict[str, Any]:
    return {
        "event": "round",
        "stage": cell.task.stage,
        "method": None if cell.header.method == PRETRAIN else cell.header.method,
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
