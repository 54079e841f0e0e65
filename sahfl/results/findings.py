"""Findings: the questions of the reproduced paper and of federated training, answered by the verdicts of comparisons.

A finding has a claim, which is *better* or *not worse*, and all comparisons of the study that test it: every rank and
every setting, not only the best one. Each comparison has a verdict (``verdicts``).

The finding's verdict is that of the comparison with the weakest support, in this order: *worse*, *one training: no
verdict*, *undecided*, *not worse*, *better*. It is *not tested* if the study has no comparison for it. A claim of
*better* is supported if all comparisons are *better*. A claim of *not worse* is supported if all are *not worse* or
*better*. Any *worse* contradicts both, and the claim about CP-LoRA is also contradicted by too many parameters.

``paper`` contains what the paper's abstract states about the question, or None where it states nothing. It states that
adapters are better than standard fine-tuning, so that *not worse* does not confirm it. Only of CP-LoRA it states
equality ("comparable"), of which *not worse* tests one side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sahfl.adapters.methods import ADAPTERS
from sahfl.config import POOLED, POOLED_STEPS
from sahfl.config.grid import EACH, FROM_EACH, OTHERS
from sahfl.results.evidence import Evidence, Pair
from sahfl.results.verdicts import BETTER, NOT_TESTED, NOT_WORSE, ONE_TRAINING, UNDECIDED, WORSE, Row

SHARE = 1 / 3
"""Largest share of convLoRA's parameters that CP-LoRA may have."""
CP_LORA = ADAPTERS["cp_lora"]
WEAKEST_FIRST = (WORSE, ONE_TRAINING, UNDECIDED, NOT_WORSE, BETTER)
"""Verdicts of comparisons, from the weakest support of a claim to the strongest."""


@dataclass(frozen=True)
class Claim:
    """What a finding tests."""

    id: str
    text: str
    wanted: str
    """*better* or *not worse*."""
    pairs: Callable[[Evidence], list[Pair]]
    paper: str | None = None
    """What the paper's abstract states; None if it states nothing."""


def judge(methods: Sequence[Row], comparisons: Iterable[Row]) -> list[dict[str, Any]]:
    """The findings, as written to ``results.json``, from its corrected methods and comparisons.

    Each has id, claim, wanted, paper, verdict, supported (true, false, or None if nothing is decided), text, all pairs,
    and difference, low, high and n of the pair with the weakest support.
    """
    evidence = Evidence(methods, list(comparisons))
    return [_finding(claim, claim.pairs(evidence)) for claim in CLAIMS]


def _finding(claim: Claim, pairs: Sequence[Pair]) -> dict[str, Any]:
    found: dict[str, Any] = {"id": claim.id, "claim": claim.text, "wanted": claim.wanted, "paper": claim.paper}
    if not pairs:
        nothing = {"difference": None, "low": None, "high": None, "n": None}
        text = "The study has no methods for this claim."
        return found | {"verdict": NOT_TESTED, "supported": None, "text": text, "pairs": []} | nothing
    least = min(pairs, key=_support)
    numbers = {key: least.gap[key] for key in ("difference", "low", "high", "n")}
    found |= {"verdict": least.verdict, "supported": _supported(claim, pairs), "text": _text(claim, pairs, least)}
    return found | {"pairs": [pair.row() for pair in pairs]} | numbers


def _supported(claim: Claim, pairs: Sequence[Pair]) -> bool | None:
    if any(pair.against or pair.verdict == WORSE for pair in pairs):
        return False
    return True if all(_supports(claim, pair) for pair in pairs) else None


def _supports(claim: Claim, pair: Pair) -> bool:
    enough = (BETTER,) if claim.wanted == BETTER else (BETTER, NOT_WORSE)
    return pair.verdict in enough and not pair.against


def _support(pair: Pair) -> tuple[bool, int, bool, float]:
    """Sort key, lowest for the weakest support."""
    low = pair.gap["low"]
    return not pair.against, WEAKEST_FIRST.index(pair.verdict), low is not None, 0.0 if low is None else low


def _text(claim: Claim, pairs: Sequence[Pair], least: Pair) -> str:
    if len(pairs) == 1:
        return f"Difference of Dice: {least}."
    n = Counter(pair.verdict for pair in pairs)
    words = {verdict: verdict for verdict in reversed(WEAKEST_FIRST)} | {ONE_TRAINING: "with one training"}
    counts = ", ".join(f"{n[verdict]} {word}" for verdict, word in words.items() if n[verdict])
    support = sum(_supports(claim, pair) for pair in pairs)
    worse = [str(pair) for pair in pairs if (pair.verdict == WORSE or pair.against) and pair is not least]
    rest = f" Also against the claim: {'; '.join(worse)}." if worse else ""
    weakest = f"The comparison with the weakest support: {least}."
    verb = "supports" if support == 1 else "support"
    return f"{support} of {len(pairs)} comparisons {verb} the claim ({counts}). {weakest}{rest}"


# ------------------------------------------------------------------------------------------------------------- pairs


def _fine_tuning(evidence: Evidence) -> list[Pair]:
    return [pair for row in evidence.federated() for pair in evidence.pair(row["id"], "zero_shot")]


def _adapters(evidence: Evidence) -> list[Pair]:
    return [pair for row in evidence.whole(adapters=True) for pair in evidence.pair(row["id"], "full")]


def _parts(evidence: Evidence) -> list[Pair]:
    rows = [row for row in evidence.whole(adapters=False) if row["method"] != "full"]
    return [pair for row in rows for pair in evidence.pair(row["id"], "full")]


