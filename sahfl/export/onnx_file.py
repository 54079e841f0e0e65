"""A network as ONNX, for programs without torch: one file, or one per view if each view has its own network."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from sahfl.atomic import write_atomic
from sahfl.config import View
from sahfl.data.views import n_channels
from sahfl.errors import ConfigError
from sahfl.export.parity import Computes
from sahfl.model import Network
from sahfl.prediction.exported import ExportNote

INPUT, OUTPUT = "slices", "logits"
OPSET = 20


class OneView(nn.Module):
    """The network as called for one view."""

    def __init__(self, net: Network, view: View) -> None:
        super().__init__()
        self.net, self.view = net, view

    def forward(self, slices: Tensor) -> Tensor:
        """(batch, channels, height, width) -> logits (batch, 1, height, width)."""
        return self.net(slices, self.view)


def file_names(note: ExportNote) -> dict[View, str]:
    """Name of the file with each view's network."""
    own = note.model.planes == "per_view"
    return {view: f"{view if own else 'network'}.onnx" for view in note.views.weights}


def write_onnx(folder: Path, net: Network, note: ExportNote) -> None:
    """Write the network for any batch size, and any height and width in multiples of 16.

    Raises:
        ConfigError: the packages of the extra ``export`` are not installed.
    """
    names = {name: view for view, name in reversed(file_names(note).items())}
    for name, view in names.items():
        write_atomic(folder / name, _encode(OneView(net, view).eval(), channels=n_channels(note.views)))


def read_onnx(folder: Path, note: ExportNote) -> Computes:
    """The network in the written files, computed by onnxruntime.

    Raises:
        ConfigError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise _not_installed() from error
    sessions = {
        view: onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        for view, name in file_names(note).items()
    }

    def compute(slices: Tensor, view: View) -> Tensor:
        return torch.from_numpy(sessions[view].run([OUTPUT], {INPUT: slices.numpy()})[0])

    return compute


def _encode(net: OneView, *, channels: int) -> bytes:
    many = torch.export.Dim("batch", min=1, max=1024)
    height, width = (16 * torch.export.Dim(name, min=2, max=64) for name in ("rows", "columns"))
    try:
        with _quiet():
            program = torch.onnx.export(
                net,
                (torch.zeros(2, channels, 64, 96),),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"slices": {0: many, 2: height, 3: width}},
            )
    except ImportError as error:
        raise _not_installed() from error
    assert program is not None
    return program.model_proto.SerializeToString()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the messages of torch's exporter about itself and torchvision."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _not_installed() -> ConfigError:
    return ConfigError("--format onnx: its packages are not installed; pip install 'sahfl[export]'")
