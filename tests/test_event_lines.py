"""What a log says of each event."""

import logging
from typing import get_args

import pytest

from sahfl import events
from sahfl.log_lines import log_run_event

CELL = "cp_lora-r2/fold-0"
LINES = {
    events.StageBegun("pretraining"): "event=stage what=pretraining",
    events.CellStageBegun("fine-tuning", CELL, "cp_lora-r2", 0, 2): (
        f'event=stage cell={CELL} what="fine-tuning, cp_lora-r2, fold 0 of 0-1"'
    ),
    events.CellStageBegun("evaluating", CELL, "cp_lora-r2", 1, 2): (
        f'event=stage cell={CELL} what="evaluating, cp_lora-r2, fold 1 of 0-1"'
    ),
    events.RoundBegun("pretrain", 2, 5): "event=round cell=pretrain round=2 rounds=5",
    events.RoundCommitted("pretrain", 2, 5, 0.54321): "event=committed cell=pretrain round=2 rounds=5 loss=0.5432",
    events.RoundCommitted("pretrain", 2, 5, None): "event=committed cell=pretrain round=2 rounds=5",
    events.RoundFailed(CELL, "got 0"): f'event=failed_round cell={CELL} reason="got 0"',
    events.CellResumed(CELL, 3, 5): f"event=resumed cell={CELL} round=3 rounds=5",
    events.CellReused(CELL, 5): f"event=reused cell={CELL} rounds=5",
    events.CellEvaluated(CELL, 2, 3): f"event=evaluated cell={CELL} asked=2 sites=3",
    events.RoundEvaluated(CELL, 4, 2, 3): f"event=round_evaluated cell={CELL} round=4 asked=2 sites=3",
    events.CellEvaluated(CELL): f"event=evaluated cell={CELL} asked=0 sites=0",
    events.Waiting(("bern", "graz"), ("chur",), 10.25, 60.0, CELL): (
        f"event=awaiting_answers cell={CELL} sites=bern,graz working=chur waited_s=10 deadline_s=60"
    ),
    events.Waiting((), ("bern",), 30.0, 60.0): "event=awaiting_answers working=bern waited_s=30 deadline_s=60",
    events.Paused(CELL, 1, ("bern", "graz"), 30.0): (
        f'event=paused cell={CELL} what="{CELL}, round 1: without bern, graz" seconds=30'
    ),
    events.UpdateBounded(CELL, 1, "bern", 0.123): (
        f'event=bounded site=bern what="{CELL}, round 1: a change shortened to 0.12 of its length"'
    ),
    events.SiteStarted("bern", "train"): "event=started site=bern what=train",
    events.SiteStep("bern", "train", 1, 8, 0.5): "event=step site=bern what=train done=1 total=8 loss=0.5",
    events.SiteFinished("bern", "train"): "event=finished site=bern what=train",
    events.SiteFailed("bern", "train", "its key was revoked"): (
        'event=failed site=bern what=train reason="its key was revoked"'
    ),
    events.SiteLeftOut("bern", "its data changed"): 'event=left_out site=bern reason="its data changed"',
    events.Warned("2 line(s)"): 'event=warning what="2 line(s)"',
}
WARNINGS = (events.RoundFailed, events.Paused, events.SiteFailed, events.SiteLeftOut, events.Warned)


def test_the_table_has_every_event():
    assert {type(event) for event in LINES} == set(get_args(events.Event))


@pytest.mark.parametrize(("event", "line"), LINES.items(), ids=lambda value: str(value)[:60])
def test_an_event_of_a_run_is_one_line(event, line, caplog):
    caplog.set_level(logging.INFO)
    log_run_event(logging.getLogger("sahfl.x"), event)
    (record,) = caplog.records
    assert record.getMessage() == line
    assert record.levelno == (logging.WARNING if isinstance(event, WARNINGS) else logging.INFO)
