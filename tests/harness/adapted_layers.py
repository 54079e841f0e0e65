"""Adapted layers of every method and kind, and the kernels that the methods' definitions give, built by einsum."""

from __future__ import annotations

import math

import torch
from torch import Generator, nn

from sahfl.adapters.attach import attach
from sahfl.config import AdapterTuning

ALPHA, RANK = 3.0, 2
METHODS = {
    name + ("-joint" if joint else ""): AdapterTuning(
        method=name,
        rank=RANK,
        alpha=ALPHA,
        scaling="rank",
        joint_kernel=joint,
        all_magnitudes=name.partition("_")[0] == "dora",
    )
    for name in ("lora_c", "conv_lora", "cp_lora", "dora_c", "conv_dora", "cp_dora")
    for joint in (False, True)
    if not joint or name.startswith("cp_")
}
WITH_PRIVATE = {
    f"{name}-private": METHODS[name].model_copy(update={"private_rank": 3})
    for name in ("lora_c", "conv_dora", "cp_lora")
}
"""With private terms beside the others."""
PATHS = ("dense", "fused")

SETTINGS = {
    "k1": {"kernel_size": 1},
    "k1-strided": {"kernel_size": 1, "stride": 2},
    "k3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated-no-bias": {"kernel_size": 3, "dilation": 2, "padding": 2, "bias": False},
    "uneven": {"kernel_size": (3, 1, 2), "stride": (1, 2, 1), "padding": (1, 0, 1)},
}
ONLY_PLAIN = {
    "reflect": {"kernel_size": 3, "padding": 2, "padding_mode": "reflect", "stride": 2},
    "replicate": {"kernel_size": (3, 2, 1), "padding": (1, 1, 0), "padding_mode": "replicate"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "dilation": (1, 2, 1)},
    "same": {"kernel_size": 3, "padding": "same", "dilation": (2, 1, 1)},
    "same-even": {"kernel_size": (2, 4, 3), "padding": "same"},
    "same-reflect": {"kernel_size": (2, 3, 3), "padding": "same", "padding_mode": "reflect"},
    "valid": {"kernel_size": (2, 3, 1), "padding": "valid"},
}
ONLY_TRANSPOSED = {
    "output-padding": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "dilated-output-padding": {
        "kernel_size": (2, 3, 1),
        "stride": (2, 1, 2),
        "dilation": 2,
        "output_padding": (1, 0, 1),
    },
}
KINDS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = {
    f"{kind.__name__}-{name}": (kind, setting)
    for kind in KINDS
    for name, setting in (SETTINGS | (ONLY_TRANSPOSED if "Transpose" in kind.__name__ else ONLY_PLAIN)).items()
}
SIZES = {2: (5, 6), 3: (4, 5, 3)}


def dimensions(kind):
    return 3 if kind.__name__.endswith("3d") else 2


def make_base(kind, setting, dtype=torch.float64):
    """A convolution from 4 to 5 channels."""
    n = dimensions(kind)
    setting = {key: value[:n] if isinstance(value, tuple) else value for key, value in setting.items()}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind(4, 5, dtype=dtype, **setting)


def put_on(base, method, seed=0):
    """The layer with a fresh adapter."""
    net = nn.Sequential(base)
    attach(net, method, seed=seed)
    return net[0]


def make_layer(kind, setting, method, dtype=torch.float64):
    return put_on(make_base(kind, setting, dtype), method)


def tensors_of(layer):
    """What trains in an adapted layer, by name."""
    return {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}


def trained(layer):
    """The layer with all that trains away from its start."""
    generator = Generator().manual_seed(9)
    with torch.no_grad():
        for tensor in tensors_of(layer).values():
            tensor.normal_(generator=generator)
    return layer


def an_input(kind, dtype=torch.float64):
    return torch.randn(2, 4, *SIZES[dimensions(kind)], dtype=dtype, generator=Generator().manual_seed(3))


def defined_delta(update, method):
    """The update of a kernel (out, in, *kernel) as the method's paper defines it, without its scale."""
    match method.method.replace("dora", "lora").replace("cp_lora", "cp"):
        case "lora_c":
            # B (out x height, rank x width) times A (rank x width, in x width), read as (out, height, in, width).
            out, rows, *others, _ = update.up.shape
            matrix_b = torch.einsum("or...->o...r", update.up[..., 0]).reshape(out * math.prod(others), rows)
            _, n_in, *_, width = update.down.shape
            matrix_a = update.down.reshape(rows, n_in * width)
            return torch.einsum("o...iw->oi...w", (matrix_b @ matrix_a).view(out, *others, n_in, width))
        case "conv_lora":
            return torch.einsum("or,ri...->oi...", update.up, update.down)
        case _ if method.joint_kernel:
            return torch.einsum("op,ip,...p->oi...", update.factor_out, update.factor_in, update.factor_kernel)
        case _ if hasattr(update, "factor_depth"):
            factors = (update.factor_depth, update.factor_height, update.factor_width)
            return torch.einsum("op,ip,dp,hp,wp->oidhw", update.factor_out, update.factor_in, *factors)
    factors = (update.factor_height, update.factor_width)
    return torch.einsum("op,ip,hp,wp->oihw", update.factor_out, update.factor_in, *factors)


def defined_weight(layer, method):
    """The adapted layer's weight in PyTorch's own layout; autograd reaches all that trains through it."""
    weight = layer.base.weight.transpose(0, 1) if layer.base.transposed else layer.base.weight
    weight = weight + ALPHA / RANK * defined_delta(layer.update, method)
    if layer.private is not None:
        weight = weight + ALPHA / RANK * defined_delta(layer.private, method)
    if layer.magnitude is not None:
        length = weight.detach().square().sum(dim=tuple(range(1, weight.ndim)), keepdim=True).sqrt()
        weight = layer.magnitude.view(length.shape) * weight / length
    return weight.transpose(0, 1) if layer.base.transposed else weight


def compute_by(monkeypatch, path):
    """Let every adapted layer be computed in one of the two ways."""
    monkeypatch.setattr("sahfl.adapters.adapted.choose_path", lambda base, update, x: path)
