import math
import subprocess
import sys
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from torch import nn

from sahfl.adapters import exchanged
from sahfl.adapters.attach import attach
from sahfl.config import AdapterTuning, ViewsConfig
from sahfl.data.ct import Placement
from sahfl.data.sampler import SliceSampler
from sahfl.data.views import CaseViews, SliceStack, n_channels
from sahfl.errors import RunFailed
from sahfl.model import MultiViewUNet
from sahfl.process import own_process
from sahfl.training import Schedule, pull_back, supervised_loss, train

VIEWS = ViewsConfig(weights={"axial": 1.0}, size=(32, 32, 32))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def a_sampler(seed=0):
    """Tissue with a bright patch of blood: a problem that a few steps solve."""
    image = np.full((6, 32, 32), 30, np.int16)
    label = np.zeros(image.shape, bool)
    label[:, 10:22, 12:24] = True
    image[label] = 75
    case = CaseViews(
        {"axial": SliceStack(image, label, np.arange(6))}, Placement((32, 32, 6), (32, 32), (0, 0)), 5.0, 0
    )
    return SliceSampler([case], VIEWS, batch_size=4, foreground_share=0.5, seed=seed)


def a_net(seed=0, **options):
    return MultiViewUNet(n_channels(VIEWS), size="tiny", seed=seed, **options)


def a_schedule(**changes):
    values = {"learning_rate": 5e-3, "weight_decay": 1e-4, "steps": 4, "round": 1, "rounds": 2}
    return Schedule(**values | changes)


# --- schedule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("round_", "step", "expected"),
    [
        (1, 0, 0.2),  # start: the first of five warm-up steps, cos(0)
        (1, 4, 0.5 * (1 + math.cos(math.pi * 0.1))),  # the warm-up ends; 4 of 40 steps are done
        (1, 10, 0.5 * (1 + math.cos(math.pi / 4))),
        (2, 0, 0.2 * 0.5),  # middle: cos(pi / 2) = 0, and each round warms up anew
        (2, 2, 0.6 * 0.5 * (1 + math.cos(math.pi * 0.55))),
        (2, 19, 0.5 * (1 + math.cos(math.pi * 0.975))),  # end: 39 of 40 steps are done
    ],
)
def test_the_learning_rate_follows_a_cosine_over_all_rounds_with_a_warm_up_in_each(round_, step, expected):
    schedule = Schedule(learning_rate=3e-3, weight_decay=0.0, steps=20, round=round_, rounds=2)
    assert schedule.rate(step) == pytest.approx(3e-3 * expected, rel=1e-12)


def test_the_learning_rate_ends_near_zero():
    assert Schedule(learning_rate=1.0, weight_decay=0.0, steps=100, round=3, rounds=3).rate(99) < 1e-4


def test_a_step_has_the_size_that_the_schedule_says():
    """AdamW's first step moves every parameter with a gradient by the learning rate, whatever the gradient's size."""
    net, before = a_net(), a_net()
    schedule = a_schedule(steps=1, weight_decay=0.0, round=2)
    train(net, a_sampler(), schedule)
    moved = (net.net.head["1"].weight - before.net.head["1"].weight).abs()
    assert moved.median().item() == pytest.approx(schedule.rate(0), rel=0.01)


def test_a_factor_of_the_learning_rate_scales_the_step_of_its_parameters_alone():
    nets, schedule = (a_net(), a_net(), a_net()), a_schedule(steps=1, weight_decay=0.0, round=2)
    factors = {"net.head.1.weight": 0.5, "net.head.1.bias": 0.0}
    train(nets[1], a_sampler(), schedule)
    train(nets[2], a_sampler(), schedule, rate_of=lambda name: factors.get(name, 1.0))
    start, usual, scaled = (dict(net.named_parameters()) for net in nets)
    torch.testing.assert_close(
        scaled["net.head.1.weight"] - start["net.head.1.weight"],
        0.5 * (usual["net.head.1.weight"] - start["net.head.1.weight"]),
        rtol=1e-3,
        atol=1e-8,
    )
    assert torch.equal(scaled["net.head.1.bias"], start["net.head.1.bias"])
    assert not torch.equal(usual["net.head.1.bias"], start["net.head.1.bias"])
    assert all(torch.equal(scaled[name], usual[name]) for name in usual.keys() - factors.keys())


