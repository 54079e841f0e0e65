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
    before = logging.getLogger().handlers[:]
    try:
        write_log_lines("json")
        logging.getLogger("sahfl.y").info("event=one a=1")
        assert json.loads(capsys.readouterr().err)["a"] == "1"
    finally:
        logging.captureWarnings(False)
        logging.getLogger().handlers[:] = before
