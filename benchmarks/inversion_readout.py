"""From what a hospital sent to slices: the attacker's knowledge of other patients, the decoder, and the scores.

    python benchmarks/inversion.py    # uses it

The attacker has phantom patients of his own. He knows from them what slices look like on average, which values a gate
must let pass, and how 6 x 6 pixels vary together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from crafted_base import CELLS, MODEL, OPEN, PIXELS, SHIFTS, TILE, VIEWS, WIDTHS, Design, brightness, crafted_base
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from sahfl.adapters import AdapterState
from sahfl.data.ct import Scan
from sahfl.data.phantom import PROFILES, make_case
from sahfl.data.sampler import SliceSampler
from sahfl.data.views import make_views
from sahfl.networks import base_network
from sahfl.seeds import derive_seed

Floats = NDArray[np.float64]
N_CANDIDATES = 100
Z = 1.959964


@dataclass(frozen=True)
class Population:
    """Augmented slices of patients who are not in the hospital, (n, 1, height, width), and their blood."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(
        cls, use: str, n: int, *, patients: int = 24, shape: tuple[int, int, int], spacing: tuple[float, float, float]
    ) -> Population:
        """``n`` slices of new patients; ``use`` tells cohorts apart."""
        cases = []
        for number in range(patients):
            seed = derive_seed("inversion", use, number)
            case = make_case(seed, kind="sah", profile=PROFILES["standard"], shape=shape, spacing_mm=spacing)
            cases.append(make_views(Scan(case.image.astype(np.float32), case.label > 0, case.affine), VIEWS))
        seed = derive_seed("inversion", use)
        images, labels, _ = SliceSampler(cases, VIEWS, batch_size=n, foreground_share=0.0, seed=seed).batch()
        return cls(images, labels)

    @property
    def flat(self) -> Floats:
        """The slices, (n, pixels)."""
        return self.images.flatten(1).numpy().astype(np.float64)


def gates_of(design: Design, population: Population, share: float = 1 / 64) -> Design:
    """The design with gates that let equal shares of a population pass: all of it, or the brightest ``share`` alone."""
    values = np.sort(brightness(population.images, design.depth).numpy().astype(np.float64))
    least = values[0] - 0.2
    if design.depth == 1 and share >= 1:
        return replace(design, edges=(OPEN,))
    if design.depth == 1:
        bounds = list(np.quantile(values, [0.5, 0.5 + share]))
        width = 0.1 * float(np.diff(bounds)[0])
        return replace(design, edges=tuple((float(at), float(at) + width) for at in bounds), closes=True)
    bounds = [least, *(np.quantile(values, np.arange(1, design.most_gates) / design.most_gates))]
    widths = np.diff([*bounds, values[-1]]) * 0.1
    edges = tuple((float(at - width / 2), float(at + width / 2)) for at, width in zip(bounds, widths, strict=True))
    return replace(design, edges=edges)


def openness(design: Design, images: Tensor) -> Floats:
    """How far each slice opens each gate, (n, gates) in 0..1."""
    values = brightness(images, design.depth).numpy().astype(np.float64)[:, None]
    low, high = np.array(design.edges).T
    steps = np.clip((values - low) / (high - low), 0, 1)
    found = steps - np.concatenate([steps[:, 1:], np.zeros_like(values)], axis=1)
    return found[:, : len(low) - design.closes]