def test_groups_of_one_factor_and_of_several_give_the_same_bits_where_the_rates_are_the_same():
    """Twice the factor of half the learning rate is the same rate; both are powers of two, so exact."""
    nets = a_net(), a_net()
    train(nets[0], a_sampler(), a_schedule(learning_rate=2**-8, proximal=0.1))
    rate_of = {"net.head.1.weight": 2.0}.get
    train(nets[1], a_sampler(), a_schedule(learning_rate=2**-9, proximal=0.1), rate_of=lambda name: rate_of(name, 2))
    first, second = (net.state_dict() for net in nets)
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- training -------------------------------------------------------------------------------------------------------


def losses_of(net, schedule, seed=0):
    means = []
    train(net, a_sampler(seed), schedule, on_step=lambda done, total, mean: means.append(mean))
    sums = np.array(means) * np.arange(1, len(means) + 1)
    return np.diff(sums, prepend=0)


def test_the_loss_falls():
    losses = losses_of(a_net(), a_schedule(steps=25, rounds=1))
    assert losses[-5:].mean() < 0.6 * losses[:5].mean()


def test_the_loss_falls_with_adapters_alone_and_all_else_stays_bit_for_bit():
    net = a_net()
    attach(net, AdapterTuning(method="cp_lora", rank=4), seed=1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    losses = losses_of(net, a_schedule(steps=25, rounds=1, learning_rate=2e-2))
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(exchanged.parameters(net))


def test_weight_decay_does_not_touch_frozen_parameters():
    net = a_net()
    net.requires_grad_(False)
    net.net.head["1"].requires_grad_(True)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    train(net, a_sampler(), a_schedule(weight_decay=1.0))
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"net.head.1.weight", "net.head.1.bias"}


def test_weight_decay_does_not_touch_the_networks_of_views_that_are_not_drawn():
    net = a_net(views=("axial", "coronal"))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    train(net, a_sampler(), a_schedule(weight_decay=1.0))  # every batch is axial
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("axial.")}


def test_the_loss_falls_with_deep_supervision():
    losses = losses_of(a_net(deep_supervision=True), a_schedule(steps=25, rounds=1))
    assert losses[-5:].mean() < 0.7 * losses[:5].mean()


def test_the_same_arguments_give_the_same_network_and_loss_bit_for_bit():
    results = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        net = a_net()
        results.append((train(net, a_sampler(), a_schedule()), net.state_dict()))
    (loss, weights), (other_loss, other_weights) = results
    assert loss == other_loss
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def test_dropout_is_a_function_of_the_arguments_and_leaves_the_random_state_alone():
    results = []
    for state_before, round_, chance in ((1, 1, 0.5), (2, 1, 0.5), (1, 2, 0.5), (1, 1, 0.0)):
        net = a_net()
        attach(net, AdapterTuning(method="cp_lora", rank=4, rank_dropout=chance), seed=0)
        torch.manual_seed(state_before)
        before = torch.get_rng_state()
        train(net, a_sampler(), a_schedule(round=round_, learning_rate=1e-3 * round_))
        assert torch.equal(torch.get_rng_state(), before)
        results.append(exchanged.read(net))
    first, same, other_round, without = results
    assert all((first[name] == same[name]).all() for name in first)
    for other in (other_round, without):
        assert any((first[name] != other[name]).any() for name in first)


# --- FedProx --------------------------------------------------------------------------------------------------------


def distance(net, start):
    pairs = zip(net.parameters(), start.parameters(), strict=True)
    return math.sqrt(sum((a - b).square().sum().item() for a, b in pairs))


