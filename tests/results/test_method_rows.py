"""Rows of the results: repeats taken together, single sites taken together, and what is compared with what."""

import json
import statistics
from functools import reduce
from operator import add

import numpy as np
import pytest
from harness import made_run
from harness.tiny_study import TINY

from sahfl.config import Study, parse
from sahfl.results.method_results import Evaluated, measured
from sahfl.results.method_rows import describe_rows, find_rows
from sahfl.results.pairs import compare_rows
from sahfl.results.verdicts import correct
from sahfl.statistics.cases import CaseResult
from sahfl.statistics.disclosure import withhold
from sahfl.statistics.sums import EvaluationSums, average

SITES = ("sah_a", "sah_b", "sah_c")
LORA = {"method": "cp_lora", "rank": 2}


def cases(site, fold, dice):
    """Two patients of a site and fold, with a small and a large hemorrhage, whose Dice a method gets."""
    return [
        CaseResult(f"{site}-{fold}-{n}", volume, 0.9 * volume, value, 0.5, 4.0, 0.5, 40.0)
        for n, (volume, value) in enumerate(zip((5.0, 50.0), dice, strict=True))
    ]


@pytest.fixture
def make_run(tmp_path):
    """A finished run of made-up evaluations: ``dice(id, site, fold)`` gives its patients' Dice, None: not evaluated."""

    def make(grid, dice, methods=({"method": "zero_shot"},)):
        return made_run.make_run(tmp_path / "run", grid, dice, methods=methods, cases=cases)

    return make


def rows(folder, study):
    found = describe_rows(folder, study, find_rows(folder, study), [])
    json.dumps(found, allow_nan=False)
    return {row["id"]: row for row in found}


def test_repeats_are_one_row_whose_mean_is_that_of_their_means_and_patients_count_once(make_run):
    dice = {"zero_shot": (0.2, 0.2), "cp_lora-r2": (0.3, 0.5), "cp_lora-r2-repeat2": (0.5, 0.9)}
    folder, study = make_run([LORA | {"repeats": 2}], lambda id_, site, fold: dice[id_])
    found = rows(folder, study)
    assert list(found) == ["zero_shot", "cp_lora-r2"]
    row = found["cp_lora-r2"]
    assert row["metrics"]["dice"]["overall"]["n"] == 12
    assert row["metrics"]["dice"]["overall"]["mean"] == pytest.approx(0.55)
    assert [(part["repeat"], pytest.approx(part["dice"])) for part in row["repeats"]] == [(1, 0.4), (2, 0.7)]
    assert row["sd_repeats"] == pytest.approx(statistics.stdev([0.4, 0.7]))
    assert (found["zero_shot"]["repeats"], found["zero_shot"]["sd_repeats"]) == (
        [{"repeat": 1, "dice": pytest.approx(0.2)}],
        None,
    )


def test_a_row_of_a_dora_form_has_the_numbers_of_layers_with_and_without_magnitudes(make_run):
    dora = {"method": "conv_dora", "rank": 2}
    folder, study = make_run([LORA, dora, dora | {"rank": 3}], lambda id_, site, fold: (0.5, 0.5))
    found = rows(folder, study)
    layers = {"layers": 23, "trained": 5}
    assert [row["magnitudes"] for row in found.values()] == [None, None, layers, layers]
    none, low, middle, high = (row["trainable"] for row in found.values())
    assert none == 0 < low < middle < high


def two_trainings(shift, seed=5):
    """Dice of every patient in two trainings whose means differ by ``shift``, and of zero-shot: the patient's mean."""
    random = np.random.default_rng(seed)
    noise = {(site, fold): random.uniform(-0.05, 0.05, 2) for site in SITES for fold in (0, 1)}
    centre = np.mean(list(noise.values()))
    ease = {key: random.uniform(0.3, 0.7, 2) for key in noise}

    def dice(id_, site, fold):
        sign = {"cp_lora-r2": -1, "cp_lora-r2-repeat2": 1}.get(id_, 0)
        return list(ease[site, fold] + sign * (noise[site, fold] - centre + shift / 2))

    return dice


def overall(found):
    return found["metrics"]["dice"]["overall"]


