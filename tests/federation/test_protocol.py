"""Messages: what is sent comes back, and whatever else arrives ends in a PayloadError that names it."""

import json
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from sahfl import __version__
from sahfl.config import AdapterTuning, EvaluationConfig, LocalTraining, ModelConfig, ViewsConfig
from sahfl.errors import PayloadError, VersionsDiffer
from sahfl.federation import protocol
from sahfl.federation.tensors import RAW, read_state
from sahfl.payload import SCHEMA, Header
from sahfl.task import SiteDescription, Task

STATE = {"a.factor_0": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.full(4, -0.5, np.float32)}
HEADER = Header(study="abc", stage="finetune", method="cp_lora-r2", fold=1, round=2, base="def")
TASK = Task(
    stage="finetune", seed=3, views=ViewsConfig(), model=ModelConfig(), folds=3, fold=1,
    method=AdapterTuning(method="cp_lora", rank=2), round=2, rounds=5, learning_rate=0.01, local=LocalTraining(steps=4),
    evaluation=EvaluationConfig(),
)  # fmt: skip
DESCRIPTION = SiteDescription(
    site="bern", source="datalist", n_volumes=7, n_patients=6, n_positive=5, volume_ml=81.5, fold_sizes=(3, 3),
    fold_positive=(3, 2), data="0123456789abcdef", software="fedcba9876543210", batches="0" * 16, confirmations=0,
    n_refused=2,
    findings={"not_hu": 2},
)  # fmt: skip


def reply():
    return protocol.train_reply(HEADER, STATE, n_volumes=7, loss=0.25, seconds=1.5)


def evaluated(values=(1.0, 2.5)):
    return protocol.evaluation_reply(HEADER, np.array(values))


def read(content, most_volumes=7):
    return protocol.read_train_reply(content, header=HEADER, like=STATE, most_volumes=most_volumes)


# --- round trips ----------------------------------------------------------------------------------------------------


def test_a_request_brings_task_header_and_state():
    content = protocol.request(TASK, HEADER, STATE)
    assert protocol.read_task(content) == TASK
    assert protocol.read_header(content) == HEADER.as_dict()
    state = read_state(content, like=STATE)
    assert {name: value.tolist() for name, value in state.items()} == {n: v.tolist() for n, v in STATE.items()}


def test_a_site_has_its_own_rank_and_the_training_the_name_of_the_global_one():
    method = AdapterTuning(method="cp_lora", rank=2, aggregation="project", site_ranks={"bern": 1})
    task = Task.model_validate(TASK.model_dump() | {"method": method, "rank": 1})
    read = protocol.read_task(protocol.request(task, HEADER, STATE))
    assert (read.own_method.rank, read.own_method.id, read.method.id) == (1, "cp_lora-r1-project", "cp_lora-r2-project")
    assert TASK.own_method is TASK.method


@pytest.mark.parametrize("method", [None, TASK.method, {"method": "full"}, {"method": "zero_shot"}], ids=str)
def test_a_rank_of_one_site_without_a_rule_for_unlike_ranks_is_refused(method):
    task = TASK.model_copy(update={"rank": 1, "method": method})
    with pytest.raises(PayloadError, match=r"^task: .*rank 1 for one site, expected only with aggregation: project"):
        protocol.read_task(RecordDict({"task": ConfigRecord({"json": task.model_dump_json(warnings=False)})}))


def test_a_request_without_tensors_has_an_empty_state():
    assert read_state(protocol.request(TASK, HEADER, {}), like={}) == {}


def test_a_training_reply_brings_state_and_numbers():
    got = read(reply())
    assert (got.n_volumes, got.loss, got.seconds) == (7, 0.25, 1.5)
    assert all(np.array_equal(got.state[name], value) for name, value in STATE.items())
    assert got.n_bytes == protocol.n_bytes(reply())


def test_an_evaluation_reply_brings_its_sums_and_a_description_its_counts():
    assert protocol.read_evaluation_reply(evaluated(), header=HEADER).tolist() == [1.0, 2.5]
    assert protocol.read_description(protocol.description_reply(DESCRIPTION)) == DESCRIPTION


def test_the_bytes_of_a_message_by_hand():
    content = RecordDict(
        {
            "state": ArrayRecord({"flat": Array("float32", (2,), RAW, bytes(8))}),
            "layout": ConfigRecord({"names": ["ab", "c"], "shapes": ["1,1", ""]}),  # 5 + 3 and 6 + 3
            "header": ConfigRecord({"round": 12, "fold": -1}),  # 5 + 2 and 4 + 2
            "metrics": MetricRecord({"loss": 0.5, "n_volumes": 3}),  # 2 * 8
        }
    )
    assert protocol.n_bytes(content) == 8 + (5 + 3) + (6 + 3) + (5 + 2) + (4 + 2) + 16


