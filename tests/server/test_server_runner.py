"""Which sites a study needs when the server begins with it: at first, and after a restart."""

import pytest
import yaml
from harness.tiny_study import TINY, changed
from sahfl_server.runner import Runner
from sahfl_server.status import Status

from sahfl.config import load_server
from sahfl.federation.flower.fleet import Fleet
from sahfl.federation.flower.gate import Gate
from sahfl.federation.flower.link import Link
from sahfl.federation.server.studies import Studies

SITES = ("tbi_a", "tbi_b", "sah_a", "sah_b", "sah_c")
DEPLOYED = changed(TINY, data={"source": "sites"}, rounds__unmasked=True, rounds__quorum=0.5)


class Server:
    """A server without a port and without work: every study that it begins is interrupted, or is done."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.begun, self.interrupts = folder, [], False
        path = folder / "server.yaml"
        path.write_text(yaml.safe_dump({"kit": "kit", "folder": "state", "resume_wait_s": 0.0}))
        monkeypatch.setattr(Runner, "_start", lambda runner, grid, folder, nodes: self.start(folder, nodes))
        self.studies = Studies(load_server(path).folder)
        self.restart()

    def restart(self, *, revoked=()):
        """A new process, to which all sites connect that are not revoked."""
        self.fleet, self.link = Fleet(), Link()
        self.register(revoked=revoked)
        config, gate = load_server(self.folder / "server.yaml"), Gate(self.link, self.fleet)
        self.status = Status(config.folder / "status.json", self.fleet, pid=1, about=lambda: {"doing": {}})
        self.runner = Runner(config, self.link, self.fleet, gate, self.status, self.studies)

    def register(self, *, revoked=(), key="{}"):
        keys = {site: key.format(site).encode() for site in SITES}
        active = {site: key for site, key in keys.items() if site not in revoked}
        out = {site: keys[site] for site in revoked}
        self.fleet.register(active, self.link.enroll, revoked=out)
        for seat in self.fleet.seats():
            self.fleet.admit(seat, "one", "0.1.0")

    def start(self, folder, nodes):
        self.begun.append({self.fleet.of_node(int(node)).site: site for node, site in nodes.items()})
        folder.note({"event": "begun"})
        if self.interrupts:
            raise KeyboardInterrupt

    def run(self, **changes):
        """Submit a study if it is not in the queue, and run it: whether it succeeded, and why not."""
        if not self.studies.waiting():
            path = self.folder / "study.yaml"
            path.write_text(yaml.safe_dump(changed(DEPLOYED, **changes)))
            self.studies.submit(path)
        done = self.runner.run(self.studies.waiting()[0])
        return done, self.runner.last["reason"]


@pytest.fixture
def server(tmp_path, monkeypatch):
    return Server(tmp_path, monkeypatch)


REASON = (
    "study tiny: names tbi_b, revoked; expected sites that may take part. Take them out of the study, or give them new "
    "kits with `sahfl renew`; then submit the study again"
)


def test_a_study_that_has_not_begun_names_its_revoked_site_and_starts_without_it_once_it_is_taken_out(server):
    server.register(revoked=["tbi_b"])
    assert server.run() == (False, REASON)
    server.restart(revoked=["tbi_b"])
    assert server.run() == (False, REASON)
    assert server.run(pretrain__sites=["tbi_a"]) == (True, "")
    assert server.begun == [{site: site for site in SITES if site != "tbi_b"}]


def test_a_study_that_has_not_begun_starts_once_its_revoked_site_has_a_new_kit(server):
    server.register(revoked=["tbi_b"])
    assert server.run() == (False, REASON)
    server.register(key="{}-new")
    assert server.run() == (True, "")
    assert server.begun == [{site: site for site in SITES}]


def test_a_study_that_has_begun_goes_on_after_a_restart_and_waits_for_no_revoked_site(server, caplog):
    caplog.set_level("INFO")
    server.interrupts = True
    with pytest.raises(KeyboardInterrupt):
        server.run()
    server.interrupts = False
    server.restart(revoked=["tbi_b"])
    waits = []
    server.status.wait_for = lambda sites, **more: waits.append(sites)
    assert server.run() == (True, "")
    assert server.begun == [{site: site for site in SITES}] * 2  # it is asked, and the reply names its revocation
    assert waits == [[]]
    assert server.status.content()["sites"]["tbi_b"]["state"] == "revoked"
    assert "event=goes_on_without study=tiny revoked=tbi_b" in caplog.messages
