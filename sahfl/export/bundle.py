"""A network as a MONAI bundle: its configuration as JSON, its weights as safetensors, no pickle.

``monai.bundle.ConfigParser`` and ``python -m monai.bundle run`` read it without a network connection. The function
``monai.bundle.load`` cannot read it, because it reads only pickles (``torch.load``). The bundle needs sahfl installed;
its ``required_packages_version`` names it.

Source: https://docs.monai.io/en/stable/mb_specification.html
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from sahfl import __version__
from sahfl.atomic import write_atomic
from sahfl.config.network import NETWORKS
from sahfl.data.views import n_channels
from sahfl.export.parity import Computes
from sahfl.model import Network
from sahfl.prediction.exported import WEIGHTS, ExportNote, write_exported

INFERENCE, METADATA, MODELS = Path("configs") / "inference.json", Path("configs") / "metadata.json", "models"


def write_bundle(folder: Path, net: Network, note: ExportNote) -> None:
    """Write a bundle; ``sahfl predict`` can read its folder ``models/``."""
    write_exported(folder / MODELS, net, note)
    for path, content in ((INFERENCE, _inference(type(net), note)), (METADATA, _metadata(note))):
        write_atomic(folder / path, json.dumps(content, indent=2) + "\n")
    write_atomic(folder / "docs" / "README.md", _readme(note))


def read_bundle(folder: Path) -> Computes:
    """The network as MONAI builds it from the bundle."""
    parser = ConfigParser()
    parser.read_config(str(folder / INFERENCE))
    parser["bundle_root"] = str(folder)
    return parser.get_parsed_content("network")


def _inference(kind: type[Network], note: ExportNote) -> dict[str, Any]:
    views, own = note.views, note.model.planes == "per_view"
    return {
        "imports": [
            "$from safetensors.torch import load_file",
            "$from pathlib import Path",
            "$from sahfl.prediction.segment import predict_file",
        ],
        "bundle_root": ".",
        "scan": "scan.nii.gz",
        "output_dir": "$@bundle_root + '/prediction'",
        "network_def": {
            "_target_": f"{kind.__module__}.{kind.__qualname__}",
            "in_channels": n_channels(views),
            "size": note.model.size,
            "seed": 0,
            "views": list(views.weights) if own else [],
            "deep_supervision": note.model.deep_supervision,
        },
        "weights": f"$load_file(@bundle_root + '/{MODELS}/{WEIGHTS}')",
        "network": "$(@network_def.load_state_dict(@weights), @network_def.eval())[1]",
        "run": [f"$predict_file(Path(@bundle_root) / '{MODELS}', Path(@scan), Path(@output_dir))"],
    }


def _metadata(note: ExportNote) -> dict[str, Any]:
    views, kind = note.views, NETWORKS[note.model.size].description
    image = {"type": "image", "spatial_shape": ["16*n", "16*n"], "dtype": "float32", "is_patch_data": False}
    channels = {str(index): text for index, text in enumerate(_channel_names(note))}
    inputs = {"format": "hounsfield", "modality": "CT", "num_channels": n_channels(views), "value_range": [0, 1]}
    outputs = {"format": "segmentation", "num_channels": 1, "value_range": []}
    inputs |= image | {"channel_def": channels}
    outputs |= image | {"channel_def": {"0": "logit of intracranial hemorrhage"}}
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": __version__,
        "changelog": {__version__: f"study {note.study}, {note.method}, fold {note.fold}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {
            "sahfl": __version__,
            **{name: version(name) for name in ("safetensors", "nibabel")},
        },
        "name": f"sahfl {note.study} {note.method}",
        "task": "Segmentation of intracranial hemorrhage on non-contrast head CT",
        "description": f"Multi-view {kind}, fine-tuned over hospitals that share no scan; see docs/README.md",
        "authors": f"the sites of study {note.study}",
        "copyright": "see the study's agreement",
        "intended_use": note.intended_use,
        "sahfl": note.model_dump(mode="json"),
        "network_data_format": {"inputs": {"image": inputs}, "outputs": {"pred": outputs}},
    }


def _channel_names(note: ExportNote) -> list[str]:
    around = range(-note.views.neighbours, note.views.neighbours + 1)
    return [f"slice {n:+d}, window {low:g} to {high:g} HU" for low, high in note.views.windows_hu for n in around]


def _readme(note: ExportNote) -> str:
    return f"""# sahfl {note.study}, {note.method}

{note.intended_use}

The network sees 2-D slices with their neighbours and HU windows as channels (`configs/metadata.json` lists them).
Volumes are cut, segmented and put together by sahfl:

    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --scan scan.nii.gz

From Python, the plain network with its weights:

    from monai.bundle import ConfigParser
    parser = ConfigParser()
    parser.read_config("configs/inference.json")
    parser["bundle_root"] = "."
    net = parser.get_parsed_content("network")

`monai.bundle.load` reads pickled weights only; these are safetensors.
"""
