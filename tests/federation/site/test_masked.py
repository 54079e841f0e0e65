"""A site in masked rounds: what it refuses a hostile server, what it notes, and what of it never reaches the server."""

import json
import resource
import stat
import zlib

import numpy as np
import pytest
from flwr.app import ConfigRecord
from harness.masked_training import MASKING, METHOD, SITES, STEPS

from sahfl.aggregation.robust import change_norm
from sahfl.errors import RunFailed
from sahfl.federation import protocol
from sahfl.federation.masked_terms import Terms
from sahfl.federation.server.rounds import run_cell
from sahfl.federation.server.schedule import run_alone
from sahfl.federation.signatures import document
from sahfl.federation.site.answered import MASKED, forget_round
from sahfl.federation.site.known_roster import FILE as ROSTER
from sahfl.federation.site.masked_once import DRAWN
from sahfl.federation.tensors import read_state
from sahfl.masking.encoding import pack, unpack
from sahfl.masking.ring import FixedPoint
from sahfl.payload import pack as packed
from sahfl.trust.roster import load_roster

KEYS, SHARES, TRAIN, SURVIVORS, REVEAL = STEPS


@pytest.fixture
def training(masked_training, kits):
    return lambda **more: masked_training(kits=kits, **more)


def cut(record, *names, begin=0, end=None):
    for name in names:
        found = unpack(zlib.decompress(record[name])) if name == "signatures" else list(record[name])
        record[name] = zlib.compress(pack(*found[begin:end])) if name == "signatures" else found[begin:end]


def without_last_site(record):
    cut(record, "listed", "keys", "signatures", end=-1)


def without_first_site(record):
    cut(record, "listed", "keys", "signatures", begin=1)


def other_survivors(record):
    record["survivors"] = ["bern", "chur", "wels"]


def swapped(record):
    record["sealed"] = [record["sealed"][1], record["sealed"][0], *record["sealed"][2:]]


def other_keys(record):
    record["keys"] = [*record["keys"][:-1], bytes(reversed(record["keys"][-1]))]


def signatures_of_others(record):
    first, *others = unpack(zlib.decompress(record["signatures"]))
    record["signatures"] = zlib.compress(pack(*others, first))


BROKEN = {
    "endless": zlib.compress(bytes(50_000_000)),
    "not compressed": b"certificates",
    "cut": zlib.compress(pack(b"a", b"b"))[:-4],
    "too few": zlib.compress(pack(b"a", b"b")),
    "too large": zlib.compress(pack(*[bytes(20_000)] + [b"a"] * 4)),
    "two": zlib.compress(pack(*[b"a"] * 5)) * 2,
}
"""Signatures as no server of ours sends them."""


