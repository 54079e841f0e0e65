"""The adapter folder: what is written is what is read, on its own base only; and Hugging Face PEFT reads it too."""

import json
import warnings

import numpy as np
import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import nn

from sahfl.adapters import digest, exchanged
from sahfl.adapters.attach import attach, detach, merge
from sahfl.adapters.files import save_tensors
from sahfl.adapters.folder import CARD, CONFIG, TENSORS, describe, put_adapter, read_adapter, save_adapter
from sahfl.config import AdapterTuning, WeightTuning
from sahfl.errors import AdapterError

METHODS = ["lora_c", "conv_lora", "cp_lora", "dora_c", "conv_dora", "cp_dora"]
X = torch.rand(2, 2, 16, 16, generator=torch.Generator().manual_seed(0))


class TwoLevels(nn.Module):
    """A network with a norm behind some convolutions, a transposed one and a head."""

    def __init__(self, *, transposed=True, width=6, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Sequential(nn.Conv2d(2, width, 3, padding=1), nn.InstanceNorm2d(width), nn.LeakyReLU())
            self.down = nn.Conv2d(width, 5, 3, stride=2, padding=1)
            self.up = nn.ConvTranspose2d(5, 4, 2, stride=2) if transposed else nn.Conv2d(5, 4, 1)
            self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.up(torch.tanh(self.down(self.first(x))))))


PARTS = {"encoder.1": ("first",), "bottleneck": ("down",), "decoder.1": ("up",), "head": ("head",)}


def base_digest(net):
    return digest(exchanged.read_all(net))


def trained(method, seed=1, **options):
    """A network with an adapter away from its start, and the adapter's note."""
    net = TwoLevels(**options)
    base = base_digest(net)
    attach(net, method, seed=seed, parts=PARTS, example=X)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in exchanged.parameters(net).values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return net, describe(net, method, base)


def save(folder, method, **options):
    net, note = trained(method, **options)
    save_adapter(folder, net, note)
    return net


ADAPTERS = {name: AdapterTuning(method=name, rank=2) for name in METHODS} | {
    "joint": AdapterTuning(method="cp_dora", rank=2, joint_kernel=True),
    "decoder-and-head": AdapterTuning(
        method="cp_lora", rank=2, layers=("decoder",), also_train=("head", "norm", "bias")
    ),
    "every-magnitude": AdapterTuning(method="conv_dora", rank=2, all_magnitudes=True),
    "over": AdapterTuning(method="conv_lora", rank=50),
    "full": WeightTuning(method="full"),
    "norm": WeightTuning(method="norm_bias"),
    "head": WeightTuning(method="last_layer"),
}


@pytest.mark.parametrize("method", ADAPTERS.values(), ids=ADAPTERS.keys())
@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "plain"])
def test_an_adapter_that_is_saved_and_put_on_its_base_computes_the_same_bit_for_bit(tmp_path, method, transposed):
    net = save(tmp_path, method, transposed=transposed)
    again = TwoLevels(transposed=transposed)
    put_adapter(again, read_adapter(tmp_path))
    assert torch.equal(again(X), net(X))
    assert not torch.equal(again(X), TwoLevels(transposed=transposed)(X))
    trainable = {name for name, parameter in again.named_parameters() if parameter.requires_grad}
    assert trainable == set(exchanged.parameters(net)) == set(exchanged.parameters(again))


@pytest.mark.parametrize("method", [ADAPTERS["cp_dora"], ADAPTERS["conv_dora"]], ids=["own", "peft"])
def test_the_same_adapter_gives_the_same_bytes(tmp_path, method):
    for name in ("one", "other"):
        save(tmp_path / name, method, transposed=False)
    for file in (TENSORS, CONFIG, CARD):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
    assert {path.name for path in (tmp_path / "one").iterdir()} == {TENSORS, CONFIG, CARD}


def test_taking_an_adapter_off_restores_the_base_and_another_can_be_put_on(tmp_path):
    for name, seed in (("one", 1), ("other", 2)):
        save(tmp_path / name, ADAPTERS["cp_lora"], seed=seed)
    net, before = TwoLevels(), TwoLevels()(X)
    put_adapter(net, read_adapter(tmp_path / "one"))
    one = net(X)
    detach(net)
    assert torch.equal(net(X), before)
    put_adapter(net, read_adapter(tmp_path / "other"))
    assert not torch.equal(net(X), one)


