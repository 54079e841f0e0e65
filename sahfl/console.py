"""Display of a running simulation: a live table in a terminal, one line per event elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from sahfl import events
from sahfl.config import Study
from sahfl.events import Event, SiteEvent, listening
from sahfl.progress import RunProgress, clock, doing_text, loss_text, paused_text, waiting_text

if TYPE_CHECKING:
    from sahfl.report.summary import Conclusion
    from sahfl.trust.overview import Line

PLAIN_WIDTH = 130
"""Width of a conclusion without a terminal."""
LAYOUTS = [(lines, gap) for lines in (1, 2, 3) for gap in (2, 1)]
"""Lines of a value with its interval, and spaces between columns: the first layout that fits is taken."""
GLUE = "\ue000"
"""In the place of a space at which no line may end; rich also breaks lines at no-break spaces."""
LINES_EVERY_S = 15.0
"""Shortest time between two lines of a plain log on the steps of one site."""


def verdict_table(checks: Mapping[str, Any]) -> Table:
    """The verdict on a site's data: a row per rule that found something."""
    colours = {"error": "red", "warning": "yellow", "note": "dim"}
    verdict = Text("may train", "bold green") if checks["may_train"] else Text("may NOT train", "bold red")
    if checks["may_train"] and checks["too_few_patients"]:
        verdict = Text("data usable, too few patients to train", "bold yellow")
    used = f"{checks['n_usable']} of {checks['n_cases']} cases usable, up to {checks['max_refused_share']:.0%} may fail"
    title = Text.assemble(f"site {checks['site']}: ", verdict, f" ({used})")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim", title_style="")
    for name in ("rule", "severity", "cases", "meaning"):
        table.add_column(name, no_wrap=name in ("rule", "severity"), justify="right" if name == "cases" else "left")
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
    progress = RunProgress(study)
    if not console.is_terminal:
        with listening(_plain(progress, console)):
            yield
        return
    live = Live(console=console, get_renderable=lambda: _picture(progress), refresh_per_second=4)
    with live, listening(progress.update):
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


def _picture(progress: RunProgress) -> RenderableType:
    head = Text.assemble(
        (progress.study.name, "bold"), "  ", (printable(progress.stage), "cyan"), "  ", progress.round, "\n",
        f"elapsed {clock(time.monotonic() - progress.began)}   {progress.time_left()}   {progress.count()}",
    )  # fmt: skip
    table = Table("site", "state", "for", "", "done", "loss", box=None, pad_edge=False, header_style="dim")
    for name, site in list(progress.sites.items()):  # the display draws in a thread of its own
        bar = ProgressBar(total=site.total or 1, completed=site.done, width=24)
        count = f"{site.done:.0f} / {site.total:.0f}" if site.total else ""
        loss = "" if site.loss is None else f"{site.loss:.3f}"
        table.add_row(Text(printable(name)), site.doing, site.lasting(), bar, count, loss)
    rows: list[RenderableType] = [head, table]
    if len(lanes := list(progress.lanes.items())) > 1:
        rows += [Text(printable(f"{cell}: {doing}")) for cell, doing in lanes]
    if progress.committed:
        rows.append(Text(printable(f"last commit: {progress.committed}"), "dim"))
    if progress.waiting:
        rows.append(Text(printable(progress.waiting), "yellow"))
    if progress.warning:
        rows.append(Text(printable(f"warning: {progress.warning}"), "yellow"))
    return Group(*rows)


def _plain(progress: RunProgress, console: Console) -> Callable[[Event], None]:
    """A listener that prints one line per event; of a site's steps it prints some."""
    last: dict[str, float] = {}

    def show(event: Event) -> None:
        progress.update(event)
        now = time.monotonic()
        if isinstance(event, SiteEvent):
            if isinstance(event, events.SiteStep) and now - last.get(event.site, progress.began) < LINES_EVERY_S:
                return
            last[event.site] = now
        if line := _line(event, progress):
            text = f"{clock(now - progress.began)}  {printable(line)}"
            console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    return show


