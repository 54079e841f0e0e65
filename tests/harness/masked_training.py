"""Masked rounds of one training at five sites in this process, without an evaluation; a test sees every message."""

from __future__ import annotations

import shutil

import torch
from flwr.app import Context, RecordDict

from harness.asking import CLOSED, FEW
from harness.in_process import InProcessGrid
from harness.tiny_study import TINY, changed
from sahfl.adapters import digest, exchanged
from sahfl.adapters.attach import staying
from sahfl.adapters.exchanged import factored_layers
from sahfl.cell_names import PRETRAIN, cell_of
from sahfl.config import Study, parse
from sahfl.federation import flower, protocol
from sahfl.federation.requests import Requests
from sahfl.federation.server.cell import Cell, Run
from sahfl.federation.server.evaluation import Evaluations
from sahfl.federation.server.mailbox import Mailbox
from sahfl.federation.server.roster import Member
from sahfl.federation.server.rounds import run_cell
from sahfl.federation.server.schedule import run_alone
from sahfl.federation.site import app as site_app
from sahfl.federation.site.audit import FILE, read_lines
from sahfl.federation.site.site import Site
from sahfl.networks import fine_tuned_network, whole_network
from sahfl.run.folder import RunFolder
from sahfl.simulation.simulate import site_configs

SITES = ("bern", "graz", "linz", "thun", "wels")
METHOD = {"method": "cp_lora", "rank": 2}
MASKING = {"clip": 50.0, "threshold": 3}
SETTINGS = changed(
    TINY,
    data__sites={site: {"kind": "sah", "n_cases": 2 + (site == "bern")} for site in SITES},
    finetune__sites=list(SITES),
    finetune__methods=[METHOD],
    finetune__local={"steps": 1, "batch_size": 2},
    pretrain=None,
    common_random_numbers=False,
)
STEPS = ("query.masking_keys", "query.masking_shares", "train", "query.masking_survivors", "query.masking_reveal")


def settings_of(*, masked=True, method=None, rounds=1, pretrain=False, base=None, **more):
    """Settings of a study of which one training runs: fine-tuning, or pretraining at all sites."""
    settings = changed(SETTINGS, finetune__rounds=rounds, finetune__methods=[method or METHOD])
    settings["rounds"] = (
        settings["rounds"] | more | ({"masking": MASKING if masked is True else masked} if masked else {})
    )
    if pretrain:
        settings["pretrain"] = {"sites": list(SITES), "rounds": rounds, "local": settings["finetune"]["local"]}
        others = {f"{site}2": settings["data"]["sites"][site] for site in SITES[:3]}
        settings["data"]["sites"] |= others
        settings["finetune"]["sites"] = list(others)
    else:
        del settings["pretrain"]
        settings["base"] = {"path": str(base), "content_sha256": "0" * 64}
    return settings


def prepare(folder):
    """Scans of all sites, made once."""
    torch.set_num_threads(1)
    for site in site_configs(parse(Study, settings_of(base="none.safetensors"), where="test"), folder):
        Site(site).prepare(lambda done, total: None)