def test_repeats_with_one_mean_have_the_interval_of_each_patient_s_mean(make_run):
    folder, study = make_run([LORA | {"repeats": 2}], two_trainings(0.0))
    found = rows(folder, study)
    ours, expected = overall(found["cp_lora-r2"]), overall(found["zero_shot"])
    assert [ours[key] for key in ("mean", "low", "high")] == pytest.approx(
        [expected[key] for key in ("mean", "low", "high")]
    )
    assert (ours["trainings"], expected["trainings"]) == (2, 0)
    (comparison,) = compare_rows(study, find_rows(folder, study))
    gap = overall(comparison)
    assert [gap[key] for key in ("difference", "low", "high")] == pytest.approx([0, 0, 0], abs=1e-12)
    assert (gap["trainings"], gap["p"]) == (2, 1.0)


def test_the_spread_of_repeats_widens_the_interval_of_a_mean_and_of_a_difference(make_run):
    folder, study = make_run([LORA | {"repeats": 2}], two_trainings(0.1))
    found = rows(folder, study)
    ours, expected = overall(found["cp_lora-r2"]), overall(found["zero_shot"])
    assert ours["high"] - ours["low"] > 1.2 * (expected["high"] - expected["low"])
    (comparison,) = compare_rows(study, find_rows(folder, study))
    # The two means are 0.1 apart: a standard error of 0.05, one degree of freedom, and hardly a spread over patients.
    assert overall(comparison)["high"] == pytest.approx(0.05 * 12.7, rel=0.1)


def test_a_method_that_was_trained_once_has_an_interval_but_no_p(make_run):
    grid = [LORA, {"method": "full", "repeats": 2}, {"method": "cp_lora", "rank": 4, "repeats": 2}]
    random = np.random.default_rng(1)
    folder, study = make_run(grid, lambda id_, site, fold: random.uniform(0.3, 0.7, 2))
    found = rows(folder, study)
    assert {id_: overall(row)["trainings"] for id_, row in found.items()} == {
        "zero_shot": 0, "cp_lora-r2": 1, "full": 2, "cp_lora-r4": 2,
    }  # fmt: skip
    assert overall(found["cp_lora-r2"])["low"] is not None
    comparisons = compare_rows(study, find_rows(folder, study))
    correct(comparisons, list(found.values()))
    for comparison in comparisons:
        gap = overall(comparison)
        once = "cp_lora-r2" in (comparison["method"], comparison["reference"])
        assert (gap["trainings"], gap["p"] is None, gap["p_holm"] is None) == (1 if once else 2, once, once)
        assert (comparison["p_margin"] is None, comparison["p_margin_holm"] is None) == (once, once)
        assert (comparison["verdict"] == "one training: no verdict") == once
        assert gap["low"] is not None


def test_each_is_every_site_s_patients_by_the_network_of_that_site(make_run):
    home = {"sah_a": 0.4, "sah_b": 0.6, "sah_c": 0.8}

    def dice(id_, site, fold):
        return (home[site], home[site]) if id_.endswith(f"-at-{site}") else (0.1, 0.1)

    folder, study = make_run([LORA | {"trained_at": [None, "each", "pooled"]}], dice)
    found = rows(folder, study)
    assert list(found) == [
        "zero_shot", "cp_lora-r2", "cp_lora-r2-each", *(f"cp_lora-r2-at-{site}" for site in SITES), "cp_lora-r2-pooled",
    ]  # fmt: skip
    each = found["cp_lora-r2-each"]
    assert (each["trained_at"], each["rank"], each["aggregation"]) == ("each", 2, "mean")
    assert each["metrics"]["dice"]["overall"]["n"] == 12
    assert {part["site"]: part["dice"] for part in each["by_site"]} == pytest.approx(home)
    alone = found["cp_lora-r2-at-sah_a"]
    assert {part["site"]: part["dice"] for part in alone["by_site"]} == pytest.approx(
        {"sah_a": 0.4, "sah_b": None, "sah_c": None}
    )
    assert [row["trained_at"] for row in found.values()] == [None, None, "each", *SITES, "pooled"]


