"""Leaky copies: the very network with leaky rectifiers written into it, for gradients alone; what they are good for."""

import copy
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lens_taps import CLASSES, LAYERS, LENGTH, MODELS, N_AXES, hooks_of, windows
from torch import nn
from torch.nn import functional as F

from harvis_utils.lenses import leaky_copies, slopes, slopes_study
from harvis_utils.lenses.slopes import COPY, SLOPES, THROUGH, WAYS
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.paper_methods import PROPOSED
from harvis_utils.maximization.visualization import PerAxis
from harvis_utils.networks import backward, builders, taps
from harvis_utils.networks.sfhf import SFHF, Trunk, folded_trunk
from harvis_utils.settings import LeakySettings, MaximizationSettings, ModelSettings, SlopeSettings, Step
from harvis_utils.training import supervised

pytestmark = pytest.mark.usefixtures("one_thread")

ADAM = Step("adam", 0.05, 0.98)
SLOPE = 0.2


class Attention(nn.Module):
    """Every sample looks at every other one: scores of rectified features, a softmax, a sum, a skip."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.query, self.key = nn.Conv1d(N_AXES, 6, 3, padding=1), nn.Linear(6, 4), nn.Linear(6, 4)
        self.value, self.out = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        h = F.relu(self.embed(x)).transpose(1, 2)
        weights = (self.query(h) @ self.key(h).transpose(1, 2) / 2).softmax(2)
        return self.out((h + weights @ self.value(h)).mean(1))


# ------------------------------------------------------------------------------------------------ what leaks


class Spelled(nn.Module):
    """Rectifiers in seven spellings, one layer each; with a slope the same function with leaky ones written out."""

    def __init__(self, slope=None):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(7))
        self.slope, self.in_place = slope, nn.ReLU(inplace=True)

    def forward(self, x):
        spelled = [
            F.relu,
            lambda h: h.clamp(min=0),
            lambda h: torch.maximum(h, torch.zeros(())),
            lambda h: h * (h > 0),
            lambda h: torch.where(h > 0, h, 0.0),
            self.in_place,
            F.relu6,
        ]
        leaky = [lambda h: F.leaky_relu(h, self.slope)] * 6 + [lambda h: F.leaky_relu(h, self.slope).clamp(max=6)]
        for layer, rectify in zip(self.layers, spelled if self.slope is None else leaky, strict=True):
            x = rectify(3 * layer(x))
        return x


def test_every_spelling_leaks_in_both_passes():
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, written = Spelled().double(), Spelled(SLOPE).double()
    found = []
    for model, around in ((plain, backward.leaking(SLOPE)), (written, backward.leaking(SLOPE))):
        at = x.clone().requires_grad_()
        with around:
            out = model(at)
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), at)))
    assert all(torch.allclose(one, two) for one, two in zip(*found, strict=True))
    assert torch.equal(found[0][0], written(x).detach()), "what leaks already leaks as much"
    assert (plain(x) >= 0).all(), "behind the block rectifiers are plain again"


def test_what_was_changed_in_place_is_leaky_too():
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    with backward.leaking(0.5):
        h = x * 1.0
        F.relu_(h)
        (gradient,) = torch.autograd.grad(h.sum(), x)
    assert h.tolist() == [-0.5, 2.0] and gradient.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_the_copy_and_the_value_that_of_the_network(name, monkeypatch):
    model, unit = MODELS[name]().eval(), torch.arange(3)
    place, x = taps.find(model, LAYERS[name], rectified=True), windows(3)
    value, direction = slopes.unit_field(model, place, unit, SLOPE, COPY)(x)
    assert torch.equal(value.detach(), taps.maps_of(model, place, x)[unit, unit].mean((1, 2)).detach())
    # the copy by other means: functions of torch exchanged, where the networks of these tests call them
    monkeypatch.setattr(F, "relu", lambda h, inplace=False: F.leaky_relu(h, SLOPE))
    monkeypatch.setattr(torch, "relu", lambda h: F.leaky_relu(h, SLOPE))
    at = x.clone().requires_grad_()
    if name == "sfhf":
        maps = model.feature_maps(at, "conv2")["conv2"]
    elif name == "one":
        maps = F.leaky_relu(model.second(F.relu(model.first(at))), SLOPE)[:, :, None]
    else:
        maps = F.leaky_relu(model.network.body[0](at[:, None]), SLOPE)
    (expected,) = torch.autograd.grad(maps[unit, unit].mean((1, 2)).sum(), at)
    assert torch.allclose(direction, expected, atol=1e-7)


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from(["conv1", "conv2", "conv3"]), st.sampled_from(SLOPES))
def test_written_out_equals_autograd_and_ways_differ_where_they_can(seed, layer, slope):
    torch.manual_seed(seed)
    model = SFHF(N_AXES, LENGTH, CLASSES, ModelSettings(n_units=6, n_dense=4, batch_norm=False)).eval().double()
    trunk, single, unit = folded_trunk(model).to(torch.float64), PerAxis(model, layer), torch.arange(6)
    x = torch.randn(6, LENGTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = {}
    for way in WAYS:
        value, found[way] = slopes_study.unit_field(trunk, layer, unit, slope, way)(x)
        slow, direction = slopes.unit_field(single, single.tap(layer), unit, slope, way)(x[:, None])
        assert torch.allclose(value, slow) and torch.allclose(found[way], direction[:, 0], atol=1e-9)
    if layer == "conv1" or slope in (0.0, 1.0):
        assert torch.allclose(found[THROUGH], found[COPY])
    elif slope >= 0.1:
        assert not torch.allclose(found[THROUGH], found[COPY]), "other rectifiers are closed in the copy"


# ------------------------------------------------------------------------------------------------ what it does


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_left_behind(name):
    model = MODELS[name]().train()
    before, training = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    slopes.ascend_units(model, LAYERS[name], [0, 1], windows(2), ADAM, 2, 0.5, way=COPY)
    assert not hooks_of(model) and [m.training for m in model.modules()] == training
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert F.relu(torch.tensor(-1.0)) == 0


def test_attention_is_refused_straight_through_and_climbed_by_its_copy():
    model, start = Attention().eval(), 0.3 * windows(4)
    with pytest.raises(ValueError, match="no rectifier that a backward rule is defined for"):
        slopes.ascend_units(model, "out", range(CLASSES), start, ADAM, 2, 0.3)
    found = {
        slope: slopes.ascend_units(model, "out", range(CLASSES), start, ADAM, 20, slope, 1.0, COPY)
        for slope in (None, 0.0, 0.3)
    }
    assert torch.equal(found[0.0].last, found[None].last) and not torch.equal(found[0.3].last, found[None].last)
    assert (found[0.3].maximum > found[0.3].curve[:, 0]).all()
    best = model(found[0.3].best)[torch.arange(16), torch.arange(CLASSES).repeat_interleave(4)]
    assert torch.allclose(best, found[0.3].maximum, atol=1e-6), "values are those of the network itself"


@pytest.mark.parametrize("slope", [math.nan, math.inf])
def test_bad_slopes_and_ways_are_named(slope):
    with pytest.raises(ValueError, match="a slope is a finite number"):
        slopes.ascend_units(MODELS["one"](), "second", [0], windows(2), ADAM, 2, slope, way=COPY)
    with pytest.raises(ValueError, match="unknown way 'both'; valid ways: straight-through, leaky copy"):
        slopes.ascend_units(MODELS["one"](), "second", [0], windows(2), ADAM, 2, 0.1, way="both")


# ------------------------------------------------------------------------------------- trained with Leaky ReLU


def leaky(slope, n_units=6, **more):
    torch.manual_seed(0)
    made = LeakySettings(n_units=n_units, n_dense=8, slope=slope, **more)
    return builders.build(N_AXES, LENGTH, CLASSES, made)


def test_a_leaky_network_is_sf_hf_with_leaky_relu_written_into_it(monkeypatch):
    model, x = leaky(SLOPE).eval(), windows(4)
    torch.manual_seed(0)
    plain = SFHF(N_AXES, LENGTH, CLASSES, ModelSettings(n_units=6, n_dense=8)).eval()
    assert torch.equal(leaky(0.0).eval()(x), plain(x)) and not torch.equal(model(x), plain(x))
    scores, maps = model(x), taps.maps_of(model, "conv2", x)
    monkeypatch.setattr(F, "relu", lambda h: F.leaky_relu(h, SLOPE))
    assert torch.equal(scores, plain(x)) and torch.equal(maps, plain.feature_maps(x)["conv2"])
    assert (maps < 0).any(), "its maps are its own, below zero too"


def test_ascents_of_a_leaky_network_equal_those_of_its_trunk():
    model = leaky(SLOPE, batch_norm=False).eval().double()
    trunk, single = folded_trunk(model).to(torch.float64), PerAxis(model, "conv3")
    unit, x = torch.arange(6), torch.randn(6, LENGTH, generator=torch.Generator().manual_seed(0)).double()
    for slope, way in ((SLOPE, THROUGH), (0.5, THROUGH), (0.5, COPY)):
        value, fast = slopes_study.unit_field(trunk, "conv3", unit, slope, way, own=SLOPE)(x)
        slow, direction = slopes.unit_field(single, single.tap("conv3"), unit, slope, way)(x[:, None])
        assert torch.allclose(value, slow) and torch.allclose(fast, direction[:, 0], atol=1e-9)
    _, plain = slopes.unit_field(single, single.tap("conv3"), unit, None)(x[:, None])
    _, same = slopes_study.unit_field(trunk, "conv3", unit, SLOPE, own=SLOPE)(x)
    assert torch.allclose(same, plain[:, 0], atol=1e-9), "its own slope is plain ascent"


def test_leaky_networks_learn_and_are_told_apart_in_the_store(cfg, tiny_windows):
    one, other = (
        supervised.networks(cfg, tiny_windows, LeakySettings(n_units=6, n_dense=8, slope=slope))[0]
        for slope in (0.0, SLOPE)
    )
    plain = supervised.networks(cfg, tiny_windows, ModelSettings(n_units=6, n_dense=8))[0]
    assert len({one.key, other.key, plain.key}) == 3 and np.isfinite(other.history["loss"]).all()
    weights = plain.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in one.model.state_dict().items())
    assert not all(torch.equal(v, weights[k]) for k, v in other.model.state_dict().items())


# ------------------------------------------------------------------------------------------------- the study


@pytest.fixture
def small(cfg, monkeypatch):
    """Few slopes and steps."""
    for module in (leaky_copies, slopes_study):
        monkeypatch.setattr(module, "SLOPES", (0.0, 0.3, 1.0))
    monkeypatch.setattr(leaky_copies, "INSIDE", (0.3,))
    monkeypatch.setattr(leaky_copies, "LEAKY_STEPS", (ADAM, Step("adam", 0.2, 0.98)))
    own = SlopeSettings(4, 2, (0.0, 0.3, 1.0), (0, 1), (1e-2,), 1, 48, ModelSettings(n_units=4, n_dense=8))
    return dataclasses.replace(cfg, slopes=own)


def test_gradients_are_compared_by_the_norm_over_all_windows(small, tiny_windows):
    nets = supervised.untrained(small, tiny_windows)
    table = leaky_copies.gradients(tiny_windows, nets)
    difference = table["difference"]
    assert (difference[leaky_copies.COPY_RULE].xs("conv1", level="layer").dropna() == 0).all()
    assert (difference[leaky_copies.COPY_RULE].xs(1.0, level="slope") < 1e-5).all()
    assert (
        difference[leaky_copies.COPY_RULE, "conv3", 0.3] > 0.01
        and difference[leaky_copies.OTHER_WINDOW, "all", 0.3] > 0.1
    )
    segments = tiny_windows.test.segments[:6]
    found = leaky_copies.gradients_of(nets[0], segments)
    unit = torch.full((6,), 2)
    rule, copied = (
        slopes_study.unit_field(nets[0].trunk, "conv3", unit, 0.3, way)(torch.tensor(segments))[1] for way in WAYS
    )
    one = found.sel(layer="conv3", slope=0.3, between=leaky_copies.COPY_RULE).isel(unit=2)
    assert float(one["difference"]) == pytest.approx(float((copied - rule).norm() / rule.norm()), rel=1e-4)


def test_climbs_of_leaky_networks_are_measured_against_their_own_plain_ascent(small, tiny_windows):
    networks = leaky_copies.leaky_networks(small, tiny_windows)
    assert list(networks) == [0.0, 0.3] and all(len(nets) == 2 for nets in networks.values())
    scores = leaky_copies.leaky_scores(tiny_windows, networks)
    assert (scores.loc["0", "more"] == 0).all() and scores["F1"].between(0, 1).all()
    climbs = {own: leaky_copies.leaky_climbs(small, tiny_windows, nets, own, 1.0) for own, nets in networks.items()}
    table = leaky_copies.leaky_table(climbs)
    assert (table.loc[("0", THROUGH, "all", 0.0), ["gain", "higher"]] == 0).all()
    assert (table.loc[("0.3", COPY, "all", 0.3), ["gain", "higher"]] == 0).all(), "its own slope is plain ascent"
    assert (table.loc[("0.3", THROUGH, "conv2", 0.0), "gain"]) != 0


def test_over_says_who_comes_higher_by_hand():
    dims, coords = ("seed", "layer", "slope", "start", "unit"), {"layer": ["conv1"], "slope": [0.3]}
    one, two = np.array([[2.0, 1.0, 0.0, 3.0]]), np.array([[1.0, 1.0, 0.0, 4.0]])
    first, second = (xr.DataArray(of[None, None, None], coords, dims) for of in (one, two))
    found = leaky_copies.over(first, second).loc[("conv1", 0.3)]
    assert found["higher"] == 0 and found["gain"] == 0
    assert leaky_copies.over(first, 0.5 * second).loc[("conv1", 0.3), "higher"] == 1


def test_any_network_is_climbed_by_its_copies(small, tiny_windows):
    net = dataclasses.replace(supervised.untrained(small, tiny_windows)[0], model=Attention().eval())
    found = leaky_copies.maxima_at(net, "out", 0.3 * windows(2).numpy(), 4, 1.0)["maximum"]
    assert dict(found.sizes) == {"layer": 1, "slope": 2, "start": 2, "unit": CLASSES}
    by_step = [
        slopes.ascend_units(net.model, "out", range(CLASSES), 0.3 * windows(2), step, 4, 0.3, 1.0, COPY).maximum
        for step in leaky_copies.LEAKY_STEPS
    ]
    assert np.allclose(found.sel(slope=0.3, layer="out").T, torch.maximum(*by_step).view(CLASSES, 2))


def test_inside_the_papers_method_slope_zero_is_the_method_and_slopes_wake_units(small, tiny_windows):
    nets = supervised.untrained(small, tiny_windows)
    statistics = unit_statistics.statistics(small, tiny_windows, nets)
    found = leaky_copies.inside(small, tiny_windows, nets, statistics)
    settings = dataclasses.replace(small.maximization, tolerance_g=small.readings.tolerance_g)
    for net in nets:
        own = statistics.sel(seed=net.seed, layer="conv3")
        about = {"methods": [PROPOSED], "settings": settings, "length": LENGTH, "fast": False}
        expected = paper_methods.maximize(net.trunk, "conv3", own["th_eap"].values, **about)
        plain = found.sel(seed=net.seed, layer="conv3", case=leaky_copies.PLAIN)
        apart = abs(plain["signal"].values - expected["signal"].sel(technique=PROPOSED).values)
        assert (apart < 1e-4).mean() > 0.8, "Adam makes a step of what is left of a gradient that is zero"
    strongest = found["start_map"].sel(case=leaky_copies.STRONGEST).mean("time")
    assert np.allclose(strongest.transpose("seed", ...), statistics["top_output"].isel(rank=0), atol=1e-5)
    table = leaky_copies.inside_table(found)
    assert len(table.loc["all"]) == 5 and (
        table.xs(leaky_copies.PLAIN, level="case").filter(like=", more").dropna() == 0
    ).all(axis=None)
    assert (table.loc[("all", leaky_copies.STRONGEST), "silent at start"]) == 0
    leaks = [case for case in table.loc["all"].index if case.startswith(WAYS)]
    assert leaky_copies.best_leak(table) in leaks
    assert table.loc[("all", leaky_copies.best_leak(table)), "reached"] == table.loc["all", "reached"][leaks].max()


@pytest.mark.parametrize(
    ("reached", "flat", "wide", "said"),
    [
        (0.2, -0.2, 0.01, "yes"),
        (0.2, 0.0, 0.01, "no"),  # no fewer are flat: within the margin
        (0.02, -0.2, 0.01, "no"),
        (0.2, 0.2, 0.1, "no"),  # surely more are flat
        (-0.2, -0.2, 0.1, "no"),
        (0.04, -0.2, 0.03, "undecided"),  # more, but perhaps by less than the margin
        (0.08, -0.08, 0.1, "undecided"),  # an interval that holds zero says nothing
        (np.nan, np.nan, 0.1, "undecided"),
    ],
)
def test_a_cure_reaches_more_thresholds_and_flattens_less_by_the_margin(reached, flat, wide, said):
    row = {
        f"{name}, more{end}": value + more
        for name, value in (("reached", reached), ("flat", flat))
        for end, more in (("", 0.0), (" low", -wide), (" high", wide))
    }
    assert leaky_copies.cures(pd.Series(row)) == said


def test_units_that_are_woken_are_counted_among_living_ones_that_were_silent():
    case, unit = [leaky_copies.PLAIN, "leak"], ("case", "unit")
    found = xr.Dataset(
        {
            "inactive_at_start": (unit, [[True, True, True, False], [False] * 4]),
            "silent": (unit, [[True, True, True, False], [False, True, False, False]]),
            "dead": (unit, [[False, False, True, False]] * 2),  # as similarity.score gives it, of each case
        },
        {"case": case},
    )
    assert [leaky_copies.woken(found, of) for of in case] == ["0 of 2", "1 of 2"]


def test_a_silent_unit_is_woken_by_either_way_inside_the_papers_method():
    """A unit that opens from 0.5 G on, and a start of zeros: alone the penalties count, unless a gradient leaks."""
    trunk = Trunk((torch.ones(1, 1, 1), torch.ones(1, 1, 1)), (torch.tensor([-0.5]), torch.tensor([-0.1])))
    starts = np.full((1, 2, 1, LENGTH), 0.01, np.float32)
    starts = xr.DataArray(
        starts, {"case": ["as it is"], "layer": ["conv1", "conv2"], "unit": [0]}, dims=("case", "layer", "unit", "time")
    )
    th_eap = xr.DataArray(np.full((2, 1), 1.0), {"layer": ["conv1", "conv2"]}, ("layer", "unit"))
    net = type("Fake", (), {"trunk": trunk, "key": "made by hand"})()
    found = leaky_copies.inside_of(net, th_eap, starts, MaximizationSettings(n_steps=200, weight=0.001))
    woken = found["map"].max(("time", "unit")) > 0
    assert not woken.sel(case=leaky_copies.PLAIN).any()
    assert woken.drop_sel(case=leaky_copies.PLAIN).all()
