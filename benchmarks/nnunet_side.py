"""The side of ``nnunet.py`` that runs in nnU-Net's own environment: plan, train and predict with nnU-Net's own code.

It imports nothing of sahfl. ``nnunet.py`` calls it with the folders of nnU-Net in the environment, and prints its line.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

NAME, NUMBER = "Dataset900_Phantoms", "900"
WIDTHS = [16, 16, 32, 64, 128]
"""Channels of sahfl's network ``tiny``."""
STEPS_OF_EPOCH = 10
"""nnU-Net lowers the learning rate after each epoch."""


def main() -> None:
    """Train one network with a seed, and segment the test scans into a folder."""
    settings = json.loads(sys.argv[1])
    prepare(settings["batch_size"])
    trained = train(settings)
    predict(Path(settings["out"]), trained.pop("folder"))
    print(json.dumps(trained))


def prepare(batch_size: int) -> None:
    """nnU-Net's own fingerprint, plans and preprocessed slices, once; and beside its plans those of ``WIDTHS``."""
    folder = Path(os.environ["nnUNet_preprocessed"]) / NAME  # noqa: SIM112 - nnU-Net's own name
    if (folder / "done").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    command = [Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess"), "-d", NUMBER, "-c", "2d", "-np", "1"]
    one_thread = os.environ | {"nnUNet_n_proc_DA": "1"}  # the planner takes it as its threads
    subprocess.run(command, env=one_thread, check=True, stdout=subprocess.DEVNULL)
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["configurations"]["2d"]["batch_size"] = batch_size
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    network = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    for key, value in network.items():
        if isinstance(value, list) and len(value) == network["n_stages"]:
            network[key] = value[: len(WIDTHS)]
        elif isinstance(value, list) and len(value) == network["n_stages"] - 1:
            network[key] = value[: len(WIDTHS) - 1]
    network |= {"features_per_stage": WIDTHS, "n_stages": len(WIDTHS)}
    plans["plans_name"] = "small"
    (folder / "small.json").write_text(json.dumps(plans))
    (folder / "done").touch()


def train(settings: dict) -> dict:
    """Train for a number of steps; nnU-Net's own loader, augmentation, loss, optimiser and schedule."""
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(1)
    random.seed(settings["seed"])
    np.random.seed(settings["seed"])
    torch.manual_seed(settings["seed"])
    trainer = get_trainer_from_args(NAME, "2d", "all", "nnUNetTrainer", settings["plans"], device=torch.device("cpu"))
    trainer.num_iterations_per_epoch = STEPS_OF_EPOCH
    trainer.num_val_iterations_per_epoch = 1
    trainer.num_epochs = settings["steps"] // STEPS_OF_EPOCH
    trainer.save_every = 10**6
    trainer.initialize()
    began = time.process_time()
    trainer.run_training()
    seconds = time.process_time() - began
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    return {"folder": trainer.output_folder_base, "parameters": parameters, "seconds": seconds}


def predict(out: Path, model: str) -> None:
    """Segment the test scans as nnU-Net does, with its tiles, mirroring and softmax."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    device = torch.device("cpu")
    predictor = nnUNetPredictor(perform_everything_on_device=False, device=device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(model, ("all",), "checkpoint_final.pth")
    raw = Path(os.environ["nnUNet_raw"])  # noqa: SIM112 - nnU-Net's own name
    scans = sorted((raw / NAME / "imagesTs").glob("*_0000.nii.gz"))
    out.mkdir(parents=True, exist_ok=True)
    names = [str(out / scan.name.replace("_0000.nii.gz", ".nii.gz")) for scan in scans]
    predictor.predict_from_files_sequential([[str(scan)] for scan in scans], names)


if __name__ == "__main__":
    main()