class MaskedTraining:
    """One training of a study, with its folder; ``run`` goes on where an earlier call was stopped.

    Args:
        folder: of the run and of the sites.
        scans: what ``prepare`` made.
        kits: a consortium, whose sites then are no sites of a simulation; None for simulated ones.
        policy: what the sites allow beside the usual.
        settings: of the study.
    """

    def __init__(self, folder, scans, *, kits=None, policy=None, **settings):
        torch.set_num_threads(1)
        self.study = parse(Study, settings_of(base="none.safetensors", **settings), where="test")
        self.folder = RunFolder.create(folder, self.study)
        shutil.copytree(scans, folder / "sites")
        self.pretrains = self.study.pretrain is not None
        network = exchanged.read(whole_network(self.study.views, self.study.model, self.study.seed))
        self.base = {} if self.pretrains else network
        self.grid = InProcessGrid(self.study, folder / "sites")
        self.configs = {config.name: config for config in self.grid.nodes.values() if config.name in SITES}
        if kits is not None:
            allowed = CLOSED.model_copy(update=FEW | {"stages": ("pretrain", "finetune")} | (policy or {}))
            for name, config in self.configs.items():
                real = {"simulated": False, "kit": kits.sites[name], "policy": allowed}
                self.configs[name] = config.model_copy(update=real)
        elif policy:
            for name, config in self.configs.items():
                self.configs[name] = config.model_copy(update={"policy": config.policy.model_copy(update=policy)})
        for config in self.configs.values():
            if self.base:
                Site(config).install_base(self.base, digest(self.base))
        self.seen = []
        self.held_out = {}  # of fold 0, by site, in the place of what the site has

    def cell(self, sites=SITES):
        study = self.study
        if self.pretrains:
            requests = Requests(study, study.fingerprint())
            net = whole_network(study.views, study.model, study.seed)
            header = requests.header("pretrain", PRETRAIN)
            return Cell(PRETRAIN, requests.pretraining(), header, tuple(sites)), exchanged.read(net)
        (method,) = study.finetune.methods
        requests = Requests(study, study.fingerprint(), digest(self.base))
        net = fine_tuned_network(study.views, study.model, self.base, method, study.seed)
        start, away = exchanged.read(net), staying(net, method, net.parts)
        cell = Cell(
            cell_of(method, 0),
            requests.fine_tuning(method, 0),
            requests.header_of(method, 0),
            tuple(sites),
            rule=method.aggregation,
            layers=factored_layers(net, method, without=away),
        )
        return cell, {name: value for name, value in start.items() if name not in away}

    def run(self, change=lambda site, request, reply: reply, *, sites=SITES, before=None):
        """Run the rounds, and return the last state; ``change`` and ``before`` are those of ``InProcessGrid``."""
        run, mailbox = self.at_work(change, sites, before)
        return run_alone(run_cell(*self.cell(), run), mailbox)

    def evaluate(self, change=lambda site, request, reply: reply, *, final=None, part=None, sites=SITES, before=None):
        """Evaluate the method on fold 0 from the state ``final``; returns what the run's folder has of it."""
        run, mailbox = self.at_work(change, sites, before)
        (method,) = self.study.finetune.methods
        requests = Requests(self.study, self.study.fingerprint(), digest(self.base))
        evaluations = Evaluations(run, requests, lambda site: self.base)
        run_alone(evaluations.evaluate(method, 0, final or {}, part), mailbox)
        return self.folder.evaluation(cell_of(method, 0), part)

    def at_work(self, change=lambda site, request, reply: reply, sites=SITES, before=None):
        """The run and the mailbox that a cell needs."""
        grid = InProcessGrid(self.study, self.folder.path / "sites", change)
        grid.nodes = {7 + index: self.configs[site] for index, site in enumerate(SITES)}
        grid.seen, grid.before = self.seen, before or grid.before
        roster = {
            name: Member(node, self._describe(name))
            for node, name in zip(grid.nodes, SITES, strict=True)
            if name in sites
        }
        return Run(self.folder, self.study.rounds, roster), Mailbox(grid)

    def _describe(self, name):
        found = Site(self.configs[name]).describe(n_folds=2, seed=self.study.seed)
        if not self.held_out:
            return found
        n = self.held_out.get(name, 0)
        return found.model_copy(update={"fold_sizes": (n, found.n_patients - n)})

    def rounds(self):
        return [line for line in self.folder.journal() if line["event"] == "round"]

    def audit(self, site):
        path = self.configs[site].folder / FILE
        return list(read_lines(path)) if path.exists() else []

    def ask(self, site, kind, content):
        """What a site answers to a request: the content, or the class of its error."""
        message = flower.new_message(content, 7, kind, "", None)
        flower.give_id(message)
        try:
            context = Context(1, 7, {"site": self.configs[site].model_dump_json()}, RecordDict(), {})
            return site_app.app(message, context).content
        except site_app.SiteFailure as failure:
            return str(failure)

    def received(self):
        """All bytes that the server has: replies, and every file of the run beside the sites' folders."""
        parts = []
        for content in (reply.content for _, _, reply in self.seen if reply.has_content()):
            parts += [repr(dict(record)).encode() for record in content.config_records.values()]
            parts += [array.data for record in content.array_records.values() for array in record.values()]
            parts += [repr(dict(record)).encode() for record in content.metric_records.values()]
            parts += [value for record in content.config_records.values() for value in _byte_strings(record.values())]
        root = self.folder.path
        files = [path for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] != "sites"]
        return b"\0".join([*parts, *(path.read_bytes() for path in files)])

    def asked(self, site, kind, nth=-1):
        """The content of a request that a site got."""
        found = [request for name, request, _ in self.seen if (name, request.metadata.message_type) == (site, kind)]
        return found[nth].content

    def sent(self, kind=protocol.TRAIN):
        """The replies of one kind, by site."""
        return {
            site: reply
            for site, request, reply in self.seen
            if request.metadata.message_type == kind and reply.has_content()
        }


def _byte_strings(values):
    for value in values:
        yield from (part for part in (value if isinstance(value, list) else [value]) if isinstance(part, bytes))
