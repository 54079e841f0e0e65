"""Sites that guard themselves, as processes: from a server that asks too much, has another key, or looks for names."""

import json
import os
import shutil
import signal

import pytest
from canaries import CANARY, canary_hospitals
from commands import journal
from deployed import POLICY, Deployment, wait_for
from tiny_study import TINY, changed

from sahfl.config import Study, parse
from sahfl.federation.site.audit import read_lines, verify
from sahfl.federation.site.site import Site
from sahfl.simulation import site_configs

SITES = ("tbi_a", "sah_a", "sah_b", "sah_c")
STUDY = changed(
    TINY,
    pretrain={"sites": ["tbi_a"], "rounds": 1, "local": {"steps": 1, "batch_size": 2}},
    finetune__rounds=1,
    finetune__methods=[{"method": "cp_lora", "rank": 2}],
)


def finish(deployment, *, code=0):
    """Run the queue to its end at all sites; the run's folder."""
    run = deployment.submit()
    server = deployment.server("--until-done")
    sites = [deployment.site(site) for site in SITES]
    assert server.process.wait(300) == code, server.log
    assert [site.stop() for site in sites] == [0] * len(sites)
    return run


def refusals(deployment, site):
    return [
        line for line in read_lines(deployment.folder / "sites" / site / "audit.jsonl") if line["event"] == "refused"
    ]


def test_C02_C06_C09_what_a_site_refuses_and_what_its_files_are_called_stays_there(tmp_path):
    scans = tmp_path / "phantoms"
    for config in site_configs(parse(Study, STUDY, where="test"), scans):
        if config.name.startswith("sah"):
            Site(config).prepare(lambda done, total: None)
    hospitals = canary_hospitals(scans, tmp_path / "hospitals")
    datalist = tmp_path / "hospitals" / "datalist.json"
    datalist.write_text(json.dumps({"sites": hospitals}))
    with Deployment(tmp_path / "deployed", sites=SITES, study=STUDY) as deployment:
        data = {"source": "datalist", "path": str(datalist)}
        for site in ("sah_b", "sah_c"):
            deployment.write_site(site, data=data)
        deployment.write_site("sah_a", policy=POLICY | {"most_rank": 1})
        run = finish(deployment)
        rounds = [line for line in journal(run, "round") if line["stage"] == "finetune"]
        assert [[item["site"] for item in line["used"]] for line in rounds] == [["sah_b", "sah_c"]] * 2
        reasons = {item["reason"] for line in rounds for item in line["missing"]}
        assert reasons == {"error at the site: PolicyRefused (details in the site's log)"}
        assert [line["details"]["reason"] for line in refusals(deployment, "sah_a")]
        assert "most_rank: got 2, expected at most 1" in str(refusals(deployment, "sah_a"))
        for site in SITES:
            assert verify(deployment.folder / "sites" / site / "audit.jsonl").torn == ()
        off_site = [path for path in deployment.state.rglob("*") if path.is_file()]
        off_site += [deployment.folder / name for name in ("server.log", "submit.log")]
        assert (deployment.state / "runs" / "study" / "report.html") in off_site
        assert not [path for path in off_site if CANARY.encode() in path.read_bytes()]
        daemons = [deployment.folder / f"{site}.log" for site in SITES]  # what journald gets at a hospital
        assert not [path for path in daemons if CANARY.encode() in path.read_bytes()]


@pytest.mark.slow
def test_C04_sites_refuse_a_server_that_signs_with_another_key(tmp_path):
    with Deployment(tmp_path / "deployed", sites=SITES, study=changed(STUDY, rounds__attempts=1)) as deployment:
        with Deployment(tmp_path / "another", sites=SITES, study=STUDY) as another:
            shutil.copy(another.consortium.server / "signing.key", deployment.consortium.server / "signing.key")
        run = finish(deployment, code=3)
        assert {line["reason"] for line in journal(run, "site_out")} == {
            "error at the site: TrustError (details in the site's log)"
        }
        assert len(journal(run, "site_out")) == len(SITES)
        assert not (run / "state").exists()
        assert len(refusals(deployment, "sah_a")) == 1


@pytest.mark.slow
def test_A08_A10_a_site_that_is_frozen_is_late_and_below_the_quorum_the_study_fails_by_name(tmp_path):
    settings = changed(
        STUDY, rounds={"quorum": 1.0, "deadline_s": 6.0, "attempts": 2, "pause_s": 1.0}, finetune__rounds=50
    )
    with Deployment(tmp_path / "deployed", sites=SITES, study=settings) as deployment:
        run = deployment.submit()
        server = deployment.server("--until-done")
        sites = {site: deployment.site(site) for site in SITES}
        wait_for(lambda: (run / "state" / "cp_lora-r2" / "fold-0").exists(), 240, lambda: server.log)
        os.killpg(sites["sah_c"].process.pid, signal.SIGSTOP)
        assert server.process.wait(120) == 3, server.log
        assert {site["site"] for line in journal(run, "paused") for site in line["sites"]} == {"sah_c"}
        (failed,) = journal(run, "failed")
        assert "got 2 usable replies of 3 sites, expected at least 3" in failed["reason"]
        assert "sah_c: no reply within 6 s" in failed["reason"]
        os.killpg(sites["sah_c"].process.pid, signal.SIGCONT)
        assert sites["sah_c"].stop() == 0
