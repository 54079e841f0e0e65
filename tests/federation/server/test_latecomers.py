"""Sites that were away when a study began come back at a later round; with everybody there, nothing is sent."""

import pytest
from flwr.app import Message
from harness.in_process import InProcessGrid
from harness.tiny_study import TINY, changed

from sahfl.federation import flower

ROUNDS = changed(TINY, pretrain__rounds=3, finetune__methods=[{"method": "cp_lora", "rank": 2}], rounds__quorum=0.5)


class Away:
    """A site is away until it was asked so often; requests meanwhile fail as the embedded SuperLink fails them."""

    def __init__(self, site, times, *, kinds=("query.describe", "train", "query.install_base", "evaluate")):
        self.site, self.left, self.kinds = site, times, kinds

    def __call__(self, site, request: Message, reply: Message):
        if site == self.site and self.left > 0 and request.metadata.message_type in self.kinds:
            self.left -= 1
            return flower.error_reply(request, "not connected for 600 s", unreachable=True)
        return reply


def used(folder, stage, fold=None):
    rounds = [line for line in folder.journal() if line["event"] == "round" and line["stage"] == stage]
    return [[site["site"] for site in line["used"]] for line in rounds if line["fold"] == fold]


def test_a_site_that_was_away_at_the_start_is_asked_again_and_trains_in_a_later_round(federate):
    folder, _ = federate(ROUNDS, change=Away("tbi_b", 1))
    assert used(folder, "pretrain") == [["tbi_a"], ["tbi_a", "tbi_b"], ["tbi_a", "tbi_b"]]
    (out,) = [line for line in folder.journal() if line["event"] == "site_out"]
    assert out == {"event": "site_out", "site": "tbi_b", "reason": "not connected for 600 s"}
    assert [line["site"] for line in folder.journal() if line["event"] == "described"][-1] == "tbi_b"


@pytest.mark.slow
def test_a_site_that_missed_the_base_installs_it_before_it_trains(federate):
    folder, grid = federate(ROUNDS, change=Away("sah_b", 1, kinds=("query.install_base",)))
    assert used(folder, "finetune", 0)[0] == ["sah_a", "sah_c"]
    assert used(folder, "finetune", 1) == [["sah_a", "sah_b", "sah_c"]] * 2
    asked = [request.metadata.message_type for site, request, _ in grid.seen if site == "sah_b"]
    assert asked.count("query.install_base") == 2


@pytest.mark.slow
def test_a_site_that_is_late_while_two_cells_are_worked_on_is_let_in_once_and_into_both(federate):
    study = changed(ROUNDS, finetune__rounds=4)
    folder, grid = federate(study, change=Away("sah_b", 1, kinds=("query.install_base",)), lanes=2)
    asked = [request.metadata.message_type for site, request, _ in grid.seen if site == "sah_b"]
    assert (asked.count("query.describe"), asked.count("query.install_base")) == (2, 2)
    assert [len(sites) for sites in used(folder, "finetune", 0)] == [2, 3, 3, 3]
    assert [len(sites) for sites in used(folder, "finetune", 1)] == [3, 3, 3, 3]
    lines = [line["fold"] for line in folder.journal() if line["event"] == "round" and line["stage"] == "finetune"]
    assert lines == [0, 1] * 4


@pytest.mark.slow
def test_a_site_that_stays_away_costs_nothing_and_is_named_in_every_round(federate, monkeypatch):
    monkeypatch.setattr(InProcessGrid, "get_node_ids", lambda grid: [])
    folder, grid = federate(ROUNDS, change=Away("sah_b", 10**6))
    rounds = [line for line in folder.journal() if line["event"] == "round" and line["stage"] == "finetune"]
    missing = [{"site": "sah_b", "reason": "not in the roster: not connected for 600 s"}]
    assert all(line["missing"] == missing for line in rounds)
    assert len([site for site, _, _ in grid.seen if site == "sah_b"]) == 1


@pytest.mark.slow
def test_a_site_that_answers_with_an_error_of_its_own_is_not_asked_again(federate):
    def fail(site, request, reply):
        if site == "sah_b" and request.metadata.message_type == "query.describe":
            return flower.error_reply(request, "DataError")
        return reply

    _, grid = federate(ROUNDS, change=fail)
    assert len([site for site, _, _ in grid.seen if site == "sah_b"]) == 1


@pytest.mark.slow
def test_with_every_site_there_nothing_more_is_asked(federate):
    _, grid = federate(ROUNDS)
    asked = [request.metadata.message_type for site, request, _ in grid.seen if site == "sah_b"]
    assert asked.count("query.describe") == asked.count("query.install_base") == 1
