"""The command, the processes and the files: a whole study as a user runs it."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import yaml
from harness.commands import (
    journal,
    processes_of_session,
    run,
    start,
    tensors,
    wait_for_no_process,
    wait_for_round,
    write,
)
from harness.tiny_study import TINY, changed

STUDY = changed(TINY, views__weights={"axial": 1.0, "coronal": 0.5, "sagittal": 0.5}, finetune__rounds=3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run with one worker; the tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    code, out, err = run(write(folder / "study.yaml", STUDY), "--out", folder / "run", "--workers", 1)
    assert code == 0, err
    return folder / "run", out, err


def test_a_run_ends_with_a_report_results_adapters_and_base(finished):
    folder, out, err = finished
    assert out.strip() == str(folder / "report.html")
    assert "SIMULATED. All scans are made by a program." in err
    assert re.search(r"^CP-LoRA \(rank 2\) .*one training +4,112 ", err, re.MULTILINE)
    assert "No method can be recommended: CP-LoRA (rank 2) was trained once" in err
    assert "<html" in (folder / "report.html").read_text()
    assert sorted(tensors(folder)) == [
        "adapters/cp_lora-r2/fold-0/adapter_model.safetensors",
        "adapters/cp_lora-r2/fold-1/adapter_model.safetensors",
        "base/base.safetensors",
    ]
    results = json.loads((folder / "results.json").read_text())
    assert [method["metrics"]["dice"]["overall"]["n"] for method in results["methods"]] == [7, 7]
    (comparison,) = results["comparisons"]
    gain = comparison["metrics"]["dice"]["overall"]
    assert gain["low"] <= gain["difference"] <= gain["high"]
    assert gain["p_holm"] == gain["p"]  # the only comparison with zero-shot
    assert len(results["rounds"]) == 2 + 2 * 3
    assert [row["case"] for row in results["overlays"]] == ["best", "median", "worst"]
    assert all((folder / row["png"]).read_bytes().startswith(b"\x89PNG") for row in results["overlays"])
    config = json.loads((folder / "adapters/cp_lora-r2/fold-0/adapter_config.json").read_text())
    note = config["sahfl"]
    assert (note["method"]["method"], note["method"]["rank"], note["fold"]) == ("cp_lora", 2, 0)
    assert (note["base_sha256"], note["fingerprint"]) == (results["base"]["sha256"], results["fingerprint"])
    dice = results["methods"][1]["by_fold"][0]["dice"]
    assert note["metrics"]["dice"] == dice
    assert f"| Dice, all with blood | {dice:.3f} |" in (folder / "adapters/cp_lora-r2/fold-0/README.md").read_text()


def test_a_method_sends_what_its_parameters_weigh_and_far_less_than_the_network(finished):
    folder, _, _ = finished
    results = json.loads((folder / "results.json").read_text())
    tuned = results["methods"][1]
    assert 4 * tuned["trainable"] <= tuned["bytes_up_per_round"] <= 4 * tuned["trainable"] + 5000
    assert tuned["bytes_up_per_round"] < 0.02 * results["base"]["bytes"]


def test_outside_a_terminal_progress_is_plain_lines_on_standard_error(finished):
    _, _, err = finished
    assert "\x1b" not in err
    assert re.search(r"^0:\d\d  pretrain, round 1 of 2 committed, loss \d\.\d{3}; time left", err, re.MULTILINE)
    assert re.search(r"^0:\d\d  evaluating, cp_lora-r2, fold 1 of 0-1$", err, re.MULTILINE)


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_workers(finished, tmp_path):
    reference, _, _ = finished
    code, _, err = run(write(tmp_path / "study.yaml", STUDY), "--out", tmp_path / "run", "--workers", 3)
    assert code == 0, err
    assert tensors(tmp_path / "run") == tensors(reference)
    ours, theirs = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "run", reference))
    for part in ("methods", "comparisons", "base", "sites"):
        assert ours[part] == theirs[part]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process_and_resumes_to_bit_identical_adapters(finished, tmp_path, sent):
    reference, _, _ = finished
    folder = tmp_path / "run"
    process = start(write(tmp_path / "study.yaml", STUDY), "--out", folder)
    wait_for_round(process, folder, cell="cp_lora-r2/fold-0")
    # Ctrl-C in a terminal reaches every process of the group; kill reaches one.
    (os.killpg if sent is signal.SIGINT else os.kill)(process.pid, sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    wait_for_no_process(process.pid)
    assert f"interrupted; go on with: sahfl simulate --resume {folder}" in err
    assert "Traceback" not in err
    assert not (folder / "results.json").exists()
    code, _, err = run("--resume", folder)
    assert code == 0, err
    assert "pretrain: resumed after round 2 of 2" in err
    assert tensors(folder) == tensors(reference)
    assert [line["event"] for line in journal(folder) if "at" in line] == [
        "started",
        "interrupted",
        "resumed",
        "finished",
    ]


@pytest.mark.slow
def test_a_run_that_was_killed_outright_resumes_to_bit_identical_adapters(finished, tmp_path):
    reference, _, _ = finished
    folder = tmp_path / "run"
    process = start(write(tmp_path / "study.yaml", STUDY), "--out", folder)
    wait_for_round(process, folder, cell="pretrain")
    process.kill()
    process.communicate(timeout=60)
    code, _, err = run("--resume", folder)
    assert code == 0, err
    assert tensors(folder) == tensors(reference)


@pytest.mark.slow
def test_A13_a_killed_worker_is_one_site_s_event_and_the_site_is_asked_once_more(tmp_path):
    folder = tmp_path / "run"
    settings = changed(STUDY, finetune__local={"steps": 60, "batch_size": 2}, finetune__rounds=1)
    process = start(write(tmp_path / "study.yaml", settings), "--out", folder, "--workers", 3)
    site, pid = worker_in_training(process, folder)
    os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    (line,) = [line for line in journal(folder, "round") if line["retried"]]
    reason = "worker process died (SIGKILL: out of memory, or killed by hand)"
    assert line["retried"] == [{"site": site, "reason": reason}]
    assert [used["site"] for used in line["used"]] == ["sah_a", "sah_b", "sah_c"]
    assert f"warning: {site}: {reason}; it is asked once more" in err


def worker_in_training(process, folder, timeout_s=120):
    """Site and process id of a worker that is training an adapter: it holds the site's log open."""
    wait_for_round(process, folder, cell="pretrain")
    end = time.monotonic() + timeout_s
    while not list((folder / "evaluation" / "zero_shot").glob("fold-1.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    while time.monotonic() < end:
        for pid in processes_of_session(process.pid):
            try:
                target = Path(os.readlink(f"/proc/{pid}/fd/1"))
            except OSError:
                continue
            if target.name.startswith("sah_"):
                return target.stem, pid
    raise AssertionError("no worker of a fine-tuning site found")


def datalist_of(folder, sites):
    """A datalist over the phantom scans of a finished run."""
    listed = {}
    for site in sites:
        scans = folder / "sites" / site / "scans"
        entries = json.loads((scans / "datalist.json").read_text())["sites"][site]
        listed[site] = [e | {"image": str(scans / e["image"]), "label": str(scans / e["label"])} for e in entries]
    return listed


def damage(sites, *names, tmp_path):
    """Let the named sites' images be files that are no NIfTI."""
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"not a scan")
    return {
        site: [entry | {"image": str(broken)} for entry in entries] if site in names else entries
        for site, entries in sites.items()
    }


def study_with_datalist(tmp_path, sites):
    (tmp_path / "datalist.json").write_text(json.dumps({"sites": sites}))
    return write(tmp_path / "study.yaml", changed(STUDY, data={"source": "datalist", "path": "datalist.json"}))


@pytest.mark.slow
def test_a_site_without_usable_data_is_named_and_the_run_goes_on_above_the_quorum(finished, tmp_path):
    sites = damage(datalist_of(finished[0], TINY["data"]["sites"]), "sah_b", tmp_path=tmp_path)
    code, _, err = run(study_with_datalist(tmp_path, sites), "--out", tmp_path / "run")
    assert code == 0, err
    assert "warning: sah_b: error at the site: DataRefused" in err
    (line,) = journal(tmp_path / "run", "site_out")
    assert line["site"] == "sah_b"
    assert "none of 2 case(s) can be used" in (tmp_path / "run" / "logs" / "sah_b.log").read_text()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["methods"][0]["metrics"]["dice"]["overall"]["n"] == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(("sah_b", "sah_c"), id="below-quorum"),
        pytest.param(tuple(TINY["data"]["sites"]), id="all-sites"),
    ],
)
def test_below_the_quorum_a_run_fails_with_exit_code_3_naming_the_sites(finished, tmp_path, broken):
    sites = damage(datalist_of(finished[0], TINY["data"]["sites"]), *broken, tmp_path=tmp_path)
    code, out, err = run(study_with_datalist(tmp_path, sites), "--out", tmp_path / "run")
    assert code == 3
    assert out == ""
    assert "Traceback" not in err
    for site in broken:
        assert f"warning: {site}: error at the site: DataRefused" in err
    assert re.search(r"error: (pretrain|finetune): got \d of \d sites, expected at least 2", err)


def test_real_annotated_scans_go_through_to_the_same_report(realct, tmp_path):
    settings = yaml.safe_load((Path(__file__).parents[2] / "configs" / "real.yaml").read_text())
    settings = changed(
        settings,
        pretrain__rounds=2,
        pretrain__local={"steps": 2},
        finetune__rounds=1,
        finetune__local={"steps": 2},
        views__spacing_mm=2.0,
        views__size=[96, 112, 80],
    )
    study = write(tmp_path / "real.yaml", settings)
    code, out, err = run(study, "--datalist", realct / "datalist.json", "--out", tmp_path / "run")
    assert code == 0, err
    assert Path(out.strip()).is_file()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {site["site"]: site["n_volumes"] for site in results["sites"]} == {
        "tbi_a": 8, "tbi_b": 6, "tbi_c": 9, "sah_a": 5, "sah_b": 8,
    }  # fmt: skip
    assert [method["metrics"]["dice"]["overall"]["n"] for method in results["methods"]] == [13] * len(
        results["methods"]
    )
