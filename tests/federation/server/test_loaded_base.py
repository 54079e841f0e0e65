"""A study that starts from the base network of an earlier run, in the place of pretraining."""

import os
import shutil

import numpy as np
import pytest
import yaml
from harness.commands import tensors
from harness.tiny_study import TINY, changed

from sahfl.adapters import digest
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.bases import PHANTOM, PHANTOM_SHA256
from sahfl.config import Study, load_study, parse
from sahfl.errors import AdapterError, ConfigError
from sahfl.federation import protocol
from sahfl.networks import read_base


def from_base(path, sha256):
    settings = {key: value for key, value in TINY.items() if key != "pretrain"}
    return settings | {"base": {"path": str(path), "content_sha256": sha256}}


@pytest.fixture(scope="module")
def base(whole):
    """The base of a whole study, and that study's folder."""
    folder, _ = whole
    path = folder.path / "base" / "base.safetensors"
    return path, digest(load_tensors(path)[0]), folder


@pytest.fixture(scope="module")
def loaded(federate_once, base):
    """A whole study that starts from that base."""
    path, sha256, _ = base
    return federate_once(from_base(path, sha256))


@pytest.mark.slow
def test_a_study_from_a_base_ends_in_the_adapters_of_the_study_that_made_it(loaded, base):
    _, sha256, whole = base
    folder, grid = loaded
    assert tensors(folder.path) == tensors(whole.path)
    assert {site for site, _, _ in grid.seen} == {"sah_a", "sah_b", "sah_c"}
    results = folder.read_json("results.json")
    assert (results["base"]["mode"], results["base"]["sha256"]) == ("loaded", sha256)
    assert whole.read_json("results.json")["base"]["mode"] == "federated"
    assert "loaded" in (folder.path / "report.html").read_text()


@pytest.mark.slow
def test_no_site_sends_the_weights_of_the_network(loaded, base):
    whole = load_tensors(base[0])[0]
    _, grid = loaded
    sent = [reply.content for _, request, reply in grid.seen if request.metadata.message_type == protocol.TRAIN]
    assert sent
    assert all(protocol.n_bytes(content) < sum(value.nbytes for value in whole.values()) / 4 for content in sent)


@pytest.mark.slow
def test_a_run_keeps_its_own_copy_of_the_base(federate, base, tmp_path):
    path, sha256, _ = base
    moved = shutil.copy(path, tmp_path / "base.safetensors")
    folder, _ = federate(from_base(moved, sha256), name="loaded")
    before = tensors(folder.path)
    moved.unlink()
    shutil.rmtree(folder.path / "state" / "cp_lora-r2")
    again, _ = federate(from_base(moved, sha256), name="loaded")
    assert tensors(again.path) == before


def test_another_base_than_the_one_named_is_refused_with_its_hash(federate, base):
    path, sha256, _ = base
    with pytest.raises(AdapterError, match=f"got a base with hash {sha256}, expected base.content_sha256 {'0' * 64}"):
        federate(from_base(path, "0" * 64), name="loaded")


def test_a_missing_base_ends_the_run_before_any_site_is_asked(federate, tmp_path):
    with pytest.raises(AdapterError, match=r"none\.safetensors: No such file"):
        federate(from_base(tmp_path / "none.safetensors", "0" * 64), name="loaded")


def test_a_base_that_is_not_finite_is_refused_naming_the_tensor(federate, base, tmp_path):
    state = load_tensors(base[0])[0]
    name = next(iter(state))
    state[name] = np.full_like(state[name], np.nan)
    save_tensors(tmp_path / "broken.safetensors", state)
    with pytest.raises(AdapterError, match=f"tensor '{name}' contains NaN or inf"):
        federate(from_base(tmp_path / "broken.safetensors", digest(state)), name="loaded")


def test_the_base_of_another_network_is_refused(federate, base):
    path, sha256, _ = base
    settings = changed(from_base(path, sha256), model={"size": "tiny", "planes": "per_view"})
    with pytest.raises(AdapterError, match=r"no base of this study's network \(model, views\): state has missing"):
        federate(settings, name="loaded")


def test_a_study_needs_pretraining_or_a_base_and_never_both(tmp_path):
    neither = {key: value for key, value in TINY.items() if key != "pretrain"}
    both = TINY | {"base": {"path": "base.safetensors", "content_sha256": "0" * 64}}
    for settings, found in ((neither, "neither"), (both, "both")):
        with pytest.raises(ConfigError, match=f"expected either pretrain .* or base .*, got {found}"):
            parse(Study, settings, where="test")


def test_where_the_base_lies_is_beside_the_study_file_and_does_not_change_the_fingerprint(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(from_base("a/base.safetensors", "0" * 64)))
    study = parse(Study, yaml.safe_load((tmp_path / "study.yaml").read_text()), where="test", folder=tmp_path)
    assert study.base.path == tmp_path / "a" / "base.safetensors"
    elsewhere = parse(Study, from_base("/b.safetensors", "0" * 64), where="test")
    assert study.fingerprint() == elsewhere.fingerprint()
    assert study.fingerprint() != parse(Study, from_base("/b.safetensors", "1" * 64), where="test").fingerprint()


# --- the hash of the base -------------------------------------------------------------------------------------------


