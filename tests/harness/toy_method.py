"""A toy adapter method: an update that is the same at every voxel of the kernel, and the form of its factors."""

import math

import numpy as np
import torch
from torch import nn

from sahfl.adapters import Form
from sahfl.adapters.methods import AdapterMethod
from sahfl.adapters.updates.few import convolve_to_few, few_kernel_gradient
from sahfl.adapters.updates.geometry import convolve, pointwise, pointwise_gradient
from sahfl.aggregation.forms import matrix_axes, matrix_factors, matrix_nearest


class BoxUpdate(nn.Module):
    """``up`` (out, rank) times ``down`` (rank, in), repeated over the voxels of the kernel."""

    exchanged = ("down", "up")
    inner_factors = ("down",)

    def __init__(self, base, *, rank, generator):
        super().__init__()
        self.rank, self.full_rank = rank, min(base.out_channels, base.in_channels)
        self.cost = math.inf
        self._size = base.kernel_size
        bound = 1 / math.sqrt(base.in_channels * math.prod(base.kernel_size))
        down = base.weight.new_empty(rank, base.in_channels).uniform_(-bound, bound, generator=generator)
        self.down, self.up = nn.Parameter(down), nn.Parameter(base.weight.new_zeros(base.out_channels, rank))

    def _repeated(self, matrix):
        return matrix.reshape(*matrix.shape, *(1 for _ in self._size)).repeat(1, 1, *self._size)

    def delta(self, up):
        return self._repeated(up @ self.down)

    def inner(self, x, geometry):
        return convolve(x, self._repeated(self.down), geometry)

    def up_gradient(self, gradient, u, geometry):
        return pointwise_gradient(gradient, u)

    def gradients(self, gradient, x, up, geometry):
        kernel = self._repeated(self.down).to(x.dtype)
        of_up = pointwise_gradient(gradient, convolve_to_few(x, kernel, geometry))
        of_kernel = few_kernel_gradient(pointwise(gradient, up.t()), x, torch.Size(kernel.shape), geometry)
        return of_up, of_kernel.flatten(2).sum(2)


def _terms(layer, state):
    return [state[layer.up], state[layer.inner[0]].T.copy()]


def _dense(layer, terms):
    n_out, n_in, *sizes = layer.shape
    matrix = (terms[0] @ terms[1].T).reshape(n_out, n_in, *(1 for _ in sizes))
    return np.broadcast_to(matrix, layer.shape)


BOX = Form(_terms, matrix_factors, _dense, matrix_nearest, matrix_axes)
TOY = AdapterMethod("toy_box", "Toy box", "#123456", lambda: BoxUpdate, BOX)
