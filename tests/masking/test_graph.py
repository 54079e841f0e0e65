"""Who shares with whom: the bounds of the numbers of neighbours, and a graph that is the same at every site."""

import numpy as np
import pytest
from scipy.stats import hypergeom

from sahfl.errors import MaskingRefused
from sahfl.masking.graph import (
    COLLUDING,
    CORRECTNESS_BITS,
    DROPPING,
    EVERYBODY,
    SECURITY_BITS,
    Graph,
    default_threshold,
    most_marked,
    terms_of,
)


def names(n):
    return [f"site{i:04d}" for i in range(n)]


@pytest.mark.parametrize(
    ("n", "threshold", "colluding"), [(3, 3, 2), (4, 3, 1), (5, 4, 2), (6, 4, 1), (7, 5, 2), (20, 14, 7), (100, 67, 33)]
)
def test_the_default_threshold_is_two_thirds(n, threshold, colluding):
    terms = terms_of(n)
    assert (default_threshold(n), terms.threshold, terms.colluding) == (threshold, threshold, colluding)
    assert (terms.degree, terms.quorum) == (n - 1, threshold)
    assert 2 * terms.threshold > n + terms.colluding


@pytest.mark.parametrize(
    ("n", "threshold"), [(2, None), (10_001, None), (5, 2), (6, 3), (5, 6), (3, 2), (1000, 549), (1000, 500)]
)
def test_thresholds_and_lists_that_do_not_protect_are_refused(n, threshold):
    with pytest.raises(MaskingRefused, match=r"list of sites: got|threshold: got"):
        terms_of(n, threshold)


def test_five_sites_with_a_threshold_of_three_bear_two_drop_outs_and_no_colluding_site():
    assert (terms_of(5, 3).threshold, terms_of(5, 3).colluding) == (3, 0)


@pytest.mark.parametrize("n", [120, 300, 1000])
def test_neighbours_and_quorum_fulfil_the_three_conditions_by_scipy_s_hypergeometric_tails(n):
    terms = terms_of(n)
    k, q = terms.degree, terms.quorum
    worst = most_marked(n, n * COLLUDING // 100, k, SECURITY_BITS)
    others = n - 1
    assert n * hypergeom.sf(worst, others, n * COLLUDING // 100, k) <= 2.0**-SECURITY_BITS
    assert worst == 0 or n * hypergeom.sf(worst - 1, others, n * COLLUDING // 100, k) > 2.0**-SECURITY_BITS
    assert 2 * q > k + 1 + worst
    # All holders of a site that itself dropped out are neighbours: of k, more than k - q dropping out is the failure.
    assert n * hypergeom.sf(k - q, others, n * DROPPING // 100, k) <= 2.0**-CORRECTNESS_BITS
    assert k % 2 == 0


def test_a_thousand_sites_have_138_neighbours_and_ten_thousand_182():
    """Without a published table at hand; the tails are compared with scipy's above."""
    assert (terms_of(1000).degree, terms_of(1000).quorum, terms_of(1000).threshold) == (138, 98, 900)
    assert (terms_of(10_000).degree, terms_of(10_000).quorum) == (182, 129)
    assert terms_of(EVERYBODY).degree == EVERYBODY - 1 > terms_of(EVERYBODY + 1).degree


def test_the_graph_is_regular_and_mutual_and_has_no_site_twice():
    n = 300
    graph = Graph(names(n), terms_of(n), b"seed")
    for site in names(n):
        holders = graph.holders(site)
        assert len(set(holders)) == len(holders) == terms_of(n).degree + 1
        assert site in holders
        assert site not in graph.neighbours(site)
        assert all(site in graph.holders(other) for other in holders)


def test_the_graph_is_the_same_for_the_same_seed_in_any_order_of_names_and_another_for_another_seed():
    n, terms = 150, terms_of(150)
    one, same, other = (
        Graph(order, terms, seed) for order, seed in ((names(n), b"a"), (names(n)[::-1], b"a"), (names(n), b"b"))
    )
    assert all(one.holders(site) == same.holders(site) for site in names(n))
    shared = [len(set(one.holders(site)) & set(other.holders(site))) for site in names(n)]
    assert np.mean(shared) < 0.6 * (terms.degree + 1)


def test_marked_neighbours_of_random_graphs_are_hypergeometric():
    n = 200
    terms = terms_of(n)
    marked = set(names(n)[:20])
    counts = [len(marked & set(Graph(names(n), terms, bytes([seed])).neighbours(names(n)[-1]))) for seed in range(200)]
    law = hypergeom(n - 1, 20, terms.degree)
    assert abs(np.mean(counts) - law.mean()) < 4 * law.std() / np.sqrt(200)
    assert 0.7 < np.std(counts) / law.std() < 1.3


def test_the_core_leaves_out_sites_whose_neighbours_are_gone_and_says_why_too_few_are_left():
    n = 300
    graph = Graph(names(n), terms_of(n), b"seed")
    lonely = names(n)[0]
    gone = set(graph.neighbours(lonely)[: graph.terms.degree + 2 - graph.terms.quorum])
    present = set(names(n)) - gone
    starved = graph.starved(present, present)
    assert starved[0] == lonely
    core = graph.core(present)
    assert core < present
    assert core.isdisjoint(starved)
    assert graph.starved(core, core) == []
    assert f"holders of the shares of {lonely!r} are left" in (graph.shortage(present) or "")
    assert graph.shortage(core, of=core) is None or "expected at least 270" in graph.shortage(core, of=core)
    assert graph.shortage(names(n)) is None
    assert graph.shortage(names(n)[:50]) == "got 50 sites, expected at least 270 of 300"


def test_where_everybody_is_a_neighbour_the_core_is_all_or_nobody():
    everybody = Graph(names(5), terms_of(5, 3), b"")
    assert everybody.core(names(2)) == frozenset()
    assert everybody.core(names(3)) == set(names(3))
