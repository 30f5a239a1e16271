"""Backward slopes: plain where slopes are equal, equal to naive twins, leaving no trace; and what they are good for."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from made_trunks import made_trunk
from test_lens_taps import CLASSES, LAYERS, LENGTH, MODELS, N_AXES, hooks_of, windows
from torch import nn
from torch.nn import functional as F

from harvis_utils.lenses import landscapes, slopes, slopes_study
from harvis_utils.lenses.slopes import SLOPES
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.starting import starting_points, starting_signal
from harvis_utils.maximization.visualization import PerAxis
from harvis_utils.networks import taps
from harvis_utils.networks.sfhf import SFHF, folded_trunk
from harvis_utils.settings import (
    MaximizationSettings,
    ModelSettings,
    ReadingSettings,
    SlopeSettings,
    Step,
    TrainingSettings,
    load_settings,
)
from harvis_utils.training import supervised

pytestmark = pytest.mark.usefixtures("one_thread")

ADAM, PLAIN = Step("adam", 0.05, 0.98), Step("ascent", 0.5, 0.98)
STEPS = {"adam": ADAM, "ascent": PLAIN}


def climbed(model, layer, slope, step=ADAM, n_steps=20, bound=None, n_starts=3):
    return slopes.ascend_units(model, layer, range(3), windows(n_starts), step, n_steps, slope, bound)


def same(a, b):
    return torch.equal(a.curve, b.curve) and torch.equal(a.best, b.best) and torch.equal(a.last, b.last)


# ------------------------------------------------------------------------------------------------- identities


class Leaky(nn.Module):
    """All rectifiers have the slope 0.1."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(N_AXES, 5, 3), nn.LeakyReLU(0.1), nn.Conv1d(5, 4, 3))
        self.out = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.out(F.leaky_relu(self.body(x), 0.1).mean(2))


@pytest.mark.parametrize("optimizer", STEPS)
@pytest.mark.parametrize("bound", [None, 0.8])
def test_equal_slopes_are_plain_maximization_bit_for_bit(optimizer, bound):
    step = STEPS[optimizer]
    torch.manual_seed(0)
    leaky = Leaky()
    # "network.body.1": the layer before it is rectified in place, so that its own output is gone in a plain pass
    cases = [(MODELS["sfhf"](), "conv2", 0.0), (MODELS["two"](), "network.body.1", 0.0), (leaky, "out", 0.1)]
    for model, layer, own in cases:
        equal, plain = (climbed(model, layer, slope, step, bound=bound) for slope in (own, None))
        assert same(equal, plain)
        assert not same(climbed(model, layer, 0.7, step, bound=bound), plain), "another slope is another way"


def naive_signals(trunk, layer, step, n_steps):
    plain = dataclasses.replace(MaximizationSettings(), n_steps=n_steps, tolerance_g=0.0)
    n_units = len(trunk.biases[0])
    found = paper_methods.maximize(
        trunk, layer, np.full(n_units, np.nan), methods=("naive",), preset=step, settings=plain, length=LENGTH
    )
    return found["signal"].sel(technique="naive").values


@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3"])
@pytest.mark.parametrize("optimizer", STEPS)
def test_slope_zero_is_the_projects_own_naive_ascent_bit_for_bit(layer, optimizer):
    trunk, step = made_trunk(), STEPS[optimizer]
    start = torch.tensor(starting_signal(MaximizationSettings(), LENGTH)).repeat(4, 1)
    found = slopes_study.climb(trunk, layer, torch.arange(4), start, 0.0, step, 40)
    assert np.array_equal(found.last.numpy(), naive_signals(trunk, layer, step, 40))


def test_bounds_that_are_never_met_change_nothing():
    free, wide = (climbed(MODELS["one"](), "second", 0.3, bound=b, n_steps=5) for b in (None, 1e6))
    assert free.curve.shape == wide.curve.shape == (9, 6)


# --------------------------------------------------------------------------------------------------- naive twins


