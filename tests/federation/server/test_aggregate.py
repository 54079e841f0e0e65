"""A round's aggregation as a whole: bounds and rule, whoever replied first; and never a NaN after it."""

from itertools import permutations

import numpy as np
import pytest
from harness.site_updates import METHODS, start_of, trained

from sahfl.aggregation.lowrank import mean_of_factors, project
from sahfl.aggregation.robust import median, trimmed_mean
from sahfl.aggregation.rules import TRIM
from sahfl.aggregation.update import SiteUpdate
from sahfl.config import RoundsConfig
from sahfl.errors import PayloadError
from sahfl.federation.server.aggregate import aggregate

RULES = ("mean", "alternate", "project", "median", "trimmed_mean")
METHOD = METHODS["cp_dora"]
KINDS = ("lora_c", "conv_dora", "cp_dora")


def updates_of(n_sites=3, names=None, method=METHOD):
    names = names or [f"site{i}" for i in range(n_sites)]
    return [SiteUpdate(name, 3 + i, trained(method, i)) for i, name in enumerate(names)]


def aggregated(updates, rule="mean", method=METHOD):
    like, layers = start_of(method)
    return aggregate(updates, like=like, rule=rule, layers=layers, config=RoundsConfig())


def bits(found):
    return b"".join(value.tobytes() for value in found.state.values())


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_replies_does_not_change_a_bit(rule):
    updates = updates_of(names=["site10", "Site9", "\u00e4"])
    found = [aggregated(order, rule) for order in permutations(updates)]
    assert len({bits(one) for one in found}) == 1
    assert all(one.notes == found[0].notes and list(one.notes["norms"]) == sorted(one.notes["norms"]) for one in found)


def test_each_rule_is_the_one_that_the_study_names():
    like, layers = start_of(METHOD)
    updates = updates_of()
    expected = {
        "mean": mean_of_factors(updates, like=like, layers=layers),
        "alternate": mean_of_factors(updates, like=like, layers=layers),
        "project": project(updates, like=like, layers=layers),
        "median": median(updates, like=like),
        "trimmed_mean": trimmed_mean(updates, like=like, trim=TRIM),
    }
    for rule, state in expected.items():
        assert bits(aggregated(updates, rule)) == b"".join(value.tobytes() for value in state.values())


def test_the_journal_is_told_of_lengths_bounds_and_error():
    updates = updates_of(5)
    changed = {name: 50 * value for name, value in updates[0].state.items()}
    notes = aggregated([SiteUpdate("site0", 900, changed), *updates[1:]]).notes
    assert set(notes) == {"norms", "shortened", "lightened", "aggregation_error"}
    assert set(notes["norms"]) == {f"site{i}" for i in range(5)}
    assert set(notes["shortened"]) == set(notes["lightened"]) == {"site0"}
    assert 0 < notes["shortened"]["site0"] < 1
    assert 0 < notes["aggregation_error"] < 1.5
    assert aggregated(updates).notes["shortened"] == aggregated(updates).notes["lightened"] == {}


def test_without_adapted_layers_weights_are_averaged_and_no_error_is_told():
    like = {"w": np.zeros(2, np.float32)}
    updates = [SiteUpdate("a", 1, {"w": np.ones(2, np.float32)}), SiteUpdate("b", 3, {"w": np.full(2, 2, np.float32)})]
    found = aggregate(updates, like=like, rule="mean", layers=(), config=RoundsConfig(most_share=1.0))
    assert found.state["w"].tolist() == [1.75, 1.75]
    assert found.notes["aggregation_error"] is None


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [1e9, 1e37])
@pytest.mark.parametrize("method", KINDS)
def test_B01_absurd_numbers_end_in_a_finite_state_or_a_refusal_by_name(rule, size, method):
    """Two sites of which one is absurd: no median tells them apart."""
    method = METHODS[method]
    absurd = {name: np.float32(size) * value for name, value in trained(method, 1).items()}
    updates = [*updates_of(1, method=method), SiteUpdate("site1", 3, absurd)]
    refused = ""
    try:
        found = aggregated(updates, rule, method=method)
    except PayloadError as error:
        refused = str(error)
    if refused:
        assert refused.endswith("the sites' numbers are too large")
        return
    assert all(np.isfinite(value).all() for value in found.state.values())
    error = found.notes["aggregation_error"]
    assert error is None or np.isfinite(error)


@pytest.mark.parametrize("rule", RULES)
def test_B01_one_absurd_site_of_five_is_bounded_away(rule):
    absurd = {name: np.float32(1e30) * value for name, value in trained(METHOD, 1).items()}
    honest = aggregated(updates_of(5), rule)
    found = aggregated([*updates_of(4), SiteUpdate("site4", 3, absurd)], rule)
    like, _ = start_of(METHOD)
    moved = [np.sqrt(sum(np.square(one.state[n] - like[n]).sum() for n in like)) for one in (honest, found)]
    assert moved[1] < 4 * moved[0]


@pytest.mark.parametrize("rule", RULES)
def test_B01_an_update_that_is_not_finite_is_refused_naming_site_and_tensor(rule):
    updates = updates_of()
    updates[1].state["plain.magnitude"][2] = np.nan
    with pytest.raises(PayloadError, match=r"site 'site1', 'plain.magnitude': contains NaN or inf"):
        aggregated(updates, rule)
