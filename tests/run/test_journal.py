"""The journal: every field and event of it is in docs/journal.md."""

import re
from pathlib import Path

from harness.tiny_study import TINY, changed

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "journal.md").read_text()
NAMED = {name for row in re.findall(r"^\| (`.+?) \|", DOC, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}


def test_every_field_of_a_round_is_there_and_documented(federate):
    def drop(site, request, reply):
        return None if site == "sah_b" and request.metadata.message_type == "train" else reply

    folder, _ = federate(changed(TINY, rounds__deadline_s=0.3, finetune__rounds=1), change=drop)
    line = next(line for line in folder.journal() if line["event"] == "round" and line["stage"] == "finetune")
    assert line.keys() <= NAMED
    for name in re.findall(r"`(\w+)`", DOC.split("## `round`", 1)[1].split("## Rounds of a masked", 1)[0]):
        known = {*line, *line["used"][0], "site", "reason", "round"}
        assert name in known, f"docs/journal.md names {name}, which no round has"
    assert [used["site"] for used in line["used"]] == ["sah_a", "sah_c"]
    assert line["missing"] == [{"site": "sah_b", "reason": "no reply within 0.3 s"}]
    assert (line["refused"], line["stale"], line["duplicate"], line["retried"]) == ([], [], [], [])
    assert line["norms"].keys() == {"sah_a", "sah_c"}
    assert all(norm > 0 for norm in line["norms"].values())
    assert all(used["bytes_up"] > 1000 and used["bytes_down"] > 1000 for used in line["used"])
    assert line["seconds"] >= max(used["seconds"] for used in line["used"])
    assert 0 <= line["aggregation_error"] < 1
    assert len(line["sha256"]) == 64


def test_every_event_of_the_code_is_documented():
    sources = [path.read_text() for path in (ROOT / "sahfl").rglob("*.py")]
    events = {event for text in sources for event in re.findall(r'"event": "(\w+)"', text)}
    assert {"round", "paused", "replies", "failed", "damaged_checkpoint"} <= events
    assert not events - NAMED - {"round"}
