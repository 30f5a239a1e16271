"""Places in networks of all kinds: their dimensions, what is refused of them, where in time their samples lie.

The tables hold a network as a function of its parts ``m`` and the windows ``x``, and what is expected of its ``look``.
"""

import copy
import gc
import re
import weakref
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
ADAM, OCCLUDER = Step("adam", 0.1, 1.0), occlusion.Occluder(3)


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
    """A network in evaluation mode with copies of the parts, whose weights depend on the parts alone."""
    network = Of(forward, **copy.deepcopy(parts))
    torch.manual_seed(0)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network.eval()


def conv(n_in=N_AXES, n_out=5, kernel=3, **how):
    return nn.Conv1d(n_in, n_out, kernel, **{"padding": kernel // 2} | how)


def first(h):
    return h.transpose(1, 2)


OUT = nn.Linear(5, CLASSES)
TWO = {"c1": conv(), "c2": conv(5, 6), "out": nn.Linear(6, CLASSES)}


def two_convs(act):
    """conv, activation, conv, activation, mean, classes."""
    return of(lambda m, x: m.out(act(m.c2(act(m.c1(x)))).mean(2)), **TWO)


class Split:
    """What :func:`ablation.drops` takes of a split."""

    def __init__(self, x, activity):
        self.x, self.activity = np.asarray(x), np.asarray(activity)

    def __len__(self):
        return len(self.x)


def ablated(network, layer, x, classes=CLASSES, activity=None):
    activity = np.arange(len(x)) % classes if activity is None else activity
    return ablation.drops(network, [layer], Split(x, activity), classes)


def occluded(network, x, tap=None, classes=None, n_axes=N_AXES):
    return occlusion.drops(network, x, classes or [0] * len(x), occlusion.by_axis(n_axes), OCCLUDER, tap)


def projected(network, layer, x, rule="deconvnet"):
    return deconvnet.project(network, layer, x, deconvnet.strongest(), rule)


def visualized(network, objective, x, n_steps):
    return visualization.visualize(network, objective, x, n_steps=n_steps)


def maximized(network, layer, n_units, **how):
    about = {"n_axes": N_AXES, "length": LENGTH, "settings": MaximizationSettings(n_steps=3)} | how
    return paper_methods.maximize(network, layer, np.ones(n_units), **about)


def hooks_of(network):
    return [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks]


# ------------------------------------------------------------------------------------------ what the dimensions are


@dataclass
class Output:
    n: int
    features: torch.Tensor


def pooling(m, h):
    """Weights (window, time), and what they weight (window, unit)."""
    weights = m.score(h)[..., 0].softmax(1)
    return weights, (h * weights[..., None]).sum(1)


POOLING = Of(pooling, score=nn.Linear(7, 1))
DESCRIBED = Of(lambda m, x: Output(len(x), m.c(x)), c=conv())
MHA, TIMES_TWO = nn.MultiheadAttention(8, 2, batch_first=True), {"batch_first": True, "bidirectional": True}
LAST = nn.Linear(N_AXES, 8)


def last(m, x):
    return m.before(first(x))


#: name: layout of "look", what it gets, itself, and the part that was before it
KINDS = {
    "Conv1d of as many units as samples": ("window unit time", lambda m, x: x, conv(N_AXES, LENGTH)),
    "depthwise": ("window unit time", lambda m, x: x, conv(N_AXES, 2 * N_AXES, groups=N_AXES)),
    "Conv2d": ("window unit axis time", lambda m, x: x[:, None], nn.Conv2d(1, 4, (1, 5))),
    "Conv2d, time first": ("window unit time axis", lambda m, x: first(x)[:, None], nn.Conv2d(1, 4, (5, 1))),
    "a dataclass": ("window unit time", lambda m, x: x, DESCRIBED),
    "dense": ("window unit", lambda m, x: x.flatten(1), nn.Linear(N_AXES * LENGTH, 7)),
    "Linear of as many units as samples": ("window time unit", lambda m, x: first(x), nn.Linear(N_AXES, LENGTH)),
    "LSTM": ("window time unit", lambda m, x: first(x), nn.LSTM(N_AXES, 7, batch_first=True)),
    "LSTM of many units": ("window time unit", lambda m, x: first(x), nn.LSTM(N_AXES, 48, **TIMES_TWO)),
    "GRU, time first": ("time window unit", lambda m, x: x.permute(2, 0, 1), nn.GRU(N_AXES, 4, bidirectional=True)),
    "axes in the batch": ("(window axis) unit time", lambda m, x: x.flatten(0, 1)[:, None], conv(1, 6)),
    "axis by axis": ("(axis window) unit time", lambda m, x: x.transpose(0, 1).flatten(0, 1)[:, None], conv(1, 6)),
    "sensors in the batch": ("(window axis) unit time", lambda m, x: padded_sensors(x).flatten(0, 1), conv(2, 5)),
    "times in the batch": ("(window time) unit", lambda m, x: first(x).flatten(0, 1), nn.Linear(N_AXES, 6)),
    "ReLU, features last": ("window time unit", last, nn.ReLU(), LAST),
    "LayerNorm": ("window time unit", last, nn.LayerNorm(8), LAST),
    "Transformer": ("window time unit", last, nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), LAST),
    "behind a GRU": ("window time unit", lambda m, x: last(m, x)[0], nn.Dropout(), nn.GRU(N_AXES, 48, **TIMES_TWO)),
    "attention": ("window time unit", lambda m, x: [F.relu(last(m, x))] * 3, MHA, LAST),
    "attention over sensors": (
        "(window time) axis unit",
        lambda m, x: [m.before(first(x).reshape(-1, N_AXES, 1))] * 3,
        MHA,
        nn.Linear(1, 8),
    ),
    "circular": ("window unit time", lambda m, x: x, conv(padding_mode="circular")),
    "pooling that returns weights too": ("window unit", last, POOLING, nn.Linear(N_AXES, 7)),
    "pooled to one sample": ("window unit time", lambda m, x: m.before(x), nn.AdaptiveAvgPool1d(1), conv()),
}


def padded_sensors(x):
    """(window, sensor, axis, time)"""
    return F.pad(x, (0, 0, 0, 1)).unflatten(1, (2, 2))


def maps_of(out, layout, n):
    """Maps (window, unit, axis, time) out of an output for ``n`` windows, whose first dimension may hold two roles."""
    words = re.findall(r"\w+", layout)
    if "(" in layout:
        out = out.reshape(*((n, -1) if words[0] == "window" else (-1, n)), *out.shape[1:])
    out = out.permute([words.index(role) for role in layouts.ROLES if role in words])
    out = out if "axis" in words else out.unsqueeze(2)
    return out if "time" in words else out.unsqueeze(3)


def as_list(value):
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("name", KINDS)
def test_dimensions_are_told_apart_and_silenced(name):
    layout, gets, look, *before = KINDS[name]
    network = of(lambda m, x: m.look(*as_list(gets(m, x))), look=look, **dict(zip(["before"], before, strict=False)))
    x, given = windows(), []
    with network.look.register_forward_hook(lambda m, a, out: given.append(out)), torch.no_grad():
        network(x)
    out = given[0].features if isinstance(given[0], Output) else given[0]
    out = out[look is POOLING] if isinstance(out, tuple) else out
    expected = maps_of(out, layout, len(x))
    assert taps.located(network, "look", x).layout == layout
    assert torch.allclose(taps.outputs(network, "look", x.double().numpy()), expected, atol=1e-5)
    with taps.silenced(network, "look", [1]), torch.no_grad():
        silent = taps.maps_of(network, "look", x)
    assert silent[:, 1].abs().max() == 0
    others = [u for u in range(expected.shape[1]) if u != 1]
    assert torch.allclose(silent[:, others], expected[:, others], atol=1e-5)
    words = f"has units 0 to {expected.shape[1] - 1}"
    with pytest.raises(ValueError, match=words), taps.silenced(network, "look", [99]):
        network(x)
    declared = taps.find(network, "look", layout=layout)
    assert torch.equal(taps.outputs(network, taps.located(network, declared, x), x), taps.outputs(network, "look", x))


def keeping_its_state(m, x):
    state = getattr(m, "state", None)
    state = state if state is not None and state[0].shape[1] == len(x) else None
    out, m.state = m.look(first(x), state)
    return out


UNTRACKED = nn.Sequential(nn.Conv1d(N_AXES, 5, 3), nn.BatchNorm1d(5, track_running_stats=False))
FLAT, RELU = {"look": nn.Flatten(), "out": nn.Linear(80, 4)}, {"c": conv(), "look": nn.ReLU()}
REFUSED = {
    "flattened": (
        "no dimension is left for the units.*layout='window unit'",
        lambda m, x: m.out(m.look(m.c(x))),
        {"c": conv()} | FLAT,
    ),
    "recurrent and flattened": (
        "no dimension is left for the units",
        lambda m, x: m.out(m.look(m.r(first(x))[0])),
        {"r": nn.LSTM(N_AXES, 5, batch_first=True)} | FLAT,
    ),
    "the windows themselves": (
        "no dimension is left for the units.*layout='window unit time'",
        lambda m, x: m.c(m.look(x)),
        {"c": conv(), "look": nn.Dropout()},
    ),
    "dense over time": (
        "follows neither time nor the sensor axes.*layout='window time unit'",
        lambda m, x: m.look(m.c(x)),
        {"c": conv(), "look": nn.Linear(LENGTH, 8)},
    ),
    "a recurrent layer that takes windows for times": (
        "depends on the other windows of the batch.*batch_first",
        lambda m, x: m.look(first(x)),
        {"look": nn.LSTM(N_AXES, 5)},
    ),
    "a norm without running statistics": (
        "depends on the other windows of the batch.*running statistics",
        lambda m, x: m.n(m.look(x)),
        {"look": UNTRACKED, "n": nn.ReLU()},
    ),
    "functional dropout": (
        "other values each time.*training=self.training",
        lambda m, x: m.look(F.dropout(m.c(x))),
        RELU,
    ),
    "a layer without windows": (
        "does not depend on the windows",
        lambda m, x: m.c(x) + m.look(torch.ones(3, 5))[0, :, None],
        {"c": conv(), "look": nn.Linear(5, 5)},
    ),
    "a layer that never runs": ("layer look did not run", lambda m, x: m.c(x), RELU),
    "a layer used by its weight": ("layer look did not run", lambda m, x: F.conv1d(x, m.look.weight), {"look": conv()}),
    "a layer that runs twice": (
        r"runs 2 times.*call=0",
        lambda m, x: m.look(m.c2(m.look(m.c(x)))),
        RELU | {"c2": conv(5, 6)},
    ),
    "one window at a time": ("runs 3 times", lambda m, x: torch.stack([m.look(one) for one in x]), {"look": conv()}),
    "a sparse tensor": (
        "returns no tensor",
        lambda m, x: m.look(m.c(x).flatten(1).to_sparse()),
        {"c": conv(), "look": nn.Identity()},
    ),
    "a recurrent layer that runs backwards": (
        "follows neither time nor the sensor axes",
        lambda m, x: m.look(first(x.flip(2)))[0],
        {"look": nn.GRU(N_AXES, 5, batch_first=True)},
    ),
    "a state that is kept": (
        "(other values each time|other windows of the batch).*a state that is kept",
        keeping_its_state,
        {"look": nn.LSTM(N_AXES, 5, batch_first=True)},
    ),
    "some of the windows": (
        "other sizes for other windows",
        lambda m, x: m.look(x[x.mean((1, 2)) > 0]),
        {"look": conv()},
    ),
    "a constant": (
        "it is open which dimension is that of the units",
        lambda m, x: m.look(0 * m.c(x).mean(2, keepdim=True)),
        RELU,
    ),
}


def refused(name):
    words, forward, parts = REFUSED[name]
    return of(forward, **parts), "(?s)" + words


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_is_refused_in_words(name):
    (network, words), x = refused(name), windows()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    chance = torch.random.get_rng_state()
    for look in (taps.located, taps.maps_of):
        with pytest.raises(ValueError, match=words) as error:
            look(network, "look", x)
    with pytest.raises(ValueError, match=words), taps.silenced(network, "look", [0]):
        network(x)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    if "dropout" not in name:
        assert torch.equal(torch.random.get_rng_state(), chance)
    assert not hooks_of(network)
    if "no dimension" in words:  # what is advised can be declared
        advised = re.search(r"layout='([^']*)'", str(error.value))[1]
        assert taps.located(network, taps.find(network, "look", layout=advised), x).layout == advised


@pytest.mark.parametrize("length", [LENGTH, 18, 48])
def test_a_dimension_of_axes_and_times_in_turn_is_not_that_of_axes(length):
    network = of(lambda m, x: m.look(first(x).reshape(len(x), N_AXES, -1)), look=conv())
    with pytest.raises(ValueError, match="follows neither time nor the sensor axes"):
        taps.located(network, "look", windows(length=length))


SHORT = {
    "one unit of two samples": (6, 2, {"c": conv(6, 1), "look": nn.ReLU()}),
    "one unit of three samples": (3, 3, {"c": nn.Sequential(conv(3, 1), nn.ReLU(), conv(1, 1)), "look": nn.ReLU()}),
    "sensors as the steps of a Transformer": (
        6,
        2,
        {"c": nn.Linear(2, 4), "look": nn.TransformerEncoderLayer(4, 1, 8, batch_first=True)},
    ),
    "dense over four times": (4, 4, {"c": conv(4, 3), "look": nn.Linear(4, 4)}),
}


@pytest.mark.parametrize("name", SHORT)
def test_windows_too_short_to_tell_are_not_read_by_chance(name):
    n_axes, length, parts = SHORT[name]
    x, found = torch.randn(4, n_axes, length, generator=torch.Generator().manual_seed(0)), set()
    for seed in range(4):
        network = of(lambda m, x: m.look(m.c(x)), **parts)
        for weights in network.parameters():
            torch.nn.init.normal_(weights, 0, 0.5, generator=torch.Generator().manual_seed(seed + weights.numel()))
        try:
            found.add(taps.located(network, "look", x).layout)
        except ValueError as error:
            assert "name another layer" in str(error)
    assert found <= {"window axis unit" if "sensors" in name else "window unit time"}


def test_a_layer_in_the_place_of_another_is_looked_at_anew():
    network, x = of(lambda m, x: m.look(m.c(x)), c=conv(), look=nn.Identity()), windows()
    for _ in range(10):  # so that one gets the address of one that is gone
        assert taps.located(network, "look", x).layout == "window unit time"
        network.look = Of(lambda m, h: first(h))
        assert taps.located(network, "look", x).layout == "window time unit"
        network.look = nn.Identity()


def test_what_lies_behind_a_place_is_looked_at_anew():
    network, x = of(lambda m, x: m.act(m.n(m.look(x))).mean(2), look=conv(), n=nn.Identity(), act=nn.ReLU()), windows()
    for act, rectified in ((nn.ReLU(), True), (nn.Tanh(), False), (Of(lambda m, h: m.f(h)), True)):
        network.act, act.f = act, F.relu
        assert taps.behind(network, "look", x).rectified == rectified
    network.act.f = torch.tanh
    assert not taps.behind(network, "look", x).rectified
    assert taps.scores_of(network, x).shape == (4, 5)
    network.n = nn.BatchNorm1d(5, track_running_stats=False)
    with pytest.raises(ValueError, match="other windows of the batch"):
        taps.scores_of(network, x)
    network.n, network.answer = nn.Identity(), lambda m, x: (h := m.look(x).mean(2)) - h.mean(0)
    with pytest.raises(ValueError, match="other windows of the batch"):
        taps.scores_of(network, x)


def test_what_was_found_of_a_network_does_not_keep_it():
    network = of(lambda m, x: m.act(m.look(x)).mean(2), look=conv(), act=nn.ReLU())
    taps.behind(network, "look", windows()), taps.scores_of(network, windows())
    gone = weakref.ref(network.look)
    del network
    gc.collect()
    assert gone() is None


def test_a_layer_of_which_the_first_output_is_meant_has_no_other():
    """A recurrent layer's last states are none of its places, attention's weights neither."""
    network = of(lambda m, x: m.look(first(x))[1], look=nn.GRU(N_AXES, 5, batch_first=True))
    assert taps.outputs(network, "look", windows()).shape == (4, 5, 1, LENGTH)
    table = taps.places(of(lambda m, x: m.p(m.d(first(x)))[1], d=nn.Linear(N_AXES, 7), p=POOLING), windows())
    assert table.set_index("layer").loc["p", "output"] == (4, 7), "the shape of what is looked at"


def test_layouts_are_checked():
    network, x = of(lambda m, x: m.look(x), look=conv()), windows()
    for layout in ("unit time", "window unit unit", "window units", "window (unit time", ""):
        with pytest.raises(ValueError, match="should name each dimension"):
            taps.find(network, "look", layout=layout)
    with pytest.raises(ValueError, match="does not fit an output of shape"):
        taps.maps_of(network, taps.find(network, "look", layout="window unit axis time"), x)
    with pytest.raises(ValueError, match="windows have no such layout"):
        taps.WithLayout(network, "window unit axis time")
    for layout, said in (
        ("window time unit", r"units in dimension 2 of \(3, 5, 16\), but a Conv1d has its 5 units in dimension 1"),
        ("window unit axis", r"16 axes in \(3, 5, 16\), but windows have 3"),
    ):
        with pytest.raises(ValueError, match=said):
            unit_statistics.collect(network, x.numpy(), place=taps.find(network, "look", layout=layout))
    recurrent = of(lambda m, x: m.look(first(x))[0], look=nn.GRU(N_AXES, 5, batch_first=True))
    with pytest.raises(ValueError, match="a GRU has its 5 units in dimension 2: declare that, or no layout"):
        taps.located(recurrent, taps.find(recurrent, "look", layout="window unit time"), x)
    over_time = of(lambda m, x: m.look(m.c(x)), c=conv(), look=nn.Linear(LENGTH, 8))
    assert taps.outputs(over_time, taps.find(over_time, "look", layout="window unit time"), x).shape == (4, 5, 1, 8)
    flattened, _ = refused("flattened")
    assert taps.outputs(flattened, taps.find(flattened, "look", layout="window unit"), x).shape == (4, 80, 1, 1)
    with pytest.raises(ValueError, match="units 0 to 4"):
        slopes.ascend_units(network, "look", [12], windows(1), ADAM, 1)


def test_what_is_asked_of_a_tap_is_applied_to_it():
    tap = taps.find(of(lambda m, x: m.c(m.c(x)), c=conv(3, 3)), "c")
    network = of(lambda m, x: m.c(m.c(x)), c=conv(3, 3))
    changed = taps.find(network, tap, rectified=True, layout="window unit time", call=1)
    assert changed == taps.Tap("c, call 1", "c", True, "window unit time", 1)
    assert taps.find(network, changed) == changed and taps.find(network, changed, call=1) == changed
    with pytest.raises(ValueError, match="should name each dimension"):
        taps.find(network, tap, layout="unit")


def test_a_module_that_runs_twice_is_two_places():
    (network, _), x = refused("a layer that runs twice"), windows()
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


def compiled(network, part):
    network.get_submodule(part).compile(backend="eager")
    return network


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv1d(N_AXES, 5, 3)

    def forward(self, x):
        return F.relu(self.c1(x)).mean(2)


COMPILED = {
    "torch.compile": lambda: torch.compile(two_convs(F.relu), backend="eager"),
    "a compiled part": lambda: compiled(two_convs(F.relu), "c2"),
    "traced": lambda: torch.jit.trace(Plain(), windows()),
    "a scripted part": lambda: nn.Sequential(torch.jit.script(Plain()), OUT),
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


def test_a_network_that_changes_its_input_in_place_does_not_change_windows():
    def forward(m, x):
        return m.out(F.relu(m.c2(F.relu(m.c1(x.sub_(x.mean(2, keepdim=True)))))).mean(2))

    network, x, before = of(forward, **TWO), windows().numpy(), windows().numpy()
    plain = of(lambda m, x: m.out(F.relu(m.c2(F.relu(m.c1(x - x.mean(2, keepdim=True))))).mean(2)), **TWO)
    looks = {
        "maps": lambda net: taps.outputs(net, "c2", x),
        "statistics": lambda net: unit_statistics.collect(net, x, place="c2")["th_eap"],
        "occlusion": lambda net: occluded(net, x, "c2")["log_odds"],
        "ablation": lambda net: ablated(net, "c2", x)["probability"],
        "gradient": lambda net: projected(net, "c2", x, "gradient"),
        "visualization": lambda net: visualized(net, objectives.channel("c2", 1), x, 3).signal,
        "ascent": lambda net: maximized(net, "c2", 6, methods=["naive"])["signal"],
    }
    for what, look in looks.items():
        assert np.array_equal(look(network), look(plain)), what
        assert np.array_equal(x, before), what


def without_gradients(m, x):
    with torch.no_grad():
        h = m.c2(F.relu(m.c1(x)))
    return m.out(F.relu(h).mean(2))


@pytest.mark.parametrize("forward", [without_gradients, lambda m, x: m.out(m.c2(m.c1(x).detach()).mean(2))])
def test_what_no_gradient_leads_back_from_is_not_climbed(forward):
    network, x = of(forward, **TWO), windows()
    for climb in (
        lambda: maximized(network, "c2", 6, methods=["L2+TV"]),
        lambda: visualized(network, objectives.channel("c2", 1), x, 1),
        lambda: visualized(network, objectives.class_score(1), x, 1),
        lambda: projected(network, "c2", x, "gradient"),
        lambda: slopes.ascend_units(network, "c2", [0], x, ADAM, 1),
        lambda: dreams.smallest_change(network, x, 3, 0),
    ):
        with pytest.raises(ValueError, match="no gradient leads from .* back to the windows"):
            climb()
    row = taps.places(network, x).set_index("layer").loc["c2"]
    assert row["ablation"] == "yes" and "no gradient" in row["climb"] and "no gradient" in row["backward"]


def test_layers_with_parametrized_weights_are_layers():
    network, x = of(lambda m, x: m.out(F.relu(m.c(x)).mean(2)), c=conv(), out=OUT), windows(8)
    nn.utils.parametrizations.weight_norm(network.c)
    table = taps.places(network, x).set_index("layer")
    assert table.loc["c", "layout"] == "window unit time" and table.loc["c", "backward"] == "yes"
    assert "does not depend on the windows" in table.loc["c.parametrizations.weight", "refused"]


def test_masked_transformers_do_not_turn_to_nested_tensors():
    def forward(m, x):
        mask = torch.zeros(len(x), LENGTH, dtype=torch.bool)
        mask[:, -2:] = True
        return m.out(m.look(m.dense(first(x)), src_key_padding_mask=mask)[:, : LENGTH - 2].mean(1))

    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    parts = {"dense": LAST, "look": nn.TransformerEncoder(layer, 2), "out": nn.Linear(8, CLASSES)}
    network, x = of(forward, **parts), windows()
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


def test_a_network_that_takes_no_single_window_is_looked_at():
    # squeezing takes a single window's dimension away
    network, x = of(lambda m, x: m.out(F.relu(m.c1(x)).mean(2).squeeze()), c1=conv(), out=OUT), windows()
    assert (taps.places(network, x)[["ablation", "occlusion"]] == "yes").all(axis=None)
    assert ablated(network, "c1", x)["f1"].shape == (1, 5, CLASSES)
    assert maximized(network, "c1", 5, methods=["naive"])["signal"].shape == (1, 5, N_AXES, LENGTH)


# ---------------------------------------------------------------------------------------------------------- in place


@pytest.mark.parametrize("act", [lambda h: F.relu(h, inplace=True), lambda h: h.clamp_(min=0)])
def test_what_follows_in_place_does_not_change_a_place(act):
    network, plain, x, start = two_convs(act), two_convs(F.relu), windows(), windows(2)
    assert torch.equal(taps.maps_of(network, "c2", x), taps.maps_of(plain, "c2", x)), "conv(x), as it was"
    with backward.rectifiers(backward.deconvnet):
        inside = taps.maps_of(network, "c2", x)
    assert torch.equal(inside, taps.maps_of(plain, "c2", x))
    for slope in (None, 0.0, 0.3):
        one, two = (slopes.ascend_units(net, "c2", range(6), start, ADAM, 5, slope) for net in (network, plain))
        assert torch.equal(one.curve, two.curve) and torch.equal(one.last, two.last)
    for rule in deconvnet.RULES:
        assert torch.equal(*(projected(net, "c2", x, rule) for net in (network, plain)))
    made = [visualized(net, -objectives.channel("c2", 1), x, 40) for net in (network, plain)]
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


def added(h, x):
    h += x.mean(1, keepdim=True)


def set_anew(h, x):
    h[:, 1:4] = x


@pytest.mark.parametrize("change", [added, set_anew, lambda h, x: h[:, 1].mul_(2), None])
def test_what_is_rectified_after_a_change_in_place_is_not_the_place(change):
    """A residual that is added in place goes to the ReLU too: the layer's units are not what comes out of that."""

    def forward(m, x):
        h = m.n(m.c(x))
        if change:
            change(h, x)
        return m.out(F.relu(h).mean(2))

    network, x = of(forward, c=conv(), n=nn.BatchNorm1d(5), out=OUT), windows()
    for layer in ("c", "n"):
        assert taps.behind(network, layer, x).rectified == (change is None)
        if change:
            strongest = taps.maps_of(network, layer, x).sum((2, 3)).argmax(1)
            assert occluded(network, x, layer)["unit"].values.tolist() == strongest.tolist()


# -------------------------------------------------------------------------------------------------- norm, then ReLU


def functional_norm(m, x):
    c, n = m.body[0], m.body[1]
    h = F.batch_norm(c(x), n.running_mean, n.running_var, n.weight, n.bias)
    return m.out(torch.clamp(h, min=0).mean(2))


BATCH_NORM = nn.BatchNorm1d(6)
NORMED = {
    "modules": (BATCH_NORM, lambda m, x: m.out(m.body(x).mean(2))),
    "functions alone": (BATCH_NORM, functional_norm),
    "dropout between": (
        BATCH_NORM,
        lambda m, x: m.out(F.dropout(m.body[1](m.body[0](x)), 0.3, m.training).relu().mean(2)),
    ),
    "transposed between": (
        BATCH_NORM,
        lambda m, x: m.out(F.relu(m.body[1](m.body[0](x)).transpose(1, 2).contiguous()).mean(1)),
    ),
    "over groups": (nn.GroupNorm(2, 6), lambda m, x: m.out(F.relu(m.body[1](m.body[0](x))).mean(2))),
}


@pytest.mark.parametrize("name", NORMED)
def test_a_silenced_unit_is_silent_behind_norm_and_rectifier(name):
    norm, forward = NORMED[name]
    body = nn.Sequential(conv(N_AXES, 6), norm, nn.ReLU(inplace=True))
    network, x = of(forward, body=body, out=nn.Linear(6, CLASSES)).train(), windows()
    for seed in range(3):
        network(2 * windows(16, seed=seed) + 0.5)
    network.eval().body[1].bias.data += 0.4
    rectified = F.relu(network.body[1](network.body[0](x))).detach()
    behind = taps.behind(network, "body.0", x)
    assert behind.rectified and torch.allclose(taps.maps_of(network, behind, x)[:, :, 0], rectified, atol=1e-6)
    assert occluded(network, x, "body.0")["unit"].values.tolist() == rectified.sum(2).argmax(1).tolist()
    rectified[:, 2] = 0
    with taps.silenced(network, "body.0", [2]), torch.no_grad():
        assert torch.allclose(network(x), network.out(rectified.mean(2)), atol=1e-6)


@pytest.mark.parametrize("norm", [nn.Identity(), BATCH_NORM])
def test_behind_means_there_are_the_rectified_means(norm):
    network, x = of(lambda m, x: F.relu(m.n(F.avg_pool1d(m.c(x), 2))), c=conv(N_AXES, 6), n=norm), windows()
    maps = taps.maps_of(network, taps.behind(network, "c", x), x)
    assert torch.allclose(maps[:, :, 0], network(x), atol=1e-6)


@pytest.mark.parametrize(
    ("units", "said"),
    [
        (np.arange(6) == 2, r"True, False, False, False\]; np.flatnonzero\(mask\) gives those of a mask"),
        ([True, False], "of a mask"),
        ([1.9], r"each once, not \[1.9\]"),
        ([np.nan], "each once"),
        (["1"], "each once"),
        ("1", "each once"),
        ([1, 1], "each once"),
        (None, "each once"),
        ([[1], [2]], "each once"),
        ([6], "c2 has units 0 to 5; units should be"),
        ([-1], "c2 has units 0 to 5; units should be"),
        ([], "one or more"),
    ],
)
def test_units_are_numbers_each_once(units, said):
    network, x = two_convs(F.relu), windows()
    with pytest.raises(ValueError, match=said):
        taps.unit_numbers(units, 6, "c2")
    if units is not None:
        with pytest.raises(ValueError, match=said):
            maximized(network, "c2", 6, units=units)
    if units is not None and len(units):
        with pytest.raises(ValueError, match="units should be"), taps.silenced(network, "c2", units):
            network(x)


def test_units_may_be_of_any_whole_type():
    for units in (
        (2, 0),
        np.array([2, 0]),
        torch.tensor([2, 0]),
        [np.int8(2), 0],
        {2: "a", 0: "b"}.keys(),
        iter([2, 0]),
    ):
        assert taps.unit_numbers(units, 3) == [2, 0]
    assert taps.unit_numbers(1) == [1] and taps.unit_numbers(range(3), 3) == [0, 1, 2]
    assert taps.unit_numbers([], none=True) == []


def test_a_unit_that_goes_two_ways_is_silent_on_both():
    def forward(m, x):
        h = m.c(x)
        return F.relu(m.n(h)) + h

    network, x = of(forward, c=conv(), n=nn.BatchNorm1d(5)), windows()
    h = network.c(x).detach()
    h[:, 1] = 0
    with taps.silenced(network, "c", [1]), torch.no_grad():
        assert torch.allclose(network(x), F.relu(network.n(h)) + h, atol=1e-6)


@pytest.mark.parametrize(("kind", "both"), [(nn.LSTM, True), (nn.LSTM, False), (nn.GRU, True)])
def test_a_recurrent_unit_is_silent_in_the_last_state_too(kind, both):
    def forward(m, x):
        _, state = m.r(first(x))
        h = state[0] if isinstance(state, tuple) else state
        return m.out(h[-2:].transpose(0, 1).flatten(1) if both else h[-1])

    unit = 9 if both else 4
    recurrent = kind(N_AXES, 5, 2, batch_first=True, bidirectional=both)
    network, x = of(forward, r=recurrent, out=nn.Linear(unit + 1, CLASSES)), windows()
    with taps.silenced(network, "r", [unit]), torch.no_grad():
        found = network(x)
    with torch.no_grad():
        network.out.weight[:, unit] = 0
        assert torch.allclose(found, network(x), atol=1e-6)


# ------------------------------------------------------------------------------------------------ scores and windows

ENDS = {
    "probabilities": lambda h: h.softmax(1),
    "log probabilities": lambda h: h.log_softmax(1),
    "tuple": lambda h: (h, h.sum(1)),
    "dictionary": lambda h: {"logits": h, "features": h},
    "probabilities in a list": lambda h: [h.softmax(1), h],
}


def ending(end):
    """Convolution, ReLU, mean, classes, and what ``end`` makes of these."""
    return of(lambda m, x: end(m.out(F.relu(m.c1(x)).mean(2))), c1=conv(), out=OUT)


def ending_in_means(end):
    """Convolution and mean: five classes."""
    return of(lambda m, x: end(m.c1(x).mean(2)), c1=conv())


@pytest.mark.parametrize("name", ENDS)
def test_class_scores_are_read_from_whatever_a_network_returns(name):
    network, plain, x = ending(ENDS[name]), ending(lambda h: h), windows(8)
    both, y = (network, plain), [i % CLASSES for i in range(8)]
    assert torch.allclose(taps.scores_of(network, x).softmax(1), plain(x).softmax(1), atol=1e-6)
    one, two = (occluded(net, x.numpy(), "c1", y) for net in both)
    for value in one:
        assert np.allclose(one[value], two[value], atol=1e-5), value
    one, two = (ablated(net, "c1", x)["probability"] for net in both)
    assert np.allclose(one, two, atol=1e-6) and (one != 0).any()
    assert np.array_equal(*(dreams.smallest_change(net, x, 3, 0).before for net in both))
    for objective in (objectives.channel("c1", 1), objectives.class_probability(2)):
        assert torch.allclose(objective(network, x), objective(plain, x), atol=1e-6)
    assert np.isfinite(visualized(network, objectives.class_score(1), x.numpy(), 3).score).all()


@pytest.mark.parametrize("end", [lambda h: None, lambda h: h[:, 0], lambda h: h[:, :1], lambda h: h[:, :, None], str])
def test_no_class_scores_are_said_so(end):
    network = ending_in_means(end)
    with pytest.raises(ValueError, match="class scores .* are wanted"):
        taps.scores_of(network, windows())
    assert objectives.channel("c1", 1)(network, windows()).shape == (4,)


@pytest.mark.parametrize("end", [lambda z, y: (z, y), lambda z, y: {"features": z, "logits": y}])
def test_features_that_come_before_the_scores_are_not_taken_for_them(end):
    def forward(m, x):
        z = F.relu(m.c1(x)).mean(2)
        return end(z, m.out(z))

    network, x = of(forward, c1=conv(), out=OUT), windows()
    assert taps.scores_of(ending_in_means(lambda z: Output(1, z)), x).shape == (4, 5)
    blocks = objectives.in_blocks([(objectives.class_probability([0] * 4), 4)])
    for look in (
        lambda: occluded(network, x),
        lambda: objectives.class_score(1)(network, x),
        lambda: blocks(network, x),
        lambda: ablated(network, "c1", x),
    ):
        with pytest.raises(ValueError, match="looks like features.*scores first|scores of 5 classes, not of 4"):
            look()


@pytest.mark.parametrize(
    "end", [torch.sigmoid, lambda h: torch.cat([h[:, :2].sigmoid(), h[:, 2:].sigmoid().clamp(0, 1)], 1).squeeze()]
)
def test_scores_of_classes_that_do_not_exclude_each_other_are_refused(end):
    network, gated = ending_in_means(end), ending_in_means(lambda h: end(h) * h)
    assert torch.allclose(taps.scores_of(gated, windows()), gated(windows()))
    for look in (
        lambda: taps.scores_of(network, windows()),
        lambda: occluded(network, windows()),
        lambda: visualized(network, objectives.class_score(1), windows(), 1),
    ):
        with pytest.raises(ValueError, match="ends in a sigmoid.*without the sigmoid"):
            look()


def test_requests_that_do_not_fit_the_network_are_said():
    network, x = two_convs(F.relu), windows()
    for n, activity in ((3, 0), (6, 5)):
        with pytest.raises(ValueError, match=f"scores of 4 classes, not of {n}"):
            ablated(network, "c1", x, n, np.full(4, activity))
    for classes, axes in (([0] * 3, N_AXES), ([0] * 4, 9)):
        with pytest.raises(ValueError, match="a class for each of 4 windows and groups of their 3 axes"):
            occluded(network, x, None, classes, axes)
    for n in (5, 7):
        with pytest.raises(ValueError, match="th_eap should be .* of all 6 units of c2"):
            maximized(network, "c2", n)
    with pytest.raises(ValueError, match="more than windows"):
        taps.places(of(lambda m, x, lengths: m.c1(x), c1=conv()), x)
    with pytest.raises(ValueError, match="transpose"):
        taps.scores_of(ending_in_means(lambda h: h.T), windows(5))


def test_scores_that_depend_on_chance_or_on_other_windows_are_refused():
    noisy = of(lambda m, x: F.dropout(m.c1(x)).mean(2), c1=conv())
    mixed = of(lambda m, x: m.n(m.c1(x)).mean(2), c1=conv(), n=nn.BatchNorm1d(5, track_running_stats=False))
    for network, words in ((noisy, "other values each time"), (mixed, "other windows of the batch")):
        assert taps.located(network, "c1", windows()).layout == "window unit time", "before that all is well"
        for look in (
            lambda net: occluded(net, windows()),
            lambda net: occluded(net, windows(), "c1"),
            lambda net: ablated(net, "c1", windows(), 5),
        ):
            with pytest.raises(ValueError, match=words):
                look(network)


def diverged(network):
    network.c2.weight.data[0, 0, 0] = torch.nan
    return network


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: two_convs(F.relu).to("meta"), "'c1.weight' hold no numbers, because they are on the device \"meta\""),
        (lambda: of(lambda m, x: m.c2(x).mean(2), c2=nn.LazyConv1d(5, 3)), "'c2.weight' have no shape yet: call the"),
        (lambda: diverged(two_convs(F.relu)), "'c2.weight' hold NaN, as where training diverged"),
    ],
)
def test_networks_without_numbers_are_said_so(make, said):
    for look in (
        lambda net: taps.places(net, windows()),
        lambda net: taps.scores_of(net, windows()),
        lambda net: unit_statistics.collect(net, windows().numpy(), place="c2"),
        lambda net: maximized(net, "c2", 6),
    ):
        with pytest.raises(ValueError, match=said):
            look(make())


