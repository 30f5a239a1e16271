"""Places in networks of all kinds: their dimensions, what is refused of them, where in time their samples lie."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from harvis_utils.lenses import ablation, deconvnet, dissection, dreams, occlusion, slopes
from harvis_utils.maximization import objectives, paper_methods, unit_statistics, visualization
from harvis_utils.networks import backward, layouts, taps
from harvis_utils.settings import MaximizationSettings, Step

N_AXES, LENGTH, CLASSES = 3, 16, 4


def windows(n=4, length=LENGTH, seed=0):
    return torch.randn(n, N_AXES, length, generator=torch.Generator().manual_seed(seed))


class Of(nn.Module):
    """A network out of its parts and a function of them and the windows."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.answer = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.answer(self, x)


def of(forward, **parts):
    torch.manual_seed(0)
    return Of(forward, **{name: make() for name, make in parts.items()}).eval()


def conv(n_in=N_AXES, n_out=5, kernel=3, **how):
    return lambda: nn.Conv1d(n_in, n_out, kernel, **{"padding": kernel // 2} | how)


def two_convs(act):
    """conv, activation, conv, activation, mean, classes."""
    parts = {"c1": conv(), "c2": conv(5, 6), "out": lambda: nn.Linear(6, CLASSES)}
    return of(lambda m, x: m.out(act(m.c2(act(m.c1(x)))).mean(2)), **parts)


# ------------------------------------------------------------------------------------------ what the dimensions are


def first(h):
    return h.transpose(1, 2)


class Pooling(nn.Module):
    """Attention pooling: weights (window, time), and what they weight (window, unit)."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(7, 1)

    def forward(self, h):
        weights = self.score(h)[..., 0].softmax(1)
        return weights, (h * weights[..., None]).sum(1)


@dataclass
class Output:
    n: int
    features: torch.Tensor


class Described(nn.Module):
    """Returns a dataclass, as Transformers of the hub do."""

    def __init__(self):
        super().__init__()
        self.c = nn.Conv1d(N_AXES, 5, 3)

    def forward(self, x):
        return Output(len(x), self.c(x))


def folded(m, x, slow):
    h = x.flatten(0, 1) if slow == "window" else x.transpose(0, 1).flatten(0, 1)
    return F.relu(m.look(h[:, None]))


#: name: network, its layer "look", the layout, the maps by hand out of what the layer gives
KINDS = {
    "Conv1d": (lambda: of(lambda m, x: m.look(x), look=conv()), "window unit time", lambda o: o[:, :, None]),
    "Conv1d of as many units as samples": (
        lambda: of(lambda m, x: m.look(x), look=conv(N_AXES, LENGTH)),
        "window unit time",
        lambda o: o[:, :, None],
    ),
    "Conv2d": (
        lambda: of(lambda m, x: m.look(x[:, None]), look=lambda: nn.Conv2d(1, 4, (1, 5))),
        "window unit axis time",
        lambda o: o,
    ),
    "Conv2d, time first": (
        lambda: of(lambda m, x: m.look(first(x)[:, None]), look=lambda: nn.Conv2d(1, 4, (5, 1))),
        "window unit time axis",
        lambda o: o.transpose(2, 3),
    ),
    "Linear, features last": (
        lambda: of(lambda m, x: m.look(first(x)), look=lambda: nn.Linear(N_AXES, 9)),
        "window time unit",
        lambda o: o.transpose(1, 2)[:, :, None],
    ),
    "Linear of as many units as samples": (
        lambda: of(lambda m, x: m.look(first(x)), look=lambda: nn.Linear(N_AXES, LENGTH)),
        "window time unit",
        lambda o: o.transpose(1, 2)[:, :, None],
    ),
    "ReLU behind features last": (
        lambda: of(lambda m, x: m.look(m.dense(first(x))), dense=lambda: nn.Linear(N_AXES, 9), look=nn.ReLU),
        "window time unit",
        lambda o: o.transpose(1, 2)[:, :, None],
    ),
    "LayerNorm": (
        lambda: of(
            lambda m, x: m.look(m.dense(first(x))),
            dense=lambda: nn.Linear(N_AXES, 9),
            look=lambda: nn.LayerNorm(9),
        ),
        "window time unit",
        lambda o: o.transpose(1, 2)[:, :, None],
    ),
    "LSTM": (
        lambda: of(lambda m, x: m.look(first(x)), look=lambda: nn.LSTM(N_AXES, 7, batch_first=True)),
        "window time unit",
        lambda o: o[0].transpose(1, 2)[:, :, None],
    ),
    "GRU of both directions, time first": (
        lambda: of(lambda m, x: m.look(x.permute(2, 0, 1)), look=lambda: nn.GRU(N_AXES, 4, bidirectional=True)),
        "time window unit",
        lambda o: o[0].permute(1, 2, 0)[:, :, None],
    ),
    "LSTM of both directions and many units": (
        lambda: of(
            lambda m, x: m.look(first(x)), look=lambda: nn.LSTM(N_AXES, 48, 1, batch_first=True, bidirectional=True)
        ),
        "window time unit",
        lambda o: o[0].transpose(1, 2)[:, :, None],
    ),
    "behind a GRU of both directions and many units": (
        lambda: of(
            lambda m, x: m.look(m.r(first(x))[0]),
            r=lambda: nn.GRU(N_AXES, 48, 1, batch_first=True, bidirectional=True),
            look=nn.Dropout,
        ),
        "window time unit",
        lambda o: o.transpose(1, 2)[:, :, None],
    ),
    "attention": (
        lambda: of(
            lambda m, x: m.look(*[F.relu(m.dense(first(x)))] * 3),
            dense=lambda: nn.Linear(N_AXES, 8),
            look=lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        ),
        "window time unit",
        lambda o: o[0].transpose(1, 2)[:, :, None],
    ),
    "Transformer layer": (
        lambda: of(
            lambda m, x: m.look(m.dense(first(x))),
            dense=lambda: nn.Linear(N_AXES, 8),
            look=lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True),
        ),
        "window time unit",
        lambda o: o.transpose(1, 2)[:, :, None],
    ),
    "attention over sensors": (
        lambda: of(
            lambda m, x: m.look(*[m.dense(first(x).reshape(-1, N_AXES, 1))] * 3)[0],
            dense=lambda: nn.Linear(1, 8),
            look=lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        ),
        "(window time) axis unit",
        lambda o: o[0].view(-1, LENGTH, N_AXES, 8).permute(0, 3, 2, 1),
    ),
    "pooling that returns weights too": (
        lambda: of(lambda m, x: m.look(m.dense(first(x)))[1], dense=lambda: nn.Linear(N_AXES, 7), look=Pooling),
        "window unit",
        lambda o: o[1][:, :, None, None],
    ),
    "axes in the batch": (
        lambda: of(lambda m, x: folded(m, x, "window"), look=conv(1, 6)),
        "(window axis) unit time",
        lambda o: o.view(-1, N_AXES, 6, LENGTH).transpose(1, 2),
    ),
    "axes in the batch, axis by axis": (
        lambda: of(lambda m, x: folded(m, x, "axis"), look=conv(1, 6)),
        "(axis window) unit time",
        lambda o: o.view(N_AXES, -1, 6, LENGTH).permute(1, 2, 0, 3),
    ),
    "sensors in the batch": (
        lambda: of(lambda m, x: m.look(F.pad(x, (0, 0, 0, 1)).unflatten(1, (2, 2)).flatten(0, 1)), look=conv(2, 5)),
        "(window axis) unit time",
        lambda o: o.view(-1, 2, 5, LENGTH).transpose(1, 2),
    ),
    "a dataclass": (
        lambda: of(lambda m, x: m.look(x).features, look=Described),
        "window unit time",
        lambda o: o.features[:, :, None],
    ),
    "times in the batch": (
        lambda: of(lambda m, x: m.look(first(x).flatten(0, 1)), look=lambda: nn.Linear(N_AXES, 6)),
        "(window time) unit",
        lambda o: o.view(-1, LENGTH, 6).transpose(1, 2)[:, :, None],
    ),
    "GroupNorm": (
        lambda: of(lambda m, x: m.look(m.c(x)), c=conv(N_AXES, 6), look=lambda: nn.GroupNorm(2, 6)),
        "window unit time",
        lambda o: o[:, :, None],
    ),
    "pooled to one sample": (
        lambda: of(lambda m, x: m.look(m.c(x)), c=conv(), look=lambda: nn.AdaptiveAvgPool1d(1)),
        "window unit time",
        lambda o: o[:, :, None],
    ),
    "depthwise": (
        lambda: of(lambda m, x: m.look(x), look=conv(N_AXES, 2 * N_AXES, groups=N_AXES)),
        "window unit time",
        lambda o: o[:, :, None],
    ),
    "dense": (
        lambda: of(lambda m, x: m.look(x.flatten(1)), look=lambda: nn.Linear(N_AXES * LENGTH, 7)),
        "window unit",
        lambda o: o[:, :, None, None],
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_dimensions_are_told_apart_and_silenced(name):
    make, layout, by_hand = KINDS[name]
    network, x = make(), windows()
    given = []
    with network.look.register_forward_hook(lambda m, a, out: given.append(out)), torch.no_grad():
        network(x)
    expected = by_hand(given[0]).detach()
    assert taps.located(network, "look", x).layout == layout
    assert torch.allclose(taps.outputs(network, "look", x.double().numpy()), expected, atol=1e-5)
    with taps.silenced(network, "look", [1]), torch.no_grad():
        silent = taps.maps_of(network, "look", x)
    assert silent[:, 1].abs().max() == 0
    others = [u for u in range(expected.shape[1]) if u != 1]
    assert torch.allclose(silent[:, others], expected[:, others], atol=1e-5)
    with (
        pytest.raises(ValueError, match=f"has units 0 to {expected.shape[1] - 1}"),
        taps.silenced(network, "look", [99]),
    ):
        network(x)
    declared = taps.find(network, "look", layout=layout)
    assert torch.equal(taps.outputs(network, taps.located(network, declared, x), x), taps.outputs(network, "look", x))


def test_units_that_a_layer_with_features_last_does_not_have_are_refused():
    network = KINDS["Linear, features last"][0]()
    with pytest.raises(ValueError, match="units 0 to 8"):
        slopes.ascend_units(network, "look", [12], windows(1), Step("adam", 0.1, 1.0), 1)


class TwiceNormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.n = nn.Conv1d(N_AXES, 5, 3), nn.BatchNorm1d(5, track_running_stats=False)

    def forward(self, x):
        return self.n(self.c(x))


REFUSED = {
    "flattened": (
        lambda: of(lambda m, x: m.out(m.look(m.c(x))), c=conv(), look=nn.Flatten, out=lambda: nn.Linear(80, 4)),
        "no dimension is left for the units.*layout='window unit'",
    ),
    "recurrent and flattened": (
        lambda: of(
            lambda m, x: m.out(m.look(m.r(first(x))[0])),
            r=lambda: nn.LSTM(N_AXES, 5, batch_first=True),
            look=nn.Flatten,
            out=lambda: nn.Linear(80, 4),
        ),
        "no dimension is left for the units",
    ),
    "the windows themselves": (
        lambda: of(lambda m, x: m.c(m.look(x)), c=conv(), look=nn.Dropout),
        "no dimension is left for the units.*layout='window unit time'",
    ),
    "dense over time": (
        lambda: of(lambda m, x: m.look(m.c(x)), c=conv(), look=lambda: nn.Linear(LENGTH, 8)),
        "follows neither time nor the sensor axes.*layout='window time unit'",
    ),
    "a recurrent layer that takes windows for times": (
        lambda: of(lambda m, x: m.look(first(x)), look=lambda: nn.LSTM(N_AXES, 5)),
        "depends on the other windows of the batch.*batch_first",
    ),
    "a norm without running statistics": (
        lambda: of(lambda m, x: m.n(m.look(x)), look=TwiceNormed, n=nn.ReLU),
        "depends on the other windows of the batch.*running statistics",
    ),
    "functional dropout": (
        lambda: of(lambda m, x: m.look(F.dropout(m.c(x))), c=conv(), look=nn.ReLU),
        "other values each time.*training=self.training",
    ),
    "a layer without windows": (
        lambda: of(lambda m, x: m.c(x) + m.look(torch.ones(3, 5))[0, :, None], c=conv(), look=lambda: nn.Linear(5, 5)),
        "does not depend on the windows",
    ),
    "a layer that never runs": (lambda: of(lambda m, x: m.c(x), c=conv(), look=conv()), "layer look did not run"),
    "a layer used by its weight": (
        lambda: of(lambda m, x: F.conv1d(x, m.look.weight), look=conv()),
        "layer look did not run",
    ),
    "a layer that runs twice": (
        lambda: of(lambda m, x: m.look(m.c2(m.look(m.c(x)))), c=conv(), c2=conv(5, 6), look=nn.ReLU),
        r"runs 2 times.*call=0",
    ),
    "a cell that runs at every time": (
        lambda: of(lambda m, x: [m.look(x[:, :, t]) for t in range(LENGTH)][-1], look=lambda: nn.GRUCell(N_AXES, 5)),
        "runs 16 times",
    ),
    "one window at a time": (
        lambda: of(lambda m, x: torch.stack([m.look(one) for one in x]), look=conv()),
        "runs 3 times",
    ),
    "a sparse tensor": (
        lambda: of(lambda m, x: m.look(m.c(x).flatten(1).to_sparse()), c=conv(), look=nn.Identity),
        "returns no tensor",
    ),
    "no tensor": (lambda: of(lambda m, x: m.c(x), c=conv(), look=nn.Identity), "did not run"),
    "a recurrent layer that runs backwards": (
        lambda: of(lambda m, x: m.look(first(x.flip(2)))[0], look=lambda: nn.GRU(N_AXES, 5, batch_first=True)),
        "follows neither time nor the sensor axes",
    ),
    "a state that is kept": (
        lambda: of(keeping_its_state, look=lambda: nn.LSTM(N_AXES, 5, batch_first=True)),
        "(other values each time|other windows of the batch).*a state that is kept",
    ),
    "some of the windows": (
        lambda: of(lambda m, x: m.look(x[x.mean((1, 2)) > 0]), look=conv()),
        "other sizes for other windows",
    ),
    "a constant": (
        lambda: of(lambda m, x: m.look(0 * m.c(x).mean(2, keepdim=True)), c=conv(), look=nn.ReLU),
        "it is open which dimension is that of the units",
    ),
}


def keeping_its_state(m, x):
    state = getattr(m, "state", None)
    state = state if state is not None and state[0].shape[1] == len(x) else None
    out, m.state = m.look(first(x), state)
    return out


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_is_refused_in_words(name):
    make, words = REFUSED[name]
    network, x = make(), windows()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    chance = torch.random.get_rng_state()
    for look in (taps.located, taps.maps_of):
        with pytest.raises(ValueError, match="(?s)" + words):
            look(network, "look", x)
    with pytest.raises(ValueError, match="(?s)" + words), taps.silenced(network, "look", [0]):
        network(x)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    if "dropout" not in name:
        assert torch.equal(torch.random.get_rng_state(), chance)
    assert not [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize("name", [name for name, (_, words) in REFUSED.items() if "no dimension" in words])
def test_what_is_advised_can_be_declared(name):
    network, x = REFUSED[name][0](), windows()
    with pytest.raises(ValueError, match="layout=") as refused:
        taps.located(network, "look", x)
    advised = re.search(r"layout='([^']*)'", str(refused.value))[1]
    assert taps.located(network, taps.find(network, "look", layout=advised), x).layout == advised


@pytest.mark.parametrize("length", [LENGTH, 18, 48])
def test_a_dimension_of_axes_and_times_in_turn_is_not_that_of_axes(length):
    network = of(lambda m, x: m.look(first(x).reshape(len(x), N_AXES, -1)), look=conv())
    with pytest.raises(ValueError, match="follows neither time nor the sensor axes"):
        taps.located(network, "look", windows(length=length))


SHORT = {
    "one unit of two samples": (6, 2, lambda m, x: m.look(m.c(x)), {"c": conv(6, 1), "look": nn.ReLU}),
    "one unit of three samples": (
        3,
        3,
        lambda m, x: m.look(m.d(F.relu(m.c(x)))),
        {"c": conv(3, 1), "d": conv(1, 1), "look": nn.ReLU},
    ),
    "sensors as the steps of a Transformer": (
        6,
        2,
        lambda m, x: m.look(m.c(x)),
        {"c": lambda: nn.Linear(2, 4), "look": lambda: nn.TransformerEncoderLayer(4, 1, 8, batch_first=True)},
    ),
    "dense over four times": (4, 4, lambda m, x: m.look(m.c(x)), {"c": conv(4, 3), "look": lambda: nn.Linear(4, 4)}),
}


@pytest.mark.parametrize("name", SHORT)
def test_windows_too_short_to_tell_are_not_read_by_chance(name):
    n_axes, length, forward, parts = SHORT[name]
    x, found = torch.randn(4, n_axes, length, generator=torch.Generator().manual_seed(0)), set()
    for seed in range(4):
        torch.manual_seed(seed)
        try:
            found.add(taps.located(Of(forward, **{part: make() for part, make in parts.items()}), "look", x).layout)
        except ValueError as error:
            assert "name another layer" in str(error)
    assert found <= {"window axis unit" if "sensors" in name else "window unit time"}


def test_a_layer_in_the_place_of_another_is_looked_at_anew():
    class Turned(nn.Module):
        def forward(self, h):
            return first(h)

    network, x = of(lambda m, x: m.look(m.c(x)), c=conv(), look=nn.Identity), windows()
    for _ in range(10):  # so that one gets the address of one that is gone
        assert taps.located(network, "look", x).layout == "window unit time"
        network.look = Turned()
        assert taps.located(network, "look", x).layout == "window time unit"
        network.look = nn.Identity()


def test_a_layer_of_which_the_first_output_is_meant_has_no_other():
    """A recurrent layer's last states are none of its places, attention's weights neither."""
    network = of(lambda m, x: m.look(first(x))[1], look=lambda: nn.GRU(N_AXES, 5, batch_first=True))
    assert taps.outputs(network, "look", windows()).shape == (4, 5, 1, LENGTH)
    table = taps.places(of(lambda m, x: m.p(m.d(first(x)))[1], d=lambda: nn.Linear(N_AXES, 7), p=Pooling), windows())
    assert table.set_index("layer").loc["p", "output"] == (4, 7), "the shape of what is looked at"


def test_layouts_are_checked():
    network, x = KINDS["Conv1d"][0](), windows()
    for layout in ("unit time", "window unit unit", "window units", "window (unit time", ""):
        with pytest.raises(ValueError, match="should name each dimension"):
            taps.find(network, "look", layout=layout)
    with pytest.raises(ValueError, match="does not fit an output of shape"):
        taps.maps_of(network, taps.find(network, "look", layout="window unit axis time"), x)
    with pytest.raises(ValueError, match="windows have no such layout"):
        taps.WithLayout(network, "window unit axis time")
    flattened, x = REFUSED["flattened"][0](), windows()
    declared = taps.find(flattened, "look", layout="window unit")
    assert taps.outputs(flattened, declared, x).shape == (4, 80, 1, 1)
    view, words = layouts.apart(torch.zeros(12, 5), layouts.parsed("(time window) unit"), {"window": 4, "axis": 3}, "x")
    assert view.shape == (3, 4, 5) and layouts.as_maps(view, words).shape == (4, 5, 1, 3)


def test_a_module_that_runs_twice_is_two_places():
    network, x = REFUSED["a layer that runs twice"][0](), windows()
    early, late = (taps.find(network, "look", call=i) for i in (0, 1))
    with taps.record(network, [early, late]) as maps, torch.no_grad():
        network(x)
    h = F.relu(network.c(x))
    assert torch.equal(maps[early.name][:, :, 0], h) and torch.equal(maps[late.name][:, :, 0], F.relu(network.c2(h)))
    with taps.silenced(network, early, [2]), taps.record(network, [late]) as maps, torch.no_grad():
        network(x)
    h[:, 2] = 0
    assert torch.allclose(maps[late.name][:, :, 0], F.relu(network.c2(h)), atol=1e-6)
    with pytest.raises(ValueError, match="no call 2"):
        taps.maps_of(network, taps.find(network, "look", call=2), x)


def net_with_compiled_forward():
    network = two_convs(F.relu)
    network.forward = torch.compile(network.forward, backend="eager")
    return network


def compiled_inside():
    network = two_convs(F.relu)
    network.c2.compile(backend="eager")
    return network


def compiled_in_place():
    network = two_convs(F.relu)
    network.compile(backend="eager")
    return network


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv1d(N_AXES, 5, 3)

    def forward(self, x):
        return F.relu(self.c1(x)).mean(2)


COMPILED = {
    "torch.compile": lambda: torch.compile(two_convs(F.relu), backend="eager"),
    "its compile method": compiled_in_place,
    "a compiled part": compiled_inside,
    "a compiled forward": net_with_compiled_forward,
    "traced": lambda: torch.jit.trace(Plain(), windows()),
    "scripted": lambda: torch.jit.script(Plain()),
    "a scripted part": lambda: nn.Sequential(torch.jit.script(Plain()), nn.Linear(5, CLASSES)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_networks_are_refused(name):
    network = COMPILED[name]()
    layer = next(n for n, m in network.named_modules() if n.endswith("c1"))
    for use in (
        lambda: taps.find(network, layer),
        lambda: taps.maps_of(network, layer, windows()),
        lambda: taps.silenced(network, layer, [0]).__enter__(),
        lambda: taps.places(network, windows()),
        lambda: taps.scores_of(network, windows()),
    ):
        with pytest.raises(ValueError, match="compiled|TorchScript.*pass the network as it was before"):
            use()


# ------------------------------------------------------------------------------------------------- habits of networks


def in_place(change):
    return lambda m, x: m.out(F.relu(m.c2(F.relu(m.c1(change(x))))).mean(2))


CHANGED = {
    "clamp_": (lambda x: x.clamp_(-0.5, 0.5), lambda x: x.clamp(-0.5, 0.5)),
    "sub_": (lambda x: x.sub_(x.mean(2, keepdim=True)), lambda x: x - x.mean(2, keepdim=True)),
    "mul_": (lambda x: x.mul_(2), lambda x: 2 * x),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_network_that_changes_its_input_in_place_does_not_change_windows(name):
    parts = {"c1": conv(), "c2": conv(5, 6), "out": lambda: nn.Linear(6, CLASSES)}
    network, plain = (of(in_place(change), **parts) for change in CHANGED[name])
    x, before, axes = windows().numpy(), windows().numpy(), occlusion.by_axis(N_AXES)
    looks = {
        "maps": lambda net: taps.outputs(net, "c2", x),
        "statistics": lambda net: unit_statistics.collect(net, x, place="c2")["th_eap"],
        "occlusion": lambda net: occlusion.drops(net, x, [0] * 4, axes, occlusion.Occluder(3), "c2")["log_odds"],
        "ablation": lambda net: ablation.drops(net, ["c2"], Split(x, np.arange(4)), CLASSES)["probability"],
        "gradient": lambda net: deconvnet.project(net, "c2", x, deconvnet.strongest(), "gradient"),
        "visualization": lambda net: visualization.visualize(net, objectives.channel("c2", 1), x, n_steps=3).signal,
        "ascent": lambda net: maximized(net, "c2", 6, methods=["naive"])["signal"],
    }
    for what, look in looks.items():
        assert np.array_equal(look(network), look(plain)), what
        assert np.array_equal(x, before), what


def maximized(network, layer, n_units, **how):
    about = {"n_axes": N_AXES, "length": LENGTH, "settings": MaximizationSettings(n_steps=3)} | how
    return paper_methods.maximize(network, layer, np.ones(n_units), **about)


def without_gradients(m, x):
    with torch.no_grad():
        h = m.c2(F.relu(m.c1(x)))
    return m.out(F.relu(h).mean(2))


@pytest.mark.parametrize("forward", [without_gradients, lambda m, x: m.out(m.c2(m.c1(x).detach()).mean(2))])
def test_what_no_gradient_leads_back_from_is_not_climbed(forward):
    network, x = of(forward, c1=conv(), c2=conv(5, 6), out=lambda: nn.Linear(6, CLASSES)), windows()
    for climb in (
        lambda: maximized(network, "c2", 6, methods=["L2+TV"]),
        lambda: visualization.visualize(network, objectives.channel("c2", 1), x, n_steps=1),
        lambda: visualization.visualize(network, objectives.class_score(1), x, n_steps=1),
        lambda: deconvnet.project(network, "c2", x, deconvnet.strongest(), "gradient"),
        lambda: slopes.ascend_units(network, "c2", [0], x, Step("adam", 0.1, 1.0), 1),
        lambda: dreams.smallest_change(network, x, 3, 0),
    ):
        with pytest.raises(ValueError, match="no gradient leads from .* back to the windows"):
            climb()
    row = taps.places(network, x).set_index("layer").loc["c2"]
    assert row["ablation"] == "yes" and "no gradient" in row["climb"] and "no gradient" in row["backward"]


def test_layers_with_parametrized_weights_are_layers():
    normed = nn.utils.parametrizations.weight_norm
    parts = {"c": lambda: normed(nn.Conv1d(N_AXES, 5, 3, padding=1)), "out": lambda: nn.Linear(5, CLASSES)}
    network, x = of(lambda m, x: m.out(F.relu(m.c(x)).mean(2)), **parts), windows(8)
    table = taps.places(network, x).set_index("layer")
    assert table.loc["c", "layout"] == "window unit time" and table.loc["c", "backward"] == "yes"
    assert "does not depend on the windows" in table.loc["c.parametrizations.weight", "refused"]
    y = np.arange(8) % CLASSES
    found = ablation.drops(network, ["c"], Split(x.numpy(), y), CLASSES)["probability"].values[0]
    with torch.no_grad():
        p = network(x).softmax(1)
        for unit in range(5):
            h = F.relu(network.c(x))
            h[:, unit] = 0
            lost = (p - network.out(h.mean(2)).softmax(1)).numpy()
            assert np.allclose(found[unit], [lost[y == k, k].mean() for k in range(CLASSES)], atol=1e-6)


def test_masked_transformers_do_not_turn_to_nested_tensors():
    def forward(m, x):
        mask = torch.zeros(len(x), LENGTH, dtype=torch.bool)
        mask[:, -2:] = True
        return m.out(m.look(m.dense(first(x)), src_key_padding_mask=mask)[:, : LENGTH - 2].mean(1))

    layer = lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)  # noqa: E731
    parts = {"dense": lambda: nn.Linear(N_AXES, 8), "look": lambda: nn.TransformerEncoder(layer(), 2)}
    network, x = of(forward, **parts, out=lambda: nn.Linear(8, CLASSES)), windows()
    for name in ("look", "look.layers.1", "look.layers.0.linear1"):
        assert taps.located(network, name, x).layout == "window time unit"
    with torch.no_grad(), taps.record(network, ["look.layers.1"]) as maps:
        scores = network(x)
    assert network.look.use_nested_tensor and torch.allclose(scores, network(x), atol=1e-5)
    steps = maps["look.layers.1"][:, :, 0, : LENGTH - 2]
    assert torch.allclose(network.out(steps.mean(2)), scores, atol=1e-5)


def test_hooks_of_the_user_count():
    network = nn.Sequential(nn.Conv2d(1, 5, (1, 3)), nn.ReLU())
    network.register_forward_pre_hook(lambda m, args: (args[0][:, None],))
    network[0].register_forward_hook(lambda m, args, out: 2 * out)
    maps = taps.outputs(network, "0", windows())
    assert torch.allclose(maps, 2 * F.conv2d(windows()[:, None], network[0].weight, network[0].bias), atol=1e-6)


class NeverAlone(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.out = nn.Conv1d(N_AXES, 5, 3), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.out(F.relu(self.c1(x)).mean(2).squeeze())  # which takes a single window's dimension away


def test_a_network_that_takes_no_single_window_is_looked_at():
    network, x = NeverAlone(), windows()
    assert (taps.places(network, x)[["ablation", "occlusion"]] == "yes").all(axis=None)
    assert ablation.drops(network, ["c1"], Split(x.numpy(), np.arange(4)), CLASSES)["f1"].shape == (1, 5, CLASSES)
    assert maximized(network, "c1", 5, methods=["naive"])["signal"].shape == (1, 5, N_AXES, LENGTH)


def test_windows_go_where_the_network_is():
    network = two_convs(F.relu).to("meta")
    assert taps.as_windows(network, windows().numpy()).device.type == "meta"


# ---------------------------------------------------------------------------------------------------------- in place


@pytest.mark.parametrize("act", [lambda h: F.relu(h, inplace=True), lambda h: h.relu_(), lambda h: h.clamp_(min=0)])
def test_what_follows_in_place_does_not_change_a_place(act):
    network, plain, x = two_convs(act), two_convs(F.relu), windows()
    assert torch.equal(taps.maps_of(network, "c2", x), taps.maps_of(plain, "c2", x)), "conv(x), as it was"
    with backward.rectifiers(backward.deconvnet):
        inside = taps.maps_of(network, "c2", x)
    assert torch.equal(inside, taps.maps_of(plain, "c2", x))
    for slope in (None, 0.0, 0.3):
        step, start = Step("adam", 0.1, 1.0), windows(2)
        one, two = (slopes.ascend_units(net, "c2", range(6), start, step, 5, slope) for net in (network, plain))
        assert torch.equal(one.curve, two.curve) and torch.equal(one.last, two.last)
    for rule in deconvnet.RULES:
        one, two = (deconvnet.project(net, "c2", x, deconvnet.strongest(), rule) for net in (network, plain))
        assert torch.equal(one, two)
    made = [visualization.visualize(net, -objectives.channel("c2", 1), x, n_steps=40) for net in (network, plain)]
    assert np.array_equal(made[0].score, made[1].score) and made[0].score.max() > 0


def test_a_residual_beside_an_activation_in_place_is_the_same_under_a_rule():
    def forward(m, x):
        h = m.c1(x)
        out = F.relu(h, inplace=True)
        return out + h  # h is rectified by now

    network, x = of(forward, c1=conv()), windows()
    with backward.rectifiers(backward.guided):
        inside = network(x)
    assert torch.equal(inside, network(x)) and torch.equal(inside, 2 * F.relu(network.c1(x)))


def changed_in_place(change):
    def forward(m, x):
        h = m.n(m.c(x))
        change(h, x)
        return m.out(F.relu(h).mean(2))

    return of(forward, c=conv(), n=lambda: nn.BatchNorm1d(5), out=lambda: nn.Linear(5, CLASSES))


def added(h, x):
    h += x.mean(1, keepdim=True)


def set_anew(h, x):
    h[:, 1:4] = x


@pytest.mark.parametrize("change", [added, set_anew, lambda h, x: h[:, 1].mul_(2), lambda h, x: h.mul_(x[:, :1])])
def test_what_is_rectified_after_a_change_in_place_is_not_the_place(change):
    """A residual that is added in place goes to the ReLU too: the layer's units are not what comes out of that."""
    network, x = changed_in_place(change), windows()
    for layer in ("c", "n"):
        assert not taps.behind(network, layer, x).rectified
        drops = occlusion.drops(network, x, [0] * 4, occlusion.by_axis(N_AXES), occlusion.Occluder(3), layer)
        assert drops["unit"].values.tolist() == taps.maps_of(network, layer, x).sum((2, 3)).argmax(1).tolist()
    assert taps.behind(changed_in_place(lambda h, x: None), "c", x).rectified


# -------------------------------------------------------------------------------------------------- norm, then ReLU


class ByModules(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(N_AXES, 6, 3, padding=1), norm(), nn.ReLU(inplace=True))
        self.out = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.out(self.body(x).mean(2))


def functional_norm(m, x):
    c, n = m.body[0], m.body[1]
    h = F.batch_norm(c(x), n.running_mean, n.running_var, n.weight, n.bias)
    return m.out(torch.clamp(h, min=0).mean(2))


NORMED = {
    "modules": lambda m, x: m.out(m.body(x).mean(2)),
    "functional ReLU": lambda m, x: m.out(F.relu(m.body[1](m.body[0](x))).mean(2)),
    "functions alone": functional_norm,
    "dropout between": lambda m, x: m.out(F.dropout(m.body[1](m.body[0](x)), 0.3, m.training).relu().mean(2)),
    "transposed between": lambda m, x: m.out(
        F.relu(m.body[1](m.body[0](x)).transpose(1, 2).contiguous()).mean(1),
    ),
}


def normed(name, norm=lambda: nn.BatchNorm1d(6)):
    body = lambda: nn.Sequential(nn.Conv1d(N_AXES, 6, 3, padding=1), norm(), nn.ReLU(inplace=True))  # noqa: E731
    network = of(NORMED[name], body=body, out=lambda: nn.Linear(6, CLASSES)).train()
    for seed in range(3):
        network(2 * windows(16, seed=seed) + 0.5)
    with torch.no_grad():
        network.body[1].bias += 0.4
    return network.eval()


@pytest.mark.parametrize("name", NORMED)
def test_a_silenced_unit_is_silent_behind_norm_and_rectifier(name):
    network, x = normed(name), windows()
    rectified = F.relu(network.body[1](network.body[0](x)))
    rectified[:, 2] = 0
    with taps.silenced(network, "body.0", [2]), torch.no_grad():
        found = network(x)
    assert torch.allclose(found, network.out(rectified.mean(2)), atol=1e-6)
    behind = taps.behind(network, "body.0", x)
    maps = taps.maps_of(network, behind, x)[:, :, 0].detach()
    assert behind.rectified and torch.allclose(maps, F.relu(network.body[1](network.body[0](x))), atol=1e-6)
    classes = [0] * len(x)
    drops = occlusion.drops(network, x, classes, occlusion.by_axis(N_AXES), occlusion.Occluder(3), "body.0")
    assert drops["unit"].values.tolist() == maps.sum(2).argmax(1).tolist()


def test_a_norm_over_units_keeps_the_others_as_they_were():
    network, x = normed("functional ReLU", lambda: nn.GroupNorm(2, 6)), windows()
    rectified = F.relu(network.body[1](network.body[0](x))).detach()
    rectified[:, 2] = 0
    with taps.silenced(network, "body.0", [2]), torch.no_grad():
        assert torch.allclose(network(x), network.out(rectified.mean(2)), atol=1e-6)


@pytest.mark.parametrize("norm", [nn.Identity, lambda: nn.BatchNorm1d(6)])
def test_behind_means_there_are_the_rectified_means(norm):
    def forward(m, x):
        return m.out(F.relu(m.n(F.avg_pool1d(m.c(x), 2))).mean(2))

    network, x = of(forward, c=conv(N_AXES, 6), n=norm, out=lambda: nn.Linear(6, CLASSES)), windows()
    rectified = F.relu(network.n(F.avg_pool1d(network.c(x), 2)))
    maps = taps.maps_of(network, taps.behind(network, "c", x), x)
    assert torch.allclose(maps[:, :, 0], rectified, atol=1e-6)


def test_a_unit_that_goes_two_ways_is_silent_on_both():
    def forward(m, x):
        h = m.c(x)
        return F.relu(m.n(h)) + h

    network, x = of(forward, c=conv(), n=lambda: nn.BatchNorm1d(5)), windows()
    h = network.c(x).detach()
    h[:, 1] = 0
    with taps.silenced(network, "c", [1]), torch.no_grad():
        assert torch.allclose(network(x), F.relu(network.n(h)) + h, atol=1e-6)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("both", [False, True])
def test_a_recurrent_unit_is_silent_in_the_last_state_too(kind, both):
    def forward(m, x):
        _, state = m.r(first(x))
        h = state[0] if isinstance(state, tuple) else state
        return m.out(h[-2:].transpose(0, 1).flatten(1) if both else h[-1])

    width = 10 if both else 5
    make = lambda: kind(N_AXES, 5, 2, batch_first=True, bidirectional=both)  # noqa: E731
    network, x = of(forward, r=make, out=lambda: nn.Linear(width, CLASSES)), windows()
    unit = width - 1
    with taps.silenced(network, "r", [unit]), torch.no_grad():
        found = network(x)
    with torch.no_grad():
        network.out.weight[:, unit] = 0
        assert torch.allclose(found, network(x), atol=1e-6)


# ------------------------------------------------------------------------------------------------ scores and windows


class Split:
    """What :func:`ablation.drops` takes of a split."""

    def __init__(self, x, activity):
        self.x, self.activity = x, activity

    def __len__(self):
        return len(self.x)


ENDS = {
    "scores": lambda h: h,
    "probabilities": lambda h: h.softmax(1),
    "log probabilities": lambda h: h.log_softmax(1),
    "tuple": lambda h: (h, h.sum(1)),
    "dictionary": lambda h: {"logits": h, "features": h},
    "probabilities in a list": lambda h: [h.softmax(1), h],
}


def ending(name):
    parts = {"c1": conv(), "out": lambda: nn.Linear(5, CLASSES)}
    return of(lambda m, x: ENDS[name](m.out(F.relu(m.c1(x)).mean(2))), **parts)


@pytest.mark.parametrize("name", ENDS)
def test_class_scores_are_read_from_whatever_a_network_returns(name):
    network, plain, x = ending(name), ending("scores"), windows(8)
    y, axes = np.arange(8) % CLASSES, occlusion.by_axis(N_AXES)
    assert torch.allclose(taps.scores_of(network, x).softmax(1), plain(x).softmax(1), atol=1e-6)
    one, two = (occlusion.drops(net, x.numpy(), y, axes, occlusion.Occluder(3), "c1") for net in (network, plain))
    for value in one:
        assert np.allclose(one[value], two[value], atol=1e-5), value
    one, two = (ablation.drops(net, ["c1"], Split(x.numpy(), y), CLASSES) for net in (network, plain))
    assert np.allclose(one["probability"], two["probability"], atol=1e-6) and (one["probability"] != 0).any()
    one, two = (dreams.smallest_change(net, x, 3, 0) for net in (network, plain))
    assert np.array_equal(one.before, two.before)
    for objective in (objectives.channel("c1", 1), objectives.class_probability(2)):
        assert torch.allclose(objective(network, x), objective(plain, x), atol=1e-6)
    made = visualization.visualize(network, objectives.class_score(1), x.numpy(), n_steps=3)
    assert np.isfinite(made.score).all()


@pytest.mark.parametrize("end", [lambda h: None, lambda h: h[:, 0], lambda h: h[:, :1], lambda h: h[:, :, None], str])
def test_no_class_scores_are_said_so(end):
    network = of(lambda m, x: end(m.c1(x).mean(2)), c1=conv())
    with pytest.raises(ValueError, match="class scores .* are wanted"):
        taps.scores_of(network, windows())
    assert objectives.channel("c1", 1)(network, windows()).shape == (4,)


@pytest.mark.parametrize("end", [lambda z, y: (z, y), lambda z, y: {"features": z, "logits": y}, Output])
def test_features_that_come_before_the_scores_are_not_taken_for_them(end):
    def forward(m, x):
        z = F.relu(m.c1(x)).mean(2)
        return end(z, m.out(z))

    network, x = of(forward, c1=conv(), out=lambda: nn.Linear(5, CLASSES)), windows()
    if end is Output:
        assert taps.scores_of(of(lambda m, x: Output(1, m.c1(x).mean(2)), c1=conv()), x).shape == (4, 5)
    with pytest.raises(ValueError, match="looks like features.*scores first"):
        occlusion.drops(network, x, [0] * 4, occlusion.by_axis(N_AXES), occlusion.Occluder(3))
    for objective in (objectives.class_score(1), objectives.in_blocks([(objectives.class_probability([0] * 4), 4)])):
        with pytest.raises(ValueError, match="looks like features.*scores first"):
            objective(network, x)


def test_scores_are_windows_by_classes():
    network = of(lambda m, x: m.c1(x).mean(2).T, c1=conv())
    for n in (4, 5):
        with pytest.raises(ValueError, match="transpose"):
            taps.scores_of(network, windows(n))


@pytest.mark.parametrize(
    "end",
    [
        torch.sigmoid,
        lambda h: h.sigmoid().clamp(0, 1),
        lambda h: torch.cat([h[:, :2].sigmoid(), h[:, 2:].sigmoid()], 1),
        lambda h: torch.stack([one.sigmoid() for one in h.unbind(1)], 1).squeeze(),
    ],
)
def test_scores_of_classes_that_do_not_exclude_each_other_are_refused(end):
    network = of(lambda m, x: end(m.c1(x).mean(2)), c1=conv())
    gated = of(lambda m, x: end(m.c1(x).mean(2)) * m.c1(x).mean(2), c1=conv())
    assert torch.allclose(taps.scores_of(gated, windows()), gated(windows()))
    for look in (
        lambda: taps.scores_of(network, windows()),
        lambda: occlusion.drops(network, windows(), [0] * 4, occlusion.by_axis(N_AXES), occlusion.Occluder(3)),
        lambda: visualization.visualize(network, objectives.class_score(1), windows(), n_steps=1),
    ):
        with pytest.raises(ValueError, match="ends in a sigmoid.*without the sigmoid"):
            look()


def test_requests_that_do_not_fit_the_network_are_said():
    network, x = two_convs(F.relu), windows()
    features_first = of(lambda m, x: (m.c1(x).mean(2), m.out(m.c1(x).mean(2))), c1=conv(), out=lambda: nn.Linear(5, 4))
    for net, n, activity, got in ((network, 3, 0, 4), (network, 6, 5, 4), (features_first, 4, 0, 5)):
        with pytest.raises(ValueError, match=f"scores of {got} classes, not of {n}"):
            ablation.drops(net, ["c1"], Split(x.numpy(), np.full(4, activity)), n)
    for classes, axes in (([0] * 3, N_AXES), ([0] * 4, 9)):
        with pytest.raises(ValueError, match="a class for each of 4 windows and groups of their 3 axes"):
            occlusion.drops(network, x, classes, occlusion.by_axis(axes), occlusion.Occluder(3))
    for n in (5, 7):
        with pytest.raises(ValueError, match="th_eap should be .* of all 6 units of c2"):
            maximized(network, "c2", n)
    with pytest.raises(ValueError, match="more than windows"):
        taps.places(of(lambda m, x, lengths: m.c1(x), c1=conv()), x)


def test_scores_that_depend_on_chance_or_on_other_windows_are_refused():
    noisy = of(lambda m, x: F.dropout(m.c1(x)).mean(2), c1=conv())
    mixed = of(lambda m, x: m.n(m.c1(x)).mean(2), c1=conv(), n=lambda: nn.BatchNorm1d(5, track_running_stats=False))
    for network, words in ((noisy, "other values each time"), (mixed, "other windows of the batch")):
        assert taps.located(network, "c1", windows()).layout == "window unit time", "before that all is well"
        for tap in (None, "c1"):
            with pytest.raises(ValueError, match=words):
                occlusion.drops(network, windows(), [0] * 4, occlusion.by_axis(N_AXES), occlusion.Occluder(3), tap)
        with pytest.raises(ValueError, match=words):
            ablation.drops(network, ["c1"], Split(windows().numpy(), np.zeros(4, int)), 5)


@pytest.mark.parametrize("network_type", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window_type", [np.float64, np.float32, np.float16, np.int64])
def test_windows_of_any_number_type_go_into_networks_of_any(network_type, window_type):
    network, plain = two_convs(F.relu).to(network_type), two_convs(F.relu)
    x, y, axes = (10 * windows()).numpy().round().astype(window_type), [0, 1, 2, 3], occlusion.by_axis(N_AXES)
    near = {"rtol": 0.1, "atol": 0.3} if network_type in (torch.float16, torch.bfloat16) else {"atol": 1e-4}
    full = torch.tensor(x, dtype=torch.float32)
    assert taps.as_windows(network, x).dtype == network_type
    found = {
        "maps": lambda net, x: taps.outputs(net, "c2", x).float(),
        "project": lambda net, x: deconvnet.project(net, "c2", x, deconvnet.places([1] * 4)).float(),
        "occlusion": lambda net, x: occlusion.drops(net, x, y, axes, occlusion.Occluder(3), "c2")["log_odds"].values,
        "ablation": lambda net, x: ablation.drops(net, ["c2"], Split(x, np.array(y)), 4)["probability"].values,
        "dream": lambda net, x: visualization.visualize(net, objectives.channel("c2", 1), x, n_steps=2).score,
    }
    for name, look in found.items():
        one, two = (np.asarray(look(net, of)) for net, of in ((network, x), (plain, full)))
        assert np.allclose(one, two, **near), (name, abs(one - two).max())
    climbed = slopes.ascend_units(network, "c2", [0, 1], x, Step("adam", 0.1, 1.0), 3, 0.3)
    assert (climbed.maximum > climbed.curve[:, 0]).any()


# --------------------------------------------------------------------------------------------------- foreign layouts

FOREIGN = {
    "window time axis": lambda: nn.Sequential(nn.Linear(N_AXES, 6), nn.ReLU()),
    "window 1 axis time": lambda: nn.Sequential(nn.Conv2d(1, 6, (1, 3)), nn.ReLU(), nn.Conv2d(6, 6, (N_AXES, 1))),
    "window 1 time axis": lambda: nn.Sequential(nn.Conv2d(1, 6, (5, 1)), nn.ReLU(), nn.Conv2d(6, 6, (1, N_AXES))),
}


@pytest.mark.parametrize("layout", FOREIGN)
def test_networks_for_other_layouts_are_told_which_wrapper_fits(layout):
    bare, x = FOREIGN[layout](), windows()
    needs = of(lambda m, x: m.body(_checked(x, layout)), body=lambda: bare)
    wrapped = taps.WithLayout(needs, layout)
    for use in (taps.maps_of, taps.located, deconvnet_of):
        with pytest.raises(ValueError, match=re.escape(f"taps.WithLayout(network, {layout!r})")):
            use(needs, "body.1", x)
    maps = taps.maps_of(wrapped, "network.body.1", x)
    h = F.relu(bare[0](_checked(wrapped_windows(x, layout), layout)))
    expected = {
        "window time axis": lambda: h.transpose(1, 2)[:, :, None],
        "window 1 axis time": lambda: h,
        "window 1 time axis": lambda: h.transpose(2, 3),
    }[layout]()
    assert torch.equal(maps, expected)


def deconvnet_of(network, layer, x):
    return deconvnet.project(network, layer, x, deconvnet.strongest())


def wrapped_windows(x, layout):
    x = x if layout == "window 1 axis time" else x.transpose(1, 2)
    return x if layout == "window time axis" else x[:, None]


def _checked(x, layout):
    wanted = {"window time axis": (LENGTH, N_AXES), "window 1 axis time": (1, N_AXES, LENGTH)}
    wanted["window 1 time axis"] = (1, LENGTH, N_AXES)
    if tuple(x.shape[1:]) != wanted[layout]:
        raise RuntimeError(f"expected {wanted[layout]}")
    return x


def test_a_channel_first_wrapper_is_what_it_was():
    network, x = FOREIGN["window 1 axis time"](), windows()
    assert torch.equal(taps.WithChannel(network)(x), network(x[:, None]))


# --------------------------------------------------------------------------------------------------------- in time


def net_of(*layers):
    return lambda: nn.Sequential(*layers)


T = 30
PLACED = {
    "padded": (net_of(nn.Conv1d(3, 4, 5, padding=2)), np.arange(T)),
    "unpadded, three times": (
        net_of(nn.Conv1d(3, 4, 5), nn.ReLU(), nn.Conv1d(4, 4, 5), nn.Conv1d(4, 4, 5)),
        np.arange(18) + 6,
    ),
    "strided": (net_of(nn.Conv1d(3, 4, 5, stride=2)), np.arange(13) * 2 + 2),
    "strided, padded": (net_of(nn.Conv1d(3, 4, 7, 2, 3), nn.MaxPool1d(3, 2, 1)), np.arange(8) * 4),
    "dilated": (net_of(nn.Conv1d(3, 4, 3, dilation=3)), np.arange(24) + 3),
    "dilated, padded": (net_of(nn.Conv1d(3, 4, 3, dilation=4, padding=4)), np.arange(T)),
    "pooled": (net_of(nn.Conv1d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2)), np.arange(15) * 2 + 0.5),
    "pooled by means": (net_of(nn.Conv1d(3, 4, 3, padding=1), nn.AvgPool1d(5)), np.arange(6) * 5 + 2.0),
    "a wide kernel": (net_of(nn.Conv1d(3, 4, 21, padding=10)), np.arange(T)),
    "over groups and time": (
        net_of(nn.Conv1d(3, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.ReLU()),
        np.arange(14) * 2 + 1,
    ),
    "to one sample": (net_of(nn.Conv1d(3, 4, 3), nn.AdaptiveAvgPool1d(1)), np.array([14.5])),
    "gated": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3, 2, 1), Gate(), nn.Conv1d(4, 4, 3, 2, 1)), np.arange(8) * 4),
    "standardized": (lambda: nn.Sequential(Standardized(), nn.Conv1d(3, 4, 5, 2)), np.arange(13) * 2 + 2),
    "standardized, causal": (
        lambda: nn.Sequential(Standardized(), nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(3, 4, 5)),
        np.arange(T) - 2,
    ),
    "of norm 1": (lambda: nn.Sequential(Standardized(F.normalize), nn.Conv1d(3, 4, 5)), np.arange(26) + 2),
}


