"""Which cell goes on when: several at once where sites would wait for each other, all in one thread.

A cell is a generator: it yields what it wants to ask and is given the answers. Nothing runs at the same time in this
process, so that journal, checkpoints and roster need no locks, and Ctrl-C ends all cells between two of their steps.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TypeVar

from sahfl.federation.server.mailbox import Answers, Ask, Exchange, Mailbox

LOOK_S = 0.2
"""How often cells that pause are looked at while nobody is asked anything."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pause:
    """A wait that a cell wants; the others go on meanwhile. Its answers are empty."""

    seconds: float


Steps = Generator[Ask | Pause, Answers, Result]
"""Work that is done step by step between answers, and its result."""


@dataclass(frozen=True)
class Job:
    """One cell that can run beside others."""

    sites: tuple[str, ...]
    """Who does most of its work."""
    start: Callable[[], Steps[None]]
    """Begins it."""


@dataclass(eq=False)
class _Lane:
    """A job that has begun, and what it waits for."""

    sites: tuple[str, ...]
    steps: Steps[None]
    begun: bool = False
    exchange: Exchange | None = None
    wake_at: float = 0.0

    def is_due(self) -> bool:
        """Whether what it waited for is there."""
        return self.exchange.done if self.exchange else time.monotonic() >= self.wake_at

    def go_on(self, mail: Mailbox) -> bool:
        """Do the next step; False where that was the last one."""
        answers = self.exchange.answers if self.exchange else Answers()
        try:
            wanted = self.steps.send(answers) if self.begun else next(self.steps)
        except StopIteration:
            return False
        self.begun = True
        self.exchange = mail.open(wanted) if isinstance(wanted, Ask) else None
        self.wake_at = time.monotonic() + wanted.seconds if isinstance(wanted, Pause) else 0.0
        return True


def run_alone(steps: Steps[Result], mail: Mailbox) -> Result:
    """Run one cell to its end, and return its result."""
    answers: Answers | None = None
    try:
        while True:
            wanted = next(steps) if answers is None else steps.send(answers)
            if isinstance(wanted, Ask):
                answers = mail.exchange(wanted)
            else:
                mail.pause(wanted.seconds)
                answers = Answers()
    except StopIteration as end:
        result: Result = end.value
        return result


def run_jobs(jobs: Iterable[Job], mail: Mailbox, *, lanes: int = 1) -> None:
    """Run jobs, several at once: a site that has done its part of one works for another meanwhile.

    Guarantees: a job's steps are those that it would take alone, so that its result does not depend on the others;
    with one lane, jobs run one after the other in their order. An error in one ends all, each at what it committed.

    Args:
        jobs: in the order in which they begin, as far as that keeps different sites at work.
        mail: how sites are asked.
        lanes: how many jobs may have begun at a time.
    """
    waiting, running = list(jobs), list[_Lane]()
    try:
        while waiting or running:
            while waiting and len(running) < lanes:
                job = waiting.pop(_next_job(waiting, running))
                running.append(_Lane(job.sites, job.start()))
            due = [lane for lane in running if lane.is_due()]
            ended = [lane for lane in due if not lane.go_on(mail)]
            running = [lane for lane in running if lane not in ended]
            if not ended:
                _wait(running, mail)
    finally:
        for lane in running:
            lane.steps.close()


def _next_job(waiting: list[Job], running: list[_Lane]) -> int:
    """The first of those jobs whose busiest site has least to do."""
    load = Counter(site for lane in running for site in lane.sites)
    return min(range(len(waiting)), key=lambda index: max((load[site] for site in waiting[index].sites), default=0))


def _wait(running: list[_Lane], mail: Mailbox) -> None:
    if any(lane.is_due() for lane in running):
        return
    if any(lane.exchange for lane in running):
        mail.step()
    else:
        mail.pause(min(LOOK_S, max(0.0, min(lane.wake_at for lane in running) - time.monotonic())))
