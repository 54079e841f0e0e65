"""Cost of a training step with each adapter: time and memory, against frozen, fully trained, and Hugging Face PEFT.

    python benchmarks/adapters.py                                      # a table; a quarter of an hour on one core
    python benchmarks/adapters.py --pixels 256 --ranks 4 --json        # a part, for machines
    python benchmarks/adapters.py --layers --pixels 256 --ranks 4      # each layer alone, each way to compute it

The network is the study's own (``MultiViewUNet``, 9 channels in). A step is one forward and one backward pass, without
optimiser and loader. Contestants take turns in one process on one core (of the processor, or on the GPU if there is
one). A ratio is the median over the turns of time divided by the limit's time in the same turn. The limit is the frozen
network with the gradient of its input, in which nothing trains. Saved memory is what autograd keeps between the passes;
each storage is counted once, parameters are left out.

PEFT adapts no transposed convolution; rows with ``@c`` adapt only the plain ones and are comparable with it. DoRA rows
with ``all`` keep every magnitude, as PEFT does; the other rows leave out those that an instance norm would cancel, as
in the study. Without the package ``peft``, its rows are named and left out.
"""

import argparse
import importlib.util
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any, get_args
from unittest import mock

import torch
from machine import machine
from torch import Tensor, nn

from sahfl.adapters import adapted
from sahfl.adapters.adapted import AdaptedConv, Path, choose_path
from sahfl.adapters.attach import attach, attach_everything
from sahfl.config import AdapterTuning
from sahfl.model import MultiViewUNet

CHANNELS = 9
LORA, DORA = ("lora_c", "conv_lora", "cp_lora"), ("dora_c", "conv_dora", "cp_dora")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
AIMS = {"lora": 1.15, "dora": 1.25}
"""Times the limit, at rank 4 and 256 pixels."""


@dataclass(frozen=True)
class Setting:
    """The properties of one group of measurements."""

    pixels: int
    rank: int
    precision: str


@dataclass(frozen=True)
class Row:
    """One contestant in one setting."""

    pixels: int
    rank: int
    precision: str
    name: str
    step_ms: float
    times_limit: float
    times_full: float
    saved_mib: float
    times_limit_memory: float