def written(tmp_path, base, *, source=None):
    settings = {key: value for key, value in TINY.items() if key != "pretrain"} | {"base": base}
    settings |= {"data": {"source": "sites"}, "rounds": {"unmasked": True}} if source else {}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return tmp_path / "study.yaml"


def test_on_one_machine_the_hash_of_the_base_is_that_of_the_file(tmp_path, base):
    path, sha256, _ = base
    study = load_study(written(tmp_path, {"path": str(path)}))
    assert study.base.content_sha256 == sha256
    named = load_study(written(tmp_path, {"path": str(path), "content_sha256": sha256}))
    assert study.fingerprint() == named.fingerprint()


def test_a_wrong_hash_a_missing_file_and_another_file_are_refused_when_the_study_is_read(tmp_path, base):
    path, sha256, _ = base
    with pytest.raises(ConfigError, match=rf"study.yaml, line \d+, base: .* has the hash {sha256}, expected content_"):
        load_study(written(tmp_path, {"path": str(path), "content_sha256": "0" * 64}))
    with pytest.raises(ConfigError, match=r"line \d+, base: .*none.safetensors: No such file.*; expected base/base"):
        load_study(written(tmp_path, {"path": "none.safetensors"}))
    with pytest.raises(ConfigError, match=r"study.yaml: is damaged or not safetensors; expected base/base.safetensors"):
        load_study(written(tmp_path, {"path": "study.yaml"}))


def test_a_base_that_is_no_regular_file_is_refused_and_blocks_nothing(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name, found in (("pipe", "is a pipe"), ("device", "is a device"), (".", "Is a directory")):
        with pytest.raises(ConfigError, match=rf"{found}.*; expected base/base\.safetensors"):
            load_study(written(tmp_path, {"path": name}))


def test_hospitals_need_the_hash_and_can_look_at_a_study_without_the_file(tmp_path, base):
    path, sha256, _ = base
    with pytest.raises(ConfigError, match=r"base: content_sha256 is missing; sahfl check of a study on this machine"):
        load_study(written(tmp_path, {"path": str(path)}, source="sites"))
    study = load_study(written(tmp_path, {"path": "elsewhere", "content_sha256": sha256}, source="sites"))
    assert study.base.content_sha256 == sha256


# --- the base that comes with sahfl, and none -------------------------------------------------------------------------


def test_the_shipped_base_is_the_one_that_its_hash_names_and_fits_the_default_network(tmp_path):
    state, note = load_tensors(PHANTOM)
    assert digest(state) == note["sha256"] == PHANTOM_SHA256
    study = load_study(written(tmp_path, "phantom"))
    assert (study.base.path, study.base.content_sha256) == (PHANTOM, PHANTOM_SHA256)
    assert digest(read_base(study)) == PHANTOM_SHA256
    assert Study.model_validate_json(study.model_dump_json()) == study


def test_the_shipped_base_has_a_card_that_names_its_hash_and_the_command_that_made_it():
    card = PHANTOM.with_suffix(".md").read_text()
    assert PHANTOM_SHA256 in card
    assert "python benchmarks/phantom_base.py" in card


def test_the_shipped_base_finds_simulated_blood_without_any_training(federate):
    settings = {key: value for key, value in TINY.items() if key != "pretrain"} | {"base": "phantom"}
    folder, grid = federate(changed(settings, finetune__methods=[{"method": "zero_shot"}]), name="phantom")
    results = folder.read_json("results.json")
    assert results["base"]["sha256"] == PHANTOM_SHA256
    assert {site for site, _, _ in grid.seen} == {"sah_a", "sah_b", "sah_c"}
    assert results["methods"][0]["id"] == "zero_shot"


def scratch(methods):
    settings = {key: value for key, value in TINY.items() if key != "pretrain"} | {"base": "none"}
    return changed(settings, finetune__methods=methods)


@pytest.mark.slow
def test_a_study_without_a_base_trains_whole_networks_from_scratch(federate):
    folder, grid = federate(scratch([{"method": "full"}]), name="scratch")
    results = folder.read_json("results.json")
    assert results["base"]["mode"] == "none"
    (method,) = results["methods"]
    assert method["id"] == "full-scratch"
    assert folder.study().finetune.methods[0].learning_rate == 2e-3
    slower = parse(Study, scratch([{"method": "full", "learning_rate": 0.01}]), where="test")
    assert slower.finetune.methods[0].learning_rate == 0.01
    assert any(request.metadata.message_type == protocol.TRAIN for _, request, _ in grid.seen)


def test_what_needs_a_trained_network_is_refused_without_a_base():
    methods = [{"method": "zero_shot"}, {"method": "cp_lora"}, {"method": "decoder"}, {"method": "full"}]
    with pytest.raises(
        ConfigError, match=r"method: full; got zero_shot, cp_lora-r8, decoder without a trained network"
    ):
        parse(Study, scratch(methods), where="test")


def test_runs_with_another_base_or_none_have_other_fingerprints(tmp_path, base):
    path, sha256, _ = base
    whole = [{"method": "full", "start": "scratch", "learning_rate": 2e-3}]
    prints = {parse(Study, changed(from_base(path, sha256), finetune__methods=whole), where="t").fingerprint()}
    prints |= {parse(Study, scratch(whole), where="t").fingerprint()}
    prints |= {parse(Study, scratch(whole) | {"base": "phantom"}, where="t").fingerprint()}
    assert len(prints) == 3
