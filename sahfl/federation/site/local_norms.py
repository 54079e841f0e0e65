"""Local norms: the affine parameters of the norms stay at a site, which trains and evaluates with its own.

The server's copies are never changed: they are what a site starts from that has none of its own yet, and what the
saved base and adapter hold. A site keeps its norms after each round it trained in (``kept``).

Source: Li et al. 2021, arXiv 2102.07623 (FedBN); there statistics stay as well, which this network does not have.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from sahfl.adapters import AdapterState, exchanged
from sahfl.federation.site.kept import KeptTensors
from sahfl.networks import staying
from sahfl.payload import Header
from sahfl.task import Task


def put_own(net: nn.Module, task: Task, folder: Path, header: Header, *, after_round: int) -> None:
    """Put the site's own norms into a network, those of the last round it trained in up to ``after_round``.

    Where it has none, or a file is damaged or of other tensors, those of an earlier round, and in the end what the
    network has: what the server sent.
    """
    wanted = {name: value for name, value in exchanged.read(net).items() if name in staying(net, task)}
    for own in _kept(folder, header).read(up_to=after_round, like=wanted) if wanted else ():
        if own is not None:
            exchanged.load(net, exchanged.read(net) | own)
            return


def keep_own(folder: Path, header: Header, own: AdapterState) -> None:
    """Keep the norms of the round that the header names, if there are any."""
    if own:
        _kept(folder, header).keep(own)


def _kept(folder: Path, header: Header) -> KeptTensors:
    return KeptTensors(folder / "norms", header)
