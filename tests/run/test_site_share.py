"""What runs have of a site: the cells that it trained or evaluated, and all that comes from its base network."""

import json
import shutil

import pytest
from harness.tiny_study import TINY, changed

from sahfl.adapters.files import load_tensors
from sahfl.config import Study, parse
from sahfl.run.folder import base_file
from sahfl.run.site_share import delete_cells, runs_with

CP = [{"method": "cp_lora", "rank": 2}]
SMALL = changed(TINY, finetune__methods=CP, finetune__rounds=1, pretrain__rounds=1)
FOLDS = ("cp_lora-r2/fold-0", "cp_lora-r2/fold-1")


@pytest.fixture(scope="module")
def runs(federate_once, tmp_path_factory):
    """A run that pretrains, one that loads its base and fine-tunes at two of the sites, and their kept cells."""
    cells = tmp_path_factory.mktemp("kept") / "cells"
    first, _ = federate_once(SMALL, name="first", cells=cells)
    path = first.path / base_file()
    base = {"path": str(path), "content_sha256": load_tensors(path)[1]["sha256"]}
    settings = changed(SMALL, name="second", finetune__sites=["sah_a", "sah_b"])
    del settings["pretrain"]
    second, _ = federate_once(settings | {"base": base}, name="second", cells=cells)
    return first, second, cells


def found(runs, site):
    shares = runs_with(site, [runs[0].path, runs[1].path, runs[2], runs[0].path / "sites"])
    return {share.study: (share.trained, share.evaluated, len(share.bases)) for share in shares}


@pytest.mark.slow
def test_a_site_that_fine_tuned_has_a_part_in_the_cells_of_each_run_that_it_was_in(runs):
    assert found(runs, "sah_a") == {"tiny": (FOLDS, FOLDS, 0), "second": (FOLDS, FOLDS, 0)}
    assert found(runs, "sah_c") == {"tiny": (FOLDS, FOLDS, 0)}
    assert found(runs, "nobody") == {}


@pytest.mark.slow
def test_a_site_that_pretrained_has_a_part_in_every_network_from_that_base_also_in_a_later_run(runs):
    assert found(runs, "tbi_a") == {"tiny": (("pretrain",), (), 1), "second": ((), (), 1)}
    (share, *_) = runs_with("tbi_a", [runs[0].path])
    assert share.fingerprint == parse(Study, SMALL, where="test").fingerprint()


@pytest.mark.slow
def test_a_run_of_another_version_is_named_too(runs, tmp_path):
    copy = shutil.copytree(runs[0].path, tmp_path / "copy")
    settings = json.loads((copy / "study.json").read_text())
    (copy / "study.json").write_text(json.dumps(settings | {"of_another_version": 1}))
    (share,) = runs_with("sah_a", [copy])
    assert (share.trained, share.fingerprint) == (FOLDS, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("site", "left"), [("sah_c", {"pretrain", "second"}), ("sah_a", {"pretrain"}), ("tbi_a", set())]
)
def test_the_kept_cells_of_a_site_are_deleted_and_those_without_it_stay(runs, tmp_path, site, left):
    cells = shutil.copytree(runs[2], tmp_path / "cells")
    assert len(list(cells.glob("*/*"))) == 5  # pretraining, and two folds of each run
    shares = runs_with(site, [runs[0].path, runs[1].path])
    n_left = ("pretrain" in left) + 2 * ("second" in left)
    assert delete_cells(cells, site, shares) == 5 - n_left
    contents = [load_tensors(path)[1]["body"]["identity"] for path in cells.glob("*/*")]
    assert len(contents) == n_left
    assert not [content for content in contents if site in content["data"]]
    assert delete_cells(cells, site, shares) == 0


@pytest.mark.slow
def test_a_damaged_cell_is_deleted_because_nobody_can_tell_what_it_holds(runs, tmp_path):
    cells = shutil.copytree(runs[2], tmp_path / "cells")
    next(iter(cells.glob("*/*"))).write_bytes(b"x")
    assert delete_cells(cells, "nobody", ()) == 1


@pytest.mark.slow
def test_after_a_withdrawal_a_study_takes_kept_cells_only_from_where_the_site_had_no_part(federate, runs, tmp_path):
    cells = shutil.copytree(runs[2], tmp_path / "cells")
    before = {path.name for path in cells.glob("*/*")}
    delete_cells(cells, "sah_c", runs_with("sah_c", [runs[0].path]))
    again, grid = federate(changed(SMALL, name="without"), name="without", cells=cells)
    assert again.read_json("results.json")["cells"] == {"total": 3, "reused": 1}  # the pretraining
    trained = {
        request.content["header"]["stage"] for _, request, _ in grid.seen if request.metadata.message_type == "train"
    }
    assert trained == {"finetune"}
    assert {path.name for path in cells.glob("*/*")} == before  # computed anew to the same identity
