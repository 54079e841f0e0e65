"""The apps under stock flower-superlink, flower-supernode and flwr run, as real processes."""

import json

import pytest
import yaml
from harness.commands import journal, tensors
from harness.stock_flower import StockFlower, wait_until, write_site
from harness.tiny_study import TINY, changed

from sahfl.config import Study, parse
from sahfl.federation.server.mailbox import NOT_ACCEPTED
from sahfl.run.folder import RunFolder
from sahfl.simulation.simulate import simulate

SITES = ["tbi_a", "sah_a", "sah_b"]
STUDY = changed(
    TINY,
    data__sites={site: TINY["data"]["sites"][site] for site in SITES},
    pretrain__sites=["tbi_a"],
    pretrain__rounds=1,
    finetune__sites=["sah_a", "sah_b"],
    finetune__methods=[{"method": "cp_lora", "rank": 2}],
    rounds__deadline_s=300.0,  # each message costs a site a process that imports torch
)
WAIT_S = 900

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    """Three hospitals, and a SuperNode that was started without a site file."""
    folder = tmp_path_factory.mktemp("stock")
    with StockFlower(folder) as flower:
        nodes = {site: flower.join(site, write_site(folder / f"{site}.yaml", site, STUDY)) for site in SITES}
        nodes["stray"] = flower.join("stray", None)
        (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
        yield flower, nodes
    assert not flower.processes()


def settings(flower, run, nodes):
    paths = {"run-folder": str(flower.folder / run), "study": str(flower.folder / "study.yaml")}
    return paths | {"nodes": json.dumps({str(node): site for site, node in nodes.items()})}


def events(folder):
    return [line["event"] for line in journal(folder)] if (folder / "journal.jsonl").exists() else []


def test_a_run_of_stock_flower_is_stopped_and_started_again_and_ends_bit_identical_to_the_simulation(
    consortium, tmp_path
):
    flower, nodes = consortium
    assert flower.online() == set(nodes.values())
    run = settings(flower, "run", {site: nodes[site] for site in SITES})
    folder = flower.folder / "run"
    first = flower.run(run)
    wait_until(lambda: events(folder).count("round") == 2, timeout_s=WAIT_S, what="a round of fine-tuning")
    flower.stop_run(first)
    wait_until(lambda: "interrupted" in events(folder), timeout_s=WAIT_S, what="the end of the server's app")
    assert flower.outcome(first) == "finished:stopped"
    second = flower.run(run)
    wait_until(lambda: {"finished", "failed"} & set(events(folder)), timeout_s=WAIT_S, what="the run")
    assert flower.outcome(second) == "finished:completed"
    assert [line["after"] for line in journal(folder, "resumed")] == ["interrupted"]
    reference = RunFolder.create(tmp_path / "reference", parse(Study, STUDY, where="test"))
    simulate(reference, workers=1)
    assert tensors(folder) == tensors(reference.path)
    assert len(tensors(folder)) == 3
    for name in ("methods", "base", "sites"):
        ours, theirs = (json.loads((path / "results.json").read_text())[name] for path in (folder, reference.path))
        assert ours == theirs


def test_what_flower_unpacked_anywhere_holds_no_code(consortium):
    flower, _ = consortium
    unpacked = sorted(path.name for app in flower.folder.glob("*/apps/*") for path in app.rglob("*"))
    assert set(unpacked) == {"README.md", "pyproject.toml"}
    assert not list(flower.folder.rglob("*.py"))


def test_a_run_below_its_quorum_has_failed_for_flower_too_and_each_site_s_reason_is_named(consortium):
    flower, nodes = consortium
    wrong = {"tbi_a": nodes["stray"], "sah_a": 12345, "sah_b": 12346}
    run = flower.run(settings(flower, "wrong", wrong))
    folder = flower.folder / "wrong"
    assert flower.outcome(run, timeout_s=WAIT_S) == "finished:failed"
    assert "failed" in events(folder), flower.printed(run)
    reasons = {line["site"]: line["reason"] for line in journal(folder, "site_out")}
    assert reasons["tbi_a"] == "error at the site: ConfigError (details in the site's log)"
    assert reasons["sah_a"] == reasons["sah_b"] == NOT_ACCEPTED
    assert "no site is named; add --node-config" in flower.log("stray")