def test_buffers_that_a_network_assigns_anew_are_as_they_were():
    def forward(m, x):
        m.level, m.n = m.level + x.mean().detach(), None
        m.register_buffer("more", torch.ones(1))
        return m.c(x).mean(2)

    network = of(forward, c=conv())
    network.register_buffer("level", torch.zeros(1))
    network.register_buffer("n", torch.ones(1))
    level = network.level
    with taps.watching(network):
        network(windows())
    assert network.level is level and float(level) == 0 and float(network.n) == 1
    assert [name for name, _ in network.named_buffers()] == ["level", "n"]


@pytest.mark.parametrize(
    ("network_type", "window_type"),
    [
        (torch.float32, np.float64),
        (torch.float64, np.float32),
        (torch.float32, np.int64),
        (torch.float16, np.float32),
        (torch.bfloat16, np.float16),
    ],
)
def test_windows_of_any_number_type_go_into_networks_of_any(network_type, window_type):
    network, plain = two_convs(F.relu).to(network_type), two_convs(F.relu)
    x = (10 * windows()).numpy().round().astype(window_type)
    near = {"rtol": 0.1, "atol": 0.3} if network_type in (torch.float16, torch.bfloat16) else {"atol": 1e-4}
    assert taps.as_windows(network, x).dtype == network_type
    assert taps.as_windows(two_convs(F.relu).to("meta"), x).device.type == "meta"
    looks = {
        "maps": lambda net, x: taps.outputs(net, "c2", x).float(),
        "project": lambda net, x: deconvnet.project(net, "c2", x, deconvnet.places([1] * 4)).float(),
        "occlusion": lambda net, x: occluded(net, x, "c2", [0, 1, 2, 3])["log_odds"].values,
        "ablation": lambda net, x: ablated(net, "c2", x)["probability"].values,
        "visualization": lambda net, x: visualized(net, objectives.channel("c2", 1), x, 2).score,
    }
    for name, look in looks.items():
        one, two = look(network, x), look(plain, torch.tensor(x, dtype=torch.float32))
        assert np.allclose(one, two, **near), name
    climbed = slopes.ascend_units(network, "c2", [0, 1], x, ADAM, 3, 0.3)
    assert (climbed.maximum > climbed.curve[:, 0]).any()


