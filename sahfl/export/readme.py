"""``README.md`` of a bundle or an ONNX folder: how to run it, and each step from the scan to the mask in numbers."""

from __future__ import annotations

from collections.abc import Sequence

from sahfl.data.ct import AIR_HU, HEAD_HU
from sahfl.data.views import BONE_HU, BONE_MM2, MIN_SLICES
from sahfl.export.alone import channel_names
from sahfl.export.merged import Merged

RUN_ONNX = """
    pip install onnxruntime numpy nibabel
    python predict.py scan.nii.gz mask.nii.gz

`predict.py` is the whole way from a scan to its mask; `head_ct.py` resamples, cuts and fuses, with numpy alone.

The input `slices_hu` of an ONNX file is float32 (batch, {slabs}, height, width) in HU; height and width are multiples
of 16. Its output `logits` is (batch, 1, height, width). The file applies the HU windows itself, so that their order
cannot be confused."""
RUN_BUNDLE = """
    pip install monai nibabel safetensors
    python -c "from monai.bundle import run; run(config_file='configs/inference.json', \\
        scan='scan.nii.gz', mask='mask.nii.gz')"

MONAI's own command does the same, but needs one more package, `pip install fire`:

    python -m monai.bundle run --config_file configs/inference.json --scan scan.nii.gz --mask mask.nii.gz

`scripts/predict.py` is the whole way from a scan to its mask; `scripts/head_ct.py` resamples, cuts and fuses, and
`scripts/{network}` is the network. From Python, in this folder, the network with the weights of the first file:

    from monai.bundle import ConfigParser
    parser = ConfigParser()
    parser.read_config("configs/inference.json")
    net = parser.get_parsed_content("network")

The network takes float32 (batch, {channels}, height, width); height and width are multiples of 16. It returns logits
(batch, 1, height, width). `monai.bundle.load` reads pickled weights only; these are safetensors."""
PARTS = {
    "whole": "",
    "shared": "\nA part of this method stays at each hospital. These networks have none of it.\n",
    "mean": "\nA part of this method stays at each hospital. These networks have its mean over the hospitals.\n",
    "site": "\nThese networks were trained on the patients of one hospital, too.\n",
}


def instructions(merged: Sequence[Merged], *, run: str) -> str:
    """The file's content. ``run`` is the section about running the export."""
    first = merged[0]
    note, views = first.note, first.note.views
    x, y, z = views.size
    listed = "\n".join(f"   - {number}: {name}" for number, name in enumerate(channel_names(first)))
    numbers = [str(one.note.fold) for one in merged if one.note.fold is not None]
    origin = f"study {note.study}, method {note.method}, {_folds(numbers)}"
    around = f"with its {views.neighbours} neighbours on each side" if views.neighbours else "without neighbours"
    weights = ", ".join(f"{view} {weight:g}" for view, weight in views.weights.items())
    mm = f"{views.spacing_mm:g} mm"
    return f"""# Segmentation of intracranial hemorrhage on head CT

{note.intended_use}

Origin: {origin}. sahfl trained the networks; nothing here needs sahfl.
{PARTS[note.part]}
## Run
{run}

## From the scan to the mask

`preprocessing.json` has the same numbers for programs.

1. **Scan.** A NIfTI file of a head CT in Hounsfield units, air and bone included. Its axes are turned to RAS+:
   x from left to right, y from back to front, z from foot to head.
2. **Resampling.** Each axial slice is resampled to pixels of {mm}, bilinear with antialiasing: a triangle filter,
   which widens when the slice shrinks. The new number of pixels is the old one times the old spacing, divided by
   {mm} and rounded. The outer edges of the slice stay (`align_corners=False`). The slices stay where they are.
3. **Field.** {x} x {y} pixels around the middle of the box of all pixels above {HEAD_HU:g} HU; pixels outside the scan
   are {AIR_HU:g} HU. Values are rounded to whole HU.
4. **Slices.** Axial: (x, y), {x} x {y}. For the other views, the field is resampled along z to {mm} in the same way,
   and {z} slices are cut out: the middle, or, of a higher scan, the middle of the slices with at least
   {BONE_MM2:g} mm2 above {BONE_HU:g} HU; if these do not fit either, the {z} slices below the top of the head.
   Values are rounded again. Coronal: (x, z), {x} x {z}. Sagittal: (y, z), {y} x {z}. The first of the two axes is the
   height of a picture. A scan of fewer than {MIN_SLICES} slices has the axial view alone.
5. **Channels.** Each slice goes in {around}; the first and the last slice of a stack are repeated. A window
   (low, high) maps HU to (HU - low) / (high - low), clipped to 0..1. The order:
{listed}
6. **Network.** It returns logits; the probability is 1 / (1 + exp(-logit)). Slices without a pixel above {HEAD_HU:g} HU
   have probability 0.
7. **Folds.** In each view, the mean of the folds' probabilities.
8. **Views.** The views' volumes are put back on the scan's own slices (linear interpolation along z), then averaged
   with the weights {weights}; each axial slice is divided by the weights of the views that show it.
9. **Mask.** The mean is resampled to the scan's own pixels, 0 outside the field. A voxel is blood if it is at least
   {note.threshold:g}. The mask has the scan's own order of axes and its affine.

All folds together have seen every patient of the study. On a patient of the study, only the fold that held this patient
out gives an honest result.
"""


def _folds(numbers: Sequence[str]) -> str:
    if not numbers:
        return "the base network alone"
    return f"fold{'s' * (len(numbers) > 1)} {', '.join(numbers)}"
