"""Cost of secure aggregation: seconds and bytes of a masked round at a site and at the server, beside SecAgg+.

    python benchmarks/masking.py                       # 20 sites, then 1000 sites; about two minutes on one core
    python benchmarks/masking.py --many 0 --json       # without the many sites, for machines

A round has the vector of CP-LoRA at rank 8 on the study's own network (56 128 numbers, as ``aggregation_cost.py``
counts them) in a ring of 32 bits. Sites sign with the keys of their kits, and verify each other's certificates, with
the functions of a deployment. Time is processor time of one core. At ``--many`` sites, three sites verify all
signatures; of the others only the work that the server needs is done. Bytes are those of keys, signatures with
certificates (compressed as in the messages), sealed shares, names and numbers, without headers; the plain round sends
the state to the site and the update back, in float32.

Flower's row are the primitives of ``flwr.common.secure_aggregation``, called as its ``secaggplus_mod`` calls them.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from sahfl.federation import masked_messages, masked_signatures, masked_terms
from sahfl.masking.collector import Collector
from sahfl.masking.context import Context
from sahfl.masking.masks import add_mask
from sahfl.masking.party import Party
from sahfl.masking.ring import FixedPoint
from sahfl.masking.site_list import SignedAdvert

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from harness.trust_kits import make_consortium

NUMBERS = 56_128
AIM_S, AIM_BYTES, AIM_MANY_S = 1.0, 1.1, 10.0
SECRET = b"benchmark".ljust(32)
CONTEXT = Context("f" * 64, "cp_lora-r8", 1, "training")
VERIFIERS = 3
"""Sites that verify everything, of many."""


@dataclass
class Meter:
    """Processor seconds and bytes of one side."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    n_bytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def time(self, step: str, run: Callable[[], Any]) -> Any:
        """Run, and add the seconds to a step."""
        began = time.process_time()
        found = run()
        self.seconds[step] += time.process_time() - began
        return found


@dataclass(frozen=True)
class Row:
    """One round."""

    sites: int
    neighbours: int
    threshold: int
    dropped: int
    site_s: float
    server_s: float
    up: float
    """Bytes that a site sends, times those of the plain round."""
    down: float
    site_steps_s: dict[str, float]
    server_steps_s: dict[str, float]
    is_right: bool


