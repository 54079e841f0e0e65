"""Several cells at a time: the same results, sites that do not wait for each other, deadlines of their own."""

import json
import time

import pytest
from flwr.app import Message, RecordDict
from harness.in_process import Stop, stop_at
from harness.tiny_study import TINY, changed

from sahfl.events import listening
from sahfl.federation import flower
from sahfl.federation.server.mailbox import Answers, Ask, Exchange, Mailbox, _emit_waiting
from sahfl.federation.server.schedule import Job, Pause, run_alone, run_jobs

METHODS = [
    {"method": "zero_shot"},
    {"method": "cp_lora", "rank": 2},
    {"method": "cp_lora", "rank": 2, "trained_at": "sah_a"},
    {"method": "cp_lora", "rank": 2, "trained_at": "sah_b"},
]
GRID = changed(TINY, finetune__methods=METHODS)
NODES = {"bern": 5, "graz": 6}


def adapters(folder):
    return {str(p.relative_to(folder.path)): p.read_bytes() for p in sorted(folder.path.glob("adapters/*/*/*"))}


def numbers(folder):
    """Everything of results.json but times."""
    results = folder.read_json("results.json")
    for line in results["rounds"]:
        del line["seconds"]
        for site in line["used"]:
            del site["seconds"]
    return {part: results[part] for part in ("base", "methods", "comparisons", "rounds", "sites", "cells")}


@pytest.fixture(scope="module")
def one(federate_once):
    """The study by one lane."""
    return federate_once(GRID)[0]


@pytest.mark.slow
def test_several_lanes_end_in_the_same_files_as_one(federate, one):
    several, _ = federate(GRID, name="several", lanes=3)
    cells = [(line["method"], line["fold"]) for line in several.journal() if line["event"] == "round"]
    assert cells != sorted(cells, key=cells.index)  # they took turns
    assert adapters(several) == adapters(one)
    assert numbers(several) == numbers(one)


@pytest.mark.slow
def test_several_lanes_end_in_the_same_files_as_one_also_after_a_crash(federate, one):
    for nth in (30, 20):  # in the middle of fine-tuning; the second start has fewer requests left
        with pytest.raises(Stop):
            federate(GRID, name="crashed", lanes=3, change=stop_at(nth))
    crashed, _ = federate(GRID, name="crashed", lanes=2)
    assert adapters(crashed) == adapters(one)
    assert numbers(crashed) == numbers(one)


class Post:
    """A grid whose sites answer when the test says so."""

    waits = True

    def __init__(self):
        flower.enter_run(1)
        self.sent, self.replies = [], []

    def push_messages(self, messages):
        messages = list(messages)
        self.sent += messages
        return [flower.give_id(message) for message in messages]

    def pull_messages(self, ids):
        arrived, self.replies = self.replies, []
        return arrived

    def answer(self, index):
        self.replies.append(Message(RecordDict(), reply_to=self.sent[index]))


def ask(*sites, what="", deadline_s=60.0):
    return Ask({site: RecordDict() for site in sites}, "train", NODES, deadline_s, what)


def asked(post):
    names = {node: site for site, node in NODES.items()}
    return [names[message.metadata.dst_node_id] for message in post.sent]


def test_a_site_is_asked_for_one_thing_at_a_time_and_its_deadline_begins_when_it_is_asked():
    post = Post()
    mail = Mailbox(post)
    first = mail.open(ask("bern", "graz", what="first"))
    second = mail.open(ask("bern", what="second", deadline_s=0.0))  # over at the first look, once it is sent
    mail.step()
    assert asked(post) == ["bern", "graz"]
    assert not second.done
    post.answer(0)
    mail.step()
    assert asked(post) == ["bern", "graz", "bern"]
    mail.step()
    assert second.done
    assert second.answers.replies == {}
    post.answer(1)
    mail.step()
    assert (first.done, sorted(first.answers.replies)) == (True, ["bern", "graz"])


