"""Leave one site out: all others train, the one that is left out evaluates, and only a simulation does it."""

import json

import pytest
from harness.tiny_study import TINY, changed

from sahfl.errors import RunFailed
from sahfl.federation import protocol

SITES = ("sah_a", "sah_b", "sah_c")
LORA = {"method": "cp_lora", "rank": 2}
GRID = [LORA, *(LORA | {"left_out": site} for site in SITES), *(LORA | {"trained_at": site} for site in SITES)]
SETTINGS = changed(TINY, pretrain__rounds=1, finetune__rounds=1, finetune__methods=[{"method": "zero_shot"}, *GRID])


@pytest.fixture(scope="module")
def finished(federate_once):
    return federate_once(SETTINGS)


def asked(grid, kind):
    found = {}
    for site, request, _ in grid.seen:
        if request.metadata.message_type == kind:
            _, header = protocol.read_request(request.content)
            found.setdefault(header.method, set()).add(site)
    return found


@pytest.mark.slow
def test_all_sites_but_the_one_that_is_left_out_train_and_this_one_evaluates(finished):
    _, grid = finished
    trained, evaluated = asked(grid, protocol.TRAIN), asked(grid, protocol.EVALUATE)
    for site in SITES:
        assert trained[f"cp_lora-r2-without-{site}"] == set(SITES) - {site}
        assert evaluated[f"cp_lora-r2-without-{site}"] == {site}
    assert trained["cp_lora-r2"] == evaluated["cp_lora-r2"] == set(SITES)


@pytest.mark.slow
def test_the_row_over_all_sites_has_each_site_s_patients_by_the_network_of_the_others(finished):
    folder, _ = finished
    results = json.loads((folder.path / "results.json").read_text())
    rows = {row["id"]: row for row in results["methods"]}
    others = rows["cp_lora-r2-others"]
    assert (others["trained_at"], rows["cp_lora-r2-without-sah_a"]["trained_at"]) == ("others", "without-sah_a")
    assert others["metrics"]["dice"]["overall"]["n"] == rows["cp_lora-r2"]["metrics"]["dice"]["overall"]["n"] == 7
    single = {site: rows[f"cp_lora-r2-without-{site}"]["by_site"] for site in SITES}
    assert others["by_site"] == [part for site in SITES for part in single[site] if part["site"] == site]
    assert all(part["n"] == 0 for site in SITES for part in single[site] if part["site"] != site)
    pairs = {(row["method"], row["reference"]) for row in results["comparisons"]}
    assert {pair for pair in pairs if "cp_lora-r2-others" in pair} == {
        ("cp_lora-r2-others", "zero_shot"),
        ("cp_lora-r2", "cp_lora-r2-others"),
        ("cp_lora-r2-others", "cp_lora-r2-each"),
    }
    assert not [pair for pair in pairs if "without" in pair[0] + pair[1]]


def test_a_hospital_with_the_most_open_policy_refuses_it(federate):
    settings = changed(SETTINGS, finetune__methods=[LORA | {"left_out": "sah_b"}])
    with pytest.raises(RunFailed, match=r"cp_lora-r2-without-sah_b/fold-0, round 1, .*sah_a: .*PolicyRefused"):
        federate(settings, site={"simulated": False}, name="hospitals")
