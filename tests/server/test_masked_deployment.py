"""Masked sums of five sites that are processes, which leave at every step, come late, and work in two cells at once."""

import os

import pytest
from harness.commands import journal
from harness.deployed import Deployment, environment, wait_for
from harness.tiny_study import TINY, changed
from test_same_result import numbers, results

from sahfl.config import Study, parse
from sahfl.run.folder import RunFolder
from sahfl.simulation.simulate import simulate

SITES = ("bern", "graz", "linz", "thun", "wels")
KINDS = {
    "query.masking_keys": 3,
    "query.masking_shares": 3,
    "train": 3,
    "query.masking_survivors": 5,
    "query.masking_reveal": 5,
}
"""What a site is asked in the five steps, and how many sites are in the sum if two leave when they are asked for it."""
FIVE = changed(
    TINY,
    name="five",
    data__sites={site: {"kind": "sah", "n_cases": 2} for site in SITES},
    finetune__sites=list(SITES),
    finetune__rounds=2,
    finetune__methods=[{"method": "full"}],
    finetune__folds=2,
    finetune__local={"steps": 1, "batch_size": 2},
    rounds={"quorum": 0.6, "deadline_s": 120.0, "attempts": 2, "pause_s": 0.0},
    common_random_numbers=False,
) | {"base": "none", "pretrain": None}
MASKING = {"clip": 50.0, "threshold": 3}
LEAVING = """
import os
if os.environ.get("LEAVES") and "multiprocessing" in str(__import__("sys").argv + __import__("sys").orig_argv):
    import signal
    import sahfl.federation.site.guard as guard
    def leaving(config, kind, *rest):
        if os.path.exists(os.environ["LEAVES"]) and open(os.environ["LEAVES"]).read() == kind:
            os.kill(os.getppid(), signal.SIGKILL)
            os._exit(9)
        return real(config, kind, *rest)
    real, guard.guarded = guard.guarded, leaving
"""
"""Ends a whole site, as SIGKILL does, when it is asked for what stands in a file."""


def masked(**changes):
    settings = changed(FIVE, **changes)
    del settings["pretrain"]
    settings["rounds"] |= {"masking": MASKING}
    return settings


def n_rounds(run):
    return len(journal(run, "round")) if (run / "journal.jsonl").exists() else 0


def without_bytes(found):
    """Without the bytes that travelled: a simulated site signs with fewer."""
    _, methods, comparisons = found
    return [{key: value for key, value in one.items() if "bytes" not in key} for one in methods], comparisons


def used_in(run, round_):
    return [[one["site"] for one in line["used"]] for line in journal(run, "round") if line["round"] == round_]


@pytest.mark.slow  # seconds of waiting for sites that left, in each of six rounds
def test_two_of_five_processes_may_leave_at_any_step_and_a_round_with_two_left_is_lost(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(LEAVING)
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    asked = {site: tmp_path / f"asked-{site}" for site in SITES}
    study = masked(finetune__rounds=90, rounds__deadline_s=30.0)  # what each of the steps waits for the sites that left
    with Deployment(tmp_path / "five", sites=SITES, study=study, lanes=1) as deployment:
        run = deployment.submit(agreed=False)
        server = deployment.server()
        sites = {site: deployment.site(site, PYTHONPATH=path, LEAVES=str(asked[site])) for site in SITES}
        rounds = []
        for kind, leaving in [*((kind, ("graz", "wels")) for kind in KINDS), ("train", ("graz", "thun", "wels"))]:
            wait_for(lambda: {site["state"] for site in deployment.status()["sites"].values()} == {"connected"}, 180)
            n = n_rounds(run)
            wait_for(lambda n=n: n_rounds(run) > n + 1, 180)  # a round of all five has begun
            for site in leaving:
                asked[site].write_text(kind)
            for site in leaving:
                assert sites[site].process.wait(90) != 0
                asked[site].unlink()
            rounds.append(n_rounds(run))
            wait_for(lambda: n_rounds(run) > rounds[-1], 240, lambda: server.log)
            for site in leaving:
                sites[site] = deployment.site(site, PYTHONPATH=path, LEAVES=str(asked[site]))
        wait_for(lambda: len(journal(run, "round")[-1]["used"]) == 5, 120, lambda: server.log)  # the training goes on
        assert server.stop() == 0
    lines = journal(run, "round")
    assert [len(lines[index]["used"]) for index in rounds] == [*KINDS.values(), 0]


@pytest.mark.slow
def test_two_masked_cells_at_once_at_processes_end_in_the_numbers_of_a_simulation_of_one(tmp_path):
    study = masked(finetune__rounds=2)
    simulated = RunFolder.create(tmp_path / "simulated", parse(Study, study, where="test"))
    simulate(simulated, workers=2, lanes=1)
    with Deployment(tmp_path / "deployed", sites=SITES, study=study) as deployment:
        run = deployment.submit(agreed=False)
        server = deployment.server("--until-done")
        sites = [deployment.site(site) for site in SITES]
        assert server.process.wait(500) == 0, server.log
        assert [site.stop() for site in sites] == [0] * 5
    assert numbers(run) == numbers(simulated.path)
    assert without_bytes(results(run)) == without_bytes(results(simulated.path))


@pytest.mark.slow
def test_a_site_that_comes_late_is_in_the_masked_sums_from_then_on(tmp_path):
    study = masked(finetune__rounds=4, finetune__local={"steps": 8, "batch_size": 2})
    early = {"start_with": "quorum", "wait_for_sites_s": 5.0}
    with Deployment(tmp_path / "late", sites=SITES, study=study, lanes=1, **early) as deployment:
        run = deployment.submit(agreed=False)
        server = deployment.server("--until-done")
        for site in SITES[:4]:
            deployment.site(site)
        server.wait_for_line("event=committed cell=full-scratch/fold-0 round=1 ", timeout_s=240)
        deployment.site("wels")
        assert server.process.wait(500) == 0, server.log
    sums = [line["used"] for line in journal(run, "masked_evaluation")]
    assert len(used_in(run, 1)[0]) == 4
    assert len(used_in(run, 4)[1]) == 5
    assert all(len(sites) == 5 for sites in sums[1:])
