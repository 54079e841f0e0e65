"""A base network that nobody accepted waits; the study waits with it, and goes on when its hash was accepted."""

import pytest
from harness import asking
from harness.asking import training
from harness.tiny_study import TINY, changed

from sahfl.config import EvaluationConfig
from sahfl.errors import BaseNotAccepted, ConfigError, RunFailed, StorageError
from sahfl.federation import protocol
from sahfl.federation.server import base as module
from sahfl.federation.site import known_bases
from sahfl.federation.site.known_bases import FILE, accept_base, require_accepted

hospital = asking.hospital
ONE = changed(TINY, finetune__rounds=1, finetune__methods=[{"method": "cp_lora", "rank": 2}])


def test_no_request_with_a_base_that_nobody_accepted_is_worked_on_and_nothing_of_it_is_kept(hospital):
    hospital.allow(bases=())
    (hospital.config.folder / f"base-{hospital.base}.safetensors").unlink()
    for kind, content in (
        (protocol.INSTALL_BASE, hospital.request(asking.task_of(), hospital.network)),
        (protocol.TRAIN, hospital.request(training(), hospital.start)),
        (protocol.EVALUATE, hospital.request(asking.evaluating())),
    ):
        error, line = hospital.refuses(kind, content)
        assert (error, line["event"]) == ("BaseNotAccepted", "refused")
        assert line["details"]["reason"].endswith(f"then: sahfl-client accept-base SITE_FILE {hospital.base}")
    assert not list(hospital.config.folder.glob("base-*.safetensors"))
    assert (hospital.config.folder / FILE).stat().st_mode & 0o777 == 0o600
    accept_base(hospital.config, hospital.base)
    hospital.send(protocol.INSTALL_BASE, hospital.request(asking.task_of(), hospital.network))
    hospital.send(protocol.TRAIN, hospital.request(training(), hospital.start))


def test_a_base_in_the_site_s_file_needs_no_command_and_another_one_still_waits(hospital):
    hospital.allow(bases=(hospital.base,))
    require_accepted(hospital.config, asking.header_of(training(), base=hospital.base))
    with pytest.raises(BaseNotAccepted, match="e" * 64):
        require_accepted(hospital.config, asking.header_of(training(), base="e" * 64))


@pytest.mark.parametrize("sha256", ["", "ab", "a" * 63, "g" * 64, "../" + "a" * 61])
def test_only_a_whole_hash_is_accepted(hospital, sha256):
    with pytest.raises(ConfigError, match="expected the whole hash, 64 hex digits"):
        accept_base(hospital.config, sha256)


def test_a_server_cannot_fill_the_list_and_a_base_without_a_hash_is_never_noted(hospital, monkeypatch):
    hospital.allow(bases=())
    monkeypatch.setattr(known_bases, "MOST", 2)
    for digit in "ab":
        with pytest.raises(BaseNotAccepted, match="waits for acceptance"):
            require_accepted(hospital.config, asking.header_of(training(), base=digit * 64))
    for name, reason in (("c" * 64, "2 others wait already"), ("x\n" * 500, "without a hash")):
        with pytest.raises(BaseNotAccepted, match=reason):
            require_accepted(hospital.config, asking.header_of(training(), base=name))
    assert set(known_bases.known_bases(hospital.config.folder)) == {"a" * 64, "b" * 64}


def test_a_damaged_list_accepts_nothing(hospital):
    hospital.allow(bases=())
    accept_base(hospital.config, hospital.base)
    path = hospital.config.folder / FILE
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StorageError, match="restore it, or move it away and accept each base network again"):
        require_accepted(hospital.config, asking.header_of(training(), base=hospital.base))
    path.unlink()
    with pytest.raises(BaseNotAccepted):
        require_accepted(hospital.config, asking.header_of(training(), base=hospital.base))


# --- the run ---------------------------------------------------------------------------------------------------------


