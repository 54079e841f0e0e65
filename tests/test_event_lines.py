"""What a log says of each event."""

import logging
from typing import get_args

import pytest
from sahfl_server.runner import _log_event

from sahfl import events
from sahfl.federation.server import app

CELL = "cp_lora-r2/fold-0"
LINES = {
    events.StageBegun("pretraining"): "event=stage what='pretraining'",
    events.CellStageBegun("fine-tuning", CELL, "cp_lora-r2", 0, 2): (
        f"event=stage cell={CELL} what='fine-tuning, cp_lora-r2, fold 0 of 0-1'"
    ),
    events.CellStageBegun("evaluating", CELL, "cp_lora-r2", 1, 2): (
        f"event=stage cell={CELL} what='evaluating, cp_lora-r2, fold 1 of 0-1'"
    ),
    events.RoundBegun("pretrain", 2, 5): "event=round what='pretrain' done=2 total=5",
    events.RoundCommitted("pretrain", 2, 5, 0.5): "event=committed what='pretrain' done=2 total=5 loss=0.5000",
    events.RoundFailed(CELL, "got 0"): f"event=failed_round cell={CELL} what='got 0'",
    events.CellResumed(CELL, 3, 5): f"event=resumed what='{CELL}' done=3 total=5",
    events.CellResumed("zero_shot/fold-0", 0, 0): "event=resumed what='zero_shot/fold-0'",
    events.CellReused(CELL, 5): f"event=reused what='{CELL}' done=0 total=5",
    events.CellEvaluated(CELL, 2, 3): f"event=evaluated what='{CELL}' done=2 total=3",
    events.CellEvaluated(CELL): f"event=evaluated what='{CELL}'",
    events.Waiting(
        ("bern", "graz"), 10.25, 60.0, CELL
    ): f"event=waiting cell={CELL} what='bern, graz' done=10.25 total=60",
    events.Waiting(("bern",), 30.0, 60.0): "event=waiting what='bern' done=30 total=60",
    events.Paused(CELL, 1, ("bern", "graz"), 30.0): (
        f"event=paused cell={CELL} what='{CELL}, round 1: without bern, graz' done=0 total=30"
    ),
    events.UpdateBounded(CELL, 1, "bern", 0.123): (
        f"event=bounded site=bern what='{CELL}, round 1: a change shortened to 0.12 of its length'"
    ),
    events.SiteStarted("bern", "train"): "event=started site=bern what='train'",
    events.SiteStep("bern", "train", 1, 8, 0.5): "event=step site=bern what='train' done=1 total=8 loss=0.5000",
    events.SiteFinished("bern", "train"): "event=finished site=bern what='train'",
    events.SiteFailed("bern", "its key was revoked"): "event=failed site=bern what='its key was revoked'",
    events.Warned("2 line(s)"): "event=warning what='2 line(s)'",
}
WARNINGS = (events.RoundFailed, events.Paused, events.SiteFailed, events.Warned)


def test_the_table_has_every_event():
    assert {type(event) for event in LINES} == set(get_args(events.Event))


@pytest.mark.parametrize(("event", "line"), LINES.items(), ids=lambda value: str(value)[:60])
def test_the_server_logs_an_event_as_one_line(event, line, caplog):
    caplog.set_level(logging.INFO)
    _log_event(event)
    (record,) = caplog.records
    assert record.getMessage() == line
    assert record.levelno == (logging.WARNING if isinstance(event, WARNINGS) else logging.INFO)


def test_under_stock_flower_a_line_has_the_event_the_site_and_the_text(caplog):
    caplog.set_level(logging.INFO)
    app._log(events.RoundCommitted("pretrain", 2, 5, 0.5))
    app._log(events.SiteFailed("bern", "its key was revoked"))
    assert caplog.messages == ["event=committed site=- pretrain", "event=failed site=bern its key was revoked"]
