"""Replies that come late, twice or never, and processes that die, by the ids of the fault list."""

import os
import shutil
import signal

import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from harness.tiny_study import TINY, changed

from sahfl.adapters import exchanged
from sahfl.config import Study, parse
from sahfl.errors import RunFailed
from sahfl.events import Paused, SiteStarted, Waiting, listening
from sahfl.federation import flower, protocol
from sahfl.federation.server.cell import Cell, Run
from sahfl.federation.server.mailbox import Ask, Mailbox
from sahfl.federation.server.roster import Member
from sahfl.federation.server.rounds import run_cell
from sahfl.federation.server.schedule import run_alone
from sahfl.federation.workers.worker import cause_of_death
from sahfl.networks import whole_network
from sahfl.payload import Header
from sahfl.run.folder import RunFolder
from sahfl.simulation.local_grid import LocalGrid
from sahfl.simulation.simulate import site_configs
from sahfl.task import SiteDescription, Task


class SlowPost(Grid):
    """A grid whose replies the test puts into the post itself; ``arrive`` makes them arrive at the next look."""

    def __init__(self, answer=lambda message, nth: []):
        flower.enter_run(1)
        self.sent, self.arrive, self._answer = [], [], answer

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return flower.new_message(content, dst_node_id, message_type, group_id, ttl)

    def get_node_ids(self):
        return [1, 2]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            ids.append(flower.give_id(message))
            self.sent.append(message)
            self.arrive += self._answer(message, len(self.sent))
        return ids

    def pull_messages(self, message_ids):
        arrived, self.arrive = self.arrive, []
        return arrived

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


NODES = {"bern": 5, "graz": 6}


def ask(mail, sites=("bern", "graz"), *, deadline_s=0.2, what="round 1"):
    contents = {site: RecordDict() for site in sites}
    return mail.exchange(Ask(contents, "train", NODES, deadline_s, what))


def ok(message):
    return Message(RecordDict(), reply_to=message)


def only(node):
    return lambda message, nth: [ok(message)] if message.metadata.dst_node_id == node else []


# --- A08: late and double replies -----------------------------------------------------------------------------------


def test_A08_a_late_reply_is_stale_by_name_and_never_the_answer_to_a_later_request():
    post = SlowPost(only(5))
    mail = Mailbox(post)
    first = ask(mail)
    assert (list(first.replies), first.stale) == (["bern"], [])
    late = ok(post.sent[1])
    post.arrive.append(late)
    post._answer = lambda message, nth: [ok(message)]
    second = ask(mail, what="round 2")
    assert second.stale == [{"site": "graz", "reason": "answers round 1, after its deadline"}]
    assert sorted(second.replies) == ["bern", "graz"]
    assert late not in second.replies.values()


def test_A08_a_reply_that_comes_late_in_a_pause_is_named_in_the_next_round():
    post = SlowPost(only(5))
    mail = Mailbox(post)
    ask(mail)
    post.arrive.append(ok(post.sent[1]))
    mail.pause(0.05)
    assert [item["site"] for item in ask(mail).stale] == ["graz"]


def test_A08_a_second_reply_to_a_request_is_dropped_and_named_whenever_it_comes():
    post = SlowPost(lambda message, nth: [ok(message), ok(message)])
    mail = Mailbox(post)
    first = ask(mail, ["bern"])
    assert first.replies.keys() == {"bern"}
    assert first.duplicate == [{"site": "bern", "reason": "a second reply to one request"}]
    post.arrive.append(ok(post.sent[0]))
    second = ask(mail, ["graz"])
    assert [item["site"] for item in second.duplicate] == ["bern", "graz"]
    assert second.stale == []


def test_A08_a_reply_to_nothing_that_was_asked_is_dropped_and_counted():
    stranger = flower.new_message(RecordDict(), 5, "train", "", None)
    flower.give_id(stranger)
    post = SlowPost(lambda message, nth: [ok(stranger), ok(message)])
    answers = ask(Mailbox(post), ["bern"])
    assert answers.stale == [{"site": "unknown", "reason": "answers no request that is remembered"}]
    assert answers.replies.keys() == {"bern"}


def test_A08_while_the_run_waits_it_says_for_whom_and_how_long():
    events = []
    with listening(events.append):
        ask(Mailbox(SlowPost(only(5))), deadline_s=0.8)
    waiting = [event for event in events if isinstance(event, Waiting)]
    assert len(waiting) >= 2
    assert {(event.sites, event.deadline_s) for event in waiting} == {(("graz",), 0.8)}
    assert all(0 < event.waited_s < 0.9 for event in waiting)


