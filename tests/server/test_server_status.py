import fcntl
import json
import re
import urllib.request
from datetime import datetime

import pytest
import yaml
from harness.tiny_study import TINY, changed
from sahfl_server.metrics import prometheus, showing_metrics
from sahfl_server.status import Status
from typer.testing import CliRunner

from sahfl.commands.app import app
from sahfl.config import Study, load_server, parse
from sahfl.doctor.server import examine_sites
from sahfl.errors import ConfigError, RunError
from sahfl.events import (
    CellEvaluated,
    CellResumed,
    CellStageBegun,
    Paused,
    RoundBegun,
    RoundCommitted,
    RoundFailed,
    SiteFailed,
    SiteFinished,
    StageBegun,
    Waiting,
)
from sahfl.federation.flower.fleet import Fleet
from sahfl.federation.server.plan import payload_bytes

STUDY = parse(Study, changed(TINY, data={"source": "sites"}, rounds__unmasked=True), where="test")
ABOUT = {"queue": ["next"], "certificates": {}, "warnings": ["ends soon"], "held": {"messages": 1}, "last": None}
DOING = {"tbi_a": {"what": "train", "state": "working", "since": "2026-11-30T07:00:00+00:00"}}


@pytest.fixture
def status(tmp_path):
    fleet = Fleet()
    numbers = iter(range(100))
    sites = (*STUDY.pretrain.sites, *STUDY.finetune.sites)
    fleet.register({site: site.encode() for site in sites}, lambda key: next(numbers), revoked={})
    fleet.admit(fleet.of_key(b"tbi_a"), "one", "0.1.0")
    status = Status(tmp_path / "state" / "status.json", fleet, pid=7, about=lambda: ABOUT | {"doing": DOING})
    status.listening("127.0.0.1:8443")
    status.begin("study", STUDY)
    return status


def test_the_status_follows_the_events_of_a_run(status):
    status.update(StageBegun("pretraining"))
    status.update(Waiting(("tbi_b",), (), 10, 70))
    assert status.content()["study"]["waiting_for"] == ["tbi_b"]
    status.update(Waiting(("tbi_b",), ("tbi_a",), 10, 70))  # sites prepare their data
    study = status.content()["study"]
    assert (study["waiting_for"], study["working"]) == (["tbi_b"], ["tbi_a"])
    status.update(CellResumed("pretrain", 3, 5))
    assert status.content()["study"]["committed"] == "pretrain, round 3"
    status.update(RoundBegun("pretrain", 5, 5))
    study = status.content()["study"]
    assert (study["stage"], study["cells"]["pretrain"]["round"]) == ("pretraining", 5)
    status.update(RoundCommitted("pretrain", 5, 5, 0.5))
    assert (status.content()["study"]["cells"], status.content()["study"]["loss"]) == ({}, 0.5)
    status.end()
    status.update(StageBegun("writing the report"))
    assert status.content()["study"] is None


ONE, OTHER = "cp_lora-r2/fold-0", "cp_lora-r2/fold-1"