# --- tasks and descriptions -----------------------------------------------------------------------------------------

TASKS = {
    "unknown-key": ({"run": "rm"}, "task run: Extra inputs are not permitted"),
    "unknown-method": ({"method": {"method": "cp_lorra"}}, "task method: Input tag 'cp_lorra'"),
    "nested": ({"local": {"steps": 0}}, "task local.steps: Input should be greater than or equal to 1"),
    "text-for-a-number": ({"seed": "3"}, "task seed: Input should be a valid integer"),
    "not-finite": ({"learning_rate": float("nan")}, "task learning_rate: Input should be"),
    "fold-beyond-the-folds": ({"fold": 3}, "task: Value error, fold 3 is not one of 3, counted from 0"),
    "stage": ({"stage": "../../etc"}, "task stage: Input should be 'pretrain' or 'finetune'"),
}


@pytest.mark.parametrize(("change", "message"), TASKS.values(), ids=TASKS.keys())
def test_a_task_with_unknown_keys_or_bad_values_is_refused_by_name(change, message):
    text = json.dumps(TASK.model_dump(mode="json") | change)
    with pytest.raises(PayloadError, match="^" + message):
        protocol.read_task(RecordDict({"task": ConfigRecord({"json": text})}))


def test_a_task_names_what_it_lacks():
    with pytest.raises(PayloadError, match=r"^record 'task' is missing$"):
        protocol.read_task(RecordDict({}))
    for record in ({}, {"json": "{"}, {"json": 3.5}, {"json": ["{}"]}):
        with pytest.raises(PayloadError, match=r"^task: "):
            protocol.read_task(RecordDict({"task": ConfigRecord(record)}))


def asked_by(**versions):
    """A request whose header and task are of another version."""
    header = ConfigRecord(HEADER.as_dict() | {"of_a_newer_version": 1} | versions)
    return RecordDict({"task": ConfigRecord({"json": '{"of_a_newer_version": 1}'}), "header": header})


@pytest.mark.parametrize("versions", [{"sahfl": "9.9.9"}, {"schema": 9}, {"sahfl": "9.9.9", "schema": 9}])
def test_a_request_of_another_version_is_refused_by_the_versions_of_both_ends_before_its_fields_are_read(versions):
    with pytest.raises(VersionsDiffer, match=r"^versions differ: the request is of sahfl ") as info:
        protocol.read_request(asked_by(**versions))
    assert f"this site has sahfl {__version__!r}, payload {SCHEMA}; install the same at both ends" in str(info.value)
    assert all(str(value) in str(info.value) for value in versions.values())


@pytest.mark.parametrize("versions", [{"sahfl": 3}, {"schema": "1"}])
def test_a_version_of_another_type_is_no_version(versions):
    with pytest.raises(PayloadError, match=r"^task"):
        protocol.read_request(asked_by(**versions))


def test_a_long_name_is_cut_in_the_message():
    with pytest.raises(PayloadError) as info:
        protocol.read_task(RecordDict({"task": ConfigRecord({"json": json.dumps({"x" * 100_000: 1})})}))
    assert len(str(info.value)) < 500


DESCRIPTIONS = {
    "negative-count": ({"n_refused": -1}, "n_refused: Input should be greater than or equal to 0"),
    "negative-fold": ({"fold_sizes": [7, -1]}, "fold_sizes.1: Input should be greater than or equal to 0"),
    "negative-finding": ({"findings": {"not_hu": -2}}, "findings.not_hu: Input should be greater than or equal to 0"),
    "no-volume": ({"n_volumes": 0}, "n_volumes: Input should be greater"),
    "absurd-count": ({"n_volumes": 10**12}, "n_volumes: Input should be less than or equal to 1000000"),
    "infinite-volume": ({"volume_ml": float("inf")}, "volume_ml: Input should be a finite number"),
    "name-that-is-a-path": ({"site": "../../etc"}, "site: String should match pattern"),
    "case-list": ({"cases": ["bern-0001"]}, "cases: Extra inputs are not permitted"),
    "version-in-words": ({"software": "torch 2.6"}, "software: String should match pattern"),
    "long-finding": ({"findings": {"x" * 41: 1}}, "findings.x.*: String should have at most 40 characters"),
    "folds-that-do-not-add-up": ({"fold_sizes": [3, 4]}, "Value error, patients, positive volumes and folds do not"),
    "more-patients-than-volumes": ({"n_patients": 8, "fold_sizes": [4, 4]}, "Value error, patients, "),
    "more-positive-than-volumes": ({"n_positive": 8}, "Value error, patients, "),
}


