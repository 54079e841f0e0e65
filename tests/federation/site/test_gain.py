"""What a hospital gains by taking part, from its own results per case, and its refusal to go on if it loses."""

import json

import numpy as np
import pytest
from harness import asking
from harness.asking import METHOD, evaluating, header_of, training
from harness.made_cases import a_case

from sahfl.config import AdapterTuning, ZeroShot
from sahfl.errors import NoGain, StorageError
from sahfl.federation import flower, protocol
from sahfl.federation.server.replies import reason_of
from sahfl.federation.site.case_results import FILE, keep_results, read_results
from sahfl.federation.site.gain import measure_gains
from sahfl.federation.site.policy import check_request

hospital = asking.hospital
FIRST, SECOND = "1" * 64, "2" * 64
SITE = "sah_a"


def made_up(n=12, seed=0):
    """Dice of a site's patients under a method that was trained at the site."""
    return np.random.default_rng(seed).uniform(0.3, 0.6, n)


def keep(folder, dice, *, study=FIRST, at=None, repeat=1, fold=0, method=METHOD, part=None, took_part=True):
    """Results per case as an evaluation writes them; patients with a Dice of None have no blood."""
    own = method.model_copy(update={"trained_at": at, "repeat": repeat})
    task = evaluating(own, fold=fold, part=part)
    results = [
        (
            f"case-{i}",
            f"{i:064x}",
            a_case(f"p{fold}-{i}", 0.0 if value is None else 20.0, 0.0 if value is None else 18.0, value),
        )
        for i, value in enumerate(None if value is None else float(value) for value in dice)
    ]
    keep_results(folder, task, header_of(task, study=study), results, took_part=took_part)


def keep_both(folder, gain, *, spread=0.01, repeats=2, **more):
    """The federation and the site alone, each trained so often, with a true gain."""
    random = np.random.default_rng(1)
    for repeat in range(1, repeats + 1):
        alone = made_up()
        keep(folder, alone, at=SITE, repeat=repeat, **more)
        keep(folder, alone + gain + random.normal(0, spread, alone.size), repeat=repeat, **more)


def test_the_gain_is_the_paired_difference_over_the_site_s_own_patients(tmp_path):
    keep_both(tmp_path, 0.05)
    (gain,) = measure_gains(tmp_path, SITE)
    assert (gain.study, gain.method, gain.difference.n, gain.difference.trainings) == (FIRST, "cp_lora-r2", 12, 2)
    assert gain.alone == pytest.approx(made_up().mean())
    assert gain.together - gain.alone == pytest.approx(gain.difference.value)
    assert 0.03 < gain.difference.low < 0.05 < gain.difference.high < 0.07
    assert str(gain).startswith("cp_lora-r2: taking part gains you 0.0")
    assert str(gain).endswith(f"Dice {gain.together:.3f} together, {gain.alone:.3f} alone, n = 12")
    assert gain.row()["difference"] == gain.difference.value
    json.dumps(gain.row(), allow_nan=False)


def test_a_network_that_the_site_did_not_train_is_no_gain_and_lifts_no_refusal(tmp_path):
    keep_both(tmp_path, -0.05)
    for repeat in (1, 2):  # a later study trains at the other sites, because this one refuses
        keep(tmp_path, made_up() + 0.05, study=SECOND, repeat=repeat, took_part=False)
        keep(tmp_path, made_up(), study=SECOND, at=SITE, repeat=repeat)
    (gain,) = measure_gains(tmp_path, SITE)
    assert (gain.study, gain.difference.value < 0) == (FIRST, True)


WORDS = {
    "loss": (-0.05, 2, 12, "taking part costs you 0.0"),
    "unclear": (0.0, 2, 12, "taking part makes no clear difference to you, "),
    "once": (0.05, 1, 12, "over patients only); one training: no verdict."),
}


@pytest.mark.parametrize(("gain", "repeats", "n", "words"), WORDS.values(), ids=WORDS.keys())
def test_a_gain_in_words(tmp_path, gain, repeats, n, words):
    keep_both(tmp_path, gain, repeats=repeats)
    (found,) = measure_gains(tmp_path, SITE)
    assert words in str(found)
    assert found.difference.n == n


