import pytest
import yaml
from harness.tiny_study import TINY, changed

from sahfl.config import Study, load_study, parse
from sahfl.errors import ConfigError, RunError
from sahfl.federation.server.studies import Studies
from sahfl.run.folder import RunFolder

DEPLOYED = changed(TINY, data={"source": "sites"})


def write(path, settings=DEPLOYED):
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_study_that_is_submitted_waits_in_the_queue(tmp_path):
    studies = Studies(tmp_path / "state")
    assert studies.waiting() == []
    target = studies.submit(write(tmp_path / "first.yaml"))
    assert studies.waiting() == [target]
    assert load_study(target) == load_study(tmp_path / "first.yaml")


def test_studies_run_in_the_order_of_their_names_but_an_interrupted_one_first(tmp_path):
    studies = Studies(tmp_path / "state")
    for name in ("b", "a", "c"):
        studies.submit(write(tmp_path / f"{name}.yaml"))
    assert [path.stem for path in studies.waiting()] == ["a", "b", "c"]
    RunFolder.create(studies.run_of("c"), parse(Study, DEPLOYED, where="test")).note({"event": "started"})
    assert [path.stem for path in studies.waiting()] == ["c", "a", "b"]


def test_a_study_that_says_where_the_scans_lie_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data.source is 'phantom', expected 'sites'"):
        Studies(tmp_path).submit(write(tmp_path / "a.yaml", TINY))


def test_a_study_of_attacks_is_refused(tmp_path):
    settings = changed(DEPLOYED, hostile={"sah_a": "nan"})
    with pytest.raises(ConfigError, match="has hostile sites"):
        Studies(tmp_path).submit(write(tmp_path / "a.yaml", settings))


def test_a_study_of_pooled_data_is_refused_and_one_of_single_sites_is_not(tmp_path):
    message = "trains on all sites' patients in one place, .* take out trained_at: pooled"
    places = {"pooled": message, "pooled_steps": message, "sah_a": None}
    for place, message in places.items():
        settings = changed(DEPLOYED, name=place, finetune__methods=[{"method": "full", "trained_at": place}])
        file = write(tmp_path / f"{place}.yaml", settings)
        if message:
            with pytest.raises(ConfigError, match=message):
                Studies(tmp_path / "state").submit(file)
        else:
            assert Studies(tmp_path / "state").submit(file).exists()


def test_the_base_that_a_study_names_is_found_from_the_queue_too(tmp_path):
    settings = {name: value for name, value in DEPLOYED.items() if name != "pretrain"}
    settings["base"] = {"path": "base.safetensors", "sha256": "0" * 64}
    target = Studies(tmp_path / "state").submit(write(tmp_path / "a.yaml", settings))
    assert load_study(target).base.path == tmp_path / "base.safetensors"


def test_a_name_that_cannot_be_a_folder_s_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="rename it"):
        Studies(tmp_path).submit(write(tmp_path / "a b.yaml"))


def test_a_study_of_a_known_name_with_other_settings_is_refused(tmp_path):
    studies = Studies(tmp_path / "state")
    studies.submit(write(tmp_path / "a.yaml"))
    with pytest.raises(RunError, match="waits already"):
        studies.submit(tmp_path / "a.yaml")
    studies.end(studies.waiting()[0])
    RunFolder.create(studies.run_of("a"), parse(Study, DEPLOYED, where="test"))
    with pytest.raises(RunError, match="ran with other settings"):
        studies.submit(write(tmp_path / "a.yaml", changed(DEPLOYED, seed=99)))
    studies.submit(write(tmp_path / "a.yaml"))


def test_a_study_that_ended_is_moved_with_its_reason_if_it_failed(tmp_path):
    studies = Studies(tmp_path / "state")
    for name in ("a", "b"):
        studies.submit(write(tmp_path / f"{name}.yaml"))
    a, b = studies.waiting()
    studies.end(a)
    studies.end(b, "too few sites")
    assert studies.waiting() == []
    assert (tmp_path / "state" / "done" / "a.yaml").is_file()
    assert (tmp_path / "state" / "failed" / "b.txt").read_text() == "too few sites\n"
    studies.end(b, "taken out meanwhile")
    assert studies.waiting() == []