@pytest.mark.parametrize(("change", "message"), DESCRIPTIONS.values(), ids=DESCRIPTIONS.keys())
def test_a_description_that_cannot_be_is_refused_by_name(change, message):
    text = json.dumps(DESCRIPTION.model_dump(mode="json") | change)
    with pytest.raises(PayloadError, match="^description:? " + message):
        protocol.read_description(RecordDict({"description": ConfigRecord({"json": text})}))


# --- replies --------------------------------------------------------------------------------------------------------

GOOD = reply()["state"]["flat"]


def with_arrays(**arrays):
    content = reply()
    content["state"] = ArrayRecord(arrays)
    return content


def with_array(dtype="float32", shape=(10,), stype=RAW, data=GOOD.data):
    return with_arrays(flat=Array(dtype, shape, stype, data))


def with_values(record, **values):
    content = reply()
    content[record].update(values)
    return content


def without(*records):
    return RecordDict({name: record for name, record in reply().items() if name not in records})


def with_layout(names, shapes):
    return with_values("layout", names=names, shapes=shapes)


NAMES, HUGE = list(STATE), 10**12
REFUSED = {
    "several-arrays": (with_arrays(flat=GOOD, more=GOOD), "arrays: expected one flat array under 'state' and no other"),
    "other-name": (with_arrays(a=GOOD), "arrays: expected one flat array"),
    "no-array": (without("state"), "arrays: expected one flat array"),
    "two-array-records": (RecordDict({**reply(), "more": ArrayRecord({})}), "reply: has unknown record 'more'"),
    "unknown-record": (RecordDict({**reply(), "cases": ConfigRecord({})}), "reply: has unknown record 'cases'"),
    "record-of-another-kind": (RecordDict({**reply(), "state": ConfigRecord({})}), "arrays: expected one flat array"),
    "double": (with_array("float64", (5,)), f"arrays: got float64 as {RAW}, expected float32 as {RAW}"),
    "pickle": (with_array(stype="pickle"), "arrays: got float32 as pickle, expected"),
    "npy": (with_array(stype="numpy.ndarray"), "arrays: got float32 as numpy.ndarray, expected"),
    "huge-shape": (with_array(shape=(HUGE,)), "arrays: got 40 bytes, expected as many as the declared shape needs"),
    "negative-shape": (with_array(shape=(-10,)), "arrays: got 40 bytes, expected as many"),
    "two-axes": (with_array(shape=(2, 5)), "arrays: got 40 bytes, expected as many"),
    "short-body": (with_array(shape=(9,), data=GOOD.data[:-4]), "body: got 36 bytes, expected 40"),
    "long-body": (with_array(shape=(20,), data=GOOD.data * 2), "body: got 80 bytes, expected 40"),
    "ragged-body": (
        with_array(data=GOOD.data + b"x"),
        "arrays: got 41 bytes, expected as many as the declared shape needs",
    ),
    "no-layout": (without("layout"), "record 'layout' is missing"),
    "layout-of-other-kind": (with_layout("a", "2,3"), "layout: expected as many names as shapes"),
    "fewer-shapes": (with_layout(NAMES, ["2,3"]), "layout: expected as many names as shapes"),
    "unknown-layout-value": (with_values("layout", extra="x"), "layout: expected names and shapes, and in int8 steps"),
    "shape-of-words": (with_layout(NAMES, ["2,3", "four"]), "layout: expected shapes such as '16,9,3,3'"),
    "shape-of-endless-digits": (with_layout(NAMES, ["2,3", "9" * 5000]), "layout: expected shapes such as"),
    "huge-size": (with_layout(NAMES, ["2,3", str(HUGE)]), rf"tensor 'b': got shape \({HUGE},\), expected \(4,\)"),
    "negative-size": (with_layout(NAMES, ["-2,-3", "4"]), r"tensor 'a.factor_0': got shape \(-2, -3\), expected"),
    "many-axes": (with_layout(NAMES, ["2,3", "1," * 9999 + "1"]), r"tensor 'b': got shape \([1, ]{79}, expected"),
    "no-header": (without("header"), "record 'header' is missing"),
    "unknown-header-field": (with_values("header", patient="x"), "header: has unknown field 'patient'"),
    "huge-round": (with_values("header", round=10**5000), "round: got 'a huge number', expected 2"),
    "no-metrics": (without("metrics"), "n_volumes: got 'None'"),
    "unknown-metric": (with_values("metrics", dice=0.5), "metrics: has unknown value 'dice'"),
    "huge-count": (with_values("metrics", n_volumes=10**5000), "n_volumes: got 'a huge number'"),
    "too-many-volumes": (with_values("metrics", n_volumes=8), "n_volumes: got 8, the site registered 7"),
    "negative-seconds": (with_values("metrics", seconds=-1.0), "seconds: expected a number"),
    "infinite-seconds": (with_values("metrics", seconds=float("inf")), "seconds: expected a number"),
    "whole-seconds": (with_values("metrics", seconds=1), "seconds: expected a number"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_an_unusable_training_reply_is_refused_by_name_and_allocates_nothing(content, message):
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError, match="^" + message) as info:
            read(content)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert len(str(info.value)) < 300


def with_sums(array, **more):
    return RecordDict({"header": ConfigRecord(HEADER.as_dict()), "sums": ArrayRecord({"flat": array}), **more})


SUMS = {
    "single-precision": (with_sums(Array("float32", (2,), RAW, bytes(8))), "arrays: got float32"),
    "half-a-number": (
        with_sums(Array("float64", (1,), RAW, bytes(12))),
        "arrays: got 12 bytes, expected as many as the declared shape needs",
    ),
    "huge-shape": (with_sums(Array("float64", (HUGE,), RAW, bytes(8))), "arrays: got 8 bytes"),
    "cases": (with_sums(Array("float64", (1,), RAW, bytes(8)), cases=ConfigRecord({})), "reply: has unknown record"),
    "no-header": (RecordDict({"sums": evaluated()["sums"]}), "record 'header' is missing"),
}


@pytest.mark.parametrize(("content", "message"), SUMS.values(), ids=SUMS.keys())
def test_an_unusable_evaluation_reply_is_refused_by_name(content, message):
    with pytest.raises(PayloadError, match="^" + message):
        protocol.read_evaluation_reply(content, header=HEADER)


# --- anything at all ------------------------------------------------------------------------------------------------

ints = st.one_of(st.integers(-9, 9), st.integers(-(2**63), 2**63 - 1))  # what protobuf can carry
scalars = st.one_of(ints, st.floats(), st.text(max_size=8), st.binary(max_size=8), st.booleans())
lists = st.lists(ints, max_size=3) | st.lists(st.text(max_size=8), max_size=3) | st.lists(st.binary(max_size=4))
names = st.sampled_from([*reply(), "task", "sums", "description", "", "cases"])
keys = st.sampled_from(["json", "names", "shapes", "loss", "n_volumes", "round", "flat", "", "case"])
shapes = st.lists(st.integers(-(10**12), 10**12), max_size=3).map(tuple)
types, encodings = st.sampled_from(["float32", "float64", "object", ""]), st.sampled_from([RAW, "x"])
arrays = st.builds(Array, types, shapes, encodings, st.binary(max_size=48))
fields = st.sampled_from([*Task.model_fields, *SiteDescription.model_fields])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
documents = st.recursive(leaves, lambda d: st.lists(d, max_size=3) | st.dictionaries(fields, d), max_leaves=8)
texts = st.one_of(documents.map(json.dumps), st.text(max_size=20))
records = st.one_of(
    st.dictionaries(keys, scalars | lists | texts, max_size=3).map(ConfigRecord),
    st.dictionaries(keys, ints | st.floats(), max_size=3).map(MetricRecord),
    st.dictionaries(keys, arrays, max_size=2).map(ArrayRecord),
)
SENT = [
    reply,
    evaluated,
    lambda: protocol.request(TASK, HEADER, STATE),
    lambda: protocol.description_reply(DESCRIPTION),
]
READERS = {
    "train": read,
    "evaluate": lambda content: protocol.read_evaluation_reply(content, header=HEADER),
    "task": protocol.read_task,
    "describe": protocol.read_description,
}


@st.composite
def mutated(draw):
    """A real message with records dropped or replaced, and values changed."""
    content = draw(st.sampled_from(SENT))()
    for name in draw(st.lists(st.sampled_from(sorted(content)), max_size=1)):
        del content[name]
    for name, record in draw(st.dictionaries(names, records, max_size=1)).items():
        content.pop(name, None)
        content[name] = record
    for name, record in content.items():
        if isinstance(record, ConfigRecord) and draw(st.booleans()):
            key = draw(st.sampled_from(sorted(record)) if record else keys)
            record[key] = draw(scalars | lists | texts)
        elif isinstance(record, MetricRecord) and draw(st.booleans()):
            record[draw(keys)] = draw(ints | st.floats())
        elif isinstance(record, ArrayRecord) and draw(st.booleans()):
            content[name] = ArrayRecord({"flat": draw(arrays)})
    return content


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
@settings(max_examples=150, deadline=None)
@given(content=mutated())
def test_whatever_arrives_only_a_payload_error_escapes(reader, content):
    with suppress(PayloadError):
        reader(content)