def _line(event: Event, progress: RunProgress) -> str:
    match event:
        case events.StageBegun() | events.CellStageBegun():
            return event.text
        case events.RoundCommitted():
            which = f"{event.cell}, round {event.round} of {event.rounds}"
            return f"{which} committed{loss_text(event.loss)}; {progress.time_left()}"
        case events.CellResumed():
            return f"{event.cell}: resumed after round {event.round} of {event.rounds}"
        case events.CellEvaluated():
            return f"{event.cell} done; {progress.count()}; {progress.time_left()}"
        case events.RoundEvaluated():
            return f"{event.cell}, round {event.round} evaluated; {progress.time_left()}"
        case events.CellReused():
            return f"{event.cell}: taken from an earlier run"
        case events.SiteStep():
            return f"{event.site}: {doing_text(event.work)} {event.done} of {event.total}{loss_text(event.loss)}"
        case events.SiteFailed() | events.SiteLeftOut():
            return f"warning: {event.site}: {event.reason}"
        case events.RoundFailed():
            return f"warning: {event.reason}"
        case events.Warned():
            return f"warning: {event.text}"
        case events.Waiting():
            return waiting_text(event, progress.sites)
        case events.Paused():
            return paused_text(event)
        case events.RoundBegun() | events.UpdateBounded() | events.SiteStarted() | events.SiteFinished():
            return ""
        case _:
            assert_never(event)


def show_conclusion(conclusion: Conclusion, console: Console) -> None:
    """Print the table of methods and which one to use: as wide as a terminal, ``PLAIN_WIDTH`` elsewhere."""
    if not console.is_terminal:
        console = Console(file=console.file, width=PLAIN_WIDTH)
    names = [printable(row.cells[0]) for row in conclusion.table.rows]
    points = Table.grid(Column(style="dim"), Column(), padding=(0, 2))
    for point in conclusion.points:
        points.add_row(Text(printable(point.label)), Text(_glued(printable(point.text), names)))
    for notice in conclusion.notices:
        console.print(Text(printable(notice), "bold yellow"))
    use = Text(f"\n{_glued(printable(conclusion.use), names)}\n", "bold")
    with console.capture() as shown:
        for part in (_method_table(conclusion, console), use, points):
            console.print(part)
    console.file.write(shown.get().replace(GLUE, " "))


def _glued(text: str, names: Iterable[str]) -> str:
    """A text in which no line ends inside a method's name, except after a comma."""
    listed = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    glue = partial(re.sub, r"(?<!,) ", GLUE)
    # Inside a sentence a name may begin with a small letter.
    return re.sub(listed, lambda found: glue(found[0]), text, flags=re.IGNORECASE) if listed else text


def _method_table(conclusion: Conclusion, console: Console) -> Table:
    """The table of a conclusion in the widest layout that breaks nothing but words."""
    unbounded = console.options.update(width=10 * PLAIN_WIDTH)
    tables = [_laid_out(conclusion, lines, gap) for lines, gap in LAYOUTS]
    fits = (table for table in tables if console.measure(table, options=unbounded).minimum <= console.width)
    return next(fits, tables[-1])


def _laid_out(conclusion: Conclusion, lines: int, gap: int) -> Table:
    shown = conclusion.table
    table = Table(
        title=Text(printable(shown.caption)),
        title_justify="left",
        box=None,
        pad_edge=False,
        collapse_padding=True,
        padding=(0, gap),
        header_style="dim",
    )
    for place, name in enumerate(shown.columns):
        head = name.replace(" (", "\n(") if lines < 3 else name.replace(" ", "\n")
        table.add_column(
            _joined(head), justify="left" if place < shown.n_text else "right", no_wrap=place > 0, overflow="fold"
        )
    for row in shown.rows:
        name = printable(row.cells[0])
        first = _glued(name, [name]) + (f". {printable(row.span)}" if row.span is not None else "")
        table.add_row(Text(first), *(Text(_broken(printable(cell), lines)) for cell in row.cells[1:]))
    return table


def _broken(text: str, lines: int) -> str:
    """A value with its interval, or a verdict, in this number of lines."""
    text = text if lines == 1 else text.replace(" (", "\n(")
    text = text if lines < 3 else re.sub(r" (?=to |[a-z]{4})", "\n", text)
    return _joined(text)


def _joined(text: str) -> str:
    return text.replace(" ", GLUE)


def printable(text: str) -> str:
    """Replace control characters in a peer's text, so that it can neither steer a terminal nor fake a line."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