def test_there_is_no_row_of_each_unless_every_site_trained_alone(make_run):
    folder, study = make_run([LORA | {"trained_at": ["sah_a", "sah_b"]}], lambda id_, site, fold: (0.1, 0.2))
    assert list(rows(folder, study)) == ["zero_shot", "cp_lora-r2-at-sah_a", "cp_lora-r2-at-sah_b"]


def test_what_is_compared_with_what(make_run):
    grid = [
        {"method": "full", "repeats": 2},
        {"method": "decoder"},
        {"method": "full", "start": "scratch", "rounds": [4, 9]},
        {"method": ["cp_lora", "conv_lora"], "rank": [1, 4, 8]},
        {"method": "cp_lora", "rank": 8, "aggregation": "project"},
        {"method": "cp_lora", "rank": 8, "trained_at": ["each", "pooled", "pooled_steps"], "repeats": 2},
    ]
    folder, study = make_run(grid, lambda id_, site, fold: (0.1, 0.2))
    found = [(row["method"], row["reference"]) for row in compare_rows(study, find_rows(folder, study))]
    assert len(set(found)) == len(found)
    of = {}
    for method, reference in found:
        of.setdefault(reference, set()).add(method)
    adapters = {f"{name}-r{rank}" for name in ("cp_lora", "conv_lora") for rank in (1, 4, 8)} | {"cp_lora-r8-project"}
    places = {"cp_lora-r8-each", "cp_lora-r8-pooled", "cp_lora-r8-pooled_steps"}
    scratch = {"full-scratch-rounds4", "full-scratch-rounds9"}
    assert of == {
        "zero_shot": adapters | places | scratch | {"full", "decoder"} | {f"cp_lora-r8-at-{site}" for site in SITES},
        "full": adapters | {"decoder"},
        **dict.fromkeys(scratch, adapters | {"decoder", "full"}),
        "conv_lora-r1": {"cp_lora-r1", "conv_lora-r4", "conv_lora-r8"},
        "conv_lora-r4": {"cp_lora-r4"},
        "conv_lora-r8": {"cp_lora-r8"},
        "cp_lora-r1": {"cp_lora-r4", "cp_lora-r8"},
        "cp_lora-r8-each": {"cp_lora-r8"},
        "cp_lora-r8-pooled": {"cp_lora-r8"},
        "cp_lora-r8-pooled_steps": {"cp_lora-r8", "cp_lora-r8-pooled"},
    }


def test_a_repeat_that_lacks_a_site_is_told_and_the_other_repeat_stands_for_it(make_run):
    def dice(id_, site, fold):
        if id_.endswith("repeat2"):
            return None if (site, fold) == ("sah_b", 1) else (0.6, 0.6)
        return (0.4, 0.4)

    folder, study = make_run([LORA | {"repeats": 2}], dice)
    row = rows(folder, study)["cp_lora-r2"]
    assert row["not_evaluated"] == [{"fold": 1, "site": "sah_b", "reason": "worn out", "repeat": 2}]
    assert row["metrics"]["dice"]["overall"]["n"] == 12
    assert row["metrics"]["dice"]["overall"]["mean"] == pytest.approx((5 * 0.5 + 0.4) / 6)


def test_of_masked_sums_over_other_sites_those_of_most_repeats_count_so_that_a_patient_counts_once(make_run):
    ids = ("zero_shot", "cp_lora-r2", "cp_lora-r2-repeat2", "cp_lora-r2-repeat3")
    folder, study = make_run([LORA | {"repeats": 3}], lambda id_, site, fold: (0.4, 0.4))
    for id_ in ids:
        for fold in range(2):
            there = SITES[:2] if (id_, fold) == ("cp_lora-r2", 0) else SITES
            parts = [
                EvaluationSums.of(cases(site, fold, (0.4, 0.4)), study.evaluation, seed=study.seed) for site in there
            ]
            masked = {"sites": list(there), "sums": reduce(add, parts).to_array().tolist()}
            folder.write_evaluation(f"{id_}/fold-{fold}", {"sums": {}, "missing": {}, "masked": masked})
    found = rows(folder, study)["cp_lora-r2"]
    assert found["metrics"]["dice"]["overall"]["n"] == 12
    assert [part["n"] for part in found["by_fold"]] == [6, 6]


