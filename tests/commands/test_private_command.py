"""``sahfl private``, and predictions and exports from what stays at a site."""

import json
import shutil

import numpy as np
import pytest
from harness.finished_run import phantom_hu, write_scan
from harness.tiny_study import TINY, changed

from sahfl.federation.site.private import stored
from sahfl.prediction.segment import read_networks

METHOD = {"method": "cp_lora", "rank": 2, "private_rank": 1, "learning_rate": 0.05}
ID = "cp_lora-r2-private1"
STUDY = changed(TINY, finetune__methods=[METHOD, METHOD | {"trained_at": "sah_b"}], finetune__rounds=1)
IMAGE, _, AFFINE = phantom_hu()


@pytest.fixture(scope="module")
def run(federate_once):
    return federate_once(STUDY)[0].path


@pytest.fixture
def scan(tmp_path):
    return write_scan(tmp_path / "scan.nii.gz", IMAGE, AFFINE, "LPS")


@pytest.mark.slow
def test_all_that_stays_is_listed_and_one_training_of_it_is_deleted(sahfl, run, tmp_path):
    site = shutil.copytree(run / "sites" / "sah_b", tmp_path / "sah_b")
    code, out, _ = sahfl("private", "list", site)
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert (code, len(names)) == (0, 4)  # two methods, two folds
    assert out.count(ID) == 4
    assert all(len(name) == 16 for name in names)
    assert f"{ID}-at-sah_b " in out  # nothing is shortened
    code, out, _ = sahfl("private", "delete", site, names[0])
    assert (code, out.strip()) == (0, f"deleted: {names[0]}")
    code, out, _ = sahfl("private", "delete", site, names[0])
    assert (code, out.strip()) == (0, f"nothing was stored of {names[0]}; this training may begin anew here")
    assert names[0] not in sahfl("private", "list", site)[1]
    assert len(stored(site)) == 3
    code, _, err = sahfl("private", "delete", site, "../../x")
    assert code == 2
    assert "'../../x': is no name of a training, expected 16 hex digits as sahfl private list prints" in err


def test_a_site_at_which_nothing_stays_is_named_so(sahfl, tmp_path):
    assert sahfl("private", "list", tmp_path)[:2] == (0, "nothing of a training stays at this site\n")
    code, _, err = sahfl("private", "list", tmp_path / "none")
    assert code == 2
    assert "is neither a site file (YAML) nor a site's folder" in err


@pytest.mark.slow
def test_a_site_segments_with_its_own_network_which_no_other_site_has(sahfl, run, scan, tmp_path):
    nets = {site: read_networks(run / "sites" / site, method=ID, fold=0) for site in ("sah_a", "sah_b")}
    ours, theirs = (dict(trained.nets[0].named_parameters()) for trained in nets.values())
    assert any(not bool((ours[name] == theirs[name]).all()) for name in ours)
    assert {trained.part for trained in nets.values()} == {"site"}
    code, out, err = sahfl("predict", run / "sites" / "sah_a", scan, "--method", ID, "--out", tmp_path / "out")
    assert (code, "stays at each site" in err) == (0, False)
    assert f"{ID}, folds 0, 1; threshold 0.5" in out
    assert json.loads((tmp_path / "out" / "prediction.json").read_text())["part"] == "site"
    code, _, err = sahfl("predict", run / "sites" / "sah_b", scan, "--out", tmp_path / "other")
    assert code == 2
    assert f"networks of several methods or studies for this (it has: {ID}, fold 0" in err


@pytest.mark.slow
def test_an_export_of_what_stays_needs_a_word_and_carries_a_warning(sahfl, run, scan, tmp_path):
    site, to = run / "sites" / "sah_a", tmp_path / "export"
    code, _, err = sahfl("export", site, "--method", ID, "--to", to)
    assert code == 2
    assert "holds networks that were trained on this site's patients and stay here; add --with-private" in err
    assert not to.exists()
    code, _, err = sahfl("export", site, "--method", ID, "--to", to, "--with-private", "--format", "adapter")
    assert code == 2
    assert "networks of a site have no adapter; name other formats" in err
    code, out, _ = sahfl("export", site, "--method", ID, "--fold", "0", "--to", to, "--with-private")
    assert code == 0
    assert "largest difference of logits" in out
    note = json.loads((to / "fold-0" / "safetensors" / "config.json").read_text())
    assert note["part"] == "site"
    assert note["intended_use"].startswith(
        "Trained on this site's patients: these weights may reveal something of them"
    )
    weights = [read_networks(folder, fold=0).nets[0].state_dict() for folder in (to, site)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[1])
    code, _, _ = sahfl("predict", to, scan, "--out", tmp_path / "out")
    assert code == 0


@pytest.mark.slow
def test_a_run_has_nothing_that_stays_at_a_site(sahfl, run, scan, tmp_path):
    code, _, err = sahfl("export", run, "--method", ID, "--to", tmp_path / "export", "--with-private")
    assert code == 2
    assert "a run holds what sites share, --with-private is for the folder of a site" in err
    code, _, err = sahfl("predict", run, scan, "--method", f"{ID}-at-sah_b", "--out", tmp_path / "out")
    assert code == 2
    assert f"has nothing of {ID}-at-sah_b, which stays at the site that trained it; name the folder of sah_b" in err
    code, _, err = sahfl("predict", run, scan, "--method", ID, "--out", tmp_path / "out")
    assert code == 0
    assert "warning: a part of this method stays at each site; these networks are without any of it" in err


@pytest.mark.slow
def test_a_site_without_the_base_or_with_a_damaged_network_is_refused(sahfl, run, scan, tmp_path):
    site = shutil.copytree(run / "sites" / "sah_a", tmp_path / "sah_a")
    (base,) = site.glob("base-*.safetensors")
    base.rename(tmp_path / "base")
    code, _, err = sahfl("predict", site, scan, "--out", tmp_path / "out")
    assert code == 2
    assert "is missing; the network belongs to this base, so copy it here again" in err
    (tmp_path / "base").rename(base)
    assert sahfl("predict", site, scan, "--out", tmp_path / "out")[0] == 0
    path = next((site / "private").glob("*-final.safetensors"))
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    code, _, err = sahfl("predict", site, scan, "--out", tmp_path / "again")
    assert code == 2
    assert "content does not match its hash" in err
