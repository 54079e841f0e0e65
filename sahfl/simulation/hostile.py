"""Hostile sites of a simulation: the attacks that a study's ``hostile`` section names, as changes of an honest reply.

A hospital never loads this module. A hostile site runs the honest app (``site.app``), and its reply to a training
request is changed afterwards; only inverted annotations act earlier, when slices are read for training. Its checks, its
evaluation, and the loss and volumes that it reports stay honest, so that a defence can only use the update.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from numpy.typing import NDArray

from sahfl.adapters import AdapterState
from sahfl.config import HostileAct, ViewsConfig
from sahfl.data.checks import CheckedCase
from sahfl.data.views import CaseViews, SliceStack
from sahfl.federation import protocol
from sahfl.federation.site.app import app, make_app
from sahfl.federation.site.site import Site
from sahfl.federation.tensors import RAW, read_state, state_records
from sahfl.log_lines import LogLine
from sahfl.payload import DTYPES, Encoding, Header
from sahfl.seeds import derive_seed
from sahfl.task import Task

log = logging.getLogger(__name__)
FREE_RIDER_SD = 1e-3
Attack = Callable[[AdapterState, AdapterState, np.random.Generator], AdapterState]
"""(received state, trained state, random numbers) -> state to send instead of the trained one; all of equal shapes."""
Answer = Callable[[Message, Context], Message]

# ---------------------------------------------------------------------------------------------- attacks, pure functions


def with_nan(received: AdapterState, trained: AdapterState, random: np.random.Generator) -> AdapterState:
    """The trained state with NaN as the first number of every tensor."""
    broken = {name: value.copy() for name, value in trained.items()}
    for value in broken.values():
        value.reshape(-1)[0] = np.nan
    return broken


def times_1000(received: AdapterState, trained: AdapterState, random: np.random.Generator) -> AdapterState:
    """The received state plus 1000 times the honest change."""
    return {name: value + 1000 * (trained[name] - value) for name, value in received.items()}


def sign_flip(received: AdapterState, trained: AdapterState, random: np.random.Generator) -> AdapterState:
    """The received state minus the honest change."""
    return {name: 2 * value - trained[name] for name, value in received.items()}


def noise(received: AdapterState, trained: AdapterState, random: np.random.Generator) -> AdapterState:
    """Normal random numbers of SD 1 instead of every number."""
    return {name: random.standard_normal(value.shape).astype(np.float32) for name, value in received.items()}


def as_trained(received: AdapterState, trained: AdapterState, random: np.random.Generator) -> AdapterState:
    """The trained state, unchanged; for a site that trained on wrong annotations."""
    return trained


def free_rider(received: AdapterState, trained: AdapterState, random: np.random.Generator) -> AdapterState:
    """The received state, as if the site had not trained."""
    return received


def noisy_free_rider(received: AdapterState, trained: AdapterState, random: np.random.Generator) -> AdapterState:
    """The received state plus a little noise, which imitates training."""
    return {
        name: value + (FREE_RIDER_SD * random.standard_normal(value.shape)).astype(np.float32)
        for name, value in received.items()
    }


ATTACKS: dict[HostileAct, Attack] = {
    "nan": with_nan,
    "times_1000": times_1000,
    "sign_flip": sign_flip,
    "random": noise,
    "label_flip": as_trained,
    "free_rider": free_rider,
    "noisy_free_rider": noisy_free_rider,
}


def inverted(views: CaseViews) -> CaseViews:
    """A case with inverted annotation: every voxel except the blood is annotated as blood."""
    stacks = {}
    for view, stack in views.stacks.items():
        label = ~stack.label[:]
        stacks[view] = SliceStack(stack.image, label, np.flatnonzero(label.any(axis=(1, 2))))
    return replace(views, stacks=stacks)


# ------------------------------------------------------------------------------------------------------ a hostile site


class LabelFlipper(Site):
    """A site whose slices have inverted annotations; folds, checks and scores use the true ones from the scans.

    It is a subclass of ``Site``, so that the code of hospitals needs no option for this attack.
    """

    def load_views(self, items: Sequence[CheckedCase], views: ViewsConfig) -> list[CaseViews]:
        """Load cases as slices with inverted annotations."""
        return [inverted(case) for case in super().load_views(items, views)]


def hostile_app(act: HostileAct, site: str) -> Answer:
    """Make the app of a hostile site.

    Guarantees: only the reply to a training request differs from the honest one; it depends only on the study's seed,
    the site, the request and the trained state, so that a resumed run has the same result.
    """
    honest = make_app(LabelFlipper) if act == "label_flip" else app

    def answer(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if message.metadata.message_type == protocol.TRAIN:
            log.warning(LogLine("hostile", act=act, site=site))
            reply.content.update(_changed(message.content, reply.content, act, site))
        return reply

    return answer


def _changed(request: RecordDict, reply: RecordDict, act: HostileAct, site: str) -> dict[str, Any]:
    """Make the records of a training reply that an attack replaces."""
    task, header = protocol.read_task(request), Header(**protocol.read_header(reply))
    like = _zeros(reply)
    if not like:  # a training that keeps everything at the site
        return {}
    received = like | read_state(request, like=_zeros(request))  # what stays at the site until the end is not sent
    received = {name: received[name] for name in like}
    trained = read_state(reply, like=like, encoding=task.payload)
    if task.payload != "float32":
        trained = {name: received[name] + change for name, change in trained.items()}
    sent = ATTACKS[act](received, trained, np.random.default_rng(_seed(task, header, act, site)))
    if task.payload != "float32":
        sent = {name: value - received[name] for name, value in sent.items()}
    return _records(header, sent, task.payload)


def _seed(task: Task, header: Header, act: HostileAct, site: str) -> int:
    return derive_seed(task.seed, "hostile", act, site, header.stage, header.method, header.fold, header.round)


def _zeros(content: RecordDict) -> AdapterState:
    """A state of zeros with the names and shapes of a message, which are not checked because the message is our own."""
    layout = content.config_records["layout"]
    names, shapes = (layout[key] for key in ("names", "shapes"))
    assert isinstance(names, list)
    assert isinstance(shapes, list)
    return {
        str(name): np.zeros([int(size) for size in str(shape).split(",") if size], np.float32)
        for name, shape in zip(names, shapes, strict=True)
    }


def _records(header: Header, state: AdapterState, encoding: Encoding) -> dict[str, Any]:
    """Make records as ``state_records`` does, but with NaN, which the ``pack`` of an honest site refuses to round."""
    records: dict[str, Any] = {**state_records(header, {n: np.nan_to_num(v) for n, v in state.items()}, encoding)}
    bad = np.concatenate([np.isnan(value).ravel() for value in state.values()]) if state else np.zeros(0, bool)
    if bad.any() and encoding == "int8":  # int8 numbers cannot be NaN, but their steps can
        records["layout"]["steps"] = [float("nan")] * len(state)
    elif bad.any():
        flat: NDArray[Any] = np.frombuffer(records["state"]["flat"].data, DTYPES[encoding]).copy()
        flat[bad] = np.nan
        records["state"] = ArrayRecord({"flat": Array(encoding, (int(flat.size),), RAW, flat.tobytes())})
    return records
