"""Progress of a study, computed from its events: cells, sites, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

from sahfl import events
from sahfl.cell_names import PRETRAIN, Pretraining, cell_of, is_pretraining
from sahfl.config import Method, Study, ZeroShot
from sahfl.events import CellEvent, Event, SiteEvent
from sahfl.task import parts_of

PREPARE_STEPS, EVALUATE_STEPS = 30, 25
"""Work of preparing a site's data, and of evaluating a fold at a site, in training steps."""


@dataclass
class SiteProgress:
    """Progress of one site in its present work."""

    doing: str = "waiting"
    done: float = 0
    total: float = 0
    loss: float | None = None
    since: float = field(default_factory=time.monotonic)
    """When this work began, on the monotonic clock."""

    def lasting(self) -> str:
        """How long it has lasted."""
        return clock(time.monotonic() - self.since)


@dataclass
class RunProgress:
    """Everything that a display shows of a run."""

    study: Study
    began: float = field(default_factory=time.monotonic)
    stage: str = "starting"
    round: str = ""
    committed: str = ""
    warning: str = ""
    waiting: str = ""
    """Whom the run waits for."""
    sites: dict[str, SiteProgress] = field(default_factory=dict)
    done: float = 0
    """Work done, in training steps, in this session."""
    skipped: float = 0
    """Work that an earlier session or run had done."""
    cells: set[str] = field(default_factory=set)
    """Cells that are done: pretraining, and each method on each fold."""
    reused: set[str] = field(default_factory=set)
    """Done cells that an earlier run had finished."""
    lanes: dict[str, str] = field(default_factory=dict)
    """Progress of each cell that is worked on."""
    tuning: tuple[float, float] | None = None
    """When the first cell of fine-tuning began, and the work done until then."""

    def __post_init__(self) -> None:
        finetune = self.study.finetune
        self.sites = {name: SiteProgress() for name in self.study.sites}
        cells = [(method, fold) for method in self.study.trainings for fold in range(finetune.folds)]
        self._evaluated = {cell_of(method, fold): self.study.evaluated_rounds(method) for method, fold in cells}
        """Rounds of each cell after which it is evaluated, beside the last."""
        self._steps = {cell_of(method, fold): self._steps_of(method) for method, fold in cells}
        """Training steps of each cell of fine-tuning in a round, at all its sites."""
        self._all_steps = sum(self._steps_of(method) * self.study.rounds_of(method) for method, _ in cells)
        """Training steps of all cells of fine-tuning in all rounds."""
        one = EVALUATE_STEPS * len(finetune.sites)
        self._evaluation = {
            cell_of(method, fold): one * (len(parts_of(method)) + len(self.study.evaluated_rounds(method)))
            for method, fold in cells
        }
        """Work of evaluating each cell that is left, all parts of what its method trains counted, and after rounds."""
        self._all_evaluations = sum(self._evaluation.values())

    @property
    def total(self) -> float:
        """All work of the study, in training steps."""
        pretrain = self.study.pretrain
        bases = [Pretraining(site).id for site in (None, *self.study.own_bases)] if pretrain else []
        steps = self._all_steps + sum(self._round_steps(base) * pretrain.rounds for base in bases if pretrain)
        return steps + self._all_evaluations + PREPARE_STEPS * len(self.study.sites)

    def count(self) -> str:
        """How many cells are done."""
        reused = f" ({len(self.reused)} from earlier runs)" if self.reused else ""
        n_cells = len(self._steps) + (self.study.pretrain is not None) + len(self.study.own_bases)
        return f"{len(self.cells)} of {n_cells} cells done{reused}"

    def update(self, event: Event) -> None:
        """Follow an event of the run."""
        if isinstance(event, SiteEvent):
            return self._update_site(event)
        if isinstance(event, CellEvent):
            return self._update_cell(event)
        match event:
            case events.StageBegun() | events.CellStageBegun():
                self.stage, self.round, self.waiting = event.text, "", ""
            case events.Waiting():
                self.waiting = waiting_text(event, self.sites) if event.sites else ""
            case events.Paused():
                self.waiting = paused_text(event)
            case events.RoundFailed():
                self.warning = event.reason
            case events.Warned():
                self.warning = event.text
            case events.UpdateBounded():
                pass
            case _:
                assert_never(event)

    def time_left(self) -> str:
        """Estimated time to the end, from this session's pace; from that of fine-tuning once one of its cells ended."""
        now, left = time.monotonic(), self.total - self.done - self.skipped
        running = sum(site.done for site in self.sites.values() if site.doing in ("training", "done"))
        began, before = self.began, 0.0
        if self.tuning is not None and any(not is_pretraining(cell) for cell in self.cells - self.reused):
            began, before = self.tuning
        done = self.done - before + running
        if self.done + running < 0.02 * self.total or done <= 0:
            return "time left: measuring"
        return f"time left: about {clock((now - began) * max(0.0, left - running) / done)}"

    def _update_cell(self, event: CellEvent) -> None:
        cell = event.cell
        match event:
            case events.RoundBegun():
                self.waiting = ""
                self.round = self.lanes[cell] = f"round {event.round} of {event.rounds}"
                if not is_pretraining(cell):
                    self.tuning = self.tuning or (time.monotonic(), self.done)
            case events.RoundCommitted():
                self.waiting = ""
                self._end_round(event)
                self.committed = f"{cell}, round {event.round}{loss_text(event.loss)}"
                self.done += self._round_steps(cell)
                for name, site in list(self.sites.items()):
                    if site.doing == "done":  # it waits again; its loss stays
                        self.sites[name] = SiteProgress(loss=site.loss)
            case events.CellResumed():
                self._end_round(event)
                self.skipped += self._round_steps(cell) * event.round
                for _ in [round_ for round_ in self._evaluated.get(cell, ()) if round_ < event.round]:
                    self._count_evaluation(cell, asked=0)
            case events.RoundEvaluated():
                self._count_evaluation(cell, asked=event.asked)
            case events.CellEvaluated():
                self._end_cell(cell)
                if event.asked:
                    self._count_evaluation(cell, asked=event.asked)
                else:
                    self.skipped += self._evaluation.pop(cell, 0)
            case events.CellReused():
                self._end_cell(cell)
                self.reused.add(cell)
                self.skipped += self._round_steps(cell) * event.rounds + self._evaluation.pop(cell, 0)
            case _:
                assert_never(event)

    def _update_site(self, event: SiteEvent) -> None:
        from sahfl.federation.protocol import DESCRIBE, TRAIN  # late: it loads flwr

        before = self.sites.get(event.site)
        match event:
            case events.SiteStarted():
                self.sites[event.site] = SiteProgress(doing_text(event.work))
            case events.SiteStep():
                doing, step = doing_text(event.work), (event.done, event.total, event.loss)
                began = before.since if before and before.doing == doing else time.monotonic()
                self.sites[event.site] = SiteProgress(doing, *step, began)
            case events.SiteFinished():
                self.done += PREPARE_STEPS if event.work == DESCRIBE else 0
                trained = before is not None and event.work == TRAIN
                self.sites[event.site] = (
                    replace(before, doing="done", since=time.monotonic()) if before and trained else SiteProgress()
                )
            case events.SiteFailed():
                self.warning = f"{event.site}: {event.reason}"
                self.sites[event.site] = SiteProgress("failed")
            case events.SiteLeftOut():
                self.warning = f"{event.site}: {event.reason}"
            case _:
                assert_never(event)

    def _count_evaluation(self, cell: str, *, asked: int) -> None:
        """Count one evaluation of a cell; an earlier session asked the other sites, or they are out."""
        work = min(self._evaluation.get(cell, 0), EVALUATE_STEPS * len(self.study.finetune.sites))
        self._evaluation[cell] = self._evaluation.get(cell, 0) - work
        self.done += min(work, EVALUATE_STEPS * asked)
        self.skipped += max(0, work - EVALUATE_STEPS * asked)

    def _end_round(self, event: events.RoundCommitted | events.CellResumed) -> None:
        if event.round >= event.rounds:
            self.lanes[event.cell] = "evaluating"
            if is_pretraining(event.cell):
                self._end_cell(event.cell)

    def _end_cell(self, cell: str) -> None:
        self.cells.add(cell)
        self.lanes.pop(cell, None)

    def _round_steps(self, cell: str) -> int:
        if is_pretraining(cell) and (pretrain := self.study.pretrain):
            return pretrain.local.steps * (len(pretrain.sites) if cell == PRETRAIN else 1)
        return self._steps.get(cell, 0)

    def _steps_of(self, method: Method) -> int:
        if isinstance(method, ZeroShot):
            return 0
        return self.study.local_training(method).steps * len(self.study.training_sites(method))


def paused_text(event: events.Paused) -> str:
    """How long a cell rests, and why."""
    return f"paused for {clock(event.seconds)}, {event.text}"


def waiting_text(event: events.Waiting, sites: Mapping[str, SiteProgress]) -> str:
    """Which sites work, on what and for how long, and which a run waits for; the deadline concerns these."""
    known = {site: sites.get(site, SiteProgress("working")) for site in event.working}
    parts = [f"{site} {progress.doing} for {progress.lasting()}" for site, progress in known.items()]
    if event.sites:
        left = clock(event.deadline_s - event.waited_s)
        parts.append(f"waiting for {', '.join(event.sites)}, for at most {left} more")
    return (f"{event.cell}: " if event.cell else "") + "; ".join(parts)


def loss_text(loss: float | None) -> str:
    """A loss, where there is one."""
    return "" if loss is None else f", loss {loss:.3f}"


def doing_text(work: str) -> str:
    """What a site does, from the type of its message."""
    from sahfl.federation.site.kinds.table import find_kind  # late: the table imports all of a site's work

    return find_kind(work).doing


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