def naive_gradient(x, weights, unit, slope):
    """Mean output of one unit of two 1-D convolutions, and its gradient, by hand: x (axis, time)."""
    (w1, b1), (w2, b2) = weights
    padded = np.pad(x, ((0, 0), (1, 1)))
    length = x.shape[1]
    before = np.array([[(w1[c] * padded[:, t : t + 3]).sum() + b1[c] for t in range(length)] for c in range(len(w1))])
    inside = np.pad(np.maximum(before, 0), ((0, 0), (1, 1)))
    out = np.array([(w2[unit] * inside[:, t : t + 3]).sum() + b2[unit] for t in range(length)])
    back_out = np.where(out > 0, 1.0, slope) / length
    back_inside = np.zeros_like(inside)
    for t in range(length):
        back_inside[:, t : t + 3] += back_out[t] * w2[unit]
    back_before = np.where(before > 0, 1.0, slope) * back_inside[:, 1:-1]
    back = np.zeros_like(padded)
    for c in range(len(w1)):
        for t in range(length):
            back[:, t : t + 3] += back_before[c, t] * w1[c]
    return np.maximum(out, 0).mean(), back[:, 1:-1]


def naive_ascent(start, weights, unit, slope, step, n_steps, bound):
    x = start if bound is None else np.clip(start, -bound, bound)
    first, second, curve = np.zeros_like(x), np.zeros_like(x), []
    for number in range(n_steps + 1):
        value, g = naive_gradient(x, weights, unit, slope)
        curve.append(max([value, *curve]))
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        adam = (first / (1 - 0.9 ** (number + 1))) / (np.sqrt(second / (1 - 0.999 ** (number + 1))) + 1e-8)
        if number < n_steps:
            x = x + step.step_size * step.decay**number * (adam if step.optimizer == "adam" else g)
            x = x if bound is None else np.clip(x, -bound, bound)
    return curve, x


class TwoLayers(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Conv1d(2, 3, 3, padding=1), nn.Conv1d(3, 4, 3, padding=1)

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(SLOPES),
    st.sampled_from(list(STEPS)),
    st.sampled_from([None, 0.7]),
)
def test_all_units_and_starts_equal_a_loop_with_a_backward_pass_by_hand(seed, slope, optimizer, bound):
    model = TwoLayers(seed).double()
    weights = [(la.weight.detach().numpy(), la.bias.detach().numpy()) for la in (model.first, model.second)]
    start = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tap = taps.find(model, "second", rectified=True)
    found = slopes.ascend_units(model, tap, range(4), start, STEPS[optimizer], 6, slope, bound)
    rows = itertools.product(range(4), start.numpy())
    for k, (unit, x) in enumerate(rows):
        curve, last = naive_ascent(x, weights, unit, slope, STEPS[optimizer], 6, bound)
        assert np.allclose(found.curve[k], curve, atol=1e-9)
        assert np.allclose(found.last[k], last, atol=1e-6)


def exact_model(seed):
    """SF-HF in double precision without batch norm: its folded trunk has the very same weights."""
    torch.manual_seed(seed)
    model = SFHF(N_AXES, LENGTH, CLASSES, ModelSettings(n_units=5, n_dense=4, batch_norm=False)).eval()
    return model.double(), folded_trunk(model.float()).to(torch.float64), model.double()


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["conv1", "conv2", "conv3"]),
    st.sampled_from(SLOPES),
    st.sampled_from(list(STEPS)),
    st.sampled_from([None, 1.0]),
)
def test_the_written_out_ascent_equals_autograd(seed, layer, slope, optimizer, bound):
    _, trunk, model = exact_model(seed)
    single = PerAxis(model, layer)
    start = torch.randn(2, LENGTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    slow = slopes.ascend_units(single, single.tap(layer), range(5), start[:, None], STEPS[optimizer], 8, slope, bound)
    unit = torch.arange(5).repeat_interleave(2)
    fast = slopes_study.climb(
        trunk, layer, unit, start.repeat(5, 1), slope, STEPS[optimizer], 8, bound, block_bytes=60_000
    )
    assert torch.allclose(fast.curve, slow.curve, atol=1e-9)
    assert torch.allclose(fast.best, slow.best[:, 0], atol=1e-6)
    assert torch.allclose(fast.last, slow.last[:, 0], atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 5]), st.integers(1, 8), st.floats(0.2, 3))