def test_A08_what_is_remembered_of_past_requests_is_bounded(monkeypatch):
    monkeypatch.setattr("sahfl.federation.server.mailbox.MOST_REMEMBERED", 5)
    post = SlowPost()
    mail = Mailbox(post)
    for _ in range(6):
        ask(mail, deadline_s=0.001)
    assert len(mail._overdue) == 5


def late_by_one_round(federate, monkeypatch):
    """Run a study in which sah_b's reply to fine-tuning round 1 of fold 0 comes in round 2, with sah_c's twice."""
    from harness.in_process import InProcessGrid

    held = []
    push = InProcessGrid.push_messages

    def deliver(self, messages):
        ids = push(self, messages)
        for site, request, reply in self.seen[-len(ids) :]:
            header = request.content.get("header", {})
            if request.metadata.message_type != "train" or (header["stage"], header["fold"]) != ("finetune", 0):
                continue
            if (site, header["round"]) == ("sah_b", 1):
                held.append(self._replies.pop(request.metadata.message_id))
            if (site, header["round"]) == ("sah_a", 2):
                self.extra = [*held, reply]
        return ids

    def pull(self, message_ids):
        extra, self.extra = getattr(self, "extra", []), []
        return [self._replies.pop(id_) for id_ in list(message_ids) if id_ in self._replies] + extra

    monkeypatch.setattr(InProcessGrid, "push_messages", deliver)
    monkeypatch.setattr(InProcessGrid, "pull_messages", pull)
    return federate(changed(TINY, rounds__deadline_s=1.0))[0]


@pytest.mark.slow
def test_A08_a_late_update_is_in_the_journal_and_its_site_takes_part_again_in_the_next_round(federate, monkeypatch):
    folder = late_by_one_round(federate, monkeypatch)
    first, second = [line for line in folder.journal() if line["event"] == "round" and line["fold"] == 0]
    assert first["missing"] == [{"site": "sah_b", "reason": "no reply within 1 s"}]
    assert [used["site"] for used in second["used"]] == ["sah_a", "sah_b", "sah_c"]
    assert second["stale"] == [{"site": "sah_b", "reason": "answers cp_lora-r2/fold-0, round 1, after its deadline"}]
    assert second["duplicate"] == [{"site": "sah_a", "reason": "a second reply to one request"}]
    assert folder.read_json("results.json")["methods"][1]["failed"] is None


# --- real processes -------------------------------------------------------------------------------------------------


def pretraining(tmp_path, scans, settings, on_event):
    """Pretraining alone, on the local grid; ``on_event(event, grid)`` is called with every event."""
    study = parse(Study, settings, where="test")
    shutil.copytree(scans, tmp_path / "sites")
    folder = RunFolder.create(tmp_path / "run", study)
    sites = [site for site in site_configs(study, tmp_path / "sites") if site.name.startswith("tbi")]
    config = study.pretrain
    task = Task(
        stage="pretrain", seed=3, views=study.views, model=study.model, folds=2, rounds=config.rounds,
        learning_rate=config.learning_rate, local=config.local,
    )  # fmt: skip
    header = Header(study.fingerprint(), stage="pretrain", method="pretrain", fold=-1, round=0, base="")
    known = {"source": "test", "n_volumes": 2, "n_patients": 2, "n_positive": 2, "volume_ml": 1.0, "n_refused": 0}
    known |= {"data": "0" * 16, "software": "0" * 16, "batches": "0" * 16, "confirmations": 0}
    counts = known | {"findings": {}, "fold_sizes": (1, 1), "fold_positive": (1, 1)}
    with LocalGrid(sites, workers=2, logs=tmp_path / "logs") as grid, listening(lambda event: on_event(event, grid)):
        while not all(worker.ready for worker in grid._workers):  # their imports are no part of a round
            grid.pull_messages([])
        ids = dict(zip((site.name for site in sites), grid.get_node_ids(), strict=True))
        roster = {name: Member(id_, SiteDescription(site=name, **counts)) for name, id_ in ids.items()}
        start = exchanged.read(whole_network(study.views, study.model, study.seed))
        cell = Cell("pretrain", task, header, config.sites)
        run_alone(run_cell(cell, start, Run(folder, study.rounds, roster)), Mailbox(grid))
    return [line for line in folder.journal() if line["event"] == "round"]


def stopping(number, *, times, pids=None):
    """Send tbi_b's worker a signal as soon as it has work, as often as told."""
    sent = [] if pids is None else pids

    def on_event(event, grid):
        if isinstance(event, SiteStarted) and event.site == "tbi_b" and len(sent) < times:
            sent.append(grid.busy()["tbi_b"])
            os.kill(sent[-1], number)

    return on_event


ONE_ROUND = changed(TINY, pretrain__rounds=1, rounds__quorum=0.5)


