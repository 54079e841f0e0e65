"""The folder of a run as a study leaves it, without the hours: networks are random, files and names are real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from sahfl.adapters import digest, exchanged
from sahfl.adapters.files import save_tensors
from sahfl.adapters.folder import describe, save_adapter
from sahfl.config import Study, ZeroShot, parse
from sahfl.data.phantom import PROFILES, make_case
from sahfl.networks import fine_tuned_network, whole_network
from sahfl.run.folder import RunFolder

SHAPE, SPACING_MM = (48, 56, 10), (4.0, 4.0, 12.0)


def write_run(folder: Path, settings: dict[str, Any], *, folds: int | None = None) -> Study:
    """A run of these settings with the adapters of the first ``folds`` folds, by default of all."""
    study = parse(Study, settings, where="settings")
    RunFolder.create(folder, study)
    base = exchanged.read(whole_network(study.views, study.model, study.seed))
    save_tensors(folder / "base" / "base.safetensors", base, {"sha256": digest(base)})
    for method in study.finetune.methods:
        if isinstance(method, ZeroShot) or method.is_alone:
            continue
        saved = method if method.share_private_at_end else method.shared_alone()
        for fold in range(study.finetune.folds if folds is None else folds):
            net = fine_tuned_network(study.views, study.model, base, saved, study.seed)
            generator = torch.Generator().manual_seed(fold)
            for value in exchanged.parameters(net).values():
                value.data += 0.2 * torch.randn(value.shape, generator=generator)
            note = describe(net, saved, digest(base)).model_copy(
                update={"trained_as": method.id, "study": study.name, "fingerprint": study.fingerprint(), "fold": fold}
            )
            save_adapter(folder / "adapters" / method.id / f"fold-{fold}", net, note)
    return study


def phantom_hu(seed: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image (X, Y, Z) in HU, annotation and affine of a simulated patient with blood, RAS+."""
    case = make_case(seed, kind="sah", profile=PROFILES["standard"], shape=SHAPE, spacing_mm=SPACING_MM)
    return case.image.astype(np.int16), case.label > 0, case.affine


def write_scan(path: Path, image: np.ndarray, affine: np.ndarray, axes: str = "RAS") -> Path:
    """A scan as NIfTI, its axes stored in another order."""
    made = nibabel.Nifti1Image(image, affine)
    made.set_qform(affine, 1)
    made.set_sform(affine, 1)
    wanted = nibabel.orientations.axcodes2ornt(axes)
    now = nibabel.orientations.io_orientation(affine)
    nibabel.save(made.as_reoriented(nibabel.orientations.ornt_transform(now, wanted)), path)
    return path
