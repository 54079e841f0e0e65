"""The order of the cells' steps: several cells go on at once, so that no site waits, all in one thread.

A cell is a generator: it yields what it wants to ask and receives the answers. No two steps run at the same time, so
that journal, checkpoints and roster need no locks, and Ctrl-C ends all cells between two of their steps.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TypeVar

from sahfl.federation.server.mailbox import Answers, Ask, Exchange, Mailbox

LOOK_S = 0.2
"""Pause between two looks at cells that pause, while no request is open."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pause:
    """A pause of one cell; the others go on meanwhile. Its answers are empty."""

    seconds: float


Steps = Generator[Ask | Pause, Answers, Result]
"""Work that is done step by step between answers; it returns a result."""


@dataclass(frozen=True)
class Job:
    """One cell that can run beside others; ``sites`` do most of its work."""

    sites: tuple[str, ...]
    start: Callable[[], Steps[None]]


@dataclass(eq=False)
class _Lane:
    """A job that has begun, and what it waits for."""

    sites: tuple[str, ...]
    steps: Steps[None]
    begun: bool = False
    exchange: Exchange | None = None
    wake_at: float = 0.0

    def is_due(self) -> bool:
        return self.exchange.done if self.exchange else time.monotonic() >= self.wake_at

    def go_on(self, mail: Mailbox) -> bool:
        """Do the next step; returns False after the last one."""
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
    results: list[Result] = []

    def keep_result() -> Steps[None]:
        results.append((yield from steps))

    run_jobs([Job((), keep_result)], mail)
    return results[0]


def run_jobs(jobs: Iterable[Job], mail: Mailbox, *, lanes: int = 1) -> None:
    """Run jobs, several at once: a site that has done its part of one job works for another meanwhile.

    Guarantees: a job takes the same steps as alone, so that its result does not depend on the others; with one lane,
    jobs run one after the other in their order. An error in one job ends all; what they committed stays.
    At most ``lanes`` jobs run at a time; they begin in their order, except where another keeps more sites at work.
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
    """Index of the first job whose busiest site has the least to do."""
    load = Counter(site for lane in running for site in lane.sites)
    return min(range(len(waiting)), key=lambda index: max((load[site] for site in waiting[index].sites), default=0))


def _wait(running: list[_Lane], mail: Mailbox) -> None:
    if any(lane.is_due() for lane in running):
        return
    if any(lane.exchange for lane in running):
        mail.step()
    else:
        mail.pause(min(LOOK_S, max(0.0, min(lane.wake_at for lane in running) - time.monotonic())))
