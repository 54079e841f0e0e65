"""An adapter method is added: one file with its class, and one entry in the table of methods. All else stays."""

import json
import math

import pytest
import torch
from harness.adapted_layers import KINDS, an_input, compute_by, make_layer, tensors_of, trained
from harness.site_updates import distance, kernels, mean_kernels, start_of
from harness.site_updates import trained as moved
from harness.tiny_study import TINY, changed
from harness.toy_method import TOY
from pydantic import ValidationError

from sahfl.adapters import digest, exchanged
from sahfl.adapters.attach import attach
from sahfl.adapters.exchanged import factored_layers
from sahfl.adapters.files import load_tensors
from sahfl.adapters.folder import put_adapter, read_adapter
from sahfl.adapters.methods import ADAPTERS
from sahfl.adapters.peft import is_peft_form
from sahfl.aggregation.lowrank import aggregation_error, project
from sahfl.aggregation.update import SiteUpdate
from sahfl.cell_names import cell_of
from sahfl.config import AdapterTuning, SitePolicy, Study, parse
from sahfl.errors import AdapterError, ConfigError
from sahfl.federation import protocol
from sahfl.federation.site.dry_run import dry_run
from sahfl.networks import base_network, trained_tensors
from sahfl.report.names import family_of
from sahfl.report.page import write_report
from sahfl.run.folder import BASE_FILE
from sahfl.simulation.simulate import site_configs

METHODS = [{"method": "zero_shot"}, {"method": "toy_box", "rank": 2, "aggregation": "project"}]
SETTINGS = changed(TINY, pretrain__rounds=1, finetune__rounds=1, finetune__methods=METHODS)
ID = "toy_box-r2-project"
UNKNOWN = "'lora_c', 'conv_lora', 'cp_lora', 'dora_c', 'conv_dora'"


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(ADAPTERS, TOY.name, TOY)


def test_a_study_with_a_new_method_runs_from_its_settings_to_the_report(toy, federate, tmp_path):
    study = parse(Study, SETTINGS, where="test")
    _, method = study.finetune.methods
    shapes = trained_tensors(study.views, study.model, method).shared
    n_sent = sum(map(math.prod, shapes.values()))
    (site,) = [config for config in site_configs(study, tmp_path) if config.name == "sah_a"]
    assert f"training {ID}, each round:" in dry_run(site, study)
    assert f"{len(shapes)} tensors, {n_sent:,} numbers" in dry_run(site, study)
    assert "training toy_box-r8, each round:" in dry_run(site)
    assert TOY.name in SitePolicy().methods

    folder, grid = federate(SETTINGS)
    sent = [reply for _, request, reply in grid.seen if request.metadata.message_type == protocol.TRAIN]
    assert [reply.content["state"]["flat"].shape for reply in sent[2:]] == 2 * 3 * [(n_sent,)]

    results = json.loads((folder.path / "results.json").read_text())
    row = next(row for row in results["methods"] if row["method"] == "toy_box")
    assert (row["id"], row["trainable"], row["failed"]) == (ID, n_sent, None)
    errors = [entry["aggregation_error"] for entry in results["rounds"] if entry["method"] == ID]
    assert all(0 <= error < 1 for error in errors)
    assert f"{TOY.label} (rank 2, project)" in (folder.path / "report.html").read_text()
    assert f"{TOY.label} (rank 2, project)" in write_report(results, tmp_path).read_text()

    adapter = read_adapter(folder.adapter(cell_of(method, 0)))
    assert adapter.note.method == method
    net = base_network(study.views, study.model, load_tensors(folder.path / BASE_FILE)[0])
    put_adapter(net, adapter)
    assert digest(exchanged.read(net)) == adapter.note.sha256


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_to_compute_it_agree_on_every_kind_of_layer(toy, kind, monkeypatch):
    method, found = AdapterTuning(method="toy_box", rank=2), []
    layer, x = trained(make_layer(kind, {"kernel_size": 3, "padding": 1}, method)), an_input(kind).requires_grad_()
    for path in ("dense", "fused"):
        compute_by(monkeypatch, path)
        y = layer(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *tensors_of(layer).values()])])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_its_form_gives_the_exact_mean_where_the_rank_is_enough(toy):
    method = AdapterTuning(method="toy_box", rank=6, alpha=5.0)
    like, layers = start_of(method)
    updates = [SiteUpdate(f"site{i}", 1 + i, moved(method, i, rank)) for i, rank in enumerate((2, 4))]
    found = project(updates, like=like, layers=layers)
    exact = mean_kernels(method, updates, [2, 4])
    assert distance(kernels(method, found), exact) < 1e-5 * distance(kernels(method, like), exact)
    assert aggregation_error(updates, found, like=like, layers=layers) < 1e-5


# --- a name that the table does not hold is an error everywhere -----------------------------------------------------


def test_settings_and_policy_refuse_a_method_that_the_table_does_not_hold():
    with pytest.raises(ConfigError, match=rf"finetune.methods.1.method: expected .*{UNKNOWN}.*, got 'toy_box'"):
        parse(Study, SETTINGS, where="test")
    with pytest.raises(ValidationError, match=f"Input should be {UNKNOWN}"):
        AdapterTuning(method="toy_box")
    with pytest.raises(ValidationError, match=f"Input should be {UNKNOWN}"):
        SitePolicy(methods=("toy_box",))


def test_training_aggregation_and_report_refuse_a_method_that_the_table_does_not_hold():
    unknown = AdapterTuning(method="cp_lora").model_copy(update={"method": "toy_box"})
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 3))
    with pytest.raises(KeyError, match="toy_box"):
        attach(net, unknown, seed=0)
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 3))
    attach(net, AdapterTuning(method="cp_lora"), seed=0)
    for ask in (factored_layers, is_peft_form):
        with pytest.raises(KeyError, match="toy_box"):
            ask(net, unknown)
    with pytest.raises(KeyError, match="toy_box"):
        family_of({"method": "toy_box"})


def test_an_adapter_folder_of_a_method_that_the_table_does_not_hold_is_refused(tmp_path):
    note = {"sahfl": {"method": {"method": "toy_box", "rank": 2}}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(note))
    with pytest.raises(AdapterError, match=r"sahfl\.method: Input tag 'toy_box'"):
        read_adapter(tmp_path)
