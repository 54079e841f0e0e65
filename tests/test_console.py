"""What a running simulation shows, from its events."""

import io
import re
import time

import pytest
from harness.tiny_study import TINY
from rich.console import Console

from sahfl import console
from sahfl.config import Study, parse
from sahfl.console import printable, showing
from sahfl.events import (
    CellEvaluated,
    CellResumed,
    CellReused,
    CellStageBegun,
    Paused,
    RoundBegun,
    RoundCommitted,
    RoundFailed,
    SiteFailed,
    SiteFinished,
    SiteLeftOut,
    SiteStarted,
    SiteStep,
    StageBegun,
    Waiting,
    Warned,
    emit,
)
from sahfl.progress import EVALUATE_STEPS, PREPARE_STEPS, RunProgress, clock

STUDY = parse(Study, TINY, where="test")
SITES = ["tbi_a", "tbi_b", "sah_a", "sah_b", "sah_c"]
# By hand: pretraining 2 rounds x 2 steps x 2 sites, tuning 2 folds x 2 rounds x 2 steps x 3 sites, 2 folds x 2 methods
# evaluated at 3 sites, 5 sites prepared.
TOTAL = 2 * 2 * 2 + 2 * 2 * 2 * 3 + EVALUATE_STEPS * 3 * 2 * 2 + PREPARE_STEPS * 5


def plain(*events):
    """The lines that the events give where there is no terminal, without their time."""
    target = Console(file=io.StringIO(), width=100)
    with showing(STUDY, target):
        for event in events:
            emit(event)
    return [line.split("  ", 1)[1] for line in target.file.getvalue().splitlines()]


def live(progress, width=100):
    """The live picture as a terminal shows it."""
    target = Console(record=True, width=width, force_terminal=True, file=io.StringIO())
    target.print(console._picture(progress))
    return target.export_text()


def after(*events, elapsed_s=0.0):
    progress = RunProgress(STUDY, began=time.monotonic() - elapsed_s)
    for event in events:
        progress.update(event)
    return progress


def prepared():
    return [SiteFinished(site, "query.describe") for site in SITES]


PLAIN = {
    "stage": (StageBegun("pretraining"), ["pretraining"]),
    "round": (RoundBegun("pretrain", 1, 2), []),
    "started": (SiteStarted("tbi_a", "train"), []),
    "finished": (SiteFinished("tbi_a", "train"), []),
    "resumed": (CellResumed("pretrain", 1, 2), ["pretrain: resumed after round 1 of 2"]),
    "failed": (SiteFailed("tbi_a", "train", "DataError", "DataError"), ["warning: tbi_a: DataError"]),
    "left out": (SiteLeftOut("tbi_a", "its data changed"), ["warning: tbi_a: its data changed"]),
    "warning": (Warned("2 line(s)"), ["warning: 2 line(s)"]),
    "waiting": (
        Waiting(("sah_b", "sah_c"), (), 15, 90),
        ["waiting for sah_b, sah_c, for at most 1:15 more"],
    ),
    "paused": (
        Paused("pretrain", 1, ("tbi_a",), 30),
        ["paused for 0:30, pretrain, round 1: without tbi_a"],
    ),
    "failed-round": (RoundFailed("pretrain", "pretrain, round 1: got 0"), ["warning: pretrain, round 1: got 0"]),
    "committed": (
        RoundCommitted("pretrain", 1, 2, 0.51249),
        ["pretrain, round 1 of 2 committed, loss 0.512; time left: measuring"],
    ),
}


@pytest.mark.parametrize(("event", "lines"), PLAIN.values(), ids=PLAIN.keys())
def test_outside_a_terminal_an_event_that_matters_is_one_line(event, lines):
    assert plain(event) == lines


def test_outside_a_terminal_steps_are_thinned_out(monkeypatch):
    steps = [SiteStep("tbi_a", "train", done, 9, 0.5) for done in range(1, 10)]
    assert plain(*steps) == []
    monkeypatch.setattr(console, "LINES_EVERY_S", 0.0)
    assert plain(*steps[:2]) == ["tbi_a: training 1 of 9, loss 0.500", "tbi_a: training 2 of 9, loss 0.500"]


def test_a_line_begins_with_the_time_since_the_start():
    target = Console(file=io.StringIO())
    with showing(STUDY, target):
        emit(StageBegun("pretraining"))
    assert target.file.getvalue() == "0:00  pretraining\n"


def test_nothing_is_heard_after_the_block():
    target = Console(file=io.StringIO())
    with showing(STUDY, target):
        pass
    emit(StageBegun("pretraining"))
    assert target.file.getvalue() == ""


def test_a_terminal_shows_the_events_while_the_block_runs():
    target = Console(record=True, width=100, force_terminal=True, file=io.StringIO())
    with showing(STUDY, target):
        emit(StageBegun("pretraining"))
    assert "tiny  pretraining" in target.export_text()