def main() -> None:
    """Measure and print."""
    options = parse()
    vector_ms = min(masks_ms() for _ in range(5))
    rows = [measure(options.sites, dropped, options.numbers) for dropped in (0, options.sites // 4)]
    if options.many:
        rows.append(measure(options.many, options.many // 20, options.numbers))
    result = {
        "machine": machine(),
        "masks_9_x_120000_ms": vector_ms,
        "rows": [asdict(row) for row in rows],
        "flower": flower(options.sites, options.numbers),
        "aims": {"seconds": AIM_S, "bytes": AIM_BYTES, "many_seconds": AIM_MANY_S},
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['machine']}\n9 masks of 120000 numbers: {vector_ms:.1f} ms\n")
    for row in rows:
        print(
            f"{row.sites:5} sites, {row.neighbours:3} neighbours, t = {row.threshold:3}, {row.dropped:2} drop out: "
            f"a site {row.site_s:.3f} s, server {row.server_s:.3f} s, up x {row.up:.3f}, down x {row.down:.3f}, "
            + ("right" if row.is_right else "WRONG")
        )
        for side, steps in (("a site", row.site_steps_s), ("server", row.server_steps_s)):
            print(f"      {side}: " + ", ".join(f"{step} {seconds:.3f} s" for step, seconds in steps.items()))
    print("\nFlower's SecAgg+, " + ", ".join(f"{name} {value:.3f}" for name, value in result["flower"].items()))


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=20, help="(default 20)")
    parser.add_argument("--many", type=int, default=1000, help="sites of the sparse graph; 0 for none (default 1000)")
    parser.add_argument("--numbers", type=int, default=NUMBERS, help=f"(default {NUMBERS})")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def masks_ms() -> float:
    """Milliseconds for nine masks of 120 000 numbers."""
    vector, began = np.zeros(120_000, np.uint32), time.process_time()
    for number in range(9):
        add_mask(vector, bytes([number]) * 32, subtract=bool(number % 2))
    return 1e3 * (time.process_time() - began)


class Signers:
    """The kits of all sites."""

    def __init__(self, names: list[str], folder: Path) -> None:
        self.kits = make_consortium(folder, sites=names).sites
        self.kit = self.kits[names[0]]

    def sign(self, site: str, document: bytes) -> bytes:
        """Sign as a site."""
        return masked_signatures.signature(self.kits[site], document)

    def verify(self, site: str, document: bytes, signature: bytes) -> bool:
        """Verify as a site."""
        return masked_signatures.key_by_site(self.kit, site, document, signature) is not None

    def compare(self, site: str, document: bytes, signature: bytes) -> bool:
        """Verify as the server."""
        return masked_signatures.is_consistent(0, site, document, signature)


class Trial:
    """One round; the sites that drop out do so after they shared."""

    def __init__(self, n_sites: int, n_dropped: int, numbers: int, folder: Path) -> None:
        names = [f"site{index:04d}" for index in range(n_sites)]
        every = max(1, n_sites // n_dropped) if n_dropped else n_sites + 1
        dropped = set(names[1::every][:n_dropped])
        self.staying = [name for name in names if name not in dropped]
        self.timed = self.staying if n_sites <= 100 else self.staying[:: len(self.staying) // VERIFIERS][:VERIFIERS]
        self.signers, self.numbers = Signers(names, folder), numbers
        self.sites, self.server = {name: Meter() for name in names}, Meter()
        self.parties = {name: Party(CONTEXT, name, secret=SECRET[:28] + name[-4:].encode()) for name in names}
        self.collector = Collector(CONTEXT, self.signers.compare, length=numbers, bits=32)
        self.plain = np.zeros(numbers, np.uint32)

    def verifier(self, site: str) -> Callable[[str, bytes, bytes], bool]:
        """What a site verifies with."""
        return self.signers.verify if site in self.timed else lambda *_: True

    def until_shares(self) -> None:
        """Steps 1 and 2."""
        for name, party in self.parties.items():
            site, advert = self.sites[name], self.sites[name].time("advertise", party.advertise)
            document = advert.document(CONTEXT)
            signature = site.time("advertise", lambda name=name, text=document: self.signers.sign(name, text))
            self.server.time("list", lambda a=advert, s=signature: self.collector.advertised(SignedAdvert(a, s)))
            site.n_bytes["up"] += len(advert.fields()) + len(signature)
        listed = self.server.time("list", self.collector.list_sites)
        of_list = sum(len(entry.advert.fields()) for entry in listed)
        of_list += compressed(entry.signature for entry in listed)
        for name, party in self.parties.items():
            shares = self.sites[name].time("share", lambda p=party, n=name: p.share(listed, self.verifier(n)))
            self.server.time("deliver", lambda n=name, s=shares: self.collector.shared(n, s))
            self.sites[name].n_bytes["up"] += 32 + sum(len(to) + len(text) for to, text in shares.sealed.items())
            self.sites[name].n_bytes["down"] += of_list

    def mask(self) -> None:
        """Step 3."""
        n_sites = len(self.parties)
        form, rng = FixedPoint(32, bound=1.0, n_sites=n_sites), np.random.default_rng(0)
        deliveries = self.server.time("deliver", self.collector.deliver)
        for name in self.staying:
            site, party, sent = self.sites[name], self.parties[name], deliveries[name]
            vector = form.encode(rng.uniform(-1, 1, self.numbers).astype(np.float32), weight=1 / n_sites)
            self.plain += vector
            masked = site.time("mask", lambda p=party, v=vector, d=sent: p.mask(v, d.received, d.sharers))
            self.server.time("sum", lambda n=name, m=masked: self.collector.masked(n, m))
            site.n_bytes["up"] += masked.nbytes
            site.n_bytes["down"] += sum(len(of) + len(text) for of, text in sent.received.items())
            site.n_bytes["down"] += -(-n_sites // 8)  # who shared, a bit for each site of the list

    def unmask(self) -> bool:
        """Steps 4 and 5; whether the sum is right."""
        survivors = self.server.time("sum", self.collector.survivors)
        for name in survivors:
            site = self.sites[name]
            document = site.time("confirm", lambda p=self.parties[name]: p.confirm(survivors))
            signature = site.time("confirm", lambda n=name, d=document: self.signers.sign(n, d))
            self.server.time("confirm", lambda n=name, s=signature: self.collector.confirmed(n, s))
            site.n_bytes["up"] += len(signature)
            site.n_bytes["down"] += -(-len(self.parties) // 8)
        signed = self.collector.confirmations()
        of_signed = compressed(signed.values())
        for name in survivors:
            site, party = self.sites[name], self.parties[name]
            shares = site.time("reveal", lambda p=party, n=name: p.reveal(survivors, signed, self.verifier(n)))
            self.server.time("unmask", lambda n=name, s=shares: self.collector.revealed(n, s))
            site.n_bytes["up"] += sum(len(share) for share in shares.values())
            site.n_bytes["down"] += of_signed
        found = self.server.time("unmask", self.collector.total)
        return bool(np.array_equal(found.numbers, self.plain))


def compressed(signatures: Iterable[bytes]) -> int:
    """Bytes of signatures in a message."""
    signed = {f"{index}": signature for index, signature in enumerate(signatures)}
    record = masked_messages.survivors_record(masked_terms.Terms(1, {}, ""), (), signed)
    found = record["signatures"]
    assert isinstance(found, bytes)
    return len(found)


def measure(n_sites: int, n_dropped: int, numbers: int) -> Row:
    """Run one round: the median of the sites that are timed, and the server's sum."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(n_sites, n_dropped, numbers, Path(folder) / "consortium")
        trial.until_shares()
        trial.mask()
        is_right, terms = trial.unmask(), trial.collector._list().terms
    sites, plain = [trial.sites[name] for name in trial.timed], 4 * numbers
    steps = {step: statistics.median(site.seconds[step] for site in sites) for step in sites[0].seconds}
    up, down = (statistics.median(site.n_bytes[way] for site in sites) for way in ("up", "down"))
    return Row(
        n_sites,
        terms.degree,
        terms.threshold,
        n_dropped,
        sum(steps.values()),
        sum(trial.server.seconds.values()),
        up / plain,
        (down + plain) / plain,
        steps,
        dict(trial.server.seconds),
        is_right,
    )


def flower(n_sites: int, numbers: int) -> dict[str, float]:
    """Flower's primitives: seconds of a client and of the server, bytes up, and whether two seeds give one mask."""
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
    from flwr.common.secure_aggregation.quantization import quantize
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
    from flwr.supercore.primitives.asymmetric import generate_key_pairs, private_key_to_bytes

    vector = [np.random.default_rng(0).uniform(-1, 1, numbers).astype(np.float32)]
    threshold, peers = -(-2 * n_sites // 3), [generate_key_pairs()[1] for _ in range(n_sites - 1)]
    began = time.process_time()
    (mask_key, _), (share_key, _) = generate_key_pairs(), generate_key_pairs()
    shares = [create_shares(secret, threshold, n_sites) for secret in (SECRET, private_key_to_bytes(mask_key))]
    for index, peer in enumerate(peers):
        encrypt(generate_shared_key(share_key, peer), shares[0][index] + shares[1][index])
    masked = quantize(vector, 8.0, 2**22)
    masked = [part + pseudo_rand_gen(SECRET, 2**32, [part.shape])[0] for part in masked]
    for peer in peers:
        seed = generate_shared_key(mask_key, peer)
        masked = [part + pseudo_rand_gen(seed, 2**32, [part.shape])[0] for part in masked]
    masked = [part & (2**32 - 1) for part in masked]
    client = time.process_time() - began
    began = time.process_time()
    for _ in range(n_sites):
        seed = combine_shares(shares[0][:threshold])
        masked = [part - pseudo_rand_gen(seed, 2**32, [part.shape])[0] for part in masked]
    server = time.process_time() - began
    other = SECRET[4:8] + SECRET[:4] + SECRET[8:]  # other bytes, folded to the same 32 bits
    one, two = (pseudo_rand_gen(seed, 2**32, [(numbers,)])[0] for seed in (SECRET, other))
    same = float(other != SECRET and np.array_equal(one, two))
    return {
        "client s": client,
        "server s": server,
        "up x": masked[0].nbytes / (4 * numbers),
        "one mask of two seeds": same,
    }


if __name__ == "__main__":
    main()
