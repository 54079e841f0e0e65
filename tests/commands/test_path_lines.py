"""A path of a settings file that cannot be used: every command names the file, the line and the setting."""

import re

import pytest
import yaml
from harness.tiny_study import TINY, changed

from sahfl import simulate
from sahfl.errors import ConfigError, DataError

SITES = TINY["data"]["sites"]
FOLDERS = {"source": "folder", "sites": {site: f"{site}/scans" for site in SITES}}
LIST = {"source": "datalist", "path": "none.json"}


def written(folder, settings):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def line_of(path, start):
    return next(
        number for number, line in enumerate(path.read_text().splitlines(), 1) if line.strip().startswith(start)
    )


@pytest.mark.parametrize("command", [("check",), ("simulate",), ("study",), ("study", "--plan")], ids=" ".join)
def test_every_missing_folder_of_a_study_is_named_with_its_line_and_nothing_is_written(sahfl, tmp_path, command):
    path = written(tmp_path, changed(TINY, data=FOLDERS))
    code, out, err = sahfl(command[0], path, *command[1:])
    assert (code, out) == (2, "")
    for site in SITES:
        place = f"{path}, line {line_of(path, f'{site}: ')}, data.sites.{site}: site {site}: "
        assert f"{place}{tmp_path / site / 'scans'}: got nothing (no such" in err
    assert [child.name for child in tmp_path.iterdir() if child.name != "cwd"] == ["study.yaml"]
    assert not list((tmp_path / "cwd").iterdir())


@pytest.mark.parametrize("command", ["check", "simulate", "study"])
def test_a_missing_datalist_is_named_with_its_line_unless_an_option_names_it(sahfl, tmp_path, command):
    path = written(tmp_path, changed(TINY, data=LIST))
    code, _, err = sahfl(command, path)
    assert code == 2
    place = f"error: {path}, line {line_of(path, 'path: ')}, data.path: "
    assert err.startswith(f"{place}datalist {tmp_path / 'none.json'}: No such file or directory")
    _, _, err = sahfl(command, path, "--datalist", tmp_path / "other.json")
    assert err.startswith(f"error: datalist {tmp_path / 'other.json'}: No such file or directory")


def test_a_missing_path_of_a_site_file_is_named_with_its_line(sahfl, tmp_path):
    (tmp_path / "site.yaml").write_text("name: bern\nfolder: work\ndata:\n  source: folder\n  path: none\n")
    code, _, err = sahfl("check", tmp_path / "site.yaml")
    assert code == 2
    assert f"site.yaml, line 5, data.path: site bern: {tmp_path / 'none'}: got nothing (no such" in err


def test_a_base_of_another_network_is_named_with_its_line(sahfl, tmp_path):
    settings = changed(TINY, base="phantom", model={"planes": "per_view"})
    del settings["pretrain"]
    path = written(tmp_path, settings)
    code, _, err = sahfl("check", path)
    assert code == 2
    assert re.search(rf"study.yaml, line {line_of(path, 'base: ')}, base: .* is no base of this study's network", err)


def test_python_names_file_and_line_or_the_setting_of_a_mapping(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = changed(TINY, data=FOLDERS)
    path = written(tmp_path, settings)
    with pytest.raises(DataError, match=rf"study.yaml, line {line_of(path, 'sah_a: ')}, data.sites.sah_a: site sah_a"):
        simulate(str(path))
    with pytest.raises(
        DataError, match=r"^study, data.sites.tbi_a: site tbi_a: \S+ got nothing \(no such file or folder\)"
    ):
        simulate(settings)
    settings = changed(TINY, base={"path": "none.safetensors"})
    del settings["pretrain"]
    with pytest.raises(ConfigError, match=r"^study, base: \S+none.safetensors: No such file"):
        simulate(settings)