def test_the_picture_shows_stage_round_sites_losses_the_last_commit_and_the_last_warning():
    progress = after(
        CellStageBegun("fine-tuning", "cp_lora-r2/fold-0", "cp_lora-r2", 0, 2),
        RoundBegun("cp_lora-r2/fold-0", 2, 2),
        SiteStarted("sah_a", "train"),
        SiteStep("sah_a", "train", 1, 2, 0.25),
        SiteStep("sah_b", "query.describe", 3, 4),
        SiteFailed("sah_c", "train", "worker process died (killed by signal 9)"),
        RoundCommitted("cp_lora-r2/fold-0", 1, 2, 0.5),
        elapsed_s=61,
    )
    lines = live(progress).splitlines()
    assert lines[0].rstrip() == "tiny  fine-tuning, cp_lora-r2, fold 0 of 0-1  round 2 of 2"
    assert lines[1].startswith("elapsed 1:01   time left: ")
    rows = {line.split()[0]: line for line in lines[3:8]}
    assert list(rows) == SITES
    assert "training" in rows["sah_a"]
    assert rows["sah_a"].rstrip().endswith("1 / 2  0.250")
    assert "preparing data" in rows["sah_b"]
    assert "3 / 4" in rows["sah_b"]
    assert "failed" in rows["sah_c"]
    assert "waiting" in rows["tbi_a"]
    assert lines[8].rstrip() == "last commit: cp_lora-r2/fold-0, round 1, loss 0.500"
    assert lines[9].rstrip() == "warning: sah_c: worker process died (killed by signal 9)"


def test_the_picture_says_for_whom_the_run_waits_until_the_round_ends():
    waiting = Waiting(("sah_b",), (), 15, 90)
    assert "waiting for sah_b, for at most 1:15 more" in live(after(waiting))
    whose = Waiting(("sah_b",), (), 15, 90, "cp_lora-r2/fold-0")
    assert "cp_lora-r2/fold-0: waiting for sah_b, for at most 1:15 more" in live(after(whose))
    assert "until the deadline" not in live(after(waiting, RoundCommitted("pretrain", 1, 2, 0.5)))


def test_a_site_that_works_is_shown_with_its_work_and_its_time_and_is_not_waited_for():
    progress = after(SiteStarted("sah_a", "train"))
    both = Waiting(("sah_b",), ("sah_a",), 33, 3600, "cp_lora-r2/fold-0")
    (line,) = plain(SiteStarted("sah_a", "train"), both)
    assert re.fullmatch(
        r"cp_lora-r2/fold-0: sah_a training for \d:\d\d; waiting for sah_b, for at most 59:27 more", line
    )
    progress.update(Waiting((), ("sah_a",), 33, 3600))
    assert "waiting for" not in live(progress)
    assert "59:27" not in live(progress)
    row = next(line for line in live(progress).splitlines() if line.startswith("sah_a"))
    assert re.match(r"sah_a +training +\d+:\d\d", row)


def test_a_new_stage_has_no_round_yet_and_a_finished_site_keeps_its_loss():
    progress = after(
        RoundBegun("pretrain", 2, 2),
        SiteStep("tbi_a", "train", 2, 2, 0.125),
        SiteFinished("tbi_a", "train"),
        StageBegun("writing the report"),
    )
    assert "round" not in live(progress)
    assert (progress.sites["tbi_a"].doing, progress.sites["tbi_a"].loss) == ("done", 0.125)
    progress.update(RoundCommitted("pretrain", 2, 2, 0.125))
    assert (progress.sites["tbi_a"].doing, progress.sites["tbi_a"].loss) == ("waiting", 0.125)


STRANGE = [
    SiteStarted("nobody", "train"),
    SiteStep("nobody", "train", 0, 0),
    SiteFinished("nobody", "train"),
    SiteFailed("nobody", "train", "whatever"),
    SiteLeftOut("nobody", "whatever"),
    StageBegun("whatever"),
    RoundCommitted("whatever", 0, 0, 0.0),
    CellEvaluated("whatever"),
    CellResumed("whatever", 0, 0),
]


@pytest.mark.parametrize("event", STRANGE, ids=lambda event: type(event).__name__)
def test_an_event_of_an_unknown_site_or_without_numbers_never_raises(event):
    assert live(after(event))
    plain(event)


# --- time left ------------------------------------------------------------------------------------------------------


def test_all_the_work_of_a_study_by_hand():
    assert RunProgress(STUDY).total == TOTAL


def test_the_time_left_follows_from_the_pace_and_shrinks():
    assert after(elapsed_s=10).time_left() == "time left: measuring"
    progress = after(*prepared(), elapsed_s=100)
    left = 100 * (TOTAL - 150) / 150
    assert progress.time_left() == f"time left: about {clock(left)}"
    progress.update(SiteStep("tbi_a", "train", 2, 2))
    assert progress.time_left() == f"time left: about {clock(100 * (TOTAL - 152) / 152)}"


