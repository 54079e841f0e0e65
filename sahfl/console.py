"""What a running simulation looks like: a live table in a terminal, one line per event elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from sahfl.config import Study, ZeroShot
from sahfl.federation.events import Event, listening

if TYPE_CHECKING:
    from sahfl.trust.overview import Line

PREPARE_STEPS, EVALUATE_STEPS = 30, 25
"""Work of preparing a site's data, and of evaluating a fold at a site, counted in training steps."""
LINES_EVERY_S = 15.0
"""A plain log repeats a site's state no more often than this."""


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
    """Work that an earlier session had done."""
    asked: set[str] = field(default_factory=set)
    """Sites that were asked to evaluate since the last fold ended."""

    def __post_init__(self) -> None:
        self.sites = {name: SiteState() for name in self.study.sites}

    @property
    def total(self) -> float:
        """All work of the study, in training steps."""
        pretrain, finetune = self.study.pretrain, self.study.finetune
        trained = sum(not isinstance(method, ZeroShot) for method in finetune.methods)
        steps = self._round_steps("pretrain") * pretrain.rounds if pretrain else 0
        steps += self._round_steps("") * finetune.rounds * finetune.folds * trained
        evaluations = EVALUATE_STEPS * len(finetune.sites) * finetune.folds * len(finetune.methods)
        return steps + evaluations + PREPARE_STEPS * len(self.sites)

    def hear(self, event: Event) -> None:
        """Take in an event."""
        if event.kind in ("stage", "round", "committed"):
            self.waiting = ""
        match event.kind:
            case "stage":
                self.stage, self.round = event.text, ""
            case "round":
                self.round = f"round {event.done:.0f} of {event.total:.0f}"
            case "committed":
                self.committed = f"{event.text}, round {event.done:.0f}{_loss(event)}"
                self.done += self._round_steps(event.text)
                for name in [name for name, site in self.sites.items() if site.doing == "done"]:
                    self.sites[name] = SiteState(loss=self.sites[name].loss)
            case "resumed":
                self.skipped += self._round_steps(event.text) * event.done
            case "evaluated":
                # A site that was not asked now was evaluated by an earlier session, or is out.
                asked, self.asked = len(self.asked), set()
                self.done += EVALUATE_STEPS * asked
                self.skipped += EVALUATE_STEPS * max(0, len(self.study.finetune.sites) - asked)
            case "failed_round" | "warning":
                self.warning = event.text
            case "waiting" | "paused":
                self.waiting = _waiting(event)
            case "started":
                self.asked |= {event.site} if event.text == "evaluate" else set()
                self.sites[event.site] = SiteState(_doing(event.text))
            case "step":
                self.sites[event.site] = SiteState(_doing(event.text), event.done, event.total, event.loss)
            case "finished":
                before = self.sites.get(event.site)
                self.done += PREPARE_STEPS if event.text == "query.describe" else 0
                trained = before is not None and event.text == "train"
                self.sites[event.site] = replace(before, doing="done") if before and trained else SiteState()
            case "failed":
                self.warning = f"{event.site}: {event.text}"
                self.sites[event.site] = SiteState("failed")

    def time_left(self) -> str:
        """Estimated time to the end, from this session's pace."""
        elapsed, left = time.monotonic() - self.began, self.total - self.done - self.skipped
        running = sum(self._running(state) for state in self.sites.values())
        if self.done + running < 0.02 * self.total:
            return "time left: measuring"
        return f"time left: about {_clock(elapsed * max(0.0, left - running) / (self.done + running))}"

    def _running(self, state: SiteState) -> float:
        return state.done if state.doing in ("training", "done") else 0.0

    def _round_steps(self, cell: str) -> int:
        pretraining = self.study.pretrain if cell == "pretrain" else None
        stage = pretraining or self.study.finetune
        return stage.local.steps * len(stage.sites)


def verdict_table(checks: Mapping[str, Any]) -> Table:
    """The verdict on a site's data: a row per rule that found something."""
    colours = {"error": "red", "warning": "yellow", "note": "dim"}
    verdict = Text("may train", "bold green") if checks["may_train"] else Text("may NOT train", "bold red")
    used = f"{checks['n_usable']} of {checks['n_cases']} cases usable, up to {checks['max_refused_share']:.0%} may fail"
    title = Text.assemble(f"site {checks['site']}: ", verdict, f" ({used})")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim", title_style="")
    table.add_column("rule", no_wrap=True)
    table.add_column("severity", no_wrap=True)
    table.add_column("cases", justify="right")
    table.add_column("meaning")
    for rule in checks["rules"]:
        severity = Text(rule["severity"], colours[rule["severity"]])
        table.add_row(rule["rule"], severity, str(rule["n"]), rule["meaning"])
    if not checks["rules"]:
        table.add_row("none", "", "", "no rule found anything")
    return table