def test_of_two_cells_that_are_worked_on_each_has_its_own_round_and_its_own_waiting(status, server_file):
    for fold, (cell, round_) in enumerate(((ONE, 2), (OTHER, 1))):
        status.update(CellStageBegun("fine-tuning", cell, "cp_lora-r2", fold, 2))
        status.update(RoundBegun(cell, round_, 5))
    status.update(Waiting(("tbi_b", "sah_a"), ("tbi_a",), 10, 70, ONE))
    status.update(SiteFailed("tbi_b", "train", "not connected for 61 s"))
    status.update(RoundFailed(ONE, "x"))
    status.update(RoundCommitted(OTHER, 1, 5, 0.5))
    status.update(RoundBegun(OTHER, 2, 5))
    content = status.content()
    one, other = content["study"]["cells"][ONE], content["study"]["cells"][OTHER]
    assert (one["round"], one["attempt"], one["waiting_for"], one["working"]) == (2, 2, ["sah_a", "tbi_b"], ["tbi_a"])
    assert (other["round"], other["attempt"], other["waiting_for"]) == (2, 1, [])
    assert content["sites"]["tbi_b"]["missing_reason"] == "not connected for 61 s"
    status.update(CellStageBegun("evaluating", OTHER, "cp_lora-r2", 1, 2))
    status.write(force=True)
    shown = CliRunner().invoke(app, ["status", str(server_file)]).stdout
    assert "study study: fine-tuning and evaluation" in shown
    waits = r"  cp_lora-r2, fold 0: round 2 of 5, attempt 2; working: tbi_a; waiting for sah_a, tbi_b, until \S+"
    assert re.search(waits, shown)
    assert "  cp_lora-r2, fold 1: evaluating\n" in shown
    assert f"last commit: {OTHER}, round 1" in shown
    lines = prometheus(status.content()).splitlines()
    assert {f'sahfl_round{{cell="{cell}"}} 2' for cell in (ONE, OTHER)} < set(lines)
    assert "sahfl_waiting_for_sites 2" in lines
    status.update(CellEvaluated(OTHER))
    status.update(Paused(ONE, 2, ("tbi_b",), 30))
    status.update(SiteFinished("tbi_b", "train"))
    content = status.content()
    assert "tbi_a" not in content["study"]["cells"][ONE]["waiting_for"]
    assert list(content["study"]["cells"]) == [ONE]
    assert content["sites"]["tbi_b"]["missing_reason"] == "not connected"
    status.update(StageBegun("writing the report"))
    assert status.content()["study"]["cells"] == {}


def test_each_site_says_whether_it_is_there_and_what_it_does(status):
    sites = status.content()["sites"]
    assert (sites["tbi_a"]["state"], sites["tbi_a"]["doing"], sites["tbi_a"]["version"]) == (
        "connected",
        DOING["tbi_a"],
        "0.1.0",
    )
    assert (sites["tbi_b"]["state"], sites["tbi_b"]["last_seen"]) == ("not connected", None)


