"""Hostile sites of a simulation: what each attack sends, by hand and in whole studies inside one process."""

import numpy as np
import pytest
from harness.tiny_study import TINY, changed

from sahfl.config import Study, parse
from sahfl.federation.site.site import Site
from sahfl.simulation.hostile import ATTACKS, LabelFlipper
from sahfl.simulation.simulate import site_configs

RECEIVED = {"up": np.array([1.0, 2.0], np.float32), "down": np.array([[3.0]], np.float32)}
TRAINED = {"up": np.array([1.5, 2.0], np.float32), "down": np.array([[2.0]], np.float32)}
SENT = {
    "label_flip": ([1.5, 2.0], [[2.0]]),
    "times_1000": ([501.0, 2.0], [[-997.0]]),
    "sign_flip": ([0.5, 2.0], [[4.0]]),
    "free_rider": ([1.0, 2.0], [[3.0]]),
    "nan": ([np.nan, 2.0], [[np.nan]]),
}


@pytest.mark.parametrize("act", SENT)
def test_each_attack_sends_what_it_says_by_hand(act):
    sent = ATTACKS[act](RECEIVED, TRAINED, np.random.default_rng(0))
    for value, expected in zip(sent.values(), SENT[act], strict=True):
        np.testing.assert_array_equal(value, np.asarray(expected, np.float32))
    assert RECEIVED["up"].tolist() == [1.0, 2.0]  # attacks are pure functions
    assert TRAINED["up"].tolist() == [1.5, 2.0]


