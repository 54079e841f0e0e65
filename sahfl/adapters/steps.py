"""Sizes of training steps: the learning rates of an adapter's factors, for equal steps of all methods and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

INNER_RATE = 20.0
"""A step of AdamW moves an inner factor by this many times the learning rate, as a share of the factor's size."""


def rate_of(net: nn.Module) -> Callable[[str], float]:
    """The factor of the learning rate of each parameter of a network, by its full name, for ``training.train``.

    An inner factor moves relative to its own size: its factor is ``INNER_RATE`` times the root mean square of its
    numbers as they are now. So the steps of an inner factor do not depend on the size of its axis, and only the
    directions of its columns matter, not how a term's length is shared among its factors. All else has the factor 1.

    Source: Shazeer & Stern 2018, arXiv 1804.04235, section 8 (relative step size).
    """
    sizes = {name: net.get_parameter(name).detach().square().mean().sqrt().item() for name in _inner_factors(net)}
    return lambda name: INNER_RATE * sizes[name] if name in sizes else 1.0


def factor_at(net: nn.Module) -> Callable[[str, float], float]:
    """The factor of the learning rate of a parameter, by its full name, were its root mean square another one."""
    inner = frozenset(_inner_factors(net))
    return lambda name, size: INNER_RATE * size if name in inner else 1.0


def _inner_factors(net: nn.Module) -> Iterator[str]:
    for path, module in net.named_modules():
        for name in getattr(module, "inner_factors", ()):
            yield f"{path}.{name}"
