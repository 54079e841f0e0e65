"""Which findings of a site show annotations of another scan or side, from their counts alone."""

from __future__ import annotations

from collections.abc import Mapping

FEWEST = 2
SHARES = {"left_right": 0.2, "label_contrast": 0.5}
"""Rules, and the share of a site's cases from which they are announced. Old blood, as dark as the brain around it,
causes ``label_contrast`` by itself: in a third of the patients of one trauma site of the demo."""


def misplaced(findings: Mapping[str, int | None], n_cases: int) -> tuple[str, ...]:
    """Rules that found annotations of another scan or side in so many cases of a site that it is no single accident.

    Such annotations break no rule of severity error, and train and test a network wrongly.

    Args:
        findings: number of cases by rule; None for one that the site keeps back.
        n_cases: usable cases of the site.
    """
    found = [rule for rule, share in SHARES.items() if (findings.get(rule) or 0) >= max(FEWEST, share * n_cases)]
    return (*found, *(rule for rule in ("same_annotation",) if rule in findings))
