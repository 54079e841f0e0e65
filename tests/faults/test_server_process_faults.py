"""Faults of the server, with real processes over mutual TLS: nothing is lost, and every end has its reason."""

import json
import os
import re
import signal
import socket
import subprocess

import pytest
from harness.commands import journal, tensors
from harness.deployed import SITES, SMALL, Command, Deployment, sahfl_command, wait_for
from harness.tiny_study import changed

from sahfl.trust.provision import renew, revoke

LONG = changed(SMALL, pretrain__rounds=3, pretrain__local__steps=6)


LINE = re.compile(r'\S+Z (info|warning|error) event=\w+( \w+=([^\s"\x1b]+|"(?:[^"\\\x1b]|\\.)*"))*')
"""A line of the log: one event, none of Flower's, no colour."""


def status_of(deployment, *options):
    done = sahfl_command("status", deployment.server_file, *options)
    return done.returncode, done.stdout, done.stderr


def in_training(deployment, run, round_):
    """Round ``round_`` of pretraining is asked and at least one site has fetched it."""
    lines = [line for line in deployment.commands[0].log_file.read_text().splitlines() if "event=" in line]
    asked = [i for i, line in enumerate(lines) if f"event=round cell=pretrain round={round_} " in line]
    return bool(asked) and any("event=started" in line for line in lines[asked[-1] :])


@pytest.mark.slow
def test_A01_A03_a_server_that_is_killed_in_a_round_goes_on_without_any_command_at_a_site(tmp_path):
    with Deployment(tmp_path / "whole", study=LONG) as whole:
        run = whole.submit()
        server = whole.server("--until-done")
        for site in SITES:
            whole.site(site)
        assert server.process.wait(300) == 0, server.log
        undisturbed = tensors(run)
    with Deployment(tmp_path / "killed", study=LONG) as killed:
        run = killed.submit()
        killed.server("--until-done")
        sites = [killed.site(site) for site in SITES]
        wait_for(lambda: in_training(killed, run, 2), 240, lambda: killed.commands[0].log)
        killed.commands[0].kill()
        server = killed.server("--until-done")
        assert server.process.wait(300) == 0, server.log
        assert all(site.process.poll() is None for site in sites)
        assert tensors(run) == undisturbed
        assert [line["after"] for line in journal(run, "resumed")] == ["killed or crashed"]
        rounds = [(line["stage"], line["round"]) for line in journal(run, "round") if line["committed"]]
        assert len(rounds) == len(set(map(tuple, rounds))) + 2  # the same rounds of fine-tuning in two folds
        assert not [line for line in journal(run, "round") if line["missing"]]


@pytest.mark.slow
def test_A09_a_study_does_not_start_without_all_of_its_sites_and_names_the_missing_ones(tmp_path):
    with Deployment(tmp_path, wait_for_sites_s=2.0) as deployment:
        run = deployment.submit()
        server = deployment.server("--until-done")
        assert server.process.wait(120) == 3, server.log
        assert "missing: tbi_a, tbi_b, sah_a, sah_b, sah_c" in server.log
        assert not (run / "journal.jsonl").exists()
        assert "missing: tbi_a" in (deployment.state / "failed" / "tiny.txt").read_text()
        code, out, _ = status_of(deployment, "--json")
        assert (code, json.loads(out)["last"]["ended"]) == (3, "failed")


@pytest.mark.slow
def test_A11_a_first_signal_ends_the_server_cleanly_and_the_status_said_what_it_waited_for(tmp_path):
    with Deployment(tmp_path) as deployment:
        deployment.submit()
        server = deployment.server()
        server.wait_for_line("event=waiting", timeout_s=120)
        wait_for(lambda: (deployment.status()["study"] or {}).get("waiting_for"), 20)
        code, out, err = status_of(deployment)
        assert code == 3
        assert "missing: tbi_a, tbi_b, sah_a, sah_b, sah_c" in err
        assert "waiting for tbi_a" in out
        assert server.stop(10) == 0
        assert "event=stopping" in server.log
        assert all(LINE.fullmatch(line) for line in server.log.splitlines()), server.log
        assert len(set(server.log.splitlines())) == len(server.log.splitlines())
        assert "Traceback" not in server.log
        code, _, err = status_of(deployment)
        assert code == 3
        assert "does not run" in err
        assert (deployment.state / "queue" / "tiny.yaml").exists()