def test_the_time_left_is_never_negative():
    events = [RoundCommitted("pretrain", round_, 2, 0.5) for round_ in range(1, 200)]
    assert after(*events, elapsed_s=100).time_left() == "time left: about 0:00"


def test_work_of_an_earlier_session_is_not_counted_into_the_pace():
    fresh = after(*prepared(), elapsed_s=100)
    resumed = after(*prepared(), CellResumed("pretrain", 2, 2), elapsed_s=100)
    assert (resumed.done, resumed.skipped) == (fresh.done, 2 * 2 * 2)
    assert resumed.time_left() == f"time left: about {clock(100 * (TOTAL - 150 - 8) / 150)}"


def test_a_fold_that_an_earlier_session_evaluated_is_not_counted_into_the_pace():
    again = after(StageBegun("writing the report"), CellEvaluated("zero_shot/fold-0"))
    assert (again.done, again.skipped) == (0, 3 * EVALUATE_STEPS)
    asked = CellEvaluated("zero_shot/fold-0", 3, 3)
    now = after(asked, CellEvaluated("zero_shot/fold-1"))
    assert (now.done, now.skipped) == (3 * EVALUATE_STEPS, 3 * EVALUATE_STEPS)
    partly = after(CellEvaluated("zero_shot/fold-0", 1, 3))
    assert (partly.done, partly.skipped) == (EVALUATE_STEPS, 2 * EVALUATE_STEPS)


def test_a_cell_of_an_earlier_run_counts_as_done_but_not_into_the_pace():
    fresh = after(*prepared(), elapsed_s=100)
    progress = after(*prepared(), CellReused("cp_lora-r2/fold-0", 2), elapsed_s=100)
    assert progress.count() == "1 of 5 cells done (1 from earlier runs)"  # pretraining, 2 methods on 2 folds
    assert (progress.done, progress.skipped) == (fresh.done, 2 * 2 * 3 + 3 * EVALUATE_STEPS)
    assert plain(CellReused("cp_lora-r2/fold-0", 2)) == ["cp_lora-r2/fold-0: taken from an earlier run"]


def test_the_time_left_follows_the_cells_that_are_done_once_there_is_one():
    progress = after(*prepared(), RoundBegun("cp_lora-r2/fold-0", 1, 1), elapsed_s=1000)
    progress.tuning = (time.monotonic() - 10, progress.done)
    progress.update(RoundCommitted("cp_lora-r2/fold-0", 1, 1, 0.5))
    progress.update(CellEvaluated("cp_lora-r2/fold-0", 3, 3))
    work = 2 * 3 + 3 * EVALUATE_STEPS
    assert progress.time_left() == f"time left: about {clock(10 * (TOTAL - 150 - work) / work)}"


def test_the_picture_has_a_line_for_each_cell_that_is_worked_on():
    begun = [RoundBegun(f"cp_lora-r2/fold-{fold}", 1 + fold, 2) for fold in range(2)]
    picture = live(after(*begun))
    assert "cp_lora-r2/fold-0: round 1 of 2" in picture
    assert "cp_lora-r2/fold-1: round 2 of 2" in picture
    ended = [RoundCommitted("cp_lora-r2/fold-1", 2, 2, 0.5), CellEvaluated("cp_lora-r2/fold-1")]
    assert "fold-1: " not in live(after(*begun, *ended))
    assert "1 of 5 cells done" in live(after(*begun, *ended))


# --- text -----------------------------------------------------------------------------------------------------------

HOSTILE = "[red]boo[/red] :boom: [/nothing]"


def test_markup_in_a_text_is_shown_as_it_is():
    assert plain(SiteFailed("sah_a", "train", HOSTILE), StageBegun(HOSTILE)) == [f"warning: sah_a: {HOSTILE}", HOSTILE]
    picture = live(after(SiteFailed("[bold]", "train", HOSTILE), StageBegun(HOSTILE)))
    assert f"tiny  {HOSTILE}" in picture
    assert f"warning: [bold]: {HOSTILE}" in picture
    assert "\n[bold] " in picture


def test_control_characters_can_neither_steer_the_terminal_nor_fake_a_line():
    text = "x\n0:00  finished\x1b[2J\r\u2028y"
    assert plain(SiteFailed("sah_a", "train", text)) == ["warning: sah_a: x\ufffd0:00  finished\ufffd[2J\ufffd\ufffdy"]
    target = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    target.print(console._picture(after(SiteFailed("sah_a", "train", text))))
    assert "\x1b" not in target.file.getvalue()
    assert "\n0:00" not in target.file.getvalue()
    assert printable("größer 3 µL — ok") == "größer 3 µL — ok"


CLOCKS = {0: "0:00", 59: "0:59", 59.6: "1:00", 61: "1:01", 3599.7: "1:00:00", 3700: "1:01:40", 90_000: "25:00:00"}


@pytest.mark.parametrize(("seconds", "text"), CLOCKS.items())
def test_a_clock_has_hours_only_where_it_needs_them(seconds, text):
    assert clock(seconds) == text