def certificate_table(lines: Iterable[Line]) -> Table:
    """Who holds which certificate of a consortium, and for how long."""
    table = Table("who", "certificate", "expires", Column("days left", justify="right"), "state")
    colours = {"new": "green", "valid": "green", "expires soon": "yellow", "revoked": "dim"}
    for line in lines:
        state = Text(line.state, colours.get(line.state, "red"))
        table.add_row(line.who, line.certificate, f"{line.expires:%Y-%m-%d}", str(line.days_left), state)
    return table


@contextmanager
def showing(study: Study, console: Console) -> Iterator[None]:
    """Show all events while the block runs: live in a terminal, as plain lines elsewhere."""
    state = State(study)
    if not console.is_terminal:
        with listening(_plain(state, console)):
            yield
        return
    with Live(console=console, get_renderable=lambda: _picture(state), refresh_per_second=4), listening(state.hear):
        yield


@contextmanager
def counting(
    sites: Iterable[str], console: Console, *, unit: str = "cases"
) -> Iterator[Callable[[str, int, int], None]]:
    """Show how many cases of each site are done: a bar per site in a terminal, a line per finished site elsewhere.

    Yields:
        What to call with (site, cases done, cases in all) after each case.
    """
    if not console.is_terminal:
        yield lambda site, done, total: console.print(f"{site}: {done} {unit}") if done == total else None
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console) as progress:
        bars = {site: progress.add_task(site, total=None) for site in sites}
        yield lambda site, done, total: progress.update(bars[site], completed=done, total=total)


def _picture(state: State) -> RenderableType:
    head = Text.assemble(
        (state.study.name, "bold"), "  ", (printable(state.stage), "cyan"), "  ", state.round, "\n",
        f"elapsed {_clock(time.monotonic() - state.began)}   {state.time_left()}",
    )  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("site", "state", "", "done", "loss"):
        table.add_column(title)
    for name, site in list(state.sites.items()):  # the display draws in a thread of its own
        bar = ProgressBar(total=site.total or 1, completed=site.done, width=24)
        count = f"{site.done:.0f} / {site.total:.0f}" if site.total else ""
        table.add_row(Text(printable(name)), site.doing, bar, count, "" if site.loss is None else f"{site.loss:.3f}")
    rows: list[RenderableType] = [head, table]
    if state.committed:
        rows.append(Text(printable(f"last commit: {state.committed}"), "dim"))
    if state.waiting:
        rows.append(Text(printable(state.waiting), "yellow"))
    if state.warning:
        rows.append(Text(printable(f"warning: {state.warning}"), "yellow"))
    return Group(*rows)


def _plain(state: State, console: Console) -> Callable[[Event], None]:
    """One line per event that matters; steps are thinned out."""
    last: dict[str, float] = {}

    def hear(event: Event) -> None:
        state.hear(event)
        now = time.monotonic()
        if event.kind == "step" and now - last.get(event.site, state.began) < LINES_EVERY_S:
            return
        last[event.site] = now
        if line := _line(event, state):
            text = f"{_clock(now - state.began)}  {printable(line)}"
            console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    return hear


def _line(event: Event, state: State) -> str:
    loss = _loss(event)
    match event.kind:
        case "stage":
            return event.text
        case "committed":
            return f"{event.text}, round {event.done:.0f} of {event.total:.0f} committed{loss}; {state.time_left()}"
        case "resumed":
            return f"{event.text}: resumed after round {event.done:.0f} of {event.total:.0f}"
        case "step":
            return f"{event.site}: {_doing(event.text)} {event.done:.0f} of {event.total:.0f}{loss}"
        case "failed":
            return f"warning: {event.site}: {event.text}"
        case "failed_round" | "warning":
            return f"warning: {event.text}"
        case "waiting" | "paused":
            return _waiting(event)
    return ""


def _waiting(event: Event) -> str:
    if event.kind == "paused":
        return f"paused for {_clock(event.total)}, {event.text}"
    return f"waiting for {event.text}: {_clock(event.total - event.done)} left until the deadline"


def _loss(event: Event) -> str:
    return "" if event.loss is None else f", loss {event.loss:.3f}"


def printable(text: str) -> str:
    """Text of a peer with every control character replaced, so that it can neither steer a terminal nor fake a line."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _doing(text: str) -> str:
    words = {
        "train": "training",
        "evaluate": "evaluating",
        "data": "preparing data",
        "query.describe": "preparing data",
    }
    return words.get(text, "working")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