def test_few_patients_have_a_gain_without_an_interval(tmp_path):
    for repeat in (1, 2):
        keep(tmp_path, [0.5, 0.6, 0.7], repeat=repeat)
        keep(tmp_path, [0.4, 0.5, 0.6], repeat=repeat, at=SITE)
    (found,) = measure_gains(tmp_path, SITE)
    assert str(found) == "cp_lora-r2: Dice 0.600 together, 0.500 alone, n = 3; too few patients for an interval"


def test_results_of_different_studies_are_never_mixed(tmp_path):
    keep_both(tmp_path, 0.05, study=FIRST)
    keep_both(tmp_path, -0.05, study=SECOND)
    keep(tmp_path, made_up(), study="3" * 64)  # the federation alone: nothing to compare with
    found = measure_gains(tmp_path, SITE)
    assert [(gain.study, gain.difference.value > 0) for gain in found] == [(FIRST, True), (SECOND, False)]


def test_only_networks_that_were_trained_at_this_site_alone_count_as_alone(tmp_path):
    keep(tmp_path, made_up())
    keep(tmp_path, made_up(), at="sah_b")
    assert measure_gains(tmp_path, SITE) == []
    keep(tmp_path, made_up(), at=SITE)
    assert [gain.difference.value for gain in measure_gains(tmp_path, SITE)] == [0.0]


def test_a_method_with_a_part_at_each_site_counts_with_this_site_s_part_against_the_same_method_without_parts(tmp_path):
    private = METHOD.model_copy(update={"private_rank": 1})
    keep(tmp_path, made_up() + 0.1, method=private, part="personal")
    keep(tmp_path, made_up() - 0.1, method=private, part="shared")
    keep(tmp_path, made_up(), at=SITE)
    (gain,) = measure_gains(tmp_path, SITE)
    assert (gain.method, gain.difference.value) == ("cp_lora-r2-private1", pytest.approx(0.1))
    keep(tmp_path, made_up() + 0.2, at=SITE, method=private, part="personal")
    (gain,) = measure_gains(tmp_path, SITE)
    assert gain.difference.value == pytest.approx(-0.1)  # rather against the method with the same parts, alone


def test_the_last_result_of_a_case_counts_and_cases_without_blood_do_not(tmp_path):
    keep(tmp_path, [*(made_up() - 0.2), None])
    keep(tmp_path, [*made_up(), None])
    keep(tmp_path, [*made_up(), None], at=SITE)
    (gain,) = measure_gains(tmp_path, SITE)
    assert (gain.difference.value, gain.difference.n) == (0.0, 12)


def test_a_training_that_has_not_segmented_all_cases_yet_does_not_count(tmp_path):
    for at in (None, SITE):
        keep(tmp_path, made_up(6), at=at)
        keep(tmp_path, made_up(6, seed=1), at=at, fold=1)
    keep(tmp_path, made_up(6) - 0.3, repeat=2)
    (gain,) = measure_gains(tmp_path, SITE)
    assert (gain.difference.value, gain.difference.n, gain.difference.trainings) == (0.0, 12, 1)
    keep(tmp_path, made_up(6, seed=1) - 0.3, repeat=2, fold=1)
    assert measure_gains(tmp_path, SITE)[0].difference.value == pytest.approx(-0.15)


def test_lines_of_older_versions_and_torn_lines_are_left_out(tmp_path):
    keep_both(tmp_path, 0.05)
    before = measure_gains(tmp_path, SITE)
    older = {"method": "cp_lora-r2", "fold": 0, "case": "case-0", "key": "p", "volume_ml": 3.0, "dice": 0.1}
    with (tmp_path / FILE).open("a") as stream:
        stream.write(json.dumps(older) + '\n[1]\n{"torn')
    assert measure_gains(tmp_path, SITE) == before
    assert measure_gains(tmp_path / "nowhere", SITE) == []


OTHER = [{"repeat": "two"}, {"study": 1}, {"method": []}, {"part": "half"}, {"volume_ml": "x"}, {"dice": {}}]


@pytest.mark.parametrize("other", OTHER, ids=lambda other: next(iter(other)))
def test_lines_with_values_of_another_type_and_without_text_are_left_out(tmp_path, other):
    keep_both(tmp_path, 0.05)
    before, line = measure_gains(tmp_path, SITE), (tmp_path / FILE).read_text().splitlines()[0]
    with (tmp_path / FILE).open("ab") as stream:
        stream.write(json.dumps(json.loads(line) | other).encode() + b"\n\xff\xfe\n" + b"[" * 100_000 + b"\n")
    assert measure_gains(tmp_path, SITE) == before