def test_windows_in_any_order_of_bytes_and_samples_are_the_same_windows():
    network, x = two_convs(F.relu), windows().numpy()
    expected = taps.outputs(network, "c2", x)
    for same in (x.astype(">f4"), x[..., ::-1].copy()[..., ::-1], x.astype(np.longdouble), np.ma.array(x)):
        assert torch.equal(taps.outputs(network, "c2", same), expected)
        assert taps.places(network, same)["refused"].eq("").all() and taps.scores_of(network, same).isfinite().all()
        assert taps.footprint(network, "c2", same) == 5 and taps.behind(network, "c1", same).rectified
    masked = np.ma.masked_greater(x, 1.2)
    assert taps.as_windows(network, masked).isnan().numpy().tolist() == masked.mask.tolist()
    with pytest.raises(ValueError, match="c2 is NaN or infinite for some windows"):
        unit_statistics.collect(network, masked, place="c2")
    with pytest.raises(ValueError, match="windows should be numbers, not object"):
        taps.places(network, x.astype(object))


# --------------------------------------------------------------------------------------------------- foreign layouts

#: layout of windows that a network wants: their shape, its layers, layout of its first layer's output
FOREIGN = {
    "window time axis": ((LENGTH, N_AXES), nn.Linear(N_AXES, 6), "window time unit"),
    "window 1 axis time": ((1, N_AXES, LENGTH), nn.Conv2d(1, 6, (1, 3)), "window unit axis time"),
    "window 1 time axis": ((1, LENGTH, N_AXES), nn.Conv2d(1, 6, (5, 1)), "window unit time axis"),
}


