"""Rounds: used, refused and missing replies, the quorum, and going on after an interruption."""

import json
import re
import shutil

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from harness.in_process import Stop, stop_at
from harness.tiny_study import TINY, changed

from sahfl.config import RoundsConfig
from sahfl.errors import RunFailed
from sahfl.federation.server.roster import needed
from sahfl.run.folder import RunFolder


def adapters(folder):
    return {
        str(p.relative_to(folder.path)): p.read_bytes() for p in sorted(folder.path.glob("adapters/**/*.safetensors"))
    }


def rounds(folder, **wanted):
    lines = [line for line in folder.journal() if line["event"] == "round"]
    return [line for line in lines if all(line[key] == value for key, value in wanted.items())]


def in_round(site, stage, round_=1):
    """A predicate for one site's training request of one round."""

    def matches(name, request):
        if name != site or request.metadata.message_type != "train":
            return False
        header = request.content["header"]
        return (header["stage"], header["round"]) == (stage, round_)

    return matches


@pytest.mark.parametrize(
    ("quorum", "sites", "replies"), [(0.6, 3, 2), (0.6, 5, 3), (1.0, 4, 4), (0.01, 3, 1), (0.75, 4, 3)]
)
def test_the_quorum_is_a_share_of_the_stage_s_sites_rounded_up(quorum, sites, replies):
    assert needed(RoundsConfig(quorum=quorum), sites) == replies


def with_body(reply, change):
    array = reply.content["state"]["flat"]
    flat = np.frombuffer(array.data, "<f4").copy()
    body = change(flat).astype("<f4").tobytes()
    reply.content["state"] = ArrayRecord({"flat": Array("float32", (len(body) // 4,), array.stype, body)})
    return reply


def with_record(reply, record, **values):
    reply.content[record].update(values)
    return reply


BROKEN = {
    "nan": (
        lambda reply: with_body(reply, lambda flat: np.where(np.arange(flat.size) == 3, np.nan, flat)),
        "NaN or inf",
    ),
    "short": (lambda reply: with_body(reply, lambda flat: flat[:-1]), "got .* bytes, expected"),
    "renamed": (
        lambda reply: with_record(reply, "layout", names=["x", *list(reply.content["layout"]["names"])[1:]]),
        "is missing",
    ),
    "other-round": (lambda reply: with_record(reply, "header", round=9), "round: got '9', expected 1"),
    "other-base": (lambda reply: with_record(reply, "header", base="0" * 64), "base: got '0000"),
    "other-version": (lambda reply: with_record(reply, "header", sahfl="0.0.9"), "sahfl: got '0.0.9'"),
    "no-volumes": (lambda reply: with_record(reply, "metrics", n_volumes=0), "n_volumes: got '0'"),
    "more-volumes-than-registered": (lambda reply: with_record(reply, "metrics", n_volumes=500), "the site registered"),
    "infinite-loss": (lambda reply: with_record(reply, "metrics", loss=float("inf")), "loss: got 'inf'"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "short")) for name in BROKEN])
def test_an_unusable_reply_is_refused_with_its_reason_and_the_round_goes_on(federate, name):
    break_reply, message = BROKEN[name]
    matches = in_round("sah_b", "finetune")
    one_round = changed(TINY, finetune__rounds=1, pretrain__rounds=1)
    folder, _ = federate(one_round, change=lambda site, req, rep: break_reply(rep) if matches(site, req) else rep)
    for line in rounds(folder, stage="finetune"):
        assert [site["site"] for site in line["used"]] == ["sah_a", "sah_c"]
        (refused,) = line["refused"]
        assert refused["site"] == "sah_b"
        assert re.search(message, refused["reason"]), refused["reason"]


def test_a_site_without_a_reply_is_missing_in_that_round_only(federate):
    matches = in_round("sah_b", "finetune", round_=1)
    settings = changed(TINY, rounds__deadline_s=0.2)
    folder, _ = federate(settings, change=lambda site, req, rep: None if matches(site, req) else rep)
    for line in rounds(folder, stage="finetune"):
        missing = [item["site"] for item in line["missing"]]
        assert missing == (["sah_b"] if line["round"] == 1 else [])
        assert line["committed"]


def test_below_the_quorum_the_round_is_tried_again_and_then_the_run_fails_naming_sites_and_reasons(federate, tmp_path):
    def fail(site, request, reply):
        return with_record(reply, "metrics", n_volumes=-1) if request.metadata.message_type == "train" else reply

    with pytest.raises(
        RunFailed, match=r"pretrain, round 1, attempt 2: got 0 usable replies of 2 .*tbi_a: n_volumes"
    ) as info:
        federate(TINY, change=fail)
    assert info.value.exit_code == 3
    lines = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    assert [(line["attempt"], line["committed"]) for line in lines if line["event"] == "round"] == [
        (1, False),
        (2, False),
    ]


@pytest.mark.slow
def test_a_second_attempt_commits_when_the_sites_are_back(federate):
    tries = []

    def fail_once(site, request, reply):
        if request.metadata.message_type == "train" and request.content["header"]["stage"] == "pretrain":
            tries.append(site)
            if len(tries) <= 2:
                return with_record(reply, "metrics", loss=float("nan"))
        return reply

    folder, _ = federate(changed(TINY, finetune__rounds=1), change=fail_once)
    first, second, *_ = rounds(folder, stage="pretrain")
    assert (first["attempt"], first["committed"], second["attempt"], second["committed"]) == (1, False, 2, True)


@pytest.mark.parametrize("at", [2, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 4, 9, 15, 20, 23, 29))])
def test_a_run_that_stopped_anywhere_resumes_to_bit_identical_adapters(federate, whole, at):
    reference, _ = whole
    with pytest.raises(Stop):
        federate(TINY, change=stop_at(at))
    resumed, _ = federate(TINY)
    assert adapters(resumed) == adapters(reference)
    assert len(adapters(resumed)) == 2
    for part in ("base", "methods", "comparisons"):
        assert resumed.read_json("results.json")[part] == reference.read_json("results.json")[part]