class Gate(nn.Module):
    """Squeeze and excitation: units weighted by what their means over time say."""

    def __init__(self):
        super().__init__()
        self.pool, self.dense = nn.AdaptiveAvgPool1d(1), nn.Linear(4, 4)

    def forward(self, h):
        return h * self.dense(self.pool(h)[..., 0]).sigmoid()[..., None]


def standard(x, dim):
    return (x - x.mean(dim, keepdim=True)) / x.std(dim, keepdim=True)


class Standardized(nn.Module):
    """Each window by its own mean and deviation."""

    def __init__(self, how=standard):
        super().__init__()
        self.how = how

    def forward(self, x):
        return self.how(x, dim=2)


@pytest.mark.parametrize("network_type", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PLACED)
def test_samples_of_maps_are_where_they_look(name, network_type):
    torch.manual_seed(0)
    make, expected = PLACED[name]
    network = make().to(network_type)
    found = taps.positions(network, str(len(network) - 1), windows(4, T))
    assert np.allclose(found, expected)


def test_layers_that_see_everything_are_about_the_samples_of_what_they_get():
    x = windows(4, T)
    padded = of(
        lambda m, x: m.r(first(m.c(x))), c=conv(), r=lambda: nn.LSTM(5, 6, 1, batch_first=True, bidirectional=True)
    )
    unpadded = of(
        lambda m, x: m.d(m.r(first(m.c(x)))[0]),
        c=conv(padding=0, kernel=5),
        r=lambda: nn.LSTM(5, 6, batch_first=True),
        d=nn.Dropout,
    )
    assert np.array_equal(taps.positions(padded, "r", x), np.arange(T))
    for layer in "rd":
        assert np.array_equal(taps.positions(unpadded, layer, x), np.arange(T - 4) + 2)
    backwards = of(lambda m, x: m.r(first(x.flip(2))), r=lambda: nn.GRU(N_AXES, 6, batch_first=True))
    with pytest.raises(ValueError, match="from its end to its begin"):
        taps.positions(backwards, taps.find(backwards, "r", layout="window time unit"), x)
    mixed = of(lambda m, x: m.c(m.d(x)), d=lambda: nn.Linear(T, 12), c=conv())
    with pytest.raises(ValueError, match="follows neither time|sees the whole window"):
        taps.positions(mixed, "c", x)


