"""LocalGrid: real worker processes, killed, hung, overdue and interrupted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, RecordDict
from harness.freezing_worker import work_until_frozen
from harness.tiny_study import TINY

from sahfl.config import Study, parse
from sahfl.events import SiteEvent, SiteFinished, SiteStarted, SiteStep, listening
from sahfl.federation import flower, protocol
from sahfl.federation.server.mailbox import Ask, Mailbox
from sahfl.federation.workers import worker_process
from sahfl.payload import Header
from sahfl.process import n_threads
from sahfl.simulation.local_grid import FIRST_NODE_ID, LocalGrid
from sahfl.simulation.simulate import site_configs
from sahfl.task import Task

STUDY = parse(Study, TINY, where="test")


def describe(**changes):
    task = Task(stage="finetune", seed=3, views=STUDY.views, model=STUDY.model, folds=2)
    header = Header(STUDY.fingerprint(), stage="finetune", method="describe", fold=-1, round=0, base="")
    return protocol.request(task.model_copy(update=changes), header, {})


def grid_in(folder, workers):
    return LocalGrid(site_configs(STUDY, folder / "sites"), workers=workers, logs=folder / "logs")


@pytest.fixture
def grid(tmp_path):
    with grid_in(tmp_path, workers=2) as grid:
        yield grid


@pytest.fixture
def small_grid(tmp_path):
    """One worker: starting a second takes seconds."""
    with grid_in(tmp_path, workers=1) as grid:
        yield grid


def messages(grid, nodes=None, content=None):
    nodes = nodes if nodes is not None else grid.get_node_ids()
    return [grid.create_message(content or describe(), protocol.DESCRIBE, node, "") for node in nodes]


def wait_until(condition, grid=None, timeout_s=60):
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        if grid is not None:
            grid.pull_messages([])
        time.sleep(0.005)
    return found


@pytest.mark.slow
def test_more_sites_than_workers_all_answer_and_each_has_a_log_of_its_own(grid, tmp_path):
    replies = grid.send_and_receive(messages(grid))
    assert sorted(protocol.read_description(reply.content).site for reply in replies) == sorted(TINY["data"]["sites"])
    for site in TINY["data"]["sites"]:
        log = (tmp_path / "logs" / f"{site}.log").read_text()
        assert f"event=described site={site}" in log
        assert not [other for other in TINY["data"]["sites"] if other != site and other in log]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc here to read a process's environment")
def test_a_worker_starts_with_memory_that_stays_with_it(small_grid):
    small_grid.push_messages(messages(small_grid))
    pid = next(iter(wait_until(small_grid.busy, small_grid).values()))
    started_with = Path(f"/proc/{pid}/environ").read_text().split("\0")
    expected = worker_process.KEEP_MEMORY | n_threads(1)
    assert {f"{name}={value}" for name, value in expected.items()} <= set(started_with)


def test_a_killed_worker_is_an_error_reply_of_its_site_and_is_replaced(small_grid):
    sent = messages(small_grid)
    ids = small_grid.push_messages(sent)
    site, pid = next(iter(wait_until(small_grid.busy, small_grid).items()))
    os.kill(pid, signal.SIGKILL)
    replies = {}

    def complete():
        replies.update(
            {reply.metadata.reply_to_message_id: reply for reply in small_grid.pull_messages(set(ids) - set(replies))}
        )
        return len(replies) == len(ids)

    wait_until(complete)
    failed = [reply for reply in replies.values() if reply.has_error()]
    assert [reply.error.reason for reply in failed] == [
        "worker process died (SIGKILL: out of memory, or killed by hand)"
    ]
    node = next(m.metadata.dst_node_id for m in sent if m.metadata.message_id == failed[0].metadata.reply_to_message_id)
    (again,) = small_grid.send_and_receive(messages(small_grid, [node]))
    assert protocol.read_description(again.content).site == site


@pytest.mark.slow
def test_A13_a_site_out_of_memory_or_with_a_failed_gpu_is_a_lost_process_and_gets_a_new_one(small_grid):
    (id_,) = small_grid.push_messages(messages(small_grid, [FIRST_NODE_ID]))
    pid = wait_until(small_grid.busy, small_grid)["tbi_a"]
    (worker,) = [worker for worker in small_grid._workers if worker.process.pid == pid]
    small_grid._receive(worker, "error", "OutOfMemoryError")  # what the worker says of such an exception
    assert not _alive(pid)
    (reply,) = small_grid.pull_messages([id_])
    assert flower.is_crash(reply)
    assert reply.error.reason == "OutOfMemoryError"
    assert small_grid.busy() == {}
    (again,) = small_grid.send_and_receive(messages(small_grid, [FIRST_NODE_ID]))
    assert again.has_content()


def test_an_exception_at_a_site_is_an_error_reply_without_its_text(small_grid, tmp_path):
    header = Header("f" * 64, "pretrain", "base", -1, 1, "")
    task = ConfigRecord({"json": '{"stage": "Muster^Hans"}'})
    broken = RecordDict({"task": task, "header": ConfigRecord(header.as_dict())})
    (reply,) = small_grid.send_and_receive(messages(small_grid, [FIRST_NODE_ID], broken))
    assert reply.error.reason == "PayloadError"
    assert "Input should be 'pretrain' or 'finetune'" in (tmp_path / "logs" / "tbi_a.log").read_text()


@pytest.mark.slow
def test_work_that_is_overdue_is_stopped_and_says_so_and_the_site_takes_part_again(grid):
    grid.send_and_receive(messages(grid))  # so that both workers run
    site = FIRST_NODE_ID
    late = messages(grid, [site])
    grid.push_messages(late)
    pid = wait_until(grid.busy, grid)["tbi_a"]
    os.kill(pid, signal.SIGSTOP)  # hangs for ever
    assert grid.send_and_receive([], timeout=0.1) == []
    (reply,) = grid.send_and_receive(messages(grid, [site]), timeout=60)
    assert reply.has_content()
    (stopped,) = grid.pull_messages([late[0].metadata.message_id])
    assert stopped.error.reason == "stopped: the site is asked for something newer"
    assert grid.pull_messages([late[0].metadata.message_id]) == []
    wait_until(lambda: not _alive(pid))


@pytest.mark.slow
def test_a_worker_frozen_in_the_middle_of_a_reply_holds_up_no_other_site_and_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_process, "work", work_until_frozen)
    logs = tmp_path / "logs"
    with grid_in(tmp_path, workers=2) as grid:
        mail, nodes = Mailbox(grid), dict(zip(("tbi_a", "tbi_b", "sah_a"), grid.get_node_ids(), strict=False))

        def ask(deadline_s):
            contents = dict.fromkeys(nodes, describe())
            return mail.exchange(Ask(contents, protocol.DESCRIBE, nodes, deadline_s))

        assert ask(120).replies.keys() == nodes.keys()  # the workers run, and the scans are there
        began = time.monotonic()
        ask(120)
        deadline_s = max(3.0, 20 * (time.monotonic() - began))  # ample for the others, however busy the machine is
        (logs / "freeze").touch()
        used = ask(deadline_s).replies
        (missing,) = nodes.keys() - used.keys()
        assert [protocol.read_description(reply.content).site for reply in used.values()] == list(used)
        pid = grid.busy()[missing]
        assert _state(pid) == "T"
        assert ask(120).replies.keys() == nodes.keys()
        assert _state(pid) == ""
        frozen = [worker.reader for worker in grid._workers]
        (logs / "freeze").touch()
        grid.push_messages(messages(grid, [FIRST_NODE_ID]))
        wait_until(lambda: "T" in map(_state, grid.busy().values()), grid)
    assert not [reader for reader in frozen if reader.is_alive()]


@pytest.mark.slow
def test_leaving_the_block_by_an_error_ends_workers_in_the_middle_of_their_work(tmp_path):
    grid = grid_in(tmp_path, workers=2)

    def leave():
        with grid:
            grid.push_messages(messages(grid))
            pids.extend(wait_until(grid.busy, grid).values())
            raise KeyboardInterrupt

    pids: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        leave()
    assert pids
    assert not [pid for pid in pids if _alive(pid)]


def test_workers_end_when_the_parent_is_killed(tmp_path):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from sahfl.config import Study, load_study\n"
        "from sahfl.simulation.local_grid import LocalGrid\n"
        "from sahfl.simulation.simulate import site_configs\n"
        "if __name__ == '__main__':\n"
        "    folder = Path(sys.argv[2])\n"
        "    with LocalGrid(site_configs(load_study(Path(sys.argv[1])), folder), workers=2, logs=folder) as grid:\n"
        "        print(*[w.process.pid for w in grid._workers], flush=True)\n"
        "        time.sleep(600)\n"
    )
    path, study = tmp_path / "parent.py", tmp_path / "study.json"
    path.write_text(script)
    study.write_text(STUDY.model_dump_json())  # JSON is YAML
    with subprocess.Popen([sys.executable, path, study, tmp_path], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    wait_until(lambda: not [pid for pid in pids if _alive(pid)])


@pytest.mark.slow
def test_events_of_the_sites_reach_the_parent(small_grid):
    events = []
    with listening(events.append):
        small_grid.send_and_receive(messages(small_grid, [FIRST_NODE_ID]))
    mine = [type(event) for event in events if isinstance(event, SiteEvent) and event.site == "tbi_a"]
    assert (mine[0], mine[-1]) == (SiteStarted, SiteFinished)
    steps = [(event.done, event.total) for event in events if isinstance(event, SiteStep)]
    assert steps == [(1, 2), (2, 2), (1, 2), (2, 2)]  # two patients written, then checked


def _alive(pid: int) -> bool:
    return _state(pid) not in ("", "Z")


def _state(pid: int) -> str:
    """R running, S sleeping, T stopped, Z dead but not yet waited for; empty for no process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return ""
