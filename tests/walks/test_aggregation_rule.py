"""An aggregation rule is added: one file with its function, and one entry in the table of rules. All else stays."""

import json

import numpy as np
import pytest
from harness.tiny_study import TINY, changed
from harness.toy_rule import TOY, midrange
from pydantic import ValidationError
from torch import nn

from sahfl.adapters.folder import read_adapter
from sahfl.aggregation.rules import RULES
from sahfl.aggregation.update import SiteUpdate
from sahfl.cell_names import cell_of
from sahfl.config import AdapterTuning, RoundsConfig, Study, WeightTuning, parse
from sahfl.errors import ConfigError
from sahfl.federation import protocol
from sahfl.federation.server.aggregate import aggregate
from sahfl.federation.site.dry_run import dry_run
from sahfl.federation.turns import take_turn
from sahfl.report.page import write_report
from sahfl.simulation.simulate import site_configs

METHODS = [{"method": "zero_shot"}, {"method": "cp_lora", "rank": 2, "aggregation": "midrange"}]
SETTINGS = changed(TINY, pretrain__rounds=1, finetune__rounds=1, finetune__methods=METHODS, rounds__most_norm=1000.0)
ID = "cp_lora-r2-midrange"


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(RULES, TOY.name, TOY)


def test_a_study_with_a_new_rule_runs_from_its_settings_to_the_report(toy, federate, tmp_path):
    study = parse(Study, SETTINGS, where="test")
    _, method = study.finetune.methods
    (site,) = [config for config in site_configs(study, tmp_path) if config.name == "sah_a"]
    assert f"training {ID}, each round:" in dry_run(site, study)

    folder, grid = federate(SETTINGS)
    found = read_adapter(folder.adapter(cell_of(method, 0))).state
    sent = [reply for _, request, reply in grid.seen if request.metadata.message_type == protocol.TRAIN][2:5]
    flat = np.stack([np.frombuffer(reply.content["state"]["flat"].data, "<f4") for reply in sent])
    expected = (flat.min(0) + flat.max(0)) / 2
    np.testing.assert_array_equal(np.concatenate([value.ravel() for value in found.values()]), expected)

    results = json.loads((folder.path / "results.json").read_text())
    row = next(row for row in results["methods"] if row["id"] == ID)
    assert (row["aggregation"], row["failed"]) == ("midrange", None)
    assert "CP-LoRA (rank 2, midrange)" in (folder.path / "report.html").read_text()
    assert "CP-LoRA (rank 2, midrange)" in write_report(results, tmp_path).read_text()


def test_standard_fine_tuning_can_name_it_too(toy):
    assert WeightTuning(method="full", aggregation="midrange").id == "full-midrange"


# --- a name that the table does not hold is an error everywhere -----------------------------------------------------


def test_settings_refuse_a_rule_that_the_table_does_not_hold():
    expected = "expected 'mean', 'project', 'alternate', 'median' or 'trimmed_mean', got 'midrange'"
    with pytest.raises(ConfigError, match=f"finetune.methods.1.aggregation: {expected}"):
        parse(Study, SETTINGS, where="test")
    with pytest.raises(ValidationError, match="Input should be 'mean', 'median' or 'trimmed_mean'"):
        WeightTuning(method="full", aggregation="project")


def test_the_server_and_the_sites_refuse_a_rule_that_the_table_does_not_hold():
    like = {"up": np.zeros((2, 1), np.float32)}
    updates = [SiteUpdate("bern", 1, like)]
    with pytest.raises(KeyError, match="midrange"):
        aggregate(updates, like=like, rule="midrange", layers=(), config=RoundsConfig())
    assert midrange(updates, like=like, layers=())["up"].shape == (2, 1)
    unknown = AdapterTuning(method="cp_lora").model_copy(update={"aggregation": "midrange"})
    with pytest.raises(KeyError, match="midrange"):
        take_turn(nn.Sequential(), unknown, 1)