@pytest.mark.parametrize("by", [5, 12, 15])
def test_samples_in_another_order_are_not_placed(by):
    network = of(lambda m, x: m.c(x.roll(by, 2)), c=conv())
    with pytest.raises(ValueError, match="do not look at the window's in their order"):
        taps.positions(network, "c", windows(4, T))
    assert "order" in taps.places(network, windows(4, T)).set_index("layer").loc["c", "dissection"]


def test_unpadded_layers_are_dissected_where_they_look():
    """Three unpadded layers that pass the middle sample of their kernels; the concept is that very sample."""
    network = nn.Sequential(*(nn.Conv1d(1, 1, 5, bias=False) for _ in range(3)))
    for layer in network:
        nn.init.dirac_(layer.weight)
    x = torch.randn(400, 1, 30, generator=torch.Generator().manual_seed(0)).numpy()
    maps, positions = taps.outputs(network, "2", x), taps.positions(network, "2", x)
    limits = dissection.thresholds(maps, 0.03)
    masks = (x >= limits.t_k[0])[None]
    with pytest.raises(ValueError, match="say where in a window they are"):
        dissection.unit_masks(maps, limits, 1, 30)
    units = dissection.unit_masks(maps, limits, 1, 30, positions)
    inside = masks[..., 6:24].sum() / masks.sum()
    assert dissection.iou(units, masks)[0, 0] == pytest.approx(inside) and 0.5 < inside < 0.7


