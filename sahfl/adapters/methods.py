"""The adapter methods, one record each; a new method is a file with its update's class, and an entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sahfl.adapters import Form
from sahfl.aggregation.forms import CONV_LORA, CP, LORA_C


@dataclass(frozen=True)
class AdapterMethod:
    """All that settings, policy, training, aggregation and reports need of an adapter method."""

    name: str
    """In study files, folders and results."""
    label: str
    """In reports."""
    colour: str
    """In figures on a white page; no two methods have the same."""
    update: Callable[[], Any]
    """Imports and returns the class of its updates (``updates.update.Update``); settings are read without torch. The
    class takes a convolution, ``rank`` and ``generator``."""
    form: Form
    """How its factors make up a kernel."""
    has_magnitudes: bool = False
    """Whether it is a DoRA form, which trains the length of each output channel's kernel by itself."""
    options: tuple[str, ...] = ()
    """Further settings of ``config.AdapterTuning`` that the class takes by name."""
    in_peft: bool = False
    """Whether Hugging Face PEFT computes the same, from factors named ``up`` and ``down``."""
    by_rows: str | None = None
    """Name of the method that has the same magnitudes and the form that ``matrix: rows`` gives this one."""
    most_rank: int = 32
    """Largest rank that a site allows by default (``config.policy``)."""
    compared_with: str | None = None
    """Name of the method that the results compare with this one, at the same settings."""

    def counterpart(self, id_: str) -> str | None:
        """The id of the training that the results compare with this method's training ``id_``; None without one."""
        return None if self.compared_with is None else self.compared_with + id_.removeprefix(self.name)


def _lora_c() -> Any:
    from sahfl.adapters.updates.lora_c import LoRAC

    return LoRAC


def _conv_lora() -> Any:
    from sahfl.adapters.updates.conv_lora import ConvLoRA

    return ConvLoRA


def _cp_lora() -> Any:
    from sahfl.adapters.updates.cp_lora import CPLoRA

    return CPLoRA


JOINT = ("joint_kernel",)
ADAPTERS = {
    method.name: method
    for method in (
        AdapterMethod("lora_c", "LoRA-C", "#B3457E", _lora_c, LORA_C, by_rows="conv_lora", most_rank=16),
        AdapterMethod("conv_lora", "convLoRA", "#007A5A", _conv_lora, CONV_LORA, in_peft=True),
        AdapterMethod("cp_lora", "CP-LoRA", "#0067A3", _cp_lora, CP, options=JOINT, compared_with="conv_lora"),
        AdapterMethod(
            "dora_c", "DoRA-C", "#7B4FB0", _lora_c, LORA_C, has_magnitudes=True, by_rows="conv_dora", most_rank=16
        ),
        AdapterMethod("conv_dora", "convDoRA", "#7A7000", _conv_lora, CONV_LORA, has_magnitudes=True, in_peft=True),
        AdapterMethod("cp_dora", "CP-DoRA", "#1193AB", _cp_lora, CP, has_magnitudes=True, options=JOINT),
    )
}
"""By name, in the order of reports. Hues after Okabe & Ito 2008, "Color universal design"."""
