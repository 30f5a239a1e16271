"""Taps and rectifiers: what they return, on SF-HF and on networks of other shapes, and that nothing is left behind."""

import copy
from contextlib import suppress
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from harvis_utils.networks import backward, taps
from harvis_utils.networks.sfhf import SFHF, folded_trunk
from harvis_utils.settings import ModelSettings

N_AXES, LENGTH, CLASSES = 3, 30, 4


class OneD(nn.Module):
    """Channels x time: convolutions see all axes at once."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(N_AXES, 5, 3, padding=1), nn.Conv1d(5, 6, 3, padding=1)
        self.open, self.pool, self.out = nn.LeakyReLU(0.1), nn.MaxPool1d(2), nn.Linear(6 * (LENGTH // 2), CLASSES)

    def forward(self, x):
        return self.out(self.pool(self.open(self.second(F.relu(self.first(x))))).flatten(1))


class TwoD(nn.Module):
    """A network that wants a channel dimension, and rectifies in place."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, (1, 5), padding=(0, 2)), nn.ReLU(inplace=True), nn.Conv2d(4, 4, (2, 3))
        )
        self.out = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.out(torch.relu(self.body(x)).mean((2, 3)))


def sfhf():
    torch.manual_seed(0)
    model = SFHF(N_AXES, LENGTH, CLASSES, ModelSettings(n_units=6, n_dense=8, batch_norm=True))
    for _ in range(3):
        model(torch.randn(32, N_AXES, LENGTH))
    return model.eval()


MODELS = {"sfhf": sfhf, "one": OneD, "two": lambda: taps.WithChannel(TwoD())}
LAYERS = {"sfhf": "conv2", "one": "second", "two": "network.body.0"}


def windows(n=5, seed=1):
    return torch.randn(n, N_AXES, LENGTH, generator=torch.Generator().manual_seed(seed))


def hooks_of(model):
    return [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks]


# ------------------------------------------------------------------------------------------------------------- taps


def test_maps_of_sfhf_are_those_of_its_own_code_and_of_the_folded_trunk():
    model, x = sfhf(), windows()
    with taps.record(model, ["conv1", "conv3"]) as found:
        model(x)
    own = model.feature_maps(x)
    for layer in ("conv1", "conv3"):
        assert torch.equal(found[layer], own[layer])
        folded = folded_trunk(model).feature_map(x.reshape(-1, LENGTH), layer).view(5, N_AXES, 6, LENGTH)
        assert torch.allclose(found[layer].transpose(1, 2), folded, atol=1e-5)
    assert [taps.find(model, layer).module for layer in model.layers] == ["norm_conv1", "norm_conv2", "norm_conv3"]


@pytest.mark.parametrize("rectified", [False, True])
def test_a_network_runs_no_further_than_to_the_last_place(rectified):
    model, x = OneD(), windows()
    tap = taps.find(model, "first", rectified)
    whole = {}
    with taps.record(model, [tap, "second"]) as maps:
        model(x)
        whole |= maps
    ran = []
    for name in ("second", "pool", "out"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    assert torch.equal(taps.maps_of(model, tap, x), whole["first"]) and ran == []
    (found,) = taps.chunks(model, ["second", tap], x)
    assert all(torch.equal(found[name], whole[name]) for name in whole) and ran == ["second"]
    assert not torch.overrides._get_current_function_mode_stack()
    model(x)
    assert ran == ["second", "second", "pool", "out"]


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.out = nn.Conv1d(N_AXES, 5, 3), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)
        nn.init.normal_(self.norm.bias, 0.4)

    def forward(self, x):
        return self.out(F.relu(self.norm(self.first(x))).mean(2))


@pytest.mark.parametrize("outer", ["silenced", "record"])
def test_blocks_in_one_another_see_what_the_others_changed(outer):
    """Also where the inner one runs the network no further than to its place."""
    torch.manual_seed(0)
    model, x = Normed().eval(), windows()
    tap = taps.find(model, "first", rectified=True)
    expected = F.relu(model.norm(model.first(x)))[:, :, None].index_fill(1, torch.tensor([2]), 0.0)
    blocks = {"silenced": lambda: taps.silenced(model, "first", [2]), "record": lambda: taps.record(model, [tap])}
    with blocks.pop(outer)() as one, next(iter(blocks.values()))() as two, torch.no_grad():
        scores = model(x)
        for _ in range(3):
            assert torch.equal(taps.maps_of(model, tap, x), expected)
        assert torch.equal((one or two)["first"], expected) and torch.equal(model(x), scores)
    assert torch.allclose(scores, model.out(expected[:, :, 0].mean(2)), atol=1e-6)
    assert not torch.overrides._get_current_function_mode_stack() and not hooks_of(model)


def caught(model, x):
    try:
        h = model.norm(model.first(x))
    except:  # noqa: E722
        h = model.norm(model.first(x))
    return model.out(F.relu(h).mean(2))


def swallowed(model, x):
    with suppress(BaseException):
        h = model.norm(model.first(x))
    return model.out(F.relu(h).mean(2))


@pytest.mark.parametrize("forward", [caught, swallowed])
def test_a_network_that_catches_everything_is_looked_at(forward):
    torch.manual_seed(0)
    model, plain, x = Normed().eval(), Normed().eval(), windows()
    plain.load_state_dict(model.state_dict())
    model.forward = partial(forward, model)
    for layer in ("first", "norm", taps.find(model, "norm", rectified=True)):
        assert torch.equal(taps.maps_of(model, layer, x), taps.maps_of(plain, layer, x))
    assert not hooks_of(model) and torch.equal(model(x), plain(x))