def test_switching_and_averaging_adapters_is_loading_another_state(tmp_path):
    for name, seed in (("one", 1), ("other", 2)):
        save(tmp_path / name, ADAPTERS["lora_c"], seed=seed)
    one, other = (read_adapter(tmp_path / name) for name in ("one", "other"))
    net = TwoLevels()
    put_adapter(net, one)
    first = net(X)
    exchanged.load(net, other.state)
    assert not torch.equal(net(X), first)
    exchanged.load(net, {name: (one.state[name] + other.state[name]) / 2 for name in one.state})
    expected, _ = trained(ADAPTERS["lora_c"])
    for name, parameter in exchanged.parameters(expected).items():
        parameter.data = torch.from_numpy((one.state[name] + other.state[name]) / 2)
    assert torch.equal(net(X), expected(X))


# --- D07: another architecture, method, rank or base ---------------------------------------------------------------


def test_D07_a_base_with_other_weights_is_refused_with_both_digests(tmp_path):
    save(tmp_path, ADAPTERS["cp_lora"])
    ours, theirs = base_digest(TwoLevels()), base_digest(TwoLevels(seed=5))
    net = TwoLevels(seed=5)
    before = net(X)
    with pytest.raises(AdapterError, match=f"base digest is {theirs[:12]}, the adapter belongs to {ours[:12]}"):
        put_adapter(net, read_adapter(tmp_path))
    assert torch.equal(net(X), before)


def test_D07_another_architecture_is_refused(tmp_path):
    save(tmp_path, ADAPTERS["cp_lora"])
    with pytest.raises(AdapterError, match=r"TwoLevels: base digest is .*other tensors or another architecture"):
        put_adapter(TwoLevels(width=8), read_adapter(tmp_path))


def test_D07_a_note_that_names_layers_that_the_network_does_not_have_is_refused(tmp_path):
    save(tmp_path, ADAPTERS["cp_lora"])
    edit(tmp_path, adapted=["first.0", "elsewhere"])
    with pytest.raises(AdapterError, match="TwoLevels: has no convolution 'elsewhere', the adapter is of another"):
        put_adapter(TwoLevels(), read_adapter(tmp_path))


def test_D07_tensors_of_another_rank_or_method_are_refused_naming_one(tmp_path):
    save(tmp_path, ADAPTERS["cp_lora"])
    for change, message in (
        ({"method": "cp_lora", "rank": 3}, r"'down.update.factor_height': got shape \(3, 2\), expected \(3, 3\)"),
        ({"method": "lora_c", "rank": 2}, "missing or unexpected tensors: down.update.down"),
    ):
        edit(tmp_path, method=change)
        with pytest.raises(AdapterError, match=message):
            put_adapter(TwoLevels(), read_adapter(tmp_path))


def test_D07_an_adapter_on_an_adapter_is_refused(tmp_path):
    net = save(tmp_path, ADAPTERS["cp_lora"])
    with pytest.raises(AdapterError, match="base digest is"):
        put_adapter(net, read_adapter(tmp_path))


