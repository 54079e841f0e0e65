"""Hostile updates, by the ids of the fault list: what is refused, and how far one site can move the global state."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from harness.tiny_study import TINY, changed

from sahfl.adapters.files import load_tensors
from sahfl.errors import RunFailed
from sahfl.events import UpdateBounded, listening

HOSTILE = "sah_b"
SHORT = changed(TINY, pretrain__rounds=1, finetune__methods=[{"method": "cp_lora", "rank": 2}])


def is_update(request, stage="finetune"):
    return request.metadata.message_type == "train" and request.content["header"]["stage"] == stage


def body(content):
    return np.frombuffer(content["state"]["flat"].data, "<f4").copy()


def with_body(reply, flat):
    content = np.asarray(flat, "<f4").tobytes()
    style = reply.content["state"]["flat"].stype
    reply.content["state"] = ArrayRecord({"flat": Array("float32", (len(content) // 4,), style, content)})
    return reply


def lines_of(folder, stage="finetune"):
    return [line for line in folder.journal() if line["event"] == "round" and line["stage"] == stage]


def checkpoints(folder):
    return {str(path): load_tensors(path)[0] for path in sorted(folder.path.glob("state/**/*.safetensors"))}


def final_numbers(folder, fold):
    state = folder.last_checkpoint(f"cp_lora-r2/fold-{fold}").state
    return np.concatenate([np.ravel(tensor) for tensor in state.values()])


# --- B01: NaN and Inf -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "where"), [(np.inf, -1), *(pytest.param(value, 0, marks=pytest.mark.slow) for value in (np.nan, -np.inf))]
)
def test_B01_a_number_that_is_none_is_refused_naming_site_and_tensor_and_the_round_goes_on(federate, value, where):
    def poison(site, request, reply):
        if site == HOSTILE and is_update(request):
            flat = body(reply.content)
            flat[where] = value
            return with_body(reply, flat)
        return reply

    folder, grid = federate(changed(SHORT, finetune__rounds=1), change=poison)
    lines = lines_of(folder)
    assert len(lines) == 2  # folds
    names = next(list(reply.content["layout"]["names"]) for _, request, reply in grid.seen if is_update(request))
    for line in lines:
        (refused,) = line["refused"]
        assert refused == {"site": HOSTILE, "reason": f"{names[where]!r}: contains NaN or inf"}
        assert [site["site"] for site in line["used"]] == ["sah_a", "sah_c"]
        assert line["committed"]
        assert HOSTILE not in line["norms"]
    states = checkpoints(folder)
    assert len(states) == 3
    assert all(np.isfinite(tensor).all() for state in states.values() for tensor in state.values())


def test_B01_below_the_quorum_the_run_fails_naming_the_sites_and_nothing_is_committed(federate, tmp_path):
    def poison(site, request, reply):
        if site != "sah_a" and is_update(request):
            return with_body(reply, body(reply.content) * np.nan)
        return reply

    with pytest.raises(RunFailed, match=r"round 1, attempt 2: got 1 usable .*sah_b: .*NaN or inf; sah_c: .*NaN or inf"):
        federate(SHORT, change=poison)
    assert not list((tmp_path / "run" / "state").glob("cp_lora*/**/*.safetensors"))


# --- B04: updates that fit, but are hostile -------------------------------------------------------------------------


def times_1000(flat, before):
    return before + 1000 * (flat - before)


def sign_flip(flat, before):
    return before - (flat - before)


def noise(flat, before):
    return np.random.default_rng(0).normal(0, 5, flat.size).astype("f")


ATTACKS = {"times-1000": (times_1000, True), "sign-flip": (sign_flip, False), "random": (noise, True)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "volumes"),
    [
        ("times-1000", "own"),
        pytest.param("sign-flip", "all-registered", marks=pytest.mark.slow),
        pytest.param("times-1000", "all-registered", marks=pytest.mark.slow),
        pytest.param("sign-flip", "own", marks=pytest.mark.slow),
        pytest.param("random", "own", marks=pytest.mark.slow),
        pytest.param("random", "all-registered", marks=pytest.mark.slow),
    ],
)
def test_B04_no_site_moves_the_mean_by_more_than_the_documented_bound(federate, name, volumes):
    """The bound: most_share * most_norm * the median length of all sites' changes. Numbers as they arrived, by hand."""
    attack, is_long = ATTACKS[name]
    arrived, heard = {}, []

    def attack_and_remember(site, request, reply):
        if not is_update(request):
            return reply
        before = body(request.content)
        if site == HOSTILE:
            reply = with_body(reply, attack(body(reply.content), before))
            if volumes == "all-registered":
                reply.content["metrics"]["n_volumes"] = 2  # of the two, one is held out
        fold, n = request.content["header"]["fold"], reply.content["metrics"]["n_volumes"]
        arrived.setdefault(fold, {"before": before})[site] = (n, body(reply.content) - before)
        return reply

    with listening(heard.append):
        folder, _ = federate(changed(SHORT, finetune__rounds=1), change=attack_and_remember)
    config = folder.study().rounds
    for line in lines_of(folder):
        found = dict(arrived[line["fold"]])
        before = found.pop("before")
        lengths = {site: np.linalg.norm(change.astype(np.float64)) for site, (_, change) in found.items()}
        bound = config.most_share * config.most_norm * np.median(list(lengths.values()))
        after = final_numbers(folder, line["fold"])
        total = sum(n for n, _ in found.values())
        honest = sum(n / total * change for site, (n, change) in found.items() if site != HOSTILE)
        assert np.linalg.norm(after - before - honest) <= bound * (1 + 1e-4)
        assert line["norms"] == pytest.approx(lengths, rel=1e-4)
        assert (set(line["shortened"]) == {HOSTILE}) == is_long
        if is_long:
            assert lengths[HOSTILE] > 10 * bound  # what the mean without bounds would have let through
            longest = config.most_norm * np.median(list(lengths.values()))
            assert line["shortened"][HOSTILE] == pytest.approx(longest / lengths[HOSTILE], rel=1e-3)
    bounded = [event for event in heard if isinstance(event, UpdateBounded)]
    assert [event.site for event in bounded] == ([HOSTILE] * 2 if is_long else [])
    assert all("round 1: a change shortened to" in event.text for event in bounded)


@pytest.mark.slow
def test_B04_a_study_without_an_attacker_shortens_nothing_and_says_nothing(federate):
    heard = []
    with listening(heard.append):
        folder, _ = federate(changed(SHORT, finetune__rounds=1))
    assert [line["shortened"] for line in lines_of(folder)] == [{}, {}]
    assert not [event for event in heard if isinstance(event, UpdateBounded)]


@pytest.mark.slow
def test_B04_a_site_with_most_of_the_volumes_has_no_more_than_its_share(federate):
    """sah_a has 3 volumes, the others 2; a hostile majority needs most_share below its share to be cut."""
    folder, _ = federate(changed(SHORT, finetune__rounds=1, rounds__most_share=0.34))
    lightened = {site for line in lines_of(folder) for site in line["lightened"]}
    assert lightened == {"sah_a"}
