"""A site's service as a real process: killed, cut off, crashed from inside, stopped."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.live_site import (
    CLIENT,
    Server,
    client,
    consortium_of,
    describe_request,
    train_request,
    wait_until,
    write_site,
)
from harness.tcp_proxy import Proxy
from harness.tiny_study import TINY
from harness.trust_kits import free_port

from sahfl.federation import flower, protocol

SITE = "tbi_a"
LONG = 100_000
"""Steps of a training that does not end within a test."""
OUTAGE_S = 300


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    return consortium_of(tmp_path_factory.mktemp("consortium"), [SITE, "tbi_b"])


@pytest.fixture
def site_file(tmp_path, consortium):
    return write_site(tmp_path, TINY, SITE, consortium)


@pytest.fixture
def ready(tmp_path, scans, consortium):
    """A site's file, with its patients checked already."""
    shutil.copytree(scans / SITE, tmp_path / SITE)
    return write_site(tmp_path, TINY, SITE, consortium)


def training(server, running):
    """Begin a training that does not end by itself, and wait until it trains."""
    id_ = server.send(SITE, train_request(TINY, steps=LONG), protocol.TRAIN)
    wait_until(lambda: (running.status().get("doing") or {}).get("done"), why=running)
    return id_


@contextmanager
def through_a_proxy(consortium, site_file):
    """A server, its site, and the network between them."""
    port = free_port()
    with (
        Server(consortium, port=port) as server,
        Proxy(consortium.port, ("127.0.0.1", port)) as proxy,
        client(site_file) as running,
    ):
        yield server, proxy, running


def test_A04_a_killed_site_is_asked_once_more_as_the_same_site_and_counts_once(ready, consortium):
    with Server(consortium) as server:
        with client(ready) as first:
            id_ = training(server, first)
            trainer = first.trainer()
            first.process.kill()
            first.process.wait()
            wait_until(
                lambda: not Path(f"/proc/{trainer}").exists() or Path(f"/proc/{trainer}/cmdline").read_bytes() == b""
            )
        with client(ready) as second:
            lost = server.reply_to(id_)
            assert flower.is_crash(lost)
            assert lost.error.reason == "the site's process was started anew"
            node = server.node_of(SITE)
            reply = server.ask(SITE, train_request(TINY), protocol.TRAIN)
            assert reply.has_content()
            assert (server.node_of(SITE), len(server.fleet.seats())) == (node, 2)
            assert server.grid.pull_messages([id_]) == []
            assert len(second.lines("answered")) == 1


