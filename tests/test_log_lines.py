import io
import json
import logging
import sys

import pytest

from sahfl.log_lines import JsonLines, TextLines, write_log_lines


def record(message, *arguments, error=None):
    return logging.LogRecord("sahfl.x", logging.WARNING, "x.py", 1, message, arguments, error)


def test_a_json_line_holds_every_pair_of_the_message_as_a_field():
    line = json.loads(JsonLines().format(record("event=refused site=%s reason=%r n=%d", "bern", 'not one "reply"', 3)))
    assert (line["event"], line["site"], line["reason"], line["n"]) == ("refused", "bern", 'not one "reply"', "3")
    assert (line["level"], line["logger"]) == ("warning", "sahfl.x")
    assert line["message"].startswith("event=refused site=bern")


def test_a_text_line_has_time_level_and_message_and_cannot_be_forged():
    line = TextLines().format(record("event=x reason=%s", "a\n2026 error forged\x1b[31m"))
    assert "\n" not in line
    assert "\x1b" not in line
    assert line.split(" ", 2)[1:] == ["warning", "event=x reason=a\\n2026 error forged\\x1b[31m"]


@pytest.mark.parametrize("form", [JsonLines(), TextLines()])
def test_a_bug_brings_its_traceback(form):
    try:
        raise KeyError("x")
    except KeyError:
        assert "KeyError" in form.format(record("event=bug", error=sys.exc_info()))


def test_a_process_s_log_goes_to_standard_error_in_one_form(capsys):
    write_log_lines("json")
    logging.getLogger("sahfl.y").info("event=one a=1")
    assert json.loads(capsys.readouterr().err)["a"] == "1"


def test_a_line_goes_to_standard_error_as_it_is_then_not_to_one_that_is_closed(monkeypatch):
    with io.StringIO() as closed:
        monkeypatch.setattr(sys, "stderr", closed)
        write_log_lines("text")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    logging.getLogger("sahfl.y").info("event=one")
    assert sys.stderr.getvalue().endswith(" info event=one\n")