# ------------------------------------------------------------------------------------------------------- rectifiers

SPELLINGS = {
    "torch.relu": torch.relu,
    "relu_": lambda h: h.relu_(),
    "clamp": lambda h: h.clamp(min=0),
    "clamp_": lambda h: h.clamp_(min=0.0),
    "clip": lambda h: torch.clip(h, 0),
    "clamp_min": lambda h: h.clamp_min(0),
    "maximum": lambda h: torch.maximum(h, torch.zeros(())),
    "maximum, zero first": lambda h: torch.maximum(torch.zeros_like(h), h),
    "max": lambda h: torch.max(h, torch.zeros_like(h)),
    "threshold": lambda h: F.threshold(h, 0, 0),
    "nn.Threshold": lambda h: nn.Threshold(0.0, 0.0)(h),
    "ReLU6": lambda h: nn.ReLU6()(h),
    "hardtanh": lambda h: F.hardtanh(h, 0, 9),
    "clamp of two ends": lambda h: h.clamp(0, 9),
    "leaky of slope 0": lambda h: F.leaky_relu(h, 0.0),
    "PReLU of slope 0": lambda h: F.prelu(h, torch.zeros(1)),
    "where": lambda h: torch.where(h > 0, h, 0.0),
    "product": lambda h: h * (h > 0),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_rectifiers_of_every_spelling_follow_the_rules(name):
    network, plain, x = two_convs(SPELLINGS[name]), two_convs(F.relu), windows()
    for rule in deconvnet.RULES:
        one, two = (deconvnet.project(net, "c2", x, deconvnet.strongest(), rule) for net in (network, plain))
        assert torch.allclose(one, two, atol=1e-7), rule
    step = Step("adam", 0.1, 1.0)
    for slope in (0.0, 0.3):
        one, two = (slopes.ascend_units(net, "c2", range(3), x, step, 3, slope).last for net in (network, plain))
        assert torch.allclose(one, two, atol=1e-5)
    assert not torch.equal(one, slopes.ascend_units(network, "c2", range(3), x, step, 3).last)
    made = [visualization.visualize(net, objectives.channel("c2", 1), x, n_steps=4).signal for net in (network, plain)]
    assert np.allclose(*made, atol=1e-5)


@pytest.mark.parametrize("slope", [nn.PReLU(5, 0.2), lambda h: F.rrelu(h, 0.1, 0.3), nn.LeakyReLU(0.2, inplace=True)])
def test_leaky_rectifiers_have_rules(slope):
    network = of(lambda m, x: m.c2(slope(m.c1(x))), c1=conv(), c2=conv(5, 6))
    plain = of(lambda m, x: m.c2(F.leaky_relu(m.c1(x), 0.2)), c1=conv(), c2=conv(5, 6))
    for rule in deconvnet.RULES:
        one, two = (deconvnet.project(net, "c2", windows(), deconvnet.strongest(), rule) for net in (network, plain))
        assert torch.allclose(one, two, atol=1e-6)
    x = torch.tensor([[-1.0] * 5], requires_grad=True)
    with backward.rectifiers(backward.waking(0.5)):
        slope(x * 1.0).sum().backward()
    assert torch.allclose(x.grad, torch.full((1, 5), 0.5))


OTHERS = {
    **{f.__name__: f for f in (F.gelu, F.elu, F.silu, torch.tanh, torch.sigmoid, F.softplus, F.mish, F.hardswish)},
    **{f.__name__: f for f in (F.selu, F.celu, F.hardtanh, F.softsign, F.hardsigmoid, torch.exp, torch.sin)},
    "softmax": lambda h: h.softmax(1),
    "a gate": lambda h: h * torch.sigmoid(h),
    "square": lambda h: h**2,
    "clamp on both sides": lambda h: h.clamp(-1, 1),
    "half of x and its size": lambda h: (h + h.abs()) / 2,
    "beside a rectifier": lambda h: F.relu(h) + F.gelu(h),
    "masked": lambda h: h.masked_fill(h < 0, 0),
    "set to zero": lambda h: zeroed(h),
    "where the others are": lambda h: torch.where(h < 0, torch.zeros_like(h), h),
    "product of two outputs": lambda h: h * h.roll(1, 1),
    "the larger of itself and a tenth": lambda h: torch.maximum(h, 0.1 * h),
    "the larger one by max": lambda h: torch.max(h, 0.1 * h),
    "a function of one's own": lambda h: Squared.apply(h),
    "in place in a part": lambda h: part_in_place(h),
}


def zeroed(h):
    h = h.clone()
    h[h < 0] = 0
    return h


def part_in_place(h):
    h[:, :2].sigmoid_()
    return h


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


@pytest.mark.parametrize("name", OTHERS)
def test_rules_are_refused_where_they_are_not_defined(name):
    network, x, step = two_convs(OTHERS[name]), windows(), Step("adam", 0.1, 1.0)
    beside = of(lambda m, x: m.c2(OTHERS[name](m.c1(F.relu(m.c0(x))))), c0=conv(3, 3), c1=conv(), c2=conv(5, 6))
    for net, rule in ((network, "deconvnet"), (network, "guided"), (beside, "deconvnet")):
        with pytest.raises(ValueError, match=r"c2 and the input .*rectifier.*plain gradient"):
            deconvnet.project(net, "c2", x, deconvnet.strongest(), rule)
    for slope in (0.0, 0.3):
        with pytest.raises(ValueError, match="c2 and the input .*rectifier"):
            slopes.ascend_units(network, "c2", [0], x, step, 2, slope)
    assert deconvnet.project(network, "c2", x, deconvnet.strongest(), "gradient").abs().max() > 0
    assert slopes.ascend_units(network, "c2", [0], x, step, 2).curve.shape == (4, 3)
    # what lies behind the place does not matter, and without anything but linear layers all rules are the gradient
    found = [deconvnet.project(network, "c1", x, deconvnet.strongest(), rule) for rule in deconvnet.RULES]
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[2])


