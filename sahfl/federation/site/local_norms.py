"""Local norms: the affine parameters of the norms stay at a site, which trains and evaluates with its own.

The server's copies never change. A site without norms of its own starts from them, and the saved base and adapter
contain them. A site stores its norms after each round it trained in (``kept``).

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
    """Load the site's own norms into a network: those of its last trained round up to ``after_round``.

    If that file is damaged or has other tensors, the norms of an earlier round are loaded. If no file can be used, the
    network keeps the norms that the server sent.
    """
    wanted = {name: value for name, value in exchanged.read(net).items() if name in staying(net, task)}
    for own in _kept(folder, header).read(up_to=after_round, like=wanted) if wanted else ():
        if own is not None:
            exchanged.load(net, exchanged.read(net) | own)
            return


def keep_own(folder: Path, header: Header, own: AdapterState) -> None:
    """Store the norms of the round that the header names, if there are any."""
    if own:
        _kept(folder, header).keep(own)


def _kept(folder: Path, header: Header) -> KeptTensors:
    return KeptTensors(folder / "norms", header)
