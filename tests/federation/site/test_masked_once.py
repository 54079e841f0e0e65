"""What a site masks once, and over which sites, whatever another study calls it."""

from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord
from harness.masked_training import SITES

from sahfl import __version__
from sahfl.errors import MaskingRefused, SiteStateLost
from sahfl.federation import protocol
from sahfl.federation.site.answered import MASKED
from sahfl.federation.site.audit import AuditLog
from sahfl.federation.site.folder_check import check_folder
from sahfl.federation.site.masked import MaskedRound
from sahfl.federation.site.masked_once import DRAWN, SUMMED, forget_summed, note_summed, require_same_sites
from sahfl.federation.site.secret import commitment
from sahfl.federation.site.site import Site
from sahfl.masking.context import Context
from sahfl.payload import Header

KEYS, SHARES = "query.masking_keys", "query.masking_shares"
SURVIVORS, REVEAL = "query.masking_survivors", "query.masking_reveal"
QUICK = {"deadline_s": 0.3, "attempts": 1}


@pytest.fixture
def evaluating(masked_training, kits):
    """A study whose sums every site may show, so that a refusal is about the sites in them."""
    return lambda **more: masked_training(kits=kits, **{"method": {"method": "zero_shot"}} | more)


def goes_on_after(first, second):
    """Give the sites of a second study what those of the first one noted."""
    for site in SITES:
        there = second.configs[site].folder / MASKED
        there.mkdir(exist_ok=True)
        (there / SUMMED).write_bytes((first.configs[site].folder / MASKED / SUMMED).read_bytes())


def without(site, step):
    return lambda name, request, reply: None if (name, request.metadata.message_type) == (site, step) else reply


def test_no_two_evaluations_of_the_same_scans_have_a_difference_that_is_one_site_s(evaluating):
    first, second, third = evaluating(), evaluating(**QUICK), evaluating(deadline_s=9.0)
    assert first.evaluate()["masked"]["sites"] == list(SITES)
    for there in (second, third):
        goes_on_after(first, there)
    found = second.evaluate(without("wels", protocol.EVALUATE_MASKED))
    assert found["masked"] is None
    refused = second.audit("bern")[-1]["details"]["reason"]
    assert "of the held-out scans are in an earlier sum, and wels in one of the two" in refused
    assert "sahfl-client forget-sums" in refused
    assert third.evaluate()["masked"]["sites"] == list(SITES)


def test_a_sum_that_would_be_refused_is_refused_before_the_work_and_may_begin_anew(evaluating):
    first, second = evaluating(), evaluating(**QUICK)
    first.evaluate()
    goes_on_after(first, second)
    assert second.evaluate(sites=SITES[:4])["masked"] is None
    assert {line["details"]["asked"] for line in second.audit("bern")[-1:]} == {SHARES}
    assert second.evaluate()["masked"]["sites"] == list(SITES)


def test_folds_of_another_seed_have_the_same_sites_because_all_of_them_add_up_to_the_same_scans(evaluating):
    config, sum_ = evaluating().configs["bern"], Context("f" * 64, "0" * 16, 0, "evaluation")
    header = Header("f" * 64, "finetune", "zero_shot", 0, 0, "")
    a, b, c, d, new = (letter * 64 for letter in "abcde")
    for scans in ({a, b}, {c, d}):
        note_summed(config, sum_, header, sites=SITES, scans=scans)
    for scans in ({a, c}, {b, d}, {a}, {a, new}):
        with pytest.raises(MaskingRefused, match="and wels in one of the two"):
            note_summed(config, sum_, header, sites=SITES[:4], scans=scans)
    note_summed(config, sum_, header, sites=SITES, scans={a, c})
    note_summed(config, sum_, header, sites=SITES[:4], scans={new})  # in no sum so far
    with pytest.raises(MaskingRefused):
        note_summed(config, sum_, header, sites=SITES, scans={a, new})


def test_a_scan_with_a_new_annotation_is_the_same_scan(evaluating):
    first = evaluating()
    first.evaluate()
    config = first.configs["bern"]
    noted = (config.folder / MASKED / SUMMED).read_text()
    usable = Site(config).cases()
    held_out = [item for item in usable if item.voxels[:16] in noted]
    assert 0 < len(held_out) < len(usable)
    assert not any(item.content[:16] in noted for item in usable)


def test_the_remedies_work_the_same_sites_or_a_release_with_a_line_in_the_audit_log(evaluating):
    there = evaluating()
    there.evaluate()
    config, sum_ = there.configs["bern"], Context("f" * 64, "0" * 16, 0, "evaluation")
    scans = {item.voxels for item in Site(config).cases()}
    held_out = {one for one in scans if one[:16] in (config.folder / MASKED / SUMMED).read_text()}
    require_same_sites(config, sum_, sites=SITES, scans=scans)
    with pytest.raises(MaskingRefused):
        require_same_sites(config, sum_, sites=SITES[:4], scans=scans)
    assert forget_summed(config) == len(held_out) > 0
    assert there.audit("bern")[-1]["event"] == "sums_released"
    require_same_sites(config, sum_, sites=SITES[:4], scans=scans)
    check_folder(config)
    assert forget_summed(config) == 0


