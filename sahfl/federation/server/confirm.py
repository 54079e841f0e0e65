"""Confirmations of a round's start: before a round, the server asks the sites of the training to sign its hash."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import RecordDict

from sahfl.errors import PayloadError
from sahfl.events import Warned, emit
from sahfl.federation import confirmations, protocol
from sahfl.federation.server.cell import Run
from sahfl.federation.server.mailbox import Answers, Ask
from sahfl.federation.server.replies import content_of
from sahfl.federation.server.schedule import Steps
from sahfl.federation.tensors import hash_of_tensors
from sahfl.payload import Header
from sahfl.task import Task
from sahfl.trust.attestation import Attestation

MOST_S = 300.0
"""Seconds to wait for a site's confirmation, at most."""


def with_confirmations(
    contents: Mapping[str, RecordDict],
    *,
    task: Task,
    header: Header,
    run: Run,
    cell: str,
) -> Steps[dict[str, RecordDict]]:
    """Add to the training requests of a round what other sites confirmed of its start, if a site wants that.

    It goes on as soon as enough sites have answered. Sites with starts of their own get no confirmations, since each
    site confirms one start for each round.

    Args:
        contents: the request to each site.
        task: of the round.
        header: names the training and the round.
        run: the study's sites, and its deadline.
        cell: for the display.
    """
    starts = {hash_of_tensors(content) for content in contents.values()} - {""}
    roster, deadline_s = run.roster, run.config.deadline_s
    wanted = any(roster[site].description.confirmations for site in contents)
    if header.round == 1 or not wanted or len(starts) != 1:
        return dict(contents)
    question = confirmations.ask(task, header, starts.pop())
    nodes = {site: roster[site].node_id for site in contents}
    asked = dict.fromkeys(nodes, question)
    enough = 1 + max(
        roster[site].description.confirmations for site in contents
    )  # each site needs others' than its own
    answers: Answers = yield Ask(
        asked,
        protocol.CONFIRM_START,
        nodes,
        min(deadline_s, MOST_S),
        f"{cell}, its start",
        cell,
        min(enough, len(nodes)),
    )
    made: list[Attestation] = []
    for site, reply in answers.replies.items():
        try:
            made.append(confirmations.read_reply(content_of(reply, deadline_s)))
        except PayloadError as error:
            emit(Warned(f"{site}: does not confirm the start of {cell}, round {header.round}: {error}"))
    return {site: confirmations.attach(content, made) for site, content in contents.items()}