@pytest.mark.slow
def test_A06_an_upload_that_is_cut_half_way_arrives_once_and_whole(tmp_path, ready, consortium):
    with through_a_proxy(consortium, ready) as (server, proxy, running):
        whole = server.ask(SITE, train_request(TINY), protocol.TRAIN)
        n_bytes = protocol.n_bytes(whole.content)
        id_ = server.send(SITE, train_request(TINY), protocol.TRAIN)
        running.wait_for("received", 2)
        proxy.cut_after(n_bytes // 2)
        running.wait_for("answer_interrupted")
        assert server.grid.pull_messages([id_]) == []
        time.sleep(5)
        mended = time.monotonic()
        proxy.mend()
        reply = server.reply_to(id_, timeout_s=30)
        assert reply.metadata.reply_to_message_id == id_
        assert str(dict(reply.content["header"])) == str(dict(whole.content["header"]))
        assert server.grid.pull_messages([id_]) == []
        running.wait_for("connected", 2, timeout_s=30 - (time.monotonic() - mended))
        assert len(running.lines("not_connected")) <= 3
        assert server.link.counts()["replies"] == 0


@pytest.mark.slow
def test_A06_a_link_that_swallows_everything_for_five_minutes_is_found_again_within_30_s(ready, consortium):
    with through_a_proxy(consortium, ready) as (server, proxy, running):
        running.wait_for("connected")
        id_ = training(server, running)
        proxy.blackhole()
        running.wait_for("not_connected", timeout_s=30)
        time.sleep(OUTAGE_S)
        assert running.status()["connected"] is False
        mended = time.monotonic()
        proxy.mend()
        running.wait_for("connected", 2, timeout_s=30)
        print(f"connected again after {time.monotonic() - mended:.1f} s")
        assert len(running.lines("not_connected")) <= 3
        assert running.status()["doing"]["what"] == "train"  # it went on meanwhile
        assert server.grid.pull_messages([id_]) == []


@pytest.mark.slow
def test_A03_a_server_that_lost_everything_gets_its_site_back_without_a_restart(ready, consortium):
    with client(ready) as running:
        with Server(consortium) as server:
            running.wait_for("connected")
            training(server, running)
            trainer = running.trainer()
        running.wait_for("not_connected")
        with Server(consortium) as server:
            assert server.ask(SITE, train_request(TINY), protocol.TRAIN).has_content()
            assert server.fleet.connected(server.fleet.seats()[0])
            assert running.trainer() != trainer  # what the server before had asked was ended
        assert running.process.poll() is None


@pytest.mark.slow
def test_A11_the_first_signal_ends_the_work_and_exits_0_and_tells_the_server(ready, consortium):
    with Server(consortium) as server, client(ready) as running:
        training(server, running)
        trainer = running.trainer()
        assert running.stop(signal.SIGTERM, timeout_s=10) == 0
        assert not server.connected(SITE)
        assert not Path(f"/proc/{trainer}").exists()
        status = running.status()
        assert (status["connected"], status["reason"], status["pid"], status["doing"]) == (False, "stopped", None, None)
        assert running.lines()[-1].endswith("info event=stopped signal=SIGTERM")


@pytest.mark.slow
def test_A11_a_second_signal_ends_it_at_once(ready, consortium):
    with through_a_proxy(consortium, ready) as (_, proxy, running):
        running.wait_for("connected")
        trainer = running.trainer()
        proxy.blackhole()  # its goodbye finds nobody
        running.process.send_signal(signal.SIGINT)
        wait_until(lambda: not Path(f"/proc/{trainer}").exists(), timeout_s=10)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(5) in (-signal.SIGINT, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (signal.SIGKILL, "SIGKILL: out of memory, or killed by hand"),
        pytest.param(signal.SIGSEGV, "SIGSEGV: a crash in native code", marks=pytest.mark.slow),
    ],
)
def test_A13_a_trainer_that_dies_is_a_cause_that_the_server_hears_and_not_the_daemon_s_end(
    ready, consortium, number, cause
):
    with Server(consortium) as server, client(ready) as running:
        id_ = training(server, running)
        os.kill(running.trainer(), number)
        reply = server.reply_to(id_)
        assert flower.is_crash(reply)
        assert reply.error.reason == f"worker process died ({cause})"
        assert f'event=worker_died cause="{cause}"' in running.wait_for("worker_died")
        assert running.status()["errors"]["train"]["error"] == "ProcessLost"
        assert server.ask(SITE, train_request(TINY), protocol.TRAIN).has_content()
        assert running.status()["errors"] == {}


FAULTY = """
import os
if os.environ.get("FAULT") and "multiprocessing" in str(__import__("sys").argv + __import__("sys").orig_argv):
    import sahfl.training as training
    def fail(*arguments, **options):
        if os.path.exists(os.environ["FAULT"]):
            name = open(os.environ["FAULT"]).read()
            os.unlink(os.environ["FAULT"])
            raise type(name, (MemoryError,), {})("4 GiB for Muster^Hans.nii.gz")
        return real(*arguments, **options)
    real, training.train = training.train, fail
"""


@pytest.mark.slow  # test_local_grid.py shows the same with a worker that is no service's
@pytest.mark.parametrize("name", ["MemoryError", "OutOfMemoryError", "AcceleratorError"])
def test_A13_C06_a_failed_gpu_or_memory_is_named_by_its_class_and_gets_a_new_process(ready, consortium, tmp_path, name):
    (tmp_path / "sitecustomize.py").write_text(FAULTY)
    (tmp_path / "fault").write_text(name)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with Server(consortium) as server, client(ready, PYTHONPATH=path, FAULT=str(tmp_path / "fault")) as running:
        running.wait_for("connected")
        before = running.trainer()
        reply = server.ask(SITE, train_request(TINY), protocol.TRAIN)
        assert (flower.is_crash(reply), reply.error.reason) == (True, name)
        assert server.ask(SITE, train_request(TINY), protocol.TRAIN).has_content()
        assert running.trainer() != before
        assert "Muster" not in str(running)
        assert "Muster" in (running.folder / "logs" / f"{SITE}.log").read_text()


FULL_SHM = 'mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/full && exec "$@"'
"""Runs a command that finds no byte of shared memory."""


