"""Cost of scoring a case, against MONAI's metrics on the whole scan; and the size of one evaluation's message.

    python benchmarks/evaluation.py                       # 512 x 512 x 32, spread and compact blood; half a minute
    python benchmarks/evaluation.py --repeats 1 --pixels 128 --json

Ours is ``evaluation.score`` (Dice, surface Dice, HD95, volume error, lesion F1, extent); MONAI's are
``compute_surface_dice`` and ``compute_hausdorff_distance`` on the same masks, uncropped. They take turns on one core; a
ratio is the median over the turns. Values must agree to 1e-6, or the benchmark ends with an error.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
from machine import machine
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray
from scipy import ndimage

from sahfl.config import EvaluationConfig
from sahfl.data.ct import Scan
from sahfl.evaluation import score
from sahfl.statistics.sums import array_length

SPACING_MM = (0.45, 0.45, 5.0)
TOLERANCE_MM = 2.0
BLOOD = {"spread": 0.9, "compact": 0.35}
"""Share of the head's width in which blood lies."""


def masks(pixels: int, slices: int, width: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two overlapping synthetic masks of many pieces, (pixels, pixels, slices)."""
    n = int(pixels * width / 2)
    start = (pixels - n) // 2
    field = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(n, n, slices)), (n / 20, n / 20, 2))
    found = []
    for shift in (0, max(1, n // 60)):
        mask = np.zeros((pixels, pixels, slices), bool)
        mask[start : start + n, start : start + n] = np.roll(field, shift, axis=0) > np.quantile(field, 0.97)
        found.append(mask)
    return found[0], found[1]


def monai_metrics(predicted: NDArray[np.bool_], annotated: NDArray[np.bool_]) -> tuple[float, float]:
    """MONAI's surface Dice and HD95 (mm) of the whole scan; masks (X, Y, Z)."""
    pair = [torch.from_numpy(mask)[None, None] for mask in (predicted, annotated)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6.1 uses an option that it deprecates
        dice = compute_surface_dice(*pair, [TOLERANCE_MM], include_background=True, spacing=SPACING_MM)
        distance = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=SPACING_MM)
    return float(dice), float(distance)


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(pixels: int, slices: int, repeats: int) -> list[dict[str, str | float]]:
    """Time both ways of scoring, with one row for each kind of blood."""
    rows: list[dict[str, str | float]] = []
    for name, width in BLOOD.items():
        predicted, annotated = masks(pixels, slices, width)
        scan = Scan(np.zeros((1, 1, 1), np.float32), annotated, np.diag([*SPACING_MM, 1.0]))
        result = score(predicted, scan, key="", tolerance_mm=TOLERANCE_MM)
        ours = result.surface_dice, result.hd95_mm
        if not np.allclose(np.array(ours, float), monai_metrics(predicted, annotated), rtol=1e-6):
            raise SystemExit(f"{name}: got {ours}, expected MONAI's {monai_metrics(predicted, annotated)}")
        mine = partial(score, predicted, scan, key="", tolerance_mm=TOLERANCE_MM)
        theirs = partial(monai_metrics, predicted, annotated)
        pairs = [(timed(mine), timed(theirs)) for _ in range(repeats)]
        times = {"ours_s": median(a for a, _ in pairs), "monai_s": median(b for _, b in pairs)}
        rows.append({"blood": name, "volume_ml": result.volume_ml, **times, "ratio": median(b / a for a, b in pairs)})
    return rows


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--slices", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.pixels, options.slices, options.repeats)
    sizes = {str(n): 8 * array_length(EvaluationConfig(replicates=n)) for n in (1000, 2000)}
    if options.json:
        print(json.dumps({"machine": machine(), "rows": rows, "bytes_by_replicates": sizes}, indent=1))
        return
    print(machine())
    for row in rows:
        shown = "blood {blood}, {volume_ml:.0f} mL: ours {ours_s:.3f} s, MONAI's {monai_s:.3f} s, ratio {ratio:.1f}"
        print(shown.format(**row))
    for n, size in sizes.items():
        print(f"one evaluation with {n} replicates, 3 strata and 3 groups of extent: {size:,} bytes")


if __name__ == "__main__":
    main()
