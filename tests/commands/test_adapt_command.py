"""``sahfl adapt``: a hospital that was not in the federation trains its own part of the shared network."""

import re
import shutil

import numpy as np
import pytest
import yaml
from harness.tiny_study import TINY, changed

from sahfl.adapters import exchanged
from sahfl.adapters.files import load_tensors
from sahfl.errors import RunError
from sahfl.federation.site.private import delete, stored
from sahfl.federation.site.site import Site
from sahfl.prediction.adapt import adapt
from sahfl.prediction.site_networks import read_network
from sahfl.run.folder import RunFolder
from sahfl.simulation.simulate import site_configs

PLAIN, PRIVATE = {"method": "cp_lora", "rank": 2}, {"method": "cp_lora", "rank": 2, "private_rank": 1}
SEVERAL = PRIVATE | {"rank": 1, "learning_rate": [0.001, 0.01]}
METHODS = [{"method": "zero_shot"}, PLAIN, PRIVATE, PLAIN | {"base_of": "tbi_a"}]
STUDY = changed(TINY, finetune__methods=METHODS, finetune__rounds=1)


@pytest.fixture(scope="module")
def run(federate_once):
    return federate_once(STUDY)[0].path


@pytest.fixture
def site_file(tmp_path):
    """A new hospital with phantoms of its own."""
    settings = {
        "name": "lyon", "folder": str(tmp_path / "lyon"),
        "data": {"source": "phantom", "patients": {"kind": "sah", "n_cases": 4, "profile": "tilted"}, "seed": 8},
    }  # fmt: skip
    settings["data"] |= {name: STUDY["data"][name] for name in ("shape", "spacing_mm")}
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def networks(tmp_path):
    return [read_network(tmp_path / "lyon", one) for one in stored(tmp_path / "lyon")]


@pytest.mark.slow
def test_only_the_hospital_s_own_part_trains_and_stays_in_its_folder(sahfl, run, site_file, tmp_path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, out, _ = sahfl("adapt", site_file, run, "--method", "cp_lora-r2-private1", "--steps", "3")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["0", "1"]
    assert all(re.search(r"\d\.\d{3} +\d\.\d{3}", line) for line in out.splitlines()[1:])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    first, second = networks(tmp_path)
    assert [item.task.fold for item in (first, second)] == [0, 1]
    ours = exchanged.read(first.net)
    saved, _ = load_tensors(run / "adapters" / "cp_lora-r2-private1" / "fold-0" / "adapter_model.safetensors")
    # What is shared is that of the run's adapter, bit for bit.
    assert all((ours[name] == value).all() for name, value in saved.items())
    assert ours.keys() - saved.keys() == {name for name in ours if ".private." in name}
    assert all(np.abs(ours[name]).max() > 0 for name in ours if name.endswith("private.factor_out"))


@pytest.mark.slow
def test_a_plain_method_gets_private_terms_here(sahfl, run, site_file, tmp_path):
    code, _, err = sahfl("adapt", site_file, run, "--method", "cp_lora-r2")
    assert code == 2
    assert "of cp_lora-r2 nothing stays at a site; add --private-rank, for example 4" in err
    code, _, _ = sahfl(
        "adapt", site_file, run, "--method", "cp_lora-r2", "--private-rank", "2", "--steps", "2", "--fold", "1"
    )
    assert code == 0
    (item,) = networks(tmp_path)
    assert (item.task.method.id, item.task.fold) == ("cp_lora-r2-private2", 1)


@pytest.mark.slow
def test_what_cannot_be_adapted_is_named(sahfl, run, site_file, tmp_path):
    code, _, err = sahfl("adapt", site_file, run, "--method", "zero_shot")
    assert code == 2
    assert "zero_shot was not trained by all sites together; name a federated method" in err
    code, _, err = sahfl("adapt", site_file, tmp_path / "none")
    assert code == 2
    assert "is no folder of a run" in err


@pytest.mark.slow
def test_a_comparison_of_bases_is_not_adapted(sahfl, run, site_file):
    code, _, err = sahfl("adapt", site_file, run, "--method", "cp_lora-r2-from-tbi_a", "--private-rank", "1")
    assert code == 2
    assert "cp_lora-r2-from-tbi_a is for a comparison only; name a method of all sites and their common base" in err


@pytest.mark.slow
def test_a_method_with_several_rates_is_adapted_at_the_rate_of_the_fold(federate, tmp_path, monkeypatch):
    folder, _ = federate(changed(TINY, finetune__methods=[SEVERAL], finetune__folds=3, finetune__rounds=1))
    (config,) = [site for site in site_configs(folder.study(), tmp_path / "new") if site.name == "sah_a"]
    used = []
    monkeypatch.setattr(
        "sahfl.prediction.adapt.train_locally",
        lambda site, task, header, own, cases, drawn: used.append((task.fold, task.learning_rate)) or (0.0, 1),
    )
    assert [one.fold for one in adapt(Site(config), folder.path)] == [0, 1, 2]
    assert dict(used) == folder.rates("cp_lora-r1-private1")


@pytest.mark.slow
def test_a_site_that_took_part_keeps_its_network_of_the_study(run, tmp_path):
    sites = shutil.copytree(run / "sites", tmp_path / "sites")
    study = RunFolder(run).study()
    (config,) = [site for site in site_configs(study, sites) if site.name == "sah_a"]
    kept = {path.name: path.read_bytes() for path in (sites / "sah_a" / "private").iterdir()}
    with pytest.raises(RunError, match=r"this site took part, .* sahfl private delete SITE_FILE \w{16}$") as caught:
        list(adapt(Site(config), run, method="cp_lora-r2-private1", steps=1))
    assert {path.name: path.read_bytes() for path in (sites / "sah_a" / "private").iterdir()} == kept
    delete(sites / "sah_a", str(caught.value).split()[-1])
    for _ in range(2):  # what it made itself, it makes again
        (found,) = adapt(Site(config), run, method="cp_lora-r2-private1", fold=0, steps=1)
        assert found.fold == 0
