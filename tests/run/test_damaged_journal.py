"""Lines of the journal that are lost: counted, and said once."""

import json

from harness.tiny_study import TINY, changed

from sahfl.events import Warned, listening

SETTINGS = changed(TINY, pretrain__rounds=1, finetune__rounds=1, finetune__methods=[{"method": "zero_shot"}])


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
