"""A site's cache in a whole study: the same adapters with it, without it, and with what is left of it."""

import shutil

import pytest
from harness.tiny_study import TINY, changed

from sahfl.config import Study, parse
from sahfl.data.phantom import PROFILES, make_case
from sahfl.data.phantom.cohort import encode_nifti
from sahfl.federation.site.site import Site
from sahfl.simulation.simulate import site_configs

SETTINGS = changed(TINY, finetune__rounds=1, pretrain__rounds=1)


def outcome(folder):
    paths = [*folder.path.glob("adapters/**/*.safetensors"), *folder.path.glob("base/*.safetensors")]
    assert len(paths) == 3
    sums = [path.read_bytes() for path in sorted(folder.path.glob("evaluation/**/*")) if path.is_file()]
    assert sums
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in paths}, sums


def entries(folder):
    return sorted((folder.path / "sites").glob("*/cache/*/*.slices"))


def start_over(folder):
    """Forget all results of a run; its settings and its sites' folders stay."""
    for path in folder.path.iterdir():
        if path.name not in ("study.json", "sites"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.slow
def test_adapters_and_sums_do_not_depend_on_what_the_cache_holds(federate):
    """The second run finds some entries whole, some cut short, and some gone."""
    folder, _ = federate(SETTINGS)
    cold, before = outcome(folder), {path: path.read_bytes() for path in entries(folder)}
    assert len(before) == 11  # one entry per case
    start_over(folder)
    for path in list(before)[::3]:
        path.write_bytes(before[path][:-1])
    for path in list(before)[1::3]:
        path.unlink()
    folder, _ = federate(SETTINGS)
    assert outcome(folder) == cold
    assert {path: path.read_bytes() for path in entries(folder)} == before


def test_D05_a_scan_that_was_replaced_is_preprocessed_anew_and_its_old_entry_goes(scans, tmp_path):
    shutil.copytree(scans / "sah_a" / "scans", tmp_path / "sah_a" / "scans")
    study = parse(Study, SETTINGS, where="test")
    site = Site(next(config for config in site_configs(study, tmp_path) if config.name == "sah_a"))
    site.prepare(lambda done, total: None)
    site.load_views(site.cases(), study.views)
    before = set((tmp_path / "sah_a" / "cache").glob("*/*"))
    other = make_case(99, kind="sah", profile=PROFILES["noisy"], shape=(48, 56, 10), spacing_mm=(4.0, 4.0, 12.0))
    (tmp_path / "sah_a" / "scans" / "images" / "0001.nii.gz").write_bytes(encode_nifti(other.image, other.affine))
    site.prepare(lambda done, total: None)
    site.load_views(site.cases(), study.views)
    after = set((tmp_path / "sah_a" / "cache").glob("*/*"))
    assert len(before) == len(after) == 3
    assert len(before & after) == 2
