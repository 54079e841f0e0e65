"""Local norms: the affine parameters of the norms stay at a site, which trains and evaluates with its own.

The server's copies are never changed: they are what a site starts from that has none of its own yet, and what the
saved base and adapter hold. A site keeps its norms after each round it trained in, in a file named by a hash: nothing
that a server sent becomes a path.

Source: Li et al. 2021, arXiv 2102.07623 (FedBN); there statistics stay as well, which this network does not have.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from sahfl.adapters import AdapterState, exchanged
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.errors import AdapterError
from sahfl.networks import staying
from sahfl.payload import Header, layout
from sahfl.task import Task

KEPT = 3
"""Rounds whose norms are kept: enough for a round that is asked again, and a server at an older checkpoint."""


def put_own(net: nn.Module, task: Task, folder: Path, header: Header, *, after_round: int) -> None:
    """Put the site's own norms into a network, those of the last round it trained in up to ``after_round``.

    Where it has none, or a file is damaged or of other tensors, those of an earlier round, and in the end what the
    network has: what the server sent.
    """
    wanted = {name: value for name, value in exchanged.read(net).items() if name in staying(net, task)}
    if not wanted:
        return
    for round_, path in reversed(_files(folder, header)):
        if round_ > after_round:
            continue
        try:
            own, _ = load_tensors(path)
        except AdapterError:
            continue
        if layout(own) == layout(wanted):
            exchanged.load(net, exchanged.read(net) | own)
            return


def keep_own(folder: Path, header: Header, own: AdapterState) -> None:
    """Keep the norms of the round that the header names, and forget old ones.

    Norms of later rounds belong to a course of things that the server went back behind, and go as well.
    """
    if not own:
        return
    save_tensors(_file(folder, header), own)
    known = _files(folder, header)
    later = [path for round_, path in known if round_ > header.round]
    old = [path for round_, path in known if round_ <= header.round][:-KEPT]
    for path in (*later, *old):
        path.unlink(missing_ok=True)


def _files(folder: Path, header: Header) -> list[tuple[int, Path]]:
    """Rounds and files of one training, the earliest first."""
    found = (folder / "norms").glob(f"{header.training}-?????.safetensors")
    return sorted((int(path.stem[-5:]), path) for path in found)


def _file(folder: Path, header: Header) -> Path:
    return folder / "norms" / f"{header.training}-{header.round:05d}.safetensors"