LINEAR = {
    "weighted": lambda h: h * torch.linspace(0.1, 1, 5)[:, None],
    "resampled": lambda h: F.interpolate(h, 2 * LENGTH, mode="linear"),
    "repeated": lambda h: F.interpolate(h, 2 * LENGTH),
    "summed up": lambda h: h.cumsum(2),
    "reflected": lambda h: F.pad(h, (2, 2), mode="reflect"),
    "joined": lambda h: torch.cat([h[:, 2:], h[:, :2]], 1),
    "the largest": lambda h: F.adaptive_max_pool1d(h, 4),
    "differences": lambda h: h.diff(dim=2) / 2,
    "by einsum": lambda h: torch.einsum("wut,uv->wvt", h, torch.eye(5).flip(0)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_functions_between_rectifiers_are_their_gradient(name):
    network, x = of(lambda m, x: m.c2(LINEAR[name](F.relu(m.c1(x)))), c1=conv(), c2=conv(5, 6)), windows()
    found = deconvnet.project(network, "c2", x, deconvnet.places([1] * 4))
    h = F.relu(network.c1(x)).detach().requires_grad_()
    out = network.c2(LINEAR[name](h))[:, 1]
    (above,) = torch.autograd.grad(out, h, out.detach())
    expected = F.conv_transpose1d(above.relu(), network.c1.weight, padding=1)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("again", [False, True])
def test_parts_that_are_computed_anew_have_no_rules(again):
    def forward(m, x):
        return m.c2(checkpoint(lambda h: F.relu6(m.c1(h)), x, use_reentrant=again))

    network, x, step = of(forward, c1=conv(), c2=conv(5, 6)), windows(), Step("adam", 0.1, 1.0)
    plain = of(lambda m, x: m.c2(F.relu6(m.c1(x))), c1=conv(), c2=conv(5, 6))
    looks = {
        "deconvnet": lambda net: deconvnet.project(net, "c2", x, deconvnet.strongest()),
        "slope": lambda net: slopes.ascend_units(net, "c2", [0], x, step, 2, 0.3).last,
        "gradient": lambda net: deconvnet.project(net, "c2", x, deconvnet.strongest(), "gradient"),
        "climb": lambda net: slopes.ascend_units(net, "c2", [0], x, step, 2).last,
    }
    for name, look in looks.items():
        if again or name in ("deconvnet", "slope"):
            with pytest.raises(ValueError, match="[Cc]heckpoint"):
                look(network)
        else:
            assert torch.allclose(look(network), look(plain), atol=1e-6)
    assert torch.equal(taps.outputs(network, "c2", x), taps.outputs(plain, "c2", x))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k)])
