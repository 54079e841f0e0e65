"""A kind of message is added: one file, and one entry in the table of kinds. All else stays as it is."""

from dataclasses import replace

import pytest
from flwr.app import ConfigRecord, RecordDict
from harness.asking import header_of, task_of
from harness.tiny_study import TINY, changed
from harness.toy_kind import TOY, count_scans

from sahfl.adapters import digest
from sahfl.adapters.files import load_tensors
from sahfl.errors import PolicyRefused
from sahfl.federation import protocol
from sahfl.federation.requests import Requests, question
from sahfl.federation.server.mailbox import Ask, Mailbox
from sahfl.federation.site import app as site_app
from sahfl.federation.site.audit import FILE, read_lines
from sahfl.federation.site.dry_run import dry_run
from sahfl.federation.site.guard import guarded
from sahfl.federation.site.kinds.table import KINDS, find_kind
from sahfl.federation.site.policy import check_outgoing, check_request
from sahfl.progress import doing_text
from sahfl.run.folder import BASE_FILE

SETTINGS = changed(TINY, pretrain__rounds=1, finetune__rounds=1, finetune__methods=[{"method": "cp_lora", "rank": 2}])
UNKNOWN = "query.files"


@pytest.fixture
def enter(monkeypatch):
    """Enter a kind in the table, as if a process began with it there: the app of a site is made once a process."""

    def enter(kind):
        monkeypatch.setitem(KINDS, kind.type, kind)
        monkeypatch.setattr(site_app, "app", site_app.make_app())

    return enter


def ask(folder, grid):
    """A step of the server: the toy question to every site, and the replies by site."""
    study, (base, _) = folder.study(), load_tensors(folder.path / BASE_FILE)
    requests = Requests(study, study.fingerprint(), digest(base))
    content = protocol.request(question(requests), requests.header("finetune", "toy"), {})
    nodes = {site.name: node for node, site in grid.nodes.items()}
    return Mailbox(grid).exchange(Ask(dict.fromkeys(nodes, content), TOY.type, nodes, deadline_s=60.0)).replies


def last_line(grid, site):
    (config,) = [config for config in grid.nodes.values() if config.name == site]
    return list(read_lines(config.folder / FILE))[-1]


def test_a_study_with_a_new_kind_asks_it_audits_it_and_lists_it(enter, federate):
    enter(TOY)
    folder, grid = federate(SETTINGS)
    replies = ask(folder, grid)
    assert {site: reply.content["count"]["n"] for site, reply in replies.items()} == {
        "tbi_a": 2, "tbi_b": 2, "sah_a": 3, "sah_b": 2, "sah_c": 2,
    }  # fmt: skip
    line, n_bytes = last_line(grid, "sah_a"), protocol.n_bytes(replies["sah_a"].content)
    assert (line["event"], line["words"]) == (
        "answered",
        f"Sent to the server: the number of usable scans ({n_bytes} bytes).",
    )
    assert (line["details"]["asked"], line["details"]["n"]) == ("query.toy", 3)
    assert doing_text("query.toy") == "counting scans"
    config = next(iter(grid.nodes.values()))
    for study in (folder.study(), None):
        assert "\n\nonce (toy):\n  leaves: the number of usable scans\n\n" in dry_run(config, study)


@pytest.mark.slow
def test_a_site_whose_policy_does_not_allow_the_new_kind_refuses_it(enter, federate):
    enter(TOY)
    folder, grid = federate(SETTINGS)
    for node, config in grid.nodes.items():
        grid.nodes[node] = config.model_copy(update={"policy": config.policy.model_copy(update={"evaluation": False})})
    assert {reply.error.reason for reply in ask(folder, grid).values()} == {"PolicyRefused"}
    line = last_line(grid, "sah_b")
    assert line["words"] == "Refused: the server asked for the number of usable scans."
    assert "policy.evaluation: got a request to count scans, expected none" in line["details"]["reason"]
    said = dry_run(next(iter(grid.nodes.values())), folder.study())
    assert "count of scans: refused, nothing leaves\n  policy.evaluation: got a request to count scans" in said


def with_names(site, content):
    answer = count_scans(site, content)
    answer["cases"] = ConfigRecord({"names": ["Muster_Hans"]})
    return answer


LEAKS = {
    "a record more": (replace(TOY, answer=with_names), {}, "got records ['cases', 'count', 'header'], expected"),
    "too few": (TOY, {"smallest_group": 5, "smallest_bootstrap": 5}, "got a count of 3 scans, expected 5"),
}


@pytest.mark.parametrize(("kind", "policy", "reason"), LEAKS.values(), ids=LEAKS.keys())
def test_an_answer_of_the_new_kind_that_must_not_leave_is_kept_back(enter, hospital, kind, policy, reason):
    enter(kind)
    hospital.allow(**policy)
    with pytest.raises(site_app.SiteFailure, match=r"^PolicyRefused$"):
        hospital.send(TOY.type, hospital.request(task_of()))
    assert f"the answer to 'query.toy' is kept back: {reason}" in hospital.audit()[-1]["details"]["reason"]


REFUSALS = {
    "table": lambda site, unknown: find_kind(unknown),
    "display": lambda site, unknown: doing_text(unknown),
    "policy": lambda site, unknown: check_request(site, unknown, task_of(), header_of(task_of())),
    "what leaves": lambda site, unknown: check_outgoing(site, unknown, task_of(), header_of(task_of()), RecordDict()),
}


@pytest.mark.parametrize("unknown", [TOY.type, "query.files", "train.files"])
@pytest.mark.parametrize("refuses", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_kind_that_is_not_in_the_table_is_refused(hospital, unknown, refuses):
    with pytest.raises(PolicyRefused, match=rf"requests: got '{unknown}', expected one of query.describe"):
        refuses(hospital.config, unknown)


def test_a_kind_that_is_not_in_the_table_gets_no_work_and_a_line_in_the_audit_log(hospital):
    with pytest.raises(PolicyRefused, match=r"requests: got 'query\.files'"):
        guarded(hospital.config, "query.files", hospital.request(task_of()), pytest.fail)
    assert hospital.audit()[-1]["words"] == "Refused: the server asked for something unknown ('query.files')."
    with pytest.raises(ValueError, match="No query function registered with name 'files'"):
        hospital.send("query.files", hospital.request(task_of()))