def test_sites_without_patients_do_not_open_a_sum_that_the_others_did_not_confirm(evaluating, monkeypatch):
    there = evaluating(**QUICK)
    monkeypatch.setattr(MaskedRound, "require_own", lambda *_: None)
    monkeypatch.setattr("sahfl.federation.server.masked_steps.is_consistent", lambda *_: True)
    few = namedtuple("Terms", "threshold")(0)
    monkeypatch.setattr("sahfl.federation.server.masked_steps.terms_of", lambda *_: few)  # a server that looks away

    def before(site, message):
        record = ConfigRecord(dict(message.content["masking"]))
        record["volumes"] = [int(name in ("bern", "graz", "wels")) for name in record["sites"]]
        message.content["masking"] = record

    def change(site, request, reply):
        silent = site in ("bern", "graz") and request.metadata.message_type in (SURVIVORS, REVEAL)
        return None if silent else reply

    assert there.evaluate(change, before=before)["masked"] is None
    (line,) = [line for line in there.audit("linz") if line["details"].get("asked") == REVEAL]
    assert "1 of the 3 sites with patients in the sum confirmed it, expected at least 3" in line["details"]["reason"]


def test_shares_that_another_site_spoilt_leave_the_evaluation_unmasked(evaluating):
    there = evaluating(**QUICK)

    def change(site, request, reply):
        if (site, request.metadata.message_type) == ("wels", SHARES):
            sealed = list(reply.content["shares"]["sealed"])
            reply.content["shares"]["sealed"] = [bytes(len(sealed[0])), *sealed[1:]]  # bern's
        return reply

    assert there.evaluate(change)["masked"]["sites"] == list(SITES[1:])
    assert "shares of 'wels'" in there.audit("bern")[-1]["details"]["reason"]
    assert (there.configs["graz"].folder / MASKED / DRAWN).exists()
    assert not (there.configs["bern"].folder / MASKED / DRAWN).exists()


def test_a_sum_to_which_only_two_sites_add_anything_gets_no_shares(evaluating, monkeypatch):
    there = evaluating(**QUICK)
    monkeypatch.setattr(MaskedRound, "require_own", lambda *_: None)  # whoever has nobody works with the server

    def before(site, message):
        record = ConfigRecord(dict(message.content["masking"]))
        record["volumes"] = [int(name in ("bern", "graz")) for name in record["sites"]]
        message.content["masking"] = record

    monkeypatch.setattr("sahfl.federation.server.masked_steps.is_consistent", lambda *_: True)
    assert there.evaluate(before=before)["masked"] is None
    assert "2 of the sites in the sum have patients in it" in there.audit("bern")[-1]["details"]["reason"]
    assert there.audit("bern")[-1]["details"]["asked"] == SHARES


def test_a_site_signs_only_its_own_number_of_held_out_patients(evaluating):
    there = evaluating()
    there.evaluate()
    asked = there.asked("bern", KEYS)
    asked["masking"]["volumes"] = [n + 1 for n in asked["masking"]["volumes"]]
    assert evaluating(deadline_s=5.0).ask("bern", KEYS, asked) == "MaskingRefused"


@pytest.mark.parametrize("name", [DRAWN, SUMMED])
def test_a_list_that_was_lost_stops_the_site(evaluating, name):
    there = evaluating()
    there.evaluate()
    config = there.configs["graz"]
    details = {"study": there.study.fingerprint(), "training": "0" * 16, "batches": commitment(config)}
    line = {"asked": "query.describe", "sahfl": __version__}  # an answer that belongs to no round
    AuditLog(config.folder).append("answered", "Sent.", **line, **details)
    assert check_folder(config) == 6
    (config.folder / MASKED / name).unlink()
    with pytest.raises(SiteStateLost, match=rf"{name}: lacks a masked sum of training"):
        check_folder(config)


def test_the_remedy_works_for_a_hospital_that_left_for_good(masked_training, kits):
    there = masked_training(kits=kits, **QUICK)
    first = there.cell()[1]
    later = {name: value + np.float32(0.01) for name, value in first.items()}
    assert there.evaluate(final=first)["masked"]["sites"] == list(SITES)
    there.folder.write_evaluation("cp_lora-r2/fold-0", {"sums": {}, "missing": {}})
    reason = there.evaluate(final=later, sites=SITES[:4])["missing"]["bern"]
    assert "wels is not there; all masked evaluations of a fold are over the same sites" in reason
    path = Path(reason.rpartition(" and ")[2].removesuffix(" is deleted here"))
    for site in SITES[:4]:  # as the message says
        assert forget_summed(there.configs[site]) > 0
    path.unlink()
    assert there.evaluate(final=later, sites=SITES[:4])["masked"]["sites"] == list(SITES[:4])


def test_an_evaluation_that_one_site_spoilt_for_all_others_comes_out_without_it(evaluating):
    there = evaluating(**QUICK)

    def change(site, request, reply):
        if (site, request.metadata.message_type) == ("wels", SHARES):
            reply.content["shares"]["sealed"] = [bytes(len(one)) for one in reply.content["shares"]["sealed"]]
        return reply

    assert there.evaluate(change)["masked"] is None
    for site in SITES[:4]:  # the people of each site learn who it was
        assert "shares of 'wels'" in there.audit(site)[-1]["details"]["reason"]
    assert there.evaluate(sites=SITES[:4])["masked"]["sites"] == list(SITES[:4])
