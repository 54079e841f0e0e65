"""Exact aggregation of low-rank updates: the mean of the products instead of the product of the means.

Every adapter method writes a kernel's update as a sum of rank-one terms. The weighted mean of the sites' updates is
therefore the sum of all their terms, each times its site's weight. Its rank is the sum of the ranks; ``project`` brings
it back to one rank, by singular values or, for the CP form, by alternating least squares.

DoRA's magnitudes are never averaged. A site's kernel is diag(d) (W + scale * D) with d = m / ||W + scale * D||. The
mean of such kernels has the same form: diag(mean d) (W + scale * mean(d / mean(d) * D)).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sahfl.adapters import AdapterState, FactoredLayer, Floats, WeightedState
from sahfl.aggregation.forms import (
    along_rows,
    channel_lengths,
    inverse,
    kernel_of,
    ratio_of,
    scale_rows,
    terms_of,
    written,
)
from sahfl.aggregation.mean import mean
from sahfl.aggregation.update import SiteUpdate, check_update, in_order
from sahfl.errors import PayloadError

CANCELLED = 1e-3
"""Least mean of the sites' d, as a share of the mean of |d|; only opposite signs give less."""


def mean_of_factors(
    updates: Sequence[SiteUpdate], *, like: AdapterState, layers: Sequence[FactoredLayer]
) -> AdapterState:
    """The mean of each factor; for DoRA forms, the mean of d and of d * up instead of magnitudes and ``up``.

    Guarantees and errors: those of ``mean``. The result is exact where the sites differ in one factor only (for DoRA
    forms, in ``up`` and the magnitude only). Secure aggregation can carry the sums that it needs.

    Source: Zhang et al. 2023, arXiv 2305.05644 (FedIT); for magnitudes, here.
    """
    result = mean(updates, like=like)
    decomposed = [layer for layer in layers if layer.magnitude is not None]
    if not decomposed:
        return result
    sites = _read(updates, like, [])
    for layer in decomposed:
        ratios = [ratio_of(layer, site.state) for site in sites]
        of_ratio = _mean_ratio(sites, ratios)
        ups = [along_rows(ratio, site.state[layer.up]) for site, ratio in zip(sites, ratios, strict=True)]
        of_up = sum(site.weight * up for site, up in zip(sites, ups, strict=True))
        up = along_rows(inverse(of_ratio), np.asarray(of_up))
        wide = {name: result[name].astype(np.float64) for name in layer.inner} | {layer.up: up}
        result |= {layer.up: up.astype(like[layer.up].dtype)}
        assert layer.magnitude is not None
        lengths = channel_lengths(layer, terms_of(layer, wide))
        result |= {layer.magnitude: (of_ratio * lengths).astype(like[layer.magnitude].dtype)}
    return {name: result[name] for name in like}


def _mean_ratio(sites: list[WeightedState], ratios: list[Floats]) -> Floats:
    mean = np.asarray(sum(site.weight * ratio for site, ratio in zip(sites, ratios, strict=True)))
    least = CANCELLED * np.asarray(sum(site.weight * np.abs(ratio) for site, ratio in zip(sites, ratios, strict=True)))
    return np.where(np.abs(mean) < least, np.copysign(least, mean), mean)


def project(updates: Sequence[SiteUpdate], *, like: AdapterState, layers: Sequence[FactoredLayer]) -> AdapterState:
    """The mean of the sites' updates, brought back to the ranks of ``like``; sites may have different ranks.

    Guarantees: names, shapes and dtypes of ``like``; for LoRA-C and convLoRA the nearest kernels of that rank (Eckart
    and Young), for the CP form kernels no farther than those of ``mean_of_factors``; no term becomes zero in all
    factors, so all go on training. Errors as in ``mean``. It holds all sites' factors in memory.

    Source: Wang et al. 2024, arXiv 2409.05976 (FLoRA) for the exact mean as one adapter of all ranks; Bai et al. 2024,
    arXiv 2402.11505 (FlexLoRA) for its projection; Kolda and Bader 2009, section 3.4, for CP; for DoRA forms, here.
    """
    sites = _read(updates, like, layers)
    result = _mean_of_the_rest(sites, like, layers)
    for layer in layers:
        terms, magnitude = _stacked(layer, sites)
        if magnitude is not None:  # near in the kernels, that is in the rows times d
            terms[0] = scale_rows(terms[0], magnitude)
        terms = layer.form.nearest(layer, terms, sites, like)
        if magnitude is not None:
            terms[0] = scale_rows(terms[0], inverse(magnitude))
        result |= written(layer, terms, magnitude, like)
    return {name: result[name] for name in like}


