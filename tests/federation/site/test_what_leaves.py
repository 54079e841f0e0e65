"""What leaves a site, read from every message of a whole study."""

import json

import numpy as np
from harness.tiny_study import TINY, changed

from sahfl.adapters import exchanged
from sahfl.adapters.files import load_tensors
from sahfl.config import AdapterTuning, ModelConfig, ViewsConfig
from sahfl.networks import fine_tuned_network, whole_network
from sahfl.payload import Header
from sahfl.statistics.sums import array_length
from sahfl.task import SiteDescription

HEADER_KEYS = set(Header.__dataclass_fields__)


def declared(study):
    views, model = ViewsConfig.model_validate(study.views), ModelConfig.model_validate(study.model)
    base = exchanged.read(whole_network(views, model, study.seed))
    method = next(m for m in study.finetune.methods if isinstance(m, AdapterTuning))
    return exchanged.read(fine_tuned_network(views, model, base, method, study.seed))


def test_in_fine_tuning_a_site_sends_the_declared_factors_and_no_other_tensor(whole):
    folder, grid = whole
    expected = declared(folder.study())
    assert all(".factor_" in name for name in expected)
    shapes = [",".join(map(str, value.shape)) for value in expected.values()]
    training = [
        (site, reply.content)
        for site, request, reply in grid.seen
        if request.metadata.message_type == "train" and site.startswith("sah")
    ]
    assert len(training) == 2 * 2 * 3  # folds x rounds x sites
    for _, content in training:
        assert set(content) == {"header", "layout", "state", "metrics"}
        assert list(content["layout"]["names"]) == list(expected)
        assert list(content["layout"]["shapes"]) == shapes
        assert {name: (a.dtype, a.shape) for name, a in content["state"].items()} == {
            "flat": ("float32", (sum(value.size for value in expected.values()),))
        }
        assert set(content["metrics"]) == {"n_volumes", "loss", "seconds"}
        assert set(content["header"]) == HEADER_KEYS


def test_nothing_that_a_fine_tuning_site_sends_holds_a_piece_of_the_base(whole):
    folder, grid = whole
    base, _ = load_tensors(folder.path / "base" / "base.safetensors")
    pieces = [value.ravel()[:16].astype("<f4").tobytes() for value in base.values() if value.size >= 16 and value.std()]
    sent = [
        array.data
        for site, _, reply in grid.seen
        if site.startswith("sah")
        for record in reply.content.array_records.values()
        for array in record.values()
    ]
    assert len(pieces) > 20
    assert len(sent) == 2 * 2 * 3 + 2 * 2 * 3  # rounds of training and evaluations of two methods
    assert not [piece for piece in pieces for flat in sent if piece in flat]
    received = [
        m.content["state"]["flat"].data for _, m, _ in grid.seen if m.metadata.message_type == "query.install_base"
    ]
    assert all(any(piece in flat for flat in received) for piece in pieces)  # the search would have found them


def test_other_messages_of_a_site_carry_counts_and_sums_only(whole):
    folder, grid = whole
    for _, request, reply in grid.seen:
        content, kind = reply.content, request.metadata.message_type
        if kind == "query.describe":
            assert set(content) == {"description"}
            assert set(json.loads(content["description"]["json"])) == set(SiteDescription.model_fields)
        elif kind == "query.install_base":
            assert set(content) == {"header"}
        elif kind == "evaluate":
            assert set(content) == {"header", "sums"}
            sums = np.frombuffer(content["sums"]["flat"].data, "<f8")
            assert sums.size == array_length(folder.study().evaluation)


def test_no_patient_or_file_name_is_in_any_message_or_server_file(whole):
    folder, grid = whole
    secrets = ["sah_a-0000", "tbi_b-0001", "0000.nii.gz", "images/", "labels/"]
    for _, _, reply in grid.seen:
        text = repr([dict(record) for record in reply.content.config_records.values()])
        assert not [secret for secret in secrets if secret in text]
    for path in folder.path.rglob("*"):
        if path.is_file() and "sites" not in path.parts:
            content = path.read_bytes()
            assert not [secret for secret in secrets if secret.encode() in content], path


def test_an_error_leaves_a_site_as_the_name_of_its_class(federate, tmp_path):
    def break_scans(site, request, reply):
        if request.metadata.message_type == "query.describe" and site == "sah_c":
            for image in (tmp_path / "run" / "sites" / "sah_c" / "scans" / "images").glob("*"):
                image.write_bytes(b"Muster^Hans")
        return reply

    folder, grid = federate(changed(TINY, finetune__rounds=1), change=break_scans)
    errors = [reply.error.reason for site, _, reply in grid.seen if reply.has_error()]
    assert errors
    assert set(errors) == {"DataChanged"}
    missing = [line["missing"] for line in folder.journal() if line["event"] == "round" and line["stage"] == "finetune"]
    assert all(m == [{"site": "sah_c", "reason": m[0]["reason"]}] and "DataChanged" in m[0]["reason"] for m in missing)
