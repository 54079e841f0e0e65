"""The pages on keeping and withdrawal, followed line by line at a server and its sites while a study runs."""

import json
import re
import shlex
import shutil
import subprocess

import pytest
import yaml
from harness.commands import journal
from harness.deployed import Command, Deployment, sahfl_command, wait_for
from harness.documents import PAGES
from harness.tiny_study import TINY, changed

from sahfl.adapters.files import load_tensors
from sahfl.config import Study, load_site, parse
from sahfl.federation.site.site import Site
from sahfl.run.folder import RunFolder
from sahfl.simulation.simulate import simulate

SITES = ("tbi_a", "sah_a", "sah_b")
SETTINGS = changed(
    TINY,
    common_random_numbers=False,  # as with hospitals
    pretrain__sites=["tbi_a"],
    pretrain__rounds=1,
    finetune__sites=["sah_a", "sah_b"],
    finetune__rounds=4,
    finetune__methods=[{"method": "cp_lora", "rank": 2}],
)


def lines(page, heading):
    """The commands of a section of a page."""
    section = re.split(rf"^#+ {re.escape(heading)}$", PAGES[page], flags=re.MULTILINE)[1]
    return re.findall(r"^\$ (.+)$", re.split(r"^#+ ", section, flags=re.MULTILINE)[0], re.MULTILINE)


class Machine:
    """A deployment whose server and first hospital have their files below one root, where the pages have them."""

    def __init__(self, folder):
        self.root = folder / "root"
        for name in ("etc/sahfl", "etc/sahfl-server", "var/lib/sahfl", "var/lib/sahfl-server", "root"):
            (self.root / name).mkdir(parents=True)
        state = self.root / "var/lib/sahfl-server"
        patience = {"wait_for_sites_s": 300.0, "resume_wait_s": 300.0}
        self.deployment = Deployment(folder, sites=SITES, study=SETTINGS, lanes=1, **patience)
        written = self.deployment.server_file
        written.write_text(yaml.safe_dump(yaml.safe_load(written.read_text()) | {"folder": str(state)}))
        self.deployment.state = state
        self.deployment.server_file = self._move(written, "etc/sahfl-server/server.yaml")
        written = self.deployment.write_site("sah_a", folder=str(self.root / "var/lib/sahfl"))
        self.site_file = self._move(written, "etc/sahfl/site.yaml")
        self.run = self.deployment.submit()
        self.services, self.printed = {}, ""

    def _move(self, path, place):
        return shutil.move(path, self.root / place)

    def follow(self, commands, **words):
        """Follow lines of a page, as root would, with some words replaced."""
        for command in commands:
            for word, value in words.items():
                command = command.replace(word, value)
            self._follow(command)

    def _follow(self, command):
        words = shlex.split(re.sub(r"^sudo (-u \S+ )?", "", command))
        if words[0] == "systemctl":
            return self.start(words[2]) if words[1] == "start" else self.stop(words[2])
        places = (r"^/(?=(etc|var|root)(/|$))", f"{self.root}/")
        words = [str(self.root) if word == "/" else re.sub(*places, word) for word in words]
        if words[0].endswith("/sahfl"):
            done = sahfl_command(*words[1:], timeout_s=300)
            self.printed = done.stdout + done.stderr
        elif words[0].endswith("/sahfl-client"):
            log = self.deployment.folder / "command.log"
            command = Command(log, "sahfl_client", *words[1:])
            assert command.process.wait(300) == 0, command.log
            self.printed = command.log
        else:
            subprocess.run(words, check=True)

    def start(self, service):
        program, file = {
            "sahfl-server": ("sahfl_server", self.deployment.server_file),
            "sahfl-client": ("sahfl_client", self.site_file),
        }[service]
        self.services[service] = Command(self.deployment.folder / f"{service}.log", program, file)
        self.deployment.commands.append(self.services[service])

    def stop(self, service):
        if service in self.services:
            self.services.pop(service).stop(300)

    def wait_for_rounds(self, n):
        """Wait until the study has fine-tuned so many rounds."""
        wait_for(lambda: len(self.rounds()) >= n, 600, lambda: self.services["sahfl-server"].log)

    def rounds(self):
        if not (self.run / "journal.jsonl").exists():
            return []
        return [line for line in journal(self.run, "round") if line["stage"] == "finetune" and line["committed"]]