def can_mount():
    own = ["unshare", "--mount", "sh", "-c", FULL_SHM, "sh", "true"]
    return shutil.which("unshare") is not None and subprocess.run(own, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs unshare, and the right to mount a small /dev/shm")
def test_A13_a_site_trains_where_dev_shm_is_full(ready, consortium):
    wrapper = ["unshare", "--mount", "sh", "-c", FULL_SHM, "sh"]
    with Server(consortium) as server, client(ready, wrapper=wrapper) as running:
        reply = server.ask(SITE, train_request(TINY), protocol.TRAIN)
        assert reply.has_content(), reply.error
        root = Path(f"/proc/{running.process.pid}/root/dev/shm")
        assert (os.statvfs(root).f_bfree, [path.name for path in root.iterdir()]) == (0, ["full"])
        assert not running.lines("worker_died")
        assert running.stop() == 0


@pytest.mark.slow
def test_a_newer_request_ends_the_older_one_without_an_answer(ready, consortium):
    with Server(consortium) as server, client(ready) as running:
        id_ = training(server, running)
        assert server.ask(SITE, train_request(TINY), protocol.TRAIN).has_content()
        assert server.grid.pull_messages([id_]) == []
        assert len(running.lines("answered")) == 1


@pytest.mark.slow
def test_a_run_that_has_ended_is_abandoned_quietly_and_the_site_stays(ready, consortium):
    with Server(consortium) as server, client(ready) as running:
        server.send(SITE, train_request(TINY, steps=400), protocol.TRAIN)
        running.wait_for("received")
        server.link.end_run()
        assert "abandoned" in running.wait_for("abandoned")
        assert running.process.poll() is None
        assert not [line for line in running.lines() if "Traceback" in line]


@pytest.mark.slow
def test_C01_a_run_that_brings_code_is_refused_and_the_code_is_never_fetched(ready, consortium, monkeypatch):
    with Server(consortium) as server, client(ready) as running:
        running.wait_for("connected")
        server.link._state.run_ids[server.link.run_id].run.fab_hash = "ab" * 32
        reply = server.ask(SITE, describe_request(TINY), protocol.DESCRIBE)
        assert reply.error.reason == "PolicyRefused"
        assert "code=abababababab" in running.wait_for("code_refused")
        assert (running.folder / "logs" / f"{SITE}.log").exists() is False


@pytest.mark.slow
def test_a_gpu_that_is_not_there_ends_the_service_at_its_start_with_one_line(tmp_path, consortium):
    with client(write_site(tmp_path, TINY, SITE, consortium, device="cuda:63")) as running:
        assert running.process.wait(120) == 2
        assert "error: device: got cuda:63, this machine has " in running.lines()[-1]
        assert running.status()["reason"] == "failed"
        assert not [line for line in running.lines() if "Traceback" in line]


@pytest.mark.slow
def test_A11_a_goodbye_that_finds_nobody_does_not_hold_up_the_stop(ready, consortium):
    with through_a_proxy(consortium, ready) as (_, proxy, running):
        running.wait_for("connected")
        proxy.blackhole()
        assert running.stop(signal.SIGTERM, timeout_s=10) == 0


def test_only_one_process_works_in_a_site_s_folder(ready, consortium):
    with Server(consortium), client(ready) as running:
        running.wait_for("started")
        second = subprocess.run([*CLIENT, str(ready)], capture_output=True, text=True, timeout=60)
        assert second.returncode == 2
        assert "another sahfl-client works in this folder; stop it first" in second.stderr
        assert running.process.poll() is None


def can_isolate():
    tools = all(shutil.which(tool) for tool in ("unshare", "ip", "strace"))
    return tools and subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_isolate(), reason="needs unshare, ip and strace, and the right to make a network namespace")
def test_C10_a_site_connects_to_its_server_and_to_nobody_else_and_shows_no_secret(tmp_path):
    trace = tmp_path / "trace"
    environment = os.environ | {"HTTPS_PROXY": "http://192.0.2.1:3128", "PYTHONPATH": os.pathsep.join(sys.path)}
    isolated = subprocess.run(
        ["unshare", "-n", sys.executable, "-m", "harness.offline_session", str(tmp_path), str(trace)],
        capture_output=True, text=True, timeout=400, env=environment,
    )  # fmt: skip
    assert isolated.returncode == 0, isolated.stderr
    port = isolated.stdout.strip()
    calls = [line for line in trace.read_text().splitlines() if "AF_INET" in line]
    assert any(f"sin_port=htons({port})" in line for line in calls)
    others = [line for line in calls if f"_port=htons({port})" not in line]
    assert not others, "\n".join(others)
