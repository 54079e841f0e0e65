"""The daemon's log lines, and its status file."""

import json
import os
import stat

from sahfl_client.daemon import Daemon
from sahfl_client.status import Status, log_event, warn

from sahfl import __version__
from sahfl.events import Warned
from sahfl.log_lines import write_log_lines


def test_a_text_line_has_time_level_event_and_fields_and_leaves_out_what_is_none(capsys):
    write_log_lines("text")
    log_event("answered", what="train", bytes=12, missing=None)
    warn("not_connected", reason="DNS says 'no'", next_try_s=0.4)
    first, second = capsys.readouterr().err.splitlines()
    assert first.split(" ", 1)[1] == "info event=answered what=train bytes=12"
    assert second.split(" ", 1)[1] == "warning event=not_connected reason=\"DNS says 'no'\" next_try_s=0.4"


def test_a_json_line_has_the_same_fields(capsys):
    write_log_lines("json")
    warn("not_connected", reason="a 'b'\nc", next_try_s=0.4)
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["event"], line["next_try_s"]) == ("warning", "not_connected", "0.4")
    assert line["reason"] == "a 'b'\nc"


def test_a_warning_of_the_site_s_process_is_a_line_of_the_log(capsys):
    write_log_lines("text")
    Daemon._show(None, Warned("site bern: 2 cases look like repeat scans"))
    assert "warning event=warning what='site bern: 2 cases look like repeat scans'" in capsys.readouterr().err


def read(folder):
    return json.loads((folder / "status.json").read_text())


def test_the_status_says_all_from_the_start(tmp_path):
    Status(tmp_path, site="bern", server="localhost:1")
    found = read(tmp_path)
    assert (found["schema"], found["site"], found["server"]) == (1, "bern", "localhost:1")
    assert (found["version"], found["connected"], found["reason"]) == (__version__, False, "starting")
    assert found.keys() >= {"since", "last_request", "last_answer", "doing", "certificate_days", "warnings", "pid"}


def test_each_change_is_written_and_progress_at_most_once_a_second(tmp_path):
    status = Status(tmp_path, site="bern", server="localhost:1")
    status.set(connected=True, reason=None)
    assert read(tmp_path)["connected"] is True
    for step in range(50):
        status.progress({"what": "train", "done": step, "total": 50})
    assert (read(tmp_path)["doing"] or {"done": 0})["done"] < 49
    status.set(connected=False)
    assert read(tmp_path)["doing"]["done"] == 49


def test_A12_a_disk_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path, capsys):
    write_log_lines("text")
    status = Status(tmp_path, site="bern", server="localhost:1")
    (tmp_path / f"status.json.{os.getpid()}.tmp").mkdir()  # what any failed write looks like, also as root
    status.set(connected=True)
    status.set(connected=False)
    assert capsys.readouterr().err.count("event=status_not_written") == 1
    (tmp_path / f"status.json.{os.getpid()}.tmp").rmdir()
    status.set(connected=True)
    assert read(tmp_path)["connected"] is True
    assert stat.S_ISREG((tmp_path / "status.json").stat().st_mode)
