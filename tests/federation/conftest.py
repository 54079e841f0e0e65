"""What the tests of masked sums share: the scans of five sites, their keys, and trainings that go through them."""

from __future__ import annotations

import pytest
from harness.masked_training import SITES, MaskedTraining, prepare
from harness.trust_kits import make_consortium


@pytest.fixture(scope="session")
def five(tmp_path_factory):
    folder = tmp_path_factory.mktemp("five")
    prepare(folder)
    return folder


@pytest.fixture(scope="session")
def kits(tmp_path_factory):
    return make_consortium(tmp_path_factory.mktemp("keys"), sites=SITES)


@pytest.fixture
def masked_training(tmp_path, five):
    """Makes a training with settings; each has a folder of its own."""
    made = []

    def make(**more):
        made.append(1)
        return MaskedTraining(tmp_path / f"run{len(made)}", five, **more)

    return make
