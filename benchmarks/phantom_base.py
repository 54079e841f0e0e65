"""The base network of ``base: phantom``: train it again, and compare its Dice with the interval on its card.

    python benchmarks/phantom_base.py [--out RUN]

It runs ``configs/phantom-base.yaml`` (an existing run is continued or read again) and prints the hash of the base
network that it trained, its Dice on the test sites, and the Dice that the card in ``sahfl/bases/phantom.md`` states.
Another machine gives another hash, because sums of float32 differ there; its Dice lies in the card's interval, or the
exit code is 3. ``--install`` makes the new network the one that comes with sahfl: a change that needs a new card.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from sahfl.adapters import digest
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.bases import PHANTOM
from sahfl.config import load_study
from sahfl.errors import SahflError
from sahfl.run.folder import RunFolder, base_file
from sahfl.simulation.simulate import simulate

STUDY = Path(__file__).parents[1] / "configs" / "phantom-base.yaml"
INTERVAL = re.compile(r"Dice of all blood, mean over patients: (\d\.\d+) \((\d\.\d+) to (\d\.\d+)\)")
"""The line of the card that this program compares with."""


def main() -> None:
    """Train, evaluate, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/phantom-base"), help="folder of the run")
    parser.add_argument("--install", action="store_true", help="write the network into the package")
    options = parser.parse_args()
    try:
        folder = RunFolder.reopen(options.out) if options.out.exists() else None
        folder = folder or RunFolder.create(options.out, load_study(STUDY))
        results = folder.read_json("results.json")
        if results is None:
            simulate(folder)
            results = folder.read_json("results.json")
    except SahflError as error:
        sys.exit(f"error: {error}")
    state, _ = load_tensors(folder.path / base_file())
    (zero_shot,) = results["methods"]
    dice = zero_shot["metrics"]["dice"]["overall"]
    print(f"hash of the tensors: {digest(state)}")
    print(f"Dice of all blood, mean over patients: {dice['mean']:.3f} ({dice['low']:.3f} to {dice['high']:.3f})")
    if options.install:
        save_tensors(PHANTOM, state, {"sha256": digest(state)})
        print(f"{PHANTOM}: written; change PHANTOM_SHA256 and the card beside it")
        return
    stated = INTERVAL.search(PHANTOM.with_suffix(".md").read_text(encoding="utf-8"))
    assert stated is not None, "the card has no line with the Dice"
    low, high = float(stated[2]), float(stated[3])
    reached = low <= dice["mean"] <= high
    print(f"the card's interval, {low:.3f} to {high:.3f}, is {'reached' if reached else 'NOT reached'}")
    sys.exit(0 if reached else 3)


if __name__ == "__main__":
    main()