def test_the_spread_of_repeats_is_over_the_patients_that_all_of_them_have(make_run):
    def dice(id_, site, fold):
        if id_.endswith("repeat2") and site == "sah_b":
            return None
        return (0.1, 0.1) if site == "sah_b" else (0.5, 0.5)  # sah_b is hard for every training alike

    folder, study = make_run([LORA | {"repeats": 2}], dice)
    row = rows(folder, study)["cp_lora-r2"]
    assert [part["dice"] for part in row["repeats"]] == pytest.approx([(4 * 0.5 + 2 * 0.1) / 6, 0.5])
    assert row["sd_repeats"] == pytest.approx(0)


def test_repeats_without_a_patient_in_common_have_no_spread(make_run):
    def dice(id_, site, fold):
        return (0.4, 0.6) if id_.endswith("repeat2") == (fold == 1) else None

    folder, study = make_run([LORA | {"repeats": 2}], dice)
    assert rows(folder, study)["cp_lora-r2"]["sd_repeats"] is None


def test_a_method_that_was_evaluated_nowhere_has_failed_with_the_reason(make_run):
    folder, study = make_run([LORA], lambda id_, site, fold: (0.1, 0.2) if id_ == "zero_shot" else None)
    row = rows(folder, study)["cp_lora-r2"]
    assert (row["failed"], row["repeats"]) == ("worn out", [{"repeat": 1, "dice": None}])
    (comparison,) = compare_rows(study, find_rows(folder, study))
    assert comparison["metrics"]["dice"]["overall"]["n"] == 0


def test_the_growth_of_a_row_is_the_dice_of_the_largest_hemorrhages_minus_that_of_the_smallest(make_run):
    random = np.random.default_rng(2)
    gain = {"zero_shot": 0.1, "cp_lora-r2": 0.2, "cp_lora-r2-repeat2": 0.3}
    folder, study = make_run(
        [LORA | {"repeats": 2}], lambda id_, site, fold: random.uniform(0.3, 0.4, 2) + np.array([0, gain[id_]])
    )
    found = {id_: row["growth"] for id_, row in rows(folder, study).items()}
    labels = [(growth["stratum"], growth["reference"]) for growth in found.values()]
    assert labels == [(">= 30 mL", "< 10 mL")] * 2
    assert [(growth["n"], growth["trainings"]) for growth in found.values()] == [(12, 0), (12, 2)]
    for id_, expected in (("zero_shot", 0.1), ("cp_lora-r2", 0.25)):
        assert found[id_]["difference"] == pytest.approx(expected, abs=0.05)
        assert found[id_]["low"] < found[id_]["difference"] < found[id_]["high"]
        assert found[id_]["p"] is not None


def test_a_study_that_does_not_split_by_volume_has_no_growth(make_run):
    folder, study = make_run([LORA], lambda id_, site, fold: (0.1, 0.2))
    settings = study.model_copy(update={"evaluation": study.evaluation.model_copy(update={"volume_edges_ml": ()})})
    evaluated = find_rows(folder, study)[0].evaluated
    whole = {
        key: EvaluationSums.of(cases(*reversed(key), (0.1, 0.2)), settings.evaluation, seed=0) for key in evaluated.sums
    }
    assert measured(settings, Evaluated(whole, {}))["growth"] is None


ONE, TWICE = "one training: no verdict", LORA | {"repeats": 2}


def verdicts(folder, study):
    comparisons = compare_rows(study, find_rows(folder, study))
    correct(comparisons, list(rows(folder, study).values()))
    return {
        (found["method"], found["reference"]): (overall(found)["trainings"], found["verdict"]) for found in comparisons
    }


def test_patients_of_whom_some_were_trained_on_more_often_than_others_have_no_verdict(tmp_path):
    """Only sah_a trained alone twice; the spread between two trainings of its patients is not that of all patients."""
    grid = [LORA | {"repeats": 2}, LORA | {"trained_at": ["sah_b", "sah_c"]}]
    grid += [LORA | {"trained_at": "sah_a", "repeats": 2}]
    middle = made_run.around(lambda id_, site, fold: 0.4 if id_ == "zero_shot" else 0.45)
    found = verdicts(*made_run.make_run(tmp_path / "run", grid, middle))
    assert found["cp_lora-r2", "zero_shot"] == (2, "better")
    assert found["cp_lora-r2-each", "zero_shot"] == found["cp_lora-r2", "cp_lora-r2-each"] == (1, ONE)