def test_windows_that_go_another_way_are_said_so():
    model, x = Normed().eval(), windows()
    model.forward = lambda x: model.norm(model.first(x)) if x.mean() > 50 else F.relu(model.norm(model.first(x)))
    tap = taps.find(model, "first", rectified=True)
    assert taps.maps_of(model, tap, x).min() == 0
    with pytest.raises(ValueError, match="do not go through the activation"):
        taps.maps_of(model, tap, x + 100)


def test_chunks_are_the_maps_of_all_windows(monkeypatch):
    monkeypatch.setattr(taps, "CHUNK", 2)
    model, x = sfhf().train(), windows(5)
    found = list(taps.chunks(model, ["conv1", taps.find(model, "conv3")], x.numpy()))
    assert [len(maps["conv1"]) for maps in found] == [2, 2, 1] and list(found[0]) == ["conv1", "conv3"]
    for layer in ("conv1", "conv3"):
        whole = taps.outputs(model, layer, x)
        assert torch.equal(whole, torch.cat([maps[layer] for maps in found])) and not whole.requires_grad
        assert torch.allclose(whole, taps.maps_of(model.eval(), layer, x), atol=1e-6)
        model.train()
    assert model.training and not hooks_of(model) and taps.device_of(nn.ReLU()) == torch.device("cpu")


@pytest.mark.parametrize("name", MODELS)
def test_unknown_layers_are_named(name):
    model = MODELS[name]()
    with pytest.raises(ValueError, match="unknown layer 'conv9'; valid layers: .*" + LAYERS[name].split(".")[-1]):
        taps.find(model, "conv9")
    with (
        pytest.raises(ValueError, match="unknown layer"),
        taps.record(model, [LAYERS[name], taps.Tap("mine", "conv9")]),
    ):
        pass
    assert not hooks_of(model)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_survives_a_block_also_after_an_error(name):
    model, x, layer = MODELS[name](), windows(), LAYERS[name]
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    keeps, x = [p.requires_grad for p in model.parameters()], windows()
    with taps.evaluating(model):
        scores = model(x)
        with taps.silenced(model, layer, []):
            assert torch.equal(model(x), scores)
        with taps.silenced(model, layer, [1, 3]):
            assert not torch.equal(model(x), scores)
        assert torch.equal(model(x), scores)
    forward = {m: m.forward.__func__ for m in model.modules()}
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        taps.evaluating(model),
        taps.record(model, [layer]),
        taps.silenced(model, layer, [0]),
        backward.rectifiers(backward.deconvnet),
    ):
        model(x)
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        raise RuntimeError("on purpose")
    assert not hooks_of(model)
    assert [m.training for m in model.modules()] == before[1]
    assert [p.requires_grad for p in model.parameters()] == keeps
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before[0].items())
    assert all(m.forward.__func__ is f for m, f in forward.items())
    y = torch.tensor([-1.0, 2.0], requires_grad=True)
    F.relu(y).sum().backward()
    assert torch.equal(y.grad, torch.tensor([0.0, 1.0])), "rectifiers are plain again"


# ------------------------------------------------------------------------------------------------------- rectifiers


def gradient_of(model, x, rule=None):
    x = x.clone().requires_grad_(True)
    if rule is None:
        model(x)[:, 0].sum().backward()
    else:
        with backward.rectifiers(rule):
            model(x)[:, 0].sum().backward()
    return x.grad


def equal_slope(x, slope, gradient):
    return torch.where(x > 0, gradient, gradient * slope)


@pytest.mark.parametrize("name", MODELS)
def test_forward_passes_do_not_change_and_equal_slopes_are_the_plain_gradient(name):
    model, x = MODELS[name]().eval(), windows()
    with backward.rectifiers(backward.deconvnet):
        assert torch.equal(model(x), model(x.clone()))
        inside = model(x)
    assert torch.equal(inside, model(x))
    assert torch.equal(gradient_of(model, x, equal_slope), gradient_of(model, x)), "bit for bit"
    assert not torch.equal(gradient_of(model, x, backward.deconvnet), gradient_of(model, x))


@pytest.mark.parametrize("call", [F.relu, torch.relu, torch.Tensor.relu, nn.ReLU(), nn.ReLU(inplace=True)])
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (backward.deconvnet, [2.0, 0.0, 2.0, 0.0]),
        (backward.guided, [0.0, 0.0, 2.0, 0.0]),
        (backward.sloped(0.5), [1.0, -0.5, 2.0, -1.0]),
        (backward.sloped(0.0), [0.0, 0.0, 2.0, -1.0]),
    ],
)
def test_rules_by_hand(call, rule, expected):
    x = torch.tensor([-1.0, -1.0, 1.0, 1.0], requires_grad=True)
    with backward.rectifiers(rule):
        out = call(x * 1.0)
        out.backward(torch.tensor([2.0, -1.0, 2.0, -1.0]))
    assert torch.equal(out.detach(), torch.tensor([0.0, 0.0, 1.0, 1.0])), "inputs are not changed in place"
    assert torch.equal(x.grad, torch.tensor(expected))


def test_the_inner_block_counts():
    x = torch.tensor([-1.0], requires_grad=True)
    with backward.rectifiers(backward.sloped(0.9)), backward.rectifiers(backward.sloped(0.3)):
        F.relu(x).backward()
    assert torch.allclose(x.grad, torch.tensor([0.3]))
