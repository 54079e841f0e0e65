"""A source of scans is added: its two sections in one file, and one entry in the table. All else stays as it is."""

import json

import nibabel
import numpy as np
import pytest
import yaml
from harness.tiny_study import TINY, changed
from harness.toy_source import ARRAYS, SiteScansArrays

from sahfl.config import load_site, load_study
from sahfl.data.sources import table
from sahfl.doctor.site import examine_data
from sahfl.errors import ConfigError
from sahfl.federation.site.dry_run import dry_run
from sahfl.simulation.simulate import site_configs

METHOD = {"method": "cp_lora", "rank": 2}
SETTINGS = changed(TINY, pretrain__rounds=1, finetune__rounds=1, finetune__methods=[METHOD])
SITES = list(TINY["data"]["sites"])


@pytest.fixture
def arrays(monkeypatch):
    monkeypatch.setattr(table, "SOURCES", (*table.SOURCES, ARRAYS))


@pytest.fixture
def folder(tmp_path, scans):
    """The tiny study's patients as arrays; a study file, and a site file of ``sah_a``, that say so."""
    for site in SITES:
        (tmp_path / "arrays" / site).mkdir(parents=True)
        for file in (scans / site / "scans" / "images").iterdir():
            image, label = (nibabel.load(path) for path in (file, file.parents[1] / "labels" / file.name))
            voxels = {"image": np.asarray(image.dataobj), "label": np.asarray(label.dataobj)}
            np.savez(tmp_path / "arrays" / site / f"{file.name[:4]}.npz", affine=image.affine, **voxels)
    data = {"source": "arrays", "sites": {site: f"arrays/{site}" for site in SITES}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(SETTINGS | {"data": data}))
    own = {"name": "sah_a", "folder": "work", "data": {"source": "arrays", "path": "arrays/sah_a"}}
    allowed = {"stages": ["finetune"], "methods": ["cp_lora"], "require_signature": False, "smallest_group": 2}
    allowed |= {"common_random_numbers": True}  # the study is one for a simulation
    allowed |= {"adapters": {"least_steps": 1, "least_batch": 1}}  # and its trainings are of two steps
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(own | {"policy": allowed}))
    return tmp_path


def test_a_source_that_the_table_does_not_name_is_refused_with_those_that_it_names(folder):
    with pytest.raises(
        ConfigError, match=r"data.source: expected 'phantom', 'datalist', 'folder' or 'sites', got 'arrays'"
    ):
        load_study(folder / "study.yaml")
    with pytest.raises(ConfigError, match=r"data.source: expected 'phantom', 'datalist' or 'folder', got 'arrays'$"):
        load_site(folder / "site.yaml")


def test_the_commands_read_files_of_a_new_source(arrays, folder, sahfl):
    code, out, _ = sahfl("check", folder / "study.yaml")
    assert (code, yaml.safe_load(out)["data"]["sites"]["tbi_a"]) == (0, str(folder / "arrays" / "tbi_a"))
    code, out, _ = sahfl("check", folder / "site.yaml")
    assert (code, json.loads((folder / "work" / "checks.json").read_text())["may_train"]) == (0, True)
    finding, n_cases, _ = examine_data(load_site(folder / "site.yaml"))
    assert (finding.verdict, n_cases) == ("ok", 3)


def test_a_study_of_a_new_source_runs_from_its_file_to_a_report(arrays, folder, federate):
    study = load_study(folder / "study.yaml")
    assert {site.name: site.data for site in site_configs(study, folder)} == {
        site: SiteScansArrays(path=folder / "arrays" / site) for site in SITES
    }
    assert "training cp_lora-r2, each round:" in dry_run(load_site(folder / "site.yaml"), study)

    run, _ = federate(study.model_dump(mode="json"))
    results = json.loads((run.path / "results.json").read_text())
    assert results["study"]["data"]["source"] == "arrays"
    assert {site["site"]: (site["source"], site["n_volumes"]) for site in results["sites"]} == {
        name: ("arrays", of["n_cases"]) for name, of in TINY["data"]["sites"].items()
    }
    (row,) = results["methods"]
    assert (row["id"], row["failed"]) == ("cp_lora-r2", None)
    assert ">arrays<" in (run.path / "report.html").read_text()
