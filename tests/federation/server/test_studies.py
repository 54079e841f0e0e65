import pytest
import yaml
from harness.tiny_study import TINY, changed
from harness.trust_kits import make_consortium
from sahfl_server.command import app as command
from typer.testing import CliRunner

from sahfl.config import Study, load_study, parse
from sahfl.errors import ConfigError, RunError, TrustError, VersionsDiffer
from sahfl.federation.server.studies import Studies
from sahfl.run.folder import RunFolder
from sahfl.trust.provision import renew, revoke

DEPLOYED = changed(TINY, data={"source": "sites"}, rounds__unmasked=True)


def write(path, settings=DEPLOYED):
    named = {"name": path.stem} if len(path.stem) == 1 else {}
    path.write_text(yaml.safe_dump(settings | named))
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
    settings["base"] = {"path": "base.safetensors", "content_sha256": "0" * 64}
    target = Studies(tmp_path / "state").submit(write(tmp_path / "a.yaml", settings))
    assert load_study(target).base.path == tmp_path / "base.safetensors"


def test_the_study_s_name_is_that_of_its_file_in_the_queue_and_of_its_run(tmp_path):
    studies = Studies(tmp_path / "state")
    target = studies.submit(write(tmp_path / "Some file.yaml"))
    assert target == tmp_path / "state" / "queue" / "tiny.yaml"
    assert studies.run_of(target.stem) == tmp_path / "state" / "runs" / "tiny"


def test_a_study_whose_run_is_of_another_version_is_refused_until_the_run_is_archived(tmp_path):
    studies, file = Studies(tmp_path / "state"), write(tmp_path / "a.yaml")
    folder = RunFolder.create(studies.run_of("a"), load_study(file))
    folder.note({"event": "started", "sahfl": "9.9.9"})
    with pytest.raises(VersionsDiffer, match=r"ran with sahfl 9\.9\.9, .* archive the run \(sahfl study archive\)"):
        studies.submit(file)
    assert studies.waiting() == []
    studies.archive("a")
    assert studies.submit(file).exists()


@pytest.fixture
def paths(tmp_path):
    return make_consortium(tmp_path / "consortium", sites=parse(Study, DEPLOYED, where="test").sites)


REVOKED = "study tiny: names tbi_b, revoked; expected sites that may take part. Take them out of the study, or give "
REVOKED += "them new kits with `sahfl renew`; then submit the study again"


def test_a_study_with_a_revoked_site_is_refused_and_taken_once_it_has_a_new_kit(tmp_path, paths):
    studies, file = Studies(tmp_path / "state"), write(tmp_path / "study.yaml")
    revoke(paths.folder, "tbi_b")
    with pytest.raises(ConfigError) as caught:
        studies.submit(file, kit=paths.server)
    assert str(caught.value) == REVOKED
    assert studies.waiting() == []
    renew(paths.folder, "tbi_b")
    assert studies.submit(file, kit=paths.server).exists()


def test_the_command_submits_no_study_with_a_revoked_site(tmp_path, paths):
    settings = {"kit": str(paths.server), "folder": "state"}
    (tmp_path / "server.yaml").write_text(yaml.safe_dump(settings))
    arguments = [str(tmp_path / "server.yaml"), "--submit", str(write(tmp_path / "study.yaml"))]
    revoke(paths.folder, "tbi_b")
    with pytest.raises(ConfigError, match="names tbi_b, revoked"):
        raise CliRunner().invoke(command, arguments, standalone_mode=False).exception
    renew(paths.folder, "tbi_b")
    assert CliRunner().invoke(command, arguments, standalone_mode=False).stdout.strip().endswith("queue/tiny.yaml")


def test_a_study_that_has_begun_is_taken_although_a_site_was_revoked_since(tmp_path, paths):
    studies, file = Studies(tmp_path / "state"), write(tmp_path / "study.yaml")
    RunFolder.create(studies.run_of("tiny"), load_study(file)).note({"event": "started"})
    revoke(paths.folder, "tbi_b")
    assert studies.submit(file, kit=paths.server).exists()


def test_a_study_with_a_site_that_is_not_registered_is_refused(tmp_path, paths):
    file = write(tmp_path / "study.yaml", changed(DEPLOYED, pretrain__sites=["tbi_a", "bern"]))
    with pytest.raises(ConfigError, match=r"study tiny: names bern, expected registered sites \(there are: .*tbi_a"):
        Studies(tmp_path / "state").submit(file, kit=paths.server)


def test_a_list_of_sites_that_cannot_be_read_is_named(tmp_path, paths):
    (paths.server / "sites.json").unlink()
    with pytest.raises(TrustError, match=r"sites\.json: .*"):
        Studies(tmp_path / "state").submit(write(tmp_path / "study.yaml"), kit=paths.server)


def test_a_study_of_a_known_name_with_other_settings_is_refused(tmp_path):
    studies = Studies(tmp_path / "state")
    studies.submit(write(tmp_path / "a.yaml"))
    with pytest.raises(RunError, match="waits already"):
        studies.submit(tmp_path / "a.yaml")
    studies.end(studies.waiting()[0])
    RunFolder.create(studies.run_of("a"), parse(Study, DEPLOYED | {"name": "a"}, where="test"))
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


# --- cancel and archive ---------------------------------------------------------------------------------------------


def test_a_cancelled_study_leaves_the_queue_with_the_reason_and_can_be_submitted_again(tmp_path):
    studies = Studies(tmp_path / "state")
    for name in "ab":
        studies.submit(write(tmp_path / f"{name}.yaml"))
    assert studies.cancel("a") == tmp_path / "state" / "failed" / "a.yaml"
    assert [path.stem for path in studies.waiting()] == ["b"]
    assert (tmp_path / "state" / "failed" / "a.txt").read_text() == "cancelled; submit it again to go on\n"
    with pytest.raises(RunError, match=r"study a: is not in the queue \(in it: b\)"):
        studies.cancel("a")
    studies.submit(tmp_path / "a.yaml")
    assert [path.stem for path in studies.waiting()] == ["a", "b"]
    assert not (tmp_path / "state" / "failed" / "a.txt").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../runs", "../done/b", "a/"])
def test_a_name_that_leads_to_the_folders_of_all_studies_is_none(tmp_path, name):
    studies = Studies(tmp_path / "state")
    for path in ("runs/a", "done", "queue"):
        (tmp_path / "state" / path).mkdir(parents=True)
    (tmp_path / "state" / "done" / "b.yaml").write_text("")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match=r"there is none \(ended: a, b\)"):
        studies.archive(name)
    with pytest.raises(RunError, match="is not in the queue"):
        studies.cancel(name)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_archived_study_is_kept_whole_and_its_name_is_free(tmp_path):
    studies = Studies(tmp_path / "state")
    file = studies.submit(write(tmp_path / "a.yaml"))
    RunFolder.create(studies.run_of("a"), parse(Study, DEPLOYED, where="test"))
    with pytest.raises(RunError, match="study a: waits or runs; cancel it first"):
        studies.archive("a")
    studies.end(file, "too few sites")
    archived = studies.archive("a")
    assert archived.parent == tmp_path / "state" / "archive"
    assert sorted(path.name for path in archived.iterdir()) == ["failed-a.txt", "failed-a.yaml", "run"]
    assert (archived / "run" / "study.json").is_file()
    studies.submit(write(tmp_path / "a.yaml", changed(DEPLOYED, seed=99)))
    with pytest.raises(RunError, match=r"study z: there is none \(ended: none\)"):
        studies.archive("z")
