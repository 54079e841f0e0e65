"""Networks as a MONAI bundle that runs without sahfl: MONAI builds the network, scripts do the rest; no pickles.

``python -m monai.bundle run`` reads it without a network connection. The function ``monai.bundle.load`` cannot read it,
because it reads only pickles (``torch.load``).

Source: https://docs.monai.io/en/stable/mb_specification.html
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from sahfl import __version__
from sahfl.atomic import write_atomic
from sahfl.config import View
from sahfl.config.network import NETWORKS
from sahfl.data.views import n_channels
from sahfl.export.alone import PREPROCESSING, README, SCAN_SCRIPT, channel_names, preprocessing, script
from sahfl.export.merged import Merged
from sahfl.export.parity import Computes
from sahfl.export.readme import RUN_BUNDLE, instructions
from sahfl.export.scripts.head_ct import windows
from sahfl.model import PlainNetwork
from sahfl.regular_files import LIST_BYTES, TENSORS_BYTES, read_bytes, read_text

CONFIGS, MODELS, SCRIPTS, ENDING = Path("configs"), "models/", Path("scripts"), ".safetensors"
INFERENCE = CONFIGS / "inference.json"


def write_bundle(folder: Path, merged: Sequence[Merged]) -> None:
    """Write a bundle of the networks of all folds.

    Raises:
        ConfigError: this kind of network does not work without sahfl.
    """
    first = merged[0]
    plain = first.plain.plain(next(iter(first.note.views.weights)))
    source = _source(plain)
    for one in merged:
        for stem, view in one.views_by_stem().items():
            weights = {name: value.contiguous() for name, value in one.plain.plain(view).module.state_dict().items()}
            write_atomic(folder / f"{MODELS}{stem}{ENDING}", save(weights))
    write_atomic(folder / SCRIPTS / "__init__.py", "")
    write_atomic(folder / SCRIPTS / source.name, read_text(source, most=LIST_BYTES))
    write_atomic(folder / SCRIPTS / SCAN_SCRIPT, script(SCAN_SCRIPT))
    write_atomic(folder / SCRIPTS / "predict.py", script("predict_bundle.py", package=SCRIPTS.name))
    write_atomic(folder / CONFIGS / PREPROCESSING, preprocessing(merged, folder=MODELS, ending=ENDING))
    for name, content in (("inference", _inference(first, plain)), ("metadata", _metadata(merged))):
        write_atomic(folder / CONFIGS / f"{name}.json", json.dumps(content, indent=2) + "\n")
    run = RUN_BUNDLE.format(network=source.name, channels=n_channels(first.note.views))
    write_atomic(folder / README, instructions(merged, run=run))


def read_bundle(folder: Path, one: Merged) -> Computes:
    """The networks of one fold, from the bundle's files."""
    nets: dict[str, nn.Module] = {}
    for stem, view in one.views_by_stem().items():
        plain = one.plain.plain(view)
        nets[stem] = type(plain.module)(**plain.arguments).eval()
        nets[stem].load_state_dict(load(read_bytes(folder / f"{MODELS}{stem}{ENDING}", most=TENSORS_BYTES)))
    windows_hu = [list(window) for window in one.note.views.windows_hu]

    def compute(slabs: Tensor, view: View) -> Tensor:
        return nets[one.stem(view)](torch.from_numpy(windows(slabs.numpy(), windows_hu)))

    return compute


def _source(plain: PlainNetwork) -> Path:
    """The file of the network's class, of which the bundle has a copy."""
    return Path(inspect.getfile(type(plain.module)))


def _inference(first: Merged, plain: PlainNetwork) -> dict[str, Any]:
    target = f"{SCRIPTS}.{_source(plain).stem}.{type(plain.module).__qualname__}"
    weights = f"{MODELS}{first.stem(next(iter(first.note.views.weights)))}{ENDING}"
    return {
        "imports": ["$from safetensors.torch import load_file", "$from scripts.predict import predict"],
        "bundle_root": ".",
        "scan": "scan.nii.gz",
        "mask": "mask.nii.gz",
        "device": "cpu",
        "network_def": {"_target_": target, **plain.arguments},
        "weights": f"$load_file(@bundle_root + '/{weights}')",
        "network": "$(@network_def.load_state_dict(@weights), @network_def.eval().to(@device))[1]",
        "volume_ml": "$predict(@scan, @mask, @network, @bundle_root)",
        "run": ["$print('%.2f mL of blood; for research use only, not a medical device' % @volume_ml)"],
    }


def _metadata(merged: Sequence[Merged]) -> dict[str, Any]:
    note, first = merged[0].note, merged[0]
    views, kind = note.views, NETWORKS[note.model.size].description
    folds = ", ".join(str(one.note.fold) for one in merged)
    image = {"type": "image", "spatial_shape": ["16*n", "16*n"], "dtype": "float32", "is_patch_data": False}
    channels = {str(index): text for index, text in enumerate(channel_names(first))}
    inputs = {"format": "hounsfield", "modality": "CT", "num_channels": n_channels(views), "value_range": [0, 1]}
    outputs = {"format": "segmentation", "num_channels": 1, "value_range": []}
    inputs |= image | {"channel_def": channels}
    outputs |= image | {"channel_def": {"0": "logit of intracranial hemorrhage"}}
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": __version__,
        "changelog": {__version__: f"study {note.study}, {note.method}, fold {folds}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in ("nibabel", "safetensors")},
        "name": f"sahfl {note.study} {note.method}",
        "task": "Segmentation of intracranial hemorrhage on non-contrast head CT",
        "description": f"Multi-view {kind}, fine-tuned over hospitals that share no scan; see README.md",
        "authors": f"the sites of study {note.study}",
        "copyright": "see the study's agreement",
        "intended_use": note.intended_use,
        "sahfl": [one.note.model_dump(mode="json") for one in merged],
        "network_data_format": {"inputs": {"image": inputs}, "outputs": {"pred": outputs}},
    }