def _read(updates: Sequence[SiteUpdate], like: AdapterState, layers: Sequence[FactoredLayer]) -> list[WeightedState]:
    ordered, axes = (
        in_order(updates),
        {name: axis for layer in layers for name, axis in layer.form.rank_axes(layer).items()},
    )
    for update in ordered:
        check_update(update, like=like, rank_axes=axes)
        for layer in layers:
            _check_ranks(update, layer)
    total = sum(update.n_volumes for update in ordered)
    return [
        WeightedState(update.n_volumes / total, {name: update.state[name].astype(np.float64) for name in like})
        for update in ordered
    ]


def _check_ranks(update: SiteUpdate, layer: FactoredLayer) -> None:
    found = {update.state[name].shape[axis] for name, axis in layer.form.rank_axes(layer).items()}
    if len(found) > 1 or 0 in found or min(found) % layer.form.terms_per_rank(layer.shape):
        terms = ", ".join(map(str, sorted(found)))
        raise PayloadError(f"site {update.site!r}, {layer.up!r}: got factors of {terms} terms, expected one number")


def _mean_of_the_rest(sites: list[WeightedState], like: AdapterState, layers: Sequence[FactoredLayer]) -> AdapterState:
    factored = {name for layer in layers for name in layer.names}
    return {
        name: sum(site.weight * site.state[name] for site in sites).astype(reference.dtype)  # type: ignore[union-attr]
        for name, reference in like.items()
        if name not in factored
    }


def _stacked(layer: FactoredLayer, sites: list[WeightedState]) -> tuple[list[Floats], Floats | None]:
    """Terms of the mean update, (size of the axis, terms) each, the scale folded in; and the mean of d, if any."""
    parts = [terms_of(layer, site.state) for site in sites]
    ratios = None
    if layer.magnitude is not None:
        ratios = [ratio_of(layer, site.state) for site in sites]
        mean = _mean_ratio(sites, ratios)
    for index, (site, terms) in enumerate(zip(sites, parts, strict=True)):
        rows = site.weight if ratios is None else site.weight * ratios[index] * inverse(mean)
        terms[0] = scale_rows(terms[0], rows)
    joined = [np.concatenate(factor, axis=1) for factor in zip(*parts, strict=True)]
    return joined, (None if ratios is None else mean)


def aggregation_error(
    updates: Sequence[SiteUpdate], result: AdapterState, *, like: AdapterState, layers: Sequence[FactoredLayer]
) -> float | None:
    """Distance of the kernels of ``result`` from the mean of the sites' kernels, as a share of the round's change.

    Both are Euclidean lengths over all layers; None if there is no change, or the squares are too large for a float.
    """
    sites = _read(updates, like, layers)
    difference = change = 0.0
    for layer in layers:
        exact = sum(site.weight * kernel_of(layer, site.state) for site in sites)
        before, after = (
            kernel_of(layer, {name: state[name].astype(np.float64) for name in layer.names}) for state in (like, result)
        )
        difference += float(np.square(after - exact).sum())
        change += float(np.square(before - exact).sum())
    return float(np.sqrt(difference / change)) if change and np.isfinite([change, difference]).all() else None


def at_rank_of(state: AdapterState, *, like: AdapterState, layers: Sequence[FactoredLayer]) -> AdapterState:
    """A global state at the ranks of ``like``, which is the start of a site that trains at another rank.

    A higher rank adds the terms of ``like`` with an out-side factor of zeros, which training can move. The out-side
    factor is multiplied by the ratio of the scales. A lower rank takes the result of ``project`` for this one state.

    Guarantees: names, shapes and dtypes of ``like``; at a higher rank the same kernels, up to the rounding of the
    out-side factor; at the same rank the same bits; tensors of no layer stay as they are.

    Source: Cho et al. 2024, arXiv 2401.06432, section 3 (HetLoRA); nearest kernels instead of first terms, here.
    """
    if any(state[layer.up].shape[1] > like[layer.up].shape[1] for layer in layers):
        return project([SiteUpdate("server", 1, state)], like=like, layers=layers)
    found = dict(state)
    for layer in layers:
        n_terms, wanted = state[layer.up].shape[1], like[layer.up].shape[1]
        ratio = layer.scale(n_terms) / layer.scale(wanted)
        up = (ratio * state[layer.up].astype(np.float64)).astype(state[layer.up].dtype)
        spare = {layer.up: np.zeros_like(like[layer.up])} | {name: like[name] for name in layer.inner}
        for name, axis in layer.form.rank_axes(layer).items():
            own = up if name == layer.up else state[name]
            found[name] = np.concatenate([own, spare[name].take(range(n_terms, wanted), axis)], axis)
    return found
