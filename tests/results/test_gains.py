"""The gain of each site in results.json, and the study that requires one."""

import json

import numpy as np
import pytest
import test_method_rows
from harness.tiny_study import TINY, changed
from test_method_rows import LORA, SITES

from sahfl.config import Study, parse
from sahfl.errors import ConfigError, LosingSite
from sahfl.results.gains import check_gains, site_gains
from sahfl.results.method_rows import find_rows

make_run = test_method_rows.make_run
BOTH = [LORA | {"trained_at": [None, "each"], "repeats": 2}]
GAIN = {"sah_a": 0.1, "sah_b": 0.0, "sah_c": -0.1}


def dice_of(gain=GAIN):
    """A site's own network: 0.4 to 0.6; the federation's: as much more as the site gains. Others' networks: 0.1."""

    def dice(id_, site, fold):
        random = np.random.default_rng([fold, SITES.index(site), *id_.encode()])
        own = np.array([0.45, 0.55]) + random.normal(0, 0.002, 2)
        if "-at-" in id_:
            return list(own) if f"-at-{site}" in id_ else [0.1, 0.1]
        return list(own + gain[site])

    return dice


def enlarge(monkeypatch):
    """Six patients a site and fold in place of two."""
    two = test_method_rows.cases
    monkeypatch.setattr(test_method_rows, "cases", lambda site, fold, dice: [
        case for n in range(3) for case in two(f"{site}-{n}", fold, np.asarray(dice) + 0.01 * n)
    ])  # fmt: skip


@pytest.fixture
def gains(make_run, monkeypatch):
    enlarge(monkeypatch)
    folder, study = make_run(BOTH, dice_of())
    found = site_gains(study, find_rows(folder, study))
    json.dumps(found, allow_nan=False)
    return study, found


def test_every_site_has_its_gain_on_its_own_patients(gains):
    _, found = gains
    assert [(gain["site"], gain["method"], gain["reference"]) for gain in found] == [
        (site, "cp_lora-r2", f"cp_lora-r2-at-{site}") for site in SITES
    ]
    assert [gain["verdict"] for gain in found] == ["better", "not worse", "worse"]
    for gain in found:
        assert gain["difference"] == pytest.approx(GAIN[gain["site"]], abs=0.01)
        assert gain["difference"] == pytest.approx(gain["dice"] - gain["dice_alone"])
        assert (gain["n"], gain["trainings"]) == (12, 2)


def test_one_training_gives_a_gain_without_a_verdict(make_run, monkeypatch):
    enlarge(monkeypatch)
    folder, study = make_run([LORA | {"trained_at": [None, "sah_c"]}], dice_of())
    (gain,) = site_gains(study, find_rows(folder, study))
    assert (gain["site"], gain["trainings"], gain["p"]) == ("sah_c", 1, None)
    assert gain["high"] < 0
    assert gain["verdict"] == "one training: no verdict"
    check_gains(study.model_copy(update={"require_gain": 0.0}), [gain])


def test_a_method_with_a_part_at_each_site_is_compared_with_the_same_method_without_parts(make_run, monkeypatch):
    enlarge(monkeypatch)
    grid = [LORA | {"private_rank": 1, "repeats": 2}, LORA | {"trained_at": "each", "repeats": 2}]
    folder, study = make_run(grid, dice_of())
    found = site_gains(study, find_rows(folder, study))
    assert [(gain["method"], gain["reference"]) for gain in found] == [
        ("cp_lora-r2-private1", f"cp_lora-r2-at-{site}") for site in SITES
    ]
    assert [gain["verdict"] for gain in found] == ["better", "not worse", "worse"]
    parse(Study, settings_of(grid), where="study.yaml")  # such a study may require a gain


def test_a_study_without_training_at_single_sites_has_no_gains(make_run):
    folder, study = make_run([LORA, {"method": "cp_lora", "rank": 4, "trained_at": "pooled"}], dice_of())
    assert site_gains(study, find_rows(folder, study)) == []


@pytest.mark.parametrize(("least", "losing"), [(None, []), (-0.2, []), (0.0, ["sah_c"]), (0.05, ["sah_b", "sah_c"])])
def test_a_study_that_requires_a_gain_fails_where_a_site_lacks_it(gains, least, losing):
    study, found = gains
    study = study.model_copy(update={"require_gain": least})
    if not losing:
        check_gains(study, found)
        return
    with pytest.raises(LosingSite, match=f"require_gain: expected a gain of {least:g} or more") as caught:
        check_gains(study, found)
    assert [line.split(",")[0].strip() for line in str(caught.value).splitlines()[1:-1]] == losing
    assert caught.value.exit_code == 3


def settings_of(grid, **more):
    settings = changed(TINY, require_gain=0.0, **more)
    settings["finetune"]["grid"] = grid
    return settings


def test_a_required_gain_needs_trainings_that_can_measure_it():
    study = parse(Study, settings_of(BOTH), where="study.yaml")
    free = parse(Study, settings_of(BOTH) | {"require_gain": None}, where="study.yaml")
    assert study.fingerprint() == free.fingerprint()  # it changes no result
    for grid in (
        [LORA | {"repeats": 2}],
        [LORA | {"trained_at": [None, "each"]}],
        [LORA | {"trained_at": [None, "sah_a", "sah_b"], "repeats": 2}],
    ):
        with pytest.raises(
            ConfigError, match="require_gain needs a method that is trained at all sites and at each alone"
        ):
            parse(Study, settings_of(grid), where="study.yaml")


def test_hospitals_require_a_gain_in_their_own_files():
    settings = settings_of(BOTH, data={"source": "sites"}, rounds__unmasked=True)
    with pytest.raises(ConfigError, match=r"require_gain is for simulations; a hospital sets policy\.require_gain"):
        parse(Study, settings, where="study.yaml")


def test_the_two_means_of_a_gain_are_over_the_patients_that_both_networks_have(make_run, monkeypatch):
    enlarge(monkeypatch)
    dice = dice_of({"sah_a": 0.1, "sah_b": 0.1, "sah_c": 0.1})

    def harder(id_, site, fold):
        found = dice(id_, site, fold)
        lost = "-at-" in id_ and fold == 1
        return None if lost else [value - 0.3 * fold for value in found]  # the second fold is hard for both

    for gain in site_gains(*reversed(rows_of(make_run(BOTH, harder)))):
        assert gain["n"] == 6
        assert (gain["dice"], gain["dice_alone"]) == pytest.approx((0.61, 0.51), abs=0.01)
        assert gain["difference"] == pytest.approx(gain["dice"] - gain["dice_alone"])


def rows_of(made):
    folder, study = made
    return find_rows(folder, study), study