def test_a_repeat_that_was_evaluated_in_one_place_gives_no_verdict_but_one_that_nobody_has_does(tmp_path):
    def middle(*lost):
        def at(id_, site, fold):
            if (id_.endswith("repeat2") and (site, fold) in lost) or (site, fold) == ("sah_c", 1):
                return None
            return 0.4 if id_ == "zero_shot" else 0.45

        return made_run.around(at)

    assert verdicts(*made_run.make_run(tmp_path / "a", [TWICE], middle(("sah_a", 0)))) == {
        ("cp_lora-r2", "zero_shot"): (1, ONE)
    }
    assert verdicts(*made_run.make_run(tmp_path / "b", [TWICE], middle())) == {
        ("cp_lora-r2", "zero_shot"): (2, "better")
    }


BASES = {"tbi_a": -0.03, "tbi_b": 0.01}


def test_each_base_counts_as_one_training_however_often_it_is_fine_tuned(tmp_path):
    middle = made_run.around(lambda id_, *_: 0.5 + sum(BASES[base] for base in BASES if base in id_), spread=0.002)
    widths = []
    for repeats in (1, 3):
        grid = [LORA | {"base_of": "each", "repeats": repeats}, TWICE]
        folder, study = made_run.make_run(tmp_path / str(repeats), grid, middle)
        row = rows(folder, study)["cp_lora-r2-from-each"]
        assert (overall(row)["trainings"], [found["repeat"] for found in row["repeats"]]) == (2, [1, 2])
        assert [found["dice"] for found in row["repeats"]] == pytest.approx([0.47, 0.51], abs=0.002)
        widths.append(overall(row)["high"] - overall(row)["low"])
        by_id = {found.id: found.evaluated for found in find_rows(folder, study)}
        assert not by_id["cp_lora-r2-from-each"].trainings.keys() & by_id["cp_lora-r2"].trainings.keys()
    assert widths == pytest.approx([0.263, 0.263], abs=0.005)  # from six trainings it would be narrower


def test_the_base_of_all_against_those_of_single_centres_has_no_verdict_because_it_was_pretrained_once(tmp_path):
    grid = [LORA | {"base_of": "each", "repeats": 2}, LORA | {"repeats": 2}, {"method": "zero_shot", "base_of": "each"}]
    middle = made_run.around(lambda id_, *_: 0.4 if "from" in id_ or id_ == "zero_shot" else 0.5)
    found = verdicts(*made_run.make_run(tmp_path / "run", grid, middle))
    assert found["cp_lora-r2", "cp_lora-r2-from-each"] == found["zero_shot", "zero_shot-from-each"] == (1, ONE)
    assert found["cp_lora-r2", "zero_shot"] == (2, "better")


@pytest.mark.parametrize("missed", [10, 17])
def test_what_a_site_hides_of_one_training_is_hidden_in_all_so_that_they_are_over_the_same_cases(missed):
    """Of 20 patients of sah_a, repeat 1 misses 10 and repeat 2 misses ``missed``, of 17 of which no count may leave."""
    study = parse(Study, TINY, where="test")
    settings = study.evaluation

    def sums(site, lost, hd95):
        results = [
            CaseResult(f"{site}-{i}", 20.0, 0.0, 0.0, 0.0, None, 0.0, 40.0)
            if i < lost
            else CaseResult(f"{site}-{i}", 20.0, 18.0, 0.6, 0.5, hd95 + 0.1 * i, 0.5, 40.0)
            for i in range(20)
        ]
        whole = EvaluationSums.of(results, settings, seed=3)
        return withhold(whole, results, settings, smallest_group=3, smallest_bootstrap=5)

    repeats = {
        number: {(0, "sah_a"): sums("sah_a", lost, 40.0), (0, "sah_b"): sums("sah_b", 1, 5.0)}
        for number, lost in ((1, 10), (2, missed))
    }
    together = {key: average([found[key] for found in repeats.values()]) for key in repeats[1]}
    metrics = measured(study, Evaluated(together, repeats))["metrics"]
    hd95, rate = metrics["hd95_mm"]["overall"], metrics["missed"]["overall"]
    assert (hd95["trainings"], rate["trainings"]) == (2, 2)
    if missed == 17:
        assert (hd95["n"], rate["n"], rate["mean"]) == (19, 20, pytest.approx(1 / 20))
        assert hd95["mean"] == pytest.approx(6.0)
        alone = {number: {(0, "sah_b"): found[0, "sah_b"]} for number, found in repeats.items()}
        known = measured(study, Evaluated(alone[1], alone))["metrics"]["hd95_mm"]["overall"]
        assert (hd95["low"], hd95["high"]) == pytest.approx((known["low"], known["high"]), rel=0.05)
    else:
        assert (rate["n"], rate["mean"]) == (40, pytest.approx(11 / 40))