def _pretraining(evidence: Evidence) -> list[Pair]:
    scratch = [row for row in evidence.methods if row["trained_at"] is None and row["start"] == "scratch"]
    pairs = [(row["id"], other["id"]) for row in evidence.whole() for other in scratch]
    return [pair for ids in pairs for pair in evidence.pair(*ids)]


def _growth(evidence: Evidence) -> list[Pair]:
    rows = [row for row in evidence.methods if row["method"] == "zero_shot"] + evidence.federated()
    return [
        Pair(f"{row['id']}, {growth['stratum']} against {growth['reference']}", growth, growth["verdict"])
        for row in rows
        if (growth := row["growth"]) is not None
    ]


def _cp_lora(evidence: Evidence) -> list[Pair]:
    trainable = {row["id"]: row["trainable"] for row in evidence.methods}
    pairs = []
    for row in evidence.federated():
        if row["method"] != CP_LORA.name or (other := CP_LORA.counterpart(row["id"])) is None:
            continue
        share = row["trainable"] / trainable[other] if trainable.get(other) else None
        too_many = f"it has {share:.0%} of the parameters" if share is not None and share > SHARE else ""
        pairs += evidence.pair(row["id"], other, too_many)
    return pairs


def _ranks(evidence: Evidence) -> list[Pair]:
    rows = evidence.federated(adapters=True)
    pairs = [(row["id"], other["id"]) for row in rows for other in rows if row["rank"] > other["rank"]]
    return [pair for ids in pairs for pair in evidence.pair(*ids)]


def _against_place(place: str) -> Callable[[Evidence], list[Pair]]:
    def pairs(evidence: Evidence) -> list[Pair]:
        ids = [
            (row["id"], f"{id_}-{place}") for row in evidence.federated() for id_ in (row["id"], row["plain"]) if id_
        ]
        return [pair for names in ids for pair in evidence.pair(*names)]

    return pairs


def _own_part(evidence: Evidence) -> list[Pair]:
    rows = [row for row in evidence.federated() if row["part"] == "personal" and row["plain"] is not None]
    return [pair for row in rows for pair in evidence.pair(row["id"], row["plain"])]


def _new_hospital(evidence: Evidence) -> list[Pair]:
    rows = [row for row in evidence.methods if row["trained_at"] == OTHERS]
    return [pair for row in rows for pair in evidence.pair(row["id"], "zero_shot")]


def _federated_base(evidence: Evidence) -> list[Pair]:
    rows = [row for row in evidence.methods if row["trained_at"] == FROM_EACH]
    pairs = [evidence.pair(row["id"].replace(f"-{FROM_EACH}", ""), row["id"]) for row in rows]
    return [pair for found in pairs for pair in found]


CLAIMS = (
    Claim(
        id="fine_tuning",
        text="Fine-tuning is better than zero-shot.",
        wanted=BETTER,
        paper="fine-tuning is above zero-shot",
        pairs=_fine_tuning,
    ),
    Claim(
        id="adapters",
        text="The LoRA family is better than full fine-tuning.",
        wanted=BETTER,
        paper="the LoRA family is above standard fine-tuning",
        pairs=_adapters,
    ),
    Claim(
        id="parts",
        text="Fine-tuning one part of the network is not worse than full fine-tuning.",
        wanted=NOT_WORSE,
        pairs=_parts,
    ),
    Claim(
        id="pretraining",
        text="Fine-tuning the pretrained network is better than training from scratch.",
        wanted=BETTER,
        pairs=_pretraining,
    ),
    Claim(
        id="federated_base",
        text="The base of all trauma centres together is better than the base of one, before and after fine-tuning.",
        wanted=BETTER,
        pairs=_federated_base,
    ),
    Claim(
        id="volume",
        text="Dice is better for the largest hemorrhages than for the smallest.",
        wanted=BETTER,
        paper="all methods are better on larger volumes",
        pairs=_growth,
    ),
    Claim(
        id="cp_lora",
        text="CP-LoRA is not worse than convLoRA of the same rank, with a third of its parameters or less.",
        wanted=NOT_WORSE,
        paper="CP-LoRA is comparable with far fewer parameters",
        pairs=_cp_lora,
    ),
    Claim(
        id="ranks",
        text="Higher ranks are better than the lowest.",
        wanted=BETTER,
        paper="higher ranks are better",
        pairs=_ranks,
    ),
    Claim(
        id="pooled",
        text="Federated training is not worse than training on pooled data.",
        wanted=NOT_WORSE,
        pairs=_against_place(POOLED),
    ),
    Claim(
        id="pooled_steps",
        text="Federated training is not worse than training on pooled data in as many consecutive steps as one site's.",
        wanted=NOT_WORSE,
        pairs=_against_place(POOLED_STEPS),
    ),
    Claim(
        id="single_site",
        text="Federated training is better than training at single sites.",
        wanted=BETTER,
        pairs=_against_place(EACH),
    ),
    Claim(
        id="own_part",
        text="A part of its own at each site is better than none.",
        wanted=BETTER,
        pairs=_own_part,
    ),
    Claim(
        id="new_hospital",
        text="At a hospital that took no part, the federation's network is better than zero-shot.",
        wanted=BETTER,
        pairs=_new_hospital,
    ),
    Claim(
        id="taking_part",
        text="A hospital's own part in the training makes the network better there.",
        wanted=BETTER,
        pairs=_against_place(OTHERS),
    ),
)
"""The claims, in the order of the report."""