def networks(run):
    paths = [*run.glob("adapters/**/*.safetensors"), *run.glob("base/*.safetensors")]
    states = {str(path.relative_to(run)): load_tensors(path)[0] for path in sorted(paths)}
    return {path: {name: value.tobytes() for name, value in state.items()} for path, state in states.items()}


@pytest.mark.slow
def test_a_study_goes_on_to_the_same_result_after_site_and_server_were_restored_as_the_page_says(tmp_path):
    """The server is put back by two rounds that the sites remember; then a patient is withdrawn, as that page says."""
    simulated = RunFolder.create(tmp_path / "simulated", parse(Study, SETTINGS, where="test"))
    simulate(simulated, workers=1, lanes=1)
    machine = Machine(tmp_path / "deployed")
    with machine.deployment as deployment:
        for site in ("tbi_a", "sah_b"):
            deployment.site(site)
        machine.start("sahfl-client")
        machine.start("sahfl-server")
        machine.wait_for_rounds(1)
        stop, *backup = lines("docs/keeping.md", "Back up a server")
        machine.follow([stop])
        machine.follow(lines("docs/keeping.md", "Back up a site"))
        machine.follow(lines("docs/keeping.md", "Restore a site"))
        assert re.search(r"^ok +state +secret, ledger and lists have all that \d+ answers need$", machine.printed, re.M)
        machine.follow(backup)
        known = len(machine.rounds())
        machine.wait_for_rounds(known + 2)
        machine.follow(lines("docs/keeping.md", "Restore a server"))
        wait_for(lambda: (deployment.state / "done" / "tiny.yaml").exists(), 600, lambda: deployment.folder)
        assert not [line for line in machine.rounds() if line["missing"] or line["refused"]]
        assert networks(machine.run) == networks(simulated.path)
        follow_the_withdrawal(machine)


def follow_the_withdrawal(machine):
    item, *_ = Site(load_site(machine.site_file)).known_cases()
    machine.follow(lines("docs/withdrawal.md", "A patient: at the hospital"), CASE=item.case.id)
    withdrawn = (machine.deployment.folder / "command.log").read_text()
    (fingerprint,) = re.findall(r"closed at this site: study ([0-9a-f]{64})", withdrawn)
    server, study = str(machine.deployment.server_file), machine.deployment.folder / "study.yaml"
    named, listed, archive, again = (
        line.replace("hospital_a", "sah_a").replace("server.yaml", server).replace("two-hospitals", "tiny")
        for line in lines("docs/withdrawal.md", "At the centre")
    )
    shown = sahfl_command(*shlex.split(named)[1:])
    assert f"study tiny, fingerprint {fingerprint}" in shown.stdout, shown.stderr
    assert "trained: cp_lora-r2/fold-0, cp_lora-r2/fold-1" in shown.stdout
    assert "deleted: 2 kept cells with data of sah_a" in shown.stdout
    assert "tiny" in sahfl_command(*shlex.split(listed)[1:]).stdout
    assert sahfl_command(*shlex.split(archive)[1:]).returncode == 0
    study.write_text(study.read_text().replace("name: tiny", "name: without"))
    done = sahfl_command(*shlex.split(again.replace("study.yaml", str(study)))[1:], timeout_s=900)
    assert done.returncode == 0, done.stderr
    run = RunFolder(machine.deployment.state / "runs" / "without")
    assert run.reused() == {"pretrain"}
    sites = json.loads((run.path / "results.json").read_text())["sites"]
    assert [site["n_patients"] for site in sites if site["site"] == "sah_a"] == [2]
    assert not list(machine.root.glob(f"var/lib/sahfl/cache/*/{item.content}*"))
