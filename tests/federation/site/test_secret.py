"""The secret of a site, and the batches that follow from it."""

import pytest
from harness import asking
from harness.asking import header_of, training

from sahfl.config import LocalTraining
from sahfl.errors import SiteStateLost
from sahfl.federation import protocol
from sahfl.federation.site.kinds.local_training import batch_seed
from sahfl.federation.site.secret import FILE, commitment, site_secret
from sahfl.federation.site.site import Site
from sahfl.federation.tensors import hash_of_tensors
from sahfl.simulation.simulate import simulated_secret

hospital = asking.hospital


@pytest.fixture
def own(hospital):
    """A hospital that makes its own secret."""
    return hospital.config.model_copy(update={"secret": None})


def seed_of(hospital, config=None, state=None, **changes):
    header = {name: changes.pop(name) for name in ("base", "study") if name in changes}
    task = training(**changes)
    content = hospital.request(task, hospital.start if state is None else state, **header)
    start = hash_of_tensors(content)
    named = {"base": hospital.base, **header}
    return batch_seed(Site(config or hospital.config), task, header_of(task, **named), start)


def test_a_secret_is_made_once_and_only_the_owner_reads_it(own, tmp_path):
    first = site_secret(own)
    path = own.folder / FILE
    assert (len(first), site_secret(own), path.stat().st_mode & 0o777) == (32, first, 0o600)
    other = own.model_copy(update={"folder": tmp_path / "other"})
    assert site_secret(other) != first
    assert commitment(own) != commitment(other)
    assert first.hex()[:16] not in commitment(own)
    assert not list(own.folder.glob("*.tmp"))


@pytest.mark.parametrize("damage", [b"", b"x" * 31, b"x" * 33])
def test_a_damaged_secret_is_an_error_and_is_not_replaced_in_silence(own, damage):
    (own.folder / FILE).write_bytes(damage)
    with pytest.raises(SiteStateLost, match=rf"holds {len(damage)} bytes, expected 32; restore it from the newest"):
        site_secret(own)
    assert (own.folder / FILE).read_bytes() == damage


def test_a_simulated_secret_follows_from_seed_and_site():
    assert simulated_secret(3, "sah_a") == simulated_secret(3, "sah_a")
    assert len({simulated_secret(seed, site) for seed in (3, 4) for site in ("sah_a", "sah_b")}) == 4


OTHERS = {
    "base": {"base": "f" * 64},
    "rate": {"learning_rate": 0.004},
    "steps": {"local": LocalTraining(steps=2, batch_size=2)},
    "fold": {"fold": 1},
    "round": {"round": 2},
    "seed": {"seed": 99},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_any_other_request_draws_other_batches(hospital, other):
    assert seed_of(hospital, **other) != seed_of(hospital)


def test_another_start_and_another_secret_draw_other_batches_and_the_same_request_the_same(hospital, own):
    usual = seed_of(hospital)
    moved = {name: value + 1e-3 for name, value in hospital.start.items()}
    assert seed_of(hospital) == usual
    assert seed_of(hospital, study="b" * 64) == usual  # where the scans lie changes nothing
    assert seed_of(hospital, state=moved) != usual
    assert seed_of(hospital, config=own) != usual


def test_with_common_random_numbers_batches_depend_on_neither_method_start_nor_secret(hospital, own):
    crn = {"common_random_numbers": True}
    usual = seed_of(hospital, **crn)
    moved = {name: value + 1e-3 for name, value in hospital.start.items()}
    assert seed_of(hospital, config=own, state=moved, learning_rate=0.004, **crn) == usual
    assert seed_of(hospital, round=2, **crn) != usual


def test_the_description_of_a_site_has_the_hash_of_its_secret(hospital, own):
    hospital.config = own
    content = hospital.send(protocol.DESCRIBE, hospital.request(training(round=0, rounds=0)))
    assert protocol.read_description(content).batches == commitment(own)
