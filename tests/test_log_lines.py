import ast
import io
import json
import logging
import sys

import pytest
from harness.import_graph import FILES, ROOT

from sahfl.log_lines import LONGEST, JsonLines, LogLine, TextLines, write_log_lines

FORMS = [TextLines(), JsonLines()]
FORGED = [
    "/x event=revoked site=bern",
    "/x' event='revoked",
    '"', "'", "\\", "=", "", " ",
    "a\n2026-11-30T07:00:00Z warning event=revoked site=bern",
    "\x1b[31mred\x1b[0m", "\r", "\0", "\u2028", "\u202e", "\ud800", "Zürich",
    "'\\", "'\\x", '"\\u', "'%s %(x)s {y}", "x" * 100_000,
]  # fmt: skip
"""Values that a peer may send, for example as the path of a request."""


def record(message, *arguments, error=None, name="sahfl.x"):
    return logging.LogRecord(name, logging.WARNING, "x.py", 1, message, arguments, error)


def tokens(text):
    """The fields of a line of logfmt, read as every reader of logfmt reads them."""
    found, at = {}, 0
    while at < len(text):
        name, at = text[at : text.index("=", at)], text.index("=", at) + 1
        assert name.isidentifier()
        assert name not in found
        if text[at : at + 1] == '"':
            found[name], at = json.JSONDecoder().raw_decode(text, at)
        else:
            end = text.find(" ", at) if " " in text[at:] else len(text)
            found[name], at = text[at:end], end
        assert text[at : at + 1] in ("", " ")
        at += 1
    return found


@pytest.mark.parametrize("value", FORGED, ids=lambda value: ascii(value)[:30])
def test_whatever_a_value_holds_it_is_one_value_of_one_line(value):
    message = LogLine("refused", site="bern", path=value, status=404)
    line = TextLines().format(record(message))
    assert line.isprintable()
    at, level, text = line.split(" ", 2)
    assert (at[-1], level) == ("Z", "warning")
    assert tokens(text) == {"event": "refused", "site": "bern", "path": value[:LONGEST], "status": "404"}
    found = json.loads(JsonLines().format(record(message)))
    assert found["path"] == value[:LONGEST]
    assert (found["event"], found["site"], found["status"]) == ("refused", "bern", 404)


def test_only_values_that_need_it_are_quoted():
    assert str(LogLine("a", b="c-d/e_f.1", n=3, x=0.5, yes=True)) == "event=a b=c-d/e_f.1 n=3 x=0.5 yes=true"
    assert str(LogLine("a", b="c d", e="f=g")) == 'event=a b="c d" e="f=g"'
    assert str(LogLine("a", what="Zürich", none=None)) == "event=a what=Zürich"


def test_a_json_line_holds_time_level_logger_and_the_fields_with_their_types():
    line = json.loads(JsonLines().format(record(LogLine("trained", n=3, loss=0.25, nan=float("nan")))))
    assert line.pop("at").endswith("+00:00")
    assert line == {
        "event": "trained", "n": 3, "loss": 0.25, "nan": "nan", "level": "warning", "logger": "sahfl.x",
    }  # fmt: skip


@pytest.mark.parametrize("value", FORGED, ids=lambda value: ascii(value)[:30])
def test_what_another_program_logs_is_one_value_too(value):
    found = tokens(TextLines().format(record("%s", value, name="uvicorn.error")).split(" ", 2)[2])
    assert found == {"event": "log", "logger": "uvicorn.error", "message": value[:LONGEST]}
    found = json.loads(JsonLines().format(record("%s", value, name="uvicorn.error")))
    assert (found["event"], found["logger"], found["message"]) == ("log", "uvicorn.error", value[:LONGEST])


class WithoutText:
    def __str__(self):
        raise RuntimeError


BROKEN = {
    "too few arguments": ("%s %s", "a"),
    "another type": ("%d", "a"),
    "no text": ("%s", WithoutText()),
    "no text of the message": (WithoutText(),),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", BROKEN.values(), ids=BROKEN.keys())
def test_a_record_that_cannot_be_formatted_is_a_line_that_names_its_place(form, what):
    line = form.format(record(*what))
    assert "log_line_lost" in line
    assert "x.py:1" in line


@pytest.mark.parametrize("form", FORMS)
def test_a_bug_brings_its_traceback_which_forges_no_line(form):
    try:
        raise ValueError("x\n2026-11-30T07:00:00Z warning event=revoked site=bern\x1b[31m")
    except ValueError:
        lines = form.format(record(LogLine("bug"), error=sys.exc_info())).split("\n")
    assert "ValueError" in "".join(lines)
    assert all(line.startswith("    ") for line in lines[1:])
    assert "\x1b" not in "".join(lines)


def test_a_process_s_log_goes_to_standard_error_in_one_form(capsys):
    write_log_lines("json")
    logging.getLogger("sahfl.y").info(LogLine("one", a=1))
    assert json.loads(capsys.readouterr().err)["a"] == 1


def test_a_line_goes_to_standard_error_as_it_is_then_not_to_one_that_is_closed(monkeypatch):
    with io.StringIO() as closed:
        monkeypatch.setattr(sys, "stderr", closed)
        write_log_lines("text")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    logging.getLogger("sahfl.y").info(LogLine("one"))
    assert sys.stderr.getvalue().endswith(" info event=one\n")


METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_line_of_a_log_is_an_event_with_fields(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    logged = [
        call
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in METHODS
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id in ("log", "logger", "logging")
    ]
    for call in logged:
        message = call.args[call.func.attr == "log"]
        assert isinstance(message, ast.Call), ast.unparse(call)
        assert message.func.id in ("LogLine", "run_line"), ast.unparse(call)
