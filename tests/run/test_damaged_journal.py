"""Lines of the journal that are lost: counted, and said once."""

import json

import pytest
from harness.tiny_study import TINY, changed

from sahfl.events import Warned, listening
from sahfl.run.folder import RunFolder
from sahfl.run.journal_line import read_line

SETTINGS = changed(TINY, pretrain__rounds=1, finetune__rounds=1, finetune__methods=[{"method": "zero_shot"}])


@pytest.mark.slow
def test_lost_lines_are_said_once_and_counted_in_the_results(federate):
    folder, _ = federate(SETTINGS)
    assert json.loads((folder.path / "results.json").read_text())["unreadable_journal_lines"] == 0
    with (folder.path / "journal.jsonl").open("ab") as stream:
        stream.write(b'{"event": "rou\n[]\n')
    heard = []
    with listening(heard.append):
        federate(SETTINGS)
        federate(SETTINGS)
    assert [event.text for event in heard if isinstance(event, Warned)] == [
        "2 line(s) of the journal cannot be read and are left out (a crash, or damage)"
    ]
    assert [line["lines"] for line in folder.journal() if line["event"] == "journal_damaged"] == [2]
    assert json.loads((folder.path / "results.json").read_text())["unreadable_journal_lines"] == 2
    assert "unreadable journal lines" in (folder.path / "report.html").read_text()


LINES = {
    "round": {"stage": "finetune", "method": "m", "fold": 0, "round": 1, "committed": True, "used": [{"site": "bern"}]},
    "described": {"site": "bern", "data": "0" * 16},
    "site_out": {"site": "bern", "reason": "absent"},
    "rate_chosen": {"method": "m", "fold": 0, "rate": 0.1},
    "reused": {"cell": "m/fold-0"},
    "journal_damaged": {"lines": 1},
    "started": {"at": "2026-11-30T07:00:00+00:00"},
}


@pytest.mark.parametrize("event", LINES)
def test_a_line_with_all_that_is_read_back_is_whole(event):
    line = {"event": event} | LINES[event]
    assert read_line(json.dumps(line | {"more": [1, None]})) == line | {"more": [1, None]}


@pytest.mark.parametrize(("event", "name"), {(event, name): None for event, line in LINES.items() for name in line})
def test_a_line_in_which_something_that_is_read_back_has_another_type_is_damaged(event, name):
    assert read_line(json.dumps({"event": event} | LINES[event] | {name: {}})) is None


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "1", '"round"', "{}", '{"event": 1}', '{"event": []}', "[" * 100_000]
)
def test_what_is_no_event_is_no_line(text):
    assert read_line(text) is None


def test_rates_and_reused_cells_are_those_of_whole_lines(tmp_path):
    folder = RunFolder(tmp_path)
    for line in ({"event": "rate_chosen"}, {"event": "reused"}, {"event": "rate_chosen", **LINES["rate_chosen"]}):
        folder.note(line)
    assert folder.rates("m") == {0: 0.1}
    assert folder.reused() == set()
    assert folder.unreadable_lines() == 2
