"""What a site masks once, and over which sites, whatever another study calls it."""

import pytest
from flwr.app import ConfigRecord
from harness.masked_training import SITES

from sahfl import __version__
from sahfl.errors import SiteStateLost
from sahfl.federation import protocol
from sahfl.federation.site.answered import MASKED
from sahfl.federation.site.audit import AuditLog
from sahfl.federation.site.folder_check import check_folder
from sahfl.federation.site.masked import MaskedRound
from sahfl.federation.site.masked_once import DRAWN, SUMMED
from sahfl.federation.site.secret import commitment

KEYS, SHARES = "query.masking_keys", "query.masking_shares"
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
    assert "the same held-out scans are in a sum over other sites" in refused
    assert "another seed" in refused
    assert third.evaluate()["masked"]["sites"] == list(SITES)


def test_the_remedy_works_another_seed_holds_out_other_scans(evaluating, masked_training, kits):
    first, second = evaluating(), evaluating(**QUICK)
    first.evaluate()
    goes_on_after(first, second)
    for config in second.configs.values():  # what another seed does to the lines, without its scans
        path = config.folder / MASKED / SUMMED
        path.write_text(path.read_text().replace('"method": "', '"method": "0'))
    found = second.evaluate(without("wels", protocol.EVALUATE_MASKED))
    assert found["masked"]["sites"] == list(SITES[:4])


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