@pytest.mark.parametrize("layout", FOREIGN)
def test_networks_for_other_layouts_are_told_which_wrapper_fits(layout):
    shape, layer, inside = FOREIGN[layout]

    def forward(m, x):
        if x.shape[1:] != shape:
            raise RuntimeError(f"expected {shape}")
        return F.relu(m.layer(x))

    needs, x = of(forward, layer=layer), windows()
    for use in (taps.maps_of, taps.located, projected):
        with pytest.raises(ValueError, match=re.escape(f"taps.WithLayout(network, {layout!r})")):
            use(needs, "layer", x)
    wanted = (x if shape[-1] == LENGTH else first(x)).reshape(len(x), *shape)
    maps = taps.maps_of(taps.WithLayout(needs, layout), "network.layer", x)
    assert torch.equal(maps, maps_of(needs.layer(wanted), inside, len(x)))
    if layout == "window 1 axis time":
        assert torch.equal(taps.WithChannel(needs)(x), needs(wanted))


# --------------------------------------------------------------------------------------------------------- in time


def standard(m, x):
    return (x - x.mean(2, keepdim=True)) / x.std(2, keepdim=True)


#: squeeze and excitation: units weighted by what their means over time say
GATE = Of(lambda m, h: h * m.dense(h.mean(2)).sigmoid()[..., None], dense=nn.Linear(4, 4))
STANDARDIZED = Of(standard)
T = 30
#: layers, and the sample of the window that each sample of the last one's maps is about
PLACED = {
    "unpadded": ([conv(3, 4, 5, padding=0), nn.ReLU(), conv(4, 4, 5, padding=0)], np.arange(22) + 4),
    "strided": ([nn.Conv1d(3, 4, 5, stride=2)], np.arange(13) * 2 + 2),
    "strided, padded": ([nn.Conv1d(3, 4, 7, 2, 3), nn.MaxPool1d(3, 2, 1)], np.arange(8) * 4),
    "dilated": ([nn.Conv1d(3, 4, 3, dilation=3)], np.arange(24) + 3),
    "dilated, padded": ([nn.Conv1d(3, 4, 3, dilation=4, padding=4)], np.arange(T)),
    "pooled": ([conv(3, 4), nn.ReLU(), nn.MaxPool1d(2)], np.arange(15) * 2 + 0.5),
    "pooled by means": ([conv(3, 4), nn.AvgPool1d(5)], np.arange(6) * 5 + 2.0),
    "a wide kernel": ([conv(3, 4, 21)], np.arange(T)),
    "over groups and time": ([nn.Conv1d(3, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.ReLU()], np.arange(14) * 2 + 1),
    "to one sample": ([nn.Conv1d(3, 4, 3), nn.AdaptiveAvgPool1d(1)], np.array([14.5])),
    "gated": ([nn.Conv1d(3, 4, 3, 2, 1), GATE, nn.Conv1d(4, 4, 3, 2, 1)], np.arange(8) * 4),
    "standardized": ([STANDARDIZED, nn.Conv1d(3, 4, 5, 2)], np.arange(13) * 2 + 2),
    "standardized, causal": ([STANDARDIZED, nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(3, 4, 5)], np.arange(T) - 2),
    "of norm 1": ([Of(lambda m, x: F.normalize(x, dim=2)), nn.Conv1d(3, 4, 5)], np.arange(26) + 2),
}


@pytest.mark.parametrize("name", PLACED)
def test_samples_of_maps_are_where_they_look(name):
    layers, expected = PLACED[name]
    network = of(lambda m, x: m.layers(x), layers=nn.Sequential(*layers))
    for dtype in (torch.float32, torch.bfloat16):
        found = taps.positions(network.to(dtype), f"layers.{len(layers) - 1}", windows(4, T))
        assert np.allclose(found, expected), dtype


#: how many samples of the window one of the maps' sees
SEEN = {"unpadded": 9, "strided": 5, "strided, padded": 11, "dilated": 7, "dilated, padded": 9, "a wide kernel": 21}
SEEN |= {"to one sample": T, "gated": T, "of norm 1": T}


@pytest.mark.parametrize("name", SEEN)
def test_a_sample_of_maps_sees_so_many_of_the_window(name):
    layers, _ = PLACED[name]
    network = of(lambda m, x: m.layers(x), layers=nn.Sequential(*layers))
    assert taps.footprint(network, f"layers.{len(layers) - 1}", windows(4, T)) == SEEN[name]


def test_layers_that_see_everything_are_about_the_samples_of_what_they_get():
    def forward(m, x):
        return m.d(m.r(first(m.c(x)))[0])

    x, parts = windows(4, T), {"r": nn.LSTM(5, 6, batch_first=True, bidirectional=True), "d": nn.Dropout()}
    assert np.array_equal(taps.positions(of(forward, c=conv(), **parts), "r", x), np.arange(T))
    assert taps.footprint(of(forward, c=conv(), **parts), "r", x) == T
    unpadded = of(forward, c=conv(padding=0, kernel=5), **parts)
    for layer in "rd":
        assert np.array_equal(taps.positions(unpadded, layer, x), np.arange(T - 4) + 2)
    backwards = of(lambda m, x: m.r(first(x.flip(2))), r=nn.GRU(N_AXES, 6, batch_first=True))
    with pytest.raises(ValueError, match="from its end to its begin"):
        taps.positions(backwards, taps.find(backwards, "r", layout="window time unit"), x)
    mixed = of(lambda m, x: m.c(m.d(x)), d=nn.Linear(T, 12), c=conv())
    for network in (mixed, *(of(lambda m, x, by=by: m.c(x.roll(by, 2)), c=conv()) for by in (5, 12, 15))):
        with pytest.raises(ValueError, match="follows neither time"):
            taps.positions(network, "c", x)
        with pytest.raises(ValueError, match="do not look at the window's in their order|sees the whole window"):
            taps.positions(network, taps.find(network, "c", layout="window unit time"), x)


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
    "relu_": lambda h: h.relu_(),
    "clamp": lambda h: h.clamp(min=0),
    "clamp_": lambda h: h.clamp_(min=0.0),
    "clip": lambda h: torch.clip(h, 0),
    "clamp_min": lambda h: h.clamp_min(0),
    "maximum": lambda h: torch.maximum(h, torch.zeros(())),
    "maximum, zero first": lambda h: torch.maximum(torch.zeros_like(h), h),
    "max": lambda h: torch.max(h, torch.zeros_like(h)),
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
        assert torch.allclose(*(projected(net, "c2", x, rule) for net in (network, plain)), atol=1e-7), rule
    for slope in (0.0, 0.3):
        one, two = (slopes.ascend_units(net, "c2", range(3), x, ADAM, 3, slope).last for net in (network, plain))
        assert torch.allclose(one, two, atol=1e-5)
    assert not torch.equal(one, slopes.ascend_units(network, "c2", range(3), x, ADAM, 3).last)
    made = [visualized(net, objectives.channel("c2", 1), x, 4).signal for net in (network, plain)]
    assert np.allclose(*made, atol=1e-5)


@pytest.mark.parametrize("slope", [nn.PReLU(5, 0.2), lambda h: F.rrelu(h, 0.1, 0.3), nn.LeakyReLU(0.2, inplace=True)])
def test_leaky_rectifiers_have_rules(slope):
    parts, x = {"c1": conv(), "c2": conv(5, 6)}, torch.tensor([[-1.0] * 5], requires_grad=True)
    network = of(lambda m, x: m.c2(slope(m.c1(x))), **parts)
    plain = of(lambda m, x: m.c2(F.leaky_relu(m.c1(x), 0.2)), **parts)
    for rule in deconvnet.RULES:
        assert torch.allclose(*(projected(net, "c2", windows(), rule) for net in (network, plain)), atol=1e-6)
    with backward.rectifiers(backward.waking(0.5)):
        slope(x * 1.0).sum().backward()
    assert torch.allclose(x.grad, torch.full((1, 5), 0.5))


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


OTHERS = {
    **{f.__name__: f for f in (F.gelu, F.elu, F.silu, torch.tanh, F.softplus, F.mish, F.hardswish, F.hardtanh)},
    "softmax": lambda h: h.softmax(1),
    "a gate": lambda h: h * torch.sigmoid(h),
    "square": lambda h: h**2,
    "half of x and its size": lambda h: (h + h.abs()) / 2,
    "beside a rectifier": lambda h: F.relu(h) + F.gelu(h),
    "masked": lambda h: h.masked_fill(h < 0, 0),
    "set to zero": zeroed,
    "where the others are": lambda h: torch.where(h < 0, torch.zeros_like(h), h),
    "product of two outputs": lambda h: h * h.roll(1, 1),
    "the larger of itself and a tenth": lambda h: torch.maximum(h, 0.1 * h),
    "a function of one's own": Squared.apply,
    "in place in a part": part_in_place,
}


@pytest.mark.parametrize("name", OTHERS)
def test_rules_are_refused_where_they_are_not_defined(name):
    network, x = two_convs(OTHERS[name]), windows()
    beside = of(lambda m, x: m.c2(OTHERS[name](m.c1(F.relu(m.c0(x))))), c0=conv(3, 3), c1=conv(), c2=conv(5, 6))
    for net, rule in ((network, "deconvnet"), (network, "guided"), (beside, "deconvnet")):
        with pytest.raises(ValueError, match=r"c2 and the input .*rectifier.*plain gradient"):
            projected(net, "c2", x, rule)
    for slope in (0.0, 0.3):
        with pytest.raises(ValueError, match="c2 and the input .*rectifier"):
            slopes.ascend_units(network, "c2", [0], x, ADAM, 2, slope)
    assert projected(network, "c2", x, "gradient").abs().max() > 0
    assert slopes.ascend_units(network, "c2", [0], x, ADAM, 2).curve.shape == (4, 3)
    # what lies behind the place does not matter, and without anything but linear layers all rules are the gradient
    found = [projected(network, "c1", x, rule) for rule in deconvnet.RULES]
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

    parts, x = {"c1": conv(), "c2": conv(5, 6)}, windows()
    network, plain = of(forward, **parts), of(lambda m, x: m.c2(F.relu6(m.c1(x))), **parts)
    looks = {
        "deconvnet": lambda net: projected(net, "c2", x),
        "slope": lambda net: slopes.ascend_units(net, "c2", [0], x, ADAM, 2, 0.3).last,
        "gradient": lambda net: projected(net, "c2", x, "gradient"),
        "climb": lambda net: slopes.ascend_units(net, "c2", [0], x, ADAM, 2).last,
    }
    for name, look in looks.items():
        if again or name in ("deconvnet", "slope"):
            with pytest.raises(ValueError, match="[Cc]heckpoint"):
                look(network)
        else:
            assert torch.allclose(look(network), look(plain), atol=1e-6)
    assert torch.equal(taps.outputs(network, "c2", x), taps.outputs(plain, "c2", x))


@pytest.mark.parametrize("how", [nn.LSTM(5, 6, batch_first=True), nn.RNN(5, 6, nonlinearity="relu", batch_first=True)])
def test_rules_are_refused_for_recurrent_layers(how):
    network = of(lambda m, x: m.r(first(F.relu(m.c(x)))), c=conv(), r=how)
    with pytest.raises(ValueError, match="no rectifier that a backward rule is defined for"):
        projected(network, "r", windows())


# ------------------------------------------------------------------------------------------------------------ table


def test_places_lists_what_can_be_looked_at_and_why_not():
    def forward(m, x):
        h = m.act(m.c2(m.act(m.c1(x))))
        steps, _ = m.lstm(first(h))
        return m.out(m.flat(steps[:, -1:]))

    parts = {"c1": conv(padding=0), "c2": conv(5, 6), "act": nn.ReLU(), "never": conv(), "flat": nn.Flatten()}
    network = of(forward, **parts, lstm=nn.LSTM(6, 7, batch_first=True), out=nn.Linear(7, CLASSES))
    table = taps.places(network, windows())
    single = table.set_index("layer")
    assert table.loc[table["layer"] == "act", "call"].tolist() == [0, 1]
    assert single.loc["c1", ["layout", "units", "begin", "end"]].tolist() == ["window unit time", 5, 1, 14]
    assert single.loc["lstm", ["layout", "samples"]].tolist() == ["window time unit", 14]
    assert "no rectifier" in single.loc["lstm", "backward"] and single.loc["c2", "backward"] == "yes"
    assert "did not run" in single.loc["never", "refused"] and single.loc["out", "dissection"] == "yes"
    assert (table[table["refused"] == ""][["ablation", "occlusion", "dissection", "climb"]] == "yes").all(axis=None)
    assert not hooks_of(network)
