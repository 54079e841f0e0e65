"""How many numbers a method trains, and how much its updates can say."""

import math

import pytest
import torch
from harness.adapted_layers import METHODS, make_layer, put_on, trained
from monai.networks.nets import UNet
from torch import nn

from sahfl.adapters import exchanged
from sahfl.adapters.attach import attach
from sahfl.config import AdapterTuning

# Written from shape formulas, before the layers were: rank, trained numbers of MONAI's residual U-Net, 32 to 512.
IN_A_U_NET = {
    "lora_c": {1: 55_281, 4: 221_124, 8: 442_248, 16: 884_496, 64: 3_537_984},
    "conv_lora": {1: 31_969, 4: 127_876, 8: 255_752, 16: 511_504, 64: 2_046_016},
    "cp_lora": {1: 6_959, 4: 27_836, 8: 55_672, 16: 111_344, 64: 445_376},
}
N_OUTPUT_CHANNELS = 3_426
"""Of all convolutions of that network: the magnitudes of the DoRA forms."""
DORA_OF = {"lora_c": "dora_c", "conv_lora": "conv_dora", "cp_lora": "cp_dora"}


def monai_unet():
    with torch.device("meta"):
        return UNet(2, 3, 1, channels=(32, 64, 128, 256, 512), strides=(2, 2, 2, 2), num_res_units=2)


def n_trained(net):
    return sum(parameter.numel() for parameter in exchanged.parameters(net).values())


@pytest.fixture(scope="module")
def shapes():
    """(out, in, *kernel) of every convolution of the network."""
    net = monai_unet()
    assert sum(parameter.numel() for parameter in net.parameters()) == 6_495_868
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    layers = [module for module in net.modules() if isinstance(module, kinds)]
    assert len(layers) == 23
    assert sum(isinstance(layer, nn.ConvTranspose2d) for layer in layers) == 4
    return [(layer.out_channels, layer.in_channels, *layer.kernel_size) for layer in layers]


@pytest.mark.parametrize("method", IN_A_U_NET)
def test_the_trained_numbers_of_a_u_net_are_those_of_the_published_table(method):
    with torch.random.fork_rng():
        net = UNet(2, 3, 1, channels=(32, 64, 128, 256, 512), strides=(2, 2, 2, 2), num_res_units=2)
    attach(net, AdapterTuning(method=method, rank=1), seed=0)
    one = n_trained(net)
    assert {rank: rank * one for rank in IN_A_U_NET[method]} == IN_A_U_NET[method]


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("method", IN_A_U_NET)
def test_every_rank_of_the_table_follows_from_the_layers_own_counts(method, joint, shapes):
    if joint and method != "cp_lora":
        with pytest.raises(ValueError, match="joint_kernel"):
            AdapterTuning(method=method, joint_kernel=True)
        return
    for rank in (1, 4, 8, 16, 64):
        counts = {shape: layer_count(shape, method, rank, joint) for shape in set(shapes)}
        if not joint:
            assert sum(counts[shape] for shape in shapes) == IN_A_U_NET[method][rank]
        for shape in sorted(counts)[:4]:  # the small ones
            out, n_in, *kernel = shape
            plain = AdapterTuning(method=method, rank=rank, joint_kernel=joint)
            assert n_trained(nn.Sequential(put_on(nn.Conv2d(n_in, out, kernel), plain))) == counts[shape]
            dora = AdapterTuning(method=DORA_OF[method], rank=rank, joint_kernel=joint)
            assert n_trained(nn.Sequential(put_on(nn.Conv2d(n_in, out, kernel), dora))) == counts[shape] + out


def layer_count(shape, method, rank, joint=False):
    """Numbers that a layer trains, by the formulas of the methods' papers."""
    out, n_in, *kernel = shape
    match method:
        case "lora_c":
            return rank * kernel[-1] * (n_in * kernel[-1] + out * math.prod(kernel[:-1]))
        case "conv_lora":
            return rank * (n_in * math.prod(kernel) + out)
    return rank * (out + n_in + (math.prod(kernel) if joint else sum(kernel)))


def test_a_dora_form_adds_one_number_per_output_channel(shapes):
    assert sum(out for out, *_ in shapes) == N_OUTPUT_CHANNELS


@pytest.mark.parametrize(("kind", "size"), [(nn.Conv3d, (3, 2, 1)), (nn.ConvTranspose3d, (2, 3, 2))])
@pytest.mark.parametrize("name", METHODS)
def test_three_dimensions_count_every_axis_of_the_kernel(name, kind, size):
    method = METHODS[name]
    layer = make_layer(kind, {"kernel_size": size}, method)
    form = method.method.replace("dora", "lora") if method.method != "dora_c" else "lora_c"
    expected = layer_count((5, 4, *size), form, method.rank, method.joint_kernel)
    assert n_trained(nn.Sequential(layer)) == expected + (5 if method.has_magnitudes else 0)