@pytest.mark.slow
def test_A11_a_second_signal_ends_the_server_at_once(tmp_path):
    with Deployment(tmp_path) as deployment:
        server = deployment.server()
        server.wait_for_line("event=listening", timeout_s=120)
        with socket.create_connection(("127.0.0.1", deployment.port)):  # an open connection that it would wait for
            os.kill(server.process.pid, signal.SIGTERM)
            os.kill(server.process.pid, signal.SIGTERM)
            assert server.process.wait(10) in (0, -signal.SIGTERM)


def test_A17_a_port_that_is_taken_is_one_clear_line(tmp_path):
    with Deployment(tmp_path) as deployment, socket.socket() as taken:
        taken.bind(("127.0.0.1", deployment.port))
        taken.listen()
        server = deployment.server()
        assert server.process.wait(120) == 2
        assert server.log.splitlines()[-1].startswith(f"error: 127.0.0.1:{deployment.port}: the port is taken")
        assert "Traceback" not in server.log


def test_a_second_server_in_one_folder_is_refused(tmp_path):
    with Deployment(tmp_path) as deployment:
        deployment.server().wait_for_line("event=listening", timeout_s=120)
        second = Command(tmp_path / "second.log", "sahfl_server", deployment.server_file)
        assert second.process.wait(120) == 2
        assert "another server works here" in second.log


@pytest.mark.slow
def test_C07_a_site_that_is_revoked_while_the_server_runs_is_out_before_it_trains_again(tmp_path):
    with Deployment(tmp_path) as deployment:
        deployment.submit(pretrain__rounds=500)
        server = deployment.server("--until-done")
        for site in SITES:
            deployment.site(site)
        server.wait_for_line("event=committed cell=pretrain", timeout_s=240)
        revoke(deployment.consortium.folder, "tbi_b")
        server.wait_for_line("event=revoked site=tbi_b", timeout_s=30)
        run = deployment.state / "runs" / "tiny"
        rounds = len(journal(run, "round"))
        wait_for(lambda: len(journal(run, "round")) > rounds + 1, 60, lambda: server.log)
        last = journal(run, "round")[-1]
        assert [site["site"] for site in last["used"]] == ["tbi_a"] or not last["committed"]
        assert {"site": "tbi_b", "reason": "its key was revoked"} in last["missing"]
        assert deployment.status()["sites"]["tbi_b"]["state"] == "revoked"


@pytest.mark.slow
def test_C07_a_study_goes_on_without_a_revoked_site_after_a_restart_too_and_with_it_once_it_has_a_new_kit(tmp_path):
    with Deployment(tmp_path, resume_wait_s=0.0) as deployment:
        run = deployment.submit(pretrain__rounds=500, rounds__quorum=0.5, rounds__pause_s=0.0)
        server = deployment.server("--until-done")
        for site in SITES:
            deployment.site(site)
        server.wait_for_line("event=committed cell=pretrain", timeout_s=240)
        revoke(deployment.consortium.folder, "tbi_b")
        server.wait_for_line("event=revoked site=tbi_b", timeout_s=30)

        def used_by(*sites):
            lines = journal(run, "round")
            return bool(lines) and [site["site"] for site in lines[-1]["used"]] == [*sites]

        wait_for(lambda: used_by("tbi_a"), 120, lambda: server.log)
        assert server.stop() == 0
        rounds = len(journal(run, "round"))
        server = deployment.server("--until-done")
        wait_for(lambda: len(journal(run, "round")) > rounds and used_by("tbi_a"), 240, lambda: server.log)
        assert journal(run, "round")[-1]["missing"] == [
            {"site": "tbi_b", "reason": "not in the roster: its key was revoked"}
        ]
        assert "event=goes_on_without study=tiny revoked=tbi_b" in server.log
        status = deployment.status()
        assert status["sites"]["tbi_b"]["state"] == "revoked"
        assert status["study"]["waiting_for"] == []
        code, out, err = status_of(deployment)
        assert (code, "missing" in err) == (0, False)
        assert "tbi_b" in out
        assert "revoked" in out
        renew(deployment.consortium.folder, "tbi_b")
        server.wait_for_line("event=registered site=tbi_b", timeout_s=30)
        deployment.commands[SITES.index("tbi_b") + 1].kill()
        deployment.site("tbi_b")
        wait_for(lambda: used_by("tbi_a", "tbi_b"), 240, lambda: server.log)