def edit(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    config["sahfl"].update(changes)
    (folder / CONFIG).write_text(json.dumps(config))


def test_tensors_that_are_not_the_notes_are_refused(tmp_path):
    save(tmp_path, ADAPTERS["cp_lora"])
    tensors = read_adapter(tmp_path).state
    tensors["down.update.factor_in"] += 1
    save_tensors(tmp_path / TENSORS, tensors)
    with pytest.raises(AdapterError, match=rf"{TENSORS}: has digest [0-9a-f]{{12}}, the note says [0-9a-f]{{12}}"):
        read_adapter(tmp_path)


BROKEN = {
    "no-json": ("{", "is not the note of a sahfl adapter"),
    "list": ("[]", "is not the note of a sahfl adapter"),
    "foreign": ('{"peft_type": "LORA"}', "is not the note of a sahfl adapter"),
    "incomplete": ('{"sahfl": {}}', "sahfl.method: Field required"),
    "deep": ("[" * 100_000, "is not the note of a sahfl adapter"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_note_is_refused_naming_the_file(tmp_path, text, message):
    save(tmp_path, ADAPTERS["cp_lora"])
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(AdapterError, match=f"{CONFIG}: {message}"):
        read_adapter(tmp_path)


def test_a_missing_folder_is_refused_with_the_systems_reason(tmp_path):
    with pytest.raises(AdapterError, match=f"none/{CONFIG}: No such file"):
        read_adapter(tmp_path / "none")


# --- the model card ------------------------------------------------------------------------------------------------


def test_the_card_says_what_was_trained_on_what_and_how_good_it_is(tmp_path):
    net, note = trained(ADAPTERS["over"], transposed=False)
    study = {"study": "demo", "fold": 1, "rounds": 4, "sites": ("bern", "graz")}
    note = note.model_copy(update=study | {"metrics": {"dice": 0.4321, "n": 12.0, "n_no_blood": 0.0}})
    save_adapter(tmp_path, net, note)
    card = (tmp_path / CARD).read_text()
    for row in (
        "| rank | 50 |",
        f"| base network (SHA-256) | `{note.base_sha256}` |",
        "| with more terms than they need | 4 |",
        "| sites | bern, graz |",
        "| Dice, all with blood | 0.432 |",
        "| patients with blood | 12 |",
        "PeftModel.from_pretrained",
    ):
        assert row in card
    assert "PeftModel" not in save_card(tmp_path / "own", ADAPTERS["cp_lora"])


def save_card(folder, method):
    save(folder, method)
    return (folder / CARD).read_text()


# --- Hugging Face PEFT ---------------------------------------------------------------------------------------------


def load_in_peft(net, folder):
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        # PEFT warns of the key "sahfl", of the missing model card of the base, and of things of its own.
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(net, folder).eval()


def basic_unet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BasicUNet(2, 2, 1, features=(4, 4, 8, 8, 16, 4), upsample="nontrainable").eval()


PEFT_FORMS = {
    "lora": AdapterTuning(method="conv_lora", rank=3, alpha=5.0),
    "rslora": AdapterTuning(method="conv_lora", rank=4, scaling="sqrt_rank"),
    "dora-all-magnitudes": AdapterTuning(method="conv_dora", rank=3, all_magnitudes=True),
    "dora-magnitudes-left-out": AdapterTuning(method="conv_dora", rank=3),
}


@pytest.mark.parametrize("method", PEFT_FORMS.values(), ids=PEFT_FORMS.keys())
def test_peft_loads_the_folder_and_computes_the_same(tmp_path, method):
    net, x = basic_unet(), torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(3))
    base = net(x)
    before = base_digest(net)
    attached = attach(net, method, seed=0, example=x)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in exchanged.parameters(net).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    save_adapter(tmp_path, net, describe(net, method, before))
    if method.method == "conv_dora" and not method.all_magnitudes:
        assert len(attached.without_magnitude) > 10
    theirs = load_in_peft(basic_unet(), tmp_path)(x)
    assert (theirs - base).abs().max() > 0.01
    torch.testing.assert_close(theirs, net(x), rtol=1e-4, atol=1e-5)
    merge(net)
    torch.testing.assert_close(theirs, net(x), rtol=1e-4, atol=1e-5)


def test_a_method_that_is_not_pefts_does_not_pretend_to_be(tmp_path):
    for name, method, transposed in (
        ("cp", ADAPTERS["cp_lora"], False),
        ("transposed", ADAPTERS["conv_lora"], True),
        ("more", AdapterTuning(method="conv_lora", rank=2, layers=("encoder",), also_train=("head",)), False),
        ("full", ADAPTERS["full"], False),
    ):
        save(tmp_path / name, method, transposed=transposed)
        assert set(json.loads((tmp_path / name / CONFIG).read_text())) == {"sahfl"}


def test_the_number_of_parameters_in_the_note_is_that_of_the_exchanged_tensors(tmp_path):
    net = save(tmp_path, ADAPTERS["conv_dora"], transposed=False)
    adapter = read_adapter(tmp_path)
    assert adapter.note.parameters == sum(np.size(value) for value in adapter.state.values())
    assert adapter.note.parameters == sum(parameter.numel() for parameter in exchanged.parameters(net).values())
