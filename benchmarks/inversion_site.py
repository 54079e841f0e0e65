"""A hospital that is attacked by whoever holds the signing key, through the app that answers its requests.

    python benchmarks/inversion_site.py    # one honest round: the norms of its gradients, step by step

``attack_round`` sends one round of training to the site's own app, which checks signature, policy and start, draws its
batches from its secret, trains, filters and notes the answer in its audit log. A spy keeps the slices that the hospital
drew, for scoring alone, and the gradients of each step, for the statistics that a check of answers could use.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from crafted_base import VIEWS
from flwr.app import Context, RecordDict
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sahfl.adapters import AdapterState, digest, exchanged
from sahfl.adapters.steps import rate_of
from sahfl.config import AdapterTuning, LocalTraining, ModelConfig, SiteConfig, SitePolicy
from sahfl.config.consortium import Consortium
from sahfl.config.policy import AdapterLimits
from sahfl.data.sampler import SliceSampler
from sahfl.federation import flower, protocol
from sahfl.federation.signatures import sign
from sahfl.federation.site.app import app
from sahfl.federation.site.audit import FILE, read_lines
from sahfl.federation.site.sanity import Measured, Watch
from sahfl.federation.site.site import Site
from sahfl.federation.tensors import read_state
from sahfl.networks import fine_tuned_network, whole_network
from sahfl.payload import Header
from sahfl.task import Task
from sahfl.trust.kit import ServerKit
from sahfl.trust.provision import provision

NAME, SEED, FOLDS, ROUNDS = "bern", 42, 6, 200
ACCEPTED = SitePolicy(bases="any", confirmations=0, adapters=AdapterLimits(least_effective_steps=0))
"""The default policy of a hospital that accepted the base, and whose later starts other sites confirmed. Its check of
updates lets all go, so that the benchmark can count those that it would hold back."""
PATIENTS = {"kind": "sah", "n_cases": 12, "profile": "standard"}
SHAPE, SPACING_MM = (56, 64, 22), (3.4, 3.4, 7.0)


@dataclass(frozen=True)
class Request:
    """A round of training as its sender chooses it."""

    method: AdapterTuning
    model: ModelConfig
    base: AdapterState
    steps: int = 8
    batch: int = 8
    learning_rate: float = 1e-8
    foreground_share: float = 0.0
    round: int = 1
    study: str = "a" * 64
    start: AdapterState | None = None
    """None: what the site derives itself."""

    @property
    def own_start(self) -> AdapterState:
        """What a site derives from seed, method and base."""
        return exchanged.read(fine_tuned_network(VIEWS, self.model, self.base, self.method, SEED))


@dataclass(frozen=True)
class Answer:
    """What left the hospital, and what the spy saw there."""

    start: AdapterState
    sent: AdapterState
    n_bytes: int
    seconds: float
    images: NDArray[np.float32]
    """The slices that were drawn, (steps, batch, height, width)."""
    labels: NDArray[np.float32]
    gradients: list[dict[str, NDArray[np.float32]]] = field(repr=False)
    """Of each step, by tensor, after clipping."""
    held: bool
    """Whether the check of the default policy would have held it back."""

    def change(self, name: str) -> NDArray[np.float64]:
        """How far a tensor moved."""
        return self.sent[name].astype(np.float64) - self.start[name]


class Hospital:
    """A site with phantom patients and a kit of its own, and the consortium's signing key in the attacker's hands."""

    def __init__(self, folder: Path, policy: SitePolicy | None = None, *, patients: dict[str, Any] = PATIENTS) -> None:
        server = {"host": "localhost", "port": 8443}
        consortium = Consortium.model_validate({"name": "inversion", "server": server, "sites": (NAME,)})
        provision(consortium, folder / "consortium")
        self._signer = ServerKit.load(folder / "consortium" / "server").signer
        data = {"source": "phantom", "seed": 5, "shape": SHAPE, "spacing_mm": SPACING_MM, "patients": patients}
        where = {"kit": folder / "consortium" / "sites" / NAME, "folder": folder / "hospital"}
        self.config = SiteConfig.model_validate(
            {"name": NAME, "data": data, "device": "cpu", "threads": 1, "policy": policy or ACCEPTED, **where}
        )
        Site(self.config).prepare(lambda done, total: None)

    def ask(self, kind: str, task: Task, header: Header, state: AdapterState) -> RecordDict:
        """The app's answer to a signed request.

        Raises:
            SiteFailure: the request was refused, or its work failed.
        """
        content = protocol.request(task, header, state)
        flower.enter_run(1)
        sign(kind, content, self._signer)
        message = flower.new_message(content, 7, kind, "", None)
        flower.give_id(message)
        return app(message, Context(1, 7, {"site": self.config.model_dump_json()}, RecordDict(), {})).content

    def last_line(self) -> Mapping[str, Any]:
        """The last line of the audit log."""
        return list(read_lines(self.config.folder / FILE))[-1]


def attack_round(hospital: Hospital, asked: Request) -> Answer:
    """Install the base at a hospital and ask it for a round.

    Raises:
        SiteFailure: the hospital refuses; its audit log says why.
    """
    common = {"stage": "finetune", "seed": SEED, "views": VIEWS, "model": asked.model, "folds": FOLDS}
    base = digest(asked.base)
    header = Header(asked.study, "finetune", asked.method.id, 0, asked.round, base)
    plain = Header(asked.study, "finetune", "pretrain", -1, 0, base)
    hospital.ask(protocol.INSTALL_BASE, Task.model_validate(common), plain, asked.base)
    local = LocalTraining(
        steps=asked.steps, batch_size=asked.batch, weight_decay=0.0, foreground_share=asked.foreground_share
    )
    place = {"fold": 0, "round": asked.round, "rounds": ROUNDS, "learning_rate": asked.learning_rate}
    task = Task.model_validate({**common, "method": asked.method, "local": local, **place})
    own = asked.own_start
    start = own if asked.start is None else asked.start
    names = _order(asked)
    began = time.perf_counter()
    with _spy() as (batches, gradients, measured):
        content = hospital.ask(protocol.TRAIN, task, header, start)
    seconds = time.perf_counter() - began
    by_name = [{name: value for name, value in zip(names, step, strict=True)} for step in gradients]
    images, labels = (np.stack([batch[n][:, 0].numpy() for batch in batches]) for n in (0, 1))
    sent = read_state(content, like=own)
    held = any(one.problems(SitePolicy().adapters.least_effective_steps) for one in measured)
    return Answer(start, sent, protocol.n_bytes(content), seconds, images, labels, by_name, held)


@contextlib.contextmanager
def _spy() -> Iterator[tuple[list[tuple[Tensor, Tensor]], list[list[NDArray[np.float32]]], list[Measured]]]:
    """The batches and gradients of the training inside this block, and what the site's check measured."""
    batches: list[tuple[Tensor, Tensor]] = []
    gradients: list[list[NDArray[np.float32]]] = []
    measured: list[Measured] = []
    real, measure = SliceSampler.batch, Watch.measure

    def remember(watch: Watch) -> Measured:
        measured.append(measure(watch))
        return measured[-1]

    def batch(sampler: SliceSampler) -> Any:
        drawn = real(sampler)
        batches.append((drawn[0].clone(), drawn[1].clone()))
        return drawn

    def note(optimiser: torch.optim.Optimizer, *rest: Any) -> None:
        parameters = [one for group in optimiser.param_groups for one in group["params"]]
        gradients.append([one.grad.detach().numpy().copy() for one in parameters])

    handle = register_optimizer_step_pre_hook(note)
    SliceSampler.batch = batch  # type: ignore[assignment, method-assign]
    Watch.measure = remember  # type: ignore[method-assign, assignment]
    try:
        yield batches, gradients, measured
    finally:
        SliceSampler.batch, Watch.measure = real, measure  # type: ignore[method-assign]
        handle.remove()


def _order(asked: Request) -> list[str]:
    """Names of the trained tensors in the order of the optimiser's groups."""
    net = fine_tuned_network(VIEWS, asked.model, asked.base, asked.method, SEED)
    if asked.start is not None:
        exchanged.load(net, asked.start)
    rates, groups = rate_of(net), dict[float, list[str]]()
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(rates(name), []).append(name)
    return [name for group in groups.values() for name in group]


def main() -> None:
    """An honest round, step by step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    model, method = ModelConfig(size="tiny"), AdapterTuning(method="conv_lora", rank=8)
    base = exchanged.read(whole_network(VIEWS, model, seed=0))
    with tempfile.TemporaryDirectory() as folder:
        asked = Request(method, model, base, learning_rate=5e-3, foreground_share=0.5)
        answer = attack_round(Hospital(Path(folder)), asked)
    for number, step in enumerate(answer.gradients, 1):
        norm = {part: sum(float((g**2).sum()) for n, g in step.items() if n.endswith(part)) for part in ("up", "down")}
        print(f"step {number}: up {norm['up'] ** 0.5:.2e}, down {norm['down'] ** 0.5:.2e}")


if __name__ == "__main__":
    main()