def test_results_that_cannot_be_written_stop_the_evaluation(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(StorageError, match=r"cases\.jsonl: cannot be written"):
        keep(tmp_path, made_up())


def test_zero_shot_is_kept_as_a_method_of_its_own(tmp_path):
    task = evaluating(ZeroShot(method="zero_shot"))
    keep_results(tmp_path, task, header_of(task), [("case-0", "", a_case("p", 20.0, 18.0, 0.5))], took_part=False)
    (kept,) = read_results(tmp_path)
    assert (kept.federated, kept.trained_at, kept.repeat, kept.fold, kept.case) == ("zero_shot", None, 1, 0, "case-0")


# --- the gate -------------------------------------------------------------------------------------------------------


def asked(hospital, task=None):
    task = task or training()
    check_request(hospital.config, protocol.TRAIN, task, header_of(task))


def test_a_site_that_requires_no_gain_trains_what_makes_it_lose(hospital):
    keep_both(hospital.config.folder, -0.1)
    asked(hospital)


def test_a_site_refuses_further_training_of_a_method_that_makes_it_lose_and_gives_the_reason(hospital, caplog):
    keep_both(hospital.config.folder, -0.1)
    hospital.allow(require_gain=0.0)
    error, line = hospital.refuses(protocol.TRAIN, hospital.request(training(), hospital.start))
    assert (error, line["event"], line["details"]["error"]) == ("NoGain", "refused", "NoGain")
    reason = line["details"]["reason"]
    assert reason.startswith(
        "site sah_a: is asked to train what makes it lose. policy.require_gain: expected a gain of"
    )
    assert "measured in study 111111111111: cp_lora-r2: taking part costs you 0.099 (0.096 to 0.101)" in reason
    assert "taking part costs you" in caplog.text


def test_the_server_reads_in_the_error_reply_why_the_site_refuses_and_no_number(hospital):
    keep_both(hospital.config.folder, -0.1)
    hospital.allow(require_gain=0.0)
    request = flower.new_message(hospital.request(training(), hospital.start), 7, protocol.TRAIN, "", None)
    flower.give_id(request)
    error, _ = hospital.refuses(protocol.TRAIN, request.content)
    assert reason_of(flower.error_reply(request, error), 1.0) == (
        "error at the site: NoGain (the method makes this site lose, by its own measurement; numbers in the site's log)"
    )


ALLOWED = {
    "a gain": (0.05, 2, 0.0, training()),
    "no clear loss": (-0.002, 2, 0.0, training()),
    "a loss within the margin": (-0.1, 2, -0.2, training()),
    "one training decides nothing": (-0.1, 1, 0.0, training()),
    "another method": (-0.1, 2, 0.0, training(method=AdapterTuning(method="cp_lora", rank=4))),
    "training at this site alone": (-0.1, 2, 0.0, training(method=METHOD.model_copy(update={"trained_at": SITE}))),
}


@pytest.mark.parametrize(("gain", "repeats", "least", "task"), ALLOWED.values(), ids=ALLOWED.keys())
def test_a_site_goes_on_with(hospital, gain, repeats, least, task):
    keep_both(hospital.config.folder, gain, repeats=repeats)
    hospital.allow(require_gain=least)
    asked(hospital, task)


def test_a_small_gain_is_refused_where_more_is_required_also_for_further_repeats(hospital):
    keep_both(hospital.config.folder, 0.05)
    hospital.allow(require_gain=0.2)
    for repeat in (1, 3):
        with pytest.raises(
            NoGain, match=r"expected a gain of 0\.2 or more over training alone, measured in study 1111"
        ):
            asked(hospital, training(method=METHOD.model_copy(update={"repeat": repeat})))


def test_the_last_study_that_measured_a_method_decides(hospital):
    hospital.allow(require_gain=0.0)
    keep_both(hospital.config.folder, -0.1, study=FIRST)
    keep_both(hospital.config.folder, 0.1, study=SECOND)
    asked(hospital)
    keep_both(hospital.config.folder, -0.1, study=FIRST)
    with pytest.raises(NoGain, match="measured in study 1111"):
        asked(hospital)