def unfolding_rank(delta, *axes):
    """Rank of the kernel (out, in, height, width) as a matrix, with some axes as its rows."""
    others = [axis for axis in range(delta.ndim) if axis not in axes]
    rows = math.prod(delta.shape[axis] for axis in axes)
    return int(torch.linalg.matrix_rank(delta.permute(*axes, *others).reshape(rows, -1)))


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("rank", [1, 2])
def test_every_unfolding_of_an_update_has_the_rank_of_its_method(kind, rank):
    deltas = {}
    for name in ("lora_c", "conv_lora", "cp_lora", "cp_lora-joint"):
        method = METHODS[name].model_copy(update={"rank": rank})
        layer = trained(put_on(kind(8, 7, 3, dtype=torch.float64), method))
        deltas[name] = layer.update.delta(layer.update.up).detach()
        assert deltas[name].shape == (7, 8, 3, 3)
    out, n_in, height, width = range(4)
    for axis in range(4):
        assert unfolding_rank(deltas["cp_lora"], axis) == rank
    for axes in ((out,), (n_in,), (height, width)):
        assert unfolding_rank(deltas["cp_lora-joint"], *axes) == rank
    assert unfolding_rank(deltas["conv_lora"], out) == rank
    assert unfolding_rank(deltas["conv_lora"], n_in) == 8  # no limit on this side
    assert unfolding_rank(deltas["lora_c"], out, height) == 3 * rank
    # Not the matrix of `view`, which would put the input channels' axis where the height is.
    assert unfolding_rank(deltas["lora_c"], out, n_in) > 3 * rank or rank == 1


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize("name", METHODS)
def test_the_in_side_starts_with_the_variance_of_a_kaiming_kernel(name, kind):
    n_in, rank, n = 200, 200, 3 if kind is nn.Conv3d else 2
    size = (2, 2, 3)[-n:]
    method = METHODS[name].model_copy(update={"rank": rank})
    layer = put_on(kind(n_in, 1, size), method)
    up = torch.ones_like(layer.update.up)  # the update is then a sum of in-side kernels
    if "lora_c" in name or "dora_c" in name:
        expected = rank * size[-1] / (3 * n_in * size[-1])  # of A's fan-in: in x width
    else:
        expected = rank / (3 * n_in * math.prod(size))
    assert layer.update.delta(up).var().item() == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("joint", [False, True], ids=["axes", "joint"])
@pytest.mark.parametrize(
    ("kind", "size", "n_in"),
    [
        (nn.Conv2d, (3, 3), 64),
        (nn.Conv2d, (3, 3), 2),
        (nn.Conv2d, (1, 1), 16),  # the output layer of a network
        (nn.Conv2d, (1, 1), 1),
        (nn.ConvTranspose2d, (2, 2), 32),
        (nn.Conv3d, (3, 3, 3), 8),
        (nn.Conv3d, (1, 3, 3), 8),
    ],
    ids=str,
)
def test_all_terms_of_cp_lora_start_with_the_same_length(kind, size, n_in, joint):
    method = AdapterTuning(method="cp_lora", rank=512, joint_kernel=joint)
    update = put_on(kind(n_in, 4, size), method).update
    assert not update.up.any()
    for name in update.inner_factors:
        squares = update.get_parameter(name).detach().flatten(0, -2).square()
        length = 1 / 3 if name == "factor_in" else 1.0
        torch.testing.assert_close(squares.sum(dim=0), torch.full((512,), length))
        share = squares.mean(dim=1) / length  # of each place of the factor: no direction is preferred
        torch.testing.assert_close(share, torch.full_like(share, 1 / len(share)), rtol=0.3, atol=0)
    terms = (update.factor_in[:, None] * update.space().flatten(0, -2)).flatten(0, 1)  # (in * voxels, rank)
    torch.testing.assert_close(terms.norm(dim=0), torch.full((512,), 3**-0.5))


@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (1, 3, 3, 3), (7, 2, 3, 2), (4, 9, 1, 1), (2, 2, 1, 3)], ids=str)
@pytest.mark.parametrize("name", [name for name in METHODS if "lora" in name and "cp" not in name])
def test_at_full_rank_every_kernel_can_be_written_and_below_it_not(name, shape):
    out, n_in, *kernel = shape
    full = put_on(nn.Conv2d(n_in, out, kernel), METHODS[name]).update.full_rank
    for rank in {full, max(full - 1, 1)}:
        method = METHODS[name].model_copy(update={"rank": rank})
        update = put_on(nn.Conv2d(n_in, out, kernel, dtype=torch.float64), method).update
        both = torch.autograd.functional.jacobian(
            lambda up, down, update=update: torch.func.functional_call(
                Delta(update), {"update.down": down}, (up,)
            ).flatten(),
            (torch.randn_like(update.up), torch.randn_like(update.down)),
        )
        reached = int(torch.linalg.matrix_rank(torch.cat([part.flatten(1) for part in both], dim=1)))
        assert (reached == math.prod(shape)) == (rank == full)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("cp_lora", (5, 4, 3, 3), 4 * 3 * 3),  # all axes but the longest
        ("cp_lora", (1, 3, 3, 3), 3 * 3),
        ("cp_lora-joint", (5, 4, 3, 3), 5 * 4),  # the kernel is one axis, of nine
        ("cp_lora-joint", (1, 3, 3, 3), 3),
        ("conv_lora", (5, 4, 3, 3), 5),
        ("lora_c", (5, 4, 3, 3), 4),  # twelve columns of in x width, three to a term
        ("lora_c", (1, 4, 2, 3), 1),
    ],
)
def test_the_full_rank_is_known(name, shape, expected):
    out, n_in, *kernel = shape
    assert put_on(nn.Conv2d(n_in, out, kernel), METHODS[name]).update.full_rank == expected


class Delta(nn.Module):
    """An update as a function of its factors."""

    def __init__(self, update):
        super().__init__()
        self.update = update

    def forward(self, up):
        return self.update.delta(up)