HOSTILE = {
    "own volumes": (KEYS, lambda r: r.update(volumes=[n + 1 for n in r["volumes"]]), "volumes, expected"),
    "keys of nobody": (SHARES, other_keys, "did not sign these keys"),
    "signatures of others": (SHARES, signatures_of_others, "did not sign these keys"),
    "without itself": (SHARES, without_first_site, "own keys"),
    "another attempt": (SHARES, lambda r: r.update(attempt=7), "gave no keys for this round"),
    "swapped shares": (TRAIN, swapped, "shares of"),
    "too few sharers": (TRAIN, lambda r: r.update(sharers=["bern", "wels"]), "too few sharers"),
    "another start": (TRAIN, lambda r: r.update(start="0" * 64), "attempt of this training in another way"),
    "too few survivors": (SURVIVORS, lambda r: r.update(survivors=["bern", "wels"]), "too few survivors"),
    "survivors that did not share": (SURVIVORS, other_survivors, "not of the list"),
    "other survivors": (REVEAL, lambda r: cut(r, "survivors", end=-1), "other survivors than this site confirmed"),
    "too few signed": (REVEAL, lambda r: cut(r, "signers", "signatures", end=2), "too few confirmed"),
    "signed by nobody": (REVEAL, signatures_of_others, "did not confirm the same"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "reason"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_request_of_a_hostile_server_is_refused_with_a_line_in_the_audit_log(training, kind, change, reason):
    there = training()

    def before(site, message):
        if site == "bern" and message.metadata.message_type == kind:
            message.content["masking"] = ConfigRecord(dict(message.content["masking"]))  # the others' is the same one
            change(message.content["masking"])

    there.run(before=before)
    refused = [line for line in there.audit("bern") if line["event"] == "refused"]
    assert refused, there.audit("bern")[-1]
    assert refused[0]["details"]["error"] == "MaskingRefused"
    assert reason in refused[0]["details"]["reason"]
    assert all(line["event"] != "refused" for site in SITES[1:] for line in there.audit(site))
    assert {used["site"] for used in there.rounds()[-1]["used"]} >= set(SITES[1:])  # the others go on without it


@pytest.mark.parametrize("signatures", BROKEN.values(), ids=BROKEN.keys())
def test_signatures_that_cannot_be_read_are_refused_before_they_fill_the_memory(training, signatures):
    there = training()
    there.run()
    for kind in (SHARES, REVEAL):
        asked = there.asked("bern", kind)
        asked["masking"] = ConfigRecord(dict(asked["masking"]) | {"signatures": signatures})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert there.ask("bern", kind, asked) == "PayloadError"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_each_step_is_answered_once_the_same_request_by_the_same_bytes_and_another_one_never(training):
    there = training(rounds=2)
    there.run()
    for kind in STEPS:
        again = there.ask("graz", kind, there.asked("graz", kind))
        assert document(kind, again) == document(kind, there.sent(kind)["graz"].content), kind
    another = there.asked("graz", SHARES)
    without_last_site(another["masking"])
    assert there.ask("graz", SHARES, another) == "MaskingRefused"
    assert "another list of sites than was answered" in there.audit("graz")[-1]["details"]["reason"]
    train = there.asked("graz", TRAIN)
    train["masking"]["attempt"] = 2
    assert there.ask("graz", TRAIN, train) == "RoundAlreadyAnswered"
    for kind in (KEYS, SHARES, SURVIVORS, REVEAL):  # of the round before
        assert there.ask("graz", kind, there.asked("graz", kind, 0)) == "MaskingRefused"
        assert "same or a later round" in there.audit("graz")[-1]["details"]["reason"]


def test_a_site_that_demands_masks_refuses_a_plain_request_and_takes_part_in_a_masked_round(training):
    policy = {"unmasked": False}
    plain = training(masked=False, policy=policy, attempts=1)
    with pytest.raises(Exception, match="PolicyRefused"):
        plain.run()
    line = plain.audit("bern")[-1]
    assert line["words"] == "Refused: the server asked for a round of training."
    assert "policy.unmasked: got a training whose update would leave in the clear" in line["details"]["reason"]
    masked = training(policy=policy)
    masked.run()
    (line,) = [line for line in masked.audit("bern") if line["details"].get("asked") == TRAIN]
    assert line["words"].startswith(
        "Sent to the server: masked, of which the server learns the sum over the sites alone:"
    )
    assert "loss" not in line["words"]
    assert line["details"]["masked"] == {"clip": 50.0, "threshold": 3}
    assert line["details"]["metrics"] == ["n_volumes", "seconds"]


def test_the_same_batches_are_masked_once_over_all_studies(training):
    first, second = training(), training(deadline_s=4.0)  # another fingerprint, the same batches
    first.run()
    there = second.configs["bern"].folder / MASKED
    there.mkdir()
    (there / DRAWN).write_bytes((first.configs["bern"].folder / MASKED / DRAWN).read_bytes())
    second.run()
    assert [used["site"] for used in second.rounds()[0]["used"]] == list(SITES[1:])
    assert "the same batches were masked before" in second.audit("bern")[-1]["details"]["reason"]


def test_a_round_that_was_released_begins_with_other_keys_and_masks_no_batch_again(training):
    there = training()
    there.run()
    before = there.sent(KEYS)["linz"].content
    content = there.asked("linz", TRAIN)
    training_ = protocol.read_request(content)[1].training
    assert forget_round(there.configs["linz"], training_, 1) == 1
    after = there.ask("linz", KEYS, there.asked("linz", KEYS))
    assert after["keys"]["mask_key"] != before["keys"]["mask_key"]
    assert there.ask("linz", TRAIN, content) == "MaskingRefused"


def test_the_notes_of_a_round_are_the_owner_s_alone(training):
    there = training()
    there.run()
    folder = there.configs["thun"].folder / MASKED
    assert {path.suffix for path in folder.iterdir()} == {".notes", ".jsonl", ".lock"}
    for path in folder.iterdir():
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077 or not path.stat().st_size, path


def test_a_change_longer_than_the_clip_is_shortened_at_the_site(training):
    short = training(masked={"clip": 0.01, "threshold": 3})
    state, start = short.run(), short.cell()[1]
    assert 0 < change_norm(state, start) <= 0.01 * (1 + 1e-6)


def test_a_site_believes_no_site_that_is_not_in_its_roster(training):
    there = training()
    bern = there.configs["bern"]
    known = load_roster(bern.kit).note
    without = known.model_copy(update={"sites": {name: key for name, key in known.sites.items() if name != "wels"}})
    (bern.folder / ROSTER).write_text(without.text())
    there.run()
    (line,) = there.rounds()
    assert [used["site"] for used in line["used"]] == ["graz", "linz", "thun", "wels"]
    (missing,) = line["missing"]
    assert missing["site"] == "bern"
    assert "RosterNotAccepted (a site's key is not in the roster that was accepted there" in missing["reason"]
    refused = [one for one in there.audit("bern") if one["event"] == "refused"]
    assert ["wels is not in the roster" in one["details"]["reason"] for one in refused] == [True]


# --- what the server receives ---------------------------------------------------------------------------------------


def test_nothing_that_the_server_receives_tells_a_site_s_update_loss_or_norm(training):
    masked, plain = training(), training(masked=False)
    masked.run()
    plain.run()
    everything, start = masked.received(), plain.cell()[1]
    form, vectors, changes = FixedPoint(32, MASKING["clip"], 5), {}, {}
    for site, reply in plain.sent().items():
        state = read_state(reply.content, like=start)
        changes[site] = packed({name: state[name] - start[name] for name in start}).astype(np.float64)
        loss = reply.content["metrics"]["loss"]
        norm = change_norm(state, start)
        assert any(changes[site])
        encoded = form.encode(changes[site], weight=reply.content["metrics"]["n_volumes"] / 11)
        moved = np.flatnonzero(changes[site])[:4]
        assert encoded[moved[0] : moved[0] + 4].tobytes() not in everything
        assert packed(state)[moved[0] : moved[0] + 4].tobytes() not in everything
        for number in (loss, norm):
            for told in (f"{number:.6f}"[:7].encode(), np.float64(number).tobytes(), np.float32(number).tobytes()):
                assert told not in everything, (site, number)
        vectors[site] = np.frombuffer(masked.sent()[site].content["state"]["flat"].data, "<u4")
        assert np.mean(vectors[site][:-1] == encoded) < 0.001
    signed = {site: vector.view("<i4").astype(np.float64)[:-1] for site, vector in vectors.items()}
    most = 5 / np.sqrt(len(changes["bern"]))
    for site, change in changes.items():  # neither one vector nor the difference of two looks like an update
        for other in SITES:
            seen = signed[site] if other == site else signed[site] - signed[other]
            assert abs(np.corrcoef(seen, change)[0, 1]) < most, (site, other)
    line = masked.rounds()[0]
    assert {used["loss"] for used in line["used"]} == {None}
    assert line["norms"] == {}


# --- all sites are asked the same -------------------------------------------------------------------------------------


def still_at_all_but(site_, **settings):
    """A server that asks one site for the work, and all others for nothing of it."""

    def before(site, message):
        if site != site_:
            task = json.loads(message.content["task"]["json"]) | settings
            message.content["task"] = ConfigRecord({"json": json.dumps(task)})

    return before


def test_no_site_shares_seeds_with_sites_that_were_asked_for_another_learning_rate(training, monkeypatch):
    there = training(attempts=1)
    monkeypatch.setattr(
        "sahfl.federation.server.masked_steps.is_consistent", lambda *_: True
    )  # a server that looks away
    with pytest.raises(RunFailed):
        there.run(before=still_at_all_but("wels", learning_rate=1e-12))
    for site in SITES:
        line = there.audit(site)[-1]
        assert line["details"]["asked"] == SHARES
        assert "did not sign these keys for this round" in line["details"]["reason"]


def test_what_sites_sign_names_all_settings_but_the_one_of_each_site(training):
    task, header = protocol.read_request(protocol.request(training().cell()[0].task, training().cell()[0].header, {}))
    terms = Terms(1, dict.fromkeys(SITES, 2), "")
    known = terms.context(task, header)
    assert terms.context(task.model_copy(update={"own_round": 3}), header) == known
    others = {"learning_rate": 1e-12, "seed": 99, "folds": 3, "fold": 1, "rounds": 9, "common_random_numbers": True}
    others |= {"views": task.views.model_copy(update={"spacing_mm": 9.0}), "method": None, "local": None}
    for name, value in others.items():
        assert terms.context(task.model_copy(update={name: value}), header) != known, name


def test_a_site_takes_part_in_no_sum_over_fewer_sites_than_its_policy_wants(training):
    there = training(policy={"least_sites": 5})
    there.run()
    assert {one["site"] for one in there.rounds()[0]["used"]} == set(SITES)
    few = training(policy={"least_sites": 5}, attempts=1)
    with pytest.raises(RunFailed):  # a server that lists two sites of its own beside one
        few.run(sites=SITES[:3])
    line = few.audit("bern")[-1]
    assert line["details"]["asked"] == SHARES
    assert "3 of the sites in the sum have patients in it, expected at least 5" in line["details"]["reason"]


@pytest.mark.parametrize("unmasked", [True, False])
def test_the_loss_of_what_a_site_trains_alone_stays_where_the_site_demands_masks(training, unmasked):
    there = training(method=METHOD | {"trained_at": "bern"}, masked=False, policy={"unmasked": unmasked})
    cell, start = there.cell(("bern",))
    run, mailbox = there.at_work()
    run_alone(run_cell(cell, start, run), mailbox)
    (used,) = there.rounds()[0]["used"]
    assert (used["loss"] is not None) == unmasked
    line = there.audit("bern")[-1]
    assert ("the mean loss" in line["words"]) == ("loss" in line["details"]["metrics"]) == unmasked
