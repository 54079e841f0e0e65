"""Sites with ranks of their own, over whole studies: what travels, what is kept, and that nothing depends on a kill."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from harness.tiny_study import TINY, changed

from sahfl.adapters import exchanged
from sahfl.adapters.exchanged import factored_layers
from sahfl.adapters.files import load_tensors
from sahfl.adapters.folder import read_adapter
from sahfl.aggregation.lowrank import project
from sahfl.aggregation.update import SiteUpdate
from sahfl.federation.tensors import RAW, read_state
from sahfl.networks import fine_tuned_network

RANKS = {"sah_a": 2, "sah_b": 4, "sah_c": 8}


def study(method="cp_lora", ranks=RANKS, **changes):
    methods = [{"method": method, "rank": 4, "aggregation": "project", "site_ranks": ranks}]
    return changed(TINY, pretrain__rounds=1, finetune__methods=methods, **changes)


def is_update(request):
    return request.metadata.message_type == "train" and request.content["header"]["stage"] == "finetune"


def training(grid):
    return [(site, request.content, reply.content) for site, request, reply in grid.seen if is_update(request)]


def rounds(folder):
    return [line for line in folder.journal() if line["event"] == "round" and line["stage"] == "finetune"]


def adapters(folder):
    return {
        str(p.relative_to(folder.path)): p.read_bytes() for p in sorted(folder.path.glob("adapters/**/*.safetensors"))
    }


def network(folder, rank=None):
    settings = folder.study()
    (method,) = settings.finetune.methods
    base, _ = load_tensors(folder.path / "base" / "base.safetensors")
    own = method.at_rank(rank or method.rank)
    return fine_tuned_network(settings.views, settings.model, base, own, settings.seed), own


def shapes(content):
    return dict(zip(content["layout"]["names"], content["layout"]["shapes"], strict=True))


def with_body(reply, change):
    array = reply.content["state"]["flat"]
    body = change(np.frombuffer(array.data, "<f4")).astype("<f4").tobytes()
    reply.content["state"] = ArrayRecord({"flat": Array("float32", (len(body) // 4,), RAW, body)})
    return reply


@pytest.fixture(scope="module")
def one_round(federate_once):
    """The study of one round, in which nothing goes wrong."""
    return federate_once(study(finetune__rounds=1))[0]


# --- what travels ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["cp_dora", *(pytest.param(m, marks=pytest.mark.slow) for m in ("cp_lora", "lora_c"))]
)
def test_each_site_gets_and_sends_its_own_rank_and_the_result_has_the_global_one(federate, method):
    folder, grid = federate(study(method))
    name = f"{method}-r4-project"
    likes = {rank: exchanged.read(network(folder, rank)[0]) for rank in RANKS.values()}
    seen = training(grid)
    assert len(seen) == 2 * 2 * 3  # folds x rounds x sites
    for site, request, reply in seen:
        like, task = likes[RANKS[site]], json.loads(request["task"]["json"])
        assert {n: ",".join(map(str, v.shape)) for n, v in like.items()} == shapes(request) == shapes(reply)
        assert request["header"]["method"] == reply["header"]["method"] == name
        assert task["rank"] == (None if site == "sah_b" else RANKS[site])
        assert (task["method"]["rank"], task["method"]["site_ranks"]) == (4, {})
    for fold in range(2):
        adapter = read_adapter(folder.path / "adapters" / name / f"fold-{fold}")
        assert {n: v.shape for n, v in adapter.state.items()} == {n: v.shape for n, v in likes[4].items()}
        assert adapter.note.method.site_ranks == RANKS
        card = (folder.path / "adapters" / name / f"fold-{fold}" / "README.md").read_text()
        assert "| trained at another rank | sah_a at 2, sah_b at 4, sah_c at 8 |" in card
    evaluated = [request.content for _, request, _ in grid.seen if request.metadata.message_type == "evaluate"]
    assert len(evaluated) == 2 * 3
    for content in evaluated:
        assert {n: ",".join(map(str, v.shape)) for n, v in likes[4].items()} == shapes(content)
        assert json.loads(content["task"]["json"])["rank"] is None
    for line in rounds(folder):
        assert (line["refused"], line["missing"], line["shortened"]) == ([], [], {})
        for way in ("bytes_up", "bytes_down"):
            a, b, c = (used[way] for used in line["used"])
            assert 1.5 * a < b < c / 1.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "payload"),
    [
        ("cp_lora", "int8"),
        ("lora_c", "float32"),
        pytest.param("cp_lora", "float32", marks=pytest.mark.slow),
        pytest.param("cp_dora", "float32", marks=pytest.mark.slow),
    ],
)
def test_the_next_state_is_the_projected_mean_of_what_the_sites_sent(federate, method, payload):
    """A rounded reply is a change of what its site itself was sent."""
    folder, grid = federate(study(method, finetune__rounds=1, rounds__payload=payload))
    net, own = network(folder)
    like, layers = exchanged.read(net), factored_layers(net, own)
    for fold in range(2):
        updates = []
        for site, request, reply in training(grid):
            if reply["header"]["fold"] == fold:
                sent = read_state(request, like=exchanged.read(network(folder, RANKS[site])[0]))
                got = read_state(reply, like=sent, encoding=payload)
                got = got if payload == "float32" else {name: value + got[name] for name, value in sent.items()}
                updates.append(SiteUpdate(site, reply["metrics"]["n_volumes"], got))
        expected = project(updates, like=like, layers=layers)
        found = folder.last_checkpoint(f"{method}-r4-project/fold-{fold}").state
        assert all((found[name] == value).all() for name, value in expected.items())
        assert any((found[name] != value).any() for name, value in like.items())


@pytest.mark.slow
def test_ranks_that_are_the_global_one_change_no_bit(federate):
    plain, _ = federate(study(ranks={}, finetune__rounds=1), name="plain")
    same, grid = federate(study(ranks=dict.fromkeys(RANKS, 4), finetune__rounds=1), name="same")
    assert adapters(plain) == adapters(same)
    assert len(adapters(same)) == 2
    assert {json.loads(request["task"]["json"])["rank"] for _, request, _ in training(grid)} == {None}


# --- resuming, with all that is kept from round to round ------------------------------------------------------------


class Stop(Exception):
    """Stands for a crash of the server's process."""


