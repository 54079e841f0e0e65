"""What the server and colluding sites see depends on the others' vectors through their sum only.

In a ring of four numbers, the stream of ChaCha20 is replaced by every possible choice of the masks that the server and
the colluding sites cannot compute. The seeds, and who adds and who subtracts, are those of the real sites.
"""

from collections import Counter
from functools import partial
from itertools import combinations, product

import numpy as np
import pytest
from harness.masked_round import NAMES, Round

from sahfl.masking import party as party_module
from sahfl.masking.masks import add_mask

RING = 4


@pytest.fixture(scope="module")
def masks_of():
    """For each site, the seeds of its masks, and whether it subtracts them."""
    found = {site: [] for site in NAMES}
    there = Round(restarts=False).until("share")
    with pytest.MonkeyPatch.context() as patch:
        for site, delivery in there.deliveries.items():
            patch.setattr(
                party_module,
                "add_mask",
                lambda vector, seed, *, subtract=False, site=site: found[site].append((seed, subtract)),
            )
            there.parties[site].mask(np.zeros(1, np.uint16), delivery.received, delivery.sharers)
    return found


def test_each_two_sites_have_one_seed_in_common_that_one_adds_and_the_other_subtracts(masks_of):
    for one, other in combinations(NAMES, 2):
        common = {seed for seed, _ in masks_of[one]} & {seed for seed, _ in masks_of[other]}
        assert len(common) == 1
        signs = [subtract for site in (one, other) for seed, subtract in masks_of[site] if seed in common]
        assert sorted(signs) == [False, True]
    assert all(len(masks_of[site]) == len(NAMES) for site in NAMES)


def views(masks_of, vectors, closed):
    """How often the masked vectors of some sites look in some way, over all masks of the seeds in ``closed``."""
    seen = Counter()
    for drawn in product(range(RING), repeat=len(closed)):
        table = dict(zip(closed, drawn, strict=True))
        view = []
        for site, number in vectors.items():
            vector = np.array([number], np.uint16)
            for seed, subtract in masks_of[site]:
                add_mask(vector, seed, subtract=subtract, stream=partial(_stream, table))
            view.append(int(vector[0]) % RING)
        seen[tuple(view)] += 1
    return seen


def _stream(table, seed):
    number = table.get(seed, seed[0])  # an open mask is any number, the same each time
    return lambda n_bytes: number.to_bytes(n_bytes, "little")


def common_seeds(masks_of, sites):
    return [
        next(seed for seed, _ in masks_of[one] if seed in {other_seed for other_seed, _ in masks_of[other]})
        for one, other in combinations(sites, 2)
    ]


@pytest.mark.parametrize("open_sites", list(combinations(NAMES, 2)), ids="-".join)
def test_masked_vectors_are_equally_likely_for_all_vectors_with_one_sum_whichever_two_sites_collude_or_dropped_out(
    masks_of, open_sites
):
    """The masks of the two are known to the server, and the self masks of the others: their shares were revealed."""
    honest = [site for site in NAMES if site not in open_sites]
    closed = common_seeds(masks_of, honest)

    def view(*numbers):
        return views(masks_of, dict(zip(honest, numbers, strict=True)), closed)

    assert view(1, 2, 3) == view(3, 3, 0) == view(0, 0, 2)
    assert view(1, 2, 3).keys().isdisjoint(view(1, 2, 2).keys())


def test_a_vector_whose_self_mask_stays_closed_is_equally_likely_to_look_like_anything(masks_of):
    """As of a site that dropped out of the sum, whose vector came late: the mask key is known, the self mask is not."""
    own = [masks_of["bern"][0][0]]
    for number in range(RING):
        assert views(masks_of, {"bern": number}, own) == Counter({(seen,): 1 for seen in range(RING)})


def test_of_two_honest_sites_among_colluding_ones_only_the_sum_of_the_two_is_seen(masks_of):
    closed = common_seeds(masks_of, ["bern", "graz"])
    assert views(masks_of, {"bern": 1, "graz": 2}, closed) == views(masks_of, {"bern": 3, "graz": 0}, closed)
    assert views(masks_of, {"bern": 1, "graz": 2}, closed) != views(masks_of, {"bern": 1, "graz": 1}, closed)
