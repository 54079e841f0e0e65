"""A study that starts from the base network of an earlier run, in the place of pretraining."""

import shutil

import numpy as np
import pytest
import yaml
from harness.commands import tensors
from harness.tiny_study import TINY, changed

from sahfl.adapters import digest
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.config import Study, load_study, parse
from sahfl.errors import AdapterError, ConfigError
from sahfl.federation import protocol


def from_base(path, sha256):
    settings = {key: value for key, value in TINY.items() if key != "pretrain"}
    return settings | {"base": {"path": str(path), "sha256": sha256}}


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


def test_a_study_from_a_base_ends_in_the_adapters_of_the_study_that_made_it(loaded, base):
    _, sha256, whole = base
    folder, grid = loaded
    assert tensors(folder.path) == tensors(whole.path)
    assert {site for site, _, _ in grid.seen} == {"sah_a", "sah_b", "sah_c"}
    results = folder.read_json("results.json")
    assert (results["base"]["mode"], results["base"]["sha256"]) == ("loaded", sha256)
    assert whole.read_json("results.json")["base"]["mode"] == "federated"
    assert "loaded" in (folder.path / "report.html").read_text()


def test_no_site_sends_the_weights_of_the_network(loaded, base):
    whole = load_tensors(base[0])[0]
    _, grid = loaded
    sent = [reply.content for _, request, reply in grid.seen if request.metadata.message_type == protocol.TRAIN]
    assert sent
    assert all(protocol.n_bytes(content) < sum(value.nbytes for value in whole.values()) / 4 for content in sent)


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
    with pytest.raises(AdapterError, match=f"got a base with hash {sha256}, expected base.sha256 {'0' * 64}"):
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
    both = TINY | {"base": {"path": "base.safetensors", "sha256": "0" * 64}}
    for settings, found in ((neither, "neither"), (both, "both")):
        with pytest.raises(ConfigError, match=f"expected either pretrain .* or base .*, got {found}"):
            parse(Study, settings, where="test")


def test_where_the_base_lies_is_beside_the_study_file_and_does_not_change_the_fingerprint(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(from_base("a/base.safetensors", "0" * 64)))
    study = load_study(tmp_path / "study.yaml")
    assert study.base.path == tmp_path / "a" / "base.safetensors"
    elsewhere = parse(Study, from_base("/b.safetensors", "0" * 64), where="test")
    assert study.fingerprint() == elsewhere.fingerprint()
    assert study.fingerprint() != parse(Study, from_base("/b.safetensors", "1" * 64), where="test").fingerprint()