def pairs_of(folder, study):
    return {
        (found["method"], found["reference"]): found["differs"]
        for found in compare_rows(study, find_rows(folder, study))
    }


def test_a_method_with_a_part_at_each_site_is_compared_with_the_same_method_without_whatever_its_rounds(make_run):
    grid = [
        LORA | {"trained_at": [None, "pooled"]},
        LORA | {"rank": 4},
        LORA | {"private_rank": 1},
        LORA | {"private_rank": 1, "rank": 4},
        LORA | {"private_rank": 1, "rank": 8},
        LORA | {"rounds": 1, "local_steps": 2},
    ]
    folder, study = make_run(grid, lambda id_, site, fold: (0.1, 0.2))
    found = {
        id_: (row["plain"], row["rounds"]) for id_, row in rows(folder, study).items() if row["part"] == "personal"
    }
    assert found == {
        "cp_lora-r2-private1": ("cp_lora-r2", None),
        "cp_lora-r4-private1": ("cp_lora-r4", None),
        "cp_lora-r8-private1": (None, None),
        "cp_lora-r2-local2-rounds1": ("cp_lora-r2", 1),
    }
    pairs = pairs_of(folder, study)
    assert pairs["cp_lora-r4-private1", "cp_lora-r4"] == pairs["cp_lora-r2-private1", "cp_lora-r2-pooled"] == []
    assert pairs["cp_lora-r2-local2-rounds1", "cp_lora-r2"] == ["rounds"]
    assert pairs["cp_lora-r2-local2-rounds1-shared", "cp_lora-r2"] == ["rounds"]


def test_a_plain_method_with_the_same_rounds_comes_first(make_run):
    grid = [LORA, LORA | {"rounds": 1}, LORA | {"rounds": 1, "local_steps": 2}]
    folder, study = make_run(grid, lambda id_, site, fold: (0.1, 0.2))
    assert rows(folder, study)["cp_lora-r2-local2-rounds1"]["plain"] == "cp_lora-r2-rounds1"


def test_a_comparison_of_methods_whose_ids_hide_other_settings_names_them(make_run):
    grid = [
        LORA | {"learning_rate": 0.001},
        LORA | {"trained_at": "pooled", "learning_rate": 0.002},
        LORA | {"trained_at": ["sah_a", "sah_b"], "learning_rate": 0.001},
        LORA | {"trained_at": "sah_c", "learning_rate": 0.001, "scaling": "rank"},
        {"method": "conv_lora", "rank": 2, "learning_rate": 0.001, "alpha": 64},
        {"method": "full"},
        {"method": "full", "start": "scratch", "rounds": 9},
    ]
    folder, study = make_run(grid, lambda id_, site, fold: (0.1, 0.2))
    pairs = pairs_of(folder, study)
    assert pairs["cp_lora-r2", "cp_lora-r2-pooled"] == ["learning_rate"]
    assert pairs["cp_lora-r2", "cp_lora-r2-each"] == ["scaling"]
    assert pairs["cp_lora-r2", "conv_lora-r2"] == ["alpha"]
    assert pairs["cp_lora-r2", "full"] == pairs["cp_lora-r2", "zero_shot"] == []
    assert pairs["full", "full-scratch-rounds9"] == ["rounds"]
