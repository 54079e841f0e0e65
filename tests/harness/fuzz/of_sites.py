"""Fuzzed notes in the folder of a site: its lists, ledger, audit log, answers and networks."""

import json
from pathlib import Path

import numpy as np

from harness.asking import training
from harness.fuzz.of_scans import checked_cases
from harness.fuzz.outcome import Reader
from sahfl.config import SiteConfig, SitePolicy, parse
from sahfl.federation import protocol
from sahfl.federation.site import ledger
from sahfl.federation.site.answered import FOLDER, Answered
from sahfl.federation.site.audit import FILE as AUDIT
from sahfl.federation.site.audit import AuditLog, read_lines, verify
from sahfl.federation.site.case_results import keep_results
from sahfl.federation.site.gain import measure_gains
from sahfl.federation.site.known_bases import accept_base, known_bases
from sahfl.federation.site.known_policy import note_policy
from sahfl.federation.site.known_studies import recognise_study, remember_study
from sahfl.federation.site.private import PrivatePart, stored
from sahfl.federation.site.secret import site_secret
from sahfl.federation.site.site import Site
from sahfl.payload import Header
from sahfl.prediction.site_networks import choose
from sahfl.statistics.cases import CaseResult

STATE = {"a.up": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "b": np.full(4, -0.5, np.float32)}
HEADER = Header("a" * 64, stage="finetune", method="cp_lora-r2", fold=0, round=1, base="b" * 64)


def site_of(folder: Path) -> SiteConfig:
    """A site with a folder, without scans."""
    settings = {"name": "bern", "folder": str(folder), "data": {"source": "datalist", "path": "datalist.json"}}
    return parse(
        SiteConfig, settings | {"policy": SitePolicy(require_signature=False).model_dump(mode="json")}, where="fuzz"
    )


def notes(folder: Path) -> Reader:
    """What a site writes about studies, bases, its policy, its cases and its results."""
    site = folder / "site"
    site.mkdir()
    config, task = site_of(site), training()
    (site / "manifest.json").write_bytes(checked_cases(folder))
    accept_base(config, "c" * 64)
    remember_study(site, HEADER.study, recognise_study(site, task, HEADER)[1])
    note_policy(config, AuditLog(site))
    for repeat in (1, 2):
        method = task.method.model_copy(update={"repeat": repeat})
        results = [(f"bern-{case}", "0" * 64, CaseResult("k", 5.0, 4.0, 0.5, 0.5, 4.0, 0.5, 40.0)) for case in range(3)]
        keep_results(site, task.model_copy(update={"method": method}), HEADER, results, took_part=True)
    site_secret(config)

    readers = {
        "bases.json": lambda: known_bases(site),
        "studies.json": lambda: recognise_study(site, task, HEADER),
        "policy.json": lambda: note_policy(config, AuditLog(folder)),
        "cases.jsonl": lambda: measure_gains(site, "bern"),
        "manifest.json": lambda: Site(config).cases(),
        "batches.key": lambda: site_secret(config),
    }
    return Reader.of_folder(site, lambda name: readers[name](), *readers)


def logs(folder: Path) -> Reader:
    """The audit log and the ledger, each a chain of lines."""
    config, audit = site_of(folder), AuditLog(folder)
    book = ledger.Ledger(config)
    for round_ in range(1, 4):
        header = Header(**HEADER.as_dict() | {"round": round_})
        book.reserve("round", header, f"{round_:064}", ["d" * 64, "e" * 64])
        audit.append("answered", f"Answered: round {round_}.", ledger=book.head(), numbers=[1, 2.5])

    def read(name: str) -> None:
        ledger.Ledger(config).check()
        ledger.Ledger(config).left()
        verify(folder / AUDIT)
        list(read_lines(folder / AUDIT))
        AuditLog(folder).head()

    return Reader.of_folder(folder, read, AUDIT, ledger.FILE, ledger.HEAD)


def kept(folder: Path) -> Reader:
    """Kept answers, the list of rounds, and the networks that stay at a site."""
    config, task = site_of(folder), training()
    answer = protocol.train_reply(HEADER, STATE, n_volumes=3, loss=0.5, seconds=1.0)
    Answered(config, HEADER.study).keep(HEADER, b"asked", answer)
    part = PrivatePart(folder, task, HEADER, {"b"})
    part.keep({"b": STATE["b"]}, n_volumes=3)
    part.keep_network(STATE, base=HEADER.base)
    (folder / "private" / f"{HEADER.training}-deleted.json").write_text(json.dumps({"up_to": 0}))

    def read(name: str) -> None:
        Answered(config, HEADER.study).find(HEADER, b"asked")
        part.read(STATE, after_round=1)
        part.mark()
        stored(folder)
        choose(folder, method=None, fold=None)

    names = [path.relative_to(folder).as_posix() for path in (folder / FOLDER).iterdir() if path.suffix != ".lock"]
    names += [path.relative_to(folder).as_posix() for path in (folder / "private").iterdir()]
    return Reader.of_folder(folder, read, *names)