def main() -> None:
    """Measure and print."""
    options = parse()
    if DEVICE == "cpu":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*(tie_word_embeddings|no config).*")
    settings = [Setting(p, r, d) for p in options.pixels for d in options.precision for r in options.ranks]
    if options.layers:
        for setting in settings:
            print_layers(setting, options)
        return
    rows = [row for setting in settings for row in measure(setting, options)]
    if options.json:
        print(json.dumps({"machine": machine(DEVICE), "aims": AIMS, "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        print_table(rows)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "base", "large"], default="base", help="network (default base)")
    parser.add_argument("--pixels", nargs="+", type=int, default=[128, 256], help="edge of a slice (default 128 256)")
    parser.add_argument("--ranks", nargs="+", type=int, default=[4, 16, 64], help="(default 4 16 64)")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--batch", type=int, default=8, help="slices in a step (default 8)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each contestant (default 3)")
    parser.add_argument("--only", nargs="+", help="contestants besides limit and full")
    parser.add_argument("--layers", action="store_true", help="time each layer alone, each way")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


# --- contestants -----------------------------------------------------------------------------------------------------


def contestants(rank: int) -> dict[str, Callable[[MultiViewUNet], None]]:
    """How to prepare a fresh network for each contestant, by name; PEFT's only if it is installed."""
    found: dict[str, Callable[[MultiViewUNet], None]] = {
        "limit": lambda net: net.requires_grad_(False) and None,
        "full": attach_everything,
    }
    if importlib.util.find_spec("peft"):
        found |= {"PEFT LoRA @c": partial(put_peft, rank=rank, dora=False)}
        found |= {"PEFT DoRA @c": partial(put_peft, rank=rank, dora=True)}
    found |= {"conv_lora @c": partial(put, method="conv_lora", rank=rank, plain_only=True)}
    found |= {"conv_dora all @c": partial(put, method="conv_dora", rank=rank, plain_only=True, every=True)}
    found |= {method: partial(put, method=method, rank=rank) for method in LORA + DORA}
    return found | {f"{method} all": partial(put, method=method, rank=rank, every=True) for method in DORA}


def put(net: MultiViewUNet, *, method: str, rank: int, plain_only: bool = False, every: bool = False) -> None:
    """Put an adapter of this project on a network, with weights as after some training."""
    tuning = AdapterTuning(method=method, rank=rank, all_magnitudes=every)
    attach(net, tuning, seed=0, parts=net.parts, example=torch.zeros(1, CHANNELS, 32, 32))
    for path, module in list(net.named_modules()):
        if isinstance(module, AdaptedConv):
            nn.init.normal_(module.update.up, std=1e-3)
            if plain_only and module.base.transposed:
                net.set_submodule(path, module.base)


def put_peft(net: MultiViewUNet, *, rank: int, dora: bool) -> None:
    """Put Hugging Face PEFT on every plain convolution."""
    from peft import LoraConfig, inject_adapter_in_model

    names = [path for path, module in net.named_modules() if type(module) is nn.Conv2d]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, use_dora=dora, target_modules=names), net)


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(setting: Setting, options: argparse.Namespace) -> list[Row]:
    """Measure all contestants in turns."""
    chosen = {
        name: prepare
        for name, prepare in contestants(setting.rank).items()
        if name in ("limit", "full") or not options.only or name in options.only
    }
    image = torch.rand(options.batch, CHANNELS, setting.pixels, setting.pixels, device=DEVICE)
    steps, saved, seconds = {}, {}, {name: [] for name in chosen}
    for name, prepare in chosen.items():
        net = MultiViewUNet(CHANNELS, size=options.size, seed=0)
        prepare(net)
        x = image.clone().requires_grad_(name == "limit")
        steps[name] = partial(step, net.to(DEVICE).train(), x, PRECISIONS[setting.precision])
        saved[name] = saved_mib(steps[name], net)
    for _ in range(options.repeats):
        for name, run in steps.items():
            seconds[name].append(clock(run))
    return [row(setting, name, seconds, saved) for name in chosen]


def row(setting: Setting, name: str, seconds: dict[str, list[float]], saved: dict[str, float]) -> Row:
    """Measurements of one contestant."""

    def times(other: str) -> float:
        return median(a / b for a, b in zip(seconds[name], seconds[other], strict=True))

    return Row(
        **asdict(setting),
        name=name,
        step_ms=1e3 * median(seconds[name]),
        times_limit=times("limit"),
        times_full=times("full"),
        saved_mib=saved[name],
        times_limit_memory=saved[name] / saved["limit"],
    )


def step(net: nn.Module, image: Tensor, dtype: torch.dtype) -> None:
    """Run one forward and one backward pass."""
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        logits = net(image)
    logits.float().square().mean().backward()
    image.grad = None
    net.zero_grad(set_to_none=True)


def saved_mib(run: Callable[[], None], net: nn.Module) -> float:
    """Memory that autograd keeps between the passes of a step, MiB."""
    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    sizes: dict[int, int] = {}
    held = []  # a freed storage's address could be given to the next

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(sizes.values()) / 2**20


def clock(run: Callable[[], None]) -> float:
    """Seconds of a step: processor time on a processor, where other programs may interrupt; clock time on a GPU."""
    if DEVICE == "cpu":
        began = time.process_time()
        run()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


# --- layers ----------------------------------------------------------------------------------------------------------


def print_layers(setting: Setting, options: argparse.Namespace) -> None:
    """Print the times of the two paths, divided by the frozen layer's, for each method and each kind of layer.

    The table in ``sahfl/adapters/adapted.py`` comes from this output; ``*`` marks its entry.
    """
    for method in options.only or LORA:
        print(f"{method} {setting}")
        for layer, x, gradient in layers(method, setting, options):
            x.requires_grad_()
            chosen = choose_path(layer.base, layer.update, x)
            runs = {"limit": partial(layer_step, layer.base, x, gradient, setting.precision)}
            runs |= {way: partial(along, way, layer, x, gradient, setting.precision) for way in get_args(Path)}
            seconds: dict[str, list[float]] = {name: [] for name in runs}
            for turn in range(options.repeats + 1):
                for name, run in runs.items():
                    seconds[name] += [clock(run)] * (turn > 0)  # the first turn warms up
            best = {name: min(values) for name, values in seconds.items()}
            ways = "  ".join(
                f"{name}{'*' if name == chosen else ' '} {best[name] / best['limit']:.2f}" for name in runs
            )
            base = layer.base
            kind = f"{base.in_channels:4} -> {base.out_channels:4} {base.kernel_size} at {x.shape[2]:3}"
            print(f"  {kind} {'transposed' if base.transposed else '':10} {1e3 * best['limit']:7.1f} ms  {ways}")


def layers(method: str, setting: Setting, options: argparse.Namespace) -> Iterator[tuple[AdaptedConv, Tensor, Tensor]]:
    """Each kind of adapted layer in the network, with an input and a gradient of the output of the right shapes."""
    net = MultiViewUNet(CHANNELS, size=options.size, seed=0)
    put(net, method=method, rank=setting.rank, every=method in DORA)
    shapes: dict[tuple[Any, ...], tuple[AdaptedConv, torch.Size, torch.Size]] = {}
    for module in net.modules():
        if isinstance(module, AdaptedConv):

            def keep(layer: AdaptedConv, inputs: tuple[Tensor, ...], y: Tensor) -> None:
                kind = (*layer.base.weight.shape, layer.base.transposed, *inputs[0].shape)
                shapes[kind] = (layer, inputs[0].shape, y.shape)

            module.register_forward_hook(keep)
    with torch.no_grad():
        net(torch.zeros(options.batch, CHANNELS, setting.pixels, setting.pixels))
    dtype = PRECISIONS[setting.precision]
    for layer, shape, out in shapes.values():
        layer._forward_hooks.clear()
        yield (
            layer.to(DEVICE),
            torch.randn(shape, dtype=dtype, device=DEVICE),
            torch.randn(out, dtype=dtype, device=DEVICE),
        )


def layer_step(layer: nn.Module, x: Tensor, gradient: Tensor, precision: str) -> None:
    """Run one layer forward and backward."""
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        y = layer(x)
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    torch.autograd.grad(y, [x, *trained], gradient)


def along(way: Path, layer: AdaptedConv, x: Tensor, gradient: Tensor, precision: str) -> None:
    """Run one layer forward and backward on one path."""
    with mock.patch.object(adapted, "choose_path", return_value=way):
        layer_step(layer, x, gradient, precision)


# --- printing --------------------------------------------------------------------------------------------------------


def print_table(rows: list[Row]) -> None:
    """Print a block for each setting."""
    print(machine(DEVICE))
    before = None
    for row in rows:
        setting = (row.pixels, row.precision, row.rank)
        if setting != before:
            print(f"\n{row.pixels} pixels, {row.precision}, rank {row.rank}")
            print(f"  {'':18} {'step':>8} {'x limit':>8} {'x full':>7} {'saved':>8} {'x limit':>8}")
        before = setting
        times = f"{row.step_ms:5.0f} ms {row.times_limit:8.2f} {row.times_full:7.2f}"
        print(f"  {row.name:18} {times} {row.saved_mib:4.0f} MiB {row.times_limit_memory:8.2f}")
    if not importlib.util.find_spec("peft"):
        print("\nleft out, as the package peft is not installed: PEFT LoRA @c, PEFT DoRA @c")


if __name__ == "__main__":
    main()