def test_the_proximal_gradient_is_that_of_half_mu_times_the_squared_distance():
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 5.0]))
    received = torch.tensor([0.5, -2.0, 4.0])
    (weight.sum() + 0.3 / 2 * (weight - received).square().sum()).backward()
    by_autograd, weight.grad = weight.grad, torch.ones(3)
    pull_back([weight], [received], 0.3)
    torch.testing.assert_close(weight.grad, by_autograd)
    torch.testing.assert_close(weight.grad, torch.tensor([1.15, 1.0, 1.3]))  # 1 + 0.3 (w - w_received)


def test_the_first_step_of_a_round_starts_where_the_proximal_term_is_zero():
    nets = a_net(), a_net()
    for net, proximal in zip(nets, (0.0, 10.0), strict=True):
        train(net, a_sampler(), a_schedule(steps=1, proximal=proximal))
    assert distance(*nets) == 0


@pytest.mark.parametrize("method", [pytest.param("full", marks=pytest.mark.slow), "cp_lora"])
def test_the_stronger_the_proximal_term_the_nearer_to_the_start(method):
    distances = []
    for proximal in (0.0, 1.0, 100.0):
        net, start = a_net(), a_net()
        for one in (net, start) if method == "cp_lora" else ():
            attach(one, AdapterTuning(method="cp_lora", rank=4), seed=1)
        train(net, a_sampler(), a_schedule(steps=12, weight_decay=0.0, proximal=proximal))
        distances.append(distance(net, start))
    assert distances[0] > distances[1] > distances[2] > 0


def test_the_loss_that_is_reported_is_without_the_proximal_term():
    near, far = losses_of(a_net(), a_schedule(steps=3)), losses_of(a_net(), a_schedule(steps=3, proximal=1000.0))
    assert far[:2] == pytest.approx(near[:2])  # the second loss is that after a first step, the same for both
    assert far[2] < near[2] + 1


def test_the_proximal_term_and_weight_decay_leave_views_alone_that_are_not_drawn():
    net = a_net(views=("axial", "coronal"))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    train(net, a_sampler(), a_schedule(weight_decay=1.0, proximal=1.0))
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("axial.")}


def test_other_batches_give_another_network():
    nets = a_net(), a_net()
    for seed, net in enumerate(nets):
        train(net, a_sampler(seed), a_schedule())
    assert not torch.equal(nets[0].net.head["1"].weight, nets[1].net.head["1"].weight)


def test_each_step_is_reported_with_the_mean_loss_so_far():
    heard = []
    mean = train(a_net(), a_sampler(), a_schedule(), on_step=lambda *values: heard.append(values))
    assert [values[:2] for values in heard] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert heard[-1][2] == mean
    first_alone = losses_of(a_net(), a_schedule())[0]
    assert heard[0][2] == pytest.approx(first_alone)
    assert all(math.isfinite(values[2]) for values in heard)


@pytest.mark.parametrize("method", ["full", "cp_lora"])
def test_training_in_bfloat16_follows_that_in_float32_and_keeps_parameters_and_loss_in_float32(method):
    results = []
    for precision in ("float32", "bfloat16"):
        net, kinds = a_net(), set()
        if method == "cp_lora":
            attach(net, AdapterTuning(method="cp_lora", rank=4), seed=1)
        net.net.head["1"].register_forward_hook(lambda _, __, y, kinds=kinds: kinds.add(y.dtype))
        loss = train(net, a_sampler(), a_schedule(), precision=precision)
        results.append(loss)
        assert kinds == {getattr(torch, precision)}
        assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
        assert isinstance(loss, float)
    assert results[1] == pytest.approx(results[0], rel=0.02)
    assert results[1] != results[0]


def test_training_in_bfloat16_is_repeated_bit_for_bit():
    nets = a_net(), a_net()
    for net in nets:
        attach(net, AdapterTuning(method="conv_dora", rank=4), seed=1)
        train(net, a_sampler(), a_schedule(), precision="bfloat16")
    first, second = (net.state_dict() for net in nets)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_of_a_network_with_logits_in_bfloat16_is_computed_in_float32():
    """Cross-entropy of 0.3 in bfloat16 would be 0.3008 in steps of 0.002; the loss of a constant is exact here."""
    logit = Constant(0.3)
    exact = train(Constant(0.30078125), a_sampler(), a_schedule(steps=1))  # 0.3 in bfloat16
    logit.register_forward_hook(lambda _, __, y: y.bfloat16())
    assert train(logit, a_sampler(), a_schedule(steps=1), precision="bfloat16") == pytest.approx(exact, rel=1e-6)