@pytest.mark.parametrize(("act", "largest"), [("random", 10), ("noisy_free_rider", 0.01)])
def test_random_attacks_are_functions_of_their_seed_and_float32(act, largest):
    first, same, other = (ATTACKS[act](RECEIVED, TRAINED, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first["up"] == same["up"]).all()
    assert (first["up"] != other["up"]).any()
    assert first["up"].dtype == np.float32
    assert np.abs(first["up"] - RECEIVED["up"]).max() < largest


# --- whole studies --------------------------------------------------------------------------------------------------

SHORT = changed(TINY, pretrain__rounds=1, finetune__rounds=1)


@pytest.fixture(scope="module")
def honest_run(federate_once):
    """The same study without a hostile site."""
    return federate_once(SHORT)


def with_hostile(act, settings=SHORT, **changes):
    return changed(settings, **changes) | {"hostile": {"sah_b": act}}


def trained(grid):
    """(numbers received, numbers sent) of each training reply of the second stage, by site and fold."""
    return {
        (site, request.content["header"]["fold"]): tuple(
            np.frombuffer(message.content["state"]["flat"].data, "<f4") for message in (request, reply)
        )
        for site, request, reply in grid.seen
        if request.metadata.message_type == "train" and request.content["header"]["stage"] == "finetune"
    }


def finetune_lines(folder):
    return [line for line in folder.journal() if line["event"] == "round" and line["stage"] == "finetune"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoding", "reason"),
    [
        pytest.param("float32", "contains NaN or inf", marks=pytest.mark.slow),
        ("float16", "contains NaN or inf"),
        pytest.param("int8", "got step 'nan'", marks=pytest.mark.slow),
    ],
)
def test_B01_a_hostile_site_s_nan_is_refused_by_name_in_every_encoding(federate, encoding, reason):
    folder, _ = federate(with_hostile("nan", rounds__payload=encoding))
    for line in finetune_lines(folder):
        (refused,) = line["refused"]
        assert refused["site"] == "sah_b"
        assert reason in refused["reason"]
        assert [used["site"] for used in line["used"]] == ["sah_a", "sah_c"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "payload", ["int8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("float32", "float16"))]
)
def test_B04_a_flipped_sign_is_used_as_a_change_of_honest_length_in_every_encoding(federate, payload):
    honest, _ = federate(changed(SHORT, rounds__payload=payload), name="honest")
    hostile, _ = federate(with_hostile("sign_flip", rounds__payload=payload))
    for before, after in zip(finetune_lines(honest), finetune_lines(hostile), strict=True):
        assert after["refused"] == []
        assert after["norms"] == pytest.approx(before["norms"], rel=1e-2)
        said = [[(site["site"], site["n_volumes"], site["loss"]) for site in line["used"]] for line in (before, after)]
        assert said[0] == said[1]  # what it says of itself stays honest


@pytest.mark.slow
def test_B04_a_flipped_sign_by_hand_and_the_other_sites_send_what_they_did(federate, honest_run):
    """received - (trained - received), from the honest study of the same seed."""
    (_, honest), (_, hostile) = honest_run, federate(with_hostile("sign_flip"))
    ours, theirs = trained(honest), trained(hostile)
    assert ours.keys() == theirs.keys()
    for (site, fold), (received, sent) in theirs.items():
        honestly = ours[site, fold][1]
        if site == "sah_b":
            np.testing.assert_allclose(sent, 2 * received - honestly, rtol=1e-6)
            assert (sent != honestly).any()
        else:
            np.testing.assert_array_equal(sent, honestly)


@pytest.mark.slow
def test_B04_a_free_rider_sends_what_it_received(federate):
    _, grid = federate(with_hostile("free_rider"))
    for (site, _), (received, sent) in trained(grid).items():
        assert (sent == received).all() == (site == "sah_b")


@pytest.mark.slow
def test_B04_a_label_flipper_trains_on_inverted_annotations_and_is_scored_on_the_true_ones(
    federate, honest_run, tmp_path
):
    honest, first = honest_run
    hostile, second = federate(with_hostile("label_flip"))
    ours, theirs = trained(first), trained(second)
    for key, (_, sent) in theirs.items():
        assert (sent == ours[key][1]).all() == (key[0] != "sah_b")
    zero_shot = [folder.read_json("results.json")["methods"][0] for folder in (honest, hostile)]
    assert zero_shot[0] == zero_shot[1]
    study = parse(Study, SHORT, where="test")
    (site,) = [site for site in site_configs(study, tmp_path / "run" / "sites") if site.name == "sah_b"]
    true_ones, flipped_ones = (kind(site).load_views(Site(site).cases(), study.views) for kind in (Site, LabelFlipper))
    for true, flipped in zip(true_ones, flipped_ones, strict=True):
        for view, stack in true.stacks.items():
            label = stack.label[:]
            assert label.any()
            np.testing.assert_array_equal(flipped.stacks[view].label[:], ~label)
            np.testing.assert_array_equal(flipped.stacks[view].image[:], stack.image[:])
            np.testing.assert_array_equal(flipped.stacks[view].with_blood, range(len(label)))  # no slice is all blood


@pytest.mark.slow
def test_a_hostile_site_s_noise_is_the_same_when_the_run_is_started_again(federate):
    (_, first), (_, second) = (federate(with_hostile("noisy_free_rider"), name=name) for name in ("first", "second"))
    for (received, sent), (_, again) in zip(trained(first).values(), trained(second).values(), strict=True):
        np.testing.assert_array_equal(sent, again)
        assert (sent != received).any()


@pytest.mark.slow
def test_journal_results_and_report_name_the_hostile_sites_of_a_run_and_of_no_other(federate, honest_run):
    folder, _ = federate(with_hostile("free_rider"))
    lines = [line for line in folder.journal() if line["event"] == "hostile"]
    assert lines == [{"event": "hostile", "sites": {"sah_b": "free_rider"}}]
    federate(with_hostile("free_rider"))  # resumed: the line is there already
    assert [line for line in folder.journal() if line["event"] == "hostile"] == lines
    assert folder.read_json("results.json")["hostile"] == {"sah_b": "free_rider"}
    sentence = "A simulation with hostile sites: sah_b (free rider). No result of a real study."
    assert sentence in (folder.path / "report.html").read_text()
    honest, _ = honest_run
    assert honest.read_json("results.json")["hostile"] == {}
    assert "hostile" not in {line["event"] for line in honest.journal()}
    assert "hostile sites" not in (honest.path / "report.html").read_text()


@pytest.mark.slow
def test_a_hostile_site_changes_what_it_sends_at_the_end_and_nothing_of_a_training_alone(federate):
    private = {"method": "cp_lora", "rank": 2, "private_rank": 1, "share_private_at_end": True}
    alone = {"method": "cp_lora", "rank": 2, "trained_at": "sah_a"}
    settings = changed(TINY, finetune__methods=[private, alone], finetune__rounds=1, hostile={"sah_a": "times_1000"})
    folder, _ = federate(settings, policy={"private_mean": True})
    rounds = [line for line in folder.journal() if line["event"] == "round" and line["stage"] == "finetune"]
    federated = [line for line in rounds if line["method"] == "cp_lora-r2-private1"]
    assert [set(line["shortened"]) for line in federated] == [{"sah_a"}] * 2
    assert [(line["committed"], line["refused"]) for line in rounds] == [(True, [])] * 4
    state = folder.last_checkpoint("cp_lora-r2-private1/fold-0").state
    assert max(abs(value).max() for name, value in state.items() if name.endswith("private.factor_out")) < 0.5
    assert [set(line["private_shortened"]) for line in federated] == [{"sah_a"}] * 2