def test_rules_are_refused_for_recurrent_layers(kind):
    network = of(lambda m, x: m.r(first(F.relu(m.c(x)))), c=conv(), r=lambda: kind(5, 6, batch_first=True))
    with pytest.raises(ValueError, match="no rectifier that a backward rule is defined for"):
        deconvnet.project(network, "r", windows(), deconvnet.strongest())


# ------------------------------------------------------------------------------------------------------------ table


def test_places_lists_what_can_be_looked_at_and_why_not():
    def forward(m, x):
        h = m.act(m.c2(m.act(m.c1(x))))
        steps, _ = m.lstm(first(h))
        return m.out(m.flat(steps[:, -1:]))

    parts = {"c1": conv(padding=0), "c2": conv(5, 6), "act": nn.ReLU, "never": conv(), "flat": nn.Flatten}
    network = of(forward, **parts, lstm=lambda: nn.LSTM(6, 7, batch_first=True), out=lambda: nn.Linear(7, CLASSES))
    table = taps.places(network, windows())
    rows = {(row.layer, row.call): row for row in table.itertuples() if row.call == row.call and row.call is not None}
    single = table.set_index("layer")
    assert {call for layer, call in rows if layer == "act"} == {0, 1}
    assert single.loc["c1", "layout"] == "window unit time" and single.loc["c1", "units"] == 5
    assert (single.loc["c1", "begin"], single.loc["c1", "end"]) == (1, 14)
    assert single.loc["lstm", "layout"] == "window time unit" and single.loc["lstm", "samples"] == 14
    assert "no rectifier" in single.loc["lstm", "backward"] and single.loc["c2", "backward"] == "yes"
    assert "did not run" in single.loc["never", "refused"] and single.loc["out", "dissection"] == "yes"
    assert (table[table["refused"] == ""][["ablation", "occlusion", "dissection", "climb"]] == "yes").all(axis=None)
    assert not [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks]