@pytest.fixture
def finished(whole, tmp_path):
    """A finished run that a test may go on with."""
    shutil.copytree(whole[0].path, tmp_path / "run")


def test_a_committed_round_is_not_asked_again(federate, finished):
    _, grid = federate(TINY)
    assert [
        request.metadata.message_type for _, request, _ in grid.seen if request.metadata.message_type == "train"
    ] == []


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_ends_the_same(federate, whole, finished, tmp_path):
    reference, folder = whole[0], RunFolder.reopen(tmp_path / "run")
    newest = sorted((folder.path / "state" / "cp_lora-r2" / "fold-1").glob("*"))[-1]
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content)
    for path in folder.path.glob("adapters/**/*.safetensors"):
        path.unlink()
    again, grid = federate(TINY)
    assert {"event": "damaged_checkpoint", "cell": "cp_lora-r2/fold-1", "file": newest.name} in again.journal()
    assert adapters(again) == adapters(reference)
    asked = [m.content["header"]["round"] for _, m, _ in grid.seen if m.metadata.message_type == "train"]
    assert asked == [2, 2, 2]


@pytest.mark.slow
def test_a_reply_is_matched_by_its_request_not_by_what_it_says_of_its_sender(federate):
    def rename(site, request, reply):
        if request.metadata.message_type == "train":
            reply.metadata.__dict__["_src_node_id"] = 1
        return reply

    folder, _ = federate(changed(TINY, finetune__rounds=1), change=rename)
    assert [s["site"] for s in rounds(folder, stage="finetune")[0]["used"]] == ["sah_a", "sah_b", "sah_c"]


@pytest.mark.slow
def test_a_site_that_says_it_is_another_is_out(federate):
    def impersonate(site, request, reply):
        if request.metadata.message_type == "query.describe" and site == "sah_c":
            record = reply.content["description"]
            record["json"] = str(record["json"]).replace("sah_c", "sah_a")
        return reply

    folder, _ = federate(changed(TINY, finetune__rounds=1), change=impersonate)
    (line,) = [line for line in folder.journal() if line["event"] == "site_out"]
    assert line["site"] == "sah_c"
    assert "describes site 'sah_a', expected 'sah_c'" in line["reason"]
    (site,) = [site for site in folder.read_json("results.json")["sites"] if site["site"] == "sah_c"]
    assert site["out"] == line["reason"]


@pytest.mark.slow
def test_a_site_missing_in_evaluation_is_named_and_left_out_of_the_comparison(federate):
    def drop(site, request, reply):
        if (
            request.metadata.message_type == "evaluate"
            and site == "sah_b"
            and request.content["header"]["method"] != "zero_shot"
        ):
            return None
        return reply

    folder, _ = federate(changed(TINY, rounds__deadline_s=0.2), change=drop)
    results = folder.read_json("results.json")
    zero, tuned = results["methods"]
    found = [part["metrics"]["lesion_f1"]["overall"]["n"] for part in (zero, tuned, results["comparisons"][0])]
    assert found == [7, 5, 5]
    assert [(item["fold"], item["site"]) for item in tuned["not_evaluated"]] == [(0, "sah_b"), (1, "sah_b")]
