"""The daemon's log lines, and its status file."""

import json
import logging
import os
import stat

import pytest
from sahfl_client.daemon import Daemon
from sahfl_client.status import Status

from sahfl import __version__
from sahfl.config import SiteConfig
from sahfl.doctor.site import examine_answers
from sahfl.events import Warned
from sahfl.log_lines import LogLine, write_log_lines

log = logging.getLogger("sahfl_client.x")


def test_a_text_line_has_time_level_event_and_fields_and_leaves_out_what_is_none(capsys):
    write_log_lines("text")
    log.info(LogLine("answered", what="train", bytes=12, missing=None))
    log.warning(LogLine("not_connected", reason="DNS says 'no'", next_try_s=0.4))
    first, second = capsys.readouterr().err.splitlines()
    assert first.split(" ", 1)[1] == "info event=answered what=train bytes=12"
    assert second.split(" ", 1)[1] == "warning event=not_connected reason=\"DNS says 'no'\" next_try_s=0.4"


def test_a_json_line_has_the_same_fields(capsys):
    write_log_lines("json")
    log.warning(LogLine("not_connected", reason="a 'b'\nc", next_try_s=0.4))
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["event"], line["next_try_s"]) == ("warning", "not_connected", 0.4)
    assert line["reason"] == "a 'b'\nc"


def test_a_warning_of_the_site_s_process_is_a_line_of_the_log(capsys):
    write_log_lines("text")
    Daemon._show(None, Warned("site bern: 2 cases look like repeat scans"))
    assert 'warning event=warning what="site bern: 2 cases look like repeat scans"' in capsys.readouterr().err


def read(folder):
    return json.loads((folder / "status.json").read_text())


def test_the_status_says_all_from_the_start(tmp_path):
    Status(tmp_path, site="bern", server="localhost:1")
    found = read(tmp_path)
    assert (found["schema"], found["site"], found["server"]) == (1, "bern", "localhost:1")
    assert (found["version"], found["connected"], found["reason"]) == (__version__, False, "starting")
    assert found.keys() >= {"since", "last_request", "last_answer", "doing", "certificate_days", "warnings", "pid"}


def test_an_error_stays_until_an_answer_of_its_kind_is_none_and_longer_than_the_process(tmp_path):
    site = SiteConfig.model_construct(name="bern", folder=tmp_path)
    assert examine_answers(site).verdict == "ok"
    status = Status(tmp_path, site="bern", server="localhost:1")
    status.set(doing={"what": "train", "since": "2026-11-30T07:00:00+00:00"})
    status.progress({"what": "train", "done": 1, "total": 8})
    assert status._content["doing"]["since"] == "2026-11-30T07:00:00+00:00"
    status.answered("train", "DataChanged")
    (known,) = read(tmp_path)["errors"].values()
    assert (known["error"], read(tmp_path)["doing"]) == ("DataChanged", None)
    status = Status(tmp_path, site="bern", server="localhost:1")  # the daemon was started again
    status.answered("query.describe", None)
    assert read(tmp_path)["errors"] == {"train": known}
    found = examine_answers(site)
    assert (found.verdict, f"train: DataChanged since {known['since']}" in found.found) == ("warn", True)
    assert str(tmp_path / "logs" / "bern.log") in found.remedy
    status.answered("train", None)
    assert read(tmp_path)["errors"] == {}
    assert examine_answers(site).verdict == "ok"


@pytest.mark.parametrize("content", ["", "[]", '{"errors": []}', '{"errors": {"train": 1, "evaluate": {"error": 1}}}'])
def test_a_damaged_status_file_of_an_earlier_process_is_written_anew(tmp_path, content):
    (tmp_path / "status.json").write_text(content)
    Status(tmp_path, site="bern", server="localhost:1")
    assert read(tmp_path)["errors"] == {}


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