def test_the_exact_maximum_in_a_box_is_that_of_all_its_corners(seed, kernel, length, bound):
    rng = np.random.default_rng(seed)
    w, b = rng.normal(size=(3, kernel)), rng.normal(size=3)
    corners = np.array(list(itertools.product((-bound, bound), repeat=length)))
    padded = np.pad(corners, ((0, 0), (kernel // 2, kernel // 2)))
    outputs = sum(w[:, None, k, None] * padded[:, k : k + length] for k in range(kernel)) + b[:, None, None]
    brute = np.maximum(outputs, 0).mean(2).max(1)
    found = slopes.best_in_box(w, b, bound, length)
    assert np.allclose(found, brute)
    inside = rng.uniform(-bound, bound, (200, length))
    padded = np.pad(inside, ((0, 0), (kernel // 2, kernel // 2)))
    outputs = sum(w[:, None, k, None] * padded[:, k : k + length] for k in range(kernel)) + b[:, None, None]
    assert (np.maximum(outputs, 0).mean(2).max(1) <= found + 1e-9).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(0, 5), min_size=4, max_size=4), min_size=1, max_size=5), st.floats(0, 6))
def test_steps_until_equals_a_loop(raw, target):
    curve = np.maximum.accumulate(np.array(raw), axis=1)
    by_hand = [next((k for k, v in enumerate(row) if v >= target), np.inf) for row in curve]
    assert np.array_equal(slopes.steps_until(curve, np.full(len(curve), target)), by_hand)


def test_bounds_are_counted():
    x = np.array([[1.0, -1.0, 0.5, 1.0], [1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0], [0.0, 0.999, 0.0, 0.0]])
    assert slopes.at_bounds(x, 1.0).tolist() == [0.75, 1.0, 1.0, 0.0]
    assert slopes.one_sided(x, 1.0).tolist() == [False, True, True, False]


# ------------------------------------------------------------------------------------------------- what it does


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("optimizer", STEPS)
@pytest.mark.parametrize("name", MODELS)
def test_every_objective_rises_and_values_are_those_of_the_network(name, optimizer, slope):
    model, layer = MODELS[name](), LAYERS[name]
    found = climbed(model, taps.find(model, layer, rectified=True), slope, STEPS[optimizer], bound=1.5)
    start, top = found.curve[:, 0], found.maximum
    assert (found.curve.diff(dim=1) >= 0).all() and (top >= start).all() and (top > start).float().mean() > 0.6
    place = taps.find(model, layer, rectified=True)
    with taps.evaluating(model), torch.no_grad():
        maps = taps.maps_of(model, place, found.best)
    unit = torch.arange(3).repeat_interleave(3)
    assert torch.allclose(maps[torch.arange(9), unit].mean((1, 2)), top, atol=1e-6)
    assert found.best.abs().max() <= 1.5 and found.last.abs().max() <= 1.5


def test_a_closed_unit_opens_under_a_slope_only():
    model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU())
    model[0].weight.data.fill_(1.0)
    model[0].bias.data.fill_(-1.0)
    start = torch.zeros(1, 1, 5)
    plain, leaking = (slopes.ascend_units(model, "1", [0], start, ADAM, 60, s, 2.0) for s in (0.0, 0.1))
    assert float(plain.maximum[0]) == 0 and torch.equal(plain.last, start)
    assert float(leaking.maximum[0]) > 0.4


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_left_behind_also_after_an_error(name, monkeypatch):
    model, layer = MODELS[name](), LAYERS[name]
    model.train()
    before = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    keeps = [p.requires_grad for p in model.parameters()]
    forwards = {m: m.forward.__func__ for m in model.modules()}
    climbed(model, layer, 0.5)
    monkeypatch.setattr(
        "harvis_utils.maximization.ascent.move", lambda *_: (_ for _ in ()).throw(RuntimeError("on purpose"))
    )
    with pytest.raises(RuntimeError, match="on purpose"):
        climbed(model, layer, 0.5)
    with pytest.raises(RuntimeError, match="on purpose"), slopes.sloped(0.5):
        raise RuntimeError("on purpose")
    assert not hooks_of(model) and [m.training for m in model.modules()] == before[1]
    assert [p.requires_grad for p in model.parameters()] == keeps
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before[0].items())
    assert all(m.forward.__func__ is f for m, f in forwards.items())
    y = torch.tensor([-1.0, 2.0], requires_grad=True)
    F.relu(y).sum().backward()
    assert torch.equal(y.grad, torch.tensor([0.0, 1.0])), "rectifiers are plain again"


def test_bad_input_is_named():
    model = MODELS["one"]()
    start = windows(2)
    with pytest.raises(ValueError, match=r"has units 0 to 5, not \[0, 6\]"):
        slopes.ascend_units(model, "second", [0, 6], start, ADAM, 2)
    with pytest.raises(ValueError, match=r"has units 0 to 5, not \[\]"):
        slopes.ascend_units(model, "second", [], start, ADAM, 2)
    with pytest.raises(ValueError, match="unknown layer 'conv9'"):
        slopes.ascend_units(model, "conv9", [0], start, ADAM, 2)
    with pytest.raises(ValueError, match="unknown optimizer 'sgd'; valid optimizers: ascent, momentum, adam"):
        slopes.ascend_units(model, "second", [0], start, Step("sgd", 0.1, 1.0), 2)
    with pytest.raises(ValueError, match="positive bound, not 2 steps and bound 0"):
        slopes.ascend_units(model, "second", [0], start, ADAM, 2, bound=0)
    with pytest.raises(ValueError, match="a backward slope is a finite number, not nan"):
        slopes.ascend_units(model, "second", [0], start, ADAM, 2, slope=float("nan"))


# ------------------------------------------------------------------------------------------------ small functions


@pytest.mark.parametrize("landscape", landscapes.landscapes(), ids=lambda la: la.name)
def test_the_highest_value_of_each_landscape_is_known(landscape):
    _, values = landscapes.surface(landscape, 401)
    assert float(values.max()) == pytest.approx(landscape.maximum, abs=1e-5)
    assert float(landscape.network(torch.tensor([landscape.at]))) == pytest.approx(landscape.maximum, abs=1e-5)
    at = np.unravel_index(values.argmax(), values.shape)[::-1]
    assert np.linspace(-1, 1, 401)[list(at)] == pytest.approx(landscape.at, abs=0.006)


def test_where_plain_ascent_fails_and_where_slopes_do():
    table = landscapes.successes(36, ["adam"])
    adam = table.xs("adam", level="optimizer")
    assert len(adam) == len(landscapes.landscapes()) and table.stack().between(0, 1).all()
    assert (adam.loc[["flat", "gate", "two hills", "race"], 0.0] < 0.5).all()
    assert (adam.loc[["flat", "gate", "two hills", "race"], 1.0] == 1).all()
    assert adam.loc["tent", 0.0] == 1 and adam.loc["tent", 1.0] < 0.5 and adam.loc["tent on a plain", 1.0] == 0
    assert adam.loc["tent on a plain", 0.1] == 1 and adam.loc["tent on a plain", 0.0] < 0.5


def test_paths_are_those_of_the_ascents():
    landscape = landscapes.landscapes()[1]
    start = landscapes.starts(2, 9)
    assert start.shape == (9, 2) and start.abs().max() < 1
    path = landscapes.path(landscape, 0.3, landscapes.STEPS["adam"], start, 20)
    found = landscapes.climb(landscape, 0.3, landscapes.STEPS["adam"], start, 20)
    assert path.shape == (21, 9, 2) and np.array_equal(path[-1], found.last.numpy())


# ------------------------------------------------------------------------------------------------------- stages


@pytest.fixture(scope="module")
def cfg():
    return dataclasses.replace(
        load_settings("quick", "synthetic", "cpu"),
        model=ModelSettings(n_units=4, n_dense=8),
        training=TrainingSettings(seeds=(0, 1), epochs=1, learning_rate=1e-2, batch_size=8),
        readings=ReadingSettings(seeds=(100,), n_units=2),
        slopes=SlopeSettings(n_steps=8, n_starts=2, trained=(0.0, 0.5), seeds=(0, 1), rates=(1e-2, 1e-5), epochs=2),
    )


def test_climbs_are_stored_and_say_what_they_should(cfg, tiny_windows, monkeypatch):
    monkeypatch.setattr(slopes_study, "STEP_SIZES", {"ascent": (1.0,), "adam": (0.05, 0.2)})
    nets = supervised.untrained(cfg, tiny_windows)
    chosen = slopes_study.choose_steps(cfg, tiny_windows, nets[:1], 1.0)
    assert chosen.table.shape == (3, len(SLOPES)) and chosen.table.stack().between(0, 1).all()
    assert {s.optimizer for s in chosen.steps.values()} == {chosen.table[0.0].idxmax()[0]}
    for slope, step in chosen.steps.items():
        assert step.step_size == chosen.table.loc[step.optimizer, slope].idxmax()
    found = slopes_study.climbs(cfg, tiny_windows, nets, chosen.steps, 1.0)
    assert dict(found["maximum"].sizes) == {"seed": 2, "layer": 3, "slope": 6, "start": 2, "unit": 4}
    starts = torch.tensor(starting_points(cfg.maximization, tiny_windows.train, 2))
    alone = slopes_study.climb(nets[1].trunk, "conv2", torch.tensor([3]), starts[1:2], 0.3, chosen.steps[0.3], 8, 1.0)
    one = found.sel(seed=1, layer="conv2", slope=0.3, unit=3).isel(start=1)
    assert np.allclose(one["signal"], alone.best[0], atol=1e-5) and np.allclose(one["maximum"], alone.maximum)
    assert one["at_bounds"] == (np.abs(one["signal"]) > 0.9999).mean()
    monkeypatch.setattr(slopes_study, "climb_all", lambda *_: pytest.fail("computed again"))
    assert slopes_study.climbs(cfg, tiny_windows, nets, chosen.steps, 1.0).identical(found)
    table = slopes_study.table(found)
    assert len(table) == 4 * 6 and (table.loc[("all", 0.0), ["gain", "higher"]] == 0).all()
    solved = slopes_study.against_optimum(nets, found, 1.0)
    assert 0 < solved["highest share"].max() <= 1 + 1e-5


def test_gains_by_hand():
    maximum = xr.DataArray([[[2.0, 0.0, 0.0, 4.0]], [[3.0, 1.0, 0.0, 2.0]]], dims=("slope", "seed", "unit"))
    found = slopes_study.gains(maximum.assign_coords(slope=[0.0, 0.5])).sel(slope=0.5).values[0]
    assert found[[0, 1, 3]].tolist() == [0.5, slopes_study.HIGHEST_GAIN, -0.5] and np.isnan(found[2])


def test_training_with_slope_zero_is_plain_training_bit_for_bit(cfg, tiny_windows):
    plain, zero, other = (
        slopes_study.fit(tiny_windows, cfg.model, cfg.training, 0, slope)[0].state_dict() for slope in (None, 0.0, 0.9)
    )
    assert all(torch.equal(v, zero[k]) for k, v in plain.items())
    assert not all(torch.equal(v, other[k]) for k, v in plain.items())
    kept = supervised.train(cfg, tiny_windows, 0).model.state_dict()
    assert all(torch.equal(v, kept[k]) for k, v in plain.items()), "and the chain's own training"


def test_training_chooses_rates_on_other_seeds_and_compares_in_pairs(cfg, tiny_windows):
    few = tiny_windows.every(2)
    rates = slopes_study.choose_rates(cfg, few, [100])
    assert set(rates) == set(itertools.product(slopes_study.KINDS, cfg.slopes.trained))
    made = slopes_study.outcomes(cfg, few, rates)
    assert len(made) == 2 * 2 * 2 and made[["val_f1", "test_f1", "dead"]].stack().between(0, 1).all()
    table = slopes_study.compare(made)
    assert (table.xs(0.0, level="slope")["test_f1 difference"] == 0).all()
    by_hand = made.loc[("batch norm", 0.5), "test_f1"].mean() - made.loc[("batch norm", 0.0), "test_f1"].mean()
    assert table.loc[("batch norm", 0.5), "test_f1 difference"] == pytest.approx(by_hand)


def test_height_and_bounds_are_ranked_within_units():
    up = np.arange(6.0).reshape(2, 3)
    found = xr.Dataset(
        {
            name: (("seed", "layer", "unit", "slope", "start"), np.stack([up, b])[None, None])
            for name, b in (("maximum", up), ("at_bounds", -up))
        },
        {"slope": [0.0, 0.5], "seed": [3], "layer": ["conv1"]},
    )
    correlation = slopes_study.bounds_and_height(found)
    assert correlation.dims == ("seed", "layer", "unit") and correlation.values[0, 0].tolist() == [1.0, -1.0]
    assert np.isnan(slopes_study.bounds_and_height(found * 0)).all()


def test_heights_are_averaged_over_networks_and_units_by_layer():
    values = np.array([[[1.0, np.nan], [0.5, 0.5]], [[0.0, -1.0], [0.5, 0.5]]])
    coords = {"seed": [0, 1], "layer": ["conv1", "conv2"]}
    table = slopes_study.height_table(xr.DataArray(values, dims=("seed", "layer", "unit"), coords=coords))
    assert list(table.index) == ["conv1", "conv2", "all"]
    assert table["correlation"].tolist() == pytest.approx([0.0, 0.5, 2 / 7])
    assert table.loc["conv2", ["correlation low", "correlation high"]].tolist() == [0.5, 0.5]


def test_what_slopes_add_is_taken_unit_by_unit_from_living_units():
    bounds = np.zeros((2, 1, 2, 3, 4))  # slope, seed, layer, unit, start
    bounds[1, 0, 0, 0] = [1, 1, 0, 0]
    bounds[:, 0, 1, 2] = 1
    maximum = np.ones_like(bounds)
    maximum[:, 0, 1, 1] = 0  # a dead unit
    dims = ("slope", "seed", "layer", "unit", "start")
    coords = {"slope": [0.0, 0.5], "seed": [3], "layer": ["conv1", "conv2"]}
    found = slopes_study.over_plain(
        xr.Dataset({"at_bounds": (dims, bounds), "maximum": (dims, maximum)}, coords), "at_bounds", 0.5
    )
    assert found.n_pairs == 5 and found.mean == pytest.approx(0.5 / 5) and found.dominance == pytest.approx(1 / 5)


def test_white_is_the_best_where_all_weights_have_one_sign():
    trunk = made_trunk()
    edge = torch.tensor([0.0, 1.0, -1.0, 0.0, 0.0]).expand_as(trunk.weights[0])
    for first, expected in ((trunk.weights[0].abs(), 1.0), (edge, 0.0)):
        net = type("Fake", (), {"trunk": dataclasses.replace(trunk, weights=(first, *trunk.weights[1:]))})()
        assert slopes_study.white_optima([net], 1.0, LENGTH).tolist() == [expected]