class People:
    """The people of the sites, who accept the base network after they were asked so often."""

    def __init__(self, after):
        self.after, self.sites = dict(after), {}

    def __call__(self, site, request, reply):
        if request.metadata.message_type == "query.install_base" and site in self.after:
            self.after[site] -= 1
            if self.after[site] == 0:
                header = protocol.read_header(request.content)
                accept_base(self.sites[site], header["base"])
        return reply


def test_a_run_waits_until_the_sites_accept_its_base(federate, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    people = People({"sah_a": 1, "sah_b": 3, "sah_c": 2})

    def remember(config):
        people.sites[config.name] = config
        return {}

    folder, grid = federate(ONE, policy={"bases": ()}, site=remember, change=people)
    (line,) = [line for line in folder.journal() if line["event"] == "base_waits"]
    assert line["sites"] == ["sah_a", "sah_b", "sah_c"]
    sent = [request for _, request, _ in grid.seen if request.metadata.message_type == "train"]
    assert {protocol.read_header(request.content)["base"] for request in sent} - {""} == {line["base"]}
    rounds = [line for line in folder.journal() if line["event"] == "round" and line["stage"] == "finetune"]
    assert [len(line["used"]) for line in rounds] == [3, 3]
    asked = [site for site, request, _ in grid.seen if request.metadata.message_type == "query.install_base"]
    assert {site: asked.count(site) for site in set(asked)} == {"sah_a": 2, "sah_b": 4, "sah_c": 3}


@pytest.mark.slow
def test_a_site_that_accepts_too_late_takes_part_from_then_on(federate, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.2)
    monkeypatch.setattr("sahfl.federation.server.roster.LONGEST_PAUSE_S", 0.0)
    people = People({"sah_a": 1, "sah_b": 1, "sah_c": 4})

    def remember(config):
        people.sites[config.name] = config
        return {}

    study = changed(ONE, finetune__rounds=3, rounds=TINY["rounds"] | {"accept_s": 0.3, "quorum": 0.6})
    folder, _ = federate(study, policy={"bases": ()}, site=remember, change=people)
    rounds = [line for line in folder.journal() if line["event"] == "round" and line["stage"] == "finetune"]
    used = [len(line["used"]) for line in rounds]
    assert used[0] == 2
    assert used[-1] == 3


def test_without_any_acceptance_the_run_ends_and_names_the_reason(federate, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    with pytest.raises(RunFailed, match=r"base network [0-9a-f]{64}: accepted at 0 of 3 sites within 0\.02 s"):
        federate(changed(ONE, rounds=TINY["rounds"] | {"accept_s": 0.02}), policy={"bases": ()})


# --- what an attack found --------------------------------------------------------------------------------------------


def test_no_evaluation_and_no_training_goes_around_the_base(hospital):
    hospital.allow(bases=())
    whole = asking.task_of(stage="pretrain", evaluation=EvaluationConfig(replicates=100))
    error, line = hospital.refuses(protocol.EVALUATE, hospital.request(whole, hospital.network, base=""))
    assert error == "PolicyRefused"
    assert "policy.stages: got an evaluation in pretrain, expected finetune" in line["details"]["reason"]
    for kind, task in ((protocol.TRAIN, training()), (protocol.EVALUATE, asking.evaluating())):
        assert hospital.refuses(kind, hospital.request(task, hospital.start, base=""))[0] == "BaseNotAccepted"


def test_a_base_that_nobody_accepted_is_not_the_base_of_the_study(hospital):
    hospital.config = hospital.config.model_copy(update={"simulated": False})
    hospital.allow(bases=(hospital.base,))
    wrong = hospital.request(asking.task_of(), hospital.network, base="e" * 64)
    assert hospital.refuses(protocol.INSTALL_BASE, wrong)[0] == "BaseNotAccepted"
    assert hospital.send(protocol.TRAIN, hospital.request(training(), hospital.start))


def test_a_study_is_named_by_its_fingerprint_alone(hospital):
    for study in ("", "a" * 63, "a" * 65, "x" * 3000, "A" * 64):
        content = hospital.request(training(), hospital.start, study=study)
        assert hospital.refuses(protocol.TRAIN, content)[0] == "PayloadError"
    assert not (hospital.config.folder / "studies.json").exists()