def test_a_site_that_missed_its_deadline_is_free_for_another_cell_and_named_when_it_answers():
    post = Post()
    mail = Mailbox(post)
    late = mail.open(ask("bern", what="late", deadline_s=0.0))
    mail.step()
    assert late.done
    other = mail.open(ask("bern", what="other"))
    post.answer(0)
    post.answer(1)
    mail.step()
    assert list(other.answers.replies) == ["bern"]
    assert other.answers.stale == [{"site": "bern", "reason": "answers late, after its deadline"}]


def test_what_is_awaited_counts_from_when_the_last_site_was_asked_and_names_the_cell():
    began = time.monotonic()
    wanted = Ask({site: RecordDict() for site in NODES}, "train", NODES, 60.0, cell="cp_lora-r2/fold-0")
    exchange = Exchange(wanted, waiting={"1": "bern", "2": "graz"}, sent={"bern": began - 55, "graz": began - 35})
    exchange.reported = began - 30
    heard = []
    with listening(heard.append):
        _emit_waiting(exchange, {"graz"})
    (event,) = heard
    assert (event.sites, event.working, event.cell) == (("bern",), ("graz",), "cp_lora-r2/fold-0")
    assert event.deadline_s == 60.0
    assert 35 <= event.waited_s < 55


class Prompt(Post):
    """Every site answers at once."""

    def push_messages(self, messages):
        ids = super().push_messages(messages)
        for index in range(len(self.sent) - len(ids), len(self.sent)):
            self.answer(index)
        return ids


def telling(log, name, *wanted):
    """A job that asks for one thing after the other, and tells of each step."""

    def steps():
        for number, want in enumerate(wanted):
            answers = yield want
            assert isinstance(answers, Answers)
            log.append(f"{name}{number}")

    return steps


def test_with_one_lane_jobs_run_one_after_the_other_with_two_they_take_turns():
    for lanes, order in ((1, ["a0", "a1", "b0", "b1"]), (2, ["a0", "b0", "a1", "b1"])):
        log = []
        jobs = [Job((site,), telling(log, name, ask(site), ask(site))) for name, site in (("a", "bern"), ("b", "graz"))]
        run_jobs(jobs, Mailbox(Prompt()), lanes=lanes)
        assert log == order


def test_the_next_job_is_the_one_whose_sites_have_least_to_do():
    log = []
    jobs = [Job((site,), telling(log, name, ask(site))) for name, site in (("a", "bern"), ("b", "bern"), ("c", "graz"))]
    run_jobs(jobs, Mailbox(Prompt()), lanes=2)
    assert log == ["a0", "c0", "b0"]


def test_while_one_cell_pauses_the_others_go_on():
    log = []
    jobs = [
        Job(("bern",), telling(log, "a", Pause(0.1), ask("bern"))),
        Job(("graz",), telling(log, "b", ask("graz"), ask("graz"))),
    ]
    run_jobs(jobs, Mailbox(Prompt()), lanes=2)
    assert log == ["b0", "b1", "a0", "a1"]


def test_an_error_in_one_cell_ends_the_others_where_they_are():
    ended = []

    def failing():
        yield ask("bern")
        raise RuntimeError("below the quorum")

    def other():
        try:
            while True:
                yield Pause(0.01)
        finally:
            ended.append(True)

    with pytest.raises(RuntimeError, match="below the quorum"):
        run_jobs([Job(("bern",), failing), Job(("graz",), other)], Mailbox(Prompt()), lanes=2)
    assert ended == [True]


def test_a_cell_alone_gives_its_result():
    def steps():
        answers = yield ask("bern")
        yield Pause(0.001)
        return sorted(answers.replies)

    assert run_alone(steps(), Mailbox(Prompt())) == ["bern"]


@pytest.mark.slow
def test_a_round_that_fails_names_its_cell_whatever_else_runs(federate, tmp_path):
    def refuse(site, request, reply):
        if request.metadata.message_type == "train" and request.content["header"]["method"].endswith("at-sah_b"):
            reply.content["metrics"]["n_volumes"] = 0
        return reply

    with pytest.raises(Exception, match="cp_lora-r2-at-sah_b/fold-0, round 1, attempt 2"):
        federate(GRID, change=refuse, lanes=3)
    lines = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    failed = [line["method"] for line in lines if line["event"] == "round" and not line["committed"]]
    assert failed == ["cp_lora-r2-at-sah_b"] * 2
