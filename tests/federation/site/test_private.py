"""What stays at a site: its files, and whole studies in which a part of each method never leaves."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from harness.asking import METHOD
from harness.asking import evaluating as evaluation_of
from harness.in_process import Stop, stop_at
from harness.tiny_study import TINY, changed

from sahfl.adapters import exchanged
from sahfl.adapters.attach import norm_tensors, staying
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.config import AdapterTuning, EvaluationConfig, Study, WeightTuning, parse
from sahfl.config.training import POOLED
from sahfl.errors import AdapterError, PrivatePartLost, RunError
from sahfl.federation import protocol
from sahfl.federation.site.kept import KEPT
from sahfl.federation.site.private import PrivatePart, delete, stored
from sahfl.networks import fine_tuned_network, trained_tensors, whole_network
from sahfl.payload import Header
from sahfl.prediction.site_networks import read_site
from sahfl.task import Task

SLOW = pytest.mark.slow
STUDY = parse(Study, TINY, where="test")
HEADER = Header("study", stage="finetune", method="m", fold=0, round=0, base="b")
ROUNDS = 60
WHOLE = {name: np.full(3, value, np.float32) for value, name in enumerate(("a", "b", "shared"))}
NAMES = ("a", "b")


def own(value):
    return {name: np.full(3, value, np.float32) for name in NAMES}


def part(folder, round_=0, own_round=0, *, evaluating=False, names=NAMES, **header):
    task = Task(
        stage="finetune", seed=3, views=STUDY.views, model=STUDY.model, folds=2, rounds=ROUNDS, own_round=own_round,
        evaluation=EvaluationConfig(replicates=100) if evaluating else None,
    )  # fmt: skip
    return PrivatePart(folder, task, replace(HEADER, round=round_, **header), names)


def keep(folder, *rounds):
    for round_ in rounds:
        part(folder, round_).keep(own(round_), n_volumes=3)


def value_of(found):
    (value,) = {float(number) for tensor in found.values() for number in tensor}
    return value


def read(folder, *, after_round, own_round=0, **options):
    found = part(folder, own_round=own_round, **options).read(WHOLE, after_round=after_round)
    assert tuple(found) == NAMES
    return value_of(found)


def files(folder):
    return sorted(path.stem.rpartition("-")[2] for path in (folder / "private").glob("*.safetensors"))


# --- the files of a site --------------------------------------------------------------------------------------------


def test_a_site_that_has_not_trained_yet_begins_with_the_start_of_the_training(tmp_path):
    found = part(tmp_path).read(WHOLE, after_round=0)
    assert {name: value_of({name: tensor}) for name, tensor in found.items()} == {"a": 0, "b": 1}


def test_a_round_that_is_asked_again_begins_with_the_part_of_the_round_before(tmp_path):
    keep(tmp_path, 1, 2)
    assert read(tmp_path, after_round=1, own_round=1) == 1  # round 2, again
    assert read(tmp_path, after_round=2, own_round=2) == 2


def test_a_site_that_missed_rounds_goes_on_with_the_last_part_that_it_has(tmp_path):
    keep(tmp_path, 2)
    assert read(tmp_path, after_round=50, own_round=2) == 2
    keep(tmp_path, 51)
    assert read(tmp_path, after_round=50, own_round=2) == 2


def test_the_last_rounds_are_kept_and_those_that_the_server_went_back_behind_are_not(tmp_path):
    keep(tmp_path, *range(1, 7))
    assert files(tmp_path) == ["00004", "00005", "00006"]
    assert len(files(tmp_path)) == KEPT
    part(tmp_path, 4).keep(own(40), n_volumes=3)
    assert files(tmp_path) == ["00004"]
    assert read(tmp_path, after_round=9) == 40


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def other_tensors(path):
    tensors, note = load_tensors(path)
    save_tensors(path, {"a": tensors["a"]}, note)


def without_a_note(path):
    save_tensors(path, load_tensors(path)[0])


@pytest.mark.parametrize("damage", [cut, flip, other_tensors, without_a_note, lambda path: path.unlink()])
@pytest.mark.parametrize("evaluating", [False, True])
def test_a_missing_or_damaged_part_is_an_error_and_no_older_one_takes_its_place(tmp_path, damage, evaluating):
    keep(tmp_path, 1, 2, 3)
    damage(max((tmp_path / "private").iterdir()))
    what = r"the part of m, fold 0, that stays at this site \(round 3\) is (missing|damaged)"
    remedy = r"restore .*/private/\w{16}-\* from a backup"
    anew, lost = r", or begin it anew: sahfl private delete SITE_FILE \w{16}", "; without it, this fold has no result"
    remedy += lost if evaluating else f"{anew}$"  # what was deleted is not evaluated
    with pytest.raises(PrivatePartLost, match=rf"^{what}.*; {remedy}"):
        read(tmp_path, after_round=3, own_round=3, evaluating=evaluating)


def test_the_remedies_of_a_lost_part_work(tmp_path):
    keep(tmp_path, 1, 2)
    path = max((tmp_path / "private").iterdir())
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(PrivatePartLost) as caught:
        read(tmp_path, after_round=2, own_round=2)
    path.write_bytes(content)  # the backup
    assert read(tmp_path, after_round=2, own_round=2) == 2

    path.unlink()
    (one,) = stored(tmp_path)
    assert one.name == str(caught.value).split()[-1]
    delete(tmp_path, one.name)
    with pytest.raises(RunError, match="is no name of a training, expected 16 hex digits"):
        delete(tmp_path, "../x")
    assert value_of({"a": part(tmp_path, own_round=2).read(WHOLE, after_round=2)["a"]}) == 0  # the start
    keep(tmp_path, 3)
    assert read(tmp_path, after_round=3, own_round=3) == 3
    begun = part(tmp_path, own_round=2).read(WHOLE, after_round=2)  # round 3, again
    assert value_of({"a": begun["a"]}) == 0
    max((tmp_path / "private").glob("*.safetensors")).unlink()
    with pytest.raises(PrivatePartLost, match=r"round 3\) is missing"):
        read(tmp_path, after_round=3, own_round=3)


def test_a_deleted_part_is_not_evaluated_with_the_start_in_its_place(tmp_path):
    keep(tmp_path, 1, 2)
    (one,) = stored(tmp_path)
    delete(tmp_path, one.name)
    assert files(tmp_path) == []
    with pytest.raises(PrivatePartLost, match="is missing"):
        read(tmp_path, after_round=2, own_round=2, evaluating=True)


def test_where_nothing_stays_no_part_is_needed(tmp_path):
    assert part(tmp_path, own_round=5, names=()).read(WHOLE, after_round=5) == {}
    part(tmp_path, 5, names=()).keep({}, n_volumes=3)
    assert not (tmp_path / "private").exists()


def test_after_the_last_phase_all_that_trains_is_the_site_s_own(tmp_path):
    keep(tmp_path, ROUNDS)
    part(tmp_path, ROUNDS + 1).keep({name: np.full(3, 7, np.float32) for name in WHOLE}, n_volumes=3)
    found = part(tmp_path, own_round=ROUNDS + 1).read(WHOLE, after_round=ROUNDS + 1)
    assert (set(found), value_of(found)) == (set(WHOLE), 7)
    assert read(tmp_path, after_round=ROUNDS, own_round=ROUNDS) == ROUNDS
    max((tmp_path / "private").iterdir()).unlink()
    for names in (NAMES, ()):
        with pytest.raises(PrivatePartLost, match=rf"round {ROUNDS + 1}\) is missing"):
            part(tmp_path, own_round=ROUNDS + 1, names=names).read(WHOLE, after_round=ROUNDS + 1)


@pytest.mark.parametrize("other", [{"study": "x"}, {"stage": "pretrain"}, {"method": "decoder"}, {"fold": 1}])
def test_each_study_stage_method_and_fold_has_a_part_of_its_own(tmp_path, other):
    part(tmp_path, 1, **other).keep(own(1), n_volumes=3)
    assert value_of({"a": part(tmp_path).read(WHOLE, after_round=1)["a"]}) == 0


def test_nothing_that_a_server_sent_becomes_a_path_and_only_the_owner_reads_the_files(tmp_path):
    there = part(tmp_path, 1, method="../../x", study="/etc")
    there.keep(own(1), n_volumes=3)
    there.keep_network(WHOLE, base="../y")
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in found} == {tmp_path / "private"}
    assert all(re.fullmatch(r"[0-9a-f]{16}-(00001|final)\.safetensors", path.name) for path in found)
    assert {path.stat().st_mode & 0o777 for path in found} == {0o600}


def test_all_that_a_site_stores_is_listed(tmp_path):
    assert stored(tmp_path) == ()
    keep(tmp_path, 1, 2)
    part(tmp_path, 4, method="a", fold=1).keep(own(1), n_volumes=3)
    part(tmp_path, method="a", fold=1).keep_network(WHOLE, base="b")
    first, second = stored(tmp_path)
    assert [(one.method, one.fold, one.round, one.network is not None) for one in (first, second)] == [
        ("a", 1, 4, True), ("m", 0, 2, False),
    ]  # fmt: skip
    assert second.n_bytes == sum(path.stat().st_size for path in second.files)
    assert len(second.files) == 2


def test_damaged_files_are_listed_so_that_they_can_be_deleted(tmp_path):
    keep(tmp_path, 1, 2)
    part(tmp_path, 1, method="a").keep(own(1), n_volumes=3)
    for path in (tmp_path / "private").iterdir():
        if path.stem.endswith("00001"):
            cut(path)
    gone, kept = stored(tmp_path)
    assert [(one.method, one.round, one.damaged) for one in (gone, kept)] == [("", 1, True), ("m", 2, True)]
    delete(tmp_path, gone.name)
    assert [one.name for one in stored(tmp_path)] == [kept.name]


@pytest.mark.parametrize(
    "note", [{}, {"study": 1, "method": "m", "fold": 0}, {"study": "x", "method": "m", "fold": "0"}]
)
def test_a_file_whose_note_names_no_training_is_listed_as_damaged(tmp_path, note):
    keep(tmp_path, 1)
    (path,) = (tmp_path / "private").glob("*.safetensors")
    save_tensors(path, WHOLE, note)
    (one,) = stored(tmp_path)
    assert (one.method, one.damaged) == ("", True)


@pytest.mark.parametrize("up_to", ["1e999", '"x"', "[" * 100_000])
def test_a_damaged_note_of_a_deletion_begins_nothing_anew(tmp_path, up_to):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / f"{HEADER.training}-deleted.json").write_text('{"up_to": ' + up_to + "}")
    with pytest.raises(PrivatePartLost, match="is missing"):
        read(tmp_path, after_round=1, own_round=1)


@pytest.mark.parametrize("base", [None, 1, "b", "../" * 3 + "base"])
def test_a_network_whose_note_names_no_base_is_damaged(tmp_path, base):
    task = evaluation_of(METHOD).model_dump(mode="json")
    part(tmp_path).keep_network(WHOLE, base=base, task=task)
    with pytest.raises(AdapterError, match=r"names no base network; restore it from a backup"):
        read_site(tmp_path)


def test_a_training_that_begins_once_more_leaves_the_network_of_before_until_it_is_evaluated(tmp_path):
    keep(tmp_path, 1, 2)
    part(tmp_path).keep_network(WHOLE, base="b")
    keep(tmp_path, 1)
    assert files(tmp_path) == ["00001", "final"]


def test_a_network_of_an_earlier_study_counts_only_if_it_is_the_one_that_was_marked(tmp_path):
    earlier = part(tmp_path, study="old")
    assert (earlier.mark(), part(tmp_path).mark()) == ("", "")
    earlier.keep_network(WHOLE, base="b")
    mark = earlier.mark()
    assert re.fullmatch("[0-9a-f]{16}", mark)
    part(tmp_path).adopt(replace(HEADER, study="old"), "0" * 16)
    assert part(tmp_path).mark() == ""
    part(tmp_path).adopt(replace(HEADER, study="old"), mark)
    assert part(tmp_path).mark() == mark
    flip(max((tmp_path / "private").iterdir()))
    assert "" in (part(tmp_path).mark(), earlier.mark())


# --- which tensors stay ---------------------------------------------------------------------------------------------


def kinds(names):
    """What a name belongs to, for each name: private terms, norms, out-side or inner factors, other weights."""
    found = set()
    for name in names:
        *_, owner, own_name = name.split(".")
        factors = {"factor_out": "out", "up": "out", "magnitude": "out"}
        inner = owner == "update" and own_name not in factors
        found.add(
            "private"
            if owner == "private"
            else "norm"
            if ".adn.N." in name
            else factors.get(own_name, "inner" if inner else "weight")
        )
    return found


STAYS = {
    "private terms": ({"method": "cp_lora", "private_rank": 1}, {"private"}, {"out", "inner"}),
    "norms of an adapter": ({"method": "conv_lora", "stays": ("norm",)}, {"norm"}, {"out", "inner"}),
    "norms of full": ({"method": "full", "stays": ("norm",)}, {"norm"}, {"weight"}),
    "norms where none trained": ({"method": "last_layer", "stays": ("norm",)}, {"norm"}, {"weight"}),
    "FedSA": ({"method": "lora_c", "stays": ("out",)}, {"out"}, {"inner"}),
    "FedSA with magnitudes": ({"method": "cp_dora", "all_magnitudes": True, "stays": ("out",)}, {"out"}, {"inner"}),
    "inner": ({"method": "cp_dora", "stays": ("inner",)}, {"inner"}, {"out"}),
    "a part": ({"method": "cp_lora", "stays": ("decoder.1", "head")}, {"out", "inner"}, {"out", "inner"}),
    "several": (
        {"method": "cp_lora", "stays": ("norm", "out"), "private_rank": 2},
        {"norm", "out", "private"},
        {"inner"},
    ),
    "alone": ({"method": "cp_lora", "trained_at": "sah_a"}, {"out", "inner"}, set()),
    "pooled": (
        {"method": "cp_lora", "private_rank": 1, "stays": ("norm",), "trained_at": POOLED},
        set(),
        {"out", "inner", "private", "norm"},
    ),
}


@pytest.mark.parametrize(("settings", "stay", "leave"), STAYS.values(), ids=STAYS.keys())
def test_what_is_named_stays_and_all_else_leaves(settings, stay, leave):
    weights = settings["method"] in ("full", "last_layer")
    method = WeightTuning(**settings) if weights else AdapterTuning(rank=2, **settings)
    trained = trained_tensors(STUDY.views, STUDY.model, method)
    assert (kinds(trained.staying), kinds(trained.shared)) == (stay, leave)
    assert not trained.staying.keys() & trained.shared.keys()


def test_a_part_that_stays_is_all_that_trains_in_it_and_nothing_else():
    method = AdapterTuning(method="cp_lora", rank=2, stays=("encoder",))
    base = exchanged.read(whole_network(STUDY.views, STUDY.model, 3))
    net = fine_tuned_network(STUDY.views, STUDY.model, base, method, 3)
    inside = tuple(path for part, paths in net.parts.items() if part.startswith("encoder") for path in paths)
    names = staying(net, method, net.parts)
    assert names
    assert names == tuple(n for n in exchanged.parameters(net) if n.startswith(tuple(f"{path}." for path in inside)))


def test_norms_of_a_whole_network_are_the_affine_parameters_of_all_norms():
    names = norm_tensors(whole_network(STUDY.views, STUDY.model, 3))
    assert len(names) == 2 * 18  # two norms in each of four depths down, the bottleneck, and four depths up
    assert all(".adn.N." in name for name in names)


def test_a_part_in_which_nothing_trains_cannot_stay():
    method = AdapterTuning(method="cp_lora", rank=2, layers=("encoder",), stays=("decoder",))
    with pytest.raises(AdapterError, match=r"stays: got decoder, but .* trains nothing there; name what it trains"):
        trained_tensors(STUDY.views, STUDY.model, method)


WRONG = {
    "twice": ({"stays": ["norm", "norm"]}, "stays names twice: norm"),
    "all": ({"stays": ["out", "inner"]}, "stays names out and inner, so that nothing is shared"),
    "ranks": (
        {"private_rank": 1, "aggregation": "project", "site_ranks": {"sah_a": 1}},
        "site_ranks and a part that stays at the sites do not go together",
    ),
    "ranks and a last phase": (
        {"local_steps": 1, "aggregation": "project", "site_ranks": {"sah_a": 1}},
        "site_ranks and a part that stays at the sites do not go together",
    ),
    "a rate of nothing": (
        {"local_steps": 1, "private_learning_rate": 0.01},
        "private_learning_rate needs something that stays",
    ),
    "phase of a pool": ({"local_steps": 3, "trained_at": "pooled"}, "a pooled training has no sites"),
    "nothing to share": ({"share_private_at_end": True}, "needs something that stays"),
    "one site": (
        {"private_rank": 1, "share_private_at_end": True, "trained_at": "sah_a"},
        "share_private_at_end needs all sites, this one is trained at sah_a",
    ),
    "unknown": ({"stays": ["norms"]}, "norms"),
}


@pytest.mark.parametrize(("settings", "message"), WRONG.values(), ids=WRONG.keys())
def test_settings_that_do_not_fit_are_named(settings, message):
    methods = [{"method": "cp_lora", "rank": 2} | settings]
    with pytest.raises(Exception, match=message):
        parse(Study, changed(TINY, finetune__methods=methods), where="test")


def test_standard_fine_tuning_has_no_factors_that_could_stay():
    with pytest.raises(Exception, match="stays names out, the factors of adapters, which full does not have"):
        parse(Study, changed(TINY, finetune__methods=[{"method": "full", "stays": ["out"]}]), where="test")


# --- whole studies --------------------------------------------------------------------------------------------------

PRIVATE = {
    "method": "cp_lora", "rank": 2, "private_rank": 1, "stays": ["norm"], "local_steps": 3, "learning_rate": 0.05,
    "private_learning_rate": 0.02,
}  # fmt: skip
ID = "cp_lora-r2-private1-stays-norm-local3"
SITES_OR_BASE = {"sites", "base", "pretrain"}
WITH_ALL = changed(TINY, finetune__methods=[PRIVATE], evaluation__threshold=0.03)


@pytest.fixture(scope="module")
def personal(federate_once):
    """A whole study of a method with private terms, norms that stay, and a last phase at each site."""
    return federate_once(WITH_ALL)


def names_in(content):
    return set(content["layout"]["names"]) if "layout" in content else set()


def of_fine_tuning(grid, *kinds_):
    for site, request, reply in grid.seen:
        kind = request.metadata.message_type
        if kind in kinds_ and protocol.read_header(request.content)["stage"] == "finetune":
            yield site, request.content, reply.content


def test_what_stays_is_in_no_message_and_in_no_file_of_the_server(personal):
    folder, grid = personal
    method = folder.study().finetune.methods[0]
    stay = set(trained_tensors(folder.study().views, folder.study().model, method).staying)
    seen = list(of_fine_tuning(grid, protocol.TRAIN, protocol.LOCAL_PHASE, protocol.EVALUATE))
    assert len(seen) == 2 * 3 * (2 + 1 + 2)  # folds, sites; rounds, last phase, two evaluations
    for _, request, reply in seen:
        assert names_in(request)
        assert not stay & (names_in(request) | names_in(reply))
    server = [path for path in folder.path.rglob("*.safetensors") if not SITES_OR_BASE & set(path.parts)]
    assert len(server) == 2 * (2 + 1)  # folds; checkpoints and adapter
    assert not [name for path in server for name in load_tensors(path)[0] if name in stay]


def test_the_last_phase_answers_with_counts_only(personal):
    _, grid = personal
    answers = [reply for _, _, reply in of_fine_tuning(grid, protocol.LOCAL_PHASE)]
    assert len(answers) == 2 * 3
    assert {tuple(sorted(answer)) for answer in answers} == {("header", "metrics")}


def test_each_site_trains_a_part_of_its_own(personal):
    folder, _ = personal
    own_parts = {}
    for site in ("sah_a", "sah_b"):
        paths = sorted((folder.path / "sites" / site / "private").iterdir())
        assert len(paths) == 2 * (2 + 1 + 1)  # folds; rounds, last phase, network
        own_parts[site], note = load_tensors(paths[1])
        assert (note["method"], note["round"]) == (ID, 2)
        assert kinds(own_parts[site]) == {"private", "norm"}
        assert kinds(load_tensors(paths[2])[0]) == {"private", "norm", "out", "inner"}
    ours, theirs = own_parts.values()
    assert all((ours[name] != theirs[name]).any() for name in ours if name.endswith("private.factor_out"))


def test_there_are_rows_of_the_personal_networks_and_of_what_is_shared(personal):
    folder, _ = personal
    results = json.loads((folder.path / "results.json").read_text())
    assert [(row["id"], row["part"]) for row in results["methods"]] == [(ID, "personal"), (f"{ID}-shared", "shared")]
    assert {row["metrics"]["dice"]["overall"]["n"] for row in results["methods"]} == {7}
    page = (folder.path / "report.html").read_text()
    assert "CP-LoRA (rank 2, 1 private term, norms stay, 3 local steps, each site with its own part)" in page
    assert "what the sites share" in page


def predictions(folder, site, part="personal"):
    lines = (folder.path / "sites" / site / "cases.jsonl").read_text().splitlines()
    return {(row["fold"], row["case"]): row["predicted_ml"] for row in map(json.loads, lines) if row["part"] == part}


@pytest.mark.slow
def test_a_site_evaluates_with_its_own_part(federate, tmp_path):
    def zero(site, request, reply):
        header = request.content["header"] if request.metadata.message_type == protocol.LOCAL_PHASE else {}
        if site == "sah_a" and header:
            for path in (tmp_path / "other" / "sites" / site / "private").glob(f"*-{header['round']:05d}.safetensors"):
                tensors, note = load_tensors(path)
                nothing = {name: np.zeros_like(value) for name, value in tensors.items()}
                from sahfl.adapters import digest

                save_tensors(path, nothing, note | {"sha256": digest(nothing)})
        return reply

    reference, _ = federate(WITH_ALL, name="reference")
    folder, _ = federate(WITH_ALL, name="other", change=zero)
    assert predictions(folder, "sah_b") == predictions(reference, "sah_b")
    assert predictions(folder, "sah_a", "shared") == predictions(reference, "sah_a", "shared")
    mine, theirs = predictions(folder, "sah_a"), predictions(reference, "sah_a")
    assert len(set(mine.values())) == 1  # a network without norms predicts the same everywhere
    assert mine != theirs


@pytest.mark.slow
def test_a_site_whose_part_is_lost_is_named_and_not_evaluated_with_other_numbers(federate, tmp_path):
    def lose(site, request, reply):
        if site == "sah_a" and request.metadata.message_type == protocol.LOCAL_PHASE:
            for path in (tmp_path / "run" / "sites" / site / "private").glob("*"):
                path.unlink()
        return reply

    folder, _ = federate(changed(WITH_ALL, rounds__quorum=0.5), change=lose)
    lost = [line for line in folder.journal() if line["event"] == "not_evaluated"]
    assert {(line["site"], line["part"]) for line in lost} == {("sah_a", "personal")}
    assert all("PrivatePartLost" in line["reason"] for line in lost)
    personal_row, shared = json.loads((folder.path / "results.json").read_text())["methods"]
    assert {item["site"] for item in personal_row["not_evaluated"]} == {"sah_a"}
    assert [part["n"] for part in personal_row["by_site"]] == [0, 2, 2]
    assert shared["not_evaluated"] == []


def contents(folder):
    paths = [*folder.path.glob("adapters/**/*.safetensors"), *folder.path.glob("sites/*/private/*")]
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in paths}


@pytest.mark.slow
@pytest.mark.parametrize("at", [12, 14, 16, 20, 24, 30, 36])
def test_a_run_that_stopped_anywhere_resumes_to_the_same_parts_and_predictions(federate, personal, at):
    reference, _ = personal
    with pytest.raises(Stop):
        federate(WITH_ALL, change=stop_at(at))
    resumed, _ = federate(WITH_ALL)
    assert contents(resumed) == contents(reference)
    for site in ("sah_a", "sah_b", "sah_c"):
        assert predictions(resumed, site) == predictions(reference, site)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    {"method": "cp_lora", "rank": 2, "stays": ["out"]},
    pytest.param({"method": "conv_lora", "rank": 2, "private_rank": 1, "aggregation": "project"}, marks=SLOW),
    pytest.param({"method": "cp_dora", "rank": 2, "stays": ["inner"], "aggregation": "alternate"}, marks=SLOW),
    pytest.param({"method": "full", "stays": ["norm", "decoder"]}, marks=SLOW),
])  # fmt: skip
def test_what_stays_works_with_every_rule_and_with_int8(federate, settings):
    folder, grid = federate(changed(TINY, finetune__methods=[settings], rounds__payload="int8"))
    method = folder.study().finetune.methods[0]
    stay = set(trained_tensors(folder.study().views, folder.study().model, method).staying)
    for _, request, reply in of_fine_tuning(grid, protocol.TRAIN, protocol.EVALUATE):
        assert not stay & (names_in(request) | names_in(reply))
    results = json.loads((folder.path / "results.json").read_text())
    assert [row["failed"] for row in results["methods"]] == [None, None]


@pytest.mark.slow
def test_the_mean_of_what_stayed_is_sent_once_and_is_evaluated_too(federate):
    method = {"method": "cp_lora", "rank": 2, "private_rank": 1, "share_private_at_end": True, "learning_rate": 0.05}
    folder, grid = federate(changed(TINY, finetune__methods=[method], finetune__folds=2))
    private = {
        protocol.read_header(request)["round"]: {".private." in name for name in names_in(reply)}
        for _, request, reply in of_fine_tuning(grid, protocol.TRAIN)
    }
    assert private == {1: {False}, 2: {False, True}}
    final = folder.last_checkpoint("cp_lora-r2-private1/fold-0").state
    sent = [reply for _, request, reply in of_fine_tuning(grid, protocol.TRAIN)
            if (protocol.read_header(request)["round"], protocol.read_header(request)["fold"]) == (2, 0)]  # fmt: skip
    assert len(sent) == 3
    assert any(np.abs(final[name]).max() > 0 for name in final if name.endswith("private.factor_out"))
    saved, _ = load_tensors(folder.path / "adapters/cp_lora-r2-private1/fold-0/adapter_model.safetensors")
    assert saved.keys() == final.keys()
    results = json.loads((folder.path / "results.json").read_text())
    assert [row["id"].rpartition("-")[2] for row in results["methods"]] == ["private1", "shared", "mean"]
    assert [row["failed"] for row in results["methods"]] == [None, None, None]


def test_a_site_refuses_to_send_what_stays_unless_its_policy_allows_it(federate):
    method = {"method": "cp_lora", "rank": 2, "private_rank": 1, "share_private_at_end": True}
    with pytest.raises(Exception, match="PolicyRefused"):
        federate(changed(TINY, finetune__methods=[method], rounds__attempts=1), policy={"private_mean": False})
