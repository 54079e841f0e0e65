"""The policy: what may be asked, what may be in an answer, and what a dry run says of both."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from harness.asking import CLOSED, FEW, METHOD, NAME, STUDY, evaluating, header_of, task_of
from harness.asking import training as short_training
from harness.made_cases import a_case

from sahfl.adapters import exchanged
from sahfl.config import AdapterTuning, EvaluationConfig, LocalTraining, SiteConfig, SitePolicy, WeightTuning, parse
from sahfl.config.policy import AdapterLimits
from sahfl.data.sources.datalist import SiteScansDatalist
from sahfl.errors import ConfigError, PolicyRefused, SiteStateLost
from sahfl.federation import protocol
from sahfl.federation.site.declared import declared
from sahfl.federation.site.dry_run import dry_run, policy_lines
from sahfl.federation.site.kinds.describe import coarse
from sahfl.federation.site.known_studies import recognise_study, remember_study
from sahfl.federation.site.policy import check_outgoing, check_request
from sahfl.networks import fine_tuned_network, trained_tensors, whole_network
from sahfl.run.software import software_hash
from sahfl.simulation.simulate import open_policy
from sahfl.statistics.sums import EvaluationSums
from sahfl.task import SiteDescription

TRAIN, EVALUATE, DESCRIBE = protocol.TRAIN, protocol.EVALUATE, protocol.DESCRIBE


def training(**changes):
    """A round that the default limits allow."""
    return short_training(**{"local": LocalTraining(steps=16, batch_size=8)} | changes)


def site(policy=CLOSED, **changes):
    data = SiteScansDatalist(source="datalist", path=Path("datalist.json"))
    return SiteConfig(name="sah_a", folder=Path("work"), data=data, policy=policy.model_copy(update=changes))


def check(task, kind=TRAIN, **policy):
    check_request(site(**policy), kind, task, header_of(task))


# --- what may be asked ----------------------------------------------------------------------------------------------


def test_every_default_is_the_closed_one():
    policy = SitePolicy()
    assert policy.require_signature
    assert policy.stages == ("finetune",)
    assert not {"full", "encoder", "norm_bias"} & set(policy.methods)
    assert (policy.also_train, policy.share_scan_keys, policy.common_random_numbers) == ((), False, False)
    assert (policy.smallest_group, policy.smallest_bootstrap) == (5, 20)


def test_a_site_file_is_checked_as_a_whole():
    settings = {"smallest_group": 9, "smallest_bootstrap": 3}
    with pytest.raises(ConfigError, match="smallest_bootstrap 3 is below smallest_group 9"):
        parse(SitePolicy, settings, where="site.yaml")
    with pytest.raises(ConfigError, match=r"(?s)3 problems.*colour.*most_steps.*studies"):
        parse(SitePolicy, {"studies": ["../x"], "most_steps": 0, "colour": 1}, where="site.yaml")


def test_training_an_adapter_and_evaluating_anything_is_allowed_by_default():
    check(training())
    check(evaluating(), EVALUATE)
    check(evaluating(WeightTuning(method="full")), EVALUATE)
    check(task_of(), DESCRIBE)
    check(task_of(), protocol.INSTALL_BASE)


REFUSED = {
    "stage": (training(stage="pretrain", method=None, fold=-1), {}, r"policy.stages: got pretrain, expected finetune"),
    "method": (training(method=WeightTuning(method="full")), {}, r"policy.methods: got full, expected lora_c"),
    "no method": (training(method=None), {}, r"policy.methods: got no method"),
    "zero shot": (training(method=evaluating().method), {}, r"policy.methods: got zero_shot"),
    "rank": (
        training(method=AdapterTuning(method="cp_lora", rank=33)),
        {},
        r"adapters.most_rank.cp_lora: got 33, expected at most 32",
    ),
    "rank of three terms": (
        training(method=AdapterTuning(method="lora_c", rank=17)),
        {},
        r"adapters.most_rank.lora_c: got 17, expected at most 16",
    ),
    "few steps": (
        training(local=LocalTraining(steps=7)),
        {},
        r"policy.adapters.least_steps: got 7, expected at least 8",
    ),
    "few slices": (
        training(local=LocalTraining(steps=8, batch_size=7)),
        {},
        r"policy.adapters.least_batch: got 7, expected at least 8",
    ),
    "few steps of weights": (
        training(method=WeightTuning(method="full"), local=LocalTraining(steps=15), learning_rate=5e-4),
        {"methods": ("full",)},
        r"policy.weights.least_steps: got 15, expected at least 16",
    ),
    "few steps of pretraining": (
        training(stage="pretrain", method=None, fold=-1, local=LocalTraining(steps=15)),
        {"stages": ("pretrain",)},
        r"policy.weights.least_steps: got 15, expected at least 16",
    ),
    "few steps of weights beside factors": (
        training(method=AdapterTuning(method="cp_lora", also_train=("norm",)), local=LocalTraining(steps=15)),
        {"also_train": ("norm",)},
        r"policy.weights.least_steps: got 15, expected at least 16",
    ),
    "rate of weights": (
        training(method=WeightTuning(method="full"), learning_rate=0.006),
        {"methods": ("full",)},
        r"policy.weights.most_learning_rate: got 0.006, expected at most 0.005",
    ),
    "rate of what stays": (
        training(method=METHOD.model_copy(update={"private_rank": 1, "private_learning_rate": 0.06})),
        {},
        r"policy.adapters.most_learning_rate: got 0.06, expected at most 0.05",
    ),
    "rounds": (training(rounds=201), {}, r"most_rounds: got 201, expected at most 200"),
    "steps": (training(local=LocalTraining(steps=2001)), {}, r"most_steps: got 2001, expected at most 2000"),
    "rate": (training(learning_rate=0.06), {}, r"adapters.most_learning_rate: got 0.06, expected at most 0.05"),
    "also_train": (
        training(method=AdapterTuning(method="cp_lora", also_train=("norm", "head"))),
        {"also_train": ("norm",)},
        r"also_train: got head, expected norm",
    ),
    "shared batches": (
        training(common_random_numbers=True),
        {},
        "common_random_numbers: got batches that methods share, expected batches of each method's own",
    ),
    "left out": (
        training(method=METHOD.model_copy(update={"left_out": "sah_b"})),
        dict(open_policy()),
        "method.left_out: got a training without one site, expected none; its difference is one site's update",
    ),
    "few patients": (
        training(method=METHOD.model_copy(update={"most_patients": 5})),
        dict(open_policy()),
        "method.most_patients: got a training on few patients, expected all; two such differ by single patients",
    ),
    "pool": (
        training(method=METHOD.model_copy(update={"trained_at": "pooled"})),
        dict(open_policy()),
        "method.trained_at: got pooled, expected a site; no hospital has all patients",
    ),
    "trial": (
        training(method=METHOD.model_copy(update={"inner": True})),
        dict(open_policy()),
        "method.inner: got a trial of a learning rate, expected none; each trial is one more update that leaves",
    ),
    "bytes": (training(), {"most_bytes": 1000}, r"most_bytes: got \d+, expected at most 1000"),
    "studies": (training(), {"studies": ("b" * 64,)}, r"policy.studies: got a{64}, expected one of 1 listed"),
    "norms of pretraining": (
        training(stage="pretrain", method=None, fold=-1),
        {"stages": ("pretrain",), "norms_stay": True},
        r"norms_stay: got training whose weights of norms would leave, expected a method with stays: \[norm\]",
    ),
}


@pytest.mark.parametrize(("task", "policy", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_training_outside_the_policy_is_refused_by_setting(task, policy, message):
    with pytest.raises(PolicyRefused, match=rf"^site sah_a: study a{{12}} asks for what the .*\n  .*{message}"):
        check(task, **policy)


def test_all_problems_are_said_at_once():
    with pytest.raises(PolicyRefused) as info:
        check(training(rounds=300, learning_rate=0.5, local=LocalTraining(steps=3000)))
    assert [line.split(":")[0].strip() for line in str(info.value).splitlines()[1:]] == [
        "policy.most_rounds",
        "policy.adapters.most_learning_rate",
        "policy.most_steps",
    ]


def test_a_site_s_own_rank_does_not_get_around_the_limit():
    method = AdapterTuning(method="cp_lora", rank=2, aggregation="project")
    opened = {"bounded_starts": False, "confirmations": 0}
    check(training(method=method, rank=4), **opened, adapters=AdapterLimits(most_rank={"cp_lora": 4}))
    with pytest.raises(PolicyRefused, match=r"most_rank\.cp_lora: got 64"):
        check(training(method=method, rank=64), **opened)


def test_norms_that_stay_may_be_trained():
    method = AdapterTuning(method="cp_lora", also_train=("norm",))
    with pytest.raises(PolicyRefused, match="norms_stay"):
        check(training(method=method), also_train=("norm",), norms_stay=True)
    staying = AdapterTuning(method="cp_lora", stays=("norm",))
    check(training(method=staying), norms_stay=True)
    assert not [name for name in declared(training(method=staying)) if ".update." not in name]


def test_what_stays_may_leave_at_the_end_only_where_the_policy_allows_it():
    method = AdapterTuning(method="cp_lora", rank=2, private_rank=1, share_private_at_end=True)
    first, last = (training(method=method, round=round_, rounds=3) for round_ in (1, 3))
    for task in (first, last):
        with pytest.raises(PolicyRefused, match="private_mean: got training whose private part leaves in the last"):
            check(task)
        check(task, private_mean=True)
    private = [name for name in declared(last) if ".private." in name]
    assert private
    assert not set(private) & set(declared(first))
    check(training(method=method.shared_alone(), round=3, rounds=3))


def test_evaluations_and_scan_keys_can_be_closed():
    with pytest.raises(PolicyRefused, match=r"policy.evaluation: got a request to evaluate, expected none"):
        check(evaluating(), EVALUATE, evaluation=False)
    with pytest.raises(PolicyRefused, match="most_replicates: got 3000, expected at most 2000"):
        check(evaluating(evaluation=EvaluationConfig(replicates=3000)), EVALUATE)
    with pytest.raises(PolicyRefused, match="share_scan_keys: got a request for keys of scans"):
        check(task_of(), protocol.SCAN_KEYS)
    check(task_of(), protocol.SCAN_KEYS, share_scan_keys=True)


def test_an_unknown_kind_of_request_is_refused():
    with pytest.raises(PolicyRefused, match=r"requests: got 'query.files', expected one of query.describe"):
        check(task_of(), "query.files")


def test_a_simulation_allows_everything_that_a_study_can_say():
    config = site(policy=open_policy())
    widest = AdapterTuning(method="cp_lora", rank=512, also_train=("norm", "bias", "encoder"))
    for task in (
        training(method=widest, rounds=10_000, learning_rate=1.0, common_random_numbers=True),
        training(stage="pretrain", method=None),
    ):
        check_request(config, TRAIN, task, header_of(task))
    task = evaluating(evaluation=EvaluationConfig(replicates=100_000))
    check_request(config, EVALUATE, task, header_of(task))


# --- what is declared -----------------------------------------------------------------------------------------------


def test_the_tensors_that_may_leave_are_those_that_the_network_trains():
    base = exchanged.read(whole_network(STUDY.views, STUDY.model, STUDY.seed))
    net = fine_tuned_network(STUDY.views, STUDY.model, base, METHOD, STUDY.seed)
    shapes = {name: tuple(value.shape) for name, value in exchanged.read(net).items()}
    assert trained_tensors(STUDY.views, STUDY.model, METHOD).shared == shapes
    assert trained_tensors(STUDY.views, STUDY.model, None).shared == {name: tuple(v.shape) for name, v in base.items()}


# --- studies --------------------------------------------------------------------------------------------------------


def test_a_study_keeps_the_split_and_the_strata_that_it_began_with(tmp_path):
    task = evaluating()
    known, now = recognise_study(tmp_path, task_of(), header_of(task))
    assert known is None
    remember_study(tmp_path, NAME, now)
    known, now = recognise_study(tmp_path, task, header_of(task))
    assert (known.evaluation, now.evaluation is None) == (None, False)
    remember_study(tmp_path, NAME, now)
    assert recognise_study(tmp_path, task, header_of(task)) == (now, now)
    for other in (
        task_of(seed=99),
        task_of(folds=3),
        evaluating(evaluation=EvaluationConfig(replicates=100, volume_edges_ml=(10.5, 30.0))),
    ):
        with pytest.raises(PolicyRefused, match=r"study a{12}: got another (seed, folds|evaluation).*began with"):
            recognise_study(tmp_path, other, header_of(task))
    assert recognise_study(tmp_path, task_of(seed=99), header_of(task, study="b" * 64))[0] is None


def test_a_damaged_list_of_studies_closes_the_site(tmp_path):
    (tmp_path / "studies.json").write_text("{")
    with pytest.raises(SiteStateLost, match=r"studies.json: cannot be read; restore the whole folder"):
        recognise_study(tmp_path, task_of(), header_of(task_of()))


# --- what may leave -------------------------------------------------------------------------------------------------

TASK = training()
HEADER = header_of(TASK)
STATE = {name: np.zeros(shape, np.float32) for name, shape in declared(TASK).items()}


def reply(state=STATE, header=HEADER, encoding="float32"):
    return protocol.train_reply(header, state, n_volumes=3, loss=0.5, seconds=1.0, encoding=encoding)


def leaves(answer, kind=TRAIN, task=TASK, **policy):
    check_outgoing(site(**policy), kind, task, header_of(task), answer)


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8"])
def test_the_declared_tensors_leave_in_every_encoding_also_some_of_them(encoding):
    task = training(payload=encoding)
    leaves(reply(encoding=encoding), task=task)
    leaves(reply(dict(list(STATE.items())[:3]), encoding=encoding), task=task)


def with_record(name, record, base=None):
    answer = base or reply()
    answer[name] = record
    return answer


FIRST = next(iter(STATE))
LEAKS = {
    "a record more": (with_record("cases", ConfigRecord({"n": 1})), r"got records \['cases', 'header'"),
    "a record less": (RecordDict({"header": reply()["header"]}), r"got records \['header'\], expected"),
    "another header": (reply(header=header_of(TASK, study="Muster")), "the header is not that of the request"),
    "another metric": (
        with_record("metrics", MetricRecord({"n_volumes": 3, "loss": 0.5, "dice": 0.9})),
        "got metric 'dice', expected n_volumes, loss, seconds",
    ),
    "a metric per patient": (
        with_record("metrics", MetricRecord({"n_volumes": 3, "loss": [0.5, 0.6]})),
        "metric loss: got list, expected one number",
    ),
    "a tensor more": (reply(STATE | {"net.head.1.bias": np.zeros(1, np.float32)}), "got tensor 'net.head.1.bias'"),
    "another shape": (reply(STATE | {FIRST: np.zeros((7, 7), np.float32)}), rf"got tensor '{FIRST}' of shape \(7,7\)"),
    "a file name as a tensor": (reply({"Muster_Hans.nii": np.zeros(3, np.float32)}), "got tensor 'Muster_Hans.nii'"),
    "text in the layout": (
        with_record("layout", ConfigRecord({**reply()["layout"], "note": "Muster"})),
        "got more in the layout",
    ),
    "steps for float32": (
        with_record("layout", ConfigRecord({**reply()["layout"], "steps": [0.5] * len(STATE)})),
        "got more in the layout",
    ),
    "more numbers": (with_record("layout", ConfigRecord({"names": [FIRST], "shapes": ["8,2"]})), "got "),
}


@pytest.mark.parametrize(("answer", "message"), LEAKS.values(), ids=LEAKS.keys())
def test_anything_else_in_an_answer_is_kept_back(answer, message):
    with pytest.raises(PolicyRefused, match=rf"^site sah_a: the answer to 'train' is kept back: {message}"):
        leaves(answer)


def test_a_tensor_twice_and_a_message_too_large_are_kept_back():
    names = list(STATE)
    layout = reply()["layout"]
    shapes = list(layout["shapes"])
    twice = ConfigRecord({"names": [*names, names[0]], "shapes": [*shapes, shapes[0]]})
    with pytest.raises(PolicyRefused, match="got a tensor twice"):
        leaves(with_record("layout", twice))
    with pytest.raises(PolicyRefused, match=r"bytes, expected at most 5000 \(policy.most_bytes\)"):
        leaves(reply(), most_bytes=5000)


def test_norms_that_stay_do_not_leave_even_if_they_were_put_in():
    task = training(method=AdapterTuning(method="cp_lora", stays=("norm",)))
    trained = trained_tensors(task.views, task.model, task.method)
    every = trained.shared | trained.staying
    answer = reply({name: np.zeros(shape, np.float32) for name, shape in every.items()}, header=header_of(task))
    with pytest.raises(PolicyRefused, match="which this training does not declare"):
        leaves(answer, task=task)


def described(**changes):
    known = {"site": "sah_a", "source": "datalist", "n_volumes": 9, "n_patients": 9, "n_positive": 9, "volume_ml": 80.5}
    known |= {
        "fold_sizes": (5, 4),
        "fold_positive": (5, 4),
        "data": "0" * 16,
        "software": software_hash(),
        "batches": "0" * 16,
        "confirmations": 0,
        "n_refused": 1,
        "findings": {"not_hu": 1},
    }
    return SiteDescription.model_validate(known | changes)


def test_counts_of_few_cases_and_the_blood_of_few_patients_are_coarse():
    policy = SitePolicy()
    found = coarse(described(findings={"not_hu": 1, "thick": 5}), policy, task_of())
    assert (found.findings, found.volume_ml) == ({"not_hu": None, "thick": 5}, 80.5)
    few = coarse(described(fold_positive=(1, 1), n_positive=2), policy, task_of())
    assert (few.volume_ml, few.fold_positive) == (None, (1, 1))
    assert coarse(described(), open_policy(), task_of()) == described()


def test_a_description_that_is_not_coarse_is_kept_back():
    task = task_of()
    fine = protocol.description_reply(coarse(described(), SitePolicy(), task_of()))
    check_outgoing(site(), DESCRIBE, task, header_of(task), fine)
    with pytest.raises(PolicyRefused, match=r"got values over fewer than 5 patients or cases"):
        check_outgoing(site(), DESCRIBE, task, header_of(task), protocol.description_reply(described()))
    other = protocol.description_reply(coarse(described(software="0123456789abcdef"), SitePolicy(), task_of()))
    with pytest.raises(PolicyRefused, match="something else than the hash of this site's software"):
        check_outgoing(site(), DESCRIBE, task, header_of(task), other)
    strange = protocol.description_reply(described(findings={"Muster^Hans": 7}))
    with pytest.raises(PolicyRefused, match=r"got 1 finding\(s\) of no rule"):
        check_outgoing(site(), DESCRIBE, task, header_of(task), strange)


def sums_reply(n, n_no_blood=0, n_missed=0):
    cases = [a_case(f"p{i}", 5.0, 5.0, 0.5) for i in range(n)] + [a_case("h", 0.0, 0.0, None)] * n_no_blood
    cases += [a_case(f"x{i}", 5.0, 0.0, 0.0) for i in range(n_missed)]
    sums = EvaluationSums.of(cases, evaluating().evaluation, seed=0)
    return protocol.evaluation_reply(header_of(evaluating()), sums.to_array())


def test_sums_over_too_few_are_kept_back_whoever_made_them():
    leaves(sums_reply(20), EVALUATE, evaluating())
    for answer, message in (
        (sums_reply(4), r"got results over 4 scans, expected 5 \(policy.smallest_group\)"),
        (sums_reply(19), r"got replicates of results over 19 scans, expected 20"),
        (sums_reply(4, n_missed=20), r"got HD95 over 4 scans, expected 5"),
        (sums_reply(19, n_missed=5), r"got replicates of HD95 over 19 scans, expected 20"),
        (sums_reply(20, 2), r"got counts of 2 scans, expected 5"),
    ):
        with pytest.raises(PolicyRefused, match=message):
            leaves(answer, EVALUATE, evaluating())


def test_scan_keys_are_nothing_but_keys():
    task = task_of()
    for keys, fine in ((["0" * 16], True), (["Muster_Hans_1961"], False)):
        answer = protocol.scan_keys_reply(header_of(task), keys)
        if fine:
            leaves(answer, protocol.SCAN_KEYS, task, share_scan_keys=True)
        else:
            with pytest.raises(PolicyRefused, match="got something else than salted keys"):
                leaves(answer, protocol.SCAN_KEYS, task, share_scan_keys=True)


# --- the dry run ----------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_the_messages_then_hold():
    said = dry_run(site(**FEW), STUDY)
    assert "one hash of the software that computes here:" in said
    numbers = sum(value.size for value in STATE.values())
    assert f"{len(STATE)} tensors, {numbers:,} numbers, {4 * numbers:,} bytes as float32" in said
    assert f"fingerprint {STUDY.fingerprint()}" in said
    assert f"{sums_reply(20)['sums']['flat'].shape[0]:,} numbers" in said
    assert "withheld: results of fewer than 5 patients, also by subtraction" in said
    assert "the number of those in which nothing was predicted (misses)" in said
    assert "asks this site for fine-tuning and evaluation" in said
    uses = "uses each scan in 2 rounds and 2 evaluations at most; left to the scan used most: 5,000 and 500."
    assert uses in said
    assert "pretraining" not in said  # sah_a does not pretrain
    assert max(map(len, said.splitlines())) <= 160


def test_a_dry_run_says_what_is_refused_and_why():
    said = dry_run(site(), STUDY)
    few = "policy.adapters.least_steps: got 2, expected at least 8\n  policy.adapters.least_batch: got 2, expected at"
    assert f"training cp_lora-r2: refused, nothing leaves\n  {few}" in said
    said = dry_run(site(most_rounds=1, evaluation=False, **FEW), STUDY)
    assert "training cp_lora-r2: refused, nothing leaves\n  policy.most_rounds: got 2, expected at most 1" in said
    assert "evaluation: refused, nothing leaves\n  policy.evaluation: got a request" in said
    assert "no kit names the signer" in dry_run(site(policy=SitePolicy()), STUDY)


def test_a_dry_run_without_a_study_goes_through_all_that_the_policy_allows():
    said = dry_run(site(stages=("pretrain", "finetune"), methods=("cp_lora", "full")))
    for part in ("pretraining, each round:\n  leaves: ALL weights", "training cp_lora-r8", "training full, each"):
        assert part in said
    assert "training lora_c" not in said
    assert "training cp_lora-r8, each round" in dry_run(site(studies=("c" * 64,)))


def test_the_policy_is_shown_with_every_setting():
    lines = policy_lines(SitePolicy())
    shown = [line.split(":")[0].split(".") for line in lines]
    assert list(dict.fromkeys(name for _, name, *_ in shown)) == list(SitePolicy.model_fields)
    assert "policy.weights.least_patients: 8" in lines
    assert "policy.adapters.most_rank.lora_c: 16" in lines
    assert "policy.studies: any" in lines
    assert "policy.most_bytes: 10,000,000" in lines
    assert "policy.also_train: none" in lines
