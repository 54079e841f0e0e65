"""The cohorts of several sites in one folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from harness.tiny_study import TINY, changed

from sahfl.commands.phantom import plan_sites
from sahfl.config import Study, load_study, parse
from sahfl.data.ct import read_scan
from sahfl.data.manifest import datalist_sites, read_datalist
from sahfl.data.phantom import LABELS, CohortSpec, demo_sites, read_cases, write_cohort, write_sites
from sahfl.errors import ConfigError, DataError

SHAPE, SPACING_MM = (32, 36, 8), (6.4, 6.4, 18.0)
SPECS = (
    CohortSpec("bern", "sah", "standard", n_cases=2, seed=4, shape=SHAPE, spacing_mm=SPACING_MM),
    CohortSpec("graz", "tbi", "sharp", n_cases=1, seed=4, shape=SHAPE, spacing_mm=SPACING_MM),
)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_built_in_sites_are_those_of_the_demo():
    demo = Path(__file__).parents[2] / "configs" / "demo.yaml"
    assert demo_sites() == plan_sites(load_study(demo))


def test_a_study_on_real_scans_has_no_phantom_sites():
    real = changed(TINY, data={"source": "datalist", "path": "x.json"})
    with pytest.raises(ConfigError, match=r"data\.source is 'datalist', expected 'phantom'"):
        plan_sites(parse(Study, real, where="real.yaml"))


def test_one_datalist_names_the_cases_of_all_sites(tmp_path):
    datalist = write_sites(tmp_path, SPECS)
    assert datalist == tmp_path / "datalist.json"
    assert datalist_sites(datalist) == ("bern", "graz")
    for spec in SPECS:
        cases = read_datalist(datalist, spec.site)
        assert [case.patient for case in cases] == [f"{spec.site}-{index:04d}" for index in range(spec.n_cases)]
        assert all(read_scan(case).image.shape == SHAPE for case in cases)
    assert json.loads(datalist.read_text())["labels"] == {"background": 0, **LABELS}


def test_a_site_s_cases_are_those_of_its_cohort_alone(tmp_path):
    write_sites(tmp_path / "all", SPECS)
    write_cohort(tmp_path / "one", SPECS[1])
    assert contents(tmp_path / "all" / "graz") == contents(tmp_path / "one")


def test_an_interrupted_folder_is_completed_to_the_same_bytes(tmp_path):
    def stop(site, done, total):
        if site == "graz":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sites(tmp_path / "a", SPECS, on_case=stop)
    assert not (tmp_path / "a" / "datalist.json").exists()
    write_sites(tmp_path / "a", SPECS)
    write_sites(tmp_path / "b", SPECS)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_finished_folder_is_left_as_it_is(tmp_path):
    write_sites(tmp_path, SPECS)
    calls = []
    write_sites(tmp_path, SPECS, on_case=lambda *progress: calls.append(progress))
    assert calls == []


def test_progress_names_the_site(tmp_path):
    calls = []
    write_sites(tmp_path, SPECS, on_case=lambda *progress: calls.append(progress))
    assert calls == [("bern", 1, 2), ("bern", 2, 2), ("graz", 1, 1)]


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_other_sites_is_refused(tmp_path, finished):
    datalist = write_sites(tmp_path, SPECS)
    if not finished:
        datalist.unlink()
    with pytest.raises(DataError, match="choose another folder"):
        write_sites(tmp_path, SPECS[:1])


def test_cases_are_read_back_as_they_were_made(tmp_path):
    write_sites(tmp_path, SPECS)
    (case,) = read_cases(tmp_path, SPECS[1])
    assert (case.image.dtype, case.label.dtype, case.kind) == (np.int16, np.uint8, "tbi")
    np.testing.assert_allclose(np.diag(case.affine)[:3], SPACING_MM)