class Reader:
    """Turns the change of a crafted round into slices, by what the attacker's own patients show in the same network."""

    def __init__(self, design: Design, population: Population) -> None:
        self.design, self.base = design, crafted_base(design)
        self._rows = design.rows
        patches, self._mask = self._patches(population)
        self._mean = patches.mean(0)  # (tiles, 36)
        centred = patches - self._mean
        self._covariance = np.einsum("nti,ntj->tij", centred, centred) / len(patches) + 1e-6 * np.eye(TILE**2)
        self._to_pixels = self._regression(patches, population.flat)

    def from_up(self, start: AdapterState, change: Floats) -> tuple[Floats, Floats]:
        """Slices (gates, pixels) and how much arrived of each tile (gates, tiles), from the change of ``up``."""
        down = start[f"{self.design.layer}.update.down"].astype(np.float64)
        pixels, n = down[:, : len(SHIFTS)].reshape(len(down), -1), len(self._rows)
        seen, strength = [], []
        for row, one in enumerate(change[:n] - change[n]):
            mask = down[:, WIDTHS[str(self.design.depth)] + row, 1, 1] * self._mask
            found, gain = self._tile(one, pixels, mask, row % len(self.design.tiles))
            seen.append(found)
            strength.append(gain)
        return self._join(np.array(seen), np.array(strength))

    def from_down(self, change: Floats) -> tuple[Floats, Floats]:
        """The same from the change of ``down`` (rank, in, 3, 3), where row k of ``up`` started as term k alone."""
        width, n = WIDTHS[str(self.design.depth)], min(len(change) - 1, len(self._rows))
        tiles = self._mean.copy()
        strength = np.zeros(len(self._rows))
        for row, one in enumerate(change[:n] - change[n]):
            gain = one[width + row, 1, 1] / self._mask
            strength[row] = abs(gain)
            tiles[row] = one[: len(SHIFTS)].reshape(-1) / gain if gain else self._mean[row]
        return self._join(tiles, strength)

    def covered(self, n_rows: int) -> NDArray[np.bool_]:
        """Pixels of the first tiles at depth 1, (pixels,)."""
        found = np.zeros((PIXELS, PIXELS), bool)
        for y, x in self.design.tiles[:n_rows]:
            found[y - 2 : y + 4, x - 2 : x + 4] = True
        return found.reshape(-1)

    def _tile(self, seen: Floats, pixels: Floats, mask: Floats, tile: int) -> tuple[Floats, float]:
        """The most likely pixels of a tile if ``seen`` is gain * (mask + pixels @ tile), and the gain."""
        mean, covariance = self._mean[tile], self._covariance[tile]
        spread = pixels @ covariance @ pixels.T
        inverse = np.linalg.inv(spread + 1e-5 * np.trace(spread) / len(spread) * np.eye(len(spread)))
        expected = mask + pixels @ mean
        gain = float(expected @ inverse @ seen / (expected @ inverse @ expected))
        if gain == 0:
            return mean, 0.0
        return mean + covariance @ pixels.T @ inverse @ (seen / gain - expected), abs(gain)

    def _join(self, tiles: Floats, strength: Floats) -> tuple[Floats, Floats]:
        n_tiles = len(self.design.tiles)
        joined = tiles.reshape(-1, n_tiles * TILE**2)
        found = self._paint(joined) if self._to_pixels is None else _with_one(joined) @ self._to_pixels
        return found, strength.reshape(-1, n_tiles)

    def _paint(self, joined: Floats) -> Floats:
        """Tiles at depth 1 to slices; pixels without a tile are 0."""
        found = np.zeros((len(joined), PIXELS, PIXELS))
        parts = joined.reshape(len(joined), len(self.design.tiles), len(SHIFTS), 3, 3)
        for tile, (y, x) in enumerate(self.design.tiles):
            for channel, (down, right) in enumerate(SHIFTS):
                rows, columns = slice(y + down - 1, y + down + 2), slice(x + right - 1, x + right + 2)
                found[:, rows, columns] = parts[:, tile, channel]
        return found.reshape(len(joined), -1)

    def _regression(self, patches: Floats, images: Floats) -> Floats | None:
        """Coarse tiles to the slice's own pixels, as the attacker's patients show it; None at depth 1."""
        if self.design.depth == 1:
            return None
        x = _with_one(patches.reshape(len(patches), -1))
        ridge = 1e-3 * len(x) * np.eye(x.shape[1])
        return np.asarray(np.linalg.solve(x.T @ x + ridge, x.T @ images), np.float64)

    @torch.no_grad()
    def _patches(self, population: Population) -> tuple[Floats, float]:
        """What the tiles see of each slice, less its mean over the slice, (n, tiles, 36); and the masks' height."""
        net, depth = base_network(VIEWS, MODEL, self.base), self.design.depth
        encoder = net.get_submodule("net.encoder")
        found = []
        for x in torch.split(population.images, 32):
            for level in range(1, depth + 1):
                maps = encoder.get_submodule(str(level))(x if level == 1 else max_pool2d(x, 2))
                x = maps
            padded = pad(maps[:, : len(SHIFTS)], (1, 1, 1, 1))
            windows = padded.unfold(2, 3, 1).unfold(3, 3, 1)  # (n, channel, y, x, 3, 3)
            at = torch.stack([windows[:, :, y, x_] for y, x_ in self.design.tiles], 1)
            found.append((at - windows.mean((2, 3))[:, None]).flatten(2))
        n = self.design.side**2
        losses = [(1 - 1 / (CELLS * 2 ** (4 - level)) ** 2) ** 2 for level in range(4, depth, -1)]
        return torch.cat(found).numpy().astype(np.float64), 4.0 * (1 - 1 / 9) * math.prod(losses) * (1 - 1 / n)


def undone(change: Floats, rates: Sequence[float], step: int) -> Floats:
    """The gradients that moved numbers by ``change`` if each had one gradient, at ``step``, whatever its size."""
    sizes = np.geomspace(1e-14, 1e-2, 200_000)
    moved = np.zeros_like(sizes)
    for late in range(step, len(rates)):
        momentum = 0.1 * 0.9 ** (late - step) / (1 - 0.9 ** (late + 1))
        square = 0.001 * 0.999 ** (late - step) / (1 - 0.999 ** (late + 1))
        moved += rates[late] * momentum * sizes / (math.sqrt(square) * sizes + 1e-8)
    return -np.sign(change) * np.interp(np.abs(change), moved, sizes)


def _with_one(x: Floats) -> Floats:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


@dataclass(frozen=True)
class Score:
    """How well slices were rebuilt."""

    residual: list[float]
    """Correlation of rebuilt and true slice, the mean slice of others taken from both."""
    prior: list[float]
    """Plain correlation of the mean slice of others with the true slice."""
    first: list[bool]
    """Whether the true slice is the likeliest of 100 candidates."""

    def __add__(self, other: Score) -> Score:
        return Score(self.residual + other.residual, self.prior + other.prior, self.first + other.first)


NOTHING = Score([], [], [])


def score(rebuilt: Floats, truth: Floats, mean: Floats, others: Floats, random: np.random.Generator) -> Score:
    """The score of one rebuilt slice (pixels,); ``others`` (n, pixels) are slices of others, to identify it among."""
    chosen = others[random.choice(len(others), N_CANDIDATES - 1, replace=False)]
    guess = rebuilt - mean if rebuilt.std() > 0 else np.zeros_like(mean)
    own, *rest = (_correlation(guess, one - mean) for one in (truth, *chosen))
    return Score([own], [_correlation(mean, truth)], [own > max(rest)])


def _correlation(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its normal 95 % interval."""
    middle = float(np.mean(values))
    half = Z * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return middle, middle - half, middle + half


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    middle, half = hits + Z**2 / 2, Z * math.sqrt(hits * (n - hits) / n + Z**2 / 4)
    return (middle - half) / (n + Z**2), (middle + half) / (n + Z**2)
