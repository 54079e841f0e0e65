"""Sites that guard themselves, as processes: from a server that asks too much, has another key, or looks for names."""

import json
import os
import shutil
import signal

import pytest
from harness.canaries import CANARY, canary_hospitals
from harness.commands import journal
from harness.deployed import POLICY, Deployment, sahfl_command, wait_for
from harness.tiny_study import TINY, changed

from sahfl.config import Study, parse
from sahfl.federation.site.audit import read_lines, verify
from sahfl.federation.site.site import Site
from sahfl.simulation.simulate import site_configs

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


def verdict(log):
    """Exit code and last line of ``sahfl audit verify``."""
    done = sahfl_command("audit", "verify", log)
    assert "Traceback" not in done.stderr
    return done.returncode, (done.stderr or done.stdout).splitlines()[-1]


def tampered(log, folder, *, lines):
    path = folder / "audit.jsonl"
    path.write_text("".join(lines(log.read_text().splitlines(keepends=True))))
    return verdict(path)


def assert_each_change_is_found(log, folder):
    """C09, by the command, on the log that a daemon wrote: a line edited, removed, put elsewhere."""
    n = len(list(read_lines(log)))
    assert n >= 4
    code, said = verdict(log)
    assert (code, said.partition(", head")[0]) == (0, f"whole: {n} lines")
    for lines, found in (
        (lambda t: [t[0], t[1].replace('"details":{', '"details":{"x":1,', 1), *t[2:]], "line 2: was changed"),
        (lambda t: [t[0], *t[2:]], "line 2: does not follow line number 1: a line was removed, added or moved"),
        (lambda t: [t[0], t[2], t[1], *t[3:]], "line 2: does not follow line number 1"),
    ):
        code, said = tampered(log, folder, lines=lines)
        assert code == 3
        assert found in said


@pytest.mark.slow
def test_C02_C05_C06_C09_what_a_site_refuses_or_withholds_and_what_its_files_are_called_stays_there(tmp_path):
    scans = tmp_path / "phantoms"
    for config in site_configs(parse(Study, STUDY, where="test"), scans):
        if config.name.startswith("sah"):
            Site(config).prepare(lambda done, total: None)
    hospitals = canary_hospitals(scans, tmp_path / "hospitals")
    datalist = tmp_path / "hospitals" / "datalist.json"
    datalist.write_text(json.dumps({"sites": hospitals}))
    with Deployment(tmp_path / "deployed", sites=SITES, study=STUDY) as deployment:
        data = {"source": "datalist", "path": str(datalist)}
        deployment.write_site("sah_b", data=data, policy=POLICY | {"smallest_group": 2, "smallest_bootstrap": 2})
        deployment.write_site("sah_c", data=data)
        deployment.write_site("sah_a", policy=POLICY | {"adapters": POLICY["adapters"] | {"most_rank": {"cp_lora": 1}}})
        run = finish(deployment)
        rounds = [line for line in journal(run, "round") if line["stage"] == "finetune"]
        assert [[item["site"] for item in line["used"]] for line in rounds] == [["sah_b", "sah_c"]] * 2
        reasons = {item["reason"] for line in rounds for item in line["missing"]}
        assert reasons == {"error at the site: PolicyRefused (details in the site's log)"}
        assert [line["details"]["reason"] for line in refusals(deployment, "sah_a")]
        assert "adapters.most_rank.cp_lora: got 2, expected at most 1" in str(refusals(deployment, "sah_a"))
        for site in SITES:
            assert verify(deployment.folder / "sites" / site / "audit.jsonl").torn == ()
        audit = deployment.folder / "sites" / "sah_b" / "audit.jsonl"
        assert_each_change_is_found(audit, tmp_path)
        for fold in range(2):  # one patient each, of two that a group needs
            sums = json.loads((run / "evaluation" / "cp_lora-r2" / f"fold-{fold}.json").read_text())["sums"]
            assert len([value for value in sums["sah_b"] if value]) <= 2
            assert len([value for value in sums["sah_c"] if value]) > 50
        (method,) = json.loads((run / "results.json").read_text())["methods"]
        assert {part["site"]: part["blood"] for part in method["withheld"]} == {"sah_b": 2}
        off_site = [path for path in deployment.state.rglob("*") if path.is_file()]
        off_site += [deployment.folder / name for name in ("server.log", "submit.log")]
        assert (deployment.state / "runs" / "tiny" / "report.html") in off_site
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
        STUDY, rounds={"quorum": 1.0, "deadline_s": 30.0, "attempts": 2, "pause_s": 1.0}, finetune__rounds=50
    )
    with Deployment(tmp_path / "deployed", sites=SITES, study=settings) as deployment:
        run = deployment.submit()
        server = deployment.server("--until-done")
        sites = {site: deployment.site(site) for site in SITES}
        wait_for(lambda: (run / "state" / "cp_lora-r2" / "fold-0").exists(), 240, lambda: server.log)
        os.killpg(sites["sah_c"].process.pid, signal.SIGSTOP)
        assert server.process.wait(240) == 3, server.log
        last = journal(run, "paused")[-1]  # a slow machine can miss the short deadline elsewhere, earlier
        assert [site["site"] for site in last["sites"]] == ["sah_c"]
        (failed,) = journal(run, "failed")
        assert "got 2 usable replies of 3 sites, expected at least 3" in failed["reason"]
        assert "sah_c: no reply within 30 s" in failed["reason"]
        os.killpg(sites["sah_c"].process.pid, signal.SIGCONT)
        assert sites["sah_c"].stop() == 0