INT8 = {"rounds__payload": "int8"}
FLOAT16 = {"rounds__payload": "float16"}


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 5])  # training request of fine-tuning
@pytest.mark.parametrize(
    ("method", "options"),
    [
        pytest.param("cp_lora", {}, id="plain"),
        pytest.param("cp_dora", INT8, id="int8"),
        pytest.param("lora_c", FLOAT16, id="float16"),
    ],
)
def test_a_run_that_stopped_anywhere_resumes_to_bit_identical_adapters(federate, method, options, at):
    settings = study(method, **options)
    reference, _ = federate(settings, name="reference")
    count = 0

    def stop(site, request, reply):
        nonlocal count
        count += is_update(request)
        if count == at:
            raise Stop
        return reply

    with pytest.raises(Stop):
        federate(settings, change=stop)
    resumed, _ = federate(settings)
    assert adapters(resumed) == adapters(reference)
    assert len(adapters(resumed)) == 2


# --- hostile and wrong replies --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("hostile", ["sah_a", "sah_c"])
def test_B04_a_change_times_1000_is_shortened_at_any_rank(federate, one_round, hostile):
    honest = one_round

    def attack(site, request, reply):
        if site != hostile or not is_update(request):
            return reply
        before = np.frombuffer(request.content["state"]["flat"].data, "<f4")
        return with_body(reply, lambda flat: before + 1000 * (flat - before))

    folder, _ = federate(study(finetune__rounds=1), change=attack)
    for line, plain in zip(rounds(folder), rounds(honest), strict=True):
        assert set(line["shortened"]) == {hostile}
        assert line["norms"][hostile] == pytest.approx(1000 * plain["norms"][hostile], rel=1e-2)
        longest = 3 * np.median(list(line["norms"].values()))
        assert line["shortened"][hostile] == pytest.approx(longest / line["norms"][hostile], rel=1e-4)
    start = exchanged.read(network(folder)[0])
    for fold in range(2):
        moved = [
            np.sqrt(sum(np.square(final[name] - value).sum() for name, value in start.items()))
            for final in (run.last_checkpoint(f"cp_lora-r4-project/fold-{fold}").state for run in (folder, honest))
        ]
        assert moved[0] < 4 * moved[1]


@pytest.mark.slow
def test_B02_a_reply_of_another_rank_is_refused_naming_the_tensor_and_the_round_goes_on(federate):
    """sah_a is asked for rank 2 and says that it sends the global one, 4."""
    kept = {}

    def swap(site, request, reply):
        if not is_update(request):
            return reply
        if site == "sah_a":
            names = list(request.content["layout"]["names"])
            shaped = [f"{shape.rpartition(',')[0]},4" for shape in request.content["layout"]["shapes"]]
            reply.content["layout"]["shapes"] = shaped
            kept[site] = names[0], request.content["layout"]["shapes"][0], shaped[0]
        return reply

    folder, _ = federate(study(finetune__rounds=1), change=swap)
    name, wanted, got = kept["sah_a"]
    for line in rounds(folder):
        (refused,) = line["refused"]
        expected, found = (tuple(int(size) for size in text.split(",")) for text in (wanted, got))
        assert refused == {"site": "sah_a", "reason": f"tensor {name!r}: got shape {found}, expected {expected}"}
        assert [used["site"] for used in line["used"]] == ["sah_b", "sah_c"]
        assert line["committed"]
