"""Convolutions to a few channels as one matrix product for all voxels of the kernel, and shifted sums.

On a processor a convolution to 4 channels takes as long as one to 16, but the product takes less. Only for the fused
backward pass, because autograd does not record it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from sahfl.adapters.updates.geometry import FEW, Geometry, convolve, kernel_gradient

Slices = tuple[slice, ...]


def convolve_to_few(x: Tensor, kernel: Tensor, geometry: Geometry) -> Tensor:
    """The same as ``convolve``: (batch, in, *space) by (few, in, *kernel) -> (batch, few, *space')."""
    if not _is_worth_it(x, kernel.shape[0], geometry):
        return convolve(x, kernel, geometry)
    sizes = kernel.shape[2:]
    matrix = kernel.flatten(2).permute(2, 0, 1).flatten(0, 1)  # (voxels of the kernel * few, in)
    y = x.new_zeros(x.shape[0], kernel.shape[0], *_size_after(x.shape[2:], sizes, geometry))
    for one, sum_ in zip(x, y, strict=True):  # one by one, so that what is made stays in the cache
        terms = torch.mm(matrix, one.flatten(1)).view(-1, kernel.shape[0], *x.shape[2:])
        for term, (there, here) in zip(terms, _overlaps(y.shape[2:], x.shape[2:], sizes, geometry), strict=True):
            sum_[:, *there] += term[:, *here]
    return y


def few_kernel_gradient(gradient: Tensor, x: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """Gradient of the kernel of ``convolve_to_few``, of shape (few, in, *kernel), from that of its result, as there."""
    if not _is_worth_it(x, shape[0], geometry):
        return kernel_gradient(gradient, x, shape, geometry)
    few, sizes = shape[0], shape[2:]
    overlaps = list(_overlaps(gradient.shape[2:], x.shape[2:], sizes, geometry))
    shifted = x.new_zeros(len(overlaps), few, *x.shape[2:])  # its borders stay zero
    total = torch.zeros(len(overlaps) * few, shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    for one, of_one in zip(x, gradient, strict=True):
        for copy, (there, here) in zip(shifted, overlaps, strict=True):
            copy[:, *here] = of_one[:, *there]
        total += torch.mm(shifted.flatten(0, 1).flatten(1), one.flatten(1).t())
    return total.view(*sizes, few, -1).movedim((-2, -1), (0, 1))


def _is_worth_it(x: Tensor, few: int, geometry: Geometry) -> bool:
    strided = not geometry.transposed and set(geometry.stride) != {1}  # the product would compute all strides
    return x.device.type == "cpu" and few < FEW and not strided


def _size_after(space: torch.Size, sizes: torch.Size, geometry: Geometry) -> list[int]:
    after = []
    for axis, (n, size) in enumerate(zip(space, sizes, strict=True)):
        reach, stride = geometry.dilation[axis] * (size - 1) + 1, geometry.stride[axis]
        if geometry.transposed:
            after.append((n - 1) * stride - 2 * geometry.padding[axis] + reach + geometry.output_padding[axis])
        else:
            after.append((n + 2 * geometry.padding[axis] - reach) // stride + 1)
    return after


def _overlaps(
    after: torch.Size, before: torch.Size, sizes: torch.Size, geometry: Geometry
) -> Iterator[tuple[Slices, Slices]]:
    """For each voxel of the kernel: where it writes in the output, and what it reads of the input."""
    for voxel in itertools.product(*map(range, sizes)):
        pairs = [_overlap(after[axis], before[axis], at, axis, geometry) for axis, at in enumerate(voxel)]
        yield tuple(there for there, _ in pairs), tuple(here for _, here in pairs)


def _overlap(after: int, before: int, at: int, axis: int, geometry: Geometry) -> tuple[slice, slice]:
    stride, offset = geometry.stride[axis], at * geometry.dilation[axis] - geometry.padding[axis]
    steps, jumps = (before, after) if geometry.transposed else (after, before)
    # Position n on the side that steps belongs to position ``stride * n + offset`` on the side that jumps.
    first = max(0, -(offset // stride))
    last = max(first, min(steps, (jumps - 1 - offset) // stride + 1))
    start = stride * first + offset
    jump = slice(start, start + stride * (last - first), stride)
    return (jump, slice(first, last)) if geometry.transposed else (slice(first, last), jump)