@pytest.mark.slow
def test_C07_a_study_that_names_a_revoked_site_fails_with_remedies_that_work(tmp_path):
    with Deployment(tmp_path, sites=("tbi_a", "tbi_b", "sah_a", "sah_b", "sah_c")) as deployment:
        server = deployment.server()
        server.wait_for_line("event=listening", timeout_s=120)
        deployment.submit()
        server.wait_for_line("event=waiting study=tiny", timeout_s=120)
        revoke(deployment.consortium.folder, "tbi_b")  # while the study waits for its sites
        server.wait_for_line("event=study_failed study=tiny", timeout_s=120)
        reason = (deployment.state / "failed" / "tiny.txt").read_text()
        assert "names tbi_b, revoked" in reason
        renew(deployment.consortium.folder, "tbi_b")  # one remedy
        server.wait_for_line("event=registered site=tbi_b", timeout_s=30)
        deployment.submit()
        server.wait_for_line("event=waiting study=tiny", timeout_s=120, count=2)
        revoke(deployment.consortium.folder, "tbi_b")
        server.wait_for_line("event=study_failed study=tiny", timeout_s=120, count=2)
        deployment.submit(pretrain__sites=["tbi_a"])  # the other remedy, under the same name
        server.wait_for_line("event=waiting study=tiny", timeout_s=120, count=3)
        missing = server.log.rpartition("missing=")[2].split()[0]
        assert missing == "tbi_a,sah_a,sah_b,sah_c"


def test_no_other_process_and_no_other_port_belongs_to_the_server(tmp_path):
    with Deployment(tmp_path, metrics_port=0) as deployment:
        server = deployment.server()
        server.wait_for_line("event=listening", timeout_s=120)
        pid = server.process.pid
        from pathlib import Path

        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert children == []
        inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if os.path.islink(link)}
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        listening = [line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in inodes]
        assert len(listening) == 2
        assert all(address.startswith("0100007F:") for address in listening)


@pytest.mark.slow
def test_A09_A06_with_a_quorum_the_study_starts_and_a_late_site_comes_in_at_a_later_round(tmp_path):
    with Deployment(tmp_path, wait_for_sites_s=15.0, start_with="quorum", give_up_s=1.0) as deployment:
        run = deployment.submit(pretrain__rounds=400, rounds__quorum=0.5)
        server = deployment.server("--until-done")
        for site in ("tbi_a", "sah_a", "sah_b", "sah_c"):
            deployment.site(site)
        server.wait_for_line("event=committed cell=pretrain", timeout_s=240)
        assert "event=starts_without study=tiny missing=tbi_b" in server.log
        assert journal(run, "round")[0]["missing"][0]["site"] == "tbi_b"
        deployment.site("tbi_b")
        wait_for(
            lambda: {site["site"] for site in journal(run, "round")[-1]["used"]} == {"tbi_a", "tbi_b"},
            120,
            lambda: server.log,
        )


@pytest.mark.slow
def test_A04_a_site_that_is_killed_in_its_training_is_asked_again_when_it_is_back(tmp_path):
    study = changed(SMALL, pretrain__rounds=2, pretrain__local__steps=400)
    with Deployment(tmp_path, study=study) as deployment:
        run = deployment.submit()
        server = deployment.server("--until-done")
        sites = {site: deployment.site(site) for site in SITES}
        server.wait_for_line("event=started site=tbi_b what=train", timeout_s=240)
        sites["tbi_b"].kill()
        deployment.site("tbi_b")
        server.wait_for_line("event=committed cell=pretrain", timeout_s=240)
        first = journal(run, "round")[0]
        assert [site["site"] for site in first["used"]] == ["tbi_a", "tbi_b"]
        assert first["retried"] == [{"site": "tbi_b", "reason": "the site's process was started anew"}]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_A12_a_full_disk_makes_the_study_wait_and_it_goes_on_when_there_is_room(tmp_path, monkeypatch):
    small = tmp_path / "state"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("this machine does not let a file system be mounted")
    try:
        with Deployment(tmp_path) as deployment:
            run = deployment.submit()
            ballast = small / "ballast"
            with ballast.open("wb") as stream:
                stream.write(bytes(3 * 2**20))
            server = deployment.server("--until-done")
            for site in SITES:
                deployment.site(site)
            server.wait_for_line("event=study_waits", timeout_s=240)
            assert "make room" in server.log
            assert "Traceback" not in server.log
            before = tensors(run)
            ballast.unlink()
            subprocess.run(["mount", "-o", "remount,size=200m", small], check=True)
            assert server.process.wait(300) in (0, 3), server.log
            assert (deployment.state / "done" / "tiny.yaml").exists()
            assert before.items() <= tensors(run).items()
    finally:
        subprocess.run(["umount", "-l", small], check=True)
