"""How far a study is, from its events: cells, sites, and the time that is left."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from sahfl.config import Method, Study, ZeroShot
from sahfl.events import Event

PREPARE_STEPS, EVALUATE_STEPS = 30, 25
"""Work of preparing a site's data, and of evaluating a fold at a site, counted in training steps."""


@dataclass
class SiteState:
    """What is known of one site right now."""

    doing: str = "waiting"
    done: float = 0
    total: float = 0
    loss: float | None = None


@dataclass
class State:
    """Everything that a display shows."""

    study: Study
    began: float = field(default_factory=time.monotonic)
    stage: str = "starting"
    round: str = ""
    committed: str = ""
    warning: str = ""
    waiting: str = ""
    """Why nothing goes on right now."""
    sites: dict[str, SiteState] = field(default_factory=dict)
    done: float = 0
    """Work done, in training steps, in this session."""
    skipped: float = 0
    """Work that an earlier session or run had done."""
    cells: set[str] = field(default_factory=set)
    """Cells that are done: pretraining, and each method on each fold."""
    reused: set[str] = field(default_factory=set)
    """Those of them that an earlier run had finished."""
    lanes: dict[str, str] = field(default_factory=dict)
    """What goes on in each cell that is worked on."""
    tuning: tuple[float, float] | None = None
    """When the first cell of fine-tuning began, and the work done until then."""

    def __post_init__(self) -> None:
        self.sites = {name: SiteState() for name in self.study.sites}
        self._steps = {method.id: self._steps_of(method) for method in self.study.finetune.methods}

    @property
    def total(self) -> float:
        """All work of the study, in training steps."""
        pretrain, finetune = self.study.pretrain, self.study.finetune
        steps = self._round_steps("pretrain") * pretrain.rounds if pretrain else 0
        steps += sum(self._steps.values()) * finetune.rounds * finetune.folds
        evaluations = EVALUATE_STEPS * len(finetune.sites) * finetune.folds * len(finetune.methods)
        return steps + evaluations + PREPARE_STEPS * len(self.study.sites)

    @property
    def n_cells(self) -> int:
        """All cells of the study."""
        return len(self.study.finetune.methods) * self.study.finetune.folds + (self.study.pretrain is not None)

    def count(self) -> str:
        """How many cells are done."""
        reused = f" ({len(self.reused)} from earlier runs)" if self.reused else ""
        return f"{len(self.cells)} of {self.n_cells} cells done{reused}"

    def hear(self, event: Event) -> None:
        """Take in an event."""
        if event.kind in ("stage", "round", "committed"):
            self.waiting = ""
        match event.kind:
            case "stage":
                self.stage, self.round = event.text, ""
            case "round":
                self.round = self.lanes[event.text] = f"round {event.done:.0f} of {event.total:.0f}"
                if event.text != "pretrain":
                    self.tuning = self.tuning or (time.monotonic(), self.done)
            case "committed":
                self._end_round(event)
                self.committed = f"{event.text}, round {event.done:.0f}{loss_text(event)}"
                self.done += self._round_steps(event.text)
                for name in [name for name, site in self.sites.items() if site.doing == "done"]:
                    self.sites[name] = SiteState(loss=self.sites[name].loss)
            case "resumed":
                self._end_round(event)
                self.skipped += self._round_steps(event.text) * event.done
            case "evaluated":  # a site that was not asked now was evaluated by an earlier session, or is out
                self._end_cell(event.text)
                self.done += EVALUATE_STEPS * event.done
                self.skipped += EVALUATE_STEPS * max(0, len(self.study.finetune.sites) - event.done)
            case "reused":
                self._end_cell(event.text)
                self.reused.add(event.text)
                self.skipped += self._round_steps(event.text) * event.total
                self.skipped += EVALUATE_STEPS * len(self.study.finetune.sites) * (event.text != "pretrain")
            case "failed_round" | "warning":
                self.warning = event.text
            case "waiting" | "paused":
                self.waiting = waiting_text(event)
            case "started":
                self.sites[event.site] = SiteState(doing_text(event.text))
            case "step":
                self.sites[event.site] = SiteState(doing_text(event.text), event.done, event.total, event.loss)
            case "finished":
                before = self.sites.get(event.site)
                self.done += PREPARE_STEPS if event.text == "query.describe" else 0
                trained = before is not None and event.text == "train"
                self.sites[event.site] = replace(before, doing="done") if before and trained else SiteState()
            case "failed":
                self.warning = f"{event.site}: {event.text}"
                self.sites[event.site] = SiteState("failed")

    def time_left(self) -> str:
        """Estimated time to the end, from this session's pace: that of fine-tuning, once a cell of it has ended."""
        now, left = time.monotonic(), self.total - self.done - self.skipped
        running = sum(self._running(state) for state in self.sites.values())
        began, before = self.began, 0.0
        if self.tuning is not None and self.cells - self.reused - {"pretrain"}:
            began, before = self.tuning
        done = self.done - before + running
        if self.done + running < 0.02 * self.total or done <= 0:
            return "time left: measuring"
        return f"time left: about {clock((now - began) * max(0.0, left - running) / done)}"

    def _end_round(self, event: Event) -> None:
        if event.done >= event.total:
            self.lanes[event.text] = "evaluating"
            if event.text == "pretrain":
                self._end_cell(event.text)

    def _end_cell(self, cell: str) -> None:
        self.cells.add(cell)
        self.lanes.pop(cell, None)

    def _running(self, state: SiteState) -> float:
        return state.done if state.doing in ("training", "done") else 0.0

    def _round_steps(self, cell: str) -> int:
        if cell == "pretrain" and self.study.pretrain:
            return self.study.pretrain.local.steps * len(self.study.pretrain.sites)
        return self._steps.get(cell.partition("/")[0], 0)

    def _steps_of(self, method: Method) -> int:
        """Training steps of a method in a round, at all who train it."""
        if isinstance(method, ZeroShot):
            return 0
        return self.study.local_training(method).steps * len(self.study.training_sites(method))


def waiting_text(event: Event) -> str:
    """Whom a run waits for."""
    if event.kind == "paused":
        return f"paused for {clock(event.total)}, {event.text}"
    whose = f"{event.cell}: " if event.cell else ""
    return f"{whose}waiting for {event.text}: {clock(event.total - event.done)} left until the deadline"


def loss_text(event: Event) -> str:
    """A loss, where there is one."""
    return "" if event.loss is None else f", loss {event.loss:.3f}"


def doing_text(message_type: str) -> str:
    """What a site does, from the type of its message."""
    from sahfl.federation.site.kinds.table import find_kind  # late: the table holds all of a site's work

    return find_kind(message_type).doing


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
