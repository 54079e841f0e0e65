"""The child process, where it cannot even start."""

import os
import signal
import threading

import pytest
from harness.dying_worker import die, die_the_second_time, note_threads
from harness.live_site import describe_request, wait_until
from harness.tiny_study import TINY
from sahfl_client import backoff
from sahfl_client.trainer import Trainer

from sahfl.config import Study, parse
from sahfl.errors import RunFailed
from sahfl.federation import flower, protocol
from sahfl.federation.workers import worker_process
from sahfl.simulation.simulate import site_configs


class Supervised:
    """A trainer in this process, and what it answered."""

    def __init__(self, folder, **settings):
        site = site_configs(parse(Study, TINY, where="test"), folder)[0].model_copy(update=settings)
        self.replies = []
        self.trainer = Trainer(site, on_reply=lambda *pair: self.replies.append(pair), on_step=lambda event: None)
        self.logs = site.folder / "logs"

    def run(self):
        self.trainer.wait_until_ready()
        threading.Thread(target=self.trainer.run, daemon=True).start()

    def ask(self):
        flower.enter_run(7)
        message = flower.new_message(describe_request(TINY), 5, protocol.DESCRIBE, "", None)
        flower.give_id(message)
        self.trainer.work(message)
        return message


@pytest.fixture
def supervise(tmp_path, monkeypatch):
    monkeypatch.setattr(backoff, "FIRST_S", 0.05)
    made = []

    def start(work, **settings):
        monkeypatch.setattr(worker_process, "work", work)
        made.append(Supervised(tmp_path, **settings))
        return made[-1]

    yield start
    for supervised in made:
        supervised.trainer.close()


def test_a_child_computes_with_as_many_threads_as_the_site_file_gives_in_all_its_libraries(supervise, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")  # counts more than the other for PyTorch
    supervised = supervise(note_threads, threads=2)
    with pytest.raises(RunFailed):
        supervised.trainer.wait_until_ready()
    assert (supervised.logs / "threads").read_text() == "2 2"
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_a_child_that_cannot_start_at_all_ends_the_service_with_its_cause(supervise):
    supervised = supervise(die)
    with pytest.raises(RunFailed, match=r"the worker process could not start \(exit code 7\)"):
        supervised.trainer.wait_until_ready()
    assert RunFailed.exit_code == 3


@pytest.mark.slow
def test_A13_a_child_that_cannot_start_again_is_a_lost_process_to_the_server_and_is_tried_until_it_starts(supervise):
    supervised = supervise(die_the_second_time)
    supervised.run()
    supervised.ask()
    wait_until(lambda: supervised.replies)
    assert supervised.replies[0][1].has_content()
    os.kill(supervised.trainer._worker.process.pid, signal.SIGKILL)
    wait_until(lambda: not supervised.trainer._worker.ready)
    message = supervised.ask()
    wait_until(lambda: len(supervised.replies) == 2)
    asked, reply = supervised.replies[1]
    assert asked is message
    assert flower.is_crash(reply)
    assert reply.error.reason == "worker process died (exit code 7)"
    (supervised.logs / "mended").touch()
    wait_until(lambda: supervised.trainer._worker.ready)
    supervised.ask()
    wait_until(lambda: len(supervised.replies) == 3)
    assert supervised.replies[2][1].has_content()
