"""One prepared hospital, and requests to its real app: as a server makes them, and as one should not."""

from __future__ import annotations

import json
import shutil

import pytest
from flwr.app import Context, RecordDict

from harness.tiny_study import TINY
from sahfl.adapters import digest, exchanged
from sahfl.config import AdapterTuning, EvaluationConfig, LocalTraining, SitePolicy, Study, ZeroShot, parse
from sahfl.config.policy import AdapterLimits, WeightLimits
from sahfl.federation import flower, protocol
from sahfl.federation.signatures import sign
from sahfl.federation.site import app as site_app
from sahfl.federation.site.audit import FILE, read_lines
from sahfl.federation.site.site import Site
from sahfl.networks import fine_tuned_network, whole_network
from sahfl.payload import Header
from sahfl.simulation.simulate import site_configs
from sahfl.task import Task

STUDY = parse(Study, TINY | {"common_random_numbers": False}, where="test")
CLOSED = SitePolicy(require_signature=False, bases="any", confirmations=0)
"""The defaults of a hospital, but for what needs a consortium or a person: signatures, and an accepted base."""
_ONE = {"least_steps": 1, "least_batch": 1, "least_patients": 1, "least_effective_steps": 0}
FEW = {"adapters": AdapterLimits(**_ONE), "weights": WeightLimits(**_ONE)}
"""Limits for a hospital of three patients and trainings of one step."""
METHOD = AdapterTuning(method="cp_lora", rank=2)
TRAINING = {"round": 1, "rounds": 2, "fold": 0, "learning_rate": 0.005, "local": LocalTraining(steps=1, batch_size=2)}
NAME = "a" * 64


def header_of(task, **changes):
    method = task.method.id if task.method else "pretrain"
    named = {"stage": task.stage, "method": method, "fold": task.fold, "round": task.round, "base": ""}
    return Header(**{"study": NAME, **named, **changes})


def task_of(**settings):
    common = {"stage": "finetune", "seed": STUDY.seed, "views": STUDY.views, "model": STUDY.model, "folds": 2}
    return Task.model_validate(common | settings)


def training(**changes):
    return task_of(**{"method": METHOD, **TRAINING, **changes})


def evaluating(method=None, **changes):
    method = method or ZeroShot(method="zero_shot")
    return task_of(**{"method": method, "fold": 0, "evaluation": EvaluationConfig(replicates=100), **changes})


class Hospital:
    """The site sah_a of the tiny study, three patients, with the base network installed."""

    def __init__(self, config):
        self.config = config
        self.network = exchanged.read(whole_network(STUDY.views, STUDY.model, STUDY.seed))
        self.base = digest(self.network)
        self.start = exchanged.read(fine_tuned_network(STUDY.views, STUDY.model, self.network, METHOD, STUDY.seed))
        Site(config).prepare(lambda done, total: None)
        Site(config).install_base(self.network, self.base)

    def allow(self, **policy):
        """The same hospital under another policy."""
        self.config = self.config.model_copy(update={"policy": self.config.policy.model_copy(update=policy)})

    def request(self, task, tensors=None, **header):
        return protocol.request(task, header_of(task, **{"base": self.base, **header}), tensors or {})

    def send(self, kind, content, signer=None):
        """The reply of the app to a request."""
        flower.enter_run(1)
        if signer is not None:
            sign(kind, content, signer)
        message = flower.new_message(content, 7, kind, "", None)
        flower.give_id(message)
        return site_app.app(message, Context(1, 7, {"site": self.config.model_dump_json()}, RecordDict(), {})).content

    def refuses(self, kind, content, signer=None):
        """The class of the error that leaves, and the last line of the audit log."""
        with pytest.raises(site_app.SiteFailure) as info:
            self.send(kind, content, signer)
        return str(info.value), self.audit()[-1]

    def audit(self):
        return list(read_lines(self.config.folder / FILE)) if (self.config.folder / FILE).exists() else []

    def sums(self, task):
        return self.send(protocol.EVALUATE, self.request(task))

    def told(self, content):
        return json.dumps([dict(record) for record in content.config_records.values()])


@pytest.fixture
def hospital(tmp_path, scans):
    (config,) = [config for config in site_configs(STUDY, tmp_path) if config.name == "sah_a"]
    shutil.copytree(scans / "sah_a" / "scans", config.folder / "scans")
    return Hospital(config.model_copy(update={"policy": CLOSED.model_copy(update=FEW)}))
