"""A dry run lists the tasks that the server sends: both are made by the same functions."""

import pytest
from harness.tiny_study import TINY, changed

from sahfl.federation import protocol
from sahfl.federation.requests import Requests
from sahfl.federation.site.dry_run import dry_run
from sahfl.federation.site.kinds.table import KINDS

RANKS = {"method": "cp_lora", "rank": 2, "aggregation": "project", "site_ranks": {"sah_a": 1, "sah_b": 2}}
ALONE = {"method": "cp_lora", "rank": 2, "trained_at": "sah_b", "label": "alone"}
SETTINGS = changed(
    TINY,
    compare_sites=True,
    pretrain__rounds=1,
    finetune__rounds=1,
    finetune__methods=[{"method": "zero_shot"}, RANKS, ALONE],
    rounds__payload="int8",
)


@pytest.fixture
def finished(federate):
    return federate(SETTINGS)


def test_a_dry_run_lists_exactly_the_tasks_that_the_server_sent_to_each_site(finished):
    folder, grid = finished
    requests = Requests(folder.study(), folder.study().fingerprint())
    for config in grid.nodes.values():
        for message_type, kind in KINDS.items():
            asked = [m for site, m, _ in grid.seen if (site, m.metadata.message_type) == (config.name, message_type)]
            sent = [task for task in (protocol.read_task(m.content) for m in asked) if task.fold <= 0]
            planned = [task for planned in kind.plan(config, requests) for task in planned.tasks]
            if message_type == protocol.PRIVATE_PART:  # asked by a server that keeps finished cells
                assert not sent
                assert [task.method.id for task in planned] == ["cp_lora-r2-alone-at-sah_b"] * (config.name == "sah_b")
            else:
                assert planned == sent, (config.name, message_type)


@pytest.mark.slow
def test_a_dry_run_counts_a_site_s_own_rank(finished):
    folder, grid = finished
    said = {config.name: dry_run(config, folder.study()) for config in grid.nodes.values()}
    assert "factors of the adapters of rank 1" in said["sah_a"]
    assert "factors of the adapters of rank 2" not in said["sah_a"]
    assert said["sah_b"].count("factors of the adapters of rank 2") == 1  # and nothing leaves of the training alone
    assert "install_base" not in said["tbi_a"]
