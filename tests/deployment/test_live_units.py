"""The two units under a systemd of their own: closed as they say, they train, come back after a kill, and stop."""

import shutil

import pytest
import yaml
from harness import live_systemd
from harness.deployed import Deployment
from harness.live_systemd import booted, give, install, lay_out
from harness.tiny_study import TINY, changed

SITES = ("tbi_a", "sah_a", "sah_b")
STUDY = changed(TINY, pretrain__sites=["tbi_a"], finetune__sites=["sah_a", "sah_b"], pretrain__rounds=1,
                finetune__rounds=1, finetune__methods=[{"method": "cp_lora", "rank": 2}])  # fmt: skip
UNITS = {site: "sahfl-client" if site == SITES[0] else f"sahfl-client-{site}" for site in SITES}


def of_site(site):
    return lambda text: text.replace("/etc/sahfl/site.yaml", f"/etc/sahfl/{site}.yaml")


def put(path, settings, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings | more))


def hospital_files(deployment, root):
    """Kits, settings and a study in the places that the READMEs name, each with its owner."""
    for site in SITES:
        settings = yaml.safe_load(deployment.write_site(site).read_text())
        shutil.copytree(deployment.consortium.sites[site], root / f"etc/sahfl/kit-{site}")
        name = "site" if UNITS[site] == "sahfl-client" else site
        more = {"kit": f"/etc/sahfl/kit-{site}", "folder": "/var/lib/sahfl" + f"/{site}" * (name == site)}
        put(root / f"etc/sahfl/{name}.yaml", settings, **more)
        install(root, UNITS[site], of_site(site) if name == site else None)
    settings = yaml.safe_load(deployment.server_file.read_text())
    shutil.copytree(deployment.consortium.server, root / "etc/sahfl-server/kit")
    more = {"kit": "/etc/sahfl-server/kit", "folder": "/var/lib/sahfl-server"}
    put(root / "etc/sahfl-server/server.yaml", settings, **more)
    put(root / "lib/sahfl-server/queue/study.yaml", changed(STUDY, data={"source": "sites"}, rounds__unmasked=True))
    install(root, "sahfl-server")
    (root / "lib/sahfl").mkdir()
    for folder, user in (("sahfl", "sahfl"), ("sahfl-server", "sahfl-server")):
        give(root / "etc" / folder, user)
        give(root / "lib" / folder, user)


def process_of(machine, unit):
    """What the kernel says of a unit's main process."""
    lines = machine.run("cat", f"/proc/{machine.show(unit, 'MainPID')}/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def assert_closed(machine, unit, user):
    process = process_of(machine, unit)
    assert process["Uid"].split() == [str(live_systemd.USERS[user])] * 4
    assert (process["NoNewPrivs"], process["Seccomp"], process["CapBnd"].strip("0")) == ("1", "2", "")
    pid = machine.show(unit, "MainPID")
    inside = ["nsenter", "--target", pid, "--mount", "--", "sh", "-c"]
    assert "Read-only" in machine.run(*inside, "touch /usr/x /opt/x 2>&1 || true")
    assert machine.run(*inside, "ls -A /root /home").split() == ["/home:", "/root:"]


@pytest.mark.slow
@pytest.mark.skipif(live_systemd.why_not() != "", reason=live_systemd.why_not() or "it can")
def test_A04_A11_under_systemd_the_units_run_a_study_come_back_after_a_kill_and_stop_cleanly(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    lay_out(root)
    hospital_files(Deployment(tmp_path / "deployed", sites=SITES, study=STUDY), root)
    with booted(root) as machine:
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", "sahfl-server", *UNITS.values())
        machine.wait_for(lambda: "event=connected" in machine.log("sahfl-client"))
        assert_closed(machine, "sahfl-client", "sahfl")
        assert_closed(machine, "sahfl-server", "sahfl-server")
        server = root / "lib/sahfl-server"
        machine.wait_for(lambda: (server / "done/study.yaml").exists(), 300, unit="sahfl-server")
        assert (server / "runs/study/report.html").is_file()

        machine.run("systemctl", "kill", "--signal=SIGKILL", "--kill-whom=main", "sahfl-client")
        machine.wait_for(lambda: machine.log("sahfl-client").count("event=connected") == 2)
        assert machine.show("sahfl-client", "NRestarts") == "1"

        machine.run("systemctl", "stop", "sahfl-server", *UNITS.values())
        for unit in ("sahfl-server", *UNITS.values()):
            assert (machine.show(unit, "Result"), machine.show(unit, "ExecMainStatus")) == ("success", "0")
            assert "Traceback" not in machine.log(unit)
        (root / "etc/sahfl/kit-tbi_a/node.key").chmod(0o640)
        machine.run("systemctl", "start", "sahfl-client")
        machine.wait_for(lambda: machine.show("sahfl-client", "ActiveState") == "failed")
        assert (machine.show("sahfl-client", "ExecMainStatus"), machine.show("sahfl-client", "NRestarts")) == ("2", "0")
        assert "has mode 0640, expected 0600" in machine.log("sahfl-client")
