"""The start of a round at a site: what it must be, so that a server cannot choose it freely.

In the first round the site derives the start itself. A later start is the average of what sites sent, so it differs
from the start before by no more than the optimiser can move a number under the settings of the study. And other sites
must have confirmed it: a server that crafts a start for one hospital needs their signatures.

One start that is crafted for all sites together, within this bound, is not excluded.
"""

from __future__ import annotations

import logging
import math

import numpy as np
from flwr.app import RecordDict
from torch import nn

from sahfl.adapters import AdapterState
from sahfl.adapters.exchanged import factored_layers
from sahfl.adapters.steps import factor_at
from sahfl.config import SiteConfig
from sahfl.errors import PayloadError, PolicyRefused, StartNotConfirmed, StartTooFar, TrustError
from sahfl.federation import confirmations
from sahfl.federation.site.answered import Confirmed
from sahfl.federation.site.kept import KeptTensors
from sahfl.federation.site.known_roster import signed_by_rostered
from sahfl.federation.tensors import hash_of_tensors
from sahfl.federation.turns import schedule_of
from sahfl.log_lines import LogLine
from sahfl.payload import Header
from sahfl.task import Task

log = logging.getLogger(__name__)
FOLDER = "starts"
ROUNDING = 1e-6
"""Largest difference, as a share of a tensor's largest number, between one start that two processors derive."""
SLACK = 1.02
"""For the rounding of int8 replies, which move an average by up to half a step of a 127th of a change."""
RECOMPUTED = 30.0
"""For DoRA's magnitudes and their factors, coarsely: the average computes them anew, from the mean kernel's lengths."""
MOST_MISSED = 5
"""Most rounds that a site may have missed. The bound grows with each, so a site that missed more takes no part."""


def require_own_start(received: AdapterState, own: AdapterState) -> None:
    """Refuse a first start that is not what the site derives from seed, method and base.

    Processors of different kinds round differently, by ``ROUNDING`` of a tensor's largest number at most.

    Raises:
        PolicyRefused: names the first tensor that differs.
    """
    for name, value in received.items():
        most = ROUNDING * np.abs(own[name]).max(initial=0.0)
        if not (np.abs(value - own[name]) <= most).all():
            found = f"got another start of {name} than this site derives from seed, method and base"
            raise PolicyRefused(f"{found}; a crafted start reads scans, and nothing was trained")


class Starts:
    """The starts of one training at a site. Nothing is kept or refused where the policy bounds no start.

    Args:
        config: the site's.
        task: of the round.
        header: names the training and the round.
    """

    def __init__(self, config: SiteConfig, task: Task, header: Header) -> None:
        self._config, self._task, self._header = config, task, header
        self._kept = KeptTensors(config.folder / FOLDER, header)

    def require_confirmed(self, content: RecordDict) -> None:
        """Refuse the start of a round from the second on that too few other sites confirmed.

        Raises:
            StartNotConfirmed: names the number of confirmations and the least one.
            RoundAlreadyAnswered: this site itself confirmed another start for this round.
        """
        least, start = self._config.policy.confirmations, hash_of_tensors(content)
        if least == 0 or not start or self._header.round == 1:
            return
        if self._config.kit is None:
            text = "without a kit nobody can be verified; name the kit's folder under 'kit'"
            raise StartNotConfirmed(f"site {self._config.name}: policy.confirmations is {least}, and {text}")
        document, names = confirmations.document(self._header, start), set[str]()
        for one in confirmations.attached(content):
            try:
                names.add(signed_by_rostered(self._config, one, document))
            except TrustError as error:  # one bad signature does not undo the good ones
                where: dict[str, str | float] = {"method": self._header.method, "round": self._header.round}
                log.warning(LogLine("bad_confirmation", **where, reason=str(error)))
        names -= {self._config.name}
        if len(names) < least:
            found = f"the start of {self._header.method}, round {self._header.round}, is confirmed by {len(names)}"
            raise StartNotConfirmed(
                f"{found} other sites, expected {least} (policy.confirmations); nothing was trained"
            )
        Confirmed(self._config, self._header.study).confirm(self._header, start)

    def require_near(self, received: AdapterState, own: AdapterState, net: nn.Module) -> None:
        """Refuse a start that no average of honest sites can have reached since the start before, and keep this one.

        Args:
            received: the start of this round.
            own: what the site derives as the start of the first round.
            net: the network of the training.

        Raises:
            StartTooFar: names the first tensor that moved too far, with how far and the most; or the site missed too
                many rounds to judge.
        """
        if not self._config.policy.bounded_starts or not received:
            return
        if self._header.round > 1:
            before, since = own, 1
            if (kept := self._kept.last(up_to=self._header.round - 1)) is not None:
                found = next(self._kept.read(up_to=self._header.round - 1, like=received), None)
                before, since = (found, kept[0]) if found is not None else (own, 1)
            if (passed := self._header.round - since) > MOST_MISSED + 1:
                text = f"round {self._header.round} comes {passed} rounds after the last one here"
                raise StartTooFar(f"{text}, expected at most {MOST_MISSED + 1}; the next training is open to this site")
            self._require_near(received, before, since, net)
        self._kept.keep(received)

    def _require_near(self, received: AdapterState, before: AdapterState, since: int, net: nn.Module) -> None:
        local = self._task.local
        if local is None:
            raise PayloadError("task: got no settings of a training round")
        factor_of, recomputed = factor_at(net), _recomputed(net, self._task)
        rounds = range(since, self._header.round)
        moves = [schedule_of(self._task, local, round_).most_moved() for round_ in rounds]
        for name, value in received.items():
            old = before[name].astype(np.float64)
            size, largest, most = math.sqrt(np.square(old).mean()), np.abs(old).max(initial=0.0), 0.0
            for move in moves:
                step = move * factor_of(name, size + most)
                most += step * (1 + local.weight_decay * (largest + most))
            most = (RECOMPUTED if name in recomputed else SLACK) * most + ROUNDING * largest
            moved = float(np.abs(value - old).max(initial=0.0))
            if not moved <= most:
                found = f"the start of round {self._header.round} moved {name} by {moved:.3g} since round {since}"
                raise StartTooFar(f"{found}, expected at most {most:.3g}, as far as training can; nothing was trained")


def _recomputed(net: nn.Module, task: Task) -> frozenset[str]:
    """Names of the tensors of adapted layers with magnitudes, without the inner factors."""
    layers = () if task.training is None else factored_layers(net, task.training)
    return frozenset(name for layer in layers if layer.magnitude for name in (layer.up, layer.magnitude))
