"""Which findings of a site show annotations of another scan or side, from their counts alone."""

from __future__ import annotations

from collections.abc import Mapping

FEWEST, SHARE = 2, 0.2
"""Cases, and their share at a site, from which findings about places are announced: old blood causes some by itself."""


def misplaced(findings: Mapping[str, int | None], n_cases: int) -> tuple[str, ...]:
    """Rules that found annotations of another scan or side in so many cases of a site that it is no single accident.

    Such annotations break no rule of severity error, and train and test a network wrongly.

    Args:
        findings: number of cases by rule; None for one that the site keeps back.
        n_cases: usable cases of the site.
    """
    least = max(FEWEST, SHARE * n_cases)
    return tuple(rule for rule in ("left_right", "label_contrast") if (findings.get(rule) or 0) >= least) + tuple(
        rule for rule in ("same_annotation",) if rule in findings
    )
