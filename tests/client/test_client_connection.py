"""The connection's states: each change is one line and in the status, and no error ends it."""

import json
import threading
from datetime import UTC, datetime, timedelta

import pytest
from harness.live_site import Server, consortium_of, wait_until
from harness.trust_kits import free_port
from sahfl_client import backoff
from sahfl_client.connection import Connection
from sahfl_client.status import Status

from sahfl.federation.flower import handshake
from sahfl.trust.provision import renew


class Running:
    """A connection in a thread of its own, with fast tries."""

    def __init__(self, consortium, folder, site="bern"):
        self.folder, self.stop = folder, threading.Event()
        self.offers, self.sessions = [], []
        self.connection = Connection(
            consortium.sites[site],
            status=Status(folder, site=site, server=f"localhost:{consortium.port}"),
            stop=self.stop,
            on_offer=lambda link, offer: self.offers.append(offer),
            on_new_session=lambda: self.sessions.append(True),
        )
        self.thread = threading.Thread(target=self.connection.run, daemon=True)

    def status(self):
        return json.loads((self.folder / "status.json").read_text())

    def end(self):
        self.stop.set()
        self.connection.close()


@pytest.fixture
def run(tmp_path, monkeypatch, caplog):
    """Start connections that end with the test."""
    caplog.set_level("INFO", logger="sahfl_client")
    for name in ("EARLY_CAP_S", "LATE_CAP_S"):
        monkeypatch.setattr(backoff, name, 0.05)
    made = []

    def start(consortium, change=lambda connection: None):
        made.append(Running(consortium, tmp_path))
        change(made[-1].connection)
        made[-1].thread.start()
        return made[-1]

    yield start
    for running in made:
        running.end()


def events(caplog):
    lines = [record.message for record in caplog.records if record.name.startswith("sahfl_client")]
    return [line.split()[0].removeprefix("event=") for line in lines]


def test_each_change_of_state_is_one_line_and_in_the_status(tmp_path, run, caplog):
    consortium = consortium_of(tmp_path / "c", ["bern"])
    running = run(consortium)
    wait_until(lambda: (running.status()["reason"] or "").startswith("connection refused"))
    assert running.status()["connected"] is False
    with Server(consortium):
        wait_until(lambda: running.status()["connected"])
        assert running.status()["reason"] is None
        assert 390 < running.status()["certificate_days"] < 400
    wait_until(lambda: not running.status()["connected"])
    with Server(consortium):
        wait_until(lambda: running.status()["connected"])
        wait_until(lambda: running.sessions)  # what the server before had asked is over
    found = events(caplog)
    assert found[:2] == ["not_connected", "connected"]
    assert found.count("connected") == 2
    (line,) = {record.message.partition(" next_try_s=")[0] for record in caplog.records if "refused" in record.message}
    assert line.startswith('event=not_connected reason="connection refused: no server listens there')


def test_A15_an_expired_kit_is_not_connected_with_what_to_do_and_a_renewed_one_counts_without_a_restart(tmp_path, run):
    past = datetime.now(UTC) - timedelta(days=500)
    consortium = consortium_of(tmp_path / "c", ["bern"], now=past)
    renew(consortium.folder, "server")
    running = run(consortium)
    wait_until(lambda: "expired" in (running.status()["reason"] or ""))
    assert "ask the coordinating centre for a new kit" in running.status()["reason"]
    with Server(consortium):
        renew(consortium.folder, "bern")
        wait_until(lambda: running.status()["connected"])


def test_A15_a_certificate_that_ends_within_30_days_is_warned_of(tmp_path, run, caplog):
    consortium = consortium_of(tmp_path / "c", ["bern"], valid_days={"certificates": 20})
    running = run(consortium)
    with Server(consortium):
        wait_until(lambda: running.status()["connected"])
    assert "bern: the site's certificate expires on" in running.status()["warnings"][0]
    assert running.status()["certificate_days"] in (19, 20)
    assert events(caplog).count("certificate") == 1


def test_A16_a_site_of_another_version_keeps_trying(tmp_path, run):
    consortium = consortium_of(tmp_path / "c", ["bern"])

    def age(connection):
        connection._headers |= {handshake.VERSION: "0.0.9"}

    running = run(consortium, age)
    with Server(consortium):
        wait_until(lambda: "this site has sahfl 0.0.9" in (running.status()["reason"] or ""))
        age_of_own = {handshake.VERSION: handshake.own_versions()[handshake.VERSION]}
        running.connection._headers |= age_of_own
        wait_until(lambda: running.status()["connected"])


def test_a_kit_that_disappears_is_said_and_does_not_end_the_service(tmp_path, run):
    consortium = consortium_of(tmp_path / "c", ["bern"], port=free_port())
    running = run(consortium)
    wait_until(lambda: running.status()["reason"] not in (None, "starting"))
    (consortium.sites["bern"] / "kit.sig").rename(tmp_path / "kit.sig")
    wait_until(lambda: "kit.sig" in (running.status()["reason"] or ""))
    assert running.thread.is_alive()
