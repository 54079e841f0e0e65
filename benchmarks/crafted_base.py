"""A base network that lets single slices pass: what an attacker would have a hospital accept.

    python benchmarks/crafted_base.py    # prints its layers' sizes and how many slices its gates let pass

It is a U-Net of the project's own shape, size ``large``, with weights of the attacker's choice. One number of each
slice, how bright the middle of the head is against the rest, is compared with a list of bounds; the *gate* between two
of them is open or closed for the whole slice. Each gate has *tiles*, pixels of 6 x 6 that cover the slice. A tile has
an output channel (a *row*) of one adapted convolution to itself, and only where its gate is open and only at its middle
does this row have a gradient. The gradient of ``up`` is then the random projections that the attacker can derive (seed,
form and base are his) of 6 x 6 pixels of the few slices behind this gate. One more row is always closed: what it has is
what all rows have in common.

What makes it exact: an instance norm of a map of tiny variance is linear (its epsilon rules); a leaky ReLU and a tenth
of the mirrored one add up to a hard ReLU, so what is closed has a gradient of zero and not of a tenth, blood included.

The idea of bins is that of Fowl et al. 2021, arXiv 2110.13057; that of a crafted frozen base, arXiv 2506.04453.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from sahfl.adapters import AdapterState, exchanged
from sahfl.config import ModelConfig, ViewsConfig
from sahfl.networks import whole_network

PIXELS = 48
VIEWS = ViewsConfig(
    weights={"axial": 1.0}, spacing_mm=4.0, size=(PIXELS, PIXELS, 48), neighbours=0, windows_hu=((-20.0, 100.0),)
)
MODEL = ModelConfig(size="large", deep_supervision=True)
WIDTHS = {"1": 64, "2": 128, "3": 256, "4": 512}
TILE = 6
"""Pixels of a tile along each axis: two shifts of three taps."""
SHIFTS = [(y, x) for y in (-1, 2) for x in (-1, 2)]
SMALL = 1e-5
"""Size of most kernels. The maps before a norm then have a variance far below its epsilon."""
EPSILON = 1e-5
SLOPE = 0.1
MASK = 4.0
"""Of the maps that open a row, where they do; pixels are in 0..1."""
OPEN = (2.9, 3.0)
"""Every slice is brighter."""
CELLS = 3
"""Cells of the bottleneck along each axis."""
Tap = tuple[int, int, int, float]
"""Input channel, row and column of the kernel (1 is the middle), weight."""


@dataclass(frozen=True)
class Design:
    """Where a base lets gradients pass."""

    depth: int
    """Depth of the decoder whose first convolution is read: 1 has the slice's own pixels, 2 and 3 pixels of 8 and 16
    mm."""
    edges: tuple[tuple[float, float], ...] = ()
    """A gate begins at each edge and ends at the next; between an edge's two numbers it opens gradually."""
    closes: bool = False
    """Whether the last edge only ends the gate before it."""
    decoy: bool = False
    """Whether a pixel of air opens all rows, the closed one too, for every slice. So every slice adds as much to each
    row as the slice that is read, and the difference of two rows has nothing of it."""
    weight: float = 1e-9
    """Weight of the output, which scales all gradients."""
    small: float = SMALL
    """Size of the kernels of the rows and after them."""

    @property
    def side(self) -> int:
        """Pixels of the read maps along each axis."""
        return int(PIXELS // 2 ** (self.depth - 1))

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """The middles of a gate's tiles; at depth 1 the last one, in the air, gives its row to the closed one."""
        places = [n * TILE + 2 for n in range(self.side // TILE)]
        found = [(y, x) for y in places for x in places]
        return found[: WIDTHS["1"] - 1] if self.depth == 1 else found

    @property
    def rows(self) -> list[tuple[int, int, int]]:
        """Gate, row and column of each row's middle."""
        return [(gate, y, x) for gate in range(len(self.edges) - self.closes) for y, x in self.tiles]

    @property
    def cell(self) -> int:
        """Pixels of a cell of the bottleneck along each axis."""
        return self.side // CELLS

    @property
    def most_gates(self) -> int:
        """Gates for which there are rows."""
        return (WIDTHS[str(self.depth)] - 1) // len(self.tiles)

    @property
    def layer(self) -> str:
        """Path of the adapted convolution that is read."""
        return f"net.decoder.{self.depth}.convs.0.conv"


def crafted_base(design: Design) -> AdapterState:
    """The tensors of the crafted base network."""
    net = whole_network(VIEWS, MODEL, seed=0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        _encoder(net.get_submodule("net.encoder"), design)
        _gates(net.get_submodule("net.bottleneck"), design)
        _rows(net, design)
    return exchanged.read(net)


def brightness(images: Tensor, depth: int) -> Tensor:
    """The number of each slice that the gates compare, (n,), from slices (n, 1, height, width)."""
    net = whole_network(VIEWS, MODEL, seed=0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        _encoder(net.get_submodule("net.encoder"), Design(depth))
        first = net.get_submodule("net.bottleneck.0")
        _set(first, 0, _in_the_middle())
        found = []
        for x in torch.split(images, 64):
            for step in net.get_submodule("net.encoder").children():
                x = max_pool2d(step(x), 2)
            found.append(first.get_submodule("adn.N")(first.get_submodule("conv")(x))[:, 0, 1, 1])
    return torch.cat(found)


def _set(block: nn.Module, channel: int, taps: Sequence[Tap], *, offset: float = 0.0, small: float = SMALL) -> None:
    """Make a channel of a convolution with its norm compute sum(weight * input) - its mean + offset, before the ReLU.

    ``small`` may be negative for a mirrored sum.
    """
    kernel, norm = block.get_parameter("conv.weight"), block.get_submodule("adn.N")
    for source, y, x, weight in taps:
        kernel[channel, source, y, x] += small * weight
    norm.get_parameter("weight")[channel] = math.sqrt(EPSILON) / abs(small)
    norm.get_parameter("bias")[channel] = offset


def _encoder(encoder: nn.Module, design: Design) -> None:
    """Channel 0: the slice, averaged from depth to depth. At the read depth channels 0 to 3 are its four shifts."""
    for depth in range(1, 5):
        first, second = (encoder.get_submodule(f"{depth}.{n}") for n in (0, 1))
        if depth == design.depth:
            for channel, (y, x) in enumerate(SHIFTS):
                half = [math.copysign(1, one) for one in (y, x)]
                a, b = (1 + int(one) for one in half)
                c, d = (1 + one - int(step) for one, step in zip((y, x), half, strict=True))
                _set(first, channel, [(0, a, b, 1.0)], offset=1.0)
                _set(second, channel, [(channel, c, d, 1.0)], offset=1.0)
        elif depth < design.depth:
            _set(first, 0, [(0, 1, 1, 1.0)], offset=1.0)
            _set(second, 0, [(0, y, x, 0.25) for y in (1, 2) for x in (1, 2)], offset=1.0)
        else:
            _set(first, 0, [(0, y, x, 1 / 9) for y in range(3) for x in range(3)], offset=1.0)
            _set(second, 0, [(0, 1, 1, 1.0)], offset=1.0)
    _set(encoder.get_submodule("4.1"), 511, [], offset=1.0)  # a map of ones


def _in_the_middle() -> list[Tap]:
    """The sum of a map of ones, which is highest in the middle cell, and the brightness there."""
    return [(511, y, x, 1.0) for y in range(3) for x in range(3)] + [(0, 1, 1, 1.0)]


def _gates(bottleneck: nn.Module, design: Design) -> None:
    """Channel (gate, cell) after the second convolution: 1 in this cell if the gate is open, 0 elsewhere."""
    first, second = bottleneck.get_submodule("0"), bottleneck.get_submodule("1")
    norm = first.get_submodule("adn.N")
    _set(first, 0, _in_the_middle())
    steps: list[list[tuple[int, float]]] = []
    for n, (low, high) in enumerate([*design.edges, *([OPEN] if design.decoy else [])]):
        gain, own = 1 / (high - low), range(1 + 4 * n, 5 + 4 * n)
        for channel, sign, start in zip(own, (1, -1, 1, -1), (0, 0, 1, 1), strict=True):
            _set(first, channel, _in_the_middle(), small=sign * SMALL)
            norm.get_parameter("weight")[channel] *= gain
            norm.get_parameter("bias")[channel] = -sign * (gain * low + start)
        hard = [weight / (1 - SLOPE**2) for weight in (1, SLOPE, -1, -SLOPE)]
        steps.append(list(zip(own, hard, strict=True)))
    if design.decoy:
        always = steps.pop()
        _set(second, CELLS**2 * len(steps), [(channel, 2, 2, weight) for channel, weight in always])
    for n, step in enumerate(steps[: len(steps) - design.closes]):
        ends = [(channel, -weight) for channel, weight in steps[n + 1]] if n + 1 < len(steps) else []
        for cell in range(CELLS**2):
            y, x = 2 - cell // CELLS, 2 - cell % CELLS  # brings the middle to the cell
            _set(second, CELLS**2 * n + cell, [(channel, y, x, weight) for channel, weight in step + ends])


def _rows(net: nn.Module, design: Design) -> None:
    """Bring each gate's cells to the middles of its tiles, and let the rows have a gradient there alone."""
    rows = design.rows
    masks = [(CELLS**2 * gate + y // design.cell * CELLS + x // design.cell, y, x) for gate, y, x in rows]
    masks += [(CELLS**2 * len(design.edges), 0, 0)] if design.decoy else []
    for depth in range(4, design.depth - 1, -1):
        step, width, below = net.get_submodule(f"net.decoder.{depth}"), WIDTHS[str(depth)], 2 ** (depth - design.depth)
        up = step.get_parameter("up.weight")
        for mask, (source, y, x) in enumerate(masks):
            up[source if depth == 4 else mask, mask, y // below % 2, x // below % 2] = 1
        first, second = step.get_submodule("convs.0"), step.get_submodule("convs.1")
        if depth > design.depth:
            gain = MASK if depth == design.depth + 1 else 1.0
            for mask in range(len(masks)):
                _set(first, mask, [(width + mask, 1, 1, 1.0)])
                _set(second, mask, [(mask, 1, 1, gain)])
            continue
        half = 0.85 * MASK / 2
        common = [(width + mask, 1, 1, 1.0) for mask in range(len(rows), len(masks))]
        for row in range(len(rows)):
            _set(first, row, [(width + row, 1, 1, 1.0), *common], offset=-half, small=design.small)
        _set(first, len(rows), common, offset=-half, small=design.small)  # the closed row
        taps = [(row, 1, 1, 1.0) for row in range(len(rows) + 1)]
        for channel, sign in ((0, 1), (1, -1)):
            _set(second, channel, taps, offset=-sign * 0.1 * half, small=sign * design.small)
        head = net.get_parameter(f"net.head.{depth}.weight")
        head[0, :2, 0, 0] = torch.tensor([design.weight, SLOPE * design.weight])


def main() -> None:
    """How many slices the gates of each depth let pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for depth in (1, 2, 3):
        design = Design(depth)
        print(f"depth {depth}: {design.most_gates} gates of {len(design.tiles)} tiles in {design.side}^2 pixels")


if __name__ == "__main__":
    main()
