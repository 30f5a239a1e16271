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

from harvis_utils.fast import ascent
from harvis_utils.lenses import landscapes, slopes, slopes_study
from harvis_utils.lenses.slopes import SLOPES
from harvis_utils.lenses.slopes_study import Climb
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

STEPS = {"adam": Step("adam", 0.05, 0.98), "ascent": Step("ascent", 0.5, 0.98)}
ADAM = STEPS["adam"]


def climbed(model, layer, slope, step=ADAM, n_steps=12, bound=None):
    return slopes.ascend_units(model, layer, range(3), windows(3), step, n_steps, slope, bound)


def same(a, b):
    return torch.equal(a.curve, b.curve) and torch.equal(a.best, b.best) and torch.equal(a.last, b.last)


# ------------------------------------------------------------------------------------------------- identities


class Leaky(nn.Module):
    """All rectifiers have the slope 0.1."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv1d(N_AXES, 5, 3), nn.LeakyReLU(0.1), nn.Conv1d(5, 4, 3))
        self.out = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.out(F.leaky_relu(self.body(x), 0.1).mean(2))


@pytest.mark.parametrize(("optimizer", "bound"), [("adam", None), ("ascent", 0.8)])
@pytest.mark.parametrize(
    # "network.body.1": the layer before it is rectified in place, so that its own output is gone in a plain pass
    ("make", "layer", "own"),
    [(MODELS["sfhf"], "conv2", 0.0), (MODELS["two"], "network.body.1", 0.0), (Leaky, "out", 0.1)],
)
def test_equal_slopes_are_plain_maximization_bit_for_bit(make, layer, own, optimizer, bound):
    model, step = make(), STEPS[optimizer]
    equal, plain, other = (climbed(model, layer, slope, step, bound=bound) for slope in (own, None, 0.7))
    assert same(equal, plain) and not same(other, plain), "another slope is another way"


@pytest.mark.parametrize(("layer", "optimizer"), [("conv1", "adam"), ("conv2", "ascent"), ("conv3", "adam")])
def test_slope_zero_is_the_projects_own_naive_ascent_bit_for_bit(layer, optimizer):
    trunk, step, plain = made_trunk(), STEPS[optimizer], MaximizationSettings(n_steps=20, tolerance_g=0.0)
    start = torch.tensor(starting_signal(plain, LENGTH)).repeat(4, 1)
    found = slopes_study.climb(trunk, layer, torch.arange(4), start, 0.0, step, Climb(20, None))
    about = {"methods": ("naive",), "preset": step, "settings": plain, "length": LENGTH}
    expected = paper_methods.maximize(trunk, layer, np.full(len(trunk.biases[0]), np.nan), **about)
    assert np.array_equal(found.last.numpy(), expected["signal"].sel(technique="naive").values)


# --------------------------------------------------------------------------------------------------- naive twins


def through(x, w):
    return np.array([sum(np.correlate(np.pad(a, 1), k, "valid") for a, k in zip(x, of, strict=True)) for of in w])


def back_through(g, w):
    return np.sum([[np.convolve(of, k)[1:-1] for k in own] for of, own in zip(g, w, strict=True)], axis=0)


def naive_gradient(x, weights, unit, slope):
    """Mean output of one unit of two 1-D convolutions, and its gradient, by hand: x (axis, time)."""
    (w1, b1), (w2, b2) = weights
    before = through(x, w1) + b1[:, None]
    out = through(np.maximum(before, 0), w2[[unit]]) + b2[unit]
    g = back_through(np.where(out > 0, 1.0, slope) / x.shape[1], w2[[unit]])
    return np.maximum(out, 0).mean(), back_through(np.where(before > 0, 1.0, slope) * g, w1)


def naive_ascent(start, weights, unit, slope, step, n_steps, bound):
    limit = np.inf if bound is None else bound
    x, first, second, curve = np.clip(start, -limit, limit), 0.0, 0.0, []
    for number in range(n_steps + 1):
        value, g = naive_gradient(x, weights, unit, slope)
        curve.append(max([value, *curve]))
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        adam = (first / (1 - 0.9 ** (number + 1))) / (np.sqrt(second / (1 - 0.999 ** (number + 1))) + 1e-8)
        if number < n_steps:
            move = step.step_size * step.decay**number * (adam if step.optimizer == "adam" else g)
            x = np.clip(x + move, -limit, limit)
    return curve, x


ways = st.sampled_from(SLOPES), st.sampled_from(list(STEPS)), st.sampled_from([None, 0.7])


@settings(max_examples=8)
@given(st.integers(0, 10**6), *ways)
def test_all_units_and_starts_equal_a_loop_with_a_backward_pass_by_hand(seed, slope, optimizer, bound):
    torch.manual_seed(seed)
    first, second = nn.Conv1d(2, 3, 3, padding=1), nn.Conv1d(3, 4, 3, padding=1)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU()).double()
    weights = [(la.weight.detach().numpy(), la.bias.detach().numpy()) for la in (first, second)]
    start = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = slopes.ascend_units(model, "3", range(4), start, STEPS[optimizer], 6, slope, bound)
    for k, (unit, x) in enumerate(itertools.product(range(4), start.numpy())):
        curve, last = naive_ascent(x, weights, unit, slope, STEPS[optimizer], 6, bound)
        assert np.allclose(found.curve[k], curve, atol=1e-9)
        assert np.allclose(found.last[k], last, atol=1e-6)


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from(["conv1", "conv2", "conv3"]), *ways)
def test_the_written_out_ascent_equals_autograd(seed, layer, slope, optimizer, bound):
    torch.manual_seed(seed)  # without batch norm a folded trunk has the very same weights
    model = SFHF(N_AXES, LENGTH, CLASSES, ModelSettings(n_units=5, n_dense=4, batch_norm=False)).eval()
    trunk, model = folded_trunk(model).to(torch.float64), model.double()
    single, step = PerAxis(model, layer), STEPS[optimizer]
    start = torch.randn(2, LENGTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    slow = slopes.ascend_units(single, single.tap(layer), range(5), start[:, None], step, 8, slope, bound)
    unit = torch.arange(5).repeat_interleave(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ascent, "CPU_BLOCK_BYTES", 60_000)
        fast = slopes_study.climb(trunk, layer, unit, start.repeat(5, 1), slope, step, Climb(8, bound))
    assert torch.allclose(fast.curve, slow.curve, atol=1e-9)
    assert torch.allclose(fast.best, slow.best[:, 0], atol=1e-6)
    assert torch.allclose(fast.last, slow.last[:, 0], atol=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 5]), st.integers(1, 8), st.floats(0.2, 3))
def test_the_exact_maximum_in_a_box_is_that_of_all_its_corners(seed, kernel, length, bound):
    rng = np.random.default_rng(seed)
    w, b = rng.normal(size=(3, kernel)), rng.normal(size=3)

    def highest(signals):
        padded = np.pad(signals, ((0, 0), (kernel // 2, kernel // 2)))
        outputs = sum(w[:, None, k, None] * padded[:, k : k + length] for k in range(kernel)) + b[:, None, None]
        return np.maximum(outputs, 0).mean(2).max(1)

    found = slopes_study.best_in_box(w, b, bound, length)
    assert np.allclose(found, highest(np.array(list(itertools.product((-bound, bound), repeat=length)))))
    assert (highest(rng.uniform(-bound, bound, (200, length))) <= found + 1e-9).all()


# ------------------------------------------------------------------------------------------------- what it does


@pytest.mark.parametrize(
    ("name", "slope", "optimizer"), [("sfhf", 0.0, "adam"), ("one", 0.1, "ascent"), ("two", 1.0, "adam")]
)
def test_every_objective_rises_and_values_are_those_of_the_network(name, optimizer, slope):
    model = MODELS[name]()
    place = taps.find(model, LAYERS[name], rectified=True)
    found = climbed(model, place, slope, STEPS[optimizer], bound=1.5)
    assert (found.curve.diff(dim=1) >= 0).all() and (found.maximum > found.curve[:, 0]).float().mean() > 0.6
    with taps.evaluating(model), torch.no_grad():
        maps = taps.maps_of(model, place, found.best)
    unit = torch.arange(3).repeat_interleave(3)
    assert torch.allclose(maps[torch.arange(9), unit].mean((1, 2)), found.maximum, atol=1e-6)
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
    model, layer = MODELS[name]().train(), LAYERS[name]
    before = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    keeps = [p.requires_grad for p in model.parameters()]
    forwards = {m: m.forward.__func__ for m in model.modules()}
    climbed(model, layer, 0.5, n_steps=2)
    monkeypatch.delattr("harvis_utils.maximization.ascent.move")
    with pytest.raises(NameError):
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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"units": [0, 6]}, r"has units 0 to 5; units should be .* not \[0, 6\]"),
        ({"units": []}, r"has units 0 to 5; units should be .* not \[\]"),
        ({"tap": "conv9"}, "unknown layer 'conv9'"),
        ({"step": Step("sgd", 0.1, 1.0)}, "unknown optimizer 'sgd'; valid optimizers: ascent, momentum, adam"),
        ({"bound": 0}, "positive bound, not 2 steps and bound 0"),
        ({"n_steps": -1}, "0 or more steps"),
        ({"slope": float("nan")}, "a backward slope is a finite number, not nan"),
    ],
)
def test_bad_input_is_named(changed, message):
    with pytest.raises(ValueError, match=message):
        about = {"tap": "second", "units": [0], "start": windows(2), "step": ADAM, "n_steps": 2}
        slopes.ascend_units(MODELS["one"](), **about | changed)


# ------------------------------------------------------------------------------------------------ small functions


@pytest.mark.parametrize("landscape", landscapes.landscapes(), ids=lambda la: la.name)
def test_the_highest_value_of_each_landscape_is_known(landscape):
    _, values = landscapes.surface(landscape, 401)
    assert float(values.max()) == pytest.approx(landscape.maximum, abs=1e-5)
    assert float(landscape.network(torch.tensor([landscape.at]))) == pytest.approx(landscape.maximum, abs=1e-5)
    at = np.unravel_index(values.argmax(), values.shape)[::-1]
    assert np.linspace(-1, 1, 401)[list(at)] == pytest.approx(landscape.at, abs=0.006)


def test_where_plain_ascent_fails_and_where_slopes_do(monkeypatch):
    monkeypatch.setattr(landscapes, "SLOPES", (0.0, 1.0))
    table = landscapes.successes(9, ["adam"])
    adam = table.xs("adam", level="optimizer")
    assert len(adam) == len(landscapes.landscapes()) and table.stack().between(0, 1).all()
    climbed = ["flat", "gate", "two hills", "race"]
    assert (adam.loc[climbed, 0.0] < 0.5).all() and (adam.loc[climbed, 1.0] == 1).all()
    assert adam.loc["tent", 0.0] == 1 and adam.loc["tent", 1.0] < 0.5 and adam.loc["tent on a plain", 1.0] == 0


def test_paths_are_those_of_the_ascents():
    landscape = landscapes.landscapes()[-1]
    start = landscapes.starts(2, 9)
    assert start.shape == (9, 2) and start.abs().max() < 1
    path = landscapes.path(landscape, 0.1, landscapes.STEPS["adam"], start, 50)
    found = landscapes.climb(landscape, 0.1, landscapes.STEPS["adam"], start, 50)
    assert path.shape == (51, 9, 2) and np.array_equal(path[-1], found.last.numpy())
    assert (found.maximum > 0.98 * landscape.maximum).all(), "a small slope leaves the plain and keeps the tent"


# ------------------------------------------------------------------------------------------------------- stages


@pytest.fixture(scope="module")
def cfg():
    return dataclasses.replace(
        load_settings("quick", "synthetic", "cpu"),
        model=ModelSettings(n_units=4, n_dense=8),
        training=TrainingSettings(seeds=(0, 1), epochs=1, learning_rate=1e-2, batch_size=8),
        readings=ReadingSettings(seeds=(100,), n_units=2),
        slopes=SlopeSettings(n_steps=8, n_starts=2, trained=(0.0, 0.5), seeds=(0, 1), rates=(1e-2, 1e-5), epochs=1),
    )


def test_climbs_are_stored_and_say_what_they_should(cfg, tiny_windows, monkeypatch):
    monkeypatch.setattr(slopes_study, "STEP_SIZES", {"ascent": (1.0,), "adam": (0.05, 0.2)})
    monkeypatch.setattr(slopes_study, "SLOPES", (0.0, 0.3, 1.0))
    nets = supervised.untrained(cfg, tiny_windows)
    steps, scores = slopes_study.choose_steps(cfg, tiny_windows, nets[:1], 1.0)
    assert scores.shape == (3, 3) and scores.stack().between(0, 1).all()
    assert {s.optimizer for s in steps.values()} == {scores[0.0].idxmax()[0]}
    for slope, step in steps.items():
        assert step.step_size == scores.loc[step.optimizer, slope].idxmax()
    found = slopes_study.climbs(cfg, tiny_windows, nets, steps, 1.0)
    assert dict(found["maximum"].sizes) == {"seed": 2, "layer": 3, "slope": 3, "start": 2, "unit": 4}
    starts = torch.tensor(starting_points(cfg.maximization, tiny_windows.train, 2))
    alone = slopes_study.climb(nets[1].trunk, "conv2", torch.tensor([3]), starts[1:2], 0.3, steps[0.3], Climb(8, 1.0))
    one = found.sel(seed=1, layer="conv2", slope=0.3, unit=3).isel(start=1)
    assert np.allclose(one["signal"], alone.best[0], atol=1e-5) and np.allclose(one["maximum"], alone.maximum)
    assert (found["at_bounds"] == (np.abs(found["signal"]) > 0.9999).mean("time")).all()
    assert (found["one_sided"] == (np.abs(found["signal"].mean("time")) > 0.9999)).all()
    target = 0.95 * float(found["maximum"].sel(seed=1, layer="conv2", unit=3).max())
    assert one["until"] == next((k for k, v in enumerate(alone.curve[0].tolist()) if v >= target), np.inf)
    monkeypatch.setattr(slopes_study, "climb_all", lambda *_: pytest.fail("computed again"))
    assert slopes_study.climbs(cfg, tiny_windows, nets, steps, 1.0).identical(found)
    table = slopes_study.table(found)
    assert len(table) == 4 * 3 and (table.loc[("all", 0.0), ["gain", "higher"]] == 0).all()
    solved = slopes_study.against_optimum(nets, found, 1.0)
    assert 0 < solved["highest share"].max() <= 1 + 1e-5


def test_gains_by_hand():
    maximum = xr.DataArray([[[2.0, 0.0, 0.0, 4.0]], [[3.0, 1.0, 0.0, 2.0]]], dims=("slope", "seed", "unit"))
    found = slopes_study.gains(maximum.assign_coords(slope=[0.0, 0.5])).sel(slope=0.5).values[0]
    assert found[[0, 1, 3]].tolist() == [0.5, slopes_study.HIGHEST_GAIN, -0.5] and np.isnan(found[2])


def test_training_with_slope_zero_is_plain_training_bit_for_bit(cfg, tiny_windows):
    def trained(slope):
        network = supervised.new_model(tiny_windows, cfg.model, 0)
        supervised.fit_best(network, tiny_windows, cfg.training, 0, around=lambda: slopes.sloped(slope))
        return network.state_dict()

    plain, zero, other = map(trained, (None, 0.0, 0.9))
    assert all(torch.equal(v, zero[k]) for k, v in plain.items())
    assert not all(torch.equal(v, other[k]) for k, v in plain.items())
    kept = supervised.train(cfg, tiny_windows, 0).model.state_dict()
    assert all(torch.equal(v, kept[k]) for k, v in plain.items()), "and the chain's own training"


def test_training_chooses_rates_on_other_seeds_and_compares_in_pairs(cfg, tiny_windows):
    few = tiny_windows.every(4)
    made = slopes_study.outcomes(cfg, few, [100])
    assert len(made) == 2 * 2 * 2 and made[["val_f1", "test_f1", "dead"]].stack().between(0, 1).all()
    model, rates = dataclasses.replace(cfg.slopes.model, batch_norm=True), cfg.slopes.rates
    training = [TrainingSettings(seeds=(), epochs=1, learning_rate=rate) for rate in rates]
    tried = {one.learning_rate: slopes_study.outcome(few, model, one, 100, 0.5)["val_f1"] for one in training}
    assert {tried[rate] for rate in made.loc[("batch norm", 0.5), "rate"]} == {max(tried.values())}
    table = slopes_study.compare(made)
    assert (table.xs(0.0, level="slope")["test_f1 difference"] == 0).all()
    by_hand = made.loc[("batch norm", 0.5), "test_f1"].mean() - made.loc[("batch norm", 0.0), "test_f1"].mean()
    assert table.loc[("batch norm", 0.5), "test_f1 difference"] == pytest.approx(by_hand)


def test_height_and_bounds_are_ranked_within_units_and_averaged_by_layer():
    up = np.arange(6.0).reshape(2, 3)
    at_bounds = np.array([[up, -up], [up, 0 * up]])  # layer, unit, slope, start; of the last unit all the same
    dims = ("layer", "unit", "slope", "start")
    found = xr.Dataset(
        {"maximum": (dims, np.broadcast_to(up, at_bounds.shape)), "at_bounds": (dims, at_bounds)},
        {"slope": [0.0, 0.5], "layer": ["conv1", "conv2"]},
    )
    table = slopes_study.bounds_and_height(found.expand_dims(seed=[3]))
    assert list(table.index) == ["conv1", "conv2", "all"]
    assert table["correlation"].tolist() == pytest.approx([0.0, 1.0, 1 / 3])
    assert table.loc["conv1", ["correlation low", "correlation high"]].tolist() == [-1.0, 1.0]


def test_what_slopes_add_is_taken_unit_by_unit_from_living_units():
    bounds = np.zeros((2, 1, 2, 3, 4))  # slope, seed, layer, unit, start
    bounds[1, 0, 0, 0] = [1, 1, 0, 0]
    bounds[:, 0, 1, 2] = 1
    maximum = np.ones_like(bounds)
    maximum[:, 0, 1, 1] = 0  # a dead unit
    dims = ("slope", "seed", "layer", "unit", "start")
    coords = {"slope": [0.0, 0.5], "seed": [3], "layer": ["conv1", "conv2"]}
    climbs = xr.Dataset({"at_bounds": (dims, bounds), "maximum": (dims, maximum)}, coords)
    found = slopes_study.over_plain(climbs, "at_bounds", 0.5)
    assert found.n_pairs == 5 and found.mean == pytest.approx(0.5 / 5) and found.dominance == pytest.approx(1 / 5)


def test_white_is_the_best_where_all_weights_have_one_sign():
    trunk = made_trunk()
    edge = torch.tensor([0.0, 1.0, -1.0, 0.0, 0.0]).expand_as(trunk.weights[0])
    for first, expected in ((trunk.weights[0].abs(), 1.0), (edge, 0.0)):
        net = type("Fake", (), {"trunk": dataclasses.replace(trunk, weights=(first, *trunk.weights[1:]))})()
        assert slopes_study.white_optima([net], 1.0, LENGTH).tolist() == [expected]