def test_each_site_is_shown_as_working_on_what_since_when_or_as_waited_for(status, server_file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status.write(force=True)
    shown = CliRunner().invoke(app, ["status", str(server_file)]).stdout
    assert "train since 2026-11-30 07:00" in shown
    monkeypatch.setitem(DOING, "tbi_a", DOING["tbi_a"] | {"state": "asked"})
    status.write(force=True)
    shown = CliRunner().invoke(app, ["status", str(server_file)]).stdout
    assert "waited for: train, asked 2026-11-30 07:00" in shown
    monkeypatch.delitem(DOING, "tbi_a")
    status.write(force=True)
    assert "idle" in CliRunner().invoke(app, ["status", str(server_file)]).stdout


def test_times_of_today_are_shown_without_the_date(status, server_file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    at = status.content()["at"]
    status.begin("study", STUDY)
    monkeypatch.setitem(DOING, "tbi_a", {"what": "query.confirm_start", "since": at, "state": "asked"})
    status.write(force=True)
    shown = CliRunner().invoke(app, ["status", str(server_file)]).stdout
    assert f"waited for: confirm start, asked {at[11:19]}" in shown


def test_a_site_whose_last_answer_was_an_error_is_shown_until_an_answer_of_its_kind_is_none(
    status, server_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    status.update(SiteFailed("tbi_a", "train", "DataChanged", "DataChanged"))
    status.update(SiteFinished("tbi_a", "query.confirm_start"))
    (known,) = status.content()["sites"]["tbi_a"]["errors"].values()
    assert known["error"] == "DataChanged"
    status.update(SiteFailed("tbi_a", "train", "DataChanged", "DataChanged"))
    status.update(SiteFailed("tbi_a", "train", "not connected for 61 s"))  # no answer
    assert status.content()["sites"]["tbi_a"]["errors"] == {"train": known}
    status.end()
    status.begin("next", STUDY)
    status.write(force=True)
    assert f"train: DataChanged since {known['since']}" in CliRunner().invoke(app, ["status", str(server_file)]).stdout
    since = datetime.fromisoformat(known["since"]).timestamp()
    line = f'sahfl_site_error_since_seconds{{site="tbi_a",what="train",error="DataChanged"}} {since:.0f}'
    assert line in prometheus(status.content()).splitlines()
    found = examine_sites(tmp_path / "state" / "status.json")
    assert (found.verdict, "tbi_a: train: DataChanged since" in found.found) == ("warn", True)
    status.update(SiteFinished("tbi_a", "train"))
    status.write(force=True)
    assert status.content()["sites"]["tbi_a"]["errors"] == {}
    assert "sahfl_site_error" not in prometheus(status.content())
    assert examine_sites(tmp_path / "state" / "status.json").verdict == "ok"


def test_A12_a_disk_that_is_full_is_said_once_and_stops_nothing(status, tmp_path, caplog):
    (tmp_path / "state").write_text("a file where the folder should be")
    status.write(force=True)
    status.write(force=True)
    assert caplog.text.count("event=status_not_written") == 1


@pytest.fixture
def server_file(tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text(yaml.safe_dump({"kit": "kit", "folder": "state"}))
    return path


def test_sahfl_status_shows_who_is_missing_and_that_the_server_runs(status, server_file, tmp_path):
    status.write(force=True)
    with (tmp_path / "state" / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shown = CliRunner().invoke(app, ["status", str(server_file)])
        found = CliRunner().invoke(app, ["status", str(server_file), "--json"])
    assert (shown.exit_code, found.exit_code) == (3, 3)
    assert "listening on 127.0.0.1:8443" in shown.stdout
    assert "missing: tbi_b, sah_a, sah_b, sah_c" in shown.stderr
    assert "warning: ends soon" in shown.stdout
    assert json.loads(found.stdout)["running"] is True


def test_sahfl_status_says_that_the_server_does_not_run(status, server_file, tmp_path):
    status.end()
    status.write(force=True)
    (tmp_path / "state" / "server.lock").touch()
    shown = CliRunner().invoke(app, ["status", str(server_file)])
    assert shown.exit_code == 3
    assert "the server does not run; start it: sahfl-server" in shown.stderr


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 9}'])
def test_a_status_that_is_damaged_or_absent_is_an_error_that_says_so(server_file, tmp_path, content):
    runner = CliRunner()
    absent = runner.invoke(app, ["status", str(server_file)])
    assert isinstance(absent.exception, RunError)
    assert "no server has run in this folder yet" in str(absent.exception)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "status.json").write_text(content)
    damaged = runner.invoke(app, ["status", str(server_file)])
    assert "is not a status of this version" in str(damaged.exception)


def test_prometheus_gets_gauges_and_only_on_loopback(status):
    with showing_metrics(0, status.content) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            text = page.read().decode()
        with pytest.raises(RunError, match="metrics_port"), showing_metrics(port, status.content):
            pass
    assert text == prometheus(status.content())
    assert 'sahfl_site_connected{site="tbi_a"} 1' in text.splitlines()
    assert 'sahfl_site_connected{site="tbi_b"} 0' in text.splitlines()
    assert text.count("# TYPE sahfl_site_connected gauge") == 1
    assert "sahfl_loss" not in text
    with showing_metrics(None, status.content) as port:
        assert port is None


def test_the_largest_payload_of_a_study_is_that_of_its_largest_state():
    assert payload_bytes(STUDY) > 1_000_000
    replicates = parse(
        Study,
        changed(TINY, data={"source": "sites"}, rounds__unmasked=True, evaluation__replicates=100_000),
        where="test",
    )
    assert payload_bytes(replicates) > payload_bytes(STUDY)


def test_a_server_file_resolves_its_paths_and_names_all_its_problems(server_file, tmp_path):
    config = load_server(server_file)
    assert (config.kit, config.folder, config.port) == (tmp_path / "kit", tmp_path / "state", 8443)
    server_file.write_text(yaml.safe_dump({"kit": "kit", "folder": "state", "port": 99999, "prot": 1}))
    with pytest.raises(ConfigError, match=r"(?s)2 problem.*port.*prot"):
        load_server(server_file)
