"""Networks as ONNX with scripts, for machines without torch and sahfl: a file per fold, or per fold and view."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from sahfl.atomic import write_atomic
from sahfl.config import View
from sahfl.data.views import windows
from sahfl.errors import ConfigError
from sahfl.export.alone import PREPROCESSING, README, SCAN_SCRIPT, preprocessing, script
from sahfl.export.merged import Merged
from sahfl.export.parity import Computes
from sahfl.export.readme import RUN_ONNX, instructions
from sahfl.model import Network

INPUT, OUTPUT, ENDING = "slices_hu", "logits", ".onnx"
OPSET = 20


class OneView(nn.Module):
    """The network as called for one view, with the HU windows in front of it."""

    def __init__(self, net: Network, view: View, windows_hu: tuple[tuple[float, float], ...]) -> None:
        super().__init__()
        self.net, self.view, self.windows_hu = net, view, windows_hu

    def forward(self, slices_hu: Tensor) -> Tensor:
        """Slices with their neighbours in HU, (batch, slices, height, width) -> logits (batch, 1, height, width)."""
        return self.net(windows(slices_hu, self.windows_hu), self.view)


def write_onnx(folder: Path, merged: Sequence[Merged]) -> None:
    """Write the networks of all folds, for any batch size, and any height and width in multiples of 16.

    Raises:
        ConfigError: the packages of the extra ``export`` are not installed.
    """
    first = merged[0]
    for view in first.views_by_stem().values():
        encoded = Encoded(_one_view(first, view), slices=2 * first.note.views.neighbours + 1)
        for one in merged:
            write_atomic(folder / f"{one.stem(view)}{ENDING}", encoded.with_weights(_one_view(one, view)))
    write_atomic(folder / PREPROCESSING, preprocessing(merged, folder="", ending=ENDING))
    write_atomic(folder / SCAN_SCRIPT, script(SCAN_SCRIPT))
    write_atomic(folder / "predict.py", script("predict_onnx.py"))
    run = RUN_ONNX.format(slabs=2 * first.note.views.neighbours + 1)
    write_atomic(folder / README, instructions(merged, run=run))


def read_onnx(folder: Path, one: Merged) -> Computes:
    """The networks of one fold in the written files, computed by onnxruntime.

    Raises:
        ConfigError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise _not_installed() from error
    sessions = {
        stem: onnxruntime.InferenceSession(str(folder / f"{stem}{ENDING}"), providers=["CPUExecutionProvider"])
        for stem in one.views_by_stem()
    }

    def compute(slabs: Tensor, view: View) -> Tensor:
        return torch.from_numpy(sessions[one.stem(view)].run([OUTPUT], {INPUT: slabs.numpy()})[0])

    return compute


class Encoded:
    """A network as ONNX, made once with random weights; the networks of the folds differ in their weights alone.

    Raises:
        ConfigError: the packages of the extra ``export`` are not installed.
    """

    def __init__(self, net: OneView, *, slices: int) -> None:
        many = torch.export.Dim("batch", min=1, max=1024)
        height, width = (16 * torch.export.Dim(name, min=2, max=64) for name in ("rows", "columns"))
        net, generator = copy.deepcopy(net), torch.Generator().manual_seed(0)
        for value in net.state_dict().values():
            value.normal_(
                generator=generator
            )  # the exporter would merge equal tensors, which may differ in other folds
        try:
            with _quiet():
                program = torch.onnx.export(
                    net,
                    (torch.zeros(2, slices, 64, 96),),
                    dynamo=True,
                    verbose=False,
                    opset_version=OPSET,
                    input_names=[INPUT],
                    output_names=[OUTPUT],
                    dynamic_shapes={"slices_hu": {0: many, 2: height, 3: width}},
                )
        except ImportError as error:
            raise _not_installed() from error
        assert program is not None
        self._model = program.model_proto

    def with_weights(self, net: OneView) -> bytes:
        """The file's content with the weights of ``net``."""
        weights = net.state_dict()
        for tensor in self._model.graph.initializer:
            if tensor.name in weights:
                tensor.raw_data = weights[tensor.name].detach().cpu().numpy().tobytes()
        return self._model.SerializeToString()


def _one_view(one: Merged, view: View) -> OneView:
    return OneView(one.plain, view, one.note.views.windows_hu).eval()


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
    return ConfigError("--format onnx: its packages are not installed; pip install onnx onnxruntime onnxscript")
