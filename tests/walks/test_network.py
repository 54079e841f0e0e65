"""A network is added: one class in one file, and one entry in the table of networks. All else stays as it is."""

import json
import math

import pytest
from harness.finished_run import phantom_hu, write_run, write_scan
from harness.tiny_study import TINY, changed
from harness.toy_network import ToyNetwork

from sahfl.config import Study, parse
from sahfl.config.network import NETWORKS, NetworkKind
from sahfl.data.new_scan import read_new_scan
from sahfl.errors import ConfigError
from sahfl.export.folders import export
from sahfl.federation import protocol
from sahfl.federation.site.dry_run import dry_run
from sahfl.networks import trained_tensors
from sahfl.prediction.segment import read_networks, segment
from sahfl.simulation.simulate import site_configs

METHOD = {"method": "cp_lora", "rank": 2, "layers": ["encoder"], "also_train": ["head"]}
SETTINGS = changed(TINY, model={"size": "toy"}, pretrain__rounds=1, finetune__rounds=1, finetune__methods=[METHOD])
ID = "cp_lora-r2-encoder-with-head"
N_WEIGHTS = (9 * 6 * 3 * 3 + 6) + (6 + 1)
N_SENT = 2 * (9 + 6 + 3 + 3) + (6 + 1)
"""The adapter's factors of rank 2, one for each axis of the kernel, and the head."""


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(NETWORKS, "toy", NetworkKind("Toy of two convolutions", lambda: ToyNetwork))


def test_a_network_that_the_table_does_not_name_is_refused_with_those_that_it_names():
    with pytest.raises(ConfigError, match=r"model\.size: expected 'tiny', 'base' or 'large', got 'toy'"):
        parse(Study, SETTINGS, where="test")


def test_a_study_with_a_new_network_runs_from_its_settings_to_a_prediction(toy, federate, tmp_path):
    study = parse(Study, SETTINGS, where="test")
    (method,) = study.finetune.methods
    shapes = trained_tensors(study.views, study.model, method).shared
    assert {name.split(".")[1] for name in shapes} == {"look", "decide"}
    assert sum(map(math.prod, shapes.values())) == N_SENT
    (site,) = [config for config in site_configs(study, tmp_path) if config.name == "sah_a"]
    assert f"{len(shapes)} tensors, {N_SENT} numbers, {4 * N_SENT} bytes" in dry_run(site, study)

    folder, grid = federate(SETTINGS)
    trained = [reply for _, request, reply in grid.seen if request.metadata.message_type == protocol.TRAIN]
    sizes = [reply.content["state"]["flat"].shape for reply in trained]
    assert sizes == 2 * [(N_WEIGHTS,)] + 2 * 3 * [(N_SENT,)]

    results = json.loads((folder.path / "results.json").read_text())
    assert results["base"]["parameters"] == N_WEIGHTS
    (row,) = results["methods"]
    assert (row["id"], row["trainable"], row["failed"]) == (ID, N_SENT, None)
    assert "Toy of two convolutions on several planes" in (folder.path / "report.html").read_text()

    image, _, affine = phantom_hu()
    scan, networks = read_new_scan(write_scan(tmp_path / "scan.nii.gz", image, affine)), read_networks(folder.path)
    assert {type(net) for net in networks.nets} == {ToyNetwork}
    assert segment(scan, networks).probability.shape == image.shape
    forms = ("safetensors", "bundle", "adapter")
    written = list(export(folder.path, tmp_path / "export", forms, method=ID, fold=0))  # each is read back and compared
    assert sorted(form.form for form in written) == sorted(forms)


def test_a_network_that_needs_sahfl_has_no_bundle_and_says_so(toy, tmp_path, monkeypatch):
    monkeypatch.delattr(ToyNetwork, "plain")
    write_run(tmp_path / "run", SETTINGS)
    with pytest.raises(
        ConfigError, match="bundle: the network ToyNetwork does not work without sahfl, as a bundle must"
    ):
        list(export(tmp_path / "run", tmp_path / "export", ["bundle"], method=ID))
    assert not (tmp_path / "export").exists()
