"""The machine and software of a measurement, for every benchmark.

python benchmarks/machine.py    # prints it
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import torch


def machine(device: str = "cpu") -> str:
    """Processor with threads, cores and load, or the GPU; versions of what computes."""
    versions = f"torch {torch.__version__}, numpy {np.__version__}"
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}; {versions}"
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or "unknown processor"
    cores = f"{torch.get_num_threads()} thread(s) of {os.cpu_count()} cores"
    return f"{name}, {cores}, load {os.getloadavg()[0]:.1f}; {versions}"


if __name__ == "__main__":
    print(machine())
