"""The adapter methods, one record each: what the settings, the policy, the training and the reports know of them.

A new method is a file with the class of its update, and one entry of ``ADAPTERS`` here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sahfl.adapters import Form
from sahfl.aggregation.forms import CONV_LORA, CP, LORA_C


@dataclass(frozen=True)
class AdapterMethod:
    """An adapter method."""

    name: str
    """In study files, folders and results."""
    label: str
    """In reports."""
    colour: str
    """In figures on a white page; no two methods have the same."""
    update: Callable[[], Any]
    """Gives the class of its updates (``adapters.update.Update``), made from a convolution, ``rank`` and ``generator``.
    A function imports the class, because settings are read without torch."""
    form: Form
    """How its factors make up a kernel, for the aggregation."""
    has_magnitudes: bool = False
    """DoRA: the length of each output channel's kernel is trained apart from its direction."""
    options: tuple[str, ...] = ()
    """Settings of ``config.AdapterTuning`` that not every method has; the class gets them by name."""
    in_peft: bool = False
    """Hugging Face PEFT computes the same, from factors named ``up`` and ``down``."""
    compared_with: str | None = None
    """Name of a method that the results compare this one with, at the same settings."""

    def counterpart(self, id_: str) -> str | None:
        """From the id of one of its trainings, the id of the training it is compared with; None without such a method.

        An id begins with the method's name, and the settings follow.
        """
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
        AdapterMethod("lora_c", "LoRA-C", "#B3457E", _lora_c, LORA_C),
        AdapterMethod("conv_lora", "convLoRA", "#007A5A", _conv_lora, CONV_LORA, in_peft=True),
        AdapterMethod("cp_lora", "CP-LoRA", "#0067A3", _cp_lora, CP, options=JOINT, compared_with="conv_lora"),
        AdapterMethod("dora_c", "DoRA-C", "#7B4FB0", _lora_c, LORA_C, has_magnitudes=True),
        AdapterMethod("conv_dora", "convDoRA", "#7A7000", _conv_lora, CONV_LORA, has_magnitudes=True, in_peft=True),
        AdapterMethod("cp_dora", "CP-DoRA", "#1193AB", _cp_lora, CP, has_magnitudes=True, options=JOINT),
    )
}
"""By name, in the order of reports. Hues after Okabe & Ito 2008, "Color universal design"."""
