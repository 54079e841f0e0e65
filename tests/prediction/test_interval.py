"""The interval of a volume holds the annotated one as often as it says, and is silent where it cannot."""

import json

import numpy as np
import pytest
from harness.finished_run import write_run
from harness.tiny_study import TINY, changed

from sahfl.errors import RunError
from sahfl.prediction.interval import LEAST_SCANS, LEVEL, Calibration, Interval, read_calibration
from sahfl.prediction.networks import read_trained
from sahfl.prediction.unlike import Difference
from sahfl.prediction.written import describe_interval
from sahfl.statistics.metrics import VOLUME_EDGES_ML, count_volumes


def calibration(pairs):
    return Calibration(VOLUME_EDGES_ML, count_volumes(pairs), 0.5)


def draw(random, n):
    """Annotated and predicted volumes: log-normal, with relative errors that are larger for small ones."""
    annotated = random.lognormal(2.7, 1.1, n)
    spread = 0.15 + 0.6 / np.sqrt(1 + annotated)
    return annotated, np.maximum(0, annotated * random.lognormal(-0.1, spread) + random.normal(0, 1, n))


@pytest.mark.parametrize("n", [LEAST_SCANS, 60, 500])
def test_the_annotated_volume_lies_in_the_interval_as_often_as_it_says(n):
    random = np.random.default_rng(n)
    held = {"all": [], "small": [], "large": []}
    for _ in range(600):
        calibrated = calibration(np.column_stack(draw(random, n)))
        (annotated,), (predicted,) = draw(random, 1)
        found = calibrated.interval(float(predicted), 0.5)
        if predicted > 0:
            inside = found.low_ml <= annotated < (found.high_ml or np.inf)
            held["all"].append(inside)
            held["small" if predicted < 15 else "large"].append(inside)
    least = LEVEL - 3 * np.sqrt(LEVEL * (1 - LEVEL) / 250)  # three standard errors of the smaller group
    assert all(len(group) > 200 and np.mean(group) > least for group in held.values())
    assert np.mean(held["all"]) < 1  # an interval that holds everything says nothing


def test_an_interval_covers_the_errors_of_the_held_out_scans():
    # 40 scans: predicted 25 mL, of which 36 are right, two are a bin lower and two are a bin higher.
    pairs = [(25, 25)] * 36 + [(17, 25)] * 2 + [(35, 25)] * 2
    assert calibration(pairs).interval(25, 0.5) == Interval(15, 40, 40)  # rank floor(41 * 0.05) = 2
    pairs = [(25, 25)] * 38 + [(17, 25), (35, 25)]
    assert calibration(pairs).interval(25, 0.5) == Interval(20, 30, 40)
    assert calibration(pairs).interval(55, 0.5) == Interval(50, 70, 40)  # the same error in bins


def test_errors_near_the_volume_count_if_they_are_enough():
    small, large = [(4, 1.5)] * 40, [(120, 120)] * 40
    assert calibration(small + large).interval(120, 0.5) == Interval(100, 150, 40)
    assert calibration(small + large).interval(1.5, 0.5) == Interval(3, 5, 40)


def test_an_interval_in_the_open_bin_has_no_upper_end():
    assert calibration([(900, 310)] * 40).interval(310, 0.5) == Interval(200, None, 40)
    assert str(Interval(200, None, 40)) == "200 mL or more (90% interval from 40 held-out scans)"
    assert str(Interval(15, 40.0, 40)) == "15 to 40 mL (90% interval from 40 held-out scans)"


def test_the_interval_of_a_scan_unlike_the_study_s_is_called_doubtful():
    found = Interval(15, 40.0, 40)
    like, unlike = (describe_interval(found, items) for items in ([], [Difference("few_slices", "5 slices")]))
    assert like["text"] == str(found)
    assert unlike["text"] == f"{found}; doubtful, because the scan is unlike those of the study"
    assert like | {"text": ""} == unlike | {"text": ""} == vars(found) | {"level": 0.9, "text": ""}


def test_an_average_of_repeats_has_counts_that_are_no_whole_numbers():
    whole = calibration([(25, 25)] * 36 + [(17, 25)] * 2 + [(35, 25)] * 2)
    thirds = Calibration(VOLUME_EDGES_ML, whole.counts / 3 * 3 + 0.0, 0.5)
    assert thirds.interval(25, 0.5) == whole.interval(25, 0.5)


WITHOUT = {
    "too-few": ([(25, 25)] * 18, 25, 0.5, "no interval: 18 held-out scans with blood, fewer than 19"),
    "other-threshold": ([(25, 25)] * 40, 25, 0.3, "no interval: the held-out patients were segmented at threshold 0.5"),
    "no-blood": ([(25, 25)] * 40, 0, 0.5, "no interval: no blood was found, and it is for scans that show blood"),
}


@pytest.mark.parametrize(("pairs", "volume", "threshold", "text"), WITHOUT.values(), ids=WITHOUT.keys())
def test_without_enough_knowledge_there_is_no_interval_but_a_reason(pairs, volume, threshold, text):
    assert calibration(pairs).interval(volume, threshold) == text


METHODS = [{"method": "cp_lora", "rank": 2}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    write_run(folder, changed(TINY, finetune__methods=METHODS))
    return folder


def results(volume):
    return {"methods": [{"id": "cp_lora-r2", "volume": volume}], "sites": []}


def calibrated(run, content):
    (run / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return read_calibration(run, read_trained(run, method="cp_lora-r2"))


def test_a_run_s_histogram_is_read(run):
    counts = count_volumes([(25, 25)] * 40).tolist()
    found = calibrated(run, results({"n": 40, "histogram": {"edges_ml": VOLUME_EDGES_ML, "counts": counts, "n": 40}}))
    assert found.interval(25, read_trained(run, method="cp_lora-r2").threshold) == Interval(20, 30, 40)


def test_a_run_says_why_it_has_no_histogram(run):
    text = "no interval: every site withheld its histogram of volumes"
    assert calibrated(run, results({"n": 60, "histogram": None})).interval(25, 0.5) == text
    text = "no interval: 3 held-out scans with blood, fewer than 19"
    assert calibrated(run, results({"n": 3, "histogram": None})).interval(25, 0.5) == text
    assert "fewer than 19" in calibrated(run, {"methods": []}).interval(25, 0.5)
    (run / "results.json").unlink()
    assert "is not finished" in read_calibration(run, read_trained(run)).interval(25, 0.5)


@pytest.mark.parametrize("content", ["[]", "{}", '{"methods": 3}', "no json"])
def test_damaged_results_are_an_error(run, content):
    with pytest.raises(RunError, match=r"results\.json"):
        calibrated(run, content)


def test_counts_of_another_shape_are_an_error(run):
    with pytest.raises(RunError, match=r"results\.json"):
        calibrated(run, results({"n": 40, "histogram": {"edges_ml": [0, 1], "counts": [[1, 2]], "n": 3}}))
    with pytest.raises(RunError, match=r"results\.json is not one of sahfl"):
        calibrated(run, results({"n": 40, "histogram": {"edges_ml": [0, 1], "counts": [[10**400]], "n": 3}}))