class Constant(nn.Module):
    """Says the same logit everywhere, so that the loss can be computed by hand."""

    def __init__(self, logit):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit))

    def forward(self, slices, view):
        return self.logit.expand(len(slices), 1, *slices.shape[2:])


def test_the_loss_is_dice_pooled_over_the_batch_plus_cross_entropy():
    _, label, _ = a_sampler().batch()
    p, share = 0.25, label.mean().item()
    dice = 1 - (2 * p * label.sum().item() + 1e-5) / (label.sum().item() + p * label.numel() + 1e-5)
    entropy = -share * math.log(p) - (1 - share) * math.log(1 - p)
    loss = train(Constant(math.log(p / (1 - p))), a_sampler(), a_schedule(steps=1))
    assert loss == pytest.approx(dice + entropy, rel=1e-5)


def test_resolutions_weigh_4_to_2_to_1_in_the_loss_of_deep_supervision():
    """Where blood is everywhere the Dice term is the same at each size, and so is the cross-entropy: by hand, a sum."""
    label = torch.ones(1, 1, 8, 8)
    logits = [torch.full((1, 1, size, size), logit) for size, logit in ((8, 0.0), (4, 1.0), (2, 2.0))]
    alone = [supervised_loss(level, torch.ones_like(level)).item() for level in logits]
    expected = (4 * alone[0] + 2 * alone[1] + alone[2]) / 7
    assert supervised_loss(logits, label).item() == pytest.approx(expected, rel=1e-5)


def test_a_single_pixel_of_blood_is_blood_at_every_resolution():
    label = torch.zeros(1, 1, 8, 8)
    label[0, 0, 3, 5] = 1
    right = [torch.full((1, 1, size, size), -20.0) for size in (8, 4, 2)]
    for level, (y, x) in zip(right, [(3, 5), (1, 2), (0, 1)], strict=True):
        level[0, 0, y, x] = 20
    assert supervised_loss(right, label).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_naming_step_and_round(value):
    with pytest.raises(RunFailed, match=r"the loss is (nan|inf) at step 1 of round 2, expected a number") as caught:
        train(Constant(value), a_sampler(), a_schedule(round=2))
    assert caught.value.exit_code == 3


@pytest.mark.slow
def test_monai_is_imported_without_transformers_which_works_afterwards():
    program = "import sys, sahfl.training; print('transformers' in sys.modules); import transformers, peft"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


IN_A_CHILD = """
import sys
from sahfl import training
found = sorted({"transformers", "matplotlib", "mlflow", "pandas", "scipy.signal"} & set(sys.modules))
from matplotlib import pyplot
from scipy import signal
queue.put(found)
"""


def test_a_worker_of_sahfl_also_spares_what_monai_plots_with():
    queue = get_context("spawn").Queue()
    child = own_process(exec, (IN_A_CHILD, {"queue": queue}))
    child.start()
    assert queue.get(timeout=120) == []
    child.join()


IN_A_USER_S_WORKER = """
import sahfl.training, pandas
from monai.data import CSVDataset
queue.put(len(CSVDataset(src=pandas.DataFrame({"a": [1, 2]}))))
"""


def test_a_worker_of_a_user_s_own_program_keeps_all_of_monai():
    context = get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=exec, args=(IN_A_USER_S_WORKER, {"queue": queue}))
    child.start()
    assert queue.get(timeout=120) == 2
    child.join()


def test_so_does_a_command_of_sahfl():
    begin = "from sahfl.process import stoppable\nmain = stoppable()\nmain.__enter__()\n"
    program = begin + IN_A_CHILD.replace("queue.put(found)", "print(found)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
