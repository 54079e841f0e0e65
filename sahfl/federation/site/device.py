"""The device on which a site computes: the processor or a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sahfl.errors import ConfigError

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> torch.device:
    """Choose the device for the setting ``device`` of the site file.

    Raises:
        ConfigError: this machine has no such GPU.
    """
    import torch  # not above: the daemon calls ``resolve`` alone, and needs no torch for months

    name = resolve(name, n_gpus=torch.cuda.device_count())
    return torch.device(name)


def resolve(name: str, *, n_gpus: int) -> str:
    """Resolve ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` to the name of a device of a machine with ``n_gpus`` GPUs.

    Raises:
        ConfigError: the machine has no such GPU.
    """
    if name == "auto":
        return "cuda:0" if n_gpus else "cpu"
    if name == "cpu":
        return name
    number = int(name.partition(":")[2] or 0)
    if number >= n_gpus:
        found = f"{n_gpus} usable GPU(s)" if n_gpus else "no usable GPU"
        raise ConfigError(f"device: got {name}, this machine has {found}; expected cpu, auto, or a GPU that is there")
    return f"cuda:{number}"