@pytest.mark.slow
def test_A13_a_trainer_that_dies_is_named_with_its_signal_and_its_site_is_asked_once_more(tmp_path, scans):
    (line,) = pretraining(tmp_path, scans, ONE_ROUND, stopping(signal.SIGSEGV, times=1))
    reason = "worker process died (SIGSEGV: a crash in native code)"
    assert line["retried"] == [{"site": "tbi_b", "reason": reason}]
    assert [used["site"] for used in line["used"]] == ["tbi_a", "tbi_b"]
    assert line["attempt"] == 1


@pytest.mark.slow
def test_A13_a_trainer_that_dies_twice_withdraws_its_site_from_the_round_and_no_other(tmp_path, scans):
    (line,) = pretraining(tmp_path, scans, ONE_ROUND, stopping(signal.SIGKILL, times=2))
    reason = "worker process died (SIGKILL: out of memory, or killed by hand)"
    assert line["retried"] == [{"site": "tbi_b", "reason": reason}]
    assert line["missing"] == [{"site": "tbi_b", "reason": f"error at the site: {reason} (details in the site's log)"}]
    assert [used["site"] for used in line["used"]] == ["tbi_a"]
    assert line["committed"]


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (-9, "SIGKILL: out of memory, or killed by hand"),
        (-7, "SIGBUS: /dev/shm or a disk is full"),
        (-6, "SIGABRT: a crash in native code"),
        (-15, "SIGTERM"),
        (-35, "signal 35"),
        (3, "exit code 3"),
    ],
)
def test_A13_the_end_of_a_process_is_said_in_words(code, cause):
    assert cause_of_death(code) == cause


@pytest.mark.slow
def test_A12_a_site_whose_log_cannot_be_written_still_trains(tmp_path, scans):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "tbi_a.log").symlink_to("/dev/full")
    (tmp_path / "logs" / "tbi_b.log").mkdir()
    (line,) = pretraining(tmp_path, scans, ONE_ROUND, lambda event, grid: None)
    assert [used["site"] for used in line["used"]] == ["tbi_a"]
    (missing,) = line["missing"]
    assert "StorageError: its log cannot be written (Is a directory)" in missing["reason"]


@pytest.mark.slow
def test_A08_a_stopped_site_is_waited_for_until_the_deadline_and_takes_part_in_the_next_round(tmp_path, scans):
    events, stop = [], stopping(signal.SIGSTOP, times=1)

    def on_event(event, grid):
        events.append(event)
        stop(event, grid)

    settings = changed(TINY, rounds__quorum=0.5, rounds__deadline_s=45.0)
    first, second = pretraining(tmp_path, scans, settings, on_event)
    assert first["missing"] == [{"site": "tbi_b", "reason": "no reply within 45 s"}]
    assert ("tbi_b",) in {event.working for event in events if isinstance(event, Waiting)}
    assert [used["site"] for used in second["used"]] == ["tbi_a", "tbi_b"]
    (stale,) = second["stale"]
    assert stale["site"] == "tbi_b"
    assert stale["reason"].startswith("answers pretrain, round 1, after its deadline (stopped: ")


@pytest.mark.slow
def test_A10_a_site_that_comes_back_in_the_pause_lets_the_round_be_committed(tmp_path, scans):
    pids: list[int] = []
    stop = stopping(signal.SIGSTOP, times=1, pids=pids)

    def on_event(event, grid):
        stop(event, grid)
        if isinstance(event, Paused):
            os.kill(pids[0], signal.SIGCONT)

    settings = changed(ONE_ROUND, rounds__quorum=1.0, rounds__deadline_s=45.0, rounds__pause_s=8.0)
    first, second = pretraining(tmp_path, scans, settings, on_event)
    assert (first["committed"], second["committed"], second["attempt"]) == (False, True, 2)
    assert second["stale"] == [{"site": "tbi_b", "reason": "answers pretrain, round 1, after its deadline"}]


@pytest.mark.slow
def test_A10_a_quorum_that_cannot_be_reached_is_no_endless_wait(tmp_path, scans):
    settings = changed(ONE_ROUND, rounds__quorum=1.0, rounds__deadline_s=60.0, rounds__attempts=1)
    with pytest.raises(RunFailed, match="tbi_b: error at the site: worker process died"):
        pretraining(tmp_path, scans, settings, stopping(signal.SIGKILL, times=2))


def test_a_reply_s_error_tells_a_lost_process_from_an_exception():
    flower.enter_run(1)
    request = flower.new_message(RecordDict(), 5, protocol.TRAIN, "", None)
    flower.give_id(request)
    assert flower.is_crash(flower.error_reply(request, "died", crash=True))
    assert not flower.is_crash(flower.error_reply(request, "DataError"))
    assert not flower.is_crash(ok(request))
