"""Two sites and the network side of their server, over real TLS."""

import pytest
from harness.fleet_server import serving
from harness.trust_kits import make_consortium


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return make_consortium(tmp_path_factory.mktemp("flower") / "consortium", sites=("bern", "graz"))


@pytest.fixture
def side(paths):
    with serving(paths) as side:
        yield side
